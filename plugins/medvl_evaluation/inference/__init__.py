"""From files to predictions, tables and figures: what the ``inference.json`` of every bundle runs."""

from medvl_evaluation.inference.each import RefusedInputs, figure_path, predict_each, write_record
from medvl_evaluation.inference.inputs import ct_studies, found_files, given_studies, radiograph_studies
from medvl_evaluation.inference.nearest import NearestReports
from medvl_evaluation.inference.prediction import FindingsPrediction

__all__ = [
    "FindingsPrediction",
    "NearestReports",
    "RefusedInputs",
    "ct_studies",
    "figure_path",
    "found_files",
    "given_studies",
    "predict_each",
    "radiograph_studies",
    "write_record",
]

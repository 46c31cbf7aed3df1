"""From radiographs, or CTs to simulate them from, to a probability per finding, the nearest reports and a figure."""

from medvl_evaluation.inference.inputs import ct_studies, given_studies, radiograph_studies
from medvl_evaluation.inference.nearest import NearestReports
from medvl_evaluation.inference.prediction import FindingsPrediction

__all__ = ["FindingsPrediction", "NearestReports", "ct_studies", "given_studies", "radiograph_studies"]

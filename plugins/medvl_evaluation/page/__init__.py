"""The report of an evaluation: one HTML file that needs nothing else, made from the files the evaluation wrote."""

from __future__ import annotations

from medvl_evaluation.page.cases import CaseCollector, EvaluationFilesError
from medvl_evaluation.page.folder import VALIDATION
from medvl_evaluation.page.page import write_case_files, write_provenance, write_report

__all__ = [
    "VALIDATION",
    "CaseCollector",
    "EvaluationFilesError",
    "write_case_files",
    "write_provenance",
    "write_report",
]

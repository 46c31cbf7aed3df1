"""Metrics as plain functions of arrays: what evaluators of any plugin are built from."""

from __future__ import annotations

from medvl_core.engine.masks import voxel_counts
from medvl_evaluation.metrics.bootstrap import (
    Interval,
    areas_statistic,
    bootstrap_ci,
    difference_statistic,
    label_strata,
    median_rank_statistic,
    recall_statistic,
)
from medvl_evaluation.metrics.calibration import (
    Reliability,
    brier_score,
    expected_calibration_error,
    reliability_curve,
)
from medvl_evaluation.metrics.classification import (
    ClassAverage,
    auprc,
    auroc,
    auroc_auprc,
    average_groups,
    average_metric,
    chance_auprc,
    micro_auprc,
    micro_auroc,
    operating_counts,
)
from medvl_evaluation.metrics.delong import DeLongTest, delong_test, holm
from medvl_evaluation.metrics.operating import OperatingPoints, choose_thresholds, operating_points
from medvl_evaluation.metrics.retrieval import (
    chance_median_rank,
    chance_recall,
    median_rank,
    recall_at_k,
    recall_of_ranks,
    retrieval_ranks,
    two_way_ranks,
)

__all__ = [
    "ClassAverage",
    "DeLongTest",
    "Interval",
    "OperatingPoints",
    "Reliability",
    "areas_statistic",
    "auprc",
    "auroc",
    "auroc_auprc",
    "average_groups",
    "average_metric",
    "bootstrap_ci",
    "brier_score",
    "chance_auprc",
    "chance_median_rank",
    "chance_recall",
    "choose_thresholds",
    "delong_test",
    "difference_statistic",
    "expected_calibration_error",
    "holm",
    "label_strata",
    "median_rank",
    "median_rank_statistic",
    "micro_auprc",
    "micro_auroc",
    "operating_counts",
    "operating_points",
    "recall_at_k",
    "recall_of_ranks",
    "recall_statistic",
    "reliability_curve",
    "retrieval_ranks",
    "two_way_ranks",
    "voxel_counts",
]

"""Metrics as plain functions of arrays: what evaluators of any plugin are built from."""

from __future__ import annotations

from medvl_core.metrics.bootstrap import (
    Interval,
    areas_statistic,
    bootstrap_ci,
    median_rank_statistic,
    recall_statistic,
)
from medvl_core.metrics.classification import (
    ClassAverage,
    auprc,
    auroc,
    auroc_auprc,
    average_metric,
    chance_auprc,
    micro_auprc,
    micro_auroc,
    operating_counts,
)
from medvl_core.metrics.retrieval import (
    chance_median_rank,
    chance_recall,
    median_rank,
    recall_at_k,
    retrieval_ranks,
    two_way_ranks,
)

__all__ = [
    "ClassAverage",
    "Interval",
    "areas_statistic",
    "auprc",
    "auroc",
    "auroc_auprc",
    "average_metric",
    "bootstrap_ci",
    "chance_auprc",
    "chance_median_rank",
    "chance_recall",
    "median_rank",
    "median_rank_statistic",
    "micro_auprc",
    "micro_auroc",
    "operating_counts",
    "recall_at_k",
    "recall_statistic",
    "retrieval_ranks",
    "two_way_ranks",
]

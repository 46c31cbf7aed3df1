from __future__ import annotations

import json

import pytest
import torch
from torch import nn

from medvl_core.build import build_evaluator
from medvl_core.data import StudyDataset, study_loader
from medvl_core.evaluation import Evaluation
from medvl_core.protocols import AlignmentBatch

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")


class Model(nn.Module):
    """Knows the study's number (``good``), or nothing."""

    def __init__(self, good: bool) -> None:
        super().__init__()
        self.good = good

    def forward(self, batch):
        number = torch.tensor([int(name.removeprefix("scan")) for name in batch["scan_id"]])
        report = torch.eye(16)[number]
        generator = torch.Generator().manual_seed(0)
        cxr = report if self.good else torch.randn(len(number), 16, generator=generator)
        return AlignmentBatch({"cxr": cxr, "report": report}, torch.tensor(1.0))


def _evaluate(studies, folder, evaluators):
    loader = study_loader(StudyDataset(studies, label_names=("a", "b")), 5)
    networks = {"untrained": Model(False), "trained": Model(True)}
    return Evaluation(networks, loader, evaluators, folder, n_resamples=100).run()


def test_rows_are_chance_untrained_and_trained_in_order(tmp_path, studies):
    evaluator = build_evaluator("baseline/retrieval", query="cxr", gallery="report", ks=(1, 3))
    comparison = _evaluate(studies, tmp_path / "eval", [evaluator, None])
    assert list(comparison.rows) == ["chance", "untrained", "trained"]
    assert comparison.candidate == "trained"
    assert comparison.rows["trained"]["cxr_to_report/recall_at_1"].value == 1.0
    assert comparison.rows["chance"]["cxr_to_report/recall_at_1"].value == pytest.approx(2 / 12)
    assert comparison.rows["untrained"]["cxr_to_report/recall_at_1"].value < 0.7
    assert comparison.verdicts["cxr_to_report/recall_at_1"] == "ahead"


def test_files_say_how_many_studies_and_that_few_prove_plumbing(tmp_path, studies):
    evaluator = build_evaluator("baseline/retrieval", query="cxr", gallery="report")
    _evaluate(studies, tmp_path / "eval", [evaluator])
    content = json.loads((tmp_path / "eval" / "metrics.json").read_text())
    assert content["context"]["n_studies"] == 12
    assert content["context"]["n_subjects"] == 6
    assert "prove plumbing, not skill" in (tmp_path / "eval" / "comparison.md").read_text()
    assert (tmp_path / "eval" / "comparison.png").stat().st_size > 1000

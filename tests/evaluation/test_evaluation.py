from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import nn

from medvl_core.build import build_evaluator
from medvl_core.bundle.manifest import run_manifest
from medvl_core.engine.loading import StudyDataset, study_loader
from medvl_core.errors import OptionError
from medvl_core.protocols import AlignmentBatch
from medvl_core.specs import Metric
from medvl_evaluation.evaluation import Evaluation, predict
from medvl_evaluation.predictions import read_predictions

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


def _job(validation=(), manifest=None):
    """As much of a job as an evaluation asks for; nothing is tracked."""
    return SimpleNamespace(
        device="cpu", seed=0, studies={"validation": validation}, manifest=manifest, tracking=lambda stage: None
    )


def _evaluate(studies, folder, evaluators, validation=(), manifest=None, **options):
    loader = study_loader(StudyDataset(studies, label_names=("a", "b")), 5)
    networks = {"untrained": Model(False), "trained": Model(True)}
    job = _job(validation, manifest)
    return Evaluation(job, networks, loader, evaluators, folder, n_resamples=100, **options).run()


def _zero_shot():
    prompts = torch.nn.functional.normalize(torch.randn(4, 16, generator=torch.Generator().manual_seed(1)), dim=1)
    embed_text = lambda texts, normalise=True: prompts[: len(texts)]  # noqa: E731
    return build_evaluator("baseline/zero_shot", classes=("a", "b"), image="cxr", embed_text=embed_text)


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


class Learner:
    """What an evaluator that learns from other studies has."""

    def __init__(self, train, name: str) -> None:
        self.train, self.metrics, self.calls = train, (Metric(name=name),), []

    def learn(self, outputs) -> None:
        self.calls.append(("learn", [study for batch in outputs for study in batch["study_id"]]))

    def reset(self) -> None:
        pass

    def update(self, outputs) -> None:
        self.calls.append(("update", outputs["study_id"]))

    def compute(self):
        return {self.metrics[0].name: 0.5}

    def intervals(self, n_resamples, seed):
        return {self.metrics[0].name: (0.4, 0.6)}

    def chance(self):
        return {self.metrics[0].name: 0.1}

    def tables(self, n_resamples, seed):
        return {}

    def figures(self, folder, n_resamples, seed):
        return []


def test_an_evaluator_learns_from_its_loader_once_per_network_before_it_is_fed(tmp_path, studies):
    train = study_loader(StudyDataset(studies[:4], label_names=("a", "b")), 3)
    evaluators = [Learner(train, "one"), Learner(train, "two"), Learner(None, "three")]
    passes = []
    collate = train.collate_fn
    train.collate_fn = lambda items: passes.append(len(items)) or collate(items)
    _evaluate(studies, tmp_path, evaluators)
    for evaluator in evaluators[:2]:
        learned = ("learn", [study.study_id for study in studies[:4]])
        kinds = [kind for kind, _ in evaluator.calls]
        assert [call for call in evaluator.calls if call[0] == "learn"] == [learned] * 2
        assert kinds[0] == "learn"
        assert "update" in kinds
    assert not any(kind == "learn" for kind, _ in evaluators[2].calls)
    assert passes == [3, 1, 3, 1]  # two networks, one pass each for both evaluators


def test_what_is_no_evaluator_is_refused_before_any_pass(tmp_path, studies):
    with pytest.raises(OptionError, match="SimpleNamespace lacks reset, update, compute, intervals, chance, tables"):
        _evaluate(studies, tmp_path, [SimpleNamespace(metrics=())])
    with pytest.raises(OptionError, match=r"predict: Retrieval has no predictions\(\)"):
        predict(Model(True), None, build_evaluator("baseline/retrieval", query="cxr", gallery="report"))


def _around(evaluator):
    """A wrapper that hands on nothing but what every evaluator has."""
    names = ("metrics", "reset", "update", "compute", "intervals", "chance", "tables", "figures")
    return SimpleNamespace(evaluator=evaluator, **{name: getattr(evaluator, name) for name in names})


def test_what_two_wrappers_hold_learns_and_reads_the_text_tower_of_the_network(tmp_path, studies):
    train = study_loader(StudyDataset(studies[:4], label_names=("a", "b")), 3)
    inner, own, read = Learner(train, "one"), object(), []
    inner.embed_text, inner.reset = own, lambda: read.append(inner.embed_text)
    loader = study_loader(StudyDataset(studies[4:], label_names=("a", "b")), 5)
    with_texts = Model(True)
    with_texts.embed_text = "the network's"
    networks = {"plain": Model(False), "trained": with_texts}
    Evaluation(_job(), networks, loader, [_around(_around(inner))], tmp_path, n_resamples=10).run()
    assert [kind for kind, _ in inner.calls].count("learn") == 2
    assert list(dict.fromkeys(read)) == [own, "the network's"]


def test_two_evaluators_of_one_metric_are_refused(tmp_path, studies):
    with pytest.raises(ValueError, match="two evaluators report one; give one of them a prefix of its own"):
        _evaluate(studies, tmp_path, [Learner(None, "one"), Learner(None, "one")])


def test_operating_points_come_from_the_validation_studies_scored_by_the_last_network(tmp_path, studies):
    _evaluate(studies[4:], tmp_path, [_zero_shot()], validation=studies[:4])
    scored = read_predictions(tmp_path / "validation_zero_shot_predictions.csv")
    assert list(scored.study_id) == [study.study_id for study in studies[:4]]
    tested = read_predictions(tmp_path / "zero_shot_predictions.csv")
    assert list(tested.study_id) == [study.study_id for study in studies[4:]]
    assert "chosen on the 4 validation studies" in (tmp_path / "report.html").read_text()
    _evaluate(studies[:4], tmp_path / "again", [_zero_shot()])
    again = read_predictions(tmp_path / "again" / "zero_shot_predictions.csv")
    np.testing.assert_allclose(again.scores, scored.scores)


@pytest.mark.parametrize("show_text", [False, True])
def test_no_file_holds_report_text_unless_asked_for(tmp_path, studies, show_text):
    evaluator = build_evaluator("baseline/retrieval", query="cxr", gallery="report")
    manifest = run_manifest(seed=0, device="cpu", studies={"test": studies})
    _evaluate(studies, tmp_path, [evaluator, _zero_shot()], show_text=show_text, manifest=manifest)
    found = [path.name for path in tmp_path.iterdir() if path.suffix != ".png" and "finding number" in _content(path)]
    assert sorted(found) == (["cases.npz", "report.html"] if show_text else [])


def _content(path):
    if path.suffix != ".npz":
        return path.read_text()
    with np.load(path) as archive:
        return " ".join(str(archive[name].tolist()) for name in archive.files)


def test_second_run_reaches_the_report(tmp_path, studies):
    for name, against in (("one", None), ("two", tmp_path / "one")):
        _evaluate(studies, tmp_path / name, [_zero_shot()], against=against)
    assert "two-tailed DeLong test" in (tmp_path / "two" / "report.html").read_text()
    assert "two-tailed DeLong test" not in (tmp_path / "one" / "report.html").read_text()


def test_each_network_is_judged_with_its_own_text_tower(tmp_path, studies):
    """Two networks of equal images: the one whose texts are turned round is wrong where the other is right."""
    evaluator = _zero_shot()
    embed_text = evaluator.embed_text
    networks = {name: Model(True) for name in ("turned", "plain")}
    networks["plain"].embed_text = embed_text
    networks["turned"].embed_text = lambda texts, normalise=True: -embed_text(texts)
    loader = study_loader(StudyDataset(studies, label_names=("a", "b")), 5)
    rows = Evaluation(_job(), networks, loader, [evaluator], tmp_path / "eval", n_resamples=20).run().rows
    areas = [rows[name]["auroc_macro"].value for name in networks]
    assert areas[0] == pytest.approx(1 - areas[1])
    assert areas[0] != areas[1]


def test_a_network_without_text_tower_is_judged_with_the_evaluators_own(tmp_path, studies):
    evaluator = _zero_shot()
    own = evaluator.embed_text
    networks = {name: Model(True) for name in ("turned", "plain")}
    networks["turned"].embed_text = lambda texts, normalise=True: -own(texts)
    loader = study_loader(StudyDataset(studies, label_names=("a", "b")), 5)
    evaluation = Evaluation(_job(), networks, loader, [evaluator], tmp_path / "eval", n_resamples=20)
    for _ in range(2):  # a second run starts with what the first one left
        rows = evaluation.run().rows
        areas = [rows[name]["auroc_macro"].value for name in networks]
        assert areas[0] == pytest.approx(1 - areas[1])
        assert areas[0] != areas[1]
        assert evaluator.embed_text is own


def test_predictions_come_without_files(tmp_path, studies):
    loader = study_loader(StudyDataset(studies, label_names=("a", "b")), 5)
    found = predict(Model(True), loader, _zero_shot())
    assert found.study_id == [study.study_id for study in studies]
    assert found.scores.shape == (len(studies), 2)
    assert list(tmp_path.iterdir()) == []

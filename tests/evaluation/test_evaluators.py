"""Every protocol from a bundle config, through one evaluation, to files that a second run is compared with."""

from __future__ import annotations

import json
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from monai.bundle import ConfigParser

from medvl_core.engine.loading import StudyDataset, study_loader
from medvl_core.study import Study
from medvl_evaluation.predictions import read_predictions
from medvl_evaluation.run_comparison import compare_runs
from tests.evaluation.evaluator_data import outputs, tower

pytestmark = pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning")
CLASSES = ("Nodule", "Hernia", "Effusion")
BUILD = {"_target_": "medvl_core.build_evaluator"}
ZERO_SHOT = {**BUILD, "name": "baseline/zero_shot", "classes": "@classes", "image": "cxr", "embed_text": "@tower"}
PROBE = {
    **BUILD,
    "name": "baseline/linear_probe",
    "classes": "@classes",
    "image": "cxr",
    "fitting": {"learning_rate": 0.1, "epochs": 20},
}
FEW_SHOT = {"scheme": "train", "train": "@train_loader", "fractions": [0.2, 1.0], "folds": 2}
EVALUATORS = [
    ZERO_SHOT,
    {**ZERO_SHOT, "name": "baseline/prompt_sensitivity"},
    {**BUILD, "name": "baseline/retrieval", "query": "mri", "gallery": "report", "ks": [1, 5]},
    PROBE,
    {**PROBE, **FEW_SHOT, "prefix": "few_shot"},
    {
        **BUILD,
        "name": "baseline/external",
        "columns": "@classes",
        "label_map": "@label_map",
        "evaluator": {**PROBE, **FEW_SHOT, "classes": ["Hernia", "Any"], "train": "@mapped_loader"},
    },
    {**BUILD, "name": "baseline/subgroups", "column": "sex", "evaluator": ZERO_SHOT},
]
STEMS = {
    *("zero_shot_per_class", "zero_shot_predictions", "prompts_wordings"),
    *("retrieval_mri_to_report", "subgroups_sex", "subgroups_sex_classes"),
    *("linear_probe_folds", "linear_probe_summary", "linear_probe_100_predictions"),
    *("few_shot_folds", "few_shot_summary", "few_shot_20_predictions", "few_shot_100_predictions"),
    *("external_linear_probe_folds", "external_linear_probe_summary", "external_label_map"),
    *("external_linear_probe_20_predictions", "external_linear_probe_100_predictions"),
}


@pytest.fixture(scope="module", autouse=True)
def _no_report():
    """The report has tests of its own, and takes longer than everything here."""
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr("medvl_evaluation.evaluation.write_report", lambda *_: None)
        yield


def loader(batch: dict, labels: np.ndarray, names: tuple[str, ...]):
    """Studies whose embeddings are stored."""
    rows = dict(zip(batch["study_id"], batch["embeddings"]["cxr"], strict=True))
    studies = [
        Study(
            study_id=study,
            subject_id=subject,
            scan_id=study,
            images={},
            labels=dict(zip(names, values.tolist(), strict=True)),
            metadata=metadata,
        )
        for study, subject, values, metadata in zip(
            batch["study_id"], batch["subject_id"], labels, batch["metadata"], strict=True
        )
    ]
    stored = {f"{name}_embedding": lambda study, draw: rows[study.study_id] for name in ("cxr", "mri", "report")}
    return study_loader(StudyDataset(studies, stored, label_names=names), 16)


def run(folder, n: int = 60, signal: float = 0.8, evaluators: list = EVALUATORS):
    """One evaluation of stored embeddings, as a bundle's config has it."""
    (folder.parent / "map.json").write_text(json.dumps({"Any": ["Nodule", "Effusion"]}))
    test, train = outputs(n, signal=signal), outputs(80, seed=5, who="q")
    labels = train["labels"].numpy()
    mapped = np.stack([labels[:, 1], labels[:, [0, 2]].max(axis=1)], axis=1)
    config = {
        "classes": list(CLASSES),
        "label_map": str(folder.parent / "map.json"),
        "tower": tower,
        "test_loader": loader(test, test["labels"].numpy(), CLASSES),
        "train_loader": loader(train, labels, CLASSES),
        "mapped_loader": loader(train, mapped, ("Hernia", "Any")),
        "evaluate": {
            "_target_": "medvl_evaluation.evaluation.Evaluation",
            "job": SimpleNamespace(device="cpu", seed=0, studies={}, manifest=None, tracking=lambda stage: None),
            "networks": {"trained": {"_target_": "medvl_core.engine.alignment.AlignmentModel", "towers": {}}},
            "dataloader": "@test_loader",
            "evaluators": evaluators,
            "folder": str(folder),
            "n_resamples": 40,
        },
    }
    return ConfigParser(config).get_parsed_content("evaluate").run()


@pytest.fixture(scope="module")
def evaluated(tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "a"
    state = torch.get_rng_state()
    return folder, run(folder), state


def test_every_protocol_leaves_its_tables(evaluated):
    folder, _, state = evaluated
    content = json.loads((folder / "metrics.json").read_text())
    assert {name.removesuffix(".csv") for name in content["tables"]} == STEMS
    assert all(len(pd.read_csv(folder / f"{stem}.csv")) > 0 for stem in STEMS)
    assert torch.equal(state, torch.get_rng_state())


def test_numbers_stand_beside_chance(evaluated):
    comparison = evaluated[1]
    rows = comparison.rows["trained"]
    assert rows["few_shot_100/auroc_macro"].value > 0.75
    assert rows["external/linear_probe_100/auroc_macro"].value > 0.75
    assert rows["mri_to_report/recall_at_1"].value == 1.0
    for name in (
        "prompts/auroc_macro_spread",
        "subgroups_sex/auroc_macro_gap",
        "linear_probe_100/f1_macro",
    ):
        assert np.isfinite([rows[name].value, rows[name].low, comparison.rows["chance"][name].value]).all(), name


def test_external_predictions_have_merged_labels(evaluated):
    scored = read_predictions(evaluated[0] / "external_linear_probe_100_predictions.csv")
    expected = outputs(60)["labels"].numpy()
    assert list(scored.classes) == ["Hernia", "Any"]
    np.testing.assert_array_equal(scored.labels[:, 1], expected[:, [0, 2]].max(axis=1))


def test_two_runs_are_compared(evaluated, tmp_path):
    run(tmp_path / "b", signal=0.3, evaluators=[PROBE])
    ((task, test),) = compare_runs(evaluated[0], tmp_path / "b", n_resamples=20).items()
    rows = {row.name: row for row in test.rows}
    assert (task, set(rows)) == ("linear_probe_100", {*CLASSES, "macro", "micro"})
    assert rows["micro"].difference > 0


def test_two_of_a_name_are_refused_before_the_pass(tmp_path):
    with pytest.raises(RuntimeError) as caught:
        run(tmp_path / "d", evaluators=[ZERO_SHOT, ZERO_SHOT])
    assert "two evaluators report auprc_macro" in str(caught.value.__cause__)

from __future__ import annotations

import json

import numpy as np
import pandas as pd
import pytest
import torch
from sklearn.metrics import f1_score, precision_score, recall_score, roc_auc_score
from torch.nn.functional import normalize

from medvl_core.study import Study
from medvl_ct_glip.abnormalities import OrganLabels, read_abnormalities
from medvl_ct_glip.organ_abnormality import OrganAbnormality
from medvl_ct_glip.organ_recognition import OrganRecognition
from medvl_ct_glip.regions.texts import RegionText, spoken

REGIONS = ("spleen", "liver", "kidney_left", "kidney_right")
LABELS = ("Kidney stone", "Fatty liver", "Splenomegaly", "Cough")
N = 40


def embed(texts):
    rows = [torch.randn(12, generator=torch.Generator().manual_seed(sum(map(ord, text)))) for text in texts]
    return normalize(torch.stack(rows), dim=1)


def outputs(seed=0, visible=0.8):
    rng = np.random.default_rng(seed)
    rows = normalize(torch.from_numpy(rng.normal(size=(N, 4, 12))).float(), dim=2)
    rows[torch.from_numpy(rng.random((N, 4)) > visible)] = 0
    labels = (rng.random((N, 4)) < 0.4).astype(float)
    labels[rng.random((N, 4)) < 0.1] = np.nan
    return {
        "embeddings": {"ct_regions": rows},
        "labels": torch.from_numpy(labels),
        "study_id": [f"s{i}" for i in range(N)],
        "subject_id": [f"p{i // 2}" for i in range(N)],
    }


def test_recognition_equals_a_loop():
    made, batch = OrganRecognition(REGIONS, embed), outputs()
    made.update(batch)
    texts = embed([f"This is the {spoken(name)} in the CT scans." for name in REGIONS])
    hits = []
    for i in range(N):
        for r in range(4):
            row = batch["embeddings"]["ct_regions"][i, r]
            if row.abs().sum():
                hits.append((r, int((texts @ row).argmax()) == r))
    organs = [np.mean([hit for r, hit in hits if r == organ]) for organ in range(4)]
    values = made.compute()
    assert values["organ/top_1"] == pytest.approx(np.mean([hit for _, hit in hits]))
    assert values["organ/top_1_macro"] == pytest.approx(np.mean(organs))
    assert made.chance()["organ/top_1"] == 0.25
    low, high = made.intervals(200)["organ/top_1"]
    assert low < values["organ/top_1"] < high
    table = made.tables(10)["organ_per_organ"]
    np.testing.assert_allclose(table["top_1"], organs)
    assert table["instances"].sum() == len(hits)


def scored(batch):
    """Largest margin over the sides of the organ, label by label, as the definition says."""
    sides = {
        "kidney stone": (0, [2, 3], "kidney"),
        "fatty liver": (1, [1], "liver"),
        "splenomegaly": (2, [0], "spleen"),
    }
    pairs = {}
    for name, (column, places, organ) in sides.items():
        truth, scores = [], []
        for i in range(N):
            margins = []
            for r in places:
                row = batch["embeddings"]["ct_regions"][i, r]
                texts = embed([name, f"{name} in {organ}"]).mean(dim=0)
                normal = embed([f"no evident abnormality in {spoken(REGIONS[r])}"])[0]
                if row.abs().sum():
                    margins.append(float(row @ texts / texts.norm() - row @ normal) / 0.07)
            label = float(batch["labels"][i, column])
            if margins and not np.isnan(label):
                truth.append(label)
                scores.append(max(margins))
        pairs[name] = (np.array(truth), np.array(scores))
    return pairs


def test_abnormalities_equal_a_loop_and_sklearn():
    made, batch = OrganAbnormality(REGIONS, LABELS, embed), outputs()
    made.update(batch)
    pairs = scored(batch)
    assert set(made.classes) == set(pairs)
    truth, scores = (np.concatenate([pairs[name][side] for name in made.classes]) for side in (0, 1))
    values = made.compute()
    assert values["abnormality/ppv"] == pytest.approx(precision_score(truth, scores > 0))
    assert values["abnormality/sensitivity"] == pytest.approx(recall_score(truth, scores > 0))
    assert values["abnormality/f1"] == pytest.approx(f1_score(truth, scores > 0))
    assert values["abnormality/auroc_micro"] == pytest.approx(roc_auc_score(truth, scores), abs=1e-6)
    areas = [roc_auc_score(*pairs[name]) for name in made.classes]
    assert values["abnormality/auroc_macro"] == pytest.approx(np.mean(areas), abs=1e-6)
    assert values["abnormality/classes_left_out"] == 0
    tables = made.tables(20)
    np.testing.assert_allclose(tables["abnormality_per_class"]["auroc"], areas, atol=1e-6)
    assert list(tables["abnormality_per_organ"]["organ"]) == ["spleen", "kidney", "liver"]
    share = truth.mean()
    assert made.chance()["abnormality/f1"] == pytest.approx(share / (share + 0.5))
    for name, (low, high) in made.intervals(100).items():
        assert low <= values[name] <= high


def test_a_label_without_positives_is_left_out_and_counted():
    made, batch = OrganAbnormality(REGIONS, LABELS, embed), outputs()
    batch["labels"][:, 1] = 0.0
    made.update(batch)
    assert made.compute()["abnormality/classes_left_out"] == 1
    assert 0 < made.compute()["abnormality/auroc_macro"] < 1


def test_an_organ_that_no_scan_shows_is_not_judged(tmp_path):
    made, batch = OrganAbnormality(REGIONS, LABELS, embed), outputs()
    batch["embeddings"]["ct_regions"][:, 1] = 0
    made.update(batch)
    table = made.predictions().table()
    assert table[table["class"] == "fatty liver"]["label"].isna().all()
    assert table["score"].notna().all()
    told, seen = made.predict(batch["embeddings"]), made.predictions()
    hidden = np.isnan(told)
    assert hidden[:, list(made.classes).index("fatty liver")].all()
    np.testing.assert_array_equal(told[~hidden], seen.probabilities[~hidden])
    place = list(made.classes).index("fatty liver")
    assert made.prompts["positive"][place] == ["fatty liver", "fatty liver in liver"]
    assert made.prompts["negative"][place] == ["no evident abnormality in liver"]
    assert {path.name for path in made.figures(tmp_path)} == {"abnormality_radar.png", "abnormality_scores.png"}


def test_wrong_batches_and_options_are_refused():
    made = OrganRecognition(REGIONS, embed)
    with pytest.raises(ValueError, match=r"needs embeddings 'ct_regions' of shape \(40, 4, E\), got \(40, 3, 12\)"):
        made.update(outputs() | {"embeddings": {"ct_regions": outputs()["embeddings"]["ct_regions"][:, :3]}})
    broken = outputs()
    broken["embeddings"]["ct_regions"][3, 0, 0] = float("nan")
    with pytest.raises(ValueError, match="s3: a region embedding is not finite"):
        made.update(broken)
    with pytest.raises(ValueError, match="has collected no study"):
        made.compute()
    made.update(outputs(visible=-1.0))
    with pytest.raises(ValueError, match="no region is visible in any study"):
        made.compute()
    with pytest.raises(ValueError, match="none of 16 abnormalities has a label among"):
        OrganAbnormality(REGIONS, ["Cough"])
    with pytest.raises(ValueError, match=r"labels have shape \(40, 4\) for 1 label names"):
        OrganAbnormality(REGIONS, LABELS[:1]).update(outputs())
    made = OrganAbnormality(REGIONS, LABELS)
    made.update(outputs())
    with pytest.raises(ValueError, match="no text tower"):
        made.compute()
    with pytest.raises(ValueError, match=r"it needs one \{\} for the organ"):
        OrganRecognition(REGIONS, template="this is an organ")


def test_the_table_has_the_papers_eleven_and_marks_the_others(tmp_path):
    listed = read_abnormalities(roles=["listed"])
    assert len(listed) == 11
    assert {row.organ for row in listed} == {"spleen", "pancreas", "aorta", "kidney", "liver"}
    assert len(read_abnormalities(roles=["listed", "ours"])) == 16
    (tmp_path / "bad.json").write_text(json.dumps([{"name": "x"}]))
    with pytest.raises(ValueError, match="no table of abnormalities"):
        read_abnormalities(tmp_path / "bad.json")
    with pytest.raises(FileNotFoundError, match="no such table of abnormalities"):
        read_abnormalities(tmp_path / "none.json")


def test_labels_become_region_texts():
    labels = {"Kidney stone": 1.0, "Kidney cyst": 1.0, "Fatty liver": 0.0, "Liver cyst": 0.0, "Splenomegaly": 0.0}
    names = {1: "kidney_left", 2: "liver", 3: "spleen", 4: "femur_left"}
    given = {"study_id": "s", "subject_id": "p", "scan_id": "s", "images": {}, "region_names": names}
    study = Study(**given, labels=labels | {"Liver calcification": 0.0})
    found = OrganLabels().region_texts(study)
    assert found == {
        "kidney_left": RegionText("kidney stone, kidney cyst", "abnormal"),
        "liver": RegionText("no evident abnormality in liver", "normal"),
    }  # the spleen's calcification is unknown, the femur is in no table
    assert OrganLabels().texts([study], None) == ["Kidney stone, kidney cyst. No evident abnormality in liver."]


def test_thresholds_come_from_other_studies_one_per_abnormality(tmp_path):
    file = tmp_path / "thresholds.csv"
    made, batch = OrganAbnormality(REGIONS, LABELS, embed, train=["a loader"], thresholds_file=file), outputs()
    made.learn([outputs(seed=1)])
    other, pairs = scored(outputs(seed=1)), scored(batch)
    called, truth = [], []
    for name in made.classes:
        label, score = other[name]
        levels = [(f1_score(label, score >= level), level) for level in np.unique(score)]
        best = max(level for value, level in levels if value >= max(levels)[0] - 1e-12)
        truth.append(pairs[name][0])
        called.append(pairs[name][1] >= best - 1e-6)
    made.update(batch)
    values = made.compute()
    truth, called = np.concatenate(truth), np.concatenate(called)
    assert values["abnormality/ppv_tuned"] == pytest.approx(precision_score(truth, called))
    assert values["abnormality/sensitivity_tuned"] == pytest.approx(recall_score(truth, called))
    assert values["abnormality/f1_tuned"] == pytest.approx(f1_score(truth, called))
    table = made.tables(20)["abnormality_per_class"].set_index("class")
    row = table.loc["fatty liver"]
    assert row["f1_tuned"] == pytest.approx(
        f1_score(pairs["fatty liver"][0], pairs["fatty liver"][1] >= row["threshold"])
    )
    written = pd.read_csv(file)
    np.testing.assert_allclose(written["log_odds"], table["threshold"])
    fatty = "fatty liver | liver | liver | {abnormality} | {abnormality} in {organ} | no evident abnormality in {organ}"
    assert fatty in set(written["question"])
    plain = OrganAbnormality(REGIONS, LABELS, embed)
    plain.update(batch)
    assert "threshold" not in plain.tables(20)["abnormality_per_class"]
    assert plain.compute() == {name: value for name, value in values.items() if not name.endswith("_tuned")}
    share = truth.mean()
    assert made.chance()["abnormality/f1_tuned"] == pytest.approx(2 * share / (share + 1))
    assert set(made.intervals(50)) == set(made.chance())


def test_a_label_without_positives_in_the_other_studies_keeps_threshold_0():
    made, rare = OrganAbnormality(REGIONS, LABELS, embed, train=["a loader"]), outputs(seed=1)
    rare["labels"][:, 1] = 0.0
    made.learn([rare])
    assert np.isnan(made.thresholds[made.classes.index("fatty liver")])
    assert made.thresholds[made.classes.index("kidney stone")] != 0.0
    made.update(outputs())
    table = made.tables(20)["abnormality_per_class"].set_index("class")
    assert table["f1_tuned"]["fatty liver"] == table["f1"]["fatty liver"]


def test_the_mean_auroc_is_over_abnormalities_with_enough_positives():
    batch = outputs()
    batch["labels"][:, 1] = 0.0
    batch["labels"][:3, 1] = 1.0
    made = OrganAbnormality(REGIONS, LABELS, embed, min_positives=4)
    made.update(batch)
    pairs = scored(batch)
    areas = [roc_auc_score(*pairs[name]) for name in made.classes if name != "fatty liver"]
    assert made.compute()["abnormality/auroc_macro"] == pytest.approx(np.mean(areas), abs=1e-6)
    assert made.compute()["abnormality/classes_left_out"] == 1
    none = OrganAbnormality(REGIONS, LABELS, embed, min_positives=1000)
    none.update(batch)
    assert np.isnan(none.compute()["abnormality/auroc_macro"])
    with pytest.raises(ValueError, match="min_positives is 0; at least 1"):
        OrganAbnormality(REGIONS, LABELS, embed, min_positives=0)

from __future__ import annotations

import json
import re
import shutil
import sys
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
from typer.testing import CliRunner

from medvl_core.command import cli
from medvl_core.specs import ImageInput
from medvl_evaluation.page import EvaluationFilesError, case_panels, label_panels, page, panels, write_report
from medvl_evaluation.page.cases import picture_of, read_cases, read_pictures, write_cases, write_pictures
from medvl_evaluation.page.folder import read_folder
from medvl_evaluation.run_comparison import RunsDifferError
from medvl_imaging.images import ImageRows
from tests.evaluation import report_folder

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")
PANELS = (
    *("comparison", "data", "labels", "calibration", "map", "curves", "gallery", "failures"),
    *("against", "wordings", "subgroups", "others", "reproduce"),
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    return report_folder.make(tmp_path_factory.mktemp("report") / "eval")


@pytest.fixture(scope="module")
def html(folder):
    return write_report(folder).read_text(encoding="utf-8")


def _section(html: str, key: str) -> str:
    return re.search(rf'<section id="{key}".*?</section>', html, re.DOTALL).group()


def _squared(rows: np.ndarray) -> np.ndarray:
    return rows / np.linalg.norm(rows, axis=1, keepdims=True)


def test_every_panel_is_there_and_none_is_empty(html):
    assert [key for key in PANELS if f'<section id="{key}"' not in html] == []
    assert [key for key in PANELS if "Not shown" in _section(html, key)] == ["against"]
    for text in ("ffffffffffff with changes", "40 / 20", "3 (run), 0 (resamples)", "python -m monai.bundle run"):
        assert text in html


def test_names_and_texts_are_escaped_and_nothing_points_outside(folder, html):
    assert "<script>window" not in html
    assert "&lt;script&gt;window.hacked" in html
    assert 'onmouseover="' not in html
    assert not re.search(r"https?:|//cdn|@import|url\(", html)
    assert html.count("<script>") == 1


def test_same_files_give_the_same_page(folder, html):
    assert write_report(folder).read_text(encoding="utf-8") == html


def test_table_per_finding_holds_its_numbers(folder):
    (panel,) = label_panels.label_tables(read_folder(folder))
    rows = {row["name"]: row for row in panel.content["rows"]}
    scored, chosen_on = report_folder.told(), report_folder.told(30, seed=9)
    for c, name in enumerate(report_folder.CLASSES):
        labels, scores = scored.labels[:, c], scored.scores[:, c]
        row = rows[name]
        assert row["n_positive"] == (labels == 1).sum()
        assert row["train"] == 0.25
        if name == "Never seen":
            assert np.isnan(row["threshold"])
            assert row["auroc_text"] == row["sensitivity_text"] == "–"
            continue
        known, candidates = ~np.isnan(chosen_on.labels[:, c]), np.sort(chosen_on.scores[:, c])[::-1]
        y, s = chosen_on.labels[known, c], chosen_on.scores[known, c]
        youden = [np.mean(s[y == 1] >= t) + np.mean(s[y == 0] < t) for t in candidates]
        threshold = candidates[int(np.argmax(np.round(youden, 9)))]
        assert row["threshold"] == pytest.approx(1 / (1 + np.exp(-threshold)))
        assert row["sensitivity"] == pytest.approx(np.mean(scores[labels == 1] >= threshold))
        assert row["specificity"] == pytest.approx(np.mean(scores[labels == 0] < threshold))
        assert 0 < row["ece"] < 1
    assert "chosen on the 30 validation studies" in panel.notes[0]


def test_tables_per_finding_without_intervals_or_counts_are_shown_too(tmp_path):
    path = report_folder.make(tmp_path / "eval") / "zero_shot_per_class.csv"
    table = pd.read_csv(path)
    table[["class", "auroc", "auprc", "n_positive", "n_negative"]].to_csv(path, index=False)
    (panel,) = label_panels.label_tables(read_folder(path.parent))
    assert "[" not in panel.content["rows"][0]["auroc_text"]
    table[["class", "auroc", "auprc"]].to_csv(path, index=False)
    write_report(path.parent)
    assert label_panels.label_tables(read_folder(path.parent))[0].missing
    assert "zero_shot_per_class" in [one["name"] for one in panels.others(read_folder(path.parent)).content["tables"]]


def test_thresholds_without_validation_say_so(tmp_path):
    (panel,) = label_panels.label_tables(read_folder(report_folder.make(tmp_path, validation=False)))
    assert "CHOSEN ON THESE TEST STUDIES" in panel.notes[0]


def test_gallery_shows_the_true_first_and_last(folder):
    panel = case_panels.gallery(read_folder(folder), show_text=False)
    kept = report_folder.cases()
    cosine = _squared(kept.embeddings["cxr"]) @ _squared(kept.embeddings["ct"]).T
    ranks = np.array([1 + np.sum(np.delete(row, i) >= row[i]) for i, row in enumerate(cosine)])
    first, last = (panel.content["sides"][side] for side in ("found first", "found last"))
    assert [case["line"] for case in first] == [f"rank {rank}" for rank in np.sort(ranks)[:5]]
    assert [case["line"] for case in last] == [f"rank {rank}" for rank in np.sort(ranks)[::-1][:5]]
    for case in (*first, *last):
        assert case["line"] == f"rank {ranks[report_folder.ids().index(case['study'])]}"
        assert case["picture"].address.startswith("data:image/png;base64,")


def test_failures_are_mistakes_worst_first_one_per_subject(folder):
    found = read_folder(folder)
    scored, points = found.predictions["zero_shot"], label_panels.points_of(found, "zero_shot")
    shown = case_panels.failures(found, show_text=False).content["cases"]
    assert len(shown) == 8  # two of each of the four findings that have both kinds of label
    distances = []
    for case in shown:
        i, c = scored.study_id.index(case["study"]), scored.classes.index(case["line"])
        said = scored.scores[i, c] >= points.threshold[c]
        assert said != bool(scored.labels[i, c])
        assert ("false alarm" in case["detail"]) == said
        distances.append(abs(scored.scores[i, c] - points.threshold[c]) / scored.scores[:, c].std())
    assert distances == sorted(distances, reverse=True)
    assert len({scored.subject_id[scored.study_id.index(case["study"])] for case in shown}) == len(shown)


def test_report_text_appears_only_when_asked_for(tmp_path):
    made = report_folder.make(tmp_path, reports=True)
    assert "Canary" not in write_report(made).read_text()
    shown = write_report(made, show_text=True).read_text()
    assert "Canary report &lt;script&gt;" in shown
    assert "<script>window" not in shown


def test_text_that_was_not_kept_cannot_be_shown(folder):
    with pytest.raises(EvaluationFilesError, match="no report text was kept; evaluate with --show_text true"):
        write_report(folder, show_text=True)


def test_panels_without_their_files_say_so(tmp_path, folder):
    content = json.loads((folder / "metrics.json").read_text())
    (tmp_path / "metrics.json").write_text(json.dumps({**content, "tables": []}))
    html = write_report(tmp_path).read_text()
    missing = [key for key in PANELS if "Not shown" in _section(html, key)]
    assert missing == [key for key in PANELS if key != "comparison"]
    assert "Research use only. Not a medical device." in html


def test_second_run_is_tested_case_by_case(tmp_path, folder):
    other = report_folder.make(tmp_path / "other", seed=5)
    section = _section(write_report(folder, against=other).read_text(), "against")
    assert "p holm" in section
    assert "Effusion" in section
    report_folder.told(20).table().to_csv(other / "zero_shot_predictions.csv", index=False)
    with pytest.raises(RunsDifferError, match="studies"):
        write_report(folder, against=other)


@pytest.mark.parametrize("name", ["metrics.json", "provenance.json", "cases.npz", "pictures.npz"])
def test_damaged_file_is_named(tmp_path, folder, name):
    shutil.copytree(folder, tmp_path / "eval")
    path = tmp_path / "eval" / name
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])
    with pytest.raises(EvaluationFilesError, match=rf"{name}: damaged .*; run the evaluation again"):
        write_report(tmp_path / "eval")


def test_damaged_and_absent_tables_are_named(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "eval")
    path = tmp_path / "eval" / "zero_shot_predictions.csv"
    path.write_text("study_id,score\n1,2\n")
    with pytest.raises(EvaluationFilesError, match=r"zero_shot_predictions\.csv: no column"):
        write_report(tmp_path / "eval")
    path.unlink()
    with pytest.raises(FileNotFoundError, match=r"zero_shot_predictions\.csv"):
        write_report(tmp_path / "eval")
    with pytest.raises(FileNotFoundError, match=r"holds no metrics\.json; give the folder"):
        write_report(tmp_path)


def test_too_large_a_report_is_refused(folder, monkeypatch):
    monkeypatch.setattr(page, "MOST_BYTES", 1000)
    with pytest.raises(EvaluationFilesError, match="the limit is 5 MB"):
        write_report(folder)


def test_command_line(tmp_path, folder):
    shutil.copytree(folder, tmp_path / "eval")
    result = CliRunner().invoke(cli.app, ["report", str(tmp_path / "eval")])
    assert result.output.strip() == f"made {tmp_path / 'eval' / 'report.html'}"
    result = CliRunner().invoke(cli.app, ["report", str(tmp_path / "eval"), "--show-text"])
    assert isinstance(result.exception, EvaluationFilesError)


def test_case_files_round_trip(tmp_path):
    kept = report_folder.cases(reports=True)
    back = read_cases(write_cases(tmp_path / "cases.npz", kept))
    np.testing.assert_array_equal(back.reports, kept.reports)
    np.testing.assert_array_equal(back.embeddings["ct"], kept.embeddings["ct"])
    images = {"a/../b": np.eye(3, dtype=np.uint8), "study_id": np.ones((2, 5), dtype=np.uint8)}
    pictures = read_pictures(write_pictures(tmp_path / "pictures.npz", images))
    assert list(pictures) == list(images)
    np.testing.assert_array_equal(pictures["study_id"], images["study_id"])
    assert read_pictures(tmp_path / "absent.npz") == {}


def test_pictures_show_the_head_up_and_the_right_side_on_the_left():
    volume = np.full((1, 8, 6, 10), -1.0, dtype=np.float32)
    volume[0, 7, :, 9] = 1.0  # R and S of RAS: the patient's right, at the head
    picture = _picture(volume, ImageInput(channels=1, size=(8, 6, 10), axcodes="RAS"))
    assert picture.shape == (10, 8)
    assert picture[0, 0] == 255
    assert (picture > 0).sum() == 1
    flipped = _picture(volume[:, ::-1, :, ::-1], ImageInput(channels=1, size=(8, 6, 10), axcodes="LAI"))
    np.testing.assert_array_equal(picture, flipped)


def test_pictures_of_normalised_radiographs_are_grey_again():
    options = {"channels": 3, "size": (4, 4), "output_range": (0.0, 1.0), "pad_value": 0.0}
    constants = ImageInput(**options, mean=(0.5, 0.4, 0.3), std=(0.2, 0.3, 0.4))
    grey = np.linspace(0, 1, 16, dtype=np.float32).reshape(4, 4)
    image = np.stack([(grey - m) / s for m, s in zip(constants.mean, constants.std, strict=True)])
    np.testing.assert_allclose(_picture(image, constants), 255 * grey, atol=0.51)


def _picture(image: np.ndarray, constants: ImageInput) -> np.ndarray:
    class Rows(ImageRows):
        def __call__(self, study, draw=None):
            return SimpleNamespace(numpy=lambda: image)

    dataset = SimpleNamespace(fields={"ct": Rows("ct", constants)}, studies=[SimpleNamespace(study_id="a")])
    return picture_of(dataset, ["a"])["a"]


def test_umap_is_used_where_it_is_installed(folder, monkeypatch):
    class Umap:
        def __init__(self, **options):
            assert options == {"metric": "cosine", "random_state": 0}

        def fit_transform(self, rows):
            return rows[:, :2]

    monkeypatch.setitem(sys.modules, "umap", SimpleNamespace(UMAP=Umap, __spec__=SimpleNamespace()))
    assert "UMAP map of 40 studies" in case_panels.embedding_map(read_folder(folder)).content["figure"].alt


def test_numbers_that_are_not_defined_are_dashes():
    assert panels.number(float("nan")) == panels.number(None) == "–"
    assert panels.area(0.5, float("nan"), float("nan")) == "0.50"
    assert panels.area(0.5, 0.4, 0.6) == "0.50 [0.40, 0.60]"


@pytest.mark.parametrize("content", ["{}", '{"tables": null}', '{"context": {}, "rows": {}, "tables": []}'])
def test_metrics_without_their_parts_are_named(tmp_path, content):
    (tmp_path / "metrics.json").write_text(content)
    with pytest.raises(EvaluationFilesError, match=r"metrics\.json: has no usable .*metrics"):
        write_report(tmp_path)


def test_classes_called_by_numbers_keep_their_operating_points(tmp_path, monkeypatch):
    monkeypatch.setattr(report_folder, "CLASSES", ("0", "1", "02", "3", "4"))
    (table,) = label_panels.label_tables(read_folder(report_folder.make(tmp_path / "eval")))
    rows = {row["name"]: row for row in table.content["rows"]}
    assert list(rows) == ["0", "1", "02", "3", "4"]
    assert rows["02"]["sensitivity"] > 0


def test_many_findings_are_folded_away_a_few_to_a_figure(folder, monkeypatch):
    drawn = []
    monkeypatch.setattr(label_panels, "_MOST_CURVES", 2)
    monkeypatch.setattr(label_panels, "curve_grid", lambda curves: drawn.append([one.name for one in curves]))
    panel = label_panels.curves(read_folder(folder))
    assert [len(names) for names in drawn] == [2, 2]
    assert panel.content["n_rest"] == len(panel.content["rest"]) * 2
    monkeypatch.setattr(label_panels, "_MOST_DRAWN", 3)
    assert "1 rarer ones" in label_panels.curves(read_folder(folder)).notes[0]

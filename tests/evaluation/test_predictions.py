from __future__ import annotations

import numpy as np
import pytest

from medvl_evaluation.predictions import PREDICTION_COLUMNS, Predictions, read_predictions


def made(probabilities: bool = True) -> Predictions:
    rng = np.random.default_rng(0)
    labels = np.array([[1, 0], [0, np.nan], [1, 1]], dtype=float)
    scores = rng.normal(size=(3, 2)) / 3
    names = ["nan", "001", 'b, with "quotes"\nand a line'], ["NA", "p", "p"], ["Nodule, left", "None"]
    return Predictions(*names, labels, scores, 1 / (1 + np.exp(-scores)) if probabilities else None)


@pytest.mark.parametrize("probabilities", [True, False])
def test_what_is_written_is_read_back_to_the_last_digit(tmp_path, probabilities):
    before = made(probabilities)
    before.table().to_csv(tmp_path / "a.csv", index=False)
    after = read_predictions(tmp_path / "a.csv")
    assert list(after.study_id) == list(before.study_id)
    assert list(after.subject_id) == list(before.subject_id)
    assert list(after.classes) == list(before.classes)
    np.testing.assert_array_equal(after.labels, before.labels)
    np.testing.assert_array_equal(after.scores, before.scores)
    if probabilities:
        np.testing.assert_array_equal(after.probabilities, before.probabilities)
    else:
        assert after.probabilities is None


def test_table_has_a_line_per_study_and_class():
    table = made().table()
    assert tuple(table.columns) == PREDICTION_COLUMNS
    assert len(table) == 6
    assert table["study_id"].tolist()[:3] == ["nan", "nan", "001"]


def test_sorted_moves_everything_together():
    one = made()
    other = one.sorted(["None", "Nodule, left"])
    assert list(other.study_id) == sorted(one.study_id)
    place = list(one.study_id).index("001")
    np.testing.assert_array_equal(other.scores[0], one.scores[place][::-1])
    np.testing.assert_array_equal(other.labels[0], one.labels[place][::-1])
    assert other.subject_id[0] == "p"


def test_order_of_lines_does_not_matter(tmp_path):
    before = made()
    before.table().sample(frac=1, random_state=0).to_csv(tmp_path / "a.csv", index=False)
    after = read_predictions(tmp_path / "a.csv").sorted(before.classes)
    np.testing.assert_array_equal(after.scores, before.sorted(before.classes).scores)


def test_repeated_and_misshapen_predictions():
    one = np.zeros((2, 1))
    with pytest.raises(ValueError, match="study 'a' appears twice"):
        Predictions(["a", "a"], ["p", "q"], ["x"], one, one)
    with pytest.raises(ValueError, match="class 'x' appears twice"):
        Predictions(["a"], ["p"], ["x", "x"], np.zeros((1, 2)), np.zeros((1, 2)))
    with pytest.raises(ValueError, match="of 2 studies and 1 classes, but"):
        Predictions(["a", "b"], ["p", "q"], ["x"], one, np.zeros((2, 2)))


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda t: t.drop(columns="score"), "no column score"),
        (lambda t: t.iloc[:-1], "5 lines for 3 studies and 2 classes"),
        (lambda t: t.iloc[[0, 0, 2, 3, 4, 5]], "6 lines for 3 studies and 2 classes"),
        (lambda t: t.iloc[:0], "0 lines for 0 studies"),
        (lambda t: t.assign(label=2), "study 'nan' has a label other than 1, 0 and blank .* for"),
        (lambda t: t.assign(probability=1.5), "study 'nan' has no probability between 0 and 1 for 'Nodule, left'"),
        (lambda t: t.assign(probability=[0.5] * 5 + [""]), "has no probability between 0 and 1 for 'None'"),
        (
            lambda t: t.assign(subject_id=["NA", "q", "p", "p", "p", "p"]),
            "'nan' has another subject than before for 'None'",
        ),
        (lambda t: t.assign(score=""), "study 'nan' has no score for 'Nodule, left'"),
        (lambda t: t.assign(score="high"), "column score holds something that is no number"),
    ],
)
def test_damaged_tables_are_refused_with_the_file(tmp_path, change, message):
    change(made().table()).to_csv(tmp_path / "a.csv", index=False)
    with pytest.raises(ValueError, match=rf"a\.csv: .*{message}"):
        read_predictions(tmp_path / "a.csv")


def test_missing_and_unreadable_files(tmp_path):
    with pytest.raises(FileNotFoundError, match="no predictions; run the evaluation again"):
        read_predictions(tmp_path / "a.csv")
    (tmp_path / "b.csv").write_bytes(b"")
    with pytest.raises(ValueError, match=r"b\.csv: not a CSV table"):
        read_predictions(tmp_path / "b.csv")

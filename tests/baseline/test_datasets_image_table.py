from __future__ import annotations

import logging
from pathlib import Path

import numpy as np
import pandas as pd
import pytest

from medvl_baseline.datasets.image_table import ImageTable, find_table, keep_views, label_column, listed_files
from medvl_evaluation.splits.folds import Folds
from tests.conftest import ArraySource

TABLE = Path("set.csv")


def films(**columns):
    names = [f"s{i}" for i in range(20)]
    cells = {"study": names, "subject": names, "scan": names, "path": names, "age": ["60"] * 19 + [""]}
    return pd.DataFrame({**cells, **columns}, index=range(2, 22))


def labels(*names):
    return pd.DataFrame({name: (np.arange(20) + k) % 2 for k, name in enumerate(names)}, index=range(2, 22))


def source(path):
    return ArraySource(int(path[1:]), (4, 4))


def test_rows_become_studies_of_the_modality_asked_for():
    table = ImageTable(TABLE, films(), labels("a", "b"), folds=Folds(), modality="image", source=source, rare=["b"])
    studies = {study.study_id: study for split in ("train", "validation", "test") for study in table.studies(split)}
    assert len(studies) == 20
    assert studies["s3"].images == {"image": ArraySource(3, (4, 4))}
    assert dict(studies["s3"].labels) == {"a": 1.0, "b": 0.0}
    assert studies["s3"].metadata == {"age": 60.0}
    assert studies["s19"].metadata == {}
    assert table.label_groups == {"base": ("a",), "rare": ("b",)}
    with pytest.raises(ValueError, match=r"set\.csv: no split 'dev'"):
        table.studies("dev")


def test_unknown_labels_stay_unknown():
    unknown = labels("a").astype(float).replace(0.0, np.nan)
    table = ImageTable(TABLE, films(), unknown, folds=Folds(), source=source)
    values = [study.labels["a"] for split in ("train", "validation", "test") for study in table.studies(split)]
    assert sorted(map(str, values)) == ["1.0"] * 10 + ["nan"] * 10


def test_rows_without_a_file_are_left_out_and_counted(caplog):
    with caplog.at_level(logging.INFO):
        paths = [f"s{i}" for i in range(15)] + [""] * 5
        table = ImageTable(TABLE, films(path=paths), labels("a"), folds=Folds(), source=source)
    assert "5 of 20 rows have no file here" in caplog.text
    assert sum(len(table.studies(split)) for split in ("train", "validation", "test")) == 15
    with pytest.raises(FileNotFoundError, match=r"set\.csv: no file of its 20 rows is there; the first is 's0'"):
        ImageTable(TABLE, films(path=[""] * 20), labels("a"), folds=Folds())


@pytest.mark.parametrize(
    ("columns", "message"),
    [
        ({"subject": ["p"] * 4 + [""] + ["p"] * 15}, r"set\.csv, row 6: the subject id is blank"),
        ({"study": ["s0"] * 20}, r"set\.csv, row 3: image 's0' is in the table before"),
    ],
)
def test_ids_at_fault_are_named(columns, message):
    with pytest.raises(ValueError, match=message):
        ImageTable(TABLE, films(**columns), labels("a"), folds=Folds())


def test_rare_labels_must_exist():
    with pytest.raises(ValueError, match="rare names 'edemaa', which is no label; did you mean 'edema'"):
        ImageTable(TABLE, films(), labels("edema"), folds=Folds(), rare=["edemaa"])


def test_helpers_for_tables_and_files(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"no table rows\*\.csv or"):
        find_table(tmp_path, "rows*.csv")
    (tmp_path / "rows1.csv").touch()
    assert find_table(tmp_path, "rows*.csv").name == "rows1.csv"
    for place in ("one", "two"):
        (tmp_path / place).mkdir()
        (tmp_path / place / f"{place}.png").touch()
    assert set(listed_files([tmp_path / "one", tmp_path / "two"])) == {"one.png", "two.png"}
    rows = films(view=["PA"] * 10 + ["L"] * 10)
    assert len(keep_views(TABLE, rows, "view", ["PA"])) == 10
    with pytest.raises(ValueError, match="view is never one of"):
        keep_views(TABLE, rows, "view", ["AP"])
    found = label_column(TABLE, rows, "view", lambda where, name, cell: float(cell == "PA"))
    assert found.tolist() == [1.0] * 10 + [0.0] * 10

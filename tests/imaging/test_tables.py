from __future__ import annotations

import gzip
import math

import pandas as pd
import pytest

from medvl_imaging.tables import need_columns, read_label, read_table


def save(tmp_path, content, name="t.csv"):
    path = tmp_path / name
    path.write_bytes(content if isinstance(content, bytes) else content.encode())
    return path


def test_cells_are_stripped_text_and_rows_numbered_as_shown(tmp_path):
    rows = read_table(save(tmp_path, 'a, b\n1, x \n\n"two\nlines",\n'))
    assert rows.to_dict("records") == [{"a": "1", "b": "x"}, {"a": "two\nlines", "b": ""}]
    assert list(rows.index) == [2, 4]


def test_gzip_parquet_and_byte_order_mark_give_the_same(tmp_path):
    plain = read_table(save(tmp_path, "a,b\n1,x\n2,\n"))
    packed = read_table(save(tmp_path, gzip.compress(b"a,b\n1,x\n2,\n"), "t.csv.gz"))
    marked = read_table(save(tmp_path, "\ufeffa,b\r\n1,x\r\n2,\r\n", "m.csv"))
    pd.DataFrame({"a": [1, 2], "b": ["x", None]}).to_parquet(tmp_path / "t.parquet")
    for other in (packed, marked, read_table(tmp_path / "t.parquet")):
        pd.testing.assert_frame_equal(other, plain, check_index_type=False, check_column_type=False)


def test_only_the_wanted_columns_are_kept(tmp_path):
    path = save(tmp_path, "id,a*x,a*y,b*x\n1,2,3,4\n")
    assert list(read_table(path, only=lambda name: name == "id" or name.startswith("a*"))) == ["id", "a*x", "a*y"]
    read_table(path).to_parquet(tmp_path / "t.parquet")
    assert list(read_table(tmp_path / "t.parquet", only=lambda name: name == "id")) == ["id"]


FAULTS = {
    "empty": (b"", "the table is empty"),
    "open quote": (b'a,b\n1,"x\n', "not a CSV table .*unclosed quote"),
    "long row": (b"a,b\n1,2\n1,2,3\n", "row 3: 3 cells, the header has 2"),
    "twice": (b"a,a\n1,2\n", "column a appears twice"),
    "cp1252": (b"a\ncaf\xe9\n", "line 2: byte 0xe9 is not utf-8"),
    "cut gzip": (gzip.compress(b"a,b\n1,2\n" * 99)[:-9], "gzip"),
}


@pytest.mark.parametrize("fault", FAULTS)
def test_faults_start_with_the_file_and_name_the_row(tmp_path, fault):
    content, message = FAULTS[fault]
    path = save(tmp_path, content)
    with pytest.raises(ValueError, match=message) as caught:
        read_table(path)
    assert str(caught.value).startswith(str(path))


def test_missing_table_and_columns_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match=r"none\.csv: no such table"):
        read_table(tmp_path / "none.csv")
    path = save(tmp_path, "a;b\n1;2\n")
    with pytest.raises(ValueError, match="no column b, c among a;b; is it separated by semicolons"):
        need_columns(path, read_table(path), ["b", "c"])
    need_columns(path, read_table(path), ["a;b"])


def test_labels_are_one_zero_or_unknown():
    assert [read_label("t", "x", cell) for cell in ("1", "0", "1.0", "0.0")] == [1, 0, 1, 0]
    assert all(math.isnan(read_label("t", "x", cell)) for cell in ("", "nan", "NaN", "None"))
    for cell in ("-1", "2", "yes", "0.5"):
        with pytest.raises(ValueError, match=rf"t\.csv, row 7: x is '{cell}'; labels are 1, 0 or blank"):
            read_label("t.csv, row 7", "x", cell)


def test_excel_tables_are_read_or_the_extra_is_named(tmp_path, monkeypatch):
    (tmp_path / "t.xls").write_bytes(b"no sheet")
    rows = pd.DataFrame({" id ": ["7", ""], "sex": [" 1", "2"]})
    monkeypatch.setattr(pd, "read_excel", lambda path, **options: rows)
    found = read_table(tmp_path / "t.xls", only=lambda name: name != "age")
    assert found.to_dict("index") == {2: {"id": "7", "sex": "1"}, 3: {"id": "", "sex": "2"}}

    def absent(path, **options):
        raise ImportError("Missing optional dependency 'xlrd'.")

    monkeypatch.setattr(pd, "read_excel", absent)
    with pytest.raises(ValueError, match=r"t\.xls: Excel tables need a reader; pip install 'medvl\[xls\]'"):
        read_table(tmp_path / "t.xls")
    monkeypatch.undo()
    with pytest.raises(ValueError, match=r"t\.xls: (Excel tables need a reader|unreadable Excel file)"):
        read_table(tmp_path / "t.xls")

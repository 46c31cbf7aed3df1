"""Tables as Markdown."""

from __future__ import annotations

import pytest

from medvl_evaluation.markdown import markdown_table


def test_table_has_a_line_per_row_and_escapes_bars():
    assert markdown_table(["", "a"], [["x|y", "1"]]) == "|  | a |\n| --- | --- |\n| x\\|y | 1 |"
    assert markdown_table(["a"], [], "Title") == "**Title**\n\n| a |\n| --- |"


def test_row_of_another_length_is_refused():
    with pytest.raises(ValueError, match=r"row \['x'\] has 1 cells; the table has 2 columns"):
        markdown_table(["", "a"], [["x"]])

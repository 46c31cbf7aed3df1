from __future__ import annotations

from medvl_core.command.console import terminal


def test_a_pipe_is_not_folded(capsys):
    terminal().print("x" * 150)
    assert capsys.readouterr().out == "x" * 150 + "\n"

from __future__ import annotations

import subprocess
import sys
import time

import pytest

from medvl_core import __version__
from medvl_core.command import cli
from medvl_core.errors import MedvlError
from tests.command_line import invoke

HEAVY = "{name for name in ('torch', 'monai', 'transformers', 'numpy', 'mlflow') if name in sys.modules}"


def in_subprocess(*arguments: str) -> tuple[subprocess.CompletedProcess[str], float]:
    """Runs the command in a fresh interpreter, which fails if it has loaded anything heavy."""
    code = f"import sys\nfrom medvl_core.command.cli import main\ntry:\n main()\nfinally:\n assert not {HEAVY}, {HEAVY}"
    env = {"PYTHONPATH": ":".join(filter(None, sys.path)), "PYTHONWARNINGS": "error"}
    start = time.perf_counter()
    done = subprocess.run(
        [sys.executable, "-c", code, *arguments], capture_output=True, text=True, check=False, env=env
    )
    return done, time.perf_counter() - start


@pytest.mark.parametrize("arguments", [["--help"], ["plugins"], ["plugins", "--json"], ["bundle", "check", "--help"]])
def test_light_commands_load_nothing_heavy_and_are_quick(arguments):
    done, seconds = in_subprocess(*arguments)
    assert (done.returncode, done.stderr) == (0, "")
    assert seconds < 5  # 0.3 s on an idle machine; torch and monai take ten


def test_importing_medvl_core_loads_nothing_heavy():
    code = f"import sys, medvl_core; assert not {HEAVY}, {HEAVY}"
    subprocess.run([sys.executable, "-c", code], check=True, env={"PYTHONPATH": ":".join(filter(None, sys.path))})


COMMANDS = """
import sys
import typer

def count(words: list[str]) -> None:
    "Count words."
    import collections
    typer.echo(len(words))

group = typer.Typer(help="Several commands.")

@group.command()
def one() -> None: "The first."

@group.command()
def two() -> None: "The second."

def no_such_type(when: int | str) -> None: ...

text = "no function"
"""
LEAVES = "import sys; sys.exit('gone')"


@pytest.fixture
def lab(tmp_path, monkeypatch):
    """Installs a distribution whose commands are given as ``name = value`` lines."""

    def install(*lines: str) -> None:
        (tmp_path / "lab_commands.py").write_text(COMMANDS)
        (tmp_path / "lab_leaves.py").write_text(LEAVES)
        (tmp_path / "lab-1.dist-info").mkdir()
        (tmp_path / "lab-1.dist-info/METADATA").write_text("Metadata-Version: 2.1\nName: lab\nVersion: 1\n")
        (tmp_path / "lab-1.dist-info/entry_points.txt").write_text("\n".join(["[medvl.commands]", *lines]))
        monkeypatch.syspath_prepend(tmp_path)

    return install


def test_commands_of_other_distributions_are_listed_and_run(lab):
    lab("count = lab_commands:count", "lab = lab_commands:group")
    done, _ = in_subprocess("--help")
    assert (done.returncode, done.stderr) == (0, "")
    for text in ("count", "Count words.", "Several commands.", "compare"):
        assert text in done.stdout
    assert in_subprocess("count", "a", "b")[0].stdout == "2\n"
    assert "The second." in in_subprocess("lab", "--help")[0].stdout


@pytest.mark.parametrize(
    ("line", "reason"),
    [
        ("lost = lab_nothing:run", "'lost' of lab_nothing:run is left out: No module named 'lab_nothing'"),
        ("lost = lab_commands:nothing", "'lost' of lab_commands:nothing is left out: module 'lab_commands' has no"),
        ("lost = lab_commands:text", "'lost' of lab_commands:text is left out: 'no function' is not a callable"),
        ("lost = lab_commands:no_such_type", "doesn't support Union types"),
        ("lost = lab_leaves:run", "'lost' of lab_leaves:run is left out: gone"),
        ("doctor = lab_commands:count", "'doctor' of lab_commands:count is left out: the name is taken"),
        ("compare = lab_commands:count", "'compare' of lab_commands:count is left out: the name is taken"),
    ],
)
def test_a_faulty_command_is_named_and_the_others_work(line, reason, lab):
    lab(line, "count = lab_commands:count")
    done, _ = in_subprocess("count", "a", "b")
    assert (done.returncode, done.stdout) == (0, "2\n")
    assert done.stderr.startswith("WARNING command ")
    assert reason in done.stderr
    assert len(done.stderr.splitlines()) == 1


def test_version():
    assert invoke("--version").output.strip() == __version__


@pytest.mark.parametrize(
    ("arguments", "code", "message"),
    [
        (["show", "zzz"], 2, "ERROR no component is called 'zzz'"),
        (["bundle", "check", "/nothing/here"], 74, "ERROR /nothing/here: there is no such bundle folder"),
        (["new-plugin", "Bad"], 2, "ERROR plugin id 'Bad' is not lower snake case"),
    ],
)
def test_errors_are_one_line_with_an_exit_code(arguments, code, message, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["medvl", *arguments])
    monkeypatch.delenv("MEDVL_DEBUG", raising=False)
    with pytest.raises(SystemExit, match=str(code)):
        cli.main()
    assert capsys.readouterr().err.startswith(message)


def test_debug_shows_the_traceback(monkeypatch):
    monkeypatch.setattr(sys, "argv", ["medvl", "show", "zzz"])
    monkeypatch.setenv("MEDVL_DEBUG", "1")
    with pytest.raises(MedvlError, match="zzz"):
        cli.main()

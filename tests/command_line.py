"""The ``medvl`` command in this process."""

from __future__ import annotations

from click.testing import Result
from typer.testing import CliRunner

from medvl_core.command import cli


def invoke(*arguments: str) -> Result:
    """Run ``medvl`` with these words."""
    return CliRunner().invoke(cli.app, arguments)

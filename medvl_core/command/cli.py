"""The ``medvl`` command. Heavy imports stay inside the commands that need them: ``medvl --help`` loads no torch."""

from __future__ import annotations

import os
import sys
from importlib.metadata import EntryPoint, entry_points
from typing import Annotated

import typer

from medvl_core import __version__
from medvl_core.errors import EXIT_IO, MedvlError

__all__ = ["COMMANDS", "add_commands", "app", "main"]

COMMANDS = "medvl.commands"
"""Entry-point group of further commands."""

app = typer.Typer(
    help="An open framework for medical vision-language pretraining. Bundles run with 'python -m monai.bundle run'.",
    epilog="Exit codes: 0 fine, 2 wrong use, 65 wrong data, 74 cannot read or write, 75 resume me, 77 unsafe.",
    no_args_is_help=True,
    add_completion=False,
    pretty_exceptions_enable=False,
)


def main() -> None:
    """Entry point: medvl's own errors end with one line and their exit code; ``MEDVL_DEBUG=1`` shows the traceback."""
    try:
        app()
    except (MedvlError, OSError) as error:
        if os.environ.get("MEDVL_DEBUG") == "1":
            raise
        sys.stderr.write(f"ERROR {error}\n")
        sys.exit(error.exit_code if isinstance(error, MedvlError) else EXIT_IO)


def add_commands(to: typer.Typer) -> None:
    """Add the commands that distributions offer in the entry-point group ``medvl.commands``.

    Each is a function for typer, or a ``typer.Typer`` of several. One that cannot be used, or whose name is taken, is
    named in a warning on stderr and left out. medvl's own come first, so that no other takes their names.
    """
    taken = {str(one.name or one.callback.__name__).replace("_", "-") for one in to.registered_commands if one.callback}
    taken |= {str(group.name) for group in to.registered_groups}
    for point in sorted(entry_points(group=COMMANDS), key=lambda point: (_owner(point) != "medvl", point.name)):
        try:
            if point.name in taken:
                raise MedvlError("the name is taken")
            found, alone = point.load(), typer.Typer()
            if isinstance(found, typer.Typer):
                alone.add_typer(found, name=point.name)
            else:
                alone.command(point.name)(found)
            typer.main.get_command(alone)  # only now are the options read: a type that typer does not know fails here
        except (Exception, SystemExit) as error:  # any command's fault must leave the others alone
            sys.stderr.write(f"WARNING command {point.name!r} of {point.value} is left out: {error}\n")
            continue
        taken.add(point.name)
        to.registered_commands += alone.registered_commands
        to.registered_groups += alone.registered_groups


def _owner(point: EntryPoint) -> str:
    return point.dist.name if point.dist else ""


def _version(asked: bool) -> None:
    if asked:
        typer.echo(__version__)
        raise typer.Exit


@app.callback()
def options(
    version: Annotated[
        bool, typer.Option("--version", callback=_version, is_eager=True, help="Show the version.")
    ] = False,
) -> None:
    """Options before the command."""


add_commands(app)

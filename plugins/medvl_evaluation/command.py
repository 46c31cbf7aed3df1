"""Commands on evaluations and their data: ``medvl report``, ``medvl compare``, ``medvl leaks``."""

from __future__ import annotations

import dataclasses
import json
from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from medvl_core.command.console import AsJson, terminal
from medvl_core.errors import EXIT_DATA

if TYPE_CHECKING:
    from rich.table import Table

    from medvl_evaluation.run_comparison import PairedTest

__all__ = ["compare", "leaks", "report"]


def report(
    folder: Annotated[Path, typer.Argument(help="What an evaluation wrote, e.g. monai_bundles/x2ct/eval.")],
    show_text: Annotated[
        bool, typer.Option("--show-text", help="Show excerpts of reports, if the evaluation kept them.")
    ] = False,
    against: Annotated[Path | None, typer.Option(help="Folder of another run on the same studies.")] = None,
) -> None:
    """Make report.html again from the files of an evaluation."""
    from medvl_evaluation.page import write_report

    typer.echo(f"made {write_report(folder, show_text, against)}")


def compare(
    run_a: Annotated[Path, typer.Argument(help="Folder an evaluation wrote, e.g. a bundle's eval/.")],
    run_b: Annotated[Path, typer.Argument(help="The folder of another run on the same studies.")],
    task: Annotated[str | None, typer.Option(help="One table of predictions, e.g. zero_shot; default: all.")] = None,
    level: Annotated[float, typer.Option(help="Confidence level.")] = 0.95,
    n_resamples: Annotated[int, typer.Option(help="Bootstrap resamples, for the macro average.")] = 1000,
    seed: Annotated[int, typer.Option(help="Of the resamples.")] = 0,
    as_json: AsJson = False,
) -> None:
    """Compare two runs case by case: paired DeLong tests. Exit code 65 if their cases, labels or classes differ."""
    from medvl_evaluation.run_comparison import compare_runs

    if not 0 < level < 1 or n_resamples < 1:
        raise typer.BadParameter(f"level is {level} and n-resamples {n_resamples}; between 0 and 1, and at least 1")
    tests = compare_runs(run_a, run_b, task, level, n_resamples, seed)
    if as_json:
        content = {"run_a": str(run_a), "run_b": str(run_b), "tasks": [test.as_dict() for test in tests.values()]}
        typer.echo(json.dumps(content, indent=2, allow_nan=False))
        return
    console = terminal()
    for test in tests.values():
        console.print(_paired_table(test))


def _paired_table(test: PairedTest) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(caption=Text(test.caption()), caption_justify="left")
    for column, name in enumerate(("class", "n+", "AUROC A", "AUROC B", "A - B", "interval", "z", "p", "p (Holm)")):
        table.add_column(name, justify="right" if column else "left")
    for row in test.rows:
        name = row.name if row.kind == "class" else f"{row.name} average"
        numbers = [f"{value:.3f}" for value in (row.auroc_a, row.auroc_b)]
        numbers += [f"{row.difference:+.3f}", f"[{row.low:+.3f}, {row.high:+.3f}]", f"{row.z:.2f}"]
        numbers += [f"{value:.2g}" for value in (row.p, row.p_holm)]
        cells = [text.replace("[+nan, +nan]", "–").replace("+nan", "–").replace("nan", "–") for text in numbers]
        table.add_row(Text(name), str(row.n_positive), *map(Text, cells))  # Text: brackets in names are no markup
    return table


def leaks(
    table: Annotated[Path, typer.Argument(help="CSV, parquet or Excel table with a row per study.")],
    split_column: Annotated[str, typer.Option(help="Column of splits, or of folds; any names.")] = "split",
    root: Annotated[Path | None, typer.Option(help="Folder that image paths start from; default: the table's.")] = None,
    subject_column: Annotated[str, typer.Option(help="Column of patients.")] = "subject",
    study_column: Annotated[str, typer.Option(help="Column of study ids.")] = "study",
    scan_column: Annotated[
        str | None, typer.Option(help="Column that reconstructions of one scan share; default: scan, if it is there.")
    ] = None,
    report_column: Annotated[
        str | None,
        typer.Option(help="Column of reports; default: report, or findings and impression, if they are there."),
    ] = None,
    image: Annotated[
        list[str] | None, typer.Option(help="Compare the pictures too: cxr or ct. Reads every file. Repeatable.")
    ] = None,
    similarity: Annotated[float, typer.Option(help="Correlation from which two pictures count as one.")] = 0.95,
    shortest_report: Annotated[int, typer.Option(help="Leave out reports with fewer words.")] = 0,
    as_json: AsJson = False,
) -> None:
    """List what splits share: patients, scans, report texts, pictures. Exit code 65 if there is anything."""
    from medvl_evaluation.splits.leakage import LeakageError, compared, find_leaks, read_splits

    try:
        splits = read_splits(table, root, split_column, subject_column, study_column, scan_column, report_column)
        found = find_leaks(splits, image or (), similarity, shortest_report)
    except ValueError as error:
        raise LeakageError(str(error)) from error
    shown = [dataclasses.asdict(leak) | ({"what": ""} if leak.kind == "report" else {}) for leak in found]
    if as_json:
        typer.echo(json.dumps(shown, indent=2))
    else:
        for leak in shown:
            (a, b), (one, other) = leak["splits"], leak["studies"]
            typer.echo(f"{leak['kind']} {leak['what']}: study {one} of {a} and study {other} of {b}".replace(" :", ":"))
        typer.echo(f"{table}: {len(shown)} leak(s)")
    typer.echo(f"compared: {compared(splits, image or (), shortest_report)}", err=as_json)
    if shown:
        raise typer.Exit(EXIT_DATA)

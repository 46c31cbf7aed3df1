"""The page: panels, style and script in one HTML file."""

from __future__ import annotations

import base64
import hashlib
import json
import logging
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

from medvl_core.engine.files import write_text
from medvl_evaluation.page import case_panels, label_panels, panels
from medvl_evaluation.page.cases import CaseCollector, EvaluationFilesError, picture_of, write_cases, write_pictures
from medvl_evaluation.page.folder import CASES, PICTURES, PROVENANCE, read_folder

if TYPE_CHECKING:
    from medvl_core.engine.loading import StudyDataset

__all__ = ["MOST_BYTES", "write_case_files", "write_provenance", "write_report"]

logger = logging.getLogger(__name__)

MOST_BYTES = 5_000_000
"""A report stays below this: it is sent by mail."""

_HERE = Path(__file__).parent


def write_report(folder: str | Path, show_text: bool = False, against: str | Path | None = None) -> Path:
    """Make ``report.html`` from the files of an evaluation folder; it needs no other file and no network.

    Args:
        folder: What an evaluation wrote: ``metrics.json``, its tables, ``provenance.json``, ``cases.npz``,
            ``pictures.npz``. A panel whose files are missing says so in one line.
        show_text: Show excerpts of reports beside the cases. The evaluation must have kept them (its own
            ``show_text``).
        against: The evaluation folder of another run on the same studies, to test this one against.

    Returns:
        The path of the report.

    Raises:
        FileNotFoundError: If there is no ``metrics.json``, or a table that it lists is gone.
        EvaluationFilesError: If a file is damaged, text is asked for and none was kept, or the page grew beyond 5 MB.
        RunsDifferError: If the other run was evaluated on other cases.
    """
    found = read_folder(folder)
    if show_text and (found.cases is None or found.cases.reports is None):
        raise EvaluationFilesError(f"{folder}: no report text was kept; evaluate with --show_text true to show it")
    page = _render(
        show_text=show_text,
        header=panels.header(found),
        data=panels.data(found),
        comparison=panels.comparison(found),
        label_tables=label_panels.label_tables(found),
        curves=label_panels.curves(found),
        calibration=label_panels.calibration(found),
        map=case_panels.embedding_map(found),
        gallery=case_panels.gallery(found, show_text),
        failures=case_panels.failures(found, show_text),
        written=[panels.against(found, against), panels.wordings(found), panels.subgroups(found), panels.others(found)],
        reproduce=panels.reproduce(found),
    )
    if len(page.encode()) >= MOST_BYTES:
        raise EvaluationFilesError(f"{folder}: the report would have {len(page.encode()):,} bytes; the limit is 5 MB")
    path = write_text(found.path / "report.html", page)
    logger.info("report: %s", path)
    return path


def _render(**content: Any) -> str:
    from jinja2 import Environment, FileSystemLoader, StrictUndefined
    from markupsafe import Markup

    environment = Environment(
        loader=FileSystemLoader(_HERE), autoescape=True, undefined=StrictUndefined, trim_blocks=True, lstrip_blocks=True
    )
    # our own files, the only unescaped ones; the page's policy allows no script but this one
    script, style = ((_HERE / name).read_text(encoding="utf-8") for name in ("report.js", "report.css"))
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    template = environment.get_template("report.html.j2")
    return template.render(**content, script=Markup(script), style=Markup(style), script_digest=f"sha256-{digest}")


def write_provenance(folder: str | Path, bundle: str | Path | None, manifest: Mapping[str, Any] | None) -> Path:
    """Write ``provenance.json``: what the report's header says of the bundle, and the manifest of the run.

    Args:
        folder: The evaluation folder.
        bundle: The bundle's folder, or ``None``.
        manifest: From `medvl_core.bundle.manifest.run_manifest`, or ``None``.
    """
    content = {"bundle": _bundle(Path(bundle)) if bundle else {}, "manifest": dict(manifest or {})}
    return write_text(Path(folder) / PROVENANCE, json.dumps(content, indent=1, ensure_ascii=False) + "\n")


def _bundle(root: Path) -> dict[str, str]:
    path = root / "configs" / "metadata.json"
    metadata = json.loads(path.read_text(encoding="utf-8")) if path.is_file() else {}
    # the head of a licence is its name and version; the data's terms are a paragraph
    texts = {"licence": (root / "LICENSE", 2, ", "), "data_licence": (root / "docs" / "data_license.txt", 20, " ")}
    return {
        **{name: str(metadata[name]) for name in ("name", "version", "task", "intended_use") if name in metadata},
        **{name: _first_lines(*where) for name, where in texts.items() if where[0].is_file()},
    }


def _first_lines(path: Path, n: int, between: str) -> str:
    lines = [line.strip() for line in path.read_text(encoding="utf-8").splitlines() if line.strip()]
    return between.join(lines[:n])[:400]


def write_case_files(folder: str | Path, collected: CaseCollector, dataset: StudyDataset, show_text: bool) -> None:
    """Write ``cases.npz`` and ``pictures.npz``; the tables and ``metrics.json`` have to be there already.

    Args:
        folder: The evaluation folder.
        collected: From the pass of the judged network.
        dataset: The evaluated studies, for pictures and reports.
        show_text: Whether to keep report text.
    """
    folder = Path(folder)
    reports = {study.study_id: _text(study.report) for study in dataset.studies} if show_text else None
    write_cases(folder / CASES, collected.cases(reports))
    shown = case_panels.shown_studies(read_folder(folder))
    write_pictures(folder / PICTURES, picture_of(dataset, shown))


def _text(report: Any) -> str:
    return "" if report is None else " ".join(filter(None, (report.findings, report.impression)))

"""A page to check by eye what was read in reports: the text with every span marked, and the text of each region.

``python -m medvl_ct_glip.spot_check --out spot_check.html`` shows phantom reports, with ``--reports FOLDER`` every
``.txt`` file of a folder.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

from medvl_baseline.reports.sections import split_report
from medvl_core.engine.files import write_text
from medvl_core.study import Report, Study
from medvl_ct_glip.organ_findings import OrganFindings
from medvl_ct_glip.region_sets import region_set
from medvl_ct_glip.report_findings import Mention, check_mentions

__all__ = ["spot_check"]


def spot_check(studies: Sequence[Study], source: OrganFindings, out: str | Path) -> Path:
    """Write the page; it needs no other file and no network. Report text is escaped.

    Args:
        studies: With reports and region names.
        source: What reads them.
        out: The HTML file.

    Returns:
        ``out``.

    Raises:
        ValueError: If a study has no report.
    """
    from jinja2 import Environment, PackageLoader

    environment = Environment(loader=PackageLoader("medvl_ct_glip", "."), autoescape=True, trim_blocks=True)
    page = environment.get_template("spot_check.html.j2").render(
        cases=[_case(study, source) for study in studies], extractor=type(source.extract).__name__
    )
    return write_text(out, page)


def _case(study: Study, source: OrganFindings) -> dict[str, Any]:
    texts = source.region_texts(study)
    report = study.report or Report()
    mentions = check_mentions(report, source.extract(report))
    rows: dict[tuple[str, str], list[str]] = {}
    for region, text in texts.items():
        shown = "" if text.status == "normal" else text.text
        rows.setdefault((shown, text.status), []).append(region)
    sections = [(name, _pieces(getattr(report, name), name, mentions)) for name in ("findings", "impression")]
    table = [(text, status, ", ".join(regions)) for (text, status), regions in sorted(rows.items())]
    return {"study": study.study_id, "sections": sections, "rows": table}


def _pieces(text: str, section: str, mentions: Sequence[Mention]) -> list[dict[str, str]]:
    """The text in pieces that are marked by one mention, by the cue of one, or not at all."""
    owner: list[tuple[str, str]] = [("", "")] * len(text)
    own = [mention for mention in mentions if mention.section == section]
    for mention in own:
        start, end = mention.cue or (0, 0)
        owner[start:end] = [("cue", f"makes it {mention.status}")] * (end - start)
    for mention in own:
        title = f"{mention.finding or 'normal'}: {', '.join(mention.regions) or 'no region'}"
        owner[mention.start : mention.end] = [(mention.status, title)] * (mention.end - mention.start)
    pieces: list[dict[str, str]] = []
    for letter, (kind, title) in zip(text, owner, strict=True):
        if pieces and (pieces[-1]["kind"], pieces[-1]["title"]) == (kind, title):
            pieces[-1]["text"] += letter
        else:
            pieces.append({"text": letter, "kind": kind, "title": title})
    return pieces


def main(argv: Sequence[str] | None = None) -> int:
    """The command."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--out", type=Path, default=Path("spot_check.html"), help="default: spot_check.html")
    parser.add_argument(
        "--reports", type=Path, metavar="FOLDER", help="a .txt file per report, with headings or without"
    )
    parser.add_argument("--number", type=int, default=30, help="how many reports at most. Default: 30")
    parser.add_argument("--rules", metavar="FOLDER", help="a lexicon of your own in place of medvl's")
    parser.add_argument("--cues", metavar="FILE", help="rules of negation of your own")
    options = parser.parse_args(argv)
    studies = _phantoms(options.number) if options.reports is None else _files(options.reports, options.number)
    page = spot_check(studies, OrganFindings(rules=options.rules, cues=options.cues), options.out)
    sys.stderr.write(f"{page}: {len(studies)} reports\n")
    return 0


def _phantoms(number: int) -> list[Study]:
    from medvl_core.build import build_dataset

    cohort = build_dataset("baseline/phantom", n_subjects=max(number, 10), shape=(16, 16, 16), shares=(1.0, 0.0, 0.0))
    return list(cohort.studies("train"))[:number]


def _files(folder: Path, number: int) -> list[Study]:
    files = sorted(folder.glob("*.txt"))[:number]
    if not files:
        raise SystemExit(f"{folder}: no .txt files; give a folder with one report per file")
    names = region_set("ts_v2_117").by_id
    texts = {path.stem: split_report(path.read_text(encoding="utf-8")) for path in files}
    return [
        Study(study_id=name, subject_id=name, scan_id=name, images={}, region_names=names, report=report)
        for name, report in texts.items()
    ]


if __name__ == "__main__":
    sys.exit(main())

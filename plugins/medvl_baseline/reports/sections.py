"""A whole report cut at its headings, so that the indication is not read as findings. Headings are data; no torch."""

from __future__ import annotations

import csv
import re
from functools import lru_cache
from pathlib import Path

from medvl_core.study import Report

__all__ = ["split_report"]

_PARAGRAPH = re.compile(r"\n\s*\n|(?:(?<=[.!?])|(?<![^\n]{60}))[ \t]*\r?\n(?=[ \t]*[A-Z])")
_OWN = Path(__file__).parent / "report_sections.csv"


def split_report(text: str) -> Report:
    """Findings and impression of a whole report.

    Only the names in ``report_sections.csv`` are headings: at the start of a line in any case, with a colon or alone on
    it; elsewhere in capitals with a colon. ``Liver:`` is none. A second section of a kind is added to the first.

    Where no heading says findings, these are the text before the first heading (a title has no full stop), and of the
    other sections what follows their first paragraph: it ends at a blank line, and at a line break before a capital
    after a full stop or a short line. Without any heading all is findings.

    Args:
        text: The report.

    Returns:
        The two sections; blank where the report has none.
    """
    pattern, sections = _headings()
    headings = [found for found in pattern.finditer(text) if found["line"] or found["inline"].isupper()]
    if not headings:
        return Report(findings=text.strip())
    parts: dict[str, list[str]] = {"findings": [], "impression": [], "": []}
    for number, found in enumerate(headings):
        section = next(name for name, own in sections if re.fullmatch(own, found["line"] or found["inline"], re.I))
        before = text[: found.start()].rstrip()
        if not number and (section == "impression" or before.endswith(".")):  # else it is a title
            parts[""].append(before)
        body = text[found.end() : headings[number + 1].start() if found is not headings[-1] else len(text)].strip()
        parts[section] += [body] if section else _PARAGRAPH.split(body, 1)[1:]
    joined = {name: "\n\n".join(part.strip() for part in own if part.strip()) for name, own in parts.items()}
    return Report(joined["findings"] or joined[""], joined["impression"])


@lru_cache
def _headings() -> tuple[re.Pattern[str], list[tuple[str, str]]]:
    """A pattern of every heading; section and pattern of each name."""
    with _OWN.open(encoding="utf-8", newline="") as file:
        rows = [(row["section"], row["heading"]) for row in csv.DictReader(file)]
    names = "|".join(heading for _, heading in rows)
    at_start = rf"^[ \t]*(?P<line>{names})[ \t]*(?:\([^)\n]*\)[ \t]*)?(?::|\r?$)"
    return re.compile(rf"{at_start}|\b(?P<inline>{names})[ \t]*:", re.IGNORECASE | re.MULTILINE), rows

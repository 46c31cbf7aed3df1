"""Organs, findings and places as reports name them: read from CSV files, so that a radiologist can change them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path

from medvl_core.report_rules import Cues, load_cues
from medvl_ct_glip.region_sets import region_set

__all__ = ["FindingRule", "Lexicon", "load_lexicon"]

_FOLDER = Path(__file__).parent / "report_rules"
_SIDE = re.compile(r"\b(right|left|bilateral|both)\b|\b(bi)(?=basilar|basal|apical)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FindingRule:
    """How one finding is named.

    Args:
        name: What it is called in texts.
        organs: Organs it is in; none for findings outside every region.
        needs: Organs of which one must be named in the same clause.
        excludes: Organs that must not be.
        pattern: Its mentions.
    """

    name: str
    organs: tuple[str, ...]
    needs: tuple[str, ...]
    excludes: tuple[str, ...]
    pattern: re.Pattern[str]


@dataclass(frozen=True)
class Lexicon:
    """The words of reports.

    Args:
        organs: Organ → its mentions.
        regions: Organ → region names, of TotalSegmentator's versions 1 and 2.
        findings: The findings.
        places: Part of a lung (``lung_upper_lobe``) → its mentions.
        normal: Words that call an organ normal.
        cues: Negation, doubt, history.
    """

    organs: dict[str, re.Pattern[str]]
    regions: dict[str, tuple[str, ...]]
    findings: tuple[FindingRule, ...]
    places: dict[str, re.Pattern[str]]
    normal: re.Pattern[str]
    cues: Cues

    def located(self, organ: str, clause: str) -> Iterator[str]:
        """The regions of ``organ`` that ``clause`` speaks of: by lobe and side where it names them, else all."""
        regions = self.regions[organ]
        sides = {side for found in _SIDE.finditer(clause) for side in _sides(found)}
        parts = [
            f"{part}_{side}"
            for part, pattern in self.places.items()
            for found in pattern.finditer(clause)
            for side in _side_of(clause, found, sides)
        ]
        lobes = [region for region in regions if region in parts]
        yield from lobes or (
            region
            for region in regions
            if not sides or not region.endswith(("_left", "_right")) or region.endswith(tuple(f"_{s}" for s in sides))
        )

    def names(self, organ: str, text: str) -> bool:
        """Whether ``text`` names ``organ``."""
        return self.organs[organ].search(text) is not None


def _sides(found: re.Match[str]) -> tuple[str, ...]:
    word = found.group().lower()
    return (word,) if word in ("left", "right") else ("left", "right")


def _side_of(clause: str, place: re.Match[str], sides: set[str]) -> tuple[str, ...]:
    """The side a lobe is on: that of the word before it, else of the words behind it, else of the clause, else both."""
    if place.group().lower().startswith("lingula"):
        return ("left",)
    if place.group().lower().startswith("bi"):
        return ("left", "right")
    before = list(_SIDE.finditer(clause, max(place.start() - 25, 0), place.start()))
    if before:
        return _sides(before[-1])
    behind = re.compile(r"\s+(?:of )?(?:the )?(left|right)", re.IGNORECASE).match(clause, place.end())
    return (behind[1].lower(),) if behind else tuple(sides) or ("left", "right")


@lru_cache
def load_lexicon(folder: str | Path = _FOLDER, cues: str | Path | None = None) -> Lexicon:
    """Read ``organs.csv``, ``findings.csv``, ``places.csv`` and ``normal.csv``.

    Args:
        folder: Where they are; medvl's own without one.
        cues: Rules of negation, see ``medvl_core.report_rules.load_cues``.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a row breaks a rule. The message starts with the file and the row.
    """
    folder = Path(folder)
    known = dict.fromkeys(name for title in ("ts_v2_117", "ts_v1_104") for name in region_set(title).names)
    organs, regions, findings = {}, {}, []
    for where, row in _rows(folder / "organs.csv", ("organ", "pattern", "regions")):
        organs[row["organ"]] = _pattern(where, row["pattern"])
        globs = [part for part in row["regions"].split(";") if part]
        regions[row["organ"]] = tuple(name for name in known if any(fnmatch(name, glob) for glob in globs))
        if lost := [glob for glob in globs if not any(fnmatch(name, glob) for name in known)]:
            raise ValueError(f"{where}: {lost} match no region name")
    for where, row in _rows(folder / "findings.csv", ("finding", "organs", "needs", "pattern")):
        own, needs = ([part for part in row[key].split(";") if part] for key in ("organs", "needs"))
        if lost := [part for part in (*own, *needs) if part.lstrip("!") not in organs]:
            raise ValueError(f"{where}: {lost} are no organs of organs.csv")
        wanted = tuple(part for part in needs if not part.startswith("!"))
        barred = tuple(part[1:] for part in needs if part.startswith("!"))
        findings.append(FindingRule(row["finding"], tuple(own), wanted, barred, _pattern(where, row["pattern"])))
    places = {
        row["part"]: _pattern(where, row["pattern"]) for where, row in _rows(folder / "places.csv", ("part", "pattern"))
    }
    normal = "|".join(row["pattern"] for _, row in _rows(folder / "normal.csv", ("pattern",)))
    own_cues = load_cues() if cues is None else load_cues(cues)
    return Lexicon(organs, regions, tuple(findings), places, _pattern("normal.csv", normal), own_cues)


def _rows(path: Path, columns: tuple[str, ...]) -> Iterator[tuple[str, dict[str, str]]]:
    with path.open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            if tuple(row) != columns or None in row.values():
                raise ValueError(f"{path}: row {number} is {row}; the columns are {', '.join(columns)}")
            yield f"{path}: row {number}", row


def _pattern(where: str, pattern: str) -> re.Pattern[str]:
    try:
        return re.compile(rf"(?<!\w)(?:{pattern})(?!\w)", re.IGNORECASE)
    except re.error as error:
        raise ValueError(f"{where}: {pattern!r} is no regular expression ({error})") from error

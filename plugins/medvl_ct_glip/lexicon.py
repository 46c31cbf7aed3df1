"""Organs, findings and places as reports name them: read from CSV files, so that a radiologist can change them."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Set
from dataclasses import dataclass
from fnmatch import fnmatch
from functools import lru_cache
from pathlib import Path

from medvl_baseline.reports.rules import Cues, load_cues
from medvl_ct_glip.region_sets import region_set

__all__ = ["ITEM", "FindingRule", "Lexicon", "load_lexicon"]

_FOLDER = Path(__file__).parent / "report_rules"
ITEM = re.compile(r",|\band\b")
"""What stands between the items of a list."""
_LEVEL = re.compile(r"\b[CTL]\d{1,2}\b", re.IGNORECASE)
_SIDE = re.compile(r"\b(right|left|bilateral|both)\b|\b(bi)(?=basilar|basal|apical)", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class FindingRule:
    """How one finding is named.

    Args:
        name: What it is called in texts.
        organs: Organs it is in; none for findings outside every region.
        needs: Organs of which one must be named where it is.
        excludes: Organs that must not be, unless one of ``kin`` is.
        kin: Its organs and those that mean them too.
        pattern: Its mentions.
    """

    name: str
    organs: tuple[str, ...]
    needs: tuple[str, ...]
    excludes: tuple[str, ...]
    kin: frozenset[str]
    pattern: re.Pattern[str]

    def fits(self, named: Set[str]) -> bool:
        """Whether it can be meant where the organs ``named`` are named."""
        if self.needs:
            return not named.isdisjoint(self.needs)
        return not named.isdisjoint(self.kin) or named.isdisjoint(self.excludes)


@dataclass(frozen=True, eq=False)  # equal to itself alone, which a cache asks for
class Lexicon:
    """The words of reports.

    Args:
        organs: Organ → its mentions.
        regions: Organ → region names, of TotalSegmentator's versions 1 and 2.
        kin: Organ → the organs that mean it too (pleura and airways for the lungs).
        findings: The findings.
        places: Part of a lung (``lung_upper_lobe``) → its mentions.
        part: Sides that do not hold all of a finding ("more on the right").
        near: Organs that a finding is only close to.
        normal: Words that call an organ normal.
        abnormal: Words that forbid to call an organ normal.
        cues: Negation, doubt, history.
    """

    organs: dict[str, re.Pattern[str]]
    regions: dict[str, tuple[str, ...]]
    kin: dict[str, frozenset[str]]
    findings: tuple[FindingRule, ...]
    places: dict[str, re.Pattern[str]]
    part: re.Pattern[str]
    near: re.Pattern[str]
    normal: re.Pattern[str]
    abnormal: re.Pattern[str]
    cues: Cues

    def located(self, organ: str, clause: str) -> Iterator[str]:
        """The regions of ``organ`` that ``clause`` speaks of: by lobe, vertebra or side if it names one, else all."""
        regions = self.regions[organ]
        clause = self.part.sub("", self._own(organ, clause))
        sides = {side for found in _SIDE.finditer(clause) for side in _sides(found)}
        parts = [
            f"{part}_{side}"
            for part, pattern in self.places.items()
            for found in pattern.finditer(clause)
            for side in _side_of(clause, found, sides)
        ]
        parts += [f"vertebrae_{level.upper()}" for level in _LEVEL.findall(clause)]
        named = [region for region in regions if region in parts]
        yield from named or (region for region in regions if not sides or _on(region, sides))

    def named(self, text: str) -> frozenset[str]:
        """The organs that ``text`` names as the place of something."""
        return _named(self, text)

    def sided(self, text: str) -> bool:
        """Whether ``text`` says on which side or in which lobe."""
        return any(pattern.search(text) for pattern in (_SIDE, *self.places.values()))

    def _own(self, organ: str, clause: str) -> str:
        """``clause`` without the items that are about other organs alone."""
        items, begin = [], 0
        for end in [*(found.start() for found in ITEM.finditer(clause)), len(clause)]:
            if end == len(clause) or self.named(clause[begin:end]):
                items.append(clause[begin:end])
                begin = end
        own = [item for item in items if not (named := self.named(item)) or named & self.kin[organ]]
        return "".join(own) or clause


@lru_cache(4096)  # the same parts of a sentence are looked at for every finding in it
def _named(lexicon: Lexicon, text: str) -> frozenset[str]:
    text = lexicon.near.sub("", text)
    return frozenset(organ for organ, pattern in lexicon.organs.items() if pattern.search(text))


def _on(region: str, sides: Set[str]) -> bool:
    """Whether ``region`` is on one of ``sides`` or on none."""
    side = re.search(r"_(left|right)(?:_\d+)?$", region)
    return side is None or side[1] in sides


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
    """Read ``organs.csv``, ``findings.csv``, ``places.csv``, ``normal.csv`` and ``abnormal.csv``.

    Args:
        folder: Where they are; medvl's own without one.
        cues: Rules of negation, see ``medvl_baseline.reports.rules.load_cues``.

    Raises:
        FileNotFoundError: If a file is missing.
        ValueError: If a row breaks a rule. The message starts with the file and the row.
    """
    folder = Path(folder)
    known = dict.fromkeys(name for title in ("ts_v2_117", "ts_v1_104") for name in region_set(title).names)
    organs, regions, nouns, groups = {}, {}, {}, {}
    for where, row in _rows(folder / "organs.csv", ("organ", "adjective", "group", "pattern", "regions")):
        organs[row["organ"]] = _pattern(where, row["pattern"])
        nouns[row["organ"]], groups[row["organ"]] = row["adjective"], row["group"]
        globs = [part for part in row["regions"].split(";") if part]
        regions[row["organ"]] = tuple(name for name in known if any(fnmatch(name, glob) for glob in globs))
        if lost := [glob for glob in globs if not any(fnmatch(name, glob) for name in known)]:
            raise ValueError(f"{where}: {lost} match no region name")
    kin = {
        organ: frozenset(o for o in groups if o == organ or groups[o] == groups[organ] == "lung") for organ in groups
    }
    findings = [
        rule
        for where, row in _rows(folder / "findings.csv", ("finding", "organs", "needs", "pattern"))
        for rule in _findings(where, row, nouns, groups, kin)
    ]
    places = {
        row["part"]: _pattern(where, row["pattern"]) for where, row in _rows(folder / "places.csv", ("part", "pattern"))
    }
    part, near = (places.pop(name, re.compile(r"(?!)")) for name in ("part", "near"))
    normal, abnormal = (
        _pattern(name, "|".join(row["pattern"] for _, row in _rows(folder / name, ("pattern",))))
        for name in ("normal.csv", "abnormal.csv")
    )
    own_cues = load_cues() if cues is None else load_cues(cues)
    return Lexicon(organs, regions, kin, tuple(findings), places, part, near, normal, abnormal, own_cues)


def _findings(
    where: str, row: dict[str, str], nouns: dict[str, str], groups: dict[str, str], kin: dict[str, frozenset[str]]
) -> Iterator[FindingRule]:
    """The rule of a row; one for each of its organs where the finding has ``{}`` for the organ's adjective."""
    organs, needs = ([part for part in row[key].split(";") if part] for key in ("organs", "needs"))
    barred = [part[1:] for part in needs if part.startswith("!")]
    wanted = tuple(part for part in needs if not part.startswith("!"))
    if lost := [part for part in (*organs, *wanted, *barred) if part not in (*groups, *groups.values())]:
        raise ValueError(f"{where}: {lost} are no organs of organs.csv")
    pattern = _pattern(where, row["pattern"])
    for own in [(organ,) for organ in organs] if "{}" in row["finding"] else [tuple(organs)]:
        excludes = tuple(organ for organ in groups if organ in barred or groups[organ] in barred)
        akin = frozenset[str]().union(*(kin[organ] for organ in own))
        name = row["finding"].format(*(nouns[organ] for organ in own))
        yield FindingRule(name, own, own if "{}" in row["finding"] else wanted, excludes, akin, pattern)


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

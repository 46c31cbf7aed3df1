"""Sentences of a report, and whether a mention is stated, denied, doubted or history. Rules are data; no torch."""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Literal

__all__ = ["Cue", "Cues", "Status", "Verdict", "load_cues", "sentences"]

Status = Literal["present", "absent", "uncertain", "history"]
_KINDS = ("no_negation", "end", "absent", "uncertain", "history")
_OWN = Path(__file__).parent / "report_cues.csv"
_REACH = 5  # words between a mention and a cue behind it

_BREAK = re.compile(
    r"(?<=[.!?])[\s.]+(?=[A-Z0-9(\"])|(?<=[a-z)][.!?])\s+|(?<=[a-z]\.)(?=[A-Z][a-z])|\s*\n\s*\n\s*"
    r"|\s*\n(?=[ \t]*(?:[-*•]|\d+[.)]\s|[A-Z][\w ,/&()-]{1,60}:))"  # a list, or a label
)
_ABBREVIATION = re.compile(r"\b(?:dr|mr|mrs|vs|approx|no|st|fig|i\.e|e\.g|cf)\.$", re.IGNORECASE)


@dataclass(frozen=True, slots=True)
class Cue:
    """A word that changes what is said about a mention.

    Args:
        kind: ``"absent"``, ``"uncertain"`` or ``"history"``; ``"end"``: no cue acts across it; ``"no_negation"``: looks
            like a cue and is none ("no change in").
        direction: Whether it stands ``"before"`` or ``"after"`` the mention; blank for the last two kinds.
        pattern: Regular expression for running text in any case.
    """

    kind: str
    direction: str
    pattern: str


@dataclass(frozen=True, slots=True)
class Verdict:
    """What is said about a mention, and the cue that says so: its span in the sentence, or ``None``."""

    status: Status
    cue: tuple[int, int] | None = None


class Cues:
    """Rules of scope.

    In the clause of a mention, a cue close behind it decides; else the nearest cue before it; else it is present. A
    clause ends at a cue of kind ``"end"`` and at the sentence's ends.

    Args:
        cues: The rules.
    """

    def __init__(self, cues: Sequence[Cue]) -> None:
        def joined(kind: str, direction: str = "") -> re.Pattern[str]:
            patterns = [c.pattern for c in cues if (c.kind, c.direction) == (kind, direction)] or ["(?!)"]
            edge = "|".join(rf"(?:(?<!\w)(?:{pattern})(?!\w))" for pattern in patterns)
            return re.compile(edge if kind != "end" else "|".join(rf"(?:\b|\s|^)(?:{p})" for p in patterns), re.I)

        statuses: tuple[Status, ...] = ("absent", "uncertain", "history")
        self._before = {status: joined(status, "before") for status in statuses}
        self._after = {status: joined(status, "after") for status in statuses}
        self._end, self._none = joined("end"), joined("no_negation")

    def verdict(self, sentence: str, start: int, end: int) -> Verdict:
        """What ``sentence`` says about the mention ``sentence[start:end]``."""
        text = self._none.sub(lambda found: "~" * len(found.group()), sentence)
        left, right = self.clause(sentence, start, end)
        for status in ("uncertain", "absent", "history"):
            found = self._after[status].search(text, end, right)
            if found and len(text[end : found.start()].split()) <= _REACH and "," not in text[end : found.start()]:
                return Verdict(status, found.span())
        before = [
            (found.span(), status) for status, cue in self._before.items() for found in cue.finditer(text, left, end)
        ]
        if not before:
            return Verdict("present")
        span, status = max(before, key=lambda item: (item[0][1], -item[0][0]))  # nearest, the longest of those
        return Verdict(status, span)

    def clause(self, sentence: str, start: int, end: int) -> tuple[int, int]:
        """The part of ``sentence`` whose cues act on ``sentence[start:end]``."""
        ends = [found.span() for found in self._end.finditer(sentence)]
        left = max((stop for _, stop in ends if stop <= start), default=0)
        right = min((begin for begin, _ in ends if begin >= end), default=len(sentence))
        return left, right

    def clauses(self, sentence: str) -> list[tuple[int, int]]:
        """Spans of the clauses of ``sentence``."""
        ends = [0, *(at for found in self._end.finditer(sentence) for at in found.span()), len(sentence)]
        return list(zip(ends[::2], ends[1::2], strict=True))


@lru_cache
def load_cues(path: str | Path = _OWN) -> Cues:
    """Rules from a CSV with the columns ``kind``, ``direction``, ``pattern``; medvl's own without a path.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If a row is no rule. The message starts with the file and the row.
    """
    cues = []
    with Path(path).open(encoding="utf-8", newline="") as file:
        for number, row in enumerate(csv.DictReader(file), 2):
            cue = Cue(*(str(row.get(name) or "") for name in ("kind", "direction", "pattern")))
            scoped = cue.kind in ("absent", "uncertain", "history")
            if cue.kind not in _KINDS or (cue.direction in ("before", "after")) != scoped or not cue.pattern:
                raise ValueError(f"{path}: row {number} is {row}; kind is one of {_KINDS}, with before or after")
            try:
                re.compile(cue.pattern)
            except re.error as error:
                raise ValueError(f"{path}: row {number}: {cue.pattern!r} is no regular expression ({error})") from error
            cues.append(cue)
    return Cues(cues)


def sentences(text: str) -> Iterator[tuple[int, int]]:
    """Spans of the sentences of ``text``, without blanks around them; numbers and abbreviations do not end one."""
    start = 0
    for gap in _BREAK.finditer(text):
        if _ABBREVIATION.search(text, 0, gap.start()) and "\n" not in gap.group():
            continue
        yield from _trimmed(text, start, gap.start())
        start = gap.end()
    yield from _trimmed(text, start, len(text))


def _trimmed(text: str, start: int, end: int) -> Iterator[tuple[int, int]]:
    inner = text[start:end]
    if inner.strip():
        yield start + len(inner) - len(inner.lstrip()), end - len(inner) + len(inner.rstrip())

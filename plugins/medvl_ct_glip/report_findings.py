"""What a report says about each organ, every item with the place in the report that says it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from typing import Literal

from medvl_core.regions import RegionText
from medvl_core.report_rules import sentences
from medvl_core.study import Report
from medvl_ct_glip.lexicon import FindingRule, Lexicon, load_lexicon

__all__ = ["Extractor", "ExtractionError", "Mention", "RuleExtractor", "check_mentions", "report_sections", "status_of"]

MentionStatus = Literal["present", "absent", "uncertain", "history", "normal"]
_STATUSES = ("present", "absent", "uncertain", "history", "normal")
_SECTIONS = ("findings", "impression")
_HEADING = re.compile(r"^[ \t]*([A-Za-z][A-Za-z /&-]{2,40}?)[ \t]*:", re.MULTILINE)


class ExtractionError(ValueError):
    """An extractor gave something that is not in the report."""


@dataclass(frozen=True, slots=True)
class Mention:
    """One statement of a report.

    Args:
        finding: Name of the finding; blank for a statement that an organ is normal.
        status: What is said about it.
        regions: Regions it is about; none for findings outside every region.
        section: ``"findings"`` or ``"impression"``.
        start: Where it begins in the section's text.
        end: Where it ends.
        cue: Span of the word that decides the status, or ``None``.
    """

    finding: str
    status: MentionStatus
    regions: tuple[str, ...]
    section: str
    start: int
    end: int
    cue: tuple[int, int] | None = None


Extractor = Callable[[Report], list[Mention]]
"""Anything that reads a report: rules, or a language model. What it gives is checked by ``check_mentions``."""


class RuleExtractor:
    """Sentences → findings and organs by lexicon → negated, doubted or history by cues.

    Args:
        lexicon: The words; medvl's own when ``None``.
    """

    def __init__(self, lexicon: Lexicon | None = None) -> None:
        self.lexicon = lexicon or load_lexicon()

    def __call__(self, report: Report) -> list[Mention]:
        """The mentions, in the order of the text."""
        mentions = []
        for section in _SECTIONS:
            text = getattr(report, section)
            for start, end in sentences(text):
                found = list(self._sentence(text[start:end]))
                mentions += [_shifted(mention, section, start) for mention in found]
        return mentions

    def _sentence(self, text: str) -> Iterator[Mention]:
        spans = [found.span() for rule in self.lexicon.findings for found in rule.pattern.finditer(text)]
        found = [mention for rule in self.lexicon.findings for mention in self._findings(rule, text, spans)]
        kept = [m for m in found if not any(_inside(m, other) for other in found)]
        yield from sorted({(m.finding, m.start): m for m in kept}.values(), key=lambda m: m.start)
        yield from self._normal(text, kept)

    def _findings(self, rule: FindingRule, text: str, spans: Sequence[tuple[int, int]]) -> Iterator[Mention]:
        for found in rule.pattern.finditer(text):
            left, right = self.lexicon.cues.clause(text, *found.span())
            clause = text[left:right]
            if rule.needs and not self._named(rule, clause, _item(text, left, right, found.start())):
                continue
            if any(self.lexicon.names(organ, clause) for organ in rule.excludes):
                continue
            verdict = self.lexicon.cues.verdict(text, *found.span())
            place = _place(text, left, right, found.span(), spans)
            regions = tuple(region for organ in rule.organs for region in self.lexicon.located(organ, place))
            yield Mention(rule.name, verdict.status, regions, "", *found.span(), verdict.cue)

    def _named(self, rule: FindingRule, clause: str, item: str) -> bool:
        """Whether the clause names an organ the rule needs; in a list, an organ in the mention's own item decides."""
        own = [organ for organ in self.lexicon.organs if self.lexicon.names(organ, item)]
        return (
            any(organ in rule.needs for organ in own) if own else any(self.lexicon.names(o, clause) for o in rule.needs)
        )

    def _normal(self, text: str, findings: list[Mention]) -> Iterator[Mention]:
        """Statements that an organ is normal: in the whole sentence when it states no finding, else in the clause."""
        stated = [m for m in findings if m.status in ("present", "uncertain")]
        for organ, pattern in self.lexicon.organs.items():
            for found in pattern.finditer(text):
                left, right = self.lexicon.cues.clause(text, *found.span()) if stated else (0, len(text))
                word = self.lexicon.normal.search(text, left, right)
                if word is None or any(left <= m.start < right for m in stated):
                    continue
                if (
                    not word.group().lower().startswith("no ")
                    and self.lexicon.cues.verdict(text, *word.span()).status != "present"
                ):
                    continue
                regions = tuple(self.lexicon.located(organ, text[left:right]))
                if regions:
                    yield Mention("", "normal", regions, "", *found.span(), word.span())
                    break


def report_sections(text: str) -> Report:
    """Findings and impression of a whole report with headings (``FINDINGS:``); without one, all is findings."""
    parts = _HEADING.split(text)
    found = {"findings": "", "impression": ""}
    for heading, body in zip(parts[1::2], parts[2::2], strict=True):
        name = heading.strip().lower().removesuffix("s")
        section = {"finding": "findings", "impression": "impression", "conclusion": "impression"}.get(name)
        if section:
            found[section] = f"{found[section]}\n\n{body.strip()}".strip()
    return Report(**found) if any(found.values()) else Report(findings=text.strip())


def status_of(mentions: list[Mention]) -> dict[str, RegionText]:
    """Region → what is said about it: findings joined by commas, abnormal before uncertain before normal.

    A region is normal when it is called so, or when all that is said is what it does not have. History is left out.
    """
    by_region: dict[str, dict[str, dict[str, None]]] = {}
    for mention in mentions:
        kind = {"present": "abnormal", "uncertain": "uncertain", "normal": "normal", "absent": "normal"}.get(
            mention.status
        )
        for region in mention.regions if kind else ():
            by_region.setdefault(region, {}).setdefault(str(kind), {})[mention.finding] = None
    texts = {}
    for region, kinds in by_region.items():
        if "abnormal" in kinds:
            texts[region] = RegionText(", ".join(kinds["abnormal"]), "abnormal")
        elif "uncertain" in kinds:
            texts[region] = RegionText("possible " + ", ".join(kinds["uncertain"]), "uncertain")
        else:
            texts[region] = RegionText("", "normal")
    return texts


def check_mentions(report: Report, mentions: list[Mention]) -> list[Mention]:
    """The mentions, when each has a known status and lies in the report: what a language model gives may not.

    Raises:
        ExtractionError: If one does not. The message gives its span, never the report's text.
    """
    for mention in mentions:
        length = len(getattr(report, mention.section, "")) if mention.section in _SECTIONS else -1
        if mention.status not in _STATUSES or not 0 <= mention.start < mention.end <= length:
            raise ExtractionError(
                f"mention of {mention.finding!r} ({mention.status}) at {mention.section} {mention.start}:{mention.end} "
                f"is not in the report ({length} characters); status is one of {', '.join(_STATUSES)}"
            )
    return mentions


def _place(text: str, left: int, right: int, own: tuple[int, int], spans: Sequence[tuple[int, int]]) -> str:
    """The part of ``text[left:right]`` that says where ``own`` is.

    In a list, the items behind a finding up to the next finding are its own, those before the first finding too.
    """
    before = [stop for _, stop in spans if left <= stop <= own[0]]
    after = [start for start, _ in spans if own[1] <= start < right]
    breaks = [left + found.start() for found in re.finditer(r",|\band\b", text[left:right])]
    begin = max((at for at in breaks if max(before) <= at <= own[0]), default=max(before)) if before else left
    end = max((at for at in breaks if own[1] <= at <= min(after)), default=min(after)) if after else right
    return text[begin:end]


def _item(text: str, left: int, right: int, at: int) -> str:
    """The part of ``text[left:right]`` around ``at`` between commas and "and"."""
    breaks = [found.span() for found in re.finditer(r",|\band\b", text[left:right])]
    begin = max((left + stop for _, stop in breaks if left + stop <= at), default=left)
    end = min((left + start for start, _ in breaks if left + start > at), default=right)
    return text[begin:end]


def _inside(one: Mention, other: Mention) -> bool:
    """Whether ``one`` is a shorter reading of the same words."""
    return other.start <= one.start and one.end <= other.end and other.end - other.start > one.end - one.start


def _shifted(mention: Mention, section: str, by: int) -> Mention:
    cue = None if mention.cue is None else (mention.cue[0] + by, mention.cue[1] + by)
    return replace(mention, section=section, start=mention.start + by, end=mention.end + by, cue=cue)

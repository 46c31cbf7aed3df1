"""What a report says about each organ, every item with the place in the report that says it."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from itertools import pairwise
from typing import Literal

from medvl_baseline.reports.rules import sentences
from medvl_core.study import Report
from medvl_ct_glip.lexicon import ITEM, FindingRule, Lexicon, load_lexicon
from medvl_ct_glip.regions.texts import RegionText

__all__ = ["Extractor", "ExtractionError", "Mention", "RuleExtractor", "check_mentions", "status_of", "unread"]

MentionStatus = Literal["present", "absent", "uncertain", "history", "normal", "unclear"]
_STATUSES = ("present", "absent", "uncertain", "history", "normal", "unclear")
_SECTIONS = ("findings", "impression")
_LABEL = re.compile(r"\s*(?:[-*•]\s*|\d+[.)]\s*)?([A-Za-z][\w ,/&()-]{1,60}?)\s*:")


class ExtractionError(ValueError):
    """An extractor gave something that is not in the report."""


@dataclass(frozen=True, slots=True)
class Mention:
    """One statement of a report.

    Args:
        finding: Name of the finding; blank for a statement that an organ is normal, or that no rule understands.
        status: What is said about it; ``"unclear"``: something that sounds abnormal.
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


Span = tuple[int, int]
Extractor = Callable[[Report], list[Mention]]
"""Anything that reads a report: rules, or a language model. What it gives is checked by ``check_mentions``."""


class RuleExtractor:
    """Sentences → findings and organs by lexicon → negated, doubted or history by cues.

    Args:
        lexicon: The words; medvl's own when ``None``.
    """

    def __init__(self, lexicon: Lexicon | None = None) -> None:
        self.lexicon = lexicon or load_lexicon()
        self._patterns = {rule.pattern.pattern: rule.pattern for rule in self.lexicon.findings}  # many rules share one

    def __call__(self, report: Report) -> list[Mention]:
        """The mentions, in the order of the text."""
        mentions = []
        for section in _SECTIONS:
            text, label, last = getattr(report, section), "", 0
            for start, end in sentences(text):
                if re.search(r"\n\s*\n", text[last:start]):
                    label = ""
                if found := _LABEL.match(text, start, end):
                    label = label if found[1].lower() in ("left", "right") else found[1]
                last = end
                mentions += [_shifted(mention, section, start) for mention in self._sentence(text[start:end], label)]
        return mentions

    def _sentence(self, text: str, label: str) -> Iterator[Mention]:
        matches = {name: [found.span() for found in regex.finditer(text)] for name, regex in self._patterns.items()}
        spans = [span for own in matches.values() for span in own]
        found = [
            mention
            for rule in self.lexicon.findings
            for span in matches[rule.pattern.pattern]
            for mention in self._finding(rule, text, span, spans, label)
        ]
        kept = [m for m in found if not any(_inside(m, other) for other in found)]
        kept += self._unclear(text, kept, label)
        yield from sorted({(m.finding, m.start, m.regions): m for m in kept}.values(), key=lambda m: m.start)
        yield from self._normal(text, kept)

    def _finding(
        self, rule: FindingRule, text: str, span: Span, spans: Sequence[Span], label: str
    ) -> Iterator[Mention]:
        named, near, place = self._where(text, span, spans, label, not rule.needs)
        if rule.fits(named):
            inherits = rule.needs or (label and near.rstrip().endswith(label))
            place = f"{near}, {place}" if inherits and not self.lexicon.sided(place) else place
            verdict = self.lexicon.cues.verdict(text, *span)
            regions = tuple(region for organ in rule.organs for region in self.lexicon.located(organ, place))
            yield Mention(rule.name, verdict.status, regions, "", *span, verdict.cue)

    def _unclear(self, text: str, found: Sequence[Mention], label: str) -> list[Mention]:
        """Words that sound abnormal, are not denied and in no finding, with the organs they are said of."""
        mentions = []
        for word in self.lexicon.abnormal.finditer(text):
            read = any(word.start() < m.end and m.start < word.end() for m in found)
            verdict = self.lexicon.cues.verdict(text, *word.span())
            own = verdict.cue and word.start() <= verdict.cue[0] < word.end()  # "not seen" is no denial of itself
            if read or (verdict.status in ("absent", "history") and not own):
                continue
            named, near, place = self._where(text, word.span(), [(m.start, m.end) for m in found], label, False)
            place = place if self.lexicon.sided(place) else f"{near}, {place}"
            regions = tuple(region for organ in sorted(named) for region in self.lexicon.located(organ, place))
            if regions:
                mentions.append(Mention("", "unclear", regions, "", *word.span()))
        return mentions

    def _where(
        self, text: str, span: Span, spans: Sequence[Span], label: str, free: bool
    ) -> tuple[frozenset[str], str, str]:
        """The organs that ``span`` is said of, the words that name them, and the words of its own place.

        They are in its own place; else in the items of its clause before it, the nearest first; then behind it; then in
        the clauses before; then in the label ("Kidneys:") of the sentence. ``free``: not where another finding is.
        """
        left, right = self.lexicon.cues.clause(text, *span)
        place = self._place(text, left, right, span, spans)
        marks = [left, *(left + found.start() for found in ITEM.finditer(text[left:right])), right]
        items = list(pairwise(marks))
        parts = [*(i for i in reversed(items) if i[0] <= span[0]), *(i for i in items if i[0] > span[0])]
        parts += reversed([clause for clause in self.lexicon.cues.clauses(text) if clause[1] <= left])
        taken = [start for start, _ in spans] if free else []
        words = [text[a:b] for a, b in parts if not any(a <= start < b for start in taken)]
        for part in (place, *words, label):
            if named := self.lexicon.named(part):
                return named, "" if part is place else part, place
        return frozenset(), "", place

    def _place(self, text: str, left: int, right: int, own: Span, spans: Sequence[Span]) -> str:
        """The part of ``text[left:right]`` that says where ``own`` is.

        In a list, the items behind a finding up to the next finding are its own, those before the first finding too;
        but not from an organ on that is called normal, or abnormal in other words.
        """
        before = [stop for _, stop in spans if left <= stop <= own[0]]
        after = [start for start, _ in spans if own[1] <= start < right]
        breaks = [left + found.start() for found in ITEM.finditer(text[left:right])]
        begin = max((at for at in breaks if max(before) <= at <= own[0]), default=max(before)) if before else left
        end = max((at for at in breaks if own[1] <= at <= min(after)), default=min(after)) if after else right
        marks = [begin, *(at for at in breaks if begin < at < end), end]
        for one, two in pairwise(marks):
            item = text[one:two]
            if (two <= own[0] or own[1] <= one) and self._judged(item):
                begin, end = (two, end) if two <= own[0] else (begin, min(end, one))
        return text[begin:end]

    def _judged(self, item: str) -> bool:
        """Whether ``item`` names an organ and says how it is."""
        return bool(
            (self.lexicon.normal.search(item) or self.lexicon.abnormal.search(item)) and self.lexicon.named(item)
        )

    def _normal(self, text: str, findings: list[Mention]) -> Iterator[Mention]:
        """Statements that an organ is normal: in its clause; in the whole sentence when that tells of no finding."""
        stated = [m for m in findings if m.status in ("present", "uncertain", "unclear")]
        for organ, pattern in self.lexicon.organs.items():
            for found in pattern.finditer(text):
                own = self.lexicon.cues.clause(text, *found.span())
                denied = any(own[0] <= m.start < own[1] for m in findings)
                left, right = own if stated or denied else (0, len(text))
                word = self.lexicon.normal.search(text, left, right)
                if word is None or any(left <= m.start < right for m in stated):
                    continue
                if (
                    not word.group().lower().startswith("no ")
                    and self.lexicon.cues.verdict(text, *word.span()).status != "present"
                ):
                    continue
                regions = tuple(self.lexicon.located(organ, text[slice(*own)]))
                if regions:
                    yield Mention("", "normal", regions, "", *found.span(), word.span())
                    break


def status_of(mentions: list[Mention]) -> dict[str, RegionText]:
    """Region → what is said about it: findings joined by commas, abnormal before uncertain before normal.

    A region is normal when it is called so and nothing unclear is said of it. That one thing is not there ("no cyst")
    does not make it normal. History is left out.
    """
    texts = {}
    for region, statuses in _by_region(mentions).items():
        if found := statuses.get("present"):
            texts[region] = RegionText(", ".join(found), "abnormal")
        elif found := statuses.get("uncertain"):
            texts[region] = RegionText("possible " + ", ".join(found), "uncertain")
        elif "normal" in statuses and "unclear" not in statuses:
            texts[region] = RegionText("", "normal")
    return texts


def unread(mentions: list[Mention]) -> set[str]:
    """Regions that silence does not make normal: something unclear is said of them, or what they once had."""
    return {
        region
        for region, statuses in _by_region(mentions).items()
        if "unclear" in statuses or ("history" in statuses and "normal" not in statuses)
    }


def _by_region(mentions: list[Mention]) -> dict[str, dict[str, dict[str, None]]]:
    """Region → status → findings, in the order of the text."""
    found: dict[str, dict[str, dict[str, None]]] = {}
    for mention in mentions:
        for region in mention.regions:
            found.setdefault(region, {}).setdefault(mention.status, {})[mention.finding] = None
    return found


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


def _inside(one: Mention, other: Mention) -> bool:
    """Whether ``one`` is a shorter reading of the same words."""
    return other.start <= one.start and one.end <= other.end and other.end - other.start > one.end - one.start


def _shifted(mention: Mention, section: str, by: int) -> Mention:
    cue = None if mention.cue is None else (mention.cue[0] + by, mention.cue[1] + by)
    return replace(mention, section=section, start=mention.start + by, end=mention.end + by, cue=cue)

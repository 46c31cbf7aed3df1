"""Labels from report text by rules: mentions, negation, uncertainty. Or by a function of your own, such as a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

__all__ = ["Labeler", "RuleLabeler", "named_labeler", "sections"]

Labeler = Callable[[str, Sequence[str]], Mapping[str, float]]
"""Report text and label names → 1 present, 0 absent, NaN uncertain, for each name."""

_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z ()/,&-]{2,60}?)[ \t]*:", re.MULTILINE)
_SECTIONS = {"FINDINGS": "findings", "IMPRESSION": "impression", "IMPRESSIONS": "impression"}

# A clause ends where a finding after it is no longer meant by what stood before.
_CLAUSE = re.compile(
    r"(?<=[.!?])\s+|[;:]\s*|\b(?:but|however|although|though|except|apart from|aside from)\b", re.IGNORECASE
)
_NO_NEGATION = re.compile(
    r"\b(?:no|not|without)\s+(?:\w+ly\s+)?(?:significant\s+|appreciable\s+|interval\s+|definite\s+)*"
    r"(?:change|increase|decrease|progression|difference|changed|only)\b(?:\s+(?:in|of|from))?",
    re.IGNORECASE,
)
_NEGATED_BEFORE = re.compile(
    r"\b(?:no(?: \w+){0,3} (?:suggest\w*|concern\w* for|suspici\w* (?:for|of))|no|not|nor|neither|without|absence of|"
    r"absent|negative for|free of|resolved|resolution of|ruled out)\b",
    re.IGNORECASE,
)
_NEGATED_AFTER = re.compile(
    r"^(?:\s+\S+){0,4}?\s+(?:(?:is|are|was|were|has|have)\s+)?(?:been\s+)?(?:absent|resolved|ruled out|"
    r"not\s+(?:seen|identified|present|evident|visualized|detected|demonstrated|appreciated))\b",
    re.IGNORECASE,
)
_UNCERTAIN_BEFORE = re.compile(
    r"\b(?:possibl[ey]|probabl[ey]|may|might|could|suspected|suspicious for|suspicion of|question of|questionable|"
    r"equivocal|suggest\w*|concern\w* for|difficult to exclude|(?:can ?not|can't|not) (?:exclude\w*|rule out))\b",
    re.IGNORECASE,
)
_UNCERTAIN_AFTER = re.compile(
    r"^(?:\s+\S+){0,4}?\s+(?:(?:is|are)\s+(?:possible|suspected|questionable)|"
    r"(?:can ?not|can't|could not|not)\s+be\s+(?:excluded|ruled out)|not excluded|vs\.?|versus)",
    re.IGNORECASE,
)


class RuleLabeler:
    """One verdict per label over all its mentions: present beats uncertain, uncertain beats absent or not mentioned.

    A mention is negated or uncertain by the nearest cue before it in its clause, or by one close behind it. Known
    limits: "no effusion and mild emphysema" negates both, and history ("prior") counts as present.

    Args:
        patterns: Label → regular expressions of its mentions, for running text in any case.
    """

    def __init__(self, patterns: Mapping[str, Sequence[str]]) -> None:
        self._patterns = {
            name: re.compile("|".join(rf"(?:\b{p}\b)" for p in ps), re.I) for name, ps in patterns.items()
        }

    def __call__(self, text: str, names: Sequence[str]) -> dict[str, float]:
        """Label → 1, 0 or NaN.

        Raises:
            KeyError: If a name has no pattern.
        """
        text = _NO_NEGATION.sub(" ", re.sub(r"\s+", " ", text))
        clauses = [clause for clause in _CLAUSE.split(text) if clause]
        labels = {}
        for name in names:
            found = {_verdict(clause, m) for clause in clauses for m in self._patterns[name].finditer(clause)}
            labels[name] = 1.0 if "present" in found else float("nan") if "uncertain" in found else 0.0
        return labels


def named_labeler(name: str) -> Labeler:
    """The function called ``"package.module:function"``; it must return a label for every name.

    Raises:
        ValueError: If there is none.
    """
    module, colon, attribute = name.partition(":")
    try:
        function = getattr(import_module(module), attribute) if colon else None
    except (ImportError, AttributeError) as error:
        raise ValueError(f"labeler {name!r} cannot be imported ({error}); give 'package.module:function'") from error
    if not callable(function):
        raise ValueError(f"labeler {name!r} is no function; give 'rules' or 'package.module:function'")
    return function  # type: ignore[no-any-return]


def sections(text: str) -> dict[str, str]:
    """``findings`` and ``impression`` of a report with headings in capitals; blanks of de-identification are dropped.

    Any other heading ends a section. Absent sections are empty.
    """
    parts = _HEADING.split(text)
    found = {"findings": "", "impression": ""}
    for heading, body in zip(parts[1::2], parts[2::2], strict=True):
        section = _SECTIONS.get(heading.strip())
        if section:
            clean = re.sub(r"\s+", " ", body.replace("_", " ")).strip()
            found[section] = f"{found[section]} {clean}".strip()
    return found


def _verdict(clause: str, mention: re.Match[str]) -> str:
    before, after = clause[: mention.end()], clause[mention.end() :]
    if _UNCERTAIN_AFTER.search(after):
        return "uncertain"
    if _NEGATED_AFTER.search(after):
        return "absent"
    nearest = {
        verdict: max((m.end() for m in cue.finditer(before)), default=-1)
        for verdict, cue in (("absent", _NEGATED_BEFORE), ("uncertain", _UNCERTAIN_BEFORE))
    }
    verdict = max(nearest, key=nearest.__getitem__)
    return verdict if nearest[verdict] >= 0 else "present"

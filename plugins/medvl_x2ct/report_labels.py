"""Labels from report text by rules: mentions, negation, uncertainty. Or by a function of your own, such as a model."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from importlib import import_module

from medvl_baseline.reports.rules import load_cues, sentences

__all__ = ["Labeler", "RuleLabeler", "named_labeler", "sections"]

Labeler = Callable[[str, Sequence[str]], Mapping[str, float]]
"""Report text and label names → 1 present, 0 absent, NaN uncertain, for each name."""

_HEADING = re.compile(r"^[ \t]*([A-Z][A-Z ()/,&-]{2,60}?)[ \t]*:", re.MULTILINE)
_SECTIONS = {"FINDINGS": "findings", "IMPRESSION": "impression", "IMPRESSIONS": "impression"}


class RuleLabeler:
    """One verdict per label over all its mentions: present beats uncertain, uncertain beats absent or not mentioned.

    Whether a mention is negated or uncertain is decided by ``medvl_baseline.reports.rules``; history counts as absent.

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
        text = re.sub(r"\s+", " ", text)
        cues, parts = load_cues(), [text[start:end] for start, end in sentences(text)]
        labels = {}
        for name in names:
            found = {
                cues.verdict(part, *m.span()).status for part in parts for m in self._patterns[name].finditer(part)
            }
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
    return function


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

"""Training texts from reports."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from medvl_core.study import Study

__all__ = ["ReportText"]

_SECTIONS = ("findings", "impression")
_SENTENCE_END = re.compile(r"(?<=[.!?])\s+")


class ReportText:
    """Sections of the report, joined in the order given; absent sections are left out.

    Args:
        sections: Any of ``"findings"`` and ``"impression"``.
        join: What stands between sections.
        sentence_dropout: Chance that a sentence is left out, in [0, 1). One sentence always stays.

    Raises:
        ValueError: If a section is unknown, given twice or none is given, or the chance is out of range.
    """

    def __init__(self, sections: Sequence[str] = _SECTIONS, join: str = " ", sentence_dropout: float = 0.0) -> None:
        if not sections or len(set(sections)) < len(sections) or set(sections) - set(_SECTIONS):
            raise ValueError(f"report sections are {tuple(sections)}; choose from {_SECTIONS}, each once")
        if not 0.0 <= sentence_dropout < 1.0:
            raise ValueError(f"sentence_dropout is {sentence_dropout}; choose a chance in [0, 1)")
        self.sections = tuple(sections)
        self.join = join
        self.sentence_dropout = sentence_dropout

    def texts(self, studies: Sequence[Study], rng: np.random.Generator) -> list[str]:
        """One text per study.

        Args:
            studies: Studies with reports.
            rng: Decides which sentences are left out; not touched without dropout.

        Returns:
            Non-empty texts in the order of ``studies``.

        Raises:
            ValueError: If a study has no report, or all its chosen sections are empty. The message starts with its id.
        """
        return [self._text(study, rng) for study in studies]

    def _text(self, study: Study, rng: np.random.Generator) -> str:
        texts = [getattr(study.report, section, "").strip() for section in self.sections]
        texts = [text for text in texts if text]
        if not texts:
            raise ValueError(
                f"{study.study_id}: no text in report sections {self.sections}; drop the study or choose other sections"
            )
        if self.sentence_dropout == 0.0:
            return self.join.join(texts)
        sentences = [_SENTENCE_END.split(text) for text in texts]
        keep = rng.random(sum(map(len, sentences))) >= self.sentence_dropout
        keep[rng.integers(len(keep))] |= not keep.any()
        flags = iter(keep)
        kept = [" ".join(sentence for sentence in section if next(flags)) for section in sentences]
        return self.join.join(text for text in kept if text)

"""A text source: from studies to the texts that are trained on."""

from __future__ import annotations

import re
from collections.abc import Sequence

import numpy as np

from medvl_core.study import Study

__all__ = ["RandomSentences"]


class RandomSentences:
    """A few sentences of the report in their order; which ones is drawn for each epoch.

    Args:
        count: Sentences to keep; a shorter report is kept whole.
    """

    def __init__(self, count: int = 3) -> None:
        self.count = count

    def texts(self, studies: Sequence[Study], rng: np.random.Generator) -> list[str]:
        """One text per study, decided by ``rng`` alone.

        Raises:
            ValueError: If a study has no report. The message starts with its id.
        """
        return [self._text(study, rng) for study in studies]

    def _text(self, study: Study, rng: np.random.Generator) -> str:
        text = f"{study.report.findings} {study.report.impression}".strip() if study.report else ""
        if not text:
            raise ValueError(f"{study.study_id}: has no report; leave the study out or choose another text source")
        sentences = re.split(r"(?<=[.!?])\s+", text)
        return " ".join(sentences[index] for index in sorted(rng.permutation(len(sentences))[: self.count]))

"""Captions made from labels alone: the meta labels of CXR-CML."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Literal

import numpy as np

from medvl_core.errors import did_you_mean
from medvl_core.study import Study

__all__ = ["MetaLabelCaptions"]

_STYLES = {"sentences": ("{} is present.", " "), "commas": ("{} is present", ", ")}


class MetaLabelCaptions:
    """``"Edema is present. Mass is present."`` from the positive labels of a study, in the order of its labels.

    Labels that are 0 or unknown are not mentioned: the caption never says what is absent. A study without any positive
    label says that of ``empty``; the published code leaves it blank, which no encoder can tell from padding.

    Args:
        style: ``"sentences"`` joins full sentences with blanks, as the published code does; ``"commas"`` joins clauses
            with commas, as the paper's example does (with ``lower_case``).
        lower_case: Fold case. CLIP's tokeniser does so anyway.
        empty: Named in place of a label when none is positive.
        synonyms: Label → other names for it; each caption draws one of them or the label itself.
        count_tokens: Tokens of each text, e.g. ``encoder.tokenizer.count`` of a CLIP text tower. With it a caption
            longer than ``max_tokens`` loses whole labels from its end instead of being cut inside one.
        max_tokens: See ``count_tokens``; start and end token included.

    Raises:
        ValueError: If ``style`` is unknown or ``empty`` is blank.

    References:
        CXR-CML, arXiv:2507.19398, section 2; the code's form is that of chinnarouge/CXR_CML@af3ba61.
    """

    def __init__(
        self,
        style: Literal["sentences", "commas"] = "sentences",
        *,
        lower_case: bool = False,
        empty: str = "No finding",
        synonyms: Mapping[str, Sequence[str]] | None = None,
        count_tokens: Callable[[Sequence[str]], Sequence[int]] | None = None,
        max_tokens: int = 77,
    ) -> None:
        if style not in _STYLES or not empty.strip():
            raise ValueError(f"caption style is {style!r}, empty {empty!r}; choose from {tuple(_STYLES)}, and any text")
        self._template, self._join = _STYLES[style]
        self.lower_case = lower_case
        self.empty = empty
        self.synonyms = {label: (label, *names) for label, names in (synonyms or {}).items()}
        self.count_tokens = count_tokens
        self.max_tokens = max_tokens

    def texts(self, studies: Sequence[Study], rng: np.random.Generator) -> list[str]:
        """One caption per study.

        Args:
            studies: Studies with labels.
            rng: Draws among synonyms; not touched without any.

        Returns:
            Non-empty captions in the order of ``studies``.

        Raises:
            ValueError: If a synonym is for a label that a study does not have, or a single label is too long. The
                message starts with the study's id.
        """
        return [self._text(study, rng) for study in studies]

    def _text(self, study: Study, rng: np.random.Generator) -> str:
        for label in self.synonyms:
            if label not in study.labels:
                hint = did_you_mean(label, study.labels)
                raise ValueError(f"{study.study_id}: synonyms are for {label!r}, which is no label of it{hint}")
        positive = [label for label, value in study.labels.items() if value == 1] or [self.empty]
        names = [self._name(label, rng) for label in positive]
        parts = [self._template.format(name.lower() if self.lower_case else name) for name in names]
        while self._is_long(text := self._join.join(parts)):
            if len(parts) == 1:
                raise ValueError(
                    f"{study.study_id}: {text!r} alone has more than {self.max_tokens} tokens; shorten the label's name"
                )
            parts.pop()
        return text

    def _name(self, label: str, rng: np.random.Generator) -> str:
        names = self.synonyms.get(label)
        return label if names is None else names[int(rng.integers(len(names)))]

    def _is_long(self, text: str) -> bool:
        # A token holds at least one byte, so short texts need no counting.
        if self.count_tokens is None or len(text.encode()) <= self.max_tokens - 2:
            return False
        return self.count_tokens([text])[0] > self.max_tokens

"""Texts of regions as fixed embeddings: names, diagnoses of every study, and a dictionary of abnormal ones."""

from __future__ import annotations

import hashlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from medvl_core.engine.alignment import Tower
from medvl_core.study import Study
from medvl_imaging.embedding import producer_of
from medvl_imaging.store.tensors import TensorStore

__all__ = [
    "ABNORMAL",
    "NORMAL",
    "UNKNOWN",
    "RegionText",
    "RegionTextSource",
    "RegionTexts",
    "StoredTexts",
    "spoken",
]

NORMAL, ABNORMAL, UNKNOWN = 0, 1, -1
_STATUS = {"normal": NORMAL, "abnormal": ABNORMAL}


@dataclass(frozen=True, slots=True)
class RegionText:
    """What a report says about one region.

    Args:
        text: The diagnosis, or the sentence that stands for a normal region.
        status: ``"normal"``, ``"abnormal"`` or ``"uncertain"``; training reads the first two.
    """

    text: str
    status: str


class RegionTextSource(Protocol):
    """A text source that also knows which region each text is about."""

    def region_texts(self, study: Study) -> Mapping[str, RegionText]:
        """Region name → its text and status; regions that the report does not mention may be missing."""
        ...


def spoken(name: str) -> str:
    """A structure's name as one says it: ``"kidney_right"`` → ``"right kidney"``."""
    words = name.split("_")
    sides = [word for word in words if word in ("left", "right")]
    return " ".join([*sides, *(word for word in words if word not in sides)])


class StoredTexts:
    """Unit embeddings of texts by a frozen tower, computed once and kept on disk by what the tower computes.

    Args:
        tower: The frozen text tower.
        folder: Where the rows are kept.
    """

    def __init__(self, tower: Tower, folder: str | Path) -> None:
        self.tower = tower
        self._store = TensorStore(
            folder,
            producer=producer_of(tower),
            preprocessing=tower.encoder.input.digest(),  # type: ignore[union-attr, operator]
            shape=(tower.embed_dim,),
        )

    def __call__(self, texts: Sequence[str], normalise: bool = True) -> Tensor:
        """``len(texts) E``, unit rows, on the CPU; each different text is embedded once, ever.

        Raises:
            ValueError: If ``normalise`` is off: lengths are not kept.
        """
        if not normalise:
            raise ValueError("StoredTexts keeps unit vectors; embed with the tower itself for lengths")
        keys = [("text", hashlib.sha256(text.encode()).hexdigest()) for text in texts]
        self._store.fill(keys, lambda rows: self.tower.embed_text([texts[i] for i in rows]).numpy(), batch_size=256)
        return torch.from_numpy(self._store.get_batch(keys).copy())


class RegionTexts:
    """The texts of all studies behind numbers, each different text embedded once.

    The dictionary holds the most frequent abnormal texts of the training studies, and the regions each was found in:
    negatives for regions that are normal.

    Args:
        source: Gives the text and status of each region of a study; ``None`` where there are only names.
        embed: Texts → unit rows, e.g. `StoredTexts`.
        names: Region names R.
        studies: Those of training; their abnormal texts may enter the dictionary.
        anatomy: Template of the text that names a region.
        size: Entries of the dictionary at most; 0 leaves it empty.
        draws: Negatives T per normal region, or as many as its dictionary entries.

    Attributes:
        names_embedding: ``R E``.
        dictionary: ``D E``.
        dictionary_group: ``D``, the group of each entry: equal to that of an equal diagnosis.
        words: The D texts.

    Raises:
        ValueError: If no study has a text for any region, or size or draws is negative.

    References:
        Lin et al., CT-GLIP, arXiv:2404.15272, section 2.2 (dictionary of 512; T is not printed). No code copied.
    """

    def __init__(
        self,
        source: RegionTextSource | None,
        embed: Callable[[Sequence[str]], Tensor],
        names: Sequence[str],
        studies: Sequence[Study],
        anatomy: str = "this is a {} in the CT scan",
        size: int = 512,
        draws: int = 5,
    ) -> None:
        if size < 0 or draws < 0:
            raise ValueError(f"dictionary of size {size} with {draws} draws; neither may be negative")
        self.names, self.draws = tuple(names), draws
        self._place = {name: place for place, name in enumerate(self.names)}
        found = {study.study_id: self._of_source(source, study) for study in studies}
        unique = list(dict.fromkeys(text.text for texts in found.values() for text in texts.values()))
        if not unique and source is not None:
            raise ValueError(f"none of {len(found)} studies has a text for any of the {len(self.names)} regions")
        number = {text: group for group, text in enumerate(unique)}
        self.names_embedding = embed([anatomy.format(spoken(name)) for name in self.names])
        self._embedding = embed(unique) if unique else torch.zeros_like(self.names_embedding[:1])
        self._rows = {study: self._row(texts, number) for study, texts in found.items()}
        self._make_dictionary([found[study.study_id] for study in studies], number, unique, size)

    def of(self, study: Study) -> tuple[Tensor, Tensor, Tensor]:
        """Diagnosis ``R E`` (zero rows without a text), its group ``R`` and status ``R`` (-1 where there is none).

        Raises:
            KeyError: If the study was not among those given at the start.
        """
        if study.study_id not in self._rows:
            raise KeyError(f"{study.study_id}: not among the studies whose region texts were read")
        group, status = self._rows[study.study_id]
        rows = self._embedding[group.clamp(min=0)] * (group >= 0)[:, None]
        return rows, group, status

    def negatives(self, normal: Sequence[int] | Tensor, rng: np.random.Generator) -> Tensor:
        """Entries drawn for the normal regions given by index: ``R * draws`` (int64), -1 where there is none."""
        drawn = torch.full((len(self.names), self.draws), -1)
        for region in map(int, normal):
            entries = self._entries[region]
            take = min(self.draws, len(entries))
            drawn[region, :take] = torch.from_numpy(rng.choice(entries, take, replace=False)) if take else drawn[0, :0]
        return drawn.flatten()

    def _of_source(self, source: RegionTextSource | None, study: Study) -> dict[str, RegionText]:
        texts = {} if source is None else source.region_texts(study)
        return {name: text for name, text in texts.items() if name in self._place and text.status in _STATUS}

    def _row(self, texts: Mapping[str, RegionText], number: Mapping[str, int]) -> tuple[Tensor, Tensor]:
        group, status = torch.full((len(self.names),), -1), torch.full((len(self.names),), UNKNOWN)
        for name, text in texts.items():
            group[self._place[name]], status[self._place[name]] = number[text.text], _STATUS[text.status]
        return group, status

    def _make_dictionary(
        self, training: Sequence[Mapping[str, RegionText]], number: Mapping[str, int], unique: Sequence[str], size: int
    ) -> None:
        abnormal = [(n, t.text) for texts in training for n, t in texts.items() if t.status == "abnormal"]
        counts = Counter(text for _, text in abnormal)
        kept = sorted(counts, key=lambda text: (-counts[text], text))[:size]
        row = {text: place for place, text in enumerate(kept)}
        entries: list[set[int]] = [set() for _ in self.names]
        for name, text in abnormal:
            if text in row:
                entries[self._place[name]].add(row[text])
        self._entries = [np.array(sorted(part), dtype=np.int64) for part in entries]
        self.words = tuple(kept)
        self.dictionary_group = torch.tensor([number[text] for text in kept], dtype=torch.int64)
        self.dictionary = self._embedding[self.dictionary_group]

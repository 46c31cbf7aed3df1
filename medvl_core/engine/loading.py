"""Studies as batches. Order, sampling and augmentation are functions of (seed, epoch, index), never of history.

That is what makes a killed run continue bit for bit, on any number of workers: nothing random is carried along.
"""

from __future__ import annotations

import ctypes
import hashlib
import os
import signal
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Sampler
from torch.utils.data import Dataset as TorchDataset

from medvl_core.engine import distributed
from medvl_core.protocols import Dataset, TextSource
from medvl_core.study import Study

__all__ = [
    "Cohort",
    "CounterBatchSampler",
    "Draw",
    "Field",
    "StudyDataset",
    "Text",
    "collate",
    "modalities",
    "rng_for",
    "start_worker",
    "study_loader",
    "usable_workers",
]


def rng_for(*key: int | str) -> np.random.Generator:
    """A generator that is a function of its key alone, e.g. ``(seed, "augment", epoch, index)``."""
    digest = hashlib.sha256(repr(key).encode()).digest()
    return np.random.Generator(np.random.Philox(int.from_bytes(digest[:16], "little")))


@dataclass(frozen=True, slots=True)
class Draw:
    """Where the randomness of one study comes from: a function of these alone, never of history.

    Args:
        seed: Of the dataset.
        epoch: From 1 in training, else 0.
        position: Of the study in its dataset.
        random: Whether to augment at all; off in validation and evaluation.
    """

    seed: int = 0
    epoch: int = 0
    position: int = 0
    random: bool = False

    def rng(self, name: str) -> np.random.Generator:
        """The generator of one named purpose."""
        return rng_for(self.seed, name, self.epoch, self.position)


Field = Callable[[Study, Draw], Any]
"""Gives one entry of a study, or a mapping of named entries.

It may have ``check(study)``, which raises ``ValueError`` for a study that lacks what it reads, and, where it reads what
training has yet to make, ``blank(study, draw)`` that stands in for it: `rehearse` asks for both.
"""


class Text:
    """The field of a text source: the text under its modality's name, and ``text_group``, equal for equal texts.

    Args:
        source: Built by ``build_text_source``.
        modality: Name of the tower that reads it.
    """

    def __init__(self, source: TextSource, modality: str = "report") -> None:
        self.source, self.modality = source, modality

    def __call__(self, study: Study, draw: Draw) -> dict[str, Any]:
        """The text of one study.

        Raises:
            ValueError: If it has none.
        """
        (text,) = self.source.texts([study], draw.rng("text"))
        if not text.strip():
            raise ValueError(f"{study.study_id}: its text is empty; drop the study or choose another text source")
        return {self.modality: text, "text_group": torch.tensor(_text_group(text))}

    def check(self, study: Study) -> None:
        """Refuse a study without a text."""
        self(study, Draw())


class StudyDataset(TorchDataset[dict[str, Any]]):
    """Studies as dictionaries, by ``(epoch, index)``; a plain ``index`` is epoch 0 without augmentation.

    Every study has its ``study_id``, ``subject_id``, ``scan_id``, ``metadata`` and ``labels``. All else is a field's:
    images, stored embeddings (``<modality>_embedding``), texts, or a plugin's own. What no tower reads of a batch
    reaches the losses.

    Args:
        studies: The studies of one split.
        fields: Name → field. Its value is the entry of that name; a mapping gives several, each under its own key.
            ``None`` is left out.
        label_names: Columns of ``labels``; a study without one of them has NaN there.
        seed: Seeds augmentation and text sampling.
        dataset: The dataset that the studies are from: ``fields`` that it has itself are added.

    Raises:
        ValueError: If there are no studies, or the dataset has a field of a name that is taken.
    """

    def __init__(
        self,
        studies: Sequence[Study],
        fields: Mapping[str, Field | None] | None = None,
        label_names: Sequence[str] = (),
        seed: int = 0,
        dataset: Dataset | None = None,
    ) -> None:
        self.studies = list(studies)
        self.fields = {name: field for name, field in (fields or {}).items() if field is not None}
        self.label_names = tuple(label_names)
        self.seed = seed
        offered: Mapping[str, Field] = getattr(dataset, "fields", {})
        if taken := sorted(offered.keys() & self.fields.keys()):
            raise ValueError(f"{type(dataset).__name__} offers the field {taken[0]!r}, which is taken; rename it")
        self.fields |= offered
        if not self.studies:
            raise ValueError("no studies in this split; check the table's split column or the shares")

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int | tuple[int, int]) -> dict[str, Any]:
        epoch, position = index if isinstance(index, tuple) else (0, index)
        study = self.studies[position]
        draw = Draw(self.seed, epoch, position, random=isinstance(index, tuple))
        item: dict[str, Any] = {
            "study_id": study.study_id,
            "subject_id": study.subject_id,
            "scan_id": study.scan_id,
            "metadata": dict(study.metadata),
            "labels": torch.tensor([float(study.labels.get(name, np.nan)) for name in self.label_names]),
        }
        for name, field in self.fields.items():
            value = field(study, draw)
            item |= value if isinstance(value, Mapping) else {name: value}
        return item


class Cohort:
    """The studies of a dataset by split, each split read once, and what a job does with them.

    Args:
        dataset: Built by ``build_dataset``.
        seed: Seeds augmentation and text sampling.
        usable: Studies and the name of their split → those that can be used, in the order wanted.
    """

    def __init__(
        self, dataset: Dataset, seed: int = 0, usable: Callable[[list[Study], str], list[Study]] | None = None
    ) -> None:
        self.dataset, self.seed, self.label_names = dataset, seed, tuple(dataset.label_names)
        self._usable = usable
        self._read: dict[str, list[Study]] = {}

    @property
    def studies(self) -> dict[str, list[Study]]:
        """Split → its studies."""
        return {split: self._part(split) for split in ("train", "validation", "test")}

    @property
    def everyone(self) -> list[Study]:
        """The studies of all splits."""
        return [study for part in self.studies.values() for study in part]

    def split(self, name: str, fields: Mapping[str, Field | None]) -> StudyDataset:
        """One split with these fields, and those that the dataset offers itself."""
        return StudyDataset(self._part(name), fields, self.label_names, self.seed, self.dataset)

    def _part(self, name: str) -> list[Study]:
        if name not in self._read:
            studies = list(self.dataset.studies(name))  # type: ignore[arg-type]
            self._read[name] = studies if self._usable is None else self._usable(studies, name)
        return self._read[name]


class CounterBatchSampler(Sampler[list[tuple[int, int]]]):
    """Batches of ``(epoch, index)`` whose order is a function of (seed, epoch): it can start anywhere.

    Args:
        size: Number of studies.
        batch_size: Studies per process and step.
        seed: Of the order.
        shuffle: ``False`` keeps the order and yields plain indices: no augmentation.
        drop_last: Drop the batch that is not full. Needed in training on several processes.
        groups: Group of each study (its scan): no batch holds two of one group, each epoch draws one per group.
    """

    def __init__(
        self,
        size: int,
        batch_size: int,
        seed: int = 0,
        shuffle: bool = True,
        drop_last: bool = True,
        groups: Sequence[str] | None = None,
    ) -> None:
        self.size = size
        self.batch_size = batch_size
        self.seed = seed
        self.shuffle = shuffle
        self.drop_last = drop_last
        self._members = _members(groups) if groups is not None and shuffle else None
        self.epoch = 1
        self.first_batch = 0
        self.rank, self.world = distributed.rank(), distributed.world_size()
        units = size if self._members is None else len(self._members)
        if drop_last and units < batch_size * self.world:
            raise ValueError(
                f"{units} studies do not fill one batch of {batch_size} on {self.world} process(es); "
                "lower the batch size"
            )
        if units < self.world:
            raise ValueError(f"{units} studies for {self.world} processes; use at most {units} processes")

    def set_epoch(self, epoch: int, first_batch: int = 0) -> None:
        """Choose the epoch (from 1) and how many of its batches are already done."""
        self.epoch, self.first_batch = epoch, first_batch

    def order(self, epoch: int) -> np.ndarray:
        """Indices of the whole epoch, before they are dealt to processes."""
        if not self.shuffle:
            return np.arange(self.size)
        rng = rng_for(self.seed, "order", epoch)
        if self._members is None:
            return rng.permutation(self.size)
        drawn = np.array([members[rng.integers(len(members))] for members in self._members])
        return rng.permutation(drawn)

    def __len__(self) -> int:
        units = self.size if self._members is None else len(self._members)
        if self.drop_last:
            return units // (self.batch_size * self.world)
        own = len(range(self.rank, units, self.world))
        return -(-own // self.batch_size)

    def __iter__(self) -> Iterator[list[Any]]:
        order = self.order(self.epoch)
        if self.drop_last:
            # Process r takes part r of each global batch: the global batch is the same on any number of processes.
            order = order[: len(self) * self.batch_size * self.world]
            own = order.reshape(len(self), self.world, self.batch_size)[:, self.rank].reshape(-1)
        else:
            own = order[self.rank :: self.world]
        for batch in range(self.first_batch, len(self)):
            part = own[batch * self.batch_size : (batch + 1) * self.batch_size].tolist()
            yield [(self.epoch, index) for index in part] if self.shuffle else part


def study_loader(
    dataset: StudyDataset,
    batch_size: int,
    *,
    shuffle: bool = False,
    seed: int = 0,
    num_workers: int = 0,
    group_unique: bool = False,
) -> DataLoader[dict[str, Any]]:
    """A loader over :class:`CounterBatchSampler`: full, shuffled batches in training; all studies in order otherwise.

    Args:
        dataset: The studies.
        batch_size: Per process.
        shuffle: Training order and augmentation.
        seed: Of the order.
        num_workers: Worker processes; the batches do not depend on it.
        group_unique: Never two reconstructions of one scan in a batch (their shared report would be a false negative).
    """
    groups = [study.scan_id for study in dataset.studies] if group_unique else None
    sampler = CounterBatchSampler(len(dataset), batch_size, seed, shuffle, drop_last=shuffle, groups=groups)
    return DataLoader(
        dataset,
        batch_sampler=sampler,
        num_workers=usable_workers(num_workers),
        collate_fn=collate,
        pin_memory=torch.cuda.is_available(),
        worker_init_fn=start_worker,
        generator=torch.Generator().manual_seed(seed),  # keeps the loader from drawing on the global generator
    )


def collate(items: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """Stack tensors, list everything else."""
    batch: dict[str, Any] = {}
    for key in items[0]:
        values = [item[key] for item in items]
        batch[key] = torch.stack(values) if isinstance(values[0], Tensor) else values
    return batch


def modalities(studies: Sequence[Study]) -> tuple[str, ...]:
    """What the studies have: the modalities of their images, and ``"report"`` if any has one."""
    found = dict.fromkeys(modality for study in studies for modality in study.images)
    return (*found, "report") if any(study.report is not None for study in studies) else tuple(found)


def usable_workers(wanted: int) -> int:
    """At most one per core that this process may use: more only wait for each other."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    return min(wanted, cores)


def start_worker(worker: int) -> None:
    """A signal to the process group is for the main process, which finishes its step; a worker ends with its parent."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG: also when the parent was killed


def _text_group(text: str) -> int:
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little", signed=True)


def _members(groups: Sequence[str]) -> list[list[int]]:
    members: dict[str, list[int]] = {}
    for index, group in enumerate(groups):
        members.setdefault(group, []).append(index)
    return list(members.values())

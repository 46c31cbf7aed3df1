"""Work done once per study and kept: standardised images, and embeddings of frozen towers."""

from __future__ import annotations

import hashlib
import json
import logging
import random
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from rich.progress import Progress
from torch import Tensor, nn
from torch.nn import functional
from torch.utils.data import DataLoader
from torch.utils.data import Dataset as TorchDataset

from medvl_core.engine import distributed
from medvl_core.engine.alignment import Tower
from medvl_core.engine.files import write_csv
from medvl_core.engine.loading import Draw, rng_for, start_worker, usable_workers
from medvl_core.engine.stop import raise_if_requested
from medvl_core.engine.weights import weights_digest
from medvl_core.protocols import TextSource
from medvl_core.specs import ImageInput
from medvl_core.study import Study
from medvl_imaging.images import ImageRows
from medvl_imaging.store.tensors import TensorStore
from medvl_imaging.transforms import STANDARDISE_VERSION

__all__ = ["FrozenEmbedding", "image_rows", "image_store", "prepare_images", "producer_of", "usable", "usable_studies"]

logger = logging.getLogger(__name__)


def producer_of(module: nn.Module) -> str:
    """Digest of what a module computes: its weights, its parts, and what the components among them were built with.

    Weights alone do not tell one pooling without parameters, or one number of heads, from another. The options
    ``weights`` and ``vocabulary`` are left out: the files may move, and the ``state_dict`` covers their content.
    """
    parts = [
        (name, type(part).__qualname__, getattr(part, "component", ""), _told(getattr(part, "built_with", {})))
        for name, part in module.named_modules()
    ]
    told = json.dumps([weights_digest(module), parts], sort_keys=True, default=repr)
    return hashlib.sha256(told.encode()).hexdigest()


def _told(options: object) -> object:
    if not isinstance(options, Mapping):
        return options
    return {str(name): _told(value) for name, value in options.items() if name not in ("weights", "vocabulary")}


def image_rows(modality: str, input: ImageInput, folder: str | Path) -> ImageRows:
    """Images as one encoder reads them, kept in their store under ``folder``."""
    return ImageRows(modality, input, image_store(folder, modality, input))


def image_store(folder: str | Path, modality: str, input: ImageInput) -> TensorStore:
    """The store of one modality's standardised images: float16 rows of the encoder's input size."""
    return TensorStore(
        folder,
        producer=f"standardise {STANDARDISE_VERSION}/{modality}",
        preprocessing=input.digest(),
        shape=(input.channels, *input.size),
        dtype="float16",
    )


def prepare_images(
    studies: Sequence[Study],
    rows: Sequence[ImageRows],
    num_workers: int = 0,
    *,
    refuse: Literal["raise", "list"] = "raise",
) -> dict[str, str]:
    """Fill the stores of ``rows`` for ``studies``: one pass, each study read once, only what is missing.

    Each process makes its share. Resumable: finished studies are kept when the pass is stopped or killed.

    Args:
        studies: Of any splits.
        rows: Images to make; those without a store are left out.
        num_workers: Worker processes that read and standardise.
        refuse: ``"raise"`` stops at an image that cannot be used, ``"list"`` goes on.

    Returns:
        With ``"list"``: study id → reason of each study with such an image, the same on every process.
    """
    kept = [row for row in rows if row.store is not None]
    share = studies[distributed.rank() :: distributed.world_size()]  # of all: what is missing changes meanwhile
    wanted = {row.modality: set(row.store.missing([row.key(study) for study in share])) for row in kept}  # type: ignore[union-attr]
    own = [study for study in share if any(row.key(study) in wanted[row.modality] for row in kept)]
    loader = DataLoader(
        _Making(own, kept, wanted, refuse == "list"),
        batch_size=8,
        num_workers=usable_workers(num_workers),
        collate_fn=list,
        worker_init_fn=start_worker,
        generator=torch.Generator(),  # its own, so that weights built later do not depend on what was missing
    )
    refused: dict[str, str] = {}
    with Progress(disable=not own or distributed.rank() > 0) as progress:
        task = progress.add_task("standardising images", total=len(own))
        for batch in loader if own else ():
            refused |= {own[item["index"]].study_id: item["reason"] for item in batch if "reason" in item}
            for row in kept:
                made = [(own[item["index"]], item[row.modality]) for item in batch if row.modality in item]
                if made:
                    images = torch.stack([image for _, image in made]).numpy()
                    row.store.put([row.key(study) for study, _ in made], images)  # type: ignore[union-attr]
            progress.advance(task, len(batch))
            if distributed.world_size() == 1:
                raise_if_requested()
    return {study: reason for part in distributed.gather_objects(refused) for study, reason in part.items()}


def usable_studies(
    studies: Sequence[Study], rows: Sequence[ImageRows], table: str | Path | None = None, num_workers: int = 0
) -> list[Study]:
    """Fill the stores of ``rows``, and drop each study with an image that cannot be read. Nothing takes its place.

    Args:
        studies: Of one split.
        rows: Images that are needed, each with a store.
        table: CSV that receives ``study`` and ``reason`` of those dropped; there also when none is.
        num_workers: See :func:`prepare_images`.

    Returns:
        The others, in their order.
    """
    refused = prepare_images(studies, rows, num_workers, refuse="list")
    for reason in refused.values():
        logger.warning("dropped: %s", reason)
    if table is not None and distributed.rank() == 0:
        write_csv(table, ("study", "reason"), list(refused.items()))
    return [study for study in studies if study.study_id not in refused]


def usable(
    rows: Sequence[ImageRows], table: str, num_workers: int = 0, seed: int = 0
) -> Callable[[list[Study], str], list[Study]]:
    """The ``usable`` of a ``Cohort``: :func:`usable_studies` of a split, those of validation in random order.

    Their loss compares within a batch, and neighbours in a data set are of one class.

    Args:
        rows: See :func:`usable_studies`.
        table: CSV, with ``{}`` in place of the split.
        num_workers: See there.
        seed: Of the order.
    """

    def of(studies: list[Study], split: str) -> list[Study]:
        if split == "validation":
            studies = random.Random(seed).sample(studies, len(studies))
        return usable_studies(studies, rows, table.replace("{}", split), num_workers)

    return of


class FrozenEmbedding:
    """Embeddings of a frozen tower, computed once per study and kept in the store.

    The address holds what the tower computes (`producer_of`) and its preprocessing, and each row's key the study and
    the content of its input: other weights, another pooling or another file never meet an old row.

    Args:
        modality: What the tower embeds.
        tower: The frozen tower.
        inputs: Images, or the text source for reports.
        folder: Where the stores lie.
        device: Where the tower runs.
    """

    def __init__(
        self,
        modality: str,
        tower: Tower,
        inputs: ImageRows | TextSource,
        folder: str | Path,
        device: torch.device | str = "cpu",
    ) -> None:
        self.modality = modality
        self.tower = tower
        self.inputs = inputs
        self.folder = folder
        self.device = device
        self._store: TensorStore | None = None

    def prepare(self, studies: Sequence[Study], batch_size: int = 16, num_workers: int = 0) -> None:
        """Embed the studies that are not in the store, in eval mode and fp32. Each process embeds its share."""
        self._store = self._open()
        share = studies[distributed.rank() :: distributed.world_size()]  # of all: what is missing changes meanwhile
        wanted = set(self._store.missing([self.key(study) for study in share]))
        own = [study for study in share if self.key(study) in wanted]
        self.tower.to(self.device).eval()
        with Progress(disable=not own or distributed.rank() > 0) as progress, torch.no_grad():
            task = progress.add_task(f"embedding {self.modality} (frozen tower, once)", total=len(own))
            for batch, inputs in self._batches(own, batch_size, num_workers):
                self._store.put([self.key(study) for study in batch], self.tower(inputs).cpu().numpy())
                progress.advance(task, len(batch))
                if distributed.world_size() == 1:
                    raise_if_requested()
        _wait_for_all()

    def embed(self, study: Study) -> None:
        """Embed one study and store its row, there or not: for a worker that was told what is missing."""
        store = self._opened()
        self.tower.to(self.device).eval()
        images = isinstance(self.inputs, ImageRows)
        batch = self.inputs(study)[None].to(self.device) if images else [self._text(study)]  # type: ignore[operator]
        with torch.no_grad():
            store.put([self.key(study)], self.tower(batch).cpu().numpy())

    def compact(self) -> None:
        """Merge the small files that `embed` leaves, one a study; see `TensorStore.compact`."""
        self._opened().compact()

    def address(self) -> str:
        """Folder of its rows, named by weights and preprocessing."""
        return str(self._opened().folder)

    def key(self, study: Study) -> tuple[str, str]:
        """Study and content of its input."""
        if isinstance(self.inputs, ImageRows):
            return self.inputs.key(study)
        return study.study_id, hashlib.sha256(self._text(study).encode()).hexdigest()

    def __call__(self, study: Study, draw: Draw | None = None) -> Tensor:
        """The stored ``E`` row, L2-normalised.

        Raises:
            KeyError: If :meth:`prepare` has not seen this study.
        """
        row = self._opened().get(self.key(study))
        if row is None:
            raise KeyError(
                f"{study.study_id}: no stored {self.modality} embedding; prepare the store for this split first"
            )
        return torch.from_numpy(np.array(row))

    def check(self, study: Study) -> None:
        """Refuse a study without the image or text.

        Raises:
            ValueError: With the study's id.
        """
        if isinstance(self.inputs, ImageRows):
            self.inputs.check(study)
        else:
            self._text(study)

    def blank(self, study: Study, draw: Draw | None = None) -> Tensor:
        """A row as of an untrained tower, drawn for the study: unit vectors where there is no row yet."""
        drawn = rng_for(0, "blank", self.modality, study.study_id).standard_normal(self.tower.row_shape)
        return functional.normalize(torch.from_numpy(drawn.astype(np.float32)), dim=-1)

    def _batches(self, studies: Sequence[Study], size: int, num_workers: int) -> Any:
        groups = [list(studies[start : start + size]) for start in range(0, len(studies), size)]
        if not isinstance(self.inputs, ImageRows):
            return ((group, [self._text(study) for study in group]) for group in groups)
        loader = DataLoader(
            _Reading(studies, self.inputs),
            batch_size=size,
            num_workers=usable_workers(num_workers),
            worker_init_fn=start_worker,
            generator=torch.Generator(),
        )
        return zip(groups, (images.to(self.device) for images in loader), strict=True) if studies else ()

    def _text(self, study: Study) -> str:
        (text,) = self.inputs.texts([study], rng_for(0, "frozen text"))  # type: ignore[union-attr]
        return text

    def _opened(self) -> TensorStore:
        if self._store is None:
            self._store = self._open()
        return self._store

    def _open(self) -> TensorStore:
        made_by = f"standardise {STANDARDISE_VERSION}/" if isinstance(self.inputs, ImageRows) else ""
        return TensorStore(
            self.folder,
            producer=made_by + producer_of(self.tower),
            preprocessing=self.tower.encoder.input.digest(),  # type: ignore[union-attr, operator]
            shape=self.tower.row_shape,
        )


class _Making(TorchDataset[dict[str, Any]]):
    """Studies with the images that their stores lack."""

    def __init__(
        self,
        studies: Sequence[Study],
        rows: Sequence[ImageRows],
        wanted: Mapping[str, set[tuple[str, str]]],
        go_on: bool,
    ) -> None:
        self.studies, self.rows, self.wanted, self.go_on = studies, rows, wanted, go_on

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> dict[str, Any]:
        study = self.studies[index]
        missing = [row for row in self.rows if row.key(study) in self.wanted[row.modality]]
        try:
            return {"index": index, **{row.modality: row.make(study) for row in missing}}
        except (ValueError, OSError) as error:  # what readers raise for a bad file
            if not self.go_on:
                raise
            return {"index": index, "reason": str(error)}


class _Reading(TorchDataset[Tensor]):
    """Standardised images of one modality."""

    def __init__(self, studies: Sequence[Study], rows: ImageRows) -> None:
        self.studies, self.rows = studies, rows

    def __len__(self) -> int:
        return len(self.studies)

    def __getitem__(self, index: int) -> Tensor:
        return self.rows(self.studies[index])


def _wait_for_all() -> None:
    distributed.gather_objects(None)

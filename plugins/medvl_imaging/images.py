"""Standardised images of studies, kept on disk once made."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch
from torch import Tensor

from medvl_core.engine.loading import Draw
from medvl_core.specs import ImageInput
from medvl_core.study import Study
from medvl_imaging.store.tensors import TensorStore
from medvl_imaging.transforms import standardise

__all__ = ["ImageRows", "check_images"]


def check_images(images: Tensor, encoder: Any) -> None:
    """Refuse a batch that does not have the shape ``B C *size`` of ``encoder.input``.

    Raises:
        ValueError: With both shapes.
    """
    expected = (encoder.input.channels, *encoder.input.size)
    if tuple(images.shape[1:]) != expected:
        raise ValueError(
            f"{type(encoder).__name__}: images have the shape {tuple(images.shape)}, it reads {('B', *expected)}; "
            "standardise them with its .input, or build it for this size"
        )


class ImageRows:
    """Standardised images of one modality, kept on disk once made.

    Args:
        modality: Which of the study's images.
        input: Constants of the encoder that reads them.
        store: Keeps standardised images (float16). ``None`` makes them anew each time.
        augmentation: Random MONAI transform of a ``C *spatial`` tensor; seeded per (epoch, study).
    """

    def __init__(
        self,
        modality: str,
        input: ImageInput,
        store: TensorStore | None = None,
        augmentation: Callable[[Tensor], Tensor] | None = None,
    ) -> None:
        self.modality = modality
        self.input = input
        self.store = store
        self.augmentation = augmentation
        self._standardise = standardise(input)

    def key(self, study: Study) -> tuple[str, str]:
        """Address of the study's image in the store."""
        return study.study_id, _source(study, self.modality).fingerprint()

    def make(self, study: Study) -> Tensor:
        """Read and standardise the image, ``C *spatial`` float32.

        Raises:
            ValueError: If the image does not fit the encoder. The message starts with the study's id.
        """
        image = _source(study, self.modality).load()
        try:
            return torch.as_tensor(self._standardise(image))
        except RuntimeError as error:  # MONAI's Compose wraps what a step raises
            if isinstance(error.__cause__, ValueError):
                raise ValueError(f"{study.study_id}: {error.__cause__}") from error
            raise

    def check(self, study: Study) -> None:
        """Refuse a study without the image.

        Raises:
            ValueError: With the study's id and the images that it has.
        """
        _source(study, self.modality)

    def augmented(self, augmentation: Callable[[Tensor], Tensor] | None) -> ImageRows:
        """The same images from the same store, augmented."""
        return ImageRows(self.modality, self.input, self.store, augmentation)

    def __call__(self, study: Study, draw: Draw | None = None) -> Tensor:
        """The image, augmented when ``draw`` is random."""
        image = self._stored(study)
        if image is None:
            image = self.make(study)
            if self.store is not None:  # as precise as a stored one: what is made of it does not depend on the cache
                image = torch.from_numpy(image.numpy().astype(self.store.dtype).astype(np.float32))
        if self.augmentation is not None and draw is not None and draw.random:
            if hasattr(self.augmentation, "set_random_state"):
                self.augmentation.set_random_state(seed=int(draw.rng(self.modality).integers(2**31)))
            image = self.augmentation(image)
            image = image.as_tensor() if hasattr(image, "as_tensor") else image  # MONAI's MetaTensor does not collate
        return image.float()

    def _stored(self, study: Study) -> Tensor | None:
        if self.store is None:
            return None
        try:
            return torch.from_numpy(np.array(self.store.get(self.key(study)), dtype=np.float32))
        except KeyError:  # not made yet, or damaged on disk: made anew
            return None


def _source(study: Study, modality: str) -> Any:
    if modality not in study.images:
        raise ValueError(f"{study.study_id}: has no {modality} image, only {sorted(study.images)}")
    return study.images[modality]

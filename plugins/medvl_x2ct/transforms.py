"""The augmentation of X2CT-CLIP that MONAI lacks, as a MONAI transform."""

from __future__ import annotations

import numpy as np
import torch
from monai.transforms import RandomizableTransform
from torch import Tensor

__all__ = ["RandClahe"]

_BINS = 256


class RandClahe(RandomizableTransform):
    """Equalise the histogram of each tile, with limited contrast: scikit-image's CLAHE under OpenCV's clip limit.

    Args:
        prob: Chance per image.
        clip_limit: As OpenCV and albumentations count: multiples of the mean count of a tile's histogram bin.
        tiles: Tiles along each axis.

    Raises:
        ValueError: If the chance is none, or the limit or the tiles are not positive.

    References:
        Zuiderveld, Contrast limited adaptive histogram equalization, 1994, doi:10.1016/B978-0-12-336156-1.50061-6;
        X2CT-CLIP's training uses it with limit 4, arXiv:2503.02162.
    """

    def __init__(self, prob: float = 0.5, clip_limit: float = 4.0, tiles: int = 8) -> None:
        if not 0 <= prob <= 1 or not clip_limit > 0 or tiles < 1:
            raise ValueError(
                f"RandClahe: prob is {prob}, clip_limit {clip_limit}, tiles {tiles}; "
                "give a chance in [0, 1], a positive limit and at least one tile"
            )
        super().__init__(prob)
        self.clip_limit, self.tiles = clip_limit, tiles

    def __call__(self, image: Tensor) -> Tensor:
        """Equalise, or not.

        Args:
            image: ``1 H W`` in [0, 1].

        Returns:
            ``1 H W`` in [0, 1], the whole range used.

        Raises:
            ValueError: If the image has another shape or range.
        """
        self.randomize(None)
        if not self._do_transform:
            return image
        return torch.from_numpy(self._equalised(np.asarray(image, dtype=np.float64))).to(torch.float32)

    def _equalised(self, image: np.ndarray) -> np.ndarray:
        from skimage.exposure import equalize_adapthist

        low, high = image.min(), image.max()
        if image.ndim != 3 or len(image) != 1 or low < -1e-3 or high > 1 + 1e-3:
            raise ValueError(
                f"RandClahe: image of shape {image.shape}, values {low:g} to {high:g}; give 1 H W in [0, 1]"
            )
        if low == high:
            return image
        tile = [max(n // self.tiles, 1) for n in image.shape[1:]]
        return equalize_adapthist(image[0].clip(0, 1), tile, self.clip_limit / _BINS, _BINS)[None]

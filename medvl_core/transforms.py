"""From an ``Image`` to the tensor an encoder was made for, by the constants of its ``ImageInput`` and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from torch import Tensor

from medvl_core.resample import Taps, linear_taps, nearest_taps, resample_grid
from medvl_core.specs import ImageInput
from medvl_core.study import Image

if TYPE_CHECKING:
    from monai.transforms import Compose

__all__ = ["Orient", "RepeatChannels", "Resample", "Window", "standardise", "standardise_regions"]


@dataclass(frozen=True, slots=True)
class Orient:
    """Permute and flip a volume's axes to ``axcodes``. An oblique scan keeps its own axes."""

    axcodes: str

    def __call__(self, image: Image) -> Image:
        """A view, not a copy; its affine keeps the spacing of the new axes only.

        Raises:
            ValueError: If the image is no volume or has no affine.
        """
        if image.array.ndim != 3 or image.affine is None:
            has = "no affine" if image.affine is None else "an affine"
            raise ValueError(
                f"image of shape {image.array.shape} with {has} cannot be oriented; give a volume X Y Z with one"
            )
        change = ornt_transform(io_orientation(image.affine), axcodes2ornt(tuple(self.axcodes)))
        spacing = np.empty(3)
        spacing[change[:, 0].astype(int)] = np.linalg.norm(image.affine[:3, :3], axis=0)
        return Image(apply_orientation(image.array, change), np.diag([*spacing, 1.0]))


@dataclass(frozen=True, slots=True)
class Window:
    """Clip to ``window`` (``None``: the image's own minimum and maximum) and map it to ``output_range``, float32."""

    window: tuple[float, float] | None
    output_range: tuple[float, float]

    def __call__(self, image: Image) -> Image:
        """The image in the units of ``output_range``; a constant image without a window becomes its lower bound."""
        low, high = self.window or (float(image.array.min()), float(image.array.max()))
        scale = (self.output_range[1] - self.output_range[0]) / max(high - low, np.finfo(np.float32).tiny)
        # One pass that also copies: a tensor cannot hold the negative strides of a flipped view.
        array = np.clip(image.array, low, high, dtype=np.float32)
        array -= np.float32(low)
        array *= np.float32(scale)
        array += np.float32(self.output_range[0])
        return replace(image, array=array)


@dataclass(frozen=True, slots=True)
class Resample:
    """Resample straight onto the output grid: scaled, centre-cropped and padded in one step.

    Args:
        size: Output voxels per axis.
        spacing_mm: Spacing of the scaled image, or ``None`` to fit it (see ``ImageInput.spacing_mm``).
        pad_value: Value outside the image.
        nearest: Nearest neighbour for label maps.

    Note:
        With ``spacing_mm`` the scaled size is ``floor(old * spacing / spacing_mm)`` and the interpolation plain linear,
        as in the published CT preprocessings (CT-CLIP, Merlin), whose weights expect it. Without it, an axis that
        shrinks is antialiased: a 512-voxel axis fitted to 96 would otherwise skip three voxels of five.
        An odd voxel of crop or padding falls at the end of the axis.
    """

    size: tuple[int, ...]
    spacing_mm: tuple[float, ...] | None
    pad_value: float
    nearest: bool = False

    def __call__(self, image: Image) -> Tensor:
        """``size`` for one channel, ``H W 3`` stays last for a colour radiograph; dtype of the image."""
        x = _tensor(image.array)
        slots = [self._axis(n, new, out) for n, new, out in zip(x.shape, self._scaled(image), self.size, strict=False)]
        result = torch.full((*self.size, *x.shape[len(self.size) :]), self.pad_value, dtype=x.dtype)
        inside = result[tuple(part for _, part in slots)]
        order = sorted(range(len(self.size)), key=x.stride, reverse=True)  # walk the memory in its own order
        rest = list(range(len(self.size), x.ndim))
        resample_grid(x.permute(order + rest), tuple(slots[d][0] for d in order), inside.permute(order + rest))
        return result

    def _scaled(self, image: Image) -> list[int]:
        shape = image.array.shape[: len(self.size)]
        if self.spacing_mm is not None:
            if image.affine is None:
                raise ValueError(
                    f"image of shape {shape} has no spacing, but the input is {self.spacing_mm} mm; "
                    "give one with an affine"
                )
            spacing = np.linalg.norm(image.affine[:3, : len(shape)], axis=0)
            # 1e-4: spacings are stored as float32, and 480 voxels must not become 479.
            return [max(int(n * s / t + 1e-4), 1) for n, s, t in zip(shape, spacing, self.spacing_mm, strict=True)]
        if len(self.size) == 3:
            return list(self.size)
        cover = max(out / n for n, out in zip(shape, self.size, strict=True))
        return [max(round(n * cover), out) for n, out in zip(shape, self.size, strict=True)]

    def _axis(self, n_in: int, scaled: int, n_out: int) -> tuple[Taps, slice]:
        """Taps of the output voxels inside the image, and where they lie."""
        taps = (
            nearest_taps(n_in, scaled) if self.nearest else linear_taps(n_in, scaled, antialias=self.spacing_mm is None)
        )
        cut, pad = max(scaled - n_out, 0) // 2, max(n_out - scaled, 0) // 2
        kept = min(scaled, n_out)
        return taps[cut : cut + kept], slice(pad, pad + kept)


@dataclass(frozen=True, slots=True)
class RepeatChannels:
    """Add the channel axis in front, repeated to ``channels``."""

    channels: int
    spatial_dims: int

    def __call__(self, x: Tensor) -> Tensor:
        """``C *size``, contiguous. A colour image keeps its three channels, or is averaged to one.

        Raises:
            ValueError: If the image's channels fit neither.
        """
        if x.ndim == self.spatial_dims:
            return x.expand(self.channels, *x.shape).contiguous()
        x = x.movedim(-1, 0)
        if self.channels == 1:
            return x.mean(0, keepdim=True)
        if len(x) != self.channels:
            raise ValueError(
                f"image has {len(x)} channels, the encoder reads {self.channels}; give a grey image, it is repeated"
            )
        return x.contiguous()


def standardise(input: ImageInput) -> Compose:
    """The preprocessing of an encoder as a MONAI ``Compose`` of small callables, ``Image`` to float32 tensor.

    Volumes: orientation, window, resampling with crop and padding, channels. The same scan stored in any of the 48
    orientations gives the same tensor. Radiographs: window, resampling with centre crop, channels.
    ``input.digest()`` identifies it.

    Args:
        input: The constants.

    Returns:
        Callable on an ``Image``; gives ``C X Y Z`` or ``C H W``.
    """
    steps: list[Callable[[Any], Any]] = [] if input.axcodes is None else [Orient(input.axcodes)]
    steps += [
        Window(input.window_hu, input.output_range),
        Resample(input.size, input.spacing_mm, input.pad_value),
        RepeatChannels(input.channels, len(input.size)),
    ]
    return _compose(steps)


def standardise_regions(input: ImageInput) -> Compose:
    """The same geometry for a label map on the image's grid: nearest neighbour, integer labels kept, padding 0.

    Args:
        input: The constants of the encoder that reads the image.

    Returns:
        Callable on an ``Image`` of integer labels; gives ``1 X Y Z`` or ``1 H W`` in its dtype.
    """
    steps: list[Callable[[Any], Any]] = [] if input.axcodes is None else [Orient(input.axcodes)]
    return _compose(
        [*steps, Resample(input.size, input.spacing_mm, 0, nearest=True), RepeatChannels(1, len(input.size))]
    )


def _compose(steps: list[Callable[[Any], Any]]) -> Compose:
    from monai.transforms import Compose  # seconds to import

    return Compose(steps)


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor over the array; copied when it is flipped or read-only, because tensors can be neither."""
    if any(s < 0 for s in array.strides) or not array.flags.writeable:
        array = array.copy(order="K")
    return torch.from_numpy(array)

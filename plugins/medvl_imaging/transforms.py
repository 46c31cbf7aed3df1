"""From an ``Image`` to the tensor an encoder was made for, by the constants of its ``ImageInput`` and nothing else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import TYPE_CHECKING, Any, Literal

import numpy as np
import torch
from nibabel.orientations import apply_orientation, axcodes2ornt, io_orientation, ornt_transform
from torch import Tensor

from medvl_core.specs import ImageInput
from medvl_core.study import Image
from medvl_imaging.resample import Taps, cubic_taps, linear_taps, nearest_taps, resample_grid

if TYPE_CHECKING:
    from monai.transforms import Compose

__all__ = [
    "STANDARDISE_VERSION",
    "Normalise",
    "Orient",
    "RepeatChannels",
    "Resample",
    "Window",
    "standardise",
    "standardise_regions",
]

STANDARDISE_VERSION = 1
"""Part of the address of all that is kept of standardised images: raise it when the same image and ``ImageInput`` give
other values than before."""


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
    """Clip to ``window`` and map it to ``output_range``, float32.

    Args:
        window: ``None`` takes the image's own minimum and maximum, or what ``deviations`` says.
        output_range: Values of its ends.
        deviations: The window is the image's mean ± this many standard deviations.
    """

    window: tuple[float, float] | None
    output_range: tuple[float, float]
    deviations: float | None = None

    def __call__(self, image: Image) -> Image:
        """The image in the units of ``output_range``; a constant image without a window becomes its lower bound.

        Raises:
            ValueError: If most of an image without geometry lies above the window: 16 bits read as 8.
        """
        if self.window and image.affine is None and (mean := float(image.array.mean())) > self.window[1]:
            raise ValueError(
                f"image of mean {mean:g} is mostly above the window {self.window} and would turn white; "
                "build the encoder with window=None, which takes each image's own range"
            )
        return replace(image, array=self.bounded(image.array)(image.array))

    def bounded(self, array: np.ndarray) -> Callable[[np.ndarray], np.ndarray]:
        """The mapping with the bounds of ``array``, for its parts; each result is a new array."""
        low, high = self.window or self._own(array)
        scale = (self.output_range[1] - self.output_range[0]) / max(high - low, float(np.finfo(np.float32).tiny))

        def apply(part: np.ndarray) -> np.ndarray:
            part = np.clip(part, low, high, dtype=np.float32)
            part -= np.float32(low)
            part *= np.float32(scale)
            part += np.float32(self.output_range[0])
            return part

        return apply

    def _own(self, array: np.ndarray) -> tuple[float, float]:
        if self.deviations is None:
            return float(array.min()), float(array.max())
        mean = float(array.mean(dtype=np.float64))
        # part by part: a volume is never copied as a whole
        variance = float(np.mean([np.square(np.subtract(part, mean, dtype=np.float64)).mean() for part in array]))
        return mean - self.deviations * variance**0.5, mean + self.deviations * variance**0.5


@dataclass(frozen=True, slots=True)
class Resample:
    """Resample straight onto the output grid: scaled, centre-cropped and padded in one step.

    Args:
        size: Output voxels per axis.
        spacing_mm: Spacing of the scaled image, or ``None`` to fit it (see ``ImageInput.spacing_mm``).
        pad_value: Value outside the image.
        nearest: Nearest neighbour for label maps.
        fit: See ``ImageInput.fit``.
        cubic: Cubic instead of linear; overshoots at edges.
        window: Applied first, to each slice on its way: a volume is never copied as a whole.

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
    fit: Literal["cover", "contain", "slices"] = "cover"
    cubic: bool = False
    window: Window | None = None

    def __call__(self, image: Image) -> Tensor:
        """``size`` for one channel, ``H W 3`` stays last for a colour radiograph; dtype of image or window."""
        x, dims = image.array, len(self.size)
        sampled = [self.fit == "slices" and d == 2 for d in range(dims)]
        sizes = zip(x.shape, self._scaled(image), self.size, sampled, strict=False)
        slots = [self._axis(*axis) for axis in sizes]
        dtype = torch.float32 if self.window else _tensor(x[(slice(1),) * dims]).dtype
        result = torch.full((*self.size, *x.shape[dims:]), self.pad_value, dtype=dtype)
        inside = result[tuple(part for _, part in slots)]
        order = sorted(range(dims), key=lambda d: abs(x.strides[d]), reverse=True)  # walk the memory in its own order
        order += range(dims, x.ndim)
        window = self.window.bounded(x) if self.window else None
        resample_grid(
            x.transpose(order),
            tuple(slots[d][0] for d in order[:dims]),
            inside.permute(order),
            lambda part: _tensor(window(part) if window else part),
        )
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
        if self.fit == "slices":
            return self._fitted_slices(image)
        if len(self.size) == 3:
            return list(self.size)
        ratios = [out / n for n, out in zip(shape, self.size, strict=True)]
        if self.fit == "contain":
            return [max(int(n * min(ratios) + 1e-6), 1) for n in shape]
        if self.cubic:  # CLIP's own preprocessing cuts off the fraction
            return [max(int(n * max(ratios) + 1e-6), out) for n, out in zip(shape, self.size, strict=True)]
        return [max(round(n * max(ratios)), out) for n, out in zip(shape, self.size, strict=True)]

    def _fitted_slices(self, image: Image) -> list[int]:
        affine = np.eye(4) if image.affine is None else image.affine
        extent = (np.linalg.norm(affine[:3, :3], axis=0) * image.array.shape[:3])[:2]
        ratio = min(np.array(self.size[:2]) / extent)
        return [*(max(int(n * ratio + 1e-4), 1) for n in extent), min(image.array.shape[2], self.size[2])]

    def _axis(self, n_in: int, scaled: int, n_out: int, sampled: bool) -> tuple[Taps, slice]:
        """Taps of the output voxels inside the image, and where they lie."""
        if sampled:  # whole slices, evenly spread; blank ones follow
            return nearest_taps(n_in, scaled), slice(scaled)
        if self.nearest:
            taps = nearest_taps(n_in, scaled)
        elif self.cubic:
            taps = cubic_taps(n_in, scaled)
        else:
            taps = linear_taps(n_in, scaled, antialias=self.spacing_mm is None)
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


@dataclass(frozen=True, slots=True)
class Normalise:
    """Subtract ``mean`` from each channel and divide by ``std``."""

    mean: tuple[float, ...]
    std: tuple[float, ...]

    def __call__(self, x: Tensor) -> Tensor:
        """``C *size``, in place."""
        shape = (-1, *[1] * (x.ndim - 1))
        return x.sub_(torch.tensor(self.mean).view(shape)).div_(torch.tensor(self.std).view(shape))


def standardise(input: ImageInput) -> Compose:
    """The preprocessing of an encoder as a MONAI ``Compose`` of small callables, ``Image`` to float32 tensor.

    Volumes: orientation, window, resampling with crop and padding, channels. The same scan stored in any of the 48
    orientations gives the same tensor. Radiographs: window, resampling with centre crop or padding, channels. Both end
    with mean and standard deviation where the input has them.
    ``input.digest()`` and `STANDARDISE_VERSION` identify it.

    Args:
        input: The constants.

    Returns:
        Callable on an ``Image``; gives ``C X Y Z`` or ``C H W``.
    """
    window = Window(input.window_hu, input.output_range, input.window_sd)
    resample = Resample(
        input.size, input.spacing_mm, input.pad_value, fit=input.fit, cubic=input.interpolation == "cubic"
    )
    steps: list[Callable[[Any], Any]] = [window, resample]
    if input.axcodes is not None:
        steps = [Orient(input.axcodes), replace(resample, window=window)]
    steps.append(RepeatChannels(input.channels, len(input.size)))
    if input.interpolation == "cubic":  # its overshoots are cut off, as in an 8-bit image
        steps.append(partial(torch.clamp, min=input.output_range[0], max=input.output_range[1]))
    if input.mean is not None and input.std is not None:
        steps.append(Normalise(input.mean, input.std))
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
        [
            *steps,
            Resample(
                input.size, input.spacing_mm, 0, nearest=True, fit=input.fit, cubic=input.interpolation == "cubic"
            ),
            RepeatChannels(1, len(input.size)),
        ]
    )


def _compose(steps: list[Callable[[Any], Any]]) -> Compose:
    from monai.transforms import Compose  # seconds to import

    return Compose(steps)


def _tensor(array: np.ndarray) -> Tensor:
    """A tensor over the array; copied when it is flipped or read-only, because tensors can be neither."""
    if any(s < 0 for s in array.strides) or not array.flags.writeable:
        array = array.copy(order="K")
    return torch.from_numpy(array)

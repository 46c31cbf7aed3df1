"""What a plugin offers, as frozen data: one spec per component, importable without torch."""

from __future__ import annotations

import dataclasses
import hashlib
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass, field
from types import MappingProxyType
from typing import ClassVar, Literal

__all__ = [
    "KINDS",
    "PLUGIN_API",
    "ComponentSpec",
    "DatasetSpec",
    "EncoderSpec",
    "EvaluatorSpec",
    "ImageInput",
    "LossSpec",
    "Metric",
    "PoolingSpec",
    "TextInput",
    "TextSourceSpec",
]

PLUGIN_API = "1.0"
"""Version of hooks and specs. A plugin module states the one it was written for as ``MEDVL_API``; majors must match."""

_NAME = re.compile(r"[a-z][a-z0-9_]*")
_FACTORY = re.compile(r"[A-Za-z_][\w.]*:[A-Za-z_]\w*")


def _digest(value: object) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True, separators=(",", ":")).encode()).hexdigest()


@dataclass(frozen=True, slots=True, kw_only=True)
class ImageInput:
    """The image an encoder was made for: its preprocessing constants, in one place.

    Args:
        channels: Channels the encoder reads; a one-channel image is repeated to fill them.
        size: Voxels ``(X, Y, Z)`` of a volume in the axes of ``axcodes``, or pixels ``(H, W)`` of a radiograph.
        axcodes: Orientation of a volume's axes, e.g. ``"RAS"``. ``None`` for 2D images.
        spacing_mm: Voxel spacing to resample to. ``None`` fits the image into ``size``: each axis is scaled so that the
            image fills it (volumes), or as ``fit`` says (radiographs).
        window_hu: Intensities that map to ``output_range``; values outside are clipped. ``None`` uses the image's own
            minimum and maximum, as is usual for radiographs.
        window_sd: In place of ``window_hu``: the window is the image's own mean ± this many standard deviations, that
            is a z-score, clipped, and mapped to ``output_range``.
        output_range: Range of the values the encoder reads.
        pad_value: Value of voxels outside the image, in the units of ``output_range``.
        fit: 2D images: ``"cover"`` scales the shorter side and crops the longer one, ``"contain"`` scales the longer
            side and pads the shorter one. Volumes: ``"slices"`` takes at most ``size[2]`` evenly spread slices as they
            are, fits each into ``size[:2]`` as ``"contain"`` does, in millimetres, and appends blank ones to fewer.
        interpolation: 2D images and slices: ``"linear"`` or ``"cubic"``, both antialiased; cubic is what CLIP was
            trained with.
        mean: Subtracted from each channel at the end, in the units of ``output_range``; with ``std``.
        std: Each channel is divided by it.
    """

    channels: int
    size: tuple[int, ...]
    axcodes: str | None = None
    spacing_mm: tuple[float, ...] | None = None
    window_hu: tuple[float, float] | None = None
    window_sd: float | None = None
    output_range: tuple[float, float] = (-1.0, 1.0)
    pad_value: float = -1.0
    fit: Literal["cover", "contain", "slices"] = "cover"
    interpolation: Literal["linear", "cubic"] = "linear"
    mean: tuple[float, ...] | None = None
    std: tuple[float, ...] | None = None

    def __post_init__(self) -> None:
        if len(self.size) not in (2, 3) or any(int(n) < 1 for n in self.size):
            raise ValueError(f"ImageInput.size is {self.size}; give (H, W) or (X, Y, Z), each at least 1")
        if (self.axcodes is None) != (len(self.size) == 2):
            raise ValueError(
                f"ImageInput.axcodes is {self.axcodes!r} for size {self.size}; volumes need it, 2D images have none"
            )
        if self.spacing_mm is not None and len(self.spacing_mm) != len(self.size):
            raise ValueError(f"ImageInput.spacing_mm {self.spacing_mm} and size {self.size} differ in length")
        if self.window_hu is not None and not self.window_hu[0] < self.window_hu[1]:
            raise ValueError(f"ImageInput.window_hu is {self.window_hu}; the lower bound must be below the upper")
        if self.window_sd is not None and (self.window_hu is not None or not self.window_sd > 0):
            raise ValueError(
                f"ImageInput.window_sd is {self.window_sd} and window_hu {self.window_hu}; "
                "give one of the two, deviations above 0"
            )
        if self.fit not in ("cover", "contain", "slices") or self.interpolation not in ("linear", "cubic"):
            raise ValueError(
                f"ImageInput.fit is {self.fit!r} and interpolation {self.interpolation!r}; "
                "give cover, contain or slices, and linear or cubic"
            )
        if self.fit == "slices" and (len(self.size) == 2 or self.spacing_mm is not None):
            raise ValueError("ImageInput.fit is 'slices', which is for volumes without spacing_mm; choose another fit")
        if len(self.size) == 3 and self.fit != "slices" and (self.fit, self.interpolation) != ("cover", "linear"):
            raise ValueError("ImageInput.fit and interpolation are for 2D images; leave them out for a volume")
        lengths = {len(values) for values in (self.mean, self.std) if values is not None}
        if len(lengths - {self.channels}) or (self.mean is None) != (self.std is None) or min(self.std or (1,)) <= 0:
            raise ValueError(
                f"ImageInput.mean {self.mean} and std {self.std} do not fit {self.channels} channel(s); "
                "give both, one value per channel, std positive"
            )

    def digest(self) -> str:
        """SHA-256 of the constants: stored with the weights of a `Tower` and in the embedding store."""
        return _digest(dataclasses.asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class TextInput:
    """The text an encoder was made for.

    Args:
        max_length: Tokens kept, special tokens included.
        lower_case: Whether the tokeniser folds case.
    """

    max_length: int
    lower_case: bool = True

    def digest(self) -> str:
        """SHA-256 of the constants."""
        return _digest(dataclasses.asdict(self))


@dataclass(frozen=True, slots=True, kw_only=True)
class Metric:
    """One number an evaluator reports: its key, its unit (``"1"`` for a share) and its direction."""

    name: str
    unit: str = "1"
    higher_is_better: bool = True


@dataclass(frozen=True, slots=True, kw_only=True)
class ComponentSpec:
    """What every component states about itself.

    Args:
        name: Lower snake case, unique within its plugin and kind.
        factory: ``"package.module:callable"``; the module is imported on first use only.
        summary: One line, shown by ``medvl plugins``.
        source: DOI, arXiv id, ``repository@commit`` or ``"medvl"`` for work of this project.
        license: SPDX identifier of the code. Weights carry their own.
        tiny: Keyword arguments that build a small instance without weights: tests, docs and checks use it.

    Raises:
        ValueError: If a field breaks its rule; the message names the component and the field.
    """

    kind: ClassVar[str] = ""

    name: str
    factory: str
    summary: str
    source: str
    license: str
    tiny: Mapping[str, object] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not _NAME.fullmatch(self.name):
            raise ValueError(f"component name {self.name!r} is not lower snake case")
        if not _FACTORY.fullmatch(self.factory):
            raise ValueError(f"{self.name}: factory {self.factory!r} is not of the form 'package.module:callable'")
        for text in ("summary", "source", "license"):
            value = getattr(self, text)
            if not isinstance(value, str) or not value.strip() or "\n" in value:
                raise ValueError(f"{self.name}: {text} must be one non-empty line, got {value!r}")
        object.__setattr__(self, "tiny", MappingProxyType(dict(self.tiny)))


@dataclass(frozen=True, slots=True, kw_only=True)
class EncoderSpec(ComponentSpec):
    """An encoder: ``forward(x) -> EncoderOutput``.

    Args:
        modality: ``"ct"``, ``"cxr"``, ``"mri"``, ``"report"`` or ``"any"``.
        spatial_dims: 0 for text, 2 for radiographs and slices, 3 for volumes.
        input: Preprocessing constants. An instance may override them and then carries its own ``.input``.
        embed_dim: Width F of its tokens with default arguments. Every instance carries its own ``.embed_dim``.
    """

    kind: ClassVar[str] = "encoder"

    modality: str
    spatial_dims: Literal[0, 2, 3]
    input: ImageInput | TextInput
    embed_dim: int


@dataclass(frozen=True, slots=True, kw_only=True)
class PoolingSpec(ComponentSpec):
    """A pooling: ``"global"`` turns ``B N F`` tokens into ``B F``, ``"region"`` features and regions into ``B R F``."""

    kind: ClassVar[str] = "pooling"

    scope: Literal["global", "region"]
    order_sensitive: bool = False


@dataclass(frozen=True, slots=True, kw_only=True)
class LossSpec(ComponentSpec):
    """A loss over an ``AlignmentBatch``: ``modalities`` it was made for (empty: any) and the extras it ``needs``."""

    kind: ClassVar[str] = "loss"

    modalities: tuple[str, ...] = ()
    needs: tuple[str, ...] = ()


@dataclass(frozen=True, slots=True, kw_only=True)
class TextSourceSpec(ComponentSpec):
    """Turns studies into texts: ``texts(studies, rng) -> list[str]``."""

    kind: ClassVar[str] = "text_source"

    produces: Literal["report", "findings", "label_prompts", "region_prompts"]


@dataclass(frozen=True, slots=True, kw_only=True)
class EvaluatorSpec(ComponentSpec):
    """Collects outputs and reports metrics: ``reset``, ``update``, ``compute``."""

    kind: ClassVar[str] = "evaluator"

    task: str
    metrics: tuple[Metric, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class DatasetSpec(ComponentSpec):
    """Turns a folder on disk (or a generator) into studies: ``studies(split) -> list[Study]``.

    Args:
        modalities: Images it can give, e.g. ``("ct", "cxr")``.
        has: Which of ``"reports"``, ``"labels"``, ``"regions"`` its studies carry.
        data_license: Licence of the data.
        url: Where the data are described.
    """

    kind: ClassVar[str] = "dataset"

    modalities: tuple[str, ...]
    has: tuple[str, ...]
    data_license: str
    url: str


KINDS: Mapping[str, type[ComponentSpec]] = MappingProxyType(
    {spec.kind: spec for spec in (EncoderSpec, PoolingSpec, LossSpec, TextSourceSpec, EvaluatorSpec, DatasetSpec)}
)
"""Component kind → spec class. ``manager.HOOKS`` names the hook of each."""

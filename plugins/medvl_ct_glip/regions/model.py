"""Alignment below the level of the study: every visible region of a scan is a pair with its texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from medvl_core.engine.alignment import keep_input
from medvl_core.errors import ComponentError
from medvl_core.manager import registry
from medvl_core.protocols import AlignmentBatch
from medvl_ct_glip.regions.texts import RegionTexts

__all__ = ["RegionAlignmentModel", "RegionOutput", "RegionTower", "on_grid", "voxels_of"]


@dataclass(frozen=True, slots=True)
class RegionOutput:
    """What a region tower gives.

    Args:
        embedding: Unit vectors ``B R E``, fp32; regions without voxels give no meaningful vector.
        voxels: Cells of each region at the resolution of the features, ``B R``.
        scan: Unit vectors of the whole scan, ``B E``: the mean over all cells through the same head.
        logits: Segmentation logits of the encoder, finest first, or ``None``.
    """

    embedding: Tensor
    voxels: Tensor
    scan: Tensor
    logits: tuple[Tensor, ...] | None


class RegionTower(nn.Module):
    """Encoder → region pooling → two-layer head → L2 norm.

    Its ``state_dict`` holds the digest of the encoder's preprocessing but for the patch size, checked on loading: other
    voxels than those of training would give wrong numbers without a word.

    Args:
        encoder: Gives ``features``.
        pooling: Region pooling.
        embed_dim: Width E of the shared space: that of the text embeddings.
        hidden: Width of the head's hidden layer.

    Raises:
        ComponentError: If the pooling is a global one.
    """

    def __init__(self, encoder: nn.Module, pooling: nn.Module, embed_dim: int = 768, hidden: int = 768) -> None:
        super().__init__()
        _check_scope(getattr(pooling, "component", None))
        self.encoder = encoder
        self.pooling = pooling
        self.embed_dim = embed_dim
        self.made_of = {"encoder": encoder, "pooling": pooling, "embed_dim": embed_dim, "hidden": hidden}
        width = int(encoder.embed_dim)  # type: ignore[arg-type]
        self.head = nn.Sequential(nn.Linear(width, hidden), nn.ReLU(), nn.Linear(hidden, embed_dim))
        keep_input(self, any_size=True)

    def forward(self, volume: Tensor, regions: Tensor) -> RegionOutput:
        """Embed every region of a batch.

        Args:
            volume: ``B C X Y Z``.
            regions: Label map ``B X Y Z``.
        """
        output = self.encoder(volume)
        if output.features is None:
            raise ValueError(f"{type(self.encoder).__name__} gives no feature map; regions need one")
        pooled = self.pooling(output.features, regions)
        return RegionOutput(
            embedding=self.embed(pooled),
            voxels=voxels_of(on_grid(output.features, regions), pooled.shape[1]),
            scan=self.embed(output.tokens.mean(dim=1)),
            logits=output.logits,
        )

    def embed(self, pooled: Tensor) -> Tensor:
        """Unit vectors ``... E`` of pooled features ``... F``, fp32."""
        return functional.normalize(self.head(pooled).float(), dim=-1)


def _check_scope(pooling: str | None) -> None:
    if pooling is not None and registry().find("pooling", pooling).spec.scope != "region":  # type: ignore[attr-defined]
        regional = [one.full_name for one in registry().components("pooling") if one.spec.scope == "region"]  # type: ignore[attr-defined]
        raise ComponentError(f"{pooling} pools whole images; organs need a region pooling: {', '.join(regional)}")


def on_grid(features: Tensor, regions: Tensor) -> Tensor:
    """A label map ``B X Y Z`` on the grid of ``features`` ``B F X' Y' Z'``: the nearest cells of a finer one."""
    if regions.shape[1:] == features.shape[2:]:
        return regions
    resampled = functional.interpolate(regions[:, None].float(), features.shape[2:], mode="nearest-exact")
    return resampled[:, 0].to(regions.dtype)


def voxels_of(regions: Tensor, n_regions: int) -> Tensor:
    """Voxels of each region, ``B R`` int64: 0 flags an absent one."""
    flat = regions.flatten(1).long()
    return torch.stack([row.bincount(minlength=n_regions + 1)[1:] for row in flat])


class RegionAlignmentModel(nn.Module):
    r"""A region tower, the fixed embeddings of region names and dictionary texts, and the temperature.

    Args:
        tower: Embeds regions of ``image``.
        texts: Names of the regions, the ``"anatomy"`` texts, and the dictionary; for level ``"region"``.
        temperature: τ, fixed.
        level: ``"region"`` makes a pair of every visible region; ``"scan"`` one of every scan and its report, for the
            comparison with global alignment; ``"none"`` no pair, for segmentation alone.
        image: Modality of the volume.
    """

    logit_scale: Tensor

    def __init__(
        self,
        tower: RegionTower,
        texts: RegionTexts | None = None,
        temperature: float = 0.07,
        level: Literal["region", "scan", "none"] = "region",
        image: str = "ct",
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be positive")
        if level not in ("region", "scan", "none") or (level == "region" and texts is None):
            raise ValueError(f"level is {level!r}; give region, with texts, or scan, or none")
        self.tower = tower
        self.level = level
        self.image = image
        for name in ("names_embedding", "dictionary", "dictionary_group") if texts is not None else ():
            self.register_buffer(name, getattr(texts, name), persistent=False)
        self.register_buffer("logit_scale", torch.tensor(1 / temperature), persistent=False)

    def forward(self, batch: Mapping[str, Any]) -> AlignmentBatch:
        """Embed a batch and set out its pairs.

        Args:
            batch: ``image`` ``B C X Y Z``; ``"regions"`` ``B X Y Z``; ``"region_visible"`` ``B R`` (bool);
                ``"diagnosis_embedding"`` ``B R E``, zero rows where there is no text, ``"diagnosis_group"`` ``B R``,
                ``"negatives"`` ``B N``; at level ``"scan"`` instead ``"report_embedding"`` ``B E``; at level ``"none"``
                only the first two. All else is passed on, an item per pair.

        Returns:
            Rows ``P E`` of ``image`` and its texts; extras as the organ losses need them.
        """
        output = self.tower(batch[self.image], batch["regions"])
        extras: dict[str, Any] = {"regions": batch["regions"]}
        if output.logits is not None:
            extras["logits"] = output.logits
        rest = {key: value for key, value in batch.items() if key not in {self.image, *extras, *_REGIONAL}}
        if self.level == "none":
            return AlignmentBatch({}, self.logit_scale, extras | rest)
        if self.level == "scan":
            embeddings = {self.image: output.scan, "report": rest.pop("report_embedding").float()}
            return AlignmentBatch(embeddings, self.logit_scale, extras | rest)
        scan, region = (batch["region_visible"] & (output.voxels > 0)).nonzero(as_tuple=True)
        embeddings = {
            self.image: output.embedding[scan, region],
            "anatomy": self.names_embedding[region],  # type: ignore[index]
            "diagnosis": batch["diagnosis_embedding"][scan, region].float(),
        }
        extras |= {key: _per_pair(value, scan) for key, value in rest.items()}
        extras |= {
            "scan": scan,
            "region": region,
            "anatomy_group": region,
            "diagnosis_group": batch["diagnosis_group"][scan, region],
            "dictionary": self.dictionary,
            "dictionary_group": self.dictionary_group,
            "negatives": batch["negatives"],
        }
        return AlignmentBatch(embeddings, self.logit_scale, extras)


_REGIONAL = ("region_visible", "diagnosis_embedding", "diagnosis_group", "negatives")
"""What the pairs of regions are made of."""


def _per_pair(value: Any, scan: Tensor) -> Any:
    """What a batch holds per scan, for the scan of every pair."""
    return value[scan] if isinstance(value, Tensor) else [value[i] for i in scan.tolist()]

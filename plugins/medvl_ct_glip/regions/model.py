"""Alignment below the level of the study: every visible region of a scan is a pair with its texts."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any, Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from medvl_core.engine.alignment import keep_input
from medvl_core.protocols import AlignmentBatch

__all__ = ["RegionAlignmentModel", "RegionOutput", "RegionText", "RegionTower"]


@dataclass(frozen=True, slots=True)
class RegionText:
    """What a report says about one region.

    Args:
        text: The diagnosis, or the sentence that stands for a normal region.
        status: ``"normal"``, ``"abnormal"`` or ``"uncertain"``; training reads the first two.
    """

    text: str
    status: str


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
        pooling: Region pooling with ``voxels``.
        embed_dim: Width E of the shared space: that of the text embeddings.
        hidden: Width of the head's hidden layer.
    """

    def __init__(self, encoder: nn.Module, pooling: nn.Module, embed_dim: int = 768, hidden: int = 768) -> None:
        super().__init__()
        self.encoder = encoder
        self.pooling = pooling
        self.embed_dim = embed_dim
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
            embedding=self._embed(pooled),
            voxels=self.pooling.voxels(self.pooling.on_grid(output.features, regions)),  # type: ignore[operator, union-attr]
            scan=self._embed(output.tokens.mean(dim=1)),
            logits=output.logits,
        )

    def _embed(self, pooled: Tensor) -> Tensor:
        return functional.normalize(self.head(pooled).float(), dim=-1)


class RegionAlignmentModel(nn.Module):
    r"""A region tower, the fixed embeddings of region names and dictionary texts, and the temperature.

    Args:
        tower: Embeds regions of ``image``.
        names: Embeddings ``R E`` of the regions' names, unit rows: the ``"anatomy"`` texts.
        dictionary: Embeddings ``D E`` of further texts that a loss draws as negatives; may be empty.
        dictionary_group: Group ``D`` (int64) of each, equal for equal texts.
        temperature: τ, fixed.
        level: ``"region"`` makes a pair of every visible region; ``"scan"`` one of every scan and its report, for the
            comparison with global alignment; ``"none"`` no pair, for segmentation alone.
        image: Modality of the volume.
    """

    def __init__(
        self,
        tower: RegionTower,
        names: Tensor,
        dictionary: Tensor | None = None,
        dictionary_group: Tensor | None = None,
        temperature: float = 0.07,
        level: Literal["region", "scan", "none"] = "region",
        image: str = "ct",
    ) -> None:
        super().__init__()
        if not temperature > 0:
            raise ValueError(f"temperature is {temperature}; it must be positive")
        if level not in ("region", "scan", "none"):
            raise ValueError(f"level is {level!r}; give region, scan or none")
        self.tower = tower
        self.level = level
        self.image = image
        empty = names.new_zeros(0, names.shape[1])
        self.register_buffer("names", names, persistent=False)
        self.register_buffer("dictionary", empty if dictionary is None else dictionary, persistent=False)
        group = torch.zeros(0, dtype=torch.int64) if dictionary_group is None else dictionary_group
        self.register_buffer("dictionary_group", group, persistent=False)
        self.register_buffer("logit_scale", torch.tensor(1 / temperature), persistent=False)

    def forward(self, batch: Mapping[str, Any]) -> AlignmentBatch:
        """Embed a batch and set out its pairs.

        Args:
            batch: ``image`` ``B C X Y Z``; ``"regions"`` ``B X Y Z``; ``"region_visible"`` ``B R`` (bool);
                ``"diagnosis_embedding"`` ``B R E``, zero rows where there is no text, ``"diagnosis_group"`` ``B R``,
                ``"negatives"`` ``B N``; at level ``"scan"`` instead ``"report_embedding"`` ``B E``, ``"text_group"``;
                at level ``"none"`` only the first two.

        Returns:
            Rows ``P E`` of ``image`` and its texts; extras as the organ losses need them.
        """
        output = self.tower(batch[self.image], batch["regions"])
        extras: dict[str, Any] = {"regions": batch["regions"], "logits": output.logits}
        if self.level == "none":
            return AlignmentBatch({}, self.logit_scale, extras)
        if self.level == "scan":
            embeddings = {self.image: output.scan, "report": batch["report_embedding"].float()}
            return AlignmentBatch(embeddings, self.logit_scale, extras | {"text_group": batch["text_group"]})
        scan, region = (batch["region_visible"] & (output.voxels > 0)).nonzero(as_tuple=True)
        embeddings = {
            self.image: output.embedding[scan, region],
            "anatomy": self.names[region],
            "diagnosis": batch["diagnosis_embedding"][scan, region].float(),
        }
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

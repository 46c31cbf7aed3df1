"""Tokens of a frozen encoder, kept so that a pooling over them trains in seconds."""

from __future__ import annotations

from pathlib import Path

import torch
from torch import Tensor, nn

from medvl_core.engine.loading import Draw
from medvl_core.study import Study
from medvl_imaging.embedding import FrozenEmbedding
from medvl_imaging.images import ImageRows
from medvl_imaging.tokens import masked_mean

__all__ = ["FrozenTokens"]


class FrozenTokens:
    """Tokens of a frozen encoder with their mask, computed once per study: what a trained pooling starts from.

    Stored as :class:`FrozenEmbedding` stores its rows, and prepared by the same methods.

    Args:
        modality: What the encoder reads.
        encoder: The frozen encoder; it has ``n_tokens``, the tokens of any input, blank ones included.
        inputs: Its images.
        folder: Where the stores lie.
        device: Where the encoder runs.
        mean: Store one token, the mean over the valid ones: all that a tower with mean pooling needs.
    """

    def __init__(
        self,
        modality: str,
        encoder: nn.Module,
        inputs: ImageRows,
        folder: str | Path,
        device: torch.device | str = "cpu",
        mean: bool = False,
    ) -> None:
        self._rows = FrozenEmbedding(modality, _TokenRows(encoder, mean), inputs, folder, device)  # type: ignore[arg-type]
        self.modality = modality
        self.prepare, self.embed = self._rows.prepare, self._rows.embed
        self.address, self.key, self.check = self._rows.address, self._rows.key, self._rows.check

    def __call__(self, study: Study, draw: Draw | None = None) -> dict[str, Tensor]:
        """``<modality>_tokens`` ``N F`` and ``<modality>_mask`` ``N`` (bool).

        Raises:
            KeyError: If ``prepare`` has not seen this study.
        """
        return self._entries(self._rows(study))

    def blank(self, study: Study, draw: Draw | None = None) -> dict[str, Tensor]:
        """Tokens drawn for the study, all valid, where there are none yet."""
        row = self._rows.blank(study)
        row[:, -1] = 1
        return self._entries(row)

    def _entries(self, row: Tensor) -> dict[str, Tensor]:
        return {f"{self.modality}_tokens": row[:, :-1], f"{self.modality}_mask": row[:, -1] > 0}


class _TokenRows(nn.Module):
    """Tokens with their mask as the last column, blank where it is 0: one row of the store per study."""

    def __init__(self, encoder: nn.Module, mean: bool) -> None:
        super().__init__()
        self.encoder, self.mean = encoder, mean
        n_tokens = 1 if mean else int(encoder.n_tokens)  # type: ignore[arg-type]
        self.row_shape = (n_tokens, int(encoder.embed_dim) + 1)  # type: ignore[arg-type]

    def forward(self, x: Tensor) -> Tensor:
        output = self.encoder(x)
        mask = output.tokens.new_ones(output.tokens.shape[:2]).bool() if output.mask is None else output.mask
        tokens = output.tokens.masked_fill(~mask[..., None], 0.0)
        if self.mean:
            tokens, mask = masked_mean(tokens, mask)[:, None], mask.any(dim=1, keepdim=True)
        return torch.cat([tokens, mask[..., None].to(tokens.dtype)], -1)

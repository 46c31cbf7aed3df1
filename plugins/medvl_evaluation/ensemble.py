"""Checkpoints of one run as one model."""

from __future__ import annotations

import copy
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from medvl_core.engine.alignment import AlignmentModel
from medvl_core.engine.weights import load_weights
from medvl_core.protocols import AlignmentBatch

__all__ = ["CheckpointEnsemble"]


class CheckpointEnsemble(nn.Module):
    r"""Copies of one model with the weights of several checkpoints. Its similarities are the means of theirs.

    The embeddings of M members are laid end to end and divided by $\sqrt M$: unit vectors again, whose dot product is
    the mean of the members' cosines. Zero-shot log odds are hence averaged over members. (The published code averages
    probabilities without temperature, a nearly linear function of the same margins.) All M models are in memory.

    Args:
        model: Gives the structure; it is copied.
        folder: Holds the checkpoints, ``*.pt``. Read by `load`.
    """

    def __init__(self, model: AlignmentModel, folder: str | Path) -> None:
        super().__init__()
        self.folder = Path(folder)
        self._structure = [model]  # in a list it is no submodule
        self.members = nn.ModuleList()

    def load(self) -> CheckpointEnsemble:
        """Read every checkpoint of the folder.

        Raises:
            FileNotFoundError: If there is none.
            WeightsError: If one does not fit the model.
        """
        files = sorted(self.folder.glob("*.pt"))
        if not files:
            raise FileNotFoundError(f"{self.folder}: no checkpoint; train with keep_checkpoints above 0")
        self.members = nn.ModuleList(copy.deepcopy(self._structure[0]) for _ in files)
        for member, file in zip(self.members, files, strict=True):
            load_weights(member, file)
        return self.eval()

    def forward(self, batch: Mapping[str, Any]) -> AlignmentBatch:
        """Embeddings ``B M E`` end to end, ``B (M E)``; the first member's scale and extras."""
        outputs = [member(batch) for member in self.members]
        embeddings = {name: _joined([one.embeddings[name] for one in outputs]) for name in outputs[0].embeddings}
        return AlignmentBatch(embeddings=embeddings, logit_scale=outputs[0].logit_scale, extras=outputs[0].extras)

    def embed_text(self, texts: Sequence[str], normalise: bool = True) -> Tensor:
        """Embeddings of texts by every member's ``"report"`` tower, end to end; without ``normalise`` as they are."""
        rows = [member.embed_text(texts, normalise=normalise) for member in self.members]  # type: ignore[operator]
        return _joined(rows) if normalise else torch.cat(rows, dim=1)


def _joined(rows: Sequence[Tensor]) -> Tensor:
    return functional.normalize(torch.cat(list(rows), dim=1), dim=1)

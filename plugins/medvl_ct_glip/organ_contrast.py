"""Contrast between organs and texts: organ names (anatomy) or organ-level diagnoses with an abnormality dictionary."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor, nn
from torch.nn import functional

from medvl_core.protocols import AlignmentBatch, LossOutput

__all__ = ["OrganContrast"]


class OrganContrast(nn.Module):
    r"""Each organ finds its text among the texts of its scan, and each text its organ.

    $\frac{1}{M} \sum_j [-\log \mathrm{softmax}_k(z_j t_k / \tau)_j - \log \mathrm{softmax}_k(z_k t_j / \tau)_j]$
    over the M organs of one scan, averaged over scans. The two directions are summed, as printed, not halved.

    Pairs without a text (a zero row) take no part. With ``"dictionary"`` in the extras, abnormal texts drawn for the
    normal organs of a scan are further negatives of the image → text direction; one that equals a text of the
    same scan is left out.

    Args:
        text: Modality of the text rows, ``"anatomy"`` or ``"diagnosis"``.
        image: Modality of the organ rows.
        scope: ``"intra_scan"`` contrasts the organs of one scan (the paper); ``"cross_scan"`` those of the whole batch.
        soft_identical_targets: Equal texts share the target. Otherwise they are negatives of each other, as printed.

    References:
        [1] Lin et al., CT-GLIP, arXiv:2404.15272, eqs. 1-3, with the temperature inside the exponential. No code of
        the authors exists.
    """

    def __init__(
        self,
        text: str = "anatomy",
        image: str = "ct",
        scope: Literal["intra_scan", "cross_scan"] = "intra_scan",
        soft_identical_targets: bool = False,
    ) -> None:
        super().__init__()
        if scope not in ("intra_scan", "cross_scan"):
            raise ValueError(f"scope is {scope!r}; give intra_scan or cross_scan")
        self.image, self.text, self.scope = image, text, scope
        self.soft_identical_targets = soft_identical_targets
        self.needs = ("scan", f"{text}_group")

    def forward(self, batch: AlignmentBatch) -> LossOutput:
        """The loss of a batch of organ-text pairs.

        Args:
            batch: Rows ``P E`` of ``image`` and ``text``; extras ``"scan"`` ``P`` (int64) and ``"<text>_group"`` ``P``
                (int64, equal for equal texts); for the diagnosis also ``"dictionary"`` ``D E``, ``"dictionary_group"``
                ``D`` and ``"negatives"`` ``S N`` (rows of the dictionary per scan, -1 = none).

        Returns:
            The loss; 0 with graph when no scan has two texts.
        """
        kept = batch.embeddings[self.text].abs().sum(dim=1) > 0
        image, text = _precise(batch.embeddings[self.image][kept]), _precise(batch.embeddings[self.text][kept])
        scan, group = batch.extras["scan"][kept], batch.extras[f"{self.text}_group"][kept]
        if not len(image):
            total = batch.embeddings[self.image].sum() * 0.0
            return LossOutput(total, {self.text: total.detach()})
        scale = _precise(batch.logit_scale)
        same = (
            scan[:, None] == scan[None] if self.scope == "intra_scan" else torch.ones_like(scan[:, None] == scan[None])
        )
        logits = (scale * (image @ text.T)).masked_fill(~same, -torch.inf)
        targets = self._targets(group, same)
        weight = _mean_per_scan(scan) if self.scope == "intra_scan" else torch.full_like(image[:, 0], 1 / len(image))
        extra = self._negatives(batch, image, scan, group, scale)
        to_text = _cross_entropy(torch.cat([logits, extra], dim=1), targets)
        to_image = _cross_entropy(logits.T, targets.T)
        total = (weight * (to_text + to_image)).sum()
        return LossOutput(total, {self.text: total.detach()})

    def _targets(self, group: Tensor, same: Tensor) -> Tensor:
        if not self.soft_identical_targets:
            return torch.eye(len(group), device=group.device)
        equal = ((group[:, None] == group[None]) & same).float()
        return equal / equal.sum(dim=1, keepdim=True)

    def _negatives(self, batch: AlignmentBatch, image: Tensor, scan: Tensor, group: Tensor, scale: Tensor) -> Tensor:
        """Logits ``P N`` of the dictionary texts drawn for each pair's scan; -inf where there is none."""
        if self.text != "diagnosis" or not len(batch.extras.get("dictionary", ())):
            return image.new_empty(len(image), 0)
        dictionary, drawn = _precise(batch.extras["dictionary"]).to(image.dtype), batch.extras["negatives"][scan]
        names = batch.extras["dictionary_group"][drawn.clamp(min=0)]
        present = (scan[:, None] == scan[None])[..., None] & (group[None, :, None] == names[:, None, :])
        usable = (drawn >= 0) & ~present.any(dim=1)
        logits = scale * torch.einsum("pe,pne->pn", image, dictionary[drawn.clamp(min=0)])
        return logits.masked_fill(~usable, -torch.inf)


def _precise(x: Tensor) -> Tensor:
    return x.to(torch.promote_types(x.dtype, torch.float32))


def _mean_per_scan(scan: Tensor) -> Tensor:
    _, index, count = scan.unique(return_inverse=True, return_counts=True)
    return 1.0 / (count[index] * len(count))


def _cross_entropy(logits: Tensor, targets: Tensor) -> Tensor:
    """Per row, against soft targets over the first columns; masked logits (-inf) have no target."""
    log_share = functional.log_softmax(logits, dim=1)[:, : targets.shape[1]]
    return -(targets * log_share.masked_fill(targets == 0, 0.0)).sum(dim=1)

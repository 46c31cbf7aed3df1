"""The objective of X2CT-CLIP: three contrastive losses between CT, report and radiograph."""

from __future__ import annotations

from dataclasses import replace

from torch import nn

from medvl_core.build import build_loss
from medvl_core.engine.alignment import AlignmentLoss
from medvl_core.protocols import AlignmentBatch, LossOutput

__all__ = ["TriModal"]

_PAIRS = {"report_ct": ("report", "ct"), "cxr_report": ("cxr", "report"), "cxr_ct": ("cxr", "ct")}


class TriModal(nn.Module):
    r"""Weighted sum of symmetric InfoNCE losses, $\alpha L(R, C) + \beta L(X, R) + \gamma L(X, C)$.

    R, C and X are the rows of report, CT and radiograph. A weight of 0 leaves its loss out. It is the same number as
    ``AlignmentLoss`` over three ``baseline/infonce``, which it consists of: take that to mix in other losses.

    Args:
        alpha: Of report and CT; 0 while both towers are frozen.
        beta: Of radiograph and report.
        gamma: Of radiograph and CT.
        teacher_scale: Multiplies the cosines in place of the batch's ``logit_scale``. The paper states τ = 0.07, the
            model's default; its released code took the teacher's own scale instead, ``ct_encoder.teacher_scale``.

    Raises:
        ValueError: If a weight is negative, all are 0, or ``teacher_scale`` is not positive.

    References:
        arXiv:2503.02162, eq. 1 (which has no 1/N; the mean is taken here).
    """

    def __init__(
        self, alpha: float = 0.0, beta: float = 1.0, gamma: float = 1.0, teacher_scale: float | None = None
    ) -> None:
        super().__init__()
        weights = dict(zip(_PAIRS, (alpha, beta, gamma), strict=True))
        if min(weights.values()) < 0 or (teacher_scale is not None and not teacher_scale > 0):
            raise ValueError(
                f"tri_modal: weights {weights}, teacher_scale {teacher_scale}; weights are at least 0, the scale above"
            )
        losses = {name: build_loss("baseline/infonce", pair=pair) for name, pair in _PAIRS.items()}
        self.parts = AlignmentLoss(losses, weights, gather="none")  # a loss sees the gathered batch
        self.teacher_scale = teacher_scale

    def forward(self, batch: AlignmentBatch) -> LossOutput:
        """Compute the loss.

        Args:
            batch: Embeddings ``P E`` of the modalities whose weight is not 0.

        Returns:
            The sum, and each of its parts before weighting.

        Raises:
            ValueError: If a modality is missing, shapes differ or a value is not finite.
        """
        scale = batch.logit_scale
        if self.teacher_scale is not None:
            scale = scale.new_tensor(self.teacher_scale)
        own = replace(batch, logit_scale=scale, terms={})
        total = self.parts(own)
        return LossOutput(total, own.terms)

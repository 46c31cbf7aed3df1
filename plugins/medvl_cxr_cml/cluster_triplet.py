"""CXR-CML's metric objective: triplets whose classes are clusters of the image embeddings."""

from __future__ import annotations

from typing import Literal, get_args

import torch
from torch import Tensor, nn

from medvl_core.protocols import AlignmentBatch, LossOutput
from medvl_cxr_cml.bank import FeatureBank
from medvl_cxr_cml.em import Covariance
from medvl_cxr_cml.mixture import StudentTMixture
from medvl_cxr_cml.reference_compat import released_metric_term
from medvl_cxr_cml.triplet import Mining, triplet_loss

__all__ = ["ClusterTriplet"]


class ClusterTriplet(nn.Module):
    """Triplet loss on pseudo-labels: the most likely component of a Student-t mixture over the last image embeddings.

    In each training step the batch enters a bank of the last ``bank_size`` embeddings. After ``start_after`` steps and
    once the bank holds 10 rows per cluster (or is full), the mixture is fitted to it, from then on every
    ``refit_every`` steps again, going on from the fit before; between fits each batch moves it by one step of stepwise
    EM. Then the mixture labels the batch, and triplets are formed within the batch. Until the first fit, and when no
    triplet is active, the loss is 0 with graph. In eval mode bank and mixture rest.

    Start it on embeddings that mean something. From scratch it sorts images into groups of its own making, which have
    nothing to do with their texts, and the other losses no longer undo that (docs/explanation/cluster-triplets.md).

    Bank, mixture and step count are buffers: list the loss among the ``objects`` of ``ExactResume``. With several
    processes every one sees the gathered batch, so all make the same updates.

    ``mode="reference_compat"`` computes what the released code computes, which is inert: 0, with a gradient of 0 (see
    ``medvl_cxr_cml.reference_compat``). It keeps no bank, and is slow: three Gaussian mixtures per step on the CPU.

    Args:
        embed_dim: Width E of the embeddings.
        modality: Whose embeddings.
        n_clusters: K.
        nu: Degrees of freedom; ``inf`` (``"inf"`` in JSON) for Gaussians.
        covariance: Of the mixture. ``"full"`` in 512 dimensions is slow and has far more numbers than the bank holds;
            with it, set ``pca_dim``.
        regularisation: Added to the variances, in squared units of unit vectors.
        pca_dim: Cluster in this many principal components of the bank.
        bank_size: Rows in the bank.
        start_after: Training steps before the first fit: how long the other losses work alone.
        refit_every: Steps between fits; the number of batches gives one fit per epoch.
        refit_iterations: Most EM iterations of a fit.
        online_rate: Weight of one batch between fits; 0 leaves the mixture alone until the next fit.
        mining: Which triplets, see ``medvl_cxr_cml.triplet.triplet_loss``.
        margin: α in eq. 3.
        seed: Of the first fit's start.
        mode: ``"paper"`` or ``"reference_compat"``.
        text: The other modality, read by ``"reference_compat"`` only.

    Raises:
        ValueError: If an option breaks its rule.

    Note:
        The paper leaves margin, mining, covariance, schedule and the source of the features open; these are ours.

    References:
        CXR-CML, arXiv:2507.19398, eq. 1-4. chinnarouge/CXR_CML@af3ba61 was read for its facts.
    """

    step: Tensor

    def __init__(
        self,
        embed_dim: int,
        modality: str = "cxr",
        n_clusters: int = 40,
        nu: float | str = 4.0,
        covariance: Covariance = "diagonal",
        regularisation: float = 1e-3,
        pca_dim: int | None = None,
        bank_size: int = 4096,
        start_after: int = 0,
        refit_every: int = 500,
        refit_iterations: int = 20,
        online_rate: float = 0.01,
        mining: Mining = "batch_all",
        margin: float = 0.3,
        seed: int = 0,
        mode: Literal["paper", "reference_compat"] = "paper",
        text: str = "report",
    ) -> None:
        super().__init__()
        if mining not in get_args(Mining) or mode not in ("paper", "reference_compat"):
            raise ValueError(
                f"cluster_triplet: mining={mining!r}, mode={mode!r}; "
                f"give one of {get_args(Mining)}, and 'paper' or 'reference_compat'"
            )
        steps = start_after < 0 or refit_every < 1
        if bank_size < n_clusters or steps or not 0 <= online_rate <= 1 or margin < 0:
            raise ValueError(
                f"cluster_triplet: bank_size={bank_size}, n_clusters={n_clusters}, start_after={start_after}, "
                f"refit_every={refit_every}, online_rate={online_rate}, margin={margin}; the bank needs a row per "
                "cluster, start_after is at least 0, refit_every 1, online_rate in [0, 1], the margin not negative"
            )
        self.embed_dim, self.modality, self.text, self.mode = embed_dim, modality, text, mode
        self.start_after, self.refit_every, self.online_rate = start_after, refit_every, online_rate
        self.mining, self.margin, self.seed = mining, margin, seed
        self.rows_to_start = min(bank_size, 10 * n_clusters)
        self.register_buffer("step", torch.tensor(0))
        self.bank: FeatureBank | None = None
        if mode == "paper":
            self.bank = FeatureBank(bank_size, embed_dim)
            self.mixture = StudentTMixture(
                embed_dim, n_clusters, nu, covariance, regularisation, pca_dim, refit_iterations, seed=seed
            )

    def forward(self, batch: AlignmentBatch) -> LossOutput:
        """Compute the loss, and in training mode update bank and mixture.

        Args:
            batch: L2-normalised embeddings ``P E`` of the modality.

        Returns:
            The loss and its terms: itself, ``"active_triplets"``, ``"clusters"`` (how many the batch has) and
            ``"cosine"``, the mean over all pairs of the batch: 1 where all images coincide.

        Raises:
            ValueError: If embeddings are missing, of another width, or not finite.
        """
        rows = self._rows(batch, self.modality)
        with torch.autocast(rows.device.type, enabled=False):
            if self.bank is None:
                return self._compat(rows, self._rows(batch, self.text))
            if self.training:
                self._update(self.bank, rows.detach())
            if not self.mixture.fitted:
                return _output(rows)
            labels = self.mixture.predict(rows)
            total, active = triplet_loss(rows, labels, self.margin, self.mining)
        clusters = (labels.bincount(minlength=self.mixture.n_components) > 0).sum()
        return _output(rows, total, active, clusters)

    @torch.no_grad()
    def _update(self, bank: FeatureBank, rows: Tensor) -> None:
        bank.push(rows)
        self.step += 1
        if not self.mixture.fitted:
            if self.step > self.start_after and len(bank) >= self.rows_to_start:
                self.mixture.fit(bank.rows())
                self.step.zero_()  # counts from the first fit on
            return
        if self.step % self.refit_every == 0:
            self.mixture.fit(bank.rows(), warm_start=True)
        elif self.online_rate:
            self.mixture.partial_fit(rows, self.online_rate)

    def _compat(self, image: Tensor, text: Tensor) -> LossOutput:
        seed = (self.seed + int(self.step)) % 2**32
        if self.training:
            self.step += 1
        return _output(image, released_metric_term(image, text, seed))

    def _rows(self, batch: AlignmentBatch, modality: str) -> Tensor:
        rows = batch.embeddings.get(modality)
        if rows is None:
            raise ValueError(
                f"cluster_triplet: batch has no embeddings of {modality!r}, only {sorted(batch.embeddings)}; "
                "add a tower or fix modality"
            )
        if rows.ndim != 2 or rows.shape[1] != self.embed_dim or not len(rows):
            raise ValueError(
                f"cluster_triplet: embeddings of {modality!r} have shape {tuple(rows.shape)}, not "
                f"P x {self.embed_dim}; set embed_dim to the width of the tower"
            )
        rows = rows.to(torch.promote_types(rows.dtype, torch.float32))
        if not rows.detach().sum().isfinite():
            bad = (~rows.isfinite().all(dim=1)).nonzero()[:8, 0].tolist()
            raise ValueError(f"cluster_triplet: embeddings of {modality!r} are not finite in rows {bad}; look at these")
        return rows


def _output(
    rows: Tensor, total: Tensor | None = None, active: Tensor | None = None, clusters: Tensor | None = None
) -> LossOutput:
    nothing = rows.new_zeros(())
    total = rows.sum() * 0 if total is None else total
    cosine = (rows.detach().sum(dim=0).square().sum() - len(rows)) / max(1, len(rows) * (len(rows) - 1))
    terms = {"cluster_triplet": total.detach(), "active_triplets": active, "clusters": clusters, "cosine": cosine}
    return LossOutput(total, {name: nothing if term is None else term.to(rows.dtype) for name, term in terms.items()})

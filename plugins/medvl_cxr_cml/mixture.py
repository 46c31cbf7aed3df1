"""A mixture of Student-t densities over feature vectors, fitted in one go or batch by batch."""

from __future__ import annotations

import logging
import math
from dataclasses import fields
from typing import get_args

import torch
from torch import Tensor, nn
from torch.nn import functional

from medvl_cxr_cml.em import STRUCTURES, Covariance, Parameters, blend, blocks, current, log_joint, maximise, observe
from medvl_cxr_cml.seeding import kmeans_labels

__all__ = ["StudentTMixture"]

logger = logging.getLogger(__name__)


class StudentTMixture(nn.Module):
    r"""K Student-t components $\sum_k \pi_k T(x; \mu_k, \Sigma_k, \nu)$ with one fixed ν (eq. 1-2 of [1]).

    Fitted by EM in log-space: responsibilities $r = \mathrm{softmax}(\log \pi + \log T)$, and weights
    $u = (\nu + d) / (\nu + m)$ of far rows in the maximisation step, m the squared Mahalanobis distance. The likelihood
    never falls, up to what ``regularisation`` adds. An infinite ν gives the Gaussian mixture.

    All that a fit leaves is in buffers: ``state_dict`` holds it, ``.to(device)`` moves it. Rows are taken in the
    buffers' dtype, in blocks: memory beside the rows does not grow with their number. One iteration costs
    O(n K d) with diagonal, O(n d (K + d)) with tied and O(n K d²) with full covariances.

    Components without rows (duplicated rows, collapsed features) keep their place and spread at a tiny weight; at the
    start they sit at the mean of all rows with the variances of all rows.

    Args:
        n_features: Width D of the rows.
        n_components: K.
        nu: Degrees of freedom ν; ``inf`` (or ``"inf"`` from a JSON file) for Gaussians.
        covariance: One variance per component and dimension, one matrix for all, or one per component.
        regularisation: Added to the diagonal of every covariance, in squared units of the rows. The variances of unit
            vectors sum to at most 1, so each is of the order 1/d: 1e-3 is much for 512 dimensions, little for 32.
        pca_dim: Fit in this many leading principal components of the rows; densities are those of the reduced rows.
        max_iter: Most EM iterations of a fit.
        tolerance: Stop once the mean log-likelihood changes by less.
        seed: Of the k-means++ start.

    Raises:
        ValueError: If an option breaks its rule.

    References:
        [1] CXR-CML, arXiv:2507.19398. EM: Peel & McLachlan, Statistics and Computing 10 (2000) 339. The released code
        (chinnarouge/CXR_CML@af3ba61) was read for its facts; it re-weights a Gaussian mixture once, without EM.
    """

    offset: Tensor
    basis: Tensor | None
    means: Tensor
    fitted: Tensor

    def __init__(
        self,
        n_features: int,
        n_components: int = 40,
        nu: float | str = 4.0,
        covariance: Covariance = "diagonal",
        regularisation: float = 1e-3,
        pca_dim: int | None = None,
        max_iter: int = 100,
        tolerance: float = 1e-3,
        seed: int = 0,
    ) -> None:
        super().__init__()
        if covariance not in get_args(Covariance):
            raise ValueError(f"mixture: covariance is {covariance!r}; give one of {get_args(Covariance)}")
        if n_components < 1 or not float(nu) > 0 or regularisation < 0 or max_iter < 1:
            raise ValueError(
                f"mixture: n_components={n_components}, nu={nu}, regularisation={regularisation}, max_iter={max_iter}; "
                "components and iterations start at 1, nu is positive, regularisation is not negative"
            )
        if pca_dim is not None and not 1 <= pca_dim <= n_features:
            raise ValueError(f"mixture: pca_dim is {pca_dim}; give 1 to {n_features}, the width of the features")
        self.n_features, self.n_components, self.nu = n_features, n_components, float(nu)
        self.covariance_type, self.regularisation = covariance, regularisation
        self.pca_dim, self.max_iter, self.tolerance, self.seed = pca_dim, max_iter, tolerance, seed
        width = pca_dim or n_features
        spread = STRUCTURES[covariance].spread(torch.ones(width), n_components)
        self.register_buffer("offset", torch.zeros(n_features))
        self.register_buffer("basis", None if pca_dim is None else torch.eye(n_features, width))
        self.register_buffer("log_weights", torch.full((n_components,), -math.log(n_components)))
        self.register_buffer("means", torch.zeros(n_components, width))
        self.register_buffer("covariance", spread)
        self.register_buffer("whitening", spread.clone())
        self.register_buffer("mass", torch.full((n_components,), 1 / n_components))
        self.register_buffer("fitted", torch.tensor(False))

    @property
    def parameters_now(self) -> Parameters:
        """Weights, means (relative to ``offset``, in the reduced space with ``pca_dim``) and covariances."""
        return Parameters(**{field.name: getattr(self, field.name) for field in fields(Parameters)})

    def extra_repr(self) -> str:
        """Shown by ``print``."""
        return (
            f"{self.n_features} -> {self.means.shape[1]}, K={self.n_components}, nu={self.nu}, {self.covariance_type}"
        )

    @torch.no_grad()
    def fit(self, x: Tensor, labels: Tensor | None = None, warm_start: bool = False) -> list[float]:
        """Fit to all rows.

        Args:
            x: ``n D``.
            labels: ``n`` components to start from, in place of k-means++.
            warm_start: Go on from the present fit, if there is one. With ``pca_dim`` the principal components are found
                anew, and the present fit's hard assignments are the start.

        Returns:
            The mean log-likelihood before each iteration's update. The last one is that of the parameters but one.

        Raises:
            ValueError: If there are fewer rows than components, shapes differ, or a value is not finite.
        """
        x = self._checked(x)
        if len(x) < self.n_components:
            raise ValueError(
                f"mixture: {len(x)} rows for {self.n_components} components; give more rows or fewer components"
            )
        if warm_start and self.fitted and self.basis is not None:
            labels = self.predict(x)
        if not (warm_start and self.fitted) or labels is not None:
            self._start(x, labels)
        rows, offset = self._reduced(x)
        history: list[float] = []
        p = self.parameters_now
        for _ in range(self.max_iter):
            statistics, log_likelihood = observe(rows, offset, p, self.nu, self.covariance_type)
            p = maximise(statistics, p, self.covariance_type, self.regularisation)
            history.append(log_likelihood.item())
            if len(history) > 1 and abs(history[-1] - history[-2]) < self.tolerance:
                break
        self._keep(p)
        return history

    @torch.no_grad()
    def partial_fit(self, x: Tensor, rate: float = 0.01) -> None:
        """One step of stepwise EM: a batch enters the running statistics with weight ``rate``, in O(batch) row work.

        With full covariances K factorisations of d x d come on top, with tied ones a single one. The first call fits.

        Args:
            x: ``n D``.
            rate: Weight of this batch, in (0, 1].

        Raises:
            ValueError: As ``fit``, or if ``rate`` is outside (0, 1].

        References:
            Cappé & Moulines, JRSS B 71 (2009) 593.
        """
        if not 0 < rate <= 1:
            raise ValueError(f"mixture: rate is {rate}; give the batch a weight above 0, at most 1")
        if not self.fitted:
            self.fit(x)
            return
        rows, offset = self._reduced(self._checked(x))
        p, kind = self.parameters_now, self.covariance_type
        batch, _ = observe(rows, offset, p, self.nu, kind)
        self._keep(maximise(blend(current(p, kind, self.regularisation), batch, rate), p, kind, self.regularisation))

    @torch.no_grad()
    def log_prob(self, x: Tensor) -> Tensor:
        """Log-density of each row ``n``.

        Raises:
            ValueError: If nothing was fitted, shapes differ, or a value is not finite.
        """
        return self._log_joint(x).logsumexp(dim=1)

    @torch.no_grad()
    def predict_proba(self, x: Tensor) -> Tensor:
        """Responsibilities ``n K``; rows sum to 1. Raises as ``log_prob``."""
        return self._log_joint(x).softmax(dim=1)

    @torch.no_grad()
    def predict(self, x: Tensor) -> Tensor:
        """Most likely component of each row ``n``. Raises as ``log_prob``."""
        return self._log_joint(x).argmax(dim=1)

    def _log_joint(self, x: Tensor) -> Tensor:
        if not self.fitted:
            raise ValueError("mixture: nothing is fitted yet; call fit, or load the state of a fitted mixture")
        rows, offset = self._reduced(self._checked(x))
        p = self.parameters_now
        structure = STRUCTURES[self.covariance_type](p, offset)
        log_det = structure.log_det(p)
        return torch.cat([log_joint(structure.distances(rows[block]), p, self.nu, log_det) for block in blocks(rows)])

    def _checked(self, x: Tensor) -> Tensor:
        if x.ndim != 2 or x.shape[1] != self.n_features or not len(x):
            raise ValueError(f"mixture: rows have shape {tuple(x.shape)}; give n x {self.n_features}, n at least 1")
        x = x.detach().to(self.means)
        if not x.sum().isfinite() and (bad := (~x.isfinite().all(dim=1)).nonzero()[:8, 0].tolist()):
            raise ValueError(f"mixture: rows {bad} hold NaN or infinite values; leave them out or mend the features")
        return x

    def _reduced(self, x: Tensor) -> tuple[Tensor, Tensor]:
        """Rows and what is still to be subtracted from them: without PCA the shifted rows are never stored."""
        if self.basis is None:
            return x, self.offset
        return (x - self.offset) @ self.basis, self.means.new_zeros(self.means.shape[1])

    def _start(self, x: Tensor, labels: Tensor | None) -> None:
        if len(x) < 10 * self.n_components:
            logger.warning(
                "mixture: %d rows for %d components; with fewer than 10 each they follow noise",
                len(x),
                self.n_components,
            )
        self.offset.copy_(x.mean(dim=0))
        if self.basis is not None:
            centred = x - self.offset
            self.basis.copy_(torch.linalg.eigh(centred.T @ centred).eigenvectors[:, -self.basis.shape[1] :])
        rows, offset = self._reduced(x)
        labels = kmeans_labels(rows, self.n_components, self.seed) if labels is None else labels.to(x.device).long()
        if labels.shape != (len(x),) or labels.min() < 0 or labels.max() >= self.n_components:
            raise ValueError(
                f"mixture: labels have shape {tuple(labels.shape)} and run from {labels.min()} to {labels.max()}; "
                f"give one of 0 to {self.n_components - 1} for each of {len(x)} rows"
            )
        self._keep(_from_labels(rows, offset, labels, self.parameters_now, self.covariance_type, self.regularisation))

    def _keep(self, p: Parameters) -> None:
        for field in fields(p):
            getattr(self, field.name).copy_(getattr(p, field.name))
        self.fitted.fill_(True)


def _from_labels(
    x: Tensor, offset: Tensor, labels: Tensor, p: Parameters, covariance: Covariance, ridge: float
) -> Parameters:
    k = len(p.means)
    means, squares = torch.zeros_like(p.means), torch.zeros_like(offset)
    for block in blocks(x):
        z = x[block] - offset
        means += functional.one_hot(labels[block], k).to(x.dtype).T @ z
        squares += z.square().sum(dim=0)
    means /= labels.bincount(minlength=k).clamp(min=1)[:, None]
    spread = STRUCTURES[covariance].spread(squares / len(x) + ridge, k)
    p = Parameters(p.log_weights, means, spread, STRUCTURES[covariance].whiten(spread), p.mass)
    statistics, _ = observe(x, offset, p, math.inf, covariance, labels)
    return maximise(statistics, p, covariance, ridge)

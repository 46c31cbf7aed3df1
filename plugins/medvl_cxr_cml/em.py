"""One pass of expectation-maximisation for a mixture of Student-t or Gaussian densities, in blocks of rows.

Everything a pass adds up is a mean over rows, so that a batch can be blended into a running fit (stepwise EM).
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass, fields
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn import functional

__all__ = [
    "STRUCTURES",
    "Covariance",
    "Parameters",
    "Statistics",
    "blend",
    "current",
    "log_joint",
    "maximise",
    "observe",
]

Covariance = Literal["diagonal", "tied", "full"]
_NEGLIGIBLE = 0.1  # in units of rounding: smaller weights leave a scatter matrix as it is, in 512 dimensions most do
_NONE = -60.0  # log-responsibilities below count as 0: they add nothing, but denormal numbers make products 3x slower


@dataclass(frozen=True, slots=True)
class Parameters:
    """A mixture of K components in d dimensions.

    Args:
        log_weights: ``K``, log of the mixing weights.
        means: ``K d``.
        covariance: Scale matrices: ``K d`` (diagonal), ``d d`` (tied) or ``K d d`` (full).
        whitening: The same shape: 1 / sqrt of the diagonal, or upper P with inverse covariance P Pᵀ.
        mass: ``K``, mean over rows of responsibility times t-weight; equals the weights for Gaussians.
    """

    log_weights: Tensor
    means: Tensor
    covariance: Tensor
    whitening: Tensor
    mass: Tensor


@dataclass(frozen=True, slots=True)
class Statistics:
    """Means over rows: responsibilities ``K``, weighted ones ``K``, weighted rows ``K d``, and second moments."""

    share: Tensor
    mass: Tensor
    first: Tensor
    second: Tensor


class Structure(Protocol):
    """What differs between the covariance structures. An instance serves one pass."""

    def __init__(self, p: Parameters, offset: Tensor) -> None: ...

    def distances(self, x: Tensor) -> Tensor:
        """Squared Mahalanobis distances ``n K`` of rows ``x - offset``."""

    def moments(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        """First and second moments of the rows last seen, under ``n K`` weights."""

    @staticmethod
    def log_det(p: Parameters) -> Tensor:
        """-1/2 log |covariance|, ``K`` or a scalar."""

    @staticmethod
    def second(p: Parameters, ridge: float) -> Tensor:
        """The second moments that ``p`` came from."""

    @staticmethod
    def covariance(s: Statistics, means: Tensor, p: Parameters, ridge: float) -> Tensor:
        """Covariance from the moments about the new means."""

    @staticmethod
    def whiten(covariance: Tensor) -> Tensor:
        """The factor of ``Parameters.whitening``."""

    @staticmethod
    def spread(variance: Tensor, k: int) -> Tensor:
        """A covariance with the same variances ``d`` in every component."""


class _Diagonal:
    """Rows enter as [z², z]: one matrix product gives every distance, another one every moment."""

    def __init__(self, p: Parameters, offset: Tensor) -> None:
        precision = p.whitening.square()
        self.linear = torch.cat([precision, -2 * p.means * precision], dim=1).T.contiguous()
        self.constant = (p.means.square() * precision).sum(dim=1)
        self.offset, self.buffer = offset, offset.new_empty(0, 2 * len(offset))

    def distances(self, x: Tensor) -> Tensor:
        d = x.shape[1]
        if len(self.buffer) < len(x):
            self.buffer = x.new_empty(len(x), 2 * d)
        self.rows = self.buffer[: len(x)]
        z = torch.sub(x, self.offset, out=self.rows[:, d:])
        torch.mul(z, z, out=self.rows[:, :d])
        return torch.addmm(self.constant, self.rows, self.linear).clamp_(min=0)

    def moments(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        second, first = (weights.T @ self.rows).chunk(2, dim=1)
        return first, second

    @staticmethod
    def log_det(p: Parameters) -> Tensor:
        return p.whitening.log().sum(dim=1)

    @staticmethod
    def second(p: Parameters, ridge: float) -> Tensor:
        return p.mass[:, None] * (p.covariance - ridge + p.means.square())

    @staticmethod
    def covariance(s: Statistics, means: Tensor, p: Parameters, ridge: float) -> Tensor:
        return (s.second / s.mass[:, None] - means.square()).clamp_(min=0) + ridge

    @staticmethod
    def whiten(covariance: Tensor) -> Tensor:
        return covariance.rsqrt()

    @staticmethod
    def spread(variance: Tensor, k: int) -> Tensor:
        return variance.expand(k, -1).clone()


class _Matrix:
    """What tied and full covariances share."""

    def __init__(self, p: Parameters, offset: Tensor) -> None:
        self.p, self.offset = p, offset

    @staticmethod
    def log_det(p: Parameters) -> Tensor:
        return p.whitening.diagonal(dim1=-2, dim2=-1).log().sum(dim=-1)

    @staticmethod
    def whiten(covariance: Tensor) -> Tensor:
        factor, info = torch.linalg.cholesky_ex(covariance)
        if info.any():
            failed = info.flatten().nonzero().flatten().tolist()
            raise ValueError(
                f"mixture: covariance of component {failed[:8]} is not positive definite; raise regularisation, "
                "reduce the features with pca_dim, or use covariance='diagonal'"
            )
        eye = torch.eye(covariance.shape[-1], dtype=covariance.dtype, device=covariance.device)
        return torch.linalg.solve_triangular(factor, eye.expand_as(factor), upper=False).mT.contiguous()


class _Tied(_Matrix):
    """Rows are whitened once; their second moments are summed over the components before any product."""

    def distances(self, x: Tensor) -> Tensor:
        self.rows = x - self.offset
        white, means = self.rows @ self.p.whitening, self.p.means @ self.p.whitening
        lengths = white.square().sum(dim=1, keepdim=True) + means.square().sum(dim=1)
        return lengths.addmm_(white, means.T, alpha=-2).clamp_(min=0)

    def moments(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        return weights.T @ self.rows, (self.rows * weights.sum(dim=1, keepdim=True)).T @ self.rows

    @staticmethod
    def second(p: Parameters, ridge: float) -> Tensor:
        return (p.covariance - ridge * _eye(p)) * p.mass.sum() + (p.mass[:, None] * p.means).T @ p.means

    @staticmethod
    def covariance(s: Statistics, means: Tensor, p: Parameters, ridge: float) -> Tensor:
        scatter = s.second - (s.mass[:, None] * means).T @ means
        return (scatter + scatter.T) / (2 * s.mass.sum()) + ridge * _eye(p)

    @staticmethod
    def spread(variance: Tensor, k: int) -> Tensor:
        return variance.diag()


class _Full(_Matrix):
    """Second moments are taken about the old means: little is lost when the new ones are subtracted."""

    def distances(self, x: Tensor) -> Tensor:
        self.rows = x - self.offset
        white, found = torch.empty_like(self.rows), x.new_empty(len(self.p.means), len(x))
        for k, (mean, whitening) in enumerate(zip(self.p.means, self.p.whitening, strict=True)):
            torch.addmm(-(mean @ whitening), self.rows, whitening, out=white)
            torch.sum(white.square_(), dim=1, out=found[k])
        return found.T.contiguous()

    def moments(self, weights: Tensor) -> tuple[Tensor, Tensor]:
        second = torch.zeros_like(self.p.covariance)
        least = _NEGLIGIBLE * torch.finfo(weights.dtype).eps
        for k, mean in enumerate(self.p.means):
            own = (weights[:, k] > least).nonzero()[:, 0]
            centred = self.rows[own] - mean
            torch.mm((centred * weights[own, k, None]).T, centred, out=second[k])
        return weights.T @ self.rows, second

    @staticmethod
    def second(p: Parameters, ridge: float) -> Tensor:
        return p.mass[:, None, None] * (p.covariance - ridge * _eye(p))

    @staticmethod
    def covariance(s: Statistics, means: Tensor, p: Parameters, ridge: float) -> Tensor:
        mass = s.mass[:, None, None]
        # about the old means, m = E[z - old]: E[(z-new)(z-new)'] = E[(z-old)(z-old)'] - m m'
        shift = (means - p.means)[:, :, None]
        return s.second / mass - shift * shift.mT + ridge * _eye(p)

    @staticmethod
    def spread(variance: Tensor, k: int) -> Tensor:
        return variance.diag().expand(k, -1, -1).clone()


STRUCTURES: dict[str, type[Structure]] = {"diagonal": _Diagonal, "tied": _Tied, "full": _Full}


def _eye(p: Parameters) -> Tensor:
    return torch.eye(p.means.shape[1], dtype=p.means.dtype, device=p.means.device)


def blocks(x: Tensor) -> Iterator[slice]:
    """Rows at a time: 8 MB of fp32 pairs (z², z) stay in a CPU's cache; accelerators take 32 times as many."""
    rows = max(1, (1 << 20 if x.device.type == "cpu" else 1 << 25) // x.shape[1])
    return (slice(start, start + rows) for start in range(0, len(x), rows))


def log_joint(distances: Tensor, p: Parameters, nu: float, log_det: Tensor) -> Tensor:
    r"""$\log \pi_k + \log T(x; \mu_k, \Sigma_k, \nu)$ from squared distances ``n K`` (eq. 1-2 of arXiv:2507.19398).

    $T = \Gamma(\tfrac{\nu+d}2) / (\Gamma(\tfrac\nu2) (\nu\pi)^{d/2} |\Sigma|^{1/2}) (1 + m/\nu)^{-(\nu+d)/2}$, m the
    squared distance; the Gaussian density for infinite ν.
    """
    d = p.means.shape[1]
    if math.isinf(nu):
        joint, constant = distances * -0.5, -d / 2 * math.log(2 * math.pi)
    else:
        joint = (distances / nu).log1p_().mul_(-(nu + d) / 2)
        constant = math.lgamma((nu + d) / 2) - math.lgamma(nu / 2) - d / 2 * math.log(nu * math.pi)
    return joint.add_(p.log_weights + log_det + constant)


def observe(
    x: Tensor, offset: Tensor, p: Parameters, nu: float, covariance: Covariance, labels: Tensor | None = None
) -> tuple[Statistics, Tensor]:
    """Expectation step over all rows, in blocks.

    Args:
        x: ``n d``.
        offset: ``d``, subtracted from every row.
        p: The present parameters.
        nu: Degrees of freedom.
        covariance: Structure.
        labels: ``n``: take these hard assignments, with t-weights of 1, in place of the responsibilities.

    Returns:
        The statistics, and the mean log-likelihood under ``p`` (0-d; 0 with ``labels``).
    """
    structure, d, k = STRUCTURES[covariance](p, offset), x.shape[1], len(p.means)
    log_det, total = structure.log_det(p), x.new_zeros(())
    sums: Any = None
    for block in blocks(x):
        distances = structure.distances(x[block])
        if labels is not None:
            share = weights = functional.one_hot(labels[block], k).to(x.dtype)
        else:
            share = log_joint(distances, p, nu, log_det)
            log_likelihood = share.logsumexp(dim=1, keepdim=True)
            total += log_likelihood.sum()
            share = functional.threshold_(  # type: ignore[attr-defined]
                share.sub_(log_likelihood), _NONE, -math.inf
            ).exp_()
            weights = share if math.isinf(nu) else distances.add_(nu).reciprocal_().mul_(nu + d).mul_(share)
        part = (share.sum(dim=0), weights.sum(dim=0), *structure.moments(weights))
        sums = part if sums is None else tuple(old.add_(new) for old, new in zip(sums, part, strict=True))
    return Statistics(*(value.div_(len(x)) for value in sums)), total / len(x)


def maximise(s: Statistics, p: Parameters, covariance: Covariance, ridge: float) -> Parameters:
    """Maximisation step. A component that no row belongs to keeps its place and spread from ``p``, at a tiny weight.

    Scatter is divided by the t-weights' sum, not by the number of rows: the same fixed points as the textbook step, and
    likewise never downhill, but without its crawl in many dimensions (parameter-expanded EM).

    Raises:
        ValueError: If a covariance is not positive definite.

    References:
        Kent, Tyler & Vardi, Communications in Statistics 23 (1994) 441; Liu, Rubin & Wu, Biometrika 85 (1998) 755.
    """
    structure = STRUCTURES[covariance]
    tiny = torch.finfo(s.share.dtype).eps
    alive = (s.share > tiny) & (s.mass > tiny)
    s = Statistics(s.share, s.mass.clamp(min=tiny), s.first, s.second)
    means = torch.where(alive[:, None], s.first / s.mass[:, None], p.means)
    spread = structure.covariance(s, means, p, ridge)
    if covariance != "tied":
        spread = torch.where(alive.view(-1, *[1] * (spread.ndim - 1)), spread, p.covariance)
    log_weights = s.share.clamp(min=tiny).log().log_softmax(dim=0)
    return Parameters(log_weights, means, spread, structure.whiten(spread), s.mass)


def current(p: Parameters, covariance: Covariance, ridge: float) -> Statistics:
    """The statistics from which ``maximise`` gives ``p`` again."""
    return Statistics(p.log_weights.exp(), p.mass, p.mass[:, None] * p.means, STRUCTURES[covariance].second(p, ridge))


def blend(old: Statistics, new: Statistics, rate: float) -> Statistics:
    """``(1 - rate) old + rate new``, term by term."""
    return Statistics(
        *(torch.lerp(getattr(old, term.name), getattr(new, term.name), rate) for term in fields(Statistics))
    )

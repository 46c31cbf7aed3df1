"""The metric term of CXR-CML's released code, step by step: kept to show that it does nothing."""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

__all__ = ["released_metric_term"]

_NU = 8.0
_MARGIN = 0.3
_DISTANCE_SCALE = math.exp(0.07)  # a trained scalar there; without a gradient it stays at its start
_CLIP = 700.0


def released_metric_term(image: Tensor, text: Tensor, seed: int) -> Tensor:
    """The released code's value for one batch: inert, 0 with a gradient of 0, in any training that goes as usual.

    The similarity of soft labels is ``B B`` with rows that sum to 1, so an entry exceeds the threshold of 0.5 only
    where a row is alone in its cluster, paired with itself: two different images are never a positive pair. With
    (almost) no positives the margin is 0.6 and the term ``max(0, 0.6 - mean distance of image and text)``, which is 0
    while that distance is above 0.6 / exp(0.07) = 0.56 (a mean cosine below 0.84). Were it ever nearer, the term would
    push all images and texts apart. On rows without clusters soft labels collapse as well: a Gaussian with full
    covariance over B rows of far more dimensions puts every log-density beyond the clip of 700, and all rows get the
    mixing weights.

    Args:
        image: ``B D`` unit rows.
        text: ``B D`` unit rows of the same pairs.
        seed: Of the mixture. The released code sets none.

    Returns:
        The 0-d term, with graph.

    References:
        chinnarouge/CXR_CML@af3ba61, model.py lines 422-480, 747-793 and 853-898: read for its facts, nothing copied.
    """
    soft = _soft_labels(image.detach().double(), seed)
    similarity = functional.normalize(soft @ soft.T, p=1, dim=1)
    similarity = functional.normalize(torch.where(similarity > 0.5, similarity, 0), p=1, dim=1)
    positive = (similarity > 0.5).to(image.dtype)
    distances = torch.cdist(image, text) * _DISTANCE_SCALE
    near, far = (distances * positive).mean(), (distances * (1 - positive)).mean()
    return (near - far + _MARGIN * (1 + (-near).exp())).clamp(min=0)


def _soft_labels(rows: Tensor, seed: int) -> Tensor:
    from sklearn.mixture import GaussianMixture

    n, d = rows.shape
    components = 2 if n < 10 else min(5, n // 3) if n < 50 else min(40, n // 4)
    fitted = GaussianMixture(components, covariance_type="full", max_iter=100, n_init=3, random_state=seed)
    fitted.fit(rows.cpu().numpy())
    factors, means = (torch.as_tensor(value).to(rows) for value in (fitted.precisions_cholesky_, fitted.means_))
    distances = ((rows - means[:, None]) @ factors).square().sum(dim=2).T
    log_det = factors.diagonal(dim1=1, dim2=2).log().sum(dim=1)
    log_t = math.lgamma((_NU + d) / 2) - math.lgamma(_NU / 2) - d / 2 * math.log(_NU * math.pi) + log_det
    log_t = (log_t - (_NU + d) / 2 * (distances / _NU).log1p()).clamp(-_CLIP, _CLIP)
    weighted = log_t.exp() * torch.as_tensor(fitted.weights_).to(rows)
    soft = (weighted / weighted.sum(dim=1, keepdim=True) / 0.05).softmax(dim=1)
    return functional.normalize(soft / soft.sum(dim=0).log1p(), p=1, dim=1)

from __future__ import annotations

import itertools
import math
from pathlib import Path

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from scipy.special import logsumexp
from scipy.stats import multivariate_t
from sklearn.mixture import GaussianMixture

from medvl_cxr_cml.mixture import StudentTMixture
from medvl_cxr_cml.seeding import kmeans_labels

COVARIANCES = ("diagonal", "tied", "full")
NUS = (2.0, 4.0, 6.0, math.inf)
SKLEARN = {"diagonal": "diag", "tied": "tied", "full": "full"}


def _rows(n: int = 300, d: int = 5, clusters: int = 4, seed: int = 0, spread: float = 3.0) -> torch.Tensor:
    generator = torch.Generator().manual_seed(seed)
    centres = spread * torch.randn(clusters, d, generator=generator, dtype=torch.float64)
    mixing = torch.randn(clusters, d, d, generator=generator, dtype=torch.float64) / math.sqrt(d)
    label = torch.arange(n) % clusters
    noise = torch.randn(n, 1, d, generator=generator, dtype=torch.float64)
    return centres[label] + (noise @ mixing[label])[:, 0] + 2


def _mixture(d: int = 5, k: int = 4, **options) -> StudentTMixture:
    return StudentTMixture(d, k, **{"regularisation": 1e-6, **options}).double()


def _matrices(mixture: StudentTMixture) -> np.ndarray:
    covariance, k = mixture.covariance, mixture.n_components
    if mixture.covariance_type == "diagonal":
        return torch.diag_embed(covariance).numpy()
    return covariance.expand(k, *covariance.shape[-2:]).numpy()


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("nu", NUS[:3])
def test_density_equals_scipys_multivariate_t(covariance, nu):
    x = _rows()
    mixture = _mixture(nu=nu, covariance=covariance)
    mixture.fit(x)
    components = [
        multivariate_t(loc=(mean + mixture.offset).numpy(), shape=matrix, df=nu).logpdf(x.numpy())
        for mean, matrix in zip(mixture.means, _matrices(mixture), strict=True)
    ]
    joint = np.stack(components, axis=1) + mixture.log_weights.numpy()
    np.testing.assert_allclose(mixture.log_prob(x), logsumexp(joint, axis=1), rtol=1e-10)
    np.testing.assert_allclose(mixture.predict_proba(x), np.exp(joint - logsumexp(joint, axis=1)[:, None]), atol=1e-10)
    np.testing.assert_array_equal(mixture.predict(x), joint.argmax(axis=1))


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_infinite_nu_equals_scikit_learns_gaussian_mixture_from_the_same_start(covariance):
    x = _rows(spread=0.8)  # overlapping clusters: the start matters, and iterations are many
    labels = kmeans_labels(x, 4, seed=3)
    ours = _mixture(nu="inf", covariance=covariance, tolerance=1e-5, max_iter=500)
    history = ours.fit(x, labels=labels)
    start = GaussianMixture(4, covariance_type=SKLEARN[covariance])
    start._initialize(x.numpy(), np.eye(4)[labels.numpy()])
    theirs = GaussianMixture(
        4,
        covariance_type=SKLEARN[covariance],
        tol=1e-5,
        max_iter=500,
        weights_init=start.weights_,
        means_init=start.means_,
        precisions_init=_precisions(start),
    ).fit(x.numpy())
    assert 5 < len(history) == theirs.n_iter_
    np.testing.assert_allclose(ours.log_weights.exp(), theirs.weights_, rtol=1e-6)
    np.testing.assert_allclose(ours.means + ours.offset, theirs.means_, atol=1e-6)
    np.testing.assert_allclose(ours.covariance, theirs.covariances_, atol=1e-6)
    np.testing.assert_allclose(ours.log_prob(x), theirs.score_samples(x.numpy()), atol=1e-6)


def _precisions(start: GaussianMixture) -> np.ndarray:
    factor = start.precisions_cholesky_
    return factor**2 if factor.ndim == 2 and factor.shape[0] == 4 else factor @ np.swapaxes(factor, -1, -2)


@settings(deadline=None, max_examples=25)
@given(seed=st.integers(0, 10**6), nu=st.sampled_from(NUS), covariance=st.sampled_from(COVARIANCES))
def test_em_never_lowers_the_likelihood(seed, nu, covariance):
    x = _rows(n=120, d=3, seed=seed, spread=1.5)
    mixture = _mixture(d=3, k=3, nu=nu, covariance=covariance, regularisation=1e-9, seed=seed, max_iter=15, tolerance=0)
    history = mixture.fit(x)
    history.append(mixture.log_prob(x).mean().item())
    assert all(after >= before - 1e-8 for before, after in itertools.pairwise(history)), history
    assert history[-1] > history[0]


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_the_fixed_point_is_that_of_textbook_em(covariance):
    """One update in which scatter is divided by rows, not by weights, leaves a converged fit where it is."""
    x = _rows(n=400, spread=2.0)
    mixture = _mixture(nu=4.0, covariance=covariance, regularisation=0.0, tolerance=1e-13, max_iter=400)
    mixture.fit(x)
    r, z = mixture.predict_proba(x), x - mixture.offset
    found = torch.as_tensor(_matrices(mixture))
    centred = z[:, None] - mixture.means
    distance = torch.einsum("nki,kij,nkj->nk", centred, torch.linalg.inv(found), centred)
    w = r * (4 + 5) / (4 + distance)
    scatter = torch.einsum("nk,nki,nkj->kij", w, centred, centred)
    rows = r.sum(dim=0)[:, None, None]
    update = scatter.sum(dim=0, keepdim=True) / len(x) if covariance == "tied" else scatter / rows
    if covariance == "diagonal":
        update, found = update.diagonal(dim1=1, dim2=2), found.diagonal(dim1=1, dim2=2)
    torch.testing.assert_close(update.expand_as(found), found, atol=1e-5, rtol=1e-4)
    torch.testing.assert_close((w.T @ z) / w.sum(dim=0)[:, None], mixture.means, atol=1e-5, rtol=1e-4)


def test_heavy_tails_in_many_dimensions_take_few_iterations():
    """The textbook step, which divides scatter by rows, takes some 180 here."""
    generator = torch.Generator().manual_seed(0)
    scale = torch.randn(400, 4, generator=generator, dtype=torch.float64).square().mean(dim=1, keepdim=True).rsqrt()
    x = scale * torch.randn(400, 128, generator=generator, dtype=torch.float64)
    x[:200] += 1.5
    history = _mixture(d=128, k=2, tolerance=0.0, max_iter=30).fit(x)
    assert history[0] < history[-1] - 0.1
    assert history[3] > history[-1] - 1e-3


def test_far_rows_pull_a_student_t_less_than_a_gaussian():
    x = torch.cat([_rows(n=200, clusters=1), torch.full((6, 5), 60.0, dtype=torch.float64)])
    error = {}
    for nu in (2.0, math.inf):
        mixture = _mixture(k=1, nu=nu)
        mixture.fit(x)
        error[nu] = (mixture.means[0] + mixture.offset - x[:200].mean(dim=0)).norm().item()
    assert error[2.0] < 0.1 * error[math.inf]


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_order_of_rows_and_names_of_components_do_not_matter(covariance):
    x, order = _rows(), torch.randperm(300, generator=torch.Generator().manual_seed(1))
    labels, names = kmeans_labels(x, 4, 0), torch.tensor([2, 0, 3, 1])
    plain, moved, renamed = (_mixture(covariance=covariance) for _ in range(3))
    plain.fit(x, labels=labels)
    moved.fit(x[order], labels=labels[order])
    renamed.fit(x, labels=names[labels])
    torch.testing.assert_close(moved.means, plain.means)
    torch.testing.assert_close(renamed.means[names], plain.means)
    torch.testing.assert_close(renamed.log_prob(x), plain.log_prob(x))
    assert torch.equal(renamed.predict(x), names[plain.predict(x)])


@pytest.mark.parametrize("covariance", COVARIANCES)
def test_blocks_of_rows_add_up(covariance, monkeypatch):
    x = _rows()
    whole, parts = _mixture(covariance=covariance), _mixture(covariance=covariance)
    whole.fit(x)
    for module in ("em", "mixture"):
        monkeypatch.setattr(f"medvl_cxr_cml.{module}.blocks", lambda x: (slice(i, i + 7) for i in range(0, len(x), 7)))
    parts.fit(x)
    torch.testing.assert_close(parts.means, whole.means)
    torch.testing.assert_close(parts.covariance, whole.covariance)
    torch.testing.assert_close(parts.log_prob(x), whole.log_prob(x))


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("nu", [4.0, math.inf])
def test_batch_of_full_weight_is_an_em_iteration_and_a_small_one_moves_little(covariance, nu):
    x = _rows(spread=1.0)
    one = _mixture(covariance=covariance, nu=nu, max_iter=2, tolerance=0)
    two = _mixture(covariance=covariance, nu=nu, max_iter=3, tolerance=0)
    one.fit(x)
    two.fit(x)
    before = one.means.clone()
    one.partial_fit(x, rate=1.0)
    torch.testing.assert_close(one.means, two.means)
    torch.testing.assert_close(one.covariance, two.covariance)
    two.load_state_dict(one.state_dict())
    two.partial_fit(x, rate=1e-6)
    torch.testing.assert_close(two.means, one.means, atol=1e-4, rtol=0)
    assert not torch.equal(one.means, before)


def test_many_small_batches_reach_the_fit_to_all_rows():
    x = _rows(n=2000)
    online = _mixture(nu=4.0)
    online.partial_fit(x[:200])
    generator = torch.Generator().manual_seed(0)
    for step in range(400):
        online.partial_fit(x[torch.randperm(2000, generator=generator)[:50]], rate=(step + 2) ** -0.7)
    fitted = _mixture(nu=4.0)
    history = fitted.fit(x)
    assert online.log_prob(x).mean().item() > history[-1] - 0.02


@pytest.mark.parametrize("covariance", COVARIANCES)
@pytest.mark.parametrize("nu", [4.0, math.inf])
def test_duplicated_rows_and_empty_components_are_survived(covariance, nu):
    x = torch.tensor([[0.0, 0.0], [1.0, 2.0], [5.0, 1.0]]).repeat(10, 1)
    mixture = StudentTMixture(2, 6, nu=nu, covariance=covariance, regularisation=1e-3)
    mixture.fit(x)
    mixture.partial_fit(x[:4])
    mixture.fit(x, warm_start=True)
    assert all(value.isfinite().all() for value in mixture.buffers())
    assert len(mixture.predict(x).unique()) == 3
    assert mixture.log_weights.exp().sum().item() == pytest.approx(1)


def test_one_component_may_get_one_row():
    x = _rows(n=4)
    mixture = _mixture(covariance="full", regularisation=1e-2)
    mixture.fit(x)
    assert mixture.log_prob(x).isfinite().all()


def test_warm_start_goes_on_where_the_fit_was():
    x = _rows(spread=1.0)
    whole = _mixture(max_iter=20, tolerance=0)
    whole.fit(x)
    halves = _mixture(max_iter=10, tolerance=0)
    halves.fit(x)
    halves.fit(x, warm_start=True)
    torch.testing.assert_close(halves.means, whole.means)


def test_principal_components_are_those_of_the_rows():
    x = torch.cat([10 * _rows(d=2), 1e-3 * _rows(d=6, seed=5)], dim=1)
    reduced, plain = _mixture(d=8, pca_dim=2, covariance="full"), _mixture(d=2, covariance="full")
    labels = kmeans_labels(x, 4, 0)
    reduced.fit(x, labels=labels)
    plain.fit(x[:, :2], labels=labels)
    assert reduced.means.shape == (4, 2)
    torch.testing.assert_close(reduced.predict_proba(x), plain.predict_proba(x[:, :2]), atol=1e-4, rtol=0)
    before, basis = reduced.predict(x), reduced.basis.clone()
    reduced.fit(x + 1e-3 * torch.randn(x.shape, generator=torch.Generator().manual_seed(0)), warm_start=True)
    assert not torch.equal(reduced.basis, basis)
    assert torch.equal(reduced.predict(x), before)


def test_narrow_cone_of_unit_rows_keeps_its_precision_in_fp32():
    """Unit rows that share a large mean: x² - 2 x mu + mu² would cancel without the offset."""
    x = 1e-3 * _rows(n=400, d=16) + 30
    double, single = (StudentTMixture(16, 4, regularisation=1e-9) for _ in range(2))
    labels = kmeans_labels(x, 4, 0)
    double.double().fit(x, labels=labels)
    single.fit(x.float(), labels=labels)
    shift = (single.means.double() + single.offset.double()) - (double.means + double.offset)
    assert shift.abs().max() < 2e-5  # 30 itself has a rounding of 2e-6
    assert (single.predict(x.float()) == double.predict(x)).double().mean() > 0.99


def test_the_same_seed_gives_the_same_fit_and_leaves_the_global_state():
    x, state = _rows(), torch.get_rng_state()
    fits = [_mixture(seed=seed, max_iter=1) for seed in (0, 0, 1)]
    for mixture in fits:
        mixture.fit(x[torch.arange(300) % 280])
    assert torch.equal(fits[0].means, fits[1].means)
    assert not torch.equal(fits[0].means, fits[2].means)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("options", [{}, {"covariance": "full"}, {"covariance": "tied"}, {"pca_dim": 2}])
def test_state_dict_holds_the_fit(options, tmp_path: Path):
    x = _rows()
    first, second = _mixture(**options), _mixture(seed=5, **options)
    first.fit(x)
    torch.save(first.state_dict(), tmp_path / "mixture.pt")
    second.load_state_dict(torch.load(tmp_path / "mixture.pt", weights_only=True))
    assert torch.equal(first.predict_proba(x), second.predict_proba(x))
    for mixture in (first, second):
        mixture.partial_fit(x[:20])
        mixture.fit(x, warm_start=True)
    assert all(torch.equal(second.state_dict()[name], value) for name, value in first.state_dict().items())


def test_few_rows_are_warned_about(caplog):
    with caplog.at_level("WARNING"):
        _mixture().fit(_rows(n=20))
    assert "20 rows for 4 components; with fewer than 10 each" in caplog.text


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"covariance": "spherical"}, "covariance is 'spherical'; give one of"),
        ({"nu": 0}, "nu is positive"),
        ({"n_components": 0}, "components and iterations start at 1"),
        ({"regularisation": -1.0}, "regularisation is not negative"),
        ({"pca_dim": 9}, "pca_dim is 9; give 1 to 5"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        StudentTMixture(5, **options)


@pytest.mark.parametrize("value", [math.nan, math.inf])
@pytest.mark.parametrize("method", ["fit", "partial_fit", "log_prob", "predict", "predict_proba"])
def test_rows_that_are_not_finite_are_refused_before_anything_changes(method, value):
    x = _rows()
    mixture = _mixture()
    mixture.fit(x)
    before = {name: buffer.clone() for name, buffer in mixture.state_dict().items()}
    x[7, 2] = value
    with pytest.raises(ValueError, match=r"rows \[7\] hold NaN or infinite"):
        getattr(mixture, method)(x)
    assert all(torch.equal(buffer, before[name]) for name, buffer in mixture.state_dict().items())


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda m: m.fit(_rows(n=3)), "3 rows for 4 components; give more rows or fewer components"),
        (lambda m: m.fit(_rows(d=4)), r"rows have shape \(300, 4\); give n x 5"),
        (lambda m: m.fit(_rows()[0]), r"rows have shape \(5,\)"),
        (lambda m: m.fit(_rows()[:0]), r"rows have shape \(0, 5\)"),
        (lambda m: m.fit(_rows(), labels=torch.full((300,), 4)), "run from 4 to 4; give one of 0 to 3"),
        (lambda m: m.fit(_rows(), labels=torch.zeros(5)), r"labels have shape \(5,\)"),
        (lambda m: m.partial_fit(_rows(), rate=0), "rate is 0; give the batch a weight above 0"),
        (lambda m: m.predict(_rows()), "nothing is fitted yet"),
    ],
)
def test_wrong_calls_are_named(call, message):
    with pytest.raises(ValueError, match=message):
        call(_mixture())


def test_singular_covariance_is_named():
    x = _rows()
    x[:, 4] = 2.0
    with pytest.raises(ValueError, match=r"covariance of component \[0, 1, 2, 3\].*raise regularisation"):
        _mixture(covariance="full", regularisation=0.0).fit(x)

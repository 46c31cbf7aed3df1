from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from medvl_core.build import build_loss
from medvl_core.engine.alignment import AlignmentLoss
from medvl_core.protocols import AlignmentBatch
from medvl_cxr_cml.bank import FeatureBank
from medvl_cxr_cml.cluster_triplet import ClusterTriplet
from medvl_cxr_cml.reference_compat import _soft_labels, released_metric_term
from medvl_cxr_cml.triplet import triplet_loss

WIDTH = 16


def _batch(step: int = 0, n: int = 12, width: int = WIDTH, clusters: int = 3) -> AlignmentBatch:
    """Unit rows around fixed centres, other rows for each step."""
    centres = torch.randn(clusters, width, generator=torch.Generator().manual_seed(99))
    generator = torch.Generator().manual_seed(step)
    kind = torch.randint(0, clusters, (n,), generator=generator)
    embeddings = {
        name: functional.normalize(centres[kind] + 0.7 * torch.randn(n, width, generator=generator), dim=1)
        for name in ("cxr", "report")
    }
    return AlignmentBatch({name: rows.requires_grad_() for name, rows in embeddings.items()}, torch.tensor(14.3))


def _loss(**options) -> ClusterTriplet:
    return ClusterTriplet(**{"embed_dim": WIDTH, "n_clusters": 3, "bank_size": 64, "refit_every": 4, **options})


def _trained(steps: int = 10, **options) -> ClusterTriplet:
    loss = _loss(**options)
    for step in range(steps):
        loss(_batch(step))
    return loss


def _equal_states(first: torch.nn.Module, second: torch.nn.Module) -> bool:
    states = first.state_dict(), second.state_dict()
    return states[0].keys() == states[1].keys() and all(torch.equal(states[1][k], v) for k, v in states[0].items())


def test_bank_is_first_in_first_out():
    bank = FeatureBank(5, 1)
    assert len(bank) == len(bank.rows()) == 0
    kept: list[float] = []
    for start, n in ((0, 2), (10, 2), (20, 3), (30, 5), (40, 9), (50, 1)):
        rows = torch.arange(start, start + n, dtype=torch.float32)[:, None]
        bank.push(rows)
        kept = (kept + rows[:, 0].tolist())[-5:]
        assert sorted(bank.rows()[:, 0].tolist()) == sorted(kept)
        assert len(bank) == len(kept)


def test_loss_is_the_triplet_loss_on_the_mixtures_labels():
    loss, batch = _trained().eval(), _batch(50)
    output = loss(batch)
    rows = batch.embeddings["cxr"]
    labels = loss.mixture.predict(rows)
    expected, active = triplet_loss(rows, labels, 0.3, "batch_all")
    assert torch.equal(output.total, expected)
    assert output.terms["active_triplets"] == active > 0
    assert output.terms["clusters"] == len(labels.unique()) == 3
    assert torch.autograd.grad(output.total, rows)[0].any()


def test_pseudo_labels_are_invariant_to_the_names_of_the_components():
    loss, batch = _trained().eval(), _batch(50)
    before = loss(batch).total
    for name in ("log_weights", "means", "covariance", "whitening", "mass"):
        buffer = getattr(loss.mixture, name)
        buffer.copy_(buffer[torch.tensor([2, 0, 1])])
    assert torch.equal(loss(batch).total, before)


def test_pseudo_labels_find_the_clusters():
    loss = _trained(20)
    batch, centres = _batch(77, n=200), torch.randn(3, WIDTH, generator=torch.Generator().manual_seed(99))
    truth = torch.randint(0, 3, (200,), generator=torch.Generator().manual_seed(77))
    found = loss.mixture.predict(functional.normalize(centres, dim=1))
    assert len(found.unique()) == 3
    assert (loss.mixture.predict(batch.embeddings["cxr"]) == found[truth]).float().mean() > 0.95


def test_loss_is_zero_with_graph_until_the_bank_has_ten_rows_per_cluster():
    loss = _loss()
    for step in range(2):
        batch = _batch(step)
        total = loss(batch).total
        assert total.item() == 0
        assert torch.equal(torch.autograd.grad(total, batch.embeddings["cxr"])[0], torch.zeros(12, WIDTH))
        assert not loss.mixture.fitted
    assert loss(_batch(2)).total > 0  # 36 rows
    assert loss.mixture.fitted


def test_first_fit_waits_for_start_after_and_later_ones_keep_their_distance():
    loss, fits = _loss(start_after=5, online_rate=0.0), []
    for step in range(1, 15):
        before = loss.mixture.means.clone()
        total = loss(_batch(step)).total
        assert bool(loss.mixture.fitted) == (step > 5)
        assert total == 0 or step > 5
        if not torch.equal(before, loss.mixture.means):
            fits.append(step)
    assert fits == [6, 10, 14]
    assert len(loss.bank) == 64


def test_cosine_is_the_mean_over_all_pairs():
    batch = _batch()
    rows = batch.embeddings["cxr"].detach().double()
    pairs = [(rows[i] @ rows[j]).item() for i in range(12) for j in range(12) if i != j]
    assert _loss()(batch).terms["cosine"].item() == pytest.approx(sum(pairs) / len(pairs), abs=1e-6)


@pytest.mark.parametrize("online_rate", [0.0, 0.05])
def test_mixture_moves_at_refits_and_between_them_only_when_online(online_rate):
    loss, moved = _trained(3, online_rate=online_rate), []
    for step in range(3, 11):
        before = loss.mixture.means.clone()
        loss(_batch(step))
        moved.append(not torch.equal(before, loss.mixture.means))
    assert moved == [bool(online_rate) or step % 4 == 0 for step in range(1, 9)]


def test_refit_is_the_warm_fit_to_the_bank():
    loss = _trained(6, online_rate=0.0)
    other = _loss().mixture
    other.load_state_dict(loss.mixture.state_dict())
    loss(_batch(6))
    other.fit(loss.bank.rows(), warm_start=True)
    assert torch.equal(loss.mixture.means, other.means)


def test_eval_mode_leaves_bank_and_mixture_alone():
    loss = _trained().eval()
    before = {name: value.clone() for name, value in loss.state_dict().items()}
    loss(_batch(50))
    assert all(torch.equal(value, before[name]) for name, value in loss.state_dict().items())


@pytest.mark.parametrize(
    "options", [{}, {"pca_dim": 4, "covariance": "full"}, {"covariance": "tied", "nu": "inf", "start_after": 7}]
)
@pytest.mark.parametrize("stop", [1, 5, 8])
def test_run_continues_bit_for_bit_from_the_state_of_the_alignment_loss(options, stop, tmp_path):
    def build() -> AlignmentLoss:
        metric = build_loss(
            "cxr_cml/cluster_triplet", embed_dim=WIDTH, n_clusters=3, bank_size=64, refit_every=4, **options
        )
        clip = build_loss("baseline/infonce", pair=("cxr", "report"))
        return AlignmentLoss(losses={"clip": clip, "metric": metric}, weights={"clip": 1.0, "metric": 1.0})

    def run(loss: AlignmentLoss, steps: range) -> list[float]:
        return [loss(_batch(step)).item() for step in steps]

    whole, first, second = build(), build(), build()
    expected = run(whole, range(14))
    losses = run(first, range(stop))
    torch.save(first.state_dict(), tmp_path / "state.pt")
    second.load_state_dict(torch.load(tmp_path / "state.pt", weights_only=True))
    assert losses + run(second, range(stop, 14)) == expected
    assert _equal_states(second, whole)


def test_total_is_the_sum_of_the_contrastive_and_the_metric_loss():
    metric, clip, batch = _trained().eval(), build_loss("baseline/infonce", pair=("cxr", "report")), _batch(50)
    total = AlignmentLoss(losses={"clip": clip, "metric": metric}, weights={"clip": 1.0, "metric": 0.5})(batch)
    torch.testing.assert_close(total, clip(batch).total + 0.5 * metric(batch).total)
    terms = ("cluster_triplet", "active_triplets", "clusters", "cosine")
    assert {"clip", *(f"metric/{term}" for term in terms)} == set(batch.terms)


def test_ranks_that_see_the_gathered_batch_stay_in_step(monkeypatch):
    """Each of two simulated processes gathers both halves in the order of ranks, as ``gather_rows`` does."""
    ranks = [AlignmentLoss(losses={"metric": _loss()}) for _ in range(2)]
    alone = _loss()
    for step in range(12):
        whole = _batch(step)
        halves = [{name: rows[half] for name, rows in whole.embeddings.items()} for half in (slice(6), slice(6, 12))]
        for own, loss in zip(halves, ranks, strict=True):
            gathered = {id(own[name]): torch.cat([half[name] for half in halves]) for name in own}
            monkeypatch.setattr("medvl_core.engine.alignment.gather_rows", lambda rows, all=gathered: all[id(rows)])
            loss(AlignmentBatch(dict(own), whole.logit_scale))
        alone(whole)
    assert alone.mixture.fitted
    assert _equal_states(ranks[0], ranks[1])
    assert _equal_states(ranks[0].losses["metric"], alone)


def test_training_on_the_loss_draws_clusters_together():
    loss = _loss(mining="semi_hard")
    rows = torch.cat([_batch(step).embeddings["cxr"].detach() for step in range(6)])
    rows.requires_grad_()
    optimiser = torch.optim.SGD([rows], lr=2.0)
    values = []
    for _ in range(30):
        total = loss(AlignmentBatch({"cxr": functional.normalize(rows, dim=1)}, torch.tensor(1.0))).total
        optimiser.zero_grad()
        total.backward()
        optimiser.step()
        values.append(total.item())
    unit = functional.normalize(rows.detach(), dim=1)
    labels = loss.mixture.predict(unit)
    hardest = triplet_loss(unit, labels, 0.3, "batch_all")[1]
    start = torch.cat([_batch(step).embeddings["cxr"].detach() for step in range(6)])
    assert hardest < 0.2 * triplet_loss(start, labels, 0.3, "batch_all")[1]


@pytest.mark.parametrize("clusters", [4, 1000])
@pytest.mark.parametrize("n", [8, 32])
def test_released_term_is_inert(n, clusters):
    """0 with a gradient of 0 on unit rows, in clusters or scattered: texts lie farther than 0.6 / exp(0.07)."""
    batch = _batch(n=n, width=512, clusters=clusters)
    total = ClusterTriplet(512, mode="reference_compat")(batch).total
    assert total.item() == 0
    for gradient in torch.autograd.grad(total, list(batch.embeddings.values())):
        assert torch.equal(gradient, torch.zeros_like(gradient))


def test_released_soft_labels_collapse_on_scattered_rows_and_no_pair_is_ever_positive():
    scattered, clustered = (
        _batch(n=16, width=512, clusters=clusters).embeddings["cxr"].detach().double() for clusters in (1000, 4)
    )
    soft = _soft_labels(scattered, seed=0)
    torch.testing.assert_close(soft, soft[:1].expand_as(soft))
    soft = _soft_labels(clustered, seed=0)
    assert (soft - soft[:1]).abs().max() > 0.5
    similarity = functional.normalize(soft @ soft.T, p=1, dim=1)
    assert not ((similarity > 0.5) & ~torch.eye(16, dtype=torch.bool)).any()


def test_released_term_pushes_image_and_text_apart_where_all_of_them_nearly_coincide():
    """The one case with a gradient: nothing counts as a positive, so it is 0.6 minus the mean scaled distance."""
    generator = torch.Generator().manual_seed(0)
    rows = functional.normalize(
        torch.ones(8, 16) + 0.1 * torch.randn(8, 16, generator=generator), dim=1
    ).requires_grad_()
    text = rows.detach().roll(1, dims=0)
    total = released_metric_term(rows, text, seed=0)
    assert total.item() == pytest.approx(0.6 - math.exp(0.07) * torch.cdist(rows, text).mean().item(), abs=1e-6)
    assert torch.autograd.grad(total, rows)[0].any()


def test_reference_compat_has_no_bank():
    loss = ClusterTriplet(512, mode="reference_compat")
    assert set(loss.state_dict()) == {"step"}
    assert not list(loss.parameters())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"mining": "hard"}, "mining='hard'"),
        ({"mode": "code"}, "mode='code'; give one of .* and 'paper' or 'reference_compat'"),
        ({"bank_size": 2}, "bank_size=2, n_clusters=3.*a row per cluster"),
        ({"refit_every": 0}, "refit_every=0.*start_after is at least 0, refit_every 1"),
        ({"start_after": -1}, "start_after=-1"),
        ({"online_rate": 2.0}, r"online_rate in \[0, 1\]"),
        ({"margin": -0.1}, "the margin not negative"),
        ({"covariance": "spherical"}, "covariance is 'spherical'"),
    ],
)
def test_wrong_options_are_named(options, message):
    with pytest.raises(ValueError, match=message):
        _loss(**options)


@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_embeddings_that_are_not_finite_are_refused_before_they_enter_the_bank(value):
    loss, batch = _trained(), _batch()
    before = {name: buffer.clone() for name, buffer in loss.state_dict().items()}
    batch.embeddings["cxr"].detach()[3, 1] = value
    with pytest.raises(ValueError, match=r"embeddings of 'cxr' are not finite in rows \[3\]"):
        loss(batch)
    assert all(torch.equal(buffer, before[name]) for name, buffer in loss.state_dict().items())


def test_missing_modality_and_wrong_width_are_named():
    with pytest.raises(ValueError, match=r"no embeddings of 'ct', only .*add a tower or fix modality"):
        _loss(modality="ct")(_batch())
    with pytest.raises(ValueError, match=r"shape \(12, 16\), not P x 8; set embed_dim"):
        _loss(embed_dim=8)(_batch())
    with pytest.raises(ValueError, match="no embeddings of 'report'"):
        ClusterTriplet(WIDTH, mode="reference_compat")(AlignmentBatch({"cxr": torch.ones(8, WIDTH)}, torch.tensor(1.0)))

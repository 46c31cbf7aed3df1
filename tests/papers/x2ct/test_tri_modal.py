from __future__ import annotations

import pytest
import torch
import torch.nn.functional as F

from medvl_core.build import build_encoder, build_loss
from medvl_core.engine.alignment import AlignmentLoss, AlignmentModel, Tower
from medvl_core.protocols import AlignmentBatch
from medvl_x2ct.tri_modal import TriModal


def batch(scale: float = 1 / 0.07, dtype: torch.dtype = torch.float32) -> AlignmentBatch:
    generator = torch.Generator().manual_seed(0)
    rows = {name: F.normalize(torch.randn(7, 5, generator=generator), dim=1) for name in ("ct", "report", "cxr")}
    return AlignmentBatch({name: value.to(dtype) for name, value in rows.items()}, torch.tensor(scale))


def reference(a: torch.Tensor, b: torch.Tensor, scale: float) -> float:
    """Eq. 1 pair by pair in float64, with the mean over the pairs."""
    total = 0.0
    for x, y in ((a.double(), b.double()), (b.double(), a.double())):
        for i in range(len(x)):
            similarities = torch.stack([scale * x[i] @ y[j] for j in range(len(y))])
            total -= float(similarities[i] - similarities.exp().sum().log()) / len(x) / 2
    return total


@pytest.mark.parametrize("weights", [(0.0, 1.0, 1.0), (0.5, 2.0, 0.25), (0.0, 0.0, 1.0), (0.0, 1.0, 0.0)])
@pytest.mark.parametrize("teacher_scale", [None, 2.7])
def test_it_is_the_weighted_sum_of_the_papers_losses(weights, teacher_scale):
    data = batch()
    ct, report, cxr = (data.embeddings[name] for name in ("ct", "report", "cxr"))
    scale = teacher_scale or 1 / 0.07
    parts = [reference(*pair, scale) for pair in ((report, ct), (cxr, report), (cxr, ct))]
    output = TriModal(*weights, teacher_scale=teacher_scale)(data)
    assert output.total.item() == pytest.approx(sum(w * p for w, p in zip(weights, parts, strict=True)), rel=1e-5)
    names = ("report_ct", "cxr_report", "cxr_ct")
    wanted = {name: part for name, part, weight in zip(names, parts, weights, strict=True) if weight}
    assert {name: term.item() for name, term in output.terms.items()} == pytest.approx(wanted, rel=1e-5)


def test_it_gives_the_numbers_of_the_bundles_weighting():
    """The bundle writes the same objective as two named losses with the weights beta and gamma."""
    beta, gamma = 0.3, 1.7
    pairs = {"cxr_report": ["cxr", "report"], "cxr_ct": ["cxr", "ct"]}
    bundle = AlignmentLoss(
        {name: build_loss("baseline/infonce", pair=pair) for name, pair in pairs.items()},
        {"cxr_report": beta, "cxr_ct": gamma},
    )
    ours = AlignmentLoss({"tri_modal": build_loss("x2ct/tri_modal", beta=beta, gamma=gamma)})
    first, second = batch(), batch()
    gradients = []
    for loss, data in ((bundle, first), (ours, second)):
        data.embeddings["cxr"].requires_grad_()
        total = loss(data)
        total.backward()
        gradients.append((total.detach(), data.embeddings["cxr"].grad))
    assert torch.equal(gradients[0][0], gradients[1][0])
    assert torch.equal(gradients[0][1], gradients[1][1])
    assert {f"tri_modal/{name}": value.item() for name, value in first.terms.items()} == {
        name: value.item() for name, value in second.terms.items()
    }


def test_a_missing_modality_matters_only_if_it_is_weighted():
    data = batch()
    del data.embeddings["ct"]
    assert TriModal(gamma=0.0)(data).total.isfinite()
    with pytest.raises(ValueError, match=r"batch has no embeddings of \['ct'\]"):
        TriModal()(data)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"beta": -1.0}, "weights are at least 0"),
        ({"teacher_scale": 0.0}, "teacher_scale 0.0"),
        ({"beta": 0.0, "gamma": 0.0}, "every loss has weight 0"),
    ],
)
def test_impossible_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        TriModal(**options)


def test_one_step_trains_the_radiograph_tower_alone():
    """The towers as they are meant to be put together, in tiny sizes."""
    from medvl_core.manager import registry

    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        encoders = {
            modality: build_encoder(f"x2ct/{name}", **registry().find("encoder", f"x2ct/{name}").spec.tiny)
            for modality, name in (("ct", "ct_clip_vit"), ("report", "cxr_bert"), ("cxr", "resnet50"))
        }
    towers = {name: Tower(encoder, embed_dim=None, frozen=name != "cxr") for name, encoder in encoders.items()}
    teachers = {name: towers[name] for name in ("ct", "report")}
    model = AlignmentModel({"cxr": towers["cxr"]}, learn_temperature=False, frozen_towers=teachers)
    generator = torch.Generator().manual_seed(0)
    inputs = {
        "cxr": torch.rand(4, 1, 32, 32, generator=generator),
        "ct": torch.rand(4, 1, 16, 16, 8, generator=generator),
        "report": ["clear", "effusion", "nodule", "no finding"],
    }
    TriModal()(model(inputs)).total.backward()
    assert all(parameter.grad is not None for parameter in towers["cxr"].parameters())
    assert all(parameter.grad is None for tower in teachers.values() for parameter in tower.parameters())

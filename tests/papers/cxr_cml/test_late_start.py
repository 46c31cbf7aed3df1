"""The metric loss of the default settings, on towers that know nothing yet: ten layers, made-up rows."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from torch import nn
from torch.nn import functional

from medvl_core.build import build_loss
from medvl_core.protocols import AlignmentBatch
from medvl_cxr_cml.cluster_triplet import ClusterTriplet

TRAIN = json.loads((Path(__file__).parents[3] / "monai_bundles" / "cxr_cml" / "configs" / "train.json").read_text())
STEPS, ROWS, LABELS, WIDTH = 160, 400, 8, 64


def _train(weight: float, start: float, seed: int = 0) -> float:
    """Share of rows whose nearest caption is their own, after training from scratch.

    Args:
        weight: Of the metric loss.
        start: Share of the steps before it begins.
        seed: Of rows and weights.
    """
    generator = torch.Generator().manual_seed(seed)
    label = torch.randint(0, LABELS, (ROWS,), generator=generator)
    kinds = torch.randn(LABELS, WIDTH, generator=generator) / 2
    x = kinds[label] + 4.5 * torch.randn(ROWS, WIDTH, generator=generator) + 3 * torch.randn(WIDTH, generator=generator)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        layers = [layer for _ in range(8) for layer in (nn.Linear(WIDTH, WIDTH), nn.ReLU())]
        image, text = nn.Sequential(*layers, nn.Linear(WIDTH, WIDTH, bias=False)), nn.Embedding(LABELS, WIDTH)
    clip = build_loss("baseline/infonce", pair=("cxr", "report"), duplicates="multi_positive")
    options = {name: TRAIN[name] for name in ("n_clusters", "nu", "bank_size")}
    metric = ClusterTriplet(WIDTH, start_after=int(start * STEPS), refit_every=12, **options)
    parameters = [*image.parameters(), *text.parameters()]
    optimiser = torch.optim.AdamW(
        parameters, lr=TRAIN["learning_rate"], weight_decay=TRAIN["optimizer"]["weight_decay"]
    )
    for _ in range(STEPS):
        rows = torch.randint(0, ROWS, (TRAIN["batch_size"],), generator=generator)
        seen = x[rows] + 3 * torch.randn(len(rows), WIDTH, generator=generator)
        embeddings = {"cxr": functional.normalize(image(seen)), "report": functional.normalize(text(label[rows]))}
        batch = AlignmentBatch(embeddings, torch.tensor(14.3), {"text_group": label[rows]})
        loss = clip(batch).total + (weight * metric(batch).total if weight else 0)
        optimiser.zero_grad()
        loss.backward()
        nn.utils.clip_grad_norm_(parameters, TRAIN["max_norm"])
        optimiser.step()
    with torch.no_grad():
        nearest = (functional.normalize(image(x)) @ functional.normalize(text.weight).T).argmax(1)
    return (nearest == label).float().mean().item()


@pytest.fixture(scope="module")
def captions_alone() -> float:
    return _train(0.0, 0.0)


def test_default_settings_learn_what_captions_alone_learn(captions_alone):
    default = _train(TRAIN["metric_weight"], TRAIN["metric_start"] / TRAIN["epochs"])
    assert captions_alone > 0.5  # chance is 0.125
    assert default > captions_alone - 0.15


def test_without_the_late_start_they_do_not(captions_alone):
    assert _train(1.0, 0.0) < captions_alone - 0.25

from __future__ import annotations

import pytest
import torch
from ignite.engine import Engine

from medvl_ct_glip.freeze import FreezeUntil


def run(epochs, max_epochs=3):
    """Epoch → whether the held layer and the free one moved; both are known to one optimiser."""
    torch.manual_seed(0)
    held, free = torch.nn.Linear(2, 2), torch.nn.Linear(2, 1)
    optimizer = torch.optim.RAdam([*held.parameters(), *free.parameters()], lr=0.1)
    moved = []

    def step(engine, batch):
        before = held.weight.detach().clone(), free.weight.detach().clone()
        optimizer.zero_grad()
        free(held(batch)).square().sum().backward()
        optimizer.step()
        moved.append((not torch.equal(held.weight, before[0]), not torch.equal(free.weight, before[1])))

    engine = Engine(step)
    FreezeUntil(held, epochs).attach(engine)
    engine.run([torch.ones(1, 2)], max_epochs=max_epochs)
    return moved


def test_the_module_is_held_for_the_first_epochs_only():
    assert run(2) == [(False, True), (False, True), (True, True)]
    assert run(0) == [(True, True)] * 3


def test_a_resumed_trainer_goes_on_as_an_uninterrupted_one():
    layer, seen = torch.nn.Linear(1, 1), []
    engine = Engine(lambda engine, batch: seen.append(layer.weight.requires_grad))
    FreezeUntil(layer, 2).attach(engine)
    engine.load_state_dict({"epoch": 2, "max_epochs": 3, "epoch_length": 1})
    engine.run([0])
    assert seen == [True]


def test_a_negative_number_of_epochs_is_refused():
    with pytest.raises(ValueError, match="epochs is -1; at least 0"):
        FreezeUntil(torch.nn.Linear(1, 1), -1)

from __future__ import annotations

from types import SimpleNamespace

import pytest
import torch

from medvl_core import protocols
from medvl_core.protocols import AlignmentBatch, TokenBatch


def test_token_batch_moves_both_tensors_and_counts_rows():
    batch = TokenBatch(torch.ones(3, 5, dtype=torch.int64), torch.ones(3, 5, dtype=torch.bool))
    moved = batch.to("meta")
    assert len(batch) == 3
    assert moved.input_ids.device.type == moved.attention_mask.device.type == "meta"


def test_alignment_batches_do_not_share_extras():
    one, other = (AlignmentBatch({}, torch.ones(())) for _ in range(2))
    one.extras["text_group"] = 1
    one.terms["loss"] = torch.zeros(())
    assert (other.extras, other.terms) == ({}, {})


@pytest.mark.parametrize(
    ("protocol", "members"),
    [
        ("TextSource", ("texts",)),
        (
            "Evaluator",
            ("metrics", "reset", "update", "compute", "intervals", "chance", "tables", "figures"),
        ),
        ("Classifies", ("classes",)),
        ("Scores", ("classes", "predictions")),
        ("Predicts", ("classes", "predictions", "stem", "prompts", "predict")),
        ("Dataset", ("studies", "label_names")),
        ("TextEncoder", ("tokenize", "embed_dim", "input", "__call__")),
    ],
)
def test_protocols_are_checked_by_their_members(protocol, members):
    def instance(names):
        methods = {name: (lambda self, *_: None) for name in names}
        return type("Component", (SimpleNamespace,), methods)()

    assert isinstance(instance(members), getattr(protocols, protocol))
    for left_out in set(members) - {"__call__"}:
        assert not isinstance(instance(set(members) - {left_out}), getattr(protocols, protocol))

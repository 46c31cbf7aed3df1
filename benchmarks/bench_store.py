"""A training step of the radiograph tower: teacher embeddings from the store, against frozen towers run in every step.

``python benchmarks/bench_store.py`` takes the towers of the x2ct bundle's ``train.json``; ``--full`` those of its
``paper.json`` (CT-CLIP's size at random weights, Swin-T at 224 pixels), for a batch of 2.
"""

from __future__ import annotations

import argparse
import tempfile
from pathlib import Path

import torch
from rounds import measure, write_results
from torch import nn

from medvl_core import build_encoder, build_loss, build_pooling
from medvl_core.engine.alignment import AlignmentLoss, AlignmentModel, Tower
from medvl_imaging.store.tensors import TensorStore

CASES = ("train.json, batch 48", "paper.json, batch 2")


def demo_towers() -> dict[str, Tower]:
    """The towers of train.json."""
    encoders = {
        "cxr": build_encoder("baseline/resnet18_2d", size=[96, 96], base_width=32),
        "ct": build_encoder("baseline/resnet_3d", size=[48, 48, 48], depth=10, base_width=16),
        "report": build_encoder("baseline/bert_small", hidden_size=128, layers=2, heads=4, max_length=160),
    }
    return {
        name: Tower(encoder, build_pooling("baseline/mean"), 128, frozen=name != "cxr")
        for name, encoder in encoders.items()
    }


def paper_towers() -> dict[str, Tower]:
    """The towers of paper.json, at random weights: the cost does not depend on them."""
    encoders = {
        "cxr": build_encoder("x2ct/swin_t", initialisation="random"),
        "ct": build_encoder("x2ct/ct_clip_vit"),
        "report": build_encoder("x2ct/cxr_bert"),
    }
    return {name: Tower(encoder, None, None, frozen=name != "cxr") for name, encoder in encoders.items()}


class Step:
    """One optimiser step on fixed inputs.

    Args:
        towers: Modality → tower.
        size: Studies in the batch.
        store: Where stored embeddings are read from in every step; ``None`` runs the frozen towers.
    """

    def __init__(self, towers: dict[str, Tower], size: int, store: TensorStore | None = None) -> None:
        self.store = store
        frozen = {} if store is not None else {name: towers[name] for name in ("ct", "report")}
        self.model = AlignmentModel({"cxr": towers["cxr"]}, learn_temperature=False, frozen_towers=frozen)
        losses: dict[str, nn.Module] = {
            name: build_loss("baseline/infonce", pair=["cxr", name]) for name in ("ct", "report")
        }
        self.loss = AlignmentLoss(losses)
        self.optimizer = torch.optim.AdamW(towers["cxr"].parameters(), lr=1e-4)
        generator = torch.Generator().manual_seed(0)
        self.batch: dict[str, object] = {
            name: torch.rand(size, 1, *towers[name].encoder.input.size, generator=generator) for name in ("cxr", "ct")
        }
        words = "no pleural effusion. calcified plaques of the aorta. nodule in the right upper lobe. "
        self.batch["report"] = [f"study {i}. {words}" for i in range(size)]
        self.width = towers["cxr"].embed_dim

    def fill(self) -> None:
        """Store a row per study, once."""
        assert self.store is not None
        size = len(self.batch["report"])  # type: ignore[arg-type]
        rows = nn.functional.normalize(torch.randn(2 * size, self.width, generator=torch.Generator().manual_seed(1)))
        keys = [(f"{name}{i}", "content") for name in ("ct", "report") for i in range(size)]
        self.store.put(keys, rows.numpy())

    def __call__(self) -> None:
        batch = self.batch
        if self.store is not None:
            size = len(batch["report"])  # type: ignore[arg-type]
            batch = {"cxr": batch["cxr"]}
            for name in ("ct", "report"):
                rows = [torch.tensor(self.store.get((f"{name}{i}", "content"))) for i in range(size)]
                batch[f"{name}_embedding"] = torch.stack(rows)
        self.optimizer.zero_grad()
        self.loss(self.model(batch)).backward()
        self.optimizer.step()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--quick", action="store_true", help="two rounds")
    parser.add_argument("--full", action="store_true", help="also a step at published size: minutes, 10 GB")
    options = parser.parse_args()
    rows = case(CASES[0], demo_towers(), 48, 2 if options.quick else 5)
    if options.full:
        rows += case(CASES[1], paper_towers(), 2, 0)
    write_results("store", rows)


def case(name: str, towers: dict[str, Tower], size: int, rounds: int) -> list[dict[str, object]]:
    """Both ways of one step, in turns."""
    with tempfile.TemporaryDirectory() as folder:
        store = TensorStore(Path(folder), producer="bench", preprocessing="none", shape=(towers["cxr"].embed_dim,))
        with_store = Step(towers, size, store)
        with_store.fill()
        peers = {"with the store": with_store, "frozen towers in every step": Step(towers, size)}
        return measure(f"training step, {name}", peers, rounds, "with the store")


if __name__ == "__main__":
    main()

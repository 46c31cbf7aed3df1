"""Run by torchrun: one training step on this process's half of the batch, and an uneven evaluation."""

from __future__ import annotations

import sys

import torch
import torch.distributed as dist
from torch import nn

from medvl_core.build import build_loss
from medvl_core.engine import distributed
from medvl_core.engine.alignment import AlignmentLoss, AlignmentModel, Tower
from medvl_core.protocols import EncoderOutput


class Rows(nn.Module):
    """A linear layer as an encoder with one token."""

    embed_dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(6, 8)

    def forward(self, x: torch.Tensor) -> EncoderOutput:
        row = torch.tanh(self.layer(x))
        return EncoderOutput(row[:, None], (1,), pooled=row)


def make_model() -> AlignmentModel:
    torch.manual_seed(0)
    return AlignmentModel({name: Tower(Rows(), None, embed_dim=5) for name in ("cxr", "report")})


def make_batch() -> dict[str, torch.Tensor]:
    generator = torch.Generator().manual_seed(1)
    return {name: torch.randn(8, 6, generator=generator) for name in ("cxr", "report")}


def step(network: nn.Module, batch: dict[str, torch.Tensor]) -> float:
    loss = AlignmentLoss({"nce": build_loss("baseline/infonce", pair=("cxr", "report"))})(network(batch))
    loss.backward()
    return loss.item()


def main(out: str) -> None:
    dist.init_process_group("gloo")
    rank = distributed.rank()
    model = make_model()
    network = nn.parallel.DistributedDataParallel(model)
    half = {name: rows[rank * 4 : rank * 4 + 4] for name, rows in make_batch().items()}
    loss = step(network, half)
    gathered = distributed.gather_objects(["row"] * (3 if rank else 4))
    plain = distributed.gather_rows(torch.full((2,), float(rank)))
    if rank == 0:
        gradients = {name: parameter.grad for name, parameter in model.named_parameters()}
        torch.save(
            {"loss": loss, "gradients": gradients, "uneven": [len(part) for part in gathered], "plain": plain}, out
        )
    dist.barrier()  # a process that leaves first closes connections that the other still reads
    dist.destroy_process_group()


if __name__ == "__main__":
    main(sys.argv[1])

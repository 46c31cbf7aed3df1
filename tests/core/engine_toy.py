"""A whole training stage in miniature, for the engine tests."""

from __future__ import annotations

import random
from pathlib import Path
from typing import Any

import numpy as np
import torch
from ignite.engine import Events
from monai.engines import SupervisedEvaluator, SupervisedTrainer
from monai.handlers import LrScheduleHandler, ValidationHandler
from monai.transforms import RandGaussianNoise
from torch import nn

from medvl_core.engine import EpochLine, ExactResume, GuardStep, PluginMetric, SaveBest, prepare_batch
from medvl_core.engine.alignment import AlignmentLoss, AlignmentModel, Tower
from medvl_core.engine.loading import StudyDataset, study_loader
from medvl_core.protocols import EncoderOutput, LossOutput
from medvl_core.specs import ImageInput
from medvl_core.study import Study
from medvl_imaging.images import ImageRows


class Encoder(nn.Module):
    """A layer with dropout over the pixels."""

    embed_dim = 8

    def __init__(self) -> None:
        super().__init__()
        self.layer = nn.Linear(64, 8)
        self.dropout = nn.Dropout(0.3)

    def forward(self, x: torch.Tensor) -> EncoderOutput:
        row = self.dropout(self.layer(x.flatten(1)))
        return EncoderOutput(row[:, None], (1,), pooled=row)


class Pull(nn.Module):
    """Pulls radiographs towards the first axis; third-party noise from the global generators comes on top."""

    def forward(self, batch: Any) -> LossOutput:
        noise = random.random() + float(np.random.rand()) + torch.rand(())
        value = -batch.embeddings["cxr"][:, 0].mean() * (1 + 0.1 * noise)
        return LossOutput(value, {"pull": value})


class FirstAxis:
    """Evaluator: the mean of the first axis, scaled so that later epochs can be worse."""

    def reset(self) -> None:
        self.values: list[float] = []
        self.ids: list[str] = []

    def update(self, outputs: Any) -> None:
        self.values += outputs["embeddings"]["cxr"][:, 0].tolist()
        self.ids += outputs["study_id"]

    def compute(self) -> dict[str, float]:
        return {"first_axis": float(np.mean(self.values)), "n": float(len(self.ids))}


def stage(
    folder: Path,
    studies: list[Study],
    *,
    workers: int = 0,
    resume: bool = False,
    epochs: int = 4,
    seed: int = 0,
    every: int | None = None,
    evaluator: Any = None,
    batch_size: int = 4,
) -> tuple[SupervisedTrainer, list[tuple[int, float]], AlignmentModel]:
    """Trainer, the list its losses go to as (step, loss), and the model."""
    torch.manual_seed(seed)
    tower = Tower(Encoder(), None, embed_dim=4)
    model = AlignmentModel({"cxr": tower})
    rows = ImageRows("cxr", ImageInput(channels=1, size=(8, 8)), augmentation=RandGaussianNoise(prob=0.7, std=0.5))
    optimizer = torch.optim.AdamW(model.parameters(), lr=0.05)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimizer, T_max=epochs)
    validator = SupervisedEvaluator(
        device="cpu",
        val_data_loader=study_loader(StudyDataset(studies, {"cxr": rows}), 5),
        network=model,
        prepare_batch=prepare_batch,
        decollate=False,
        key_val_metric={"key": PluginMetric(evaluator or FirstAxis(), "first_axis")},
        val_handlers=[SaveBest(folder / "best.pt", tower)],
    )
    trainer = SupervisedTrainer(
        device="cpu",
        max_epochs=epochs,
        train_data_loader=study_loader(
            StudyDataset(studies, {"cxr": rows}, seed=seed),
            batch_size,
            shuffle=True,
            seed=seed,
            num_workers=workers,
        ),
        network=model,
        optimizer=optimizer,
        loss_function=AlignmentLoss({"pull": Pull()}),
        prepare_batch=prepare_batch,
        decollate=False,
        train_handlers=[
            LrScheduleHandler(schedule, print_lr=False),
            ValidationHandler(interval=1, validator=validator),
            EpochLine("toy", validator, ["first_axis"]),
            GuardStep(model.parameters(), max_norm=1.0),
            ExactResume(
                folder / "toy_last.pt",
                {"model": model, "optimizer": optimizer, "lr_scheduler": schedule},
                seed,
                resume=resume,
                evaluator=validator,
                every=every,
            ),
        ],
    )
    losses: list[tuple[int, float]] = []
    trainer.add_event_handler(
        Events.ITERATION_COMPLETED,
        lambda engine: losses.append((engine.state.iteration, engine.state.output["loss"].item())),
    )
    return trainer, losses, model


def use_scaler(trainer: SupervisedTrainer, scale: float) -> None:
    """A gradient scaler that works on the CPU, where MONAI's own is disabled; set at the start, as MONAI does."""

    def start(engine: Any) -> None:
        engine.amp, engine.scaler = True, torch.amp.GradScaler("cpu", init_scale=scale, growth_interval=2)

    trainer._event_handlers[Events.STARTED].insert(0, (start, (trainer,), {}))

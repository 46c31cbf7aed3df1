"""The seven components, each as small as its contract allows."""

from __future__ import annotations

import hashlib
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

import numpy as np
import pandas as pd
import torch
from torch import nn
from torch.nn.functional import mse_loss

from medvl_core.protocols import EncoderOutput, LossOutput, TokenBatch
from medvl_core.specs import Metric, TextInput
from medvl_core.study import Image, Report, Study

__all__ = ["Ages", "Cohort", "Film", "Gate", "Loud", "Neighbours", "Pull", "Volume", "Words"]


class _Patches(nn.Module):
    def __init__(self, convolution: nn.Module) -> None:
        super().__init__()
        self.convolution = convolution

    def forward(self, x: torch.Tensor) -> EncoderOutput:
        features = self.convolution(x).tanh()
        return EncoderOutput(features.flatten(2).mT, tuple(features.shape[2:]), features=features)


class Film(_Patches):
    """Radiographs of 40 x 40 pixels and no others; what it reads is in its spec alone."""

    def __init__(self) -> None:
        super().__init__(nn.Conv2d(1, 12, 8, stride=8))


class Volume(_Patches):
    """Volumes of 24 x 24 x 16 voxels and no others."""

    def __init__(self) -> None:
        super().__init__(nn.Conv3d(1, 10, 8, stride=8))


class Words(nn.Module):
    """Hashed words; no vocabulary."""

    def __init__(self) -> None:
        super().__init__()
        self.input, self.embed_dim = TextInput(max_length=32), 14
        self.table = nn.Embedding(101, 14)

    def tokenize(self, texts: list[str]) -> TokenBatch:
        words = [text.lower().split()[:32] or ["nothing"] for text in texts]
        ids = torch.zeros(len(texts), max(map(len, words)), dtype=torch.int64)
        for row, found in zip(ids, words, strict=True):
            row[: len(found)] = torch.tensor([1 + int(hashlib.md5(w.encode()).hexdigest(), 16) % 100 for w in found])
        return TokenBatch(ids, ids > 0)

    def forward(self, x: TokenBatch) -> EncoderOutput:
        tokens = self.table(x.input_ids)
        return EncoderOutput(tokens, (tokens.shape[1],), mask=x.attention_mask)


class Gate(nn.Module):
    """A gate per channel over the mean of valid tokens."""

    def __init__(self, embed_dim: int) -> None:
        super().__init__()
        self.gate = nn.Linear(embed_dim, embed_dim)

    def forward(self, tokens: torch.Tensor, mask: torch.Tensor | None = None) -> torch.Tensor:
        valid = tokens.new_ones(tokens.shape[:2]) if mask is None else mask.to(tokens.dtype)
        kept = tokens.masked_fill(valid[..., None] == 0, 0.0)
        mean = kept.sum(1) / valid.sum(1, keepdim=True).clamp(min=1)
        return mean * self.gate(mean).sigmoid()


class Pull(nn.Module):
    """Distance of the two modalities in the batch that come first by name; it is told nothing by the config."""

    def forward(self, batch) -> LossOutput:
        first, second = (batch.embeddings[name] for name in sorted(batch.embeddings)[:2])
        total = mse_loss(first, second)
        return LossOutput(total, {"pull": total})


class Ages(nn.Module):
    """Pulls patients of like age together."""

    def forward(self, batch) -> LossOutput:
        rows, age = batch.embeddings[sorted(batch.embeddings)[0]], batch.extras["age"].float()
        near = torch.exp(-((age[:, None] - age[None]) ** 2) / 50)
        total = (near * (1 - rows @ rows.T)).mean()
        return LossOutput(total, {"ages": total})


class Loud:
    """The whole report in capitals."""

    def texts(self, studies, rng) -> list[str]:
        for study in studies:
            if study.report is None:
                raise ValueError(f"{study.study_id}: has no report")
        return [f"{study.report.findings} {study.report.impression}".upper() for study in studies]


class Neighbours:
    """Share of labels that a study has in common with its nearest neighbour of another patient, in any modality."""

    metrics = (Metric(name="knn/agreement"),)

    def __init__(self) -> None:
        self.reset()

    def reset(self) -> None:
        self._rows, self._labels = [], []

    def update(self, outputs) -> None:
        self._rows.append(next(iter(outputs["embeddings"].values())))
        self._labels.append(outputs["labels"].nan_to_num())

    def compute(self) -> dict[str, float]:
        rows, labels = torch.cat(self._rows), torch.cat(self._labels)
        nearest = (rows @ rows.T).fill_diagonal_(-2).argmax(1)
        return {"knn/agreement": float((labels == labels[nearest]).float().mean())}

    def intervals(self, n_resamples=1000, seed=0, level=0.95) -> dict[str, tuple[float, float]]:
        value = self.compute()["knn/agreement"]
        return {"knn/agreement": (value, value)}

    def chance(self) -> dict[str, float]:
        return {"knn/agreement": 0.5}

    def tables(self, n_resamples=1000, seed=0, level=0.95) -> dict[str, pd.DataFrame]:
        return {"knn": pd.DataFrame([self.compute()])}

    def figures(self, folder, n_resamples=1000, seed=0, level=0.95) -> list[Path]:
        return []


@dataclass(frozen=True)
class Array:
    """One ``.npy`` file."""

    path: Path

    def load(self) -> Image:
        array = np.load(self.path).astype(np.float32)
        return Image(array, np.diag([8.0, 8.0, 8.0, 1.0]) if array.ndim == 3 else np.eye(4))

    def fingerprint(self) -> str:
        return hashlib.sha256(self.path.read_bytes()).hexdigest()


def _age(study: Study, draw=None) -> torch.Tensor:
    return torch.tensor(float(study.metadata["age"]))


class Cohort:
    """``<patient>_ct.npy`` and ``<patient>_cxr.npy`` of a folder; ages are offered as a field."""

    label_names = ("Cardiomegaly", "Lung nodule")
    fields: ClassVar = {"age": _age}

    def __init__(self, dataset_dir: str) -> None:
        self.names = sorted(path.name.removesuffix("_ct.npy") for path in Path(dataset_dir).glob("*_ct.npy"))
        self.folder = Path(dataset_dir)

    def studies(self, split: str) -> list[Study]:
        place = {"train": (0, 1, 2), "validation": (3,), "test": (4,)}[split]
        return [self._study(i, name) for i, name in enumerate(self.names) if i % 5 in place]

    def _study(self, i: int, name: str) -> Study:
        large = i // 5 % 2
        return Study(
            study_id=name,
            subject_id=name,
            scan_id=name,
            images={kind: Array(self.folder / f"{name}_{kind}.npy") for kind in ("ct", "cxr")},
            report=Report(f"The heart is {'large' if large else 'normal'}. Patient number {i}.", f"Seen in {name}."),
            labels={"Cardiomegaly": float(large), "Lung nodule": float(i % 2)},
            metadata={"age": 40 + i},
        )

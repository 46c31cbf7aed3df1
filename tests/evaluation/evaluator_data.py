"""Outputs of an evaluation pass, made up: images of classes in a space that prompts share."""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch.nn.functional import normalize

E = 12


def outputs(
    n: int = 60, classes: int = 3, signal: float = 1.0, seed: int = 0, exclusive: bool = False, who: str = "p"
) -> dict[str, Any]:
    """Studies in pairs of one subject; class c is axis c, present ones point along it."""
    rng = np.random.default_rng(seed)
    labels = (rng.random((n, classes)) < np.linspace(0.5, 0.25, classes)).astype(float)
    if exclusive:
        labels = np.eye(classes)[rng.integers(classes, size=n)]
    image = signal * (2 * labels - 1) @ np.eye(classes, E) + 0.7 * rng.standard_normal((n, E))
    axes = torch.eye(classes, E)
    return {
        "embeddings": {"cxr": normalize(torch.tensor(image, dtype=torch.float32), dim=1)},
        "prompt_embeddings": {"positive": axes, "negative": -axes},
        "labels": torch.tensor(labels),
        "study_id": [f"{who}{i:03}" for i in range(n)],
        "subject_id": [f"{who}{i // 2}" for i in range(n)],
        "metadata": [{"sex": "FM"[(i // 2) % 2], "age": 30.0 + i // 2} for i in range(n)],
    }


def part(batch: dict[str, Any], rows: slice) -> dict[str, Any]:
    """Some studies of a batch."""
    cut = {name: batch[name][rows] for name in ("labels", "study_id", "subject_id", "metadata")}
    return batch | cut | {"embeddings": {name: values[rows] for name, values in batch["embeddings"].items()}}


def tower(texts: list[str], *, normalise: bool) -> torch.Tensor:
    """Texts → vectors that depend on every letter."""
    seeds = [sum(i * ord(c) for i, c in enumerate(text, 1)) for text in texts]
    rows = torch.stack([torch.randn(E, generator=torch.Generator().manual_seed(seed)) for seed in seeds])
    return normalize(rows, dim=1) if normalise else rows

"""Prompts of zero-shot classification: from templates or a file, and their averaged embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = ["SIDES", "EmbedText", "Prompts", "embed_prompts", "prompts_from_file", "prompts_from_templates"]

SIDES = ("positive", "negative")
Prompts = dict[str, tuple[tuple[str, ...], ...]]
"""Side → prompts of each class, in the order of the classes."""


class EmbedText(Protocol):
    """The text tower: ``P`` texts → ``P E``, L2-normalised or as projected."""

    def __call__(self, texts: list[str], *, normalise: bool) -> Tensor:
        """Embed."""
        ...


def prompts_from_templates(classes: Sequence[str], positive: Sequence[str], negative: Sequence[str]) -> Prompts:
    """Fill the class name into every template.

    Raises:
        ValueError: If a side has no template, or one without exactly one ``{}``: all classes would get the same prompt.
    """
    templates = dict(zip(SIDES, (positive, negative), strict=True))
    for side, texts in templates.items():
        if isinstance(texts, str) or not texts or any(text.count("{}") != 1 for text in texts):
            raise ValueError(
                f"{side} templates are {texts!r}; give a list of one or more, each with one {{}} for the class"
            )
    return {
        side: tuple(tuple(t.replace("{}", name) for t in texts) for name in classes)
        for side, texts in templates.items()
    }


def prompts_from_file(path: str | Path, classes: Sequence[str]) -> Prompts:
    """Prompts per class from JSON: ``{class: {"positive": [texts], "negative": [texts]}}``; more classes may follow.

    Raises:
        ValueError: If a class or one of its sides is missing or empty; the message starts with the file.
    """
    content = json.loads(Path(path).read_text(encoding="utf-8"))
    prompts: Prompts = {}
    for side in SIDES:
        texts = [content.get(name, {}).get(side) for name in classes]
        for name, listed in zip(classes, texts, strict=True):
            if not isinstance(listed, list) or not listed or not all(isinstance(t, str) and t.strip() for t in listed):
                raise ValueError(f"{path}: class {name!r} has {listed!r} as {side} prompts; give a list of texts")
        prompts[side] = tuple(map(tuple, texts))
    return prompts


def embed_prompts(
    prompts: Prompts,
    embed_text: EmbedText,
    average: Literal["after_normalisation", "before_normalisation"] = "after_normalisation",
) -> Mapping[str, Tensor]:
    """One unit vector per class and side, from the mean over the class's prompts.

    Args:
        prompts: Side → prompts per class.
        embed_text: The text tower; called once, without gradients.
        average: ``"after_normalisation"`` averages unit vectors, as open_clip does; ``"before_normalisation"`` averages
            the projections themselves, as hi-ml does, so that longer vectors weigh more.

    Returns:
        Side → ``C E``, float32, L2-normalised.
    """
    groups = [(side, texts) for side in SIDES for texts in prompts[side]]
    with torch.no_grad():
        rows = embed_text([text for _, texts in groups for text in texts], normalise=average == "after_normalisation")
    parts = rows.detach().to("cpu", torch.float32).split([len(texts) for _, texts in groups])
    means = normalize(torch.stack([part.mean(dim=0) for part in parts]), dim=1)
    return dict(zip(SIDES, means.split([len(prompts[side]) for side in SIDES]), strict=True))

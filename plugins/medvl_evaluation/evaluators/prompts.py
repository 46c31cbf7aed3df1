"""Prompts of zero-shot classification: from templates or a file, and their averaged embeddings."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any, Literal, Protocol

import torch
from torch import Tensor
from torch.nn.functional import normalize

__all__ = [
    "PROMPT_AVERAGES",
    "SIDES",
    "WORDINGS",
    "EmbedText",
    "PromptAverage",
    "Prompts",
    "Texts",
    "embed_prompts",
    "embed_texts",
    "fill_templates",
    "prompts_from_file",
    "prompts_from_templates",
    "texts_from_file",
]

SIDES = ("positive", "negative")
Texts = tuple[tuple[str, ...], ...]
"""Texts of each class, in the order of the classes."""
Prompts = dict[str, Texts]
"""Side → prompts of each class, in the order of the classes."""
PromptAverage = Literal["after_normalisation", "before_normalisation", "scores"]
PROMPT_AVERAGES = ("after_normalisation", "before_normalisation", "scores")
WORDINGS: Mapping[str, Mapping[str, Sequence[str]]] = {
    "ct_clip": {"positive": ("{} is present.",), "negative": ("{} is not present.",)},
    "there_is": {"positive": ("There is {}.",), "negative": ("There is no {}.",)},
    "chexzero": {"positive": ("{}",), "negative": ("no {}",)},
    "fvlm": {"positive": ("{}.",), "negative": ("Not {}.",)},
}
"""Wordings of published models: CT-CLIP's script, its training loop and X2CT-CLIP, CheXzero and CXR-CML, fVLM."""


class EmbedText(Protocol):
    """The text tower: ``P`` texts → ``P E``, L2-normalised or as projected."""

    def __call__(self, texts: list[str], *, normalise: bool) -> Tensor:
        """Embed."""
        ...


def fill_templates(what: str, templates: Sequence[str], classes: Sequence[str]) -> Texts:
    """Every template with the class name filled in, per class.

    Raises:
        ValueError: If there is no template, or one without exactly one ``{}``: all classes would get the same text.
    """
    if isinstance(templates, str) or not templates or any(text.count("{}") != 1 for text in templates):
        raise ValueError(
            f"{what} templates are {templates!r}; give a list of one or more, each with one {{}} for the class"
        )
    return tuple(tuple(text.replace("{}", name) for text in templates) for name in classes)


def texts_from_file(path: str | Path, classes: Sequence[str]) -> Texts:
    """Texts per class from JSON, ``{class: text}`` or ``{class: [texts]}``; more classes may follow.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON object, or a class has no text; the message starts with the file.
    """
    content = _read_object(path)
    entries = {name: content.get(name) for name in classes}
    texts = {name: [entry] if isinstance(entry, str) else entry for name, entry in entries.items()}
    return tuple(_listed(path, name, "", texts[name]) for name in classes)


def prompts_from_templates(classes: Sequence[str], positive: Sequence[str], negative: Sequence[str]) -> Prompts:
    """Fill the class name into every template of both sides.

    Raises:
        ValueError: As `fill_templates` says.
    """
    return {side: fill_templates(side, texts, classes) for side, texts in zip(SIDES, (positive, negative), strict=True)}


def prompts_from_file(path: str | Path, classes: Sequence[str]) -> Prompts:
    """Prompts from a JSON file, of one of two forms.

    Templates for all classes: ``{"positive": ["{} is present."], "negative": ["There is no {}."]}``. Or prompts per
    class: ``{class: {"positive": [texts], "negative": [texts]}}``; more classes may follow.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no JSON object, or a class or a side is missing or empty; the message starts with the file.
    """
    content = _read_object(path)
    if set(content) == set(SIDES) and not any(isinstance(texts, dict) for texts in content.values()):
        try:
            return prompts_from_templates(classes, content["positive"], content["negative"])
        except ValueError as error:
            raise ValueError(f"{path}: {error}") from error
    entries = {name: entry if isinstance(entry := content.get(name), dict) else {} for name in classes}
    return {side: tuple(_listed(path, name, f"{side} ", entries[name].get(side)) for name in classes) for side in SIDES}


def embed_prompts(
    prompts: Prompts, embed_text: EmbedText, average: PromptAverage = "after_normalisation"
) -> Mapping[str, Tensor]:
    r"""One vector per class and side, from the mean over the class's prompts: its dot product with an image scores it.

    Args:
        prompts: Side → prompts per class.
        embed_text: The text tower; called once, without gradients.
        average: ``"after_normalisation"`` averages unit vectors and normalises the mean, as open_clip does;
            ``"before_normalisation"`` averages the projections themselves, as hi-ml does, so that longer vectors weigh
            more; ``"scores"`` averages the cosines of the prompts: $x \cdot \frac{1}{P} \sum_p t_p$, the mean of unit
            vectors left as it is, so that prompts that disagree count less.

    Returns:
        Side → ``C E``, float32; unit vectors unless ``average="scores"``.
    """
    groups = [texts for side in SIDES for texts in prompts[side]]
    rows = embed_texts(groups, embed_text, average)
    return dict(zip(SIDES, rows.split([len(prompts[side]) for side in SIDES]), strict=True))


def embed_texts(
    groups: Sequence[Sequence[str]], embed_text: EmbedText, average: PromptAverage = "after_normalisation"
) -> Tensor:
    """One vector per group of texts, ``G E``: arguments as in `embed_prompts`."""
    with torch.no_grad():
        texts = [text for group in groups for text in group]
        rows = embed_text(texts, normalise=average != "before_normalisation").detach().to("cpu", torch.float32)
    means = torch.stack([part.mean(dim=0) for part in rows.split([len(group) for group in groups])])
    return means if average == "scores" else normalize(means, dim=1)


def _read_object(path: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(path).read_text(encoding="utf-8"))
    except ValueError as error:  # undecodable bytes too
        raise ValueError(f"{path}: not a JSON file ({error}); see the reference of the evaluators") from error
    if not isinstance(content, dict):
        raise ValueError(f"{path}: holds a {type(content).__name__}; give an object of templates or of classes")
    return content


def _listed(path: str | Path, name: str, side: str, texts: Any) -> tuple[str, ...]:
    if not isinstance(texts, list) or not texts or not all(isinstance(text, str) and text.strip() for text in texts):
        raise ValueError(f"{path}: class {name!r} has {texts!r} as {side}prompts; give a list of texts")
    return tuple(texts)

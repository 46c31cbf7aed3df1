"""How the networks of a job were built, as JSON in its manifest, and the same networks again from it."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from pydoc import locate
from typing import Any

import torch
from torch import nn

from medvl_core.build import build_component, component_options
from medvl_core.bundle.manifest import read_manifest
from medvl_core.engine.weights import load_weights, weights_digest
from medvl_core.errors import ComponentError, did_you_mean
from medvl_core.manager import Component, registry

__all__ = ["comes_back", "describe", "rebuild", "trained_part"]


def describe(part: nn.Module, folder: str | Path) -> dict[str, Any]:
    """What `rebuild` needs: a component and its options, or a class and what it is ``made_of``.

    Files in ``folder`` are written relative to it, so that it can move. What says neither is only named, and refused by
    `rebuild`.
    """
    if (component := getattr(part, "component", None)) is not None:
        kind = "pooling" if any(component == one.full_name for one in registry().components("pooling")) else "encoder"
        return {"component": component, "kind": kind, "options": _plain(part.built_with, Path(folder).resolve())}
    own = getattr(part, "made_of", None)
    if own is None:
        return {"unwritten": f"a {type(part).__name__} without made_of"}
    return {
        "class": f"{type(part).__module__}.{type(part).__qualname__}",
        "options": _plain(own, Path(folder).resolve()),
    }


def rebuild(description: Mapping[str, Any], folder: str | Path, **options: Any) -> Any:
    """Build a described network anew, with random weights.

    Args:
        description: Made by `describe`.
        folder: Where its files lie now.
        options: In place of those described.

    Raises:
        ComponentError: If its plugin is not installed, or an option could not be written down.
    """
    if "unwritten" in description:
        raise ComponentError(
            f"{folder}: {description['unwritten']}, which cannot be built from a manifest; offer it by name"
        )
    own = {name: _built(value, Path(folder), name) for name, value in description["options"].items()} | options
    if "component" in description:
        component = registry().find(description["kind"], description["component"])
        return build_component(component, own | _starting_points(component, own))
    path = description["class"]
    packages = {"medvl_core", *(record.module.split(".")[0] for record in registry().records)}
    found = locate(path) if path.split(".")[0] in packages else None  # a manifest may come from anywhere
    if not (isinstance(found, type) and issubclass(found, nn.Module)):
        raise ComponentError(f"{folder}: made with {path}, which no installed plugin has; install its plugin")
    return found(**own)


def comes_back(part: nn.Module, description: Mapping[str, Any], folder: str | Path) -> bool:
    """Whether `rebuild` gives the same weights, as it does where a file or a fixed seed says them."""
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(torch.initial_seed() + 1)
        try:
            return weights_digest(rebuild(description, folder)) == weights_digest(part)
        except ComponentError:
            return False


def trained_part(folder: str | Path, name: str, **options: Any) -> Any:
    """A network of a finished job, with its weights, in eval mode.

    Args:
        folder: The bundle's ``models/``.
        name: Of the part, e.g. ``"image_tower"``.
        options: In place of those it was trained with, e.g. ``weights=None`` for what its own file holds anyway.

    Raises:
        ComponentError: If the manifest has no such part.
    """
    folder = Path(folder)
    parts = read_manifest(folder / "manifest.json").get("parts", {})
    if name not in parts:
        known = ", ".join(parts) or "none: it was made before parts were recorded, train again"
        hint = did_you_mean(name, parts)
        raise ComponentError(f"{folder / 'manifest.json'}: has no part {name!r}{hint}; it has {known}")
    part = rebuild(parts[name], folder, **options)
    if (weights := parts[name].get("weights")) is not None:
        load_weights(part, folder / weights["file"], prefix=weights["prefix"])
    return part.eval()


def _starting_points(component: Component, options: Mapping[str, Any]) -> dict[str, Any]:
    """Options in place of those that name pretrained weights which are not here: trained ones come after."""
    has, changed = component_options(component), {}
    for name in {"weights", "initialisation"} & options.keys():
        given, default = options[name], has[name].default
        if isinstance(given, str) and not (name == "weights" and Path(given).exists()):
            changed[name] = default if default in (None, "random") else "random"
    return changed


def _plain(value: Any, folder: Path) -> Any:
    """JSON of an option; what JSON cannot hold is told by its ``repr``, and refused when it is needed."""
    if isinstance(value, nn.Module):
        return describe(value, folder)
    if isinstance(value, Mapping):
        return {str(key): _plain(item, folder) for key, item in value.items()}
    if isinstance(value, (list, tuple)):
        return [_plain(item, folder) for item in value]
    if isinstance(value, (str, Path)):
        path = Path(value)
        inside = path.is_absolute() and path.resolve().is_relative_to(folder)
        return {"file": str(path.resolve().relative_to(folder))} if inside else str(value)
    return value if value is None or isinstance(value, (bool, int, float)) else {"unwritten": repr(value)}


def _built(value: Any, folder: Path, option: str) -> Any:
    if isinstance(value, list):
        return [_built(item, folder, option) for item in value]
    if not isinstance(value, Mapping):
        return value
    if value.keys() == {"file"}:
        return str(folder / value["file"])
    if value.keys() == {"unwritten"}:
        what = value["unwritten"]
        raise ComponentError(f"{folder}: option {option!r} was {what}, which no manifest can hold; give it anew")
    if "options" in value and ("component" in value or "class" in value):
        return rebuild(value, folder)
    return {key: _built(item, folder, option) for key, item in value.items()}

"""Overrides of ``monai.bundle run`` that would be accepted and do nothing, or something else than they say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any

__all__ = ["misread_overrides", "rename_old_keys", "unread_overrides"]

Reader = tuple[str, str] | None
_WORDS = {"true": "True", "false": "False", **dict.fromkeys(("None", "none", "null"), "'$None'")}


def rename_old_keys(config: dict[str, Any]) -> list[str]:
    """Put what stands under an old key where ``medvl::aliases`` of the metadata (old → new) say, over what is there.

    A component takes the place of the other one whole; anything else is merged key by key.

    Args:
        config: All files merged, overrides applied; changed in place.

    Returns:
        One line per old key that was used.
    """
    lines = []
    for old, new in config.get("_meta_", {}).get("medvl", {}).get("aliases", {}).items():
        if config.get(old) not in (None, {}):  # an empty place holder lets MONAI accept keys below it
            config[new] = _merged(config.get(new), config.pop(old))
            lines.append(f"{old} is now {new}; the old key goes with 0.2")
    return lines


def _merged(below: Any, above: Any) -> Any:
    if not (isinstance(below, dict) and isinstance(above, dict)) or "_target_" in above:
        return above
    return {**below, **{key: _merged(below.get(key), value) for key, value in above.items()}}


def misread_overrides(overrides: Mapping[str, Any]) -> list[str]:
    """One line per override that the command line turns into something else.

    MONAI drops overrides that are ``None``, and takes ``false`` for a text, which counts as true.

    Args:
        overrides: Key → value as typed.
    """
    wrong = [(key, value) for key, value in overrides.items() if isinstance(value, str) and value in _WORDS]
    return [f"--{key} {value} would not be read as {value}; write --{key} {_WORDS[value]}" for key, value in wrong]


def unread_overrides(config: Mapping[str, Any], keys: Iterable[str]) -> list[str]:
    """One line per override that only a component reads which is not the one chosen.

    ``--table studies.csv`` without ``--dataset#name baseline/folder`` would train on generated patients.

    Args:
        config: All files merged, overrides applied, expressions as written.
        keys: Overridden keys; only top-level ones are looked at.
    """
    references = [(set(re.findall(r"@(\w+)", text)), reader) for text, reader in _texts(config, "", None)]
    lines = []
    for key in dict.fromkeys(keys):
        readers = [reader for names, reader in references if key in names]
        if chosen := {reader for reader in readers if reader is not None} if None not in readers else set():
            components = ", ".join(sorted(component for _, component in chosen))
            switch = ", ".join(sorted({f"--{place}#name" for place, _ in chosen}))
            lines.append(f"--{key} is for {components}, not chosen; choose it by {switch}, or leave --{key} out")
    return lines


def _texts(value: Any, place: str, reader: Reader) -> Iterator[tuple[str, Reader]]:
    """Every text of a config; with where and for which component, when it is an option of one that is not chosen."""
    if isinstance(value, str):
        yield value, reader
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, place, reader)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key != "options_for":
                yield from _texts(item, f"{place}#{key}" if place else key, reader)
                continue
            name = str(value.get("name"))
            for component, options in item.items():
                idle = component != name and not name.startswith(("@", "$"))
                yield from _texts(options, place, reader or ((place, component) if idle else None))

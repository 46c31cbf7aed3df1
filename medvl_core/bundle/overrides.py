"""Overrides of ``monai.bundle run`` that would be accepted and do nothing, or something else than they say."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from typing import Any, NamedTuple

from medvl_core.build import offered_options
from medvl_core.errors import MedvlError
from medvl_core.manager import registry

__all__ = ["misread_overrides", "rename_old_keys", "unread_overrides"]

_WORDS = {"true": "True", "false": "False", **dict.fromkeys(("None", "none", "null"), "'$None'")}


class _Idle(NamedTuple):
    """A component that does not read a text: where it is chosen, which others would read it, and as what option."""

    place: str
    others: tuple[str, ...]
    option: str = ""
    chosen: str = ""


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
    """One line per override that only a component would read which is not the one chosen.

    ``--table studies.csv`` without ``--dataset#name baseline/folder`` would train on generated patients.

    Args:
        config: All files merged, overrides applied, expressions as written.
        keys: Overridden keys; only top-level ones are looked at.
    """
    references = [(set(re.findall(r"@(\w+)", text)), reader) for text, reader in _texts(config, "", None)]
    listed = config.get("_meta_", {}).get("medvl", {}).get("components", {})
    documented = {name for names in listed.values() for name in names}
    lines = []
    for key in dict.fromkeys(keys):
        readers = [reader for names, reader in references if key in names]
        if not (idle := {reader for reader in readers if reader is not None} if None not in readers else set()):
            continue
        lacking = sorted({f"is offered as {one.option}; {one.chosen} has no such option" for one in idle if one.option})
        others = sorted({other for one in idle for other in one.others if not one.option or other in documented})
        has = f" ({' or '.join(others)} reads it)" if others else ""
        said = "; ".join(lacking) + has if lacking else f"is for {', '.join(others)}, not chosen"
        switch = ", ".join(sorted({f"--{one.place}#name" for one in idle}))
        lines.append(f"--{key} {said}; choose {'another' if lacking else 'it'} by {switch}, or leave --{key} out")
    return lines


def _texts(value: Any, place: str, reader: _Idle | None) -> Iterator[tuple[str, _Idle | None]]:
    """Every text of a config; with who would read it, when it is for a component that is not the chosen one."""
    if isinstance(value, str):
        yield value, reader
    elif isinstance(value, list):
        for item in value:
            yield from _texts(item, place, reader)
    elif isinstance(value, Mapping):
        for key, item in value.items():
            if key == "options_for" and isinstance(item, Mapping):
                name = str(value.get("name"))
                for component, options in item.items():
                    idle = component != name and not name.startswith(("@", "$"))
                    yield from _texts(options, place, reader or (_Idle(place, (component,)) if idle else None))
            elif key == "offers" and isinstance(item, Mapping):
                for option, offered in item.items():
                    yield from _texts(offered, place, reader or _not_taken(value, option, place))
            else:
                yield from _texts(item, f"{place}#{key}" if place else key, reader)


def _not_taken(node: Mapping[str, Any], option: str, place: str) -> _Idle | None:
    """Where a component is offered an option that it does not have: those of its kind that do."""
    kind, name = str(node.get("_target_")).rpartition("build_")[2], str(node.get("name"))
    try:
        if offered_options(registry().find(kind, name), {option: None}):
            return None
    except MedvlError:  # named by an expression, or not there, which building it will say
        return None
    having = [one.full_name for one in registry().components(kind) if offered_options(one, {option: None})]
    return _Idle(place, tuple(having), option, name)

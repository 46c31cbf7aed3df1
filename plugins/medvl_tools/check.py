"""``medvl bundle check``: what can be wrong with a bundle folder without running it."""

from __future__ import annotations

import json
import pydoc
import re
from collections import Counter
from collections.abc import Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass
from functools import cache
from importlib import import_module
from importlib.metadata import PackageNotFoundError, distribution
from importlib.resources import files
from pathlib import Path
from typing import Any

from medvl_core.build import build_component, component_options
from medvl_core.bundle.startup import explain
from medvl_core.errors import ComponentLookupError, did_you_mean
from medvl_core.manager import Component, registry
from medvl_core.specs import KINDS, EncoderSpec, ImageInput

__all__ = ["Problem", "check_bundle"]

_REQUIRED = ("LICENSE", "docs/README.md", "docs/data_license.txt", "configs/metadata.json", "configs/train.json")
_ALLOWED = frozenset({"medvl_core", "monai", "torch", "ignite"})
_BUILDERS = {f"{module}build_{kind}": kind for module in ("medvl_core.", "medvl_core.build.") for kind in KINDS}
_OWN_KEYS = {kind: {"name", "options_for", "offers", *(["encoder"] if kind == "pooling" else [])} for kind in KINDS}
"""What ``build_*`` takes itself."""
_SCRIPTS = re.compile(r"^\$(import|from)\s+scripts\b|\bscripts\.\w")


@dataclass(frozen=True, slots=True)
class Problem:
    """One thing that is wrong: where (file and config id) and what, with the way out."""

    where: str
    message: str

    def __str__(self) -> str:
        return f"{self.where}: {self.message}"


@dataclass(frozen=True, slots=True)
class _Use:
    """A component that a config builds."""

    where: str
    component: Component
    options: Mapping[str, Any]


def check_bundle(folder: str | Path, schema: str | Path | None = None) -> list[Problem]:
    """Every problem of a bundle folder; an empty list means none was found.

    Checked: required files; JSON without duplicate keys; metadata against the schema and against the components in
    use; every ``_target_`` exists, comes from an allowed package and never from ``scripts``; components are named in
    full, exist, have the options given, and build with their ``tiny``; the folder is not importable.

    Args:
        folder: The bundle, e.g. ``monai_bundles/x2ct``.
        schema: JSON schema of the metadata; by default the one of 2024-07-25 that medvl ships.

    Raises:
        NotADirectoryError: If the folder does not exist.
    """
    root = Path(folder)
    if not root.is_dir():
        raise NotADirectoryError(f"{root}: there is no such bundle folder")
    problems = [Problem(name, "is missing") for name in _REQUIRED if not (root / name).is_file()]
    for path in [root.resolve().parent / "__init__.py", *root.rglob("__init__.py")]:
        if path.exists():
            rule = "MONAI scans importable packages whose name starts with 'monai'; delete it"
            problems.append(Problem(path.name if path.parent != root else str(path.relative_to(root)), rule))
    configs: dict[str, dict[str, Any]] = {}
    for path in sorted((root / "configs").glob("*.json")):
        configs[f"configs/{path.name}"], found = _read(path, f"configs/{path.name}")
        problems += found
    metadata = configs.pop("configs/metadata.json", None)
    uses: list[_Use] = []
    for name, config in configs.items():
        for item in _check_config(name, config, configs):
            (uses if isinstance(item, _Use) else problems).append(item)  # type: ignore[arg-type]
    problems += _check_builds(uses)
    if metadata:
        problems += _check_schema(metadata, schema)
        problems += _check_metadata(metadata, uses)
    return problems


def _read(path: Path, name: str) -> tuple[dict[str, Any], list[Problem]]:
    problems = []

    def unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
        for key, count in Counter(key for key, _ in pairs).items():
            if count > 1:
                problems.append(Problem(name, f"the key {key!r} occurs {count} times; MONAI keeps the last one"))
        return dict(pairs)

    try:
        content = json.loads(path.read_text(encoding="utf-8"), object_pairs_hook=unique)
    except (UnicodeDecodeError, json.JSONDecodeError) as error:
        return {}, [Problem(name, f"is not JSON: {error}")]
    if not isinstance(content, dict):
        return {}, [Problem(name, "must hold one JSON object")]
    return content, problems


def _walk(value: Any, where: str) -> Iterator[tuple[str, Any]]:
    """Every node with its place, outermost first."""
    yield where, value
    items = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for key, child in items:
        yield from _walk(child, f"{where}::{key}")


def _check_config(name: str, config: dict[str, Any], configs: Mapping[str, Any]) -> Iterator[Problem | _Use]:
    for where, node in _walk(config, name):
        if isinstance(node, str):
            yield from _check_text(where, node)
        if not isinstance(node, dict) or "_target_" not in node:
            continue
        target = node["_target_"]
        if not isinstance(target, str):
            yield Problem(f"{where}::_target_", f"{target!r} is not the name of a class or function")
        elif target in _BUILDERS:
            yield from _check_component(where, _BUILDERS[target], node, [config, *configs.values()])
        else:
            problem = _target_problem(target)
            if problem:
                yield Problem(f"{where}::_target_", problem)


def _check_text(where: str, text: str) -> Iterator[Problem]:
    if _SCRIPTS.search(text):
        yield Problem(where, f"{text!r} names the package 'scripts', which two bundles share; put the code in a plugin")
    if "#" in text and text[:1] not in "$@%":
        yield Problem(where, f"MONAI turns '#' into '::' in {text!r}; keep such texts in a file")


@cache
def _target_problem(target: str) -> str:
    """Why a ``_target_`` cannot be used, or an empty string."""
    if not re.fullmatch(r"[A-Za-z_][\w.]*", target):
        return f"{target!r} is not the name of a class or function"
    if target.startswith("scripts."):
        return ""  # reported as text
    package, *rest = target.split(".")
    if "." not in target:
        locator = import_module("monai.bundle").ComponentLocator()
        found = locator.get_component_module_name(target) is not None
        return "" if found else f"MONAI has no component {target!r}; write the full path of anything else"
    if package not in _ALLOWED | _installed_packages():
        return f"{target!r} is not from {', '.join(sorted(_ALLOWED))} or an installed plugin; put it into a plugin"
    if any(part.startswith("_") for part in rest):
        return f"{target!r} is private; name what its package offers"
    if (component := _factories().get(target)) is not None:
        return f"{target!r} is the component {component}; build it by medvl_core.build_{component.kind} and its name"
    try:
        return f"{target!r} does not exist" if pydoc.locate(target) is None else ""
    except pydoc.ErrorDuringImport as error:
        return f"{target!r} cannot be imported: {explain(error)}"


def _installed_packages() -> set[str]:
    """Packages of installed plugins, and of what is distributed with them: layers that bundles may name too."""
    found = {record.module.split(".")[0] for record in registry().records}
    for name in {record.distribution for record in registry().records}:
        with suppress(PackageNotFoundError):
            found |= set((distribution(name).read_text("top_level.txt") or "").split())
    return found


def _factories() -> dict[str, Component]:
    return {component.spec.factory.replace(":", "."): component for component in registry().components()}


def _check_component(
    where: str, kind: str, node: Mapping[str, Any], configs: list[Mapping[str, Any]]
) -> Iterator[Problem | _Use]:
    name = _resolved(node.get("name"), configs)
    if not isinstance(name, str):
        yield Problem(f"{where}::name", f"{node.get('name')!r} is not a component's name; write it as text")
        return
    stated, offers = (_resolved(node.get(key, {}), configs) for key in ("options_for", "offers"))
    per_name = {key: _resolved(value, configs) for key, value in stated.items()} if isinstance(stated, dict) else {}
    for value in (*per_name.values(), *([] if isinstance(stated, dict) else [stated])):
        if not isinstance(value, dict) and str(value)[:1] != "$":  # what an expression gives is not known here
            yield Problem(f"{where}::options_for", f"{value!r} is no object; map names of components to their options")
    per_name = {key: value for key, value in per_name.items() if isinstance(value, dict)}
    offers = offers if isinstance(offers, dict) else {}
    known = _options_of(kind) if offers else set()
    for key in [key for key in offers if key not in known]:
        yield Problem(f"{where}::offers", f"no installed {kind} has the option {key!r}{did_you_mean(key, known)}")
    chosen_later = name.startswith("$")  # by an expression, e.g. what a manifest names
    for option_name in [*([] if chosen_later else [name]), *(key for key in per_name if key != name)]:
        try:
            component = registry().find(kind, option_name)
        except ComponentLookupError as error:
            yield Problem(f"{where}::name", str(error))
            continue
        if component.full_name != option_name:
            yield Problem(f"{where}::name", f"{option_name!r} is a short name; write {component.full_name!r}")
        given = per_name.get(option_name, {})
        if option_name == name:
            own = {key: value for key, value in node.items() if key not in _OWN_KEYS[kind] and key[:1] != "_"}
            given = {**given, **own}
        try:
            options = component_options(component)
        except Exception as error:  # whatever a plugin raises becomes a listed problem
            yield Problem(where, f"{component.full_name}: {explain(error)}")
            continue
        takes_any = any(option.kind is option.VAR_KEYWORD for option in options.values())
        for key in [] if takes_any else [key for key in given if key not in options]:
            hint = f"{did_you_mean(key, options)} (options: {', '.join(options)})"
            yield Problem(where, f"{component.full_name} has no option {key!r}{hint}")
        given = {key: value for key, value in offers.items() if key in options} | given
        yield _Use(where, component, {key: _resolved(value, configs) for key, value in given.items()})


def _options_of(kind: str) -> set[str]:
    """What a config can offer: the options of all installed components of a kind."""
    found: set[str] = set()
    for component in registry().components(kind):
        with suppress(Exception):  # a component that cannot be imported is reported where it is used
            found |= set(component_options(component))
    return found


def _resolved(value: Any, configs: list[Mapping[str, Any]], depth: int = 8) -> Any:
    """Follows plain references such as ``"@image_size"``; expressions stay as they are."""
    if not isinstance(value, str) or not value.startswith("@") or depth == 0:
        return value
    for config in configs:
        node = _inside(config, *value[1:].replace("#", "::").split("::"))
        if node is not None:
            return _resolved(node, configs, depth - 1)
    return None


def _check_builds(uses: list[_Use]) -> Iterator[Problem]:
    for use in {use.component.full_name + use.component.kind: use for use in uses}.values():
        try:
            needed = [name for name, p in component_options(use.component).items() if p.default is p.empty]
            if use.component.kind == "dataset" and set(needed) - set(use.component.spec.tiny):
                continue  # needs data of its own, so it has no tiny instance
            build_component(use.component, use.component.spec.tiny)
        except Exception as error:  # whatever a plugin raises becomes a listed problem
            yield Problem(
                use.where, f"{use.component.full_name} does not build with its tiny options: {explain(error)}"
            )


def _check_schema(metadata: Mapping[str, Any], schema: str | Path | None) -> Iterator[Problem]:
    source = files("medvl_tools") / "schema/meta_schema_20240725.json" if schema is None else Path(schema)
    jsonschema = import_module("jsonschema")
    try:
        rules = json.loads(source.read_text(encoding="utf-8"))
        jsonschema.Draft201909Validator.check_schema(rules)
    except (ValueError, jsonschema.SchemaError) as error:
        yield Problem(str(source), f"is no JSON schema: {str(error).splitlines()[0]}")
        return
    for found in jsonschema.Draft201909Validator(rules).iter_errors(metadata):
        yield Problem("::".join(["configs/metadata.json", *map(str, found.absolute_path)]), found.message)


def _inside(node: Any, *keys: str) -> Any:
    """What is nested there, ``None`` where nothing is."""
    for key in keys:
        node = node.get(key) if isinstance(node, dict) else None
    return node


def _check_metadata(metadata: Mapping[str, Any], uses: list[_Use]) -> Iterator[Problem]:
    """The components in use are listed (others may be, e.g. data sets to choose), and the image's shape is theirs."""
    where = "configs/metadata.json::medvl::components"
    listed = _inside(metadata, "medvl", "components")
    used = {kind: sorted({use.component.full_name for use in uses if use.component.kind == kind}) for kind in KINDS}
    used = {kind: names for kind, names in used.items() if names}
    if not isinstance(listed, dict):
        problem = "is missing" if listed is None else f"is {json.dumps(listed)}, no object of lists"
        yield Problem(where, f"{problem}; the configs use {json.dumps(used)}")
        listed = used
    for kind in dict.fromkeys([*used, *listed]):
        given = listed.get(kind, [])
        if not isinstance(given, list):
            yield Problem(f"{where}::{kind}", f"is {json.dumps(given)}, no list of full names")
            continue
        known = [component.full_name for component in registry().components(kind)]
        for name in [name for name in given if name not in known]:
            yield Problem(f"{where}::{kind}", f"lists {name!r}, which no plugin has{did_you_mean(str(name), known)}")
        if missing := sorted(set(used.get(kind, [])) - set(map(str, given))):
            yield Problem(f"{where}::{kind}", f"does not list {', '.join(missing)}, which the configs use")
    image = _inside(metadata, "network_data_format", "inputs", "image")
    if isinstance(image, dict) and isinstance(image.get("spatial_shape", []), list):  # else the schema says so
        yield from _check_image(image, uses)


def _check_image(image: Mapping[str, Any], uses: list[_Use]) -> Iterator[Problem]:
    shape, channels = image.get("spatial_shape", []), image.get("num_channels")
    encoders = {}
    for use in uses:
        if isinstance(use.component.spec, EncoderSpec) and isinstance(use.component.spec.input, ImageInput):
            size = use.options.get("size", use.component.spec.input.size)
            if isinstance(size, list | tuple) and len(size) == len(shape):
                encoders[use.component.full_name] = (list(size), use.component.spec.input.channels)
    if all(isinstance(edge, int) for edge in shape) and (list(shape), channels) not in encoders.values():
        shown = ", ".join(f"{name} {size} with {count} channel(s)" for name, (size, count) in encoders.items())
        yield Problem(
            "configs/metadata.json::network_data_format::inputs::image",
            f"is {list(shape)} with {channels} channel(s); the configs' encoders read {shown or 'no such image'}",
        )

"""Finds the installed plugins and their components, without torch. A broken plugin never stops the rest."""

from __future__ import annotations

import os
import re
import warnings
from collections import Counter, defaultdict
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass, replace
from importlib.metadata import EntryPoint, entry_points
from typing import Any, Literal

import pluggy

from medvl_core import hookspecs
from medvl_core.errors import ComponentLookupError, PluginError, PluginWarning, did_you_mean
from medvl_core.specs import (
    KINDS,
    PLUGIN_API,
    ComponentSpec,
    DatasetSpec,
    EncoderSpec,
    EvaluatorSpec,
    LossSpec,
    PoolingSpec,
    TextSourceSpec,
)

__all__ = ["GROUP", "HOOKS", "Component", "PluginRecord", "Registry", "discover", "registry", "using"]

GROUP = "medvl.plugins"
"""Entry-point group: the name is the plugin id, the value its ``plugin`` module."""

HOOKS: Mapping[str, type[ComponentSpec]] = {
    "medvl_encoders": EncoderSpec,
    "medvl_poolings": PoolingSpec,
    "medvl_losses": LossSpec,
    "medvl_text_sources": TextSourceSpec,
    "medvl_evaluators": EvaluatorSpec,
    "medvl_datasets": DatasetSpec,
}
"""Hook → the spec it gives."""

_PLUGIN_ID = re.compile(r"[a-z][a-z0-9_]*")


@dataclass(frozen=True, slots=True, kw_only=True)
class PluginRecord:
    """What discovery found out about one entry point.

    Args:
        id: Name of the entry point.
        distribution: Name of the distribution that declares it, ``"?"`` when unknown.
        version: Version of that distribution, ``"?"`` when unknown.
        module: Value of the entry point.
        status: ``"blocked"`` plugins are not in ``MEDVL_PLUGINS``.
        reason: Why it is not loaded; empty for loaded plugins.
        specs: Its components; empty unless loaded.
        cause: The exception behind ``reason``, if there was one.
    """

    id: str
    distribution: str = "?"
    version: str = "?"
    module: str = ""
    status: Literal["loaded", "broken", "blocked"] = "loaded"
    reason: str = ""
    specs: tuple[ComponentSpec, ...] = ()
    cause: BaseException | None = None

    def __str__(self) -> str:
        return f"{self.id} ({self.distribution} {self.version})"


@dataclass(frozen=True, slots=True)
class Component:
    """A spec together with the plugin that offers it."""

    plugin: PluginRecord
    spec: ComponentSpec

    @property
    def kind(self) -> str:
        """``"encoder"``, ``"pooling"``, ``"loss"``, ``"text_source"``, ``"evaluator"`` or ``"dataset"``."""
        return self.spec.kind

    @property
    def full_name(self) -> str:
        """``plugin/component``: what a bundle must write."""
        return f"{self.plugin.id}/{self.spec.name}"

    def __str__(self) -> str:
        return f"{self.full_name} ({self.plugin.distribution} {self.plugin.version})"


class Registry:
    """The outcome of one discovery.

    Args:
        records: One record per entry point.
    """

    def __init__(self, records: Iterable[PluginRecord]) -> None:
        self.records = tuple(records)

    def components(self, kind: str | None = None) -> list[Component]:
        """Components of loaded plugins, of one kind or of all, sorted by kind and full name."""
        found = [Component(record, spec) for record in self.records for spec in record.specs]
        wanted = [component for component in found if kind in (None, component.kind)]
        return sorted(wanted, key=lambda component: (list(KINDS).index(component.kind), component.full_name))

    def find(self, kind: str, name: str) -> Component:
        """The component of a kind by its full name, or by its short name while only one plugin has it.

        Args:
            kind: A key of ``specs.KINDS``.
            name: ``"plugin/component"`` or ``"component"``.

        Raises:
            ComponentLookupError: If there is none or more than one. The message lists the candidates with their
                distributions, and what is installed but not loaded, with the reason.
        """
        if kind not in KINDS:
            raise ComponentLookupError(
                f"{kind!r} is no kind of component{did_you_mean(kind, KINDS)} Kinds: {', '.join(KINDS)}"
            )
        candidates = self.components(kind)
        matches = [component for component in candidates if name in (component.full_name, component.spec.name)]
        if len(matches) == 1:
            return matches[0]
        if matches:
            rivals = ", ".join(map(str, matches))
            raise ComponentLookupError(
                f"{kind} {name!r} is offered by {rivals}; write the full name, e.g. {matches[0].full_name!r}"
            )
        raise ComponentLookupError(self._unknown(kind, name, candidates))

    def _unknown(self, kind: str, name: str, candidates: list[Component]) -> str:
        known = [component.full_name for component in candidates] + [component.spec.name for component in candidates]
        lines = [f"no {kind} is called {name!r}{did_you_mean(name, known)}"]
        for other in self.components():
            if name in (other.full_name, other.spec.name):
                lines.append(f"{other.full_name!r} is of kind {other.kind}")
        lines.append(f"known {kind} components: {', '.join(map(str, candidates)) or 'none'}")
        lines += [f"not loaded: {record}: {record.reason}" for record in self.records if record.status != "loaded"]
        return "\n  ".join(lines)


def discover(
    points: Iterable[EntryPoint] | None = None, *, allow: Iterable[str] | None = None, strict: bool = False
) -> Registry:
    """Loads plugins and drains their hooks, each one guarded on its own.

    Args:
        points: Entry points to load; by default those of the installed distributions.
        allow: Plugin ids to load, the others are recorded as blocked. ``None`` loads all.
        strict: Whether a broken plugin raises instead of being recorded with one warning.

    Raises:
        PluginError: If ``strict`` and a plugin is broken. The cause is the plugin's own exception.
    """
    points = list(entry_points(group=GROUP) if points is None else points)
    allowed = None if allow is None else set(allow)
    by_id: dict[str, list[PluginRecord]] = defaultdict(list)
    for point in points:
        by_id[point.name].append(_describe(point))
    records = []
    for plugin_id in sorted(by_id):
        rivals = sorted(by_id[plugin_id], key=str)  # directory order must not show
        if allowed is not None and plugin_id not in allowed:
            records += [replace(record, status="blocked", reason="not in MEDVL_PLUGINS") for record in rivals]
        elif len(rivals) > 1:
            records += _clash(rivals)
        else:
            records.append(_load(rivals[0], next(point for point in points if point.name == plugin_id)))
    for missing in sorted((allowed or set()) - set(by_id)):
        reason = f"named in MEDVL_PLUGINS but not installed{did_you_mean(missing, by_id)}"
        records.append(PluginRecord(id=missing, status="broken", reason=reason))
    for record in records:
        if record.status == "broken":
            _report(record, strict)
    return Registry(records)


def _describe(point: EntryPoint) -> PluginRecord:
    name = version = None
    with suppress(Exception):  # a distribution whose METADATA file is damaged or missing
        name, version = point.dist.metadata["Name"], point.dist.metadata["Version"]  # type: ignore[union-attr]
    return PluginRecord(id=point.name, distribution=name or "?", version=version or "?", module=point.value)


def _clash(rivals: list[PluginRecord]) -> list[PluginRecord]:
    names = " and ".join(sorted(f"{record.distribution} {record.version}" for record in rivals))
    reason = f"plugin id {rivals[0].id!r} is offered by {names}; neither is loaded, uninstall one"
    return [replace(record, status="broken", reason=reason) for record in rivals]


def _load(record: PluginRecord, point: EntryPoint) -> PluginRecord:
    """Runs the plugin's code: the only place that does, so the guard is here."""
    try:
        if not _PLUGIN_ID.fullmatch(record.id):
            raise PluginError(f"plugin id {record.id!r} is not lower snake case")
        module = point.load()
        _check_api(module)
        return replace(record, specs=tuple(_drain(module)))
    except PluginError as error:
        return replace(record, status="broken", reason=str(error), cause=error)
    except (Exception, SystemExit) as error:  # a plugin that calls sys.exit() must not end the host
        return replace(record, status="broken", reason=f"{type(error).__name__}: {error}", cause=error)


def _check_api(module: Any) -> None:
    version = getattr(module, "MEDVL_API", None)
    if not isinstance(version, str):
        raise PluginError(f'MEDVL_API is {version!r}; write MEDVL_API = "{PLUGIN_API}" in the plugin module')
    if version.split(".")[0] != PLUGIN_API.split(".")[0]:
        raise PluginError(f"MEDVL_API is {version} but this medvl has {PLUGIN_API}; the major versions must match")


def _drain(module: Any) -> Iterator[ComponentSpec]:
    """The specs of one plugin. It has a pluggy manager of its own, so that nothing it does reaches another plugin."""
    manager = pluggy.PluginManager(hookspecs.PROJECT)
    manager.add_hookspecs(hookspecs)
    manager.register(module)
    callers = manager.get_hookcallers(module) or []
    implemented = {caller.name for caller in callers}
    for caller in callers:
        if not caller.has_spec():
            raise PluginError(
                f"{caller.name} is not a hook{did_you_mean(caller.name, HOOKS)} Hooks: {', '.join(HOOKS)}"
            )
    for name in HOOKS:
        if hasattr(module, name) and name not in implemented:
            raise PluginError(f"{name} is not decorated with @hookimpl")
    for name in HOOKS:
        if name in implemented:
            yield from _specs_of(name, getattr(manager.hook, name)())


def _specs_of(hook: str, results: list[Any]) -> list[ComponentSpec]:
    expected = HOOKS[hook]
    if not results:  # pluggy leaves out None
        raise PluginError(f"{hook} returned None; it must return a list of {expected.__name__}")
    if isinstance(results[0], str | Mapping) or not isinstance(results[0], Iterable):
        raise PluginError(f"{hook} returned {type(results[0]).__name__}; it must return a list of {expected.__name__}")
    specs = list(results[0])
    for spec in specs:
        if not isinstance(spec, expected):
            raise PluginError(f"{hook} gave {type(spec).__name__}; it must give {expected.__name__}")
    for name, count in Counter(spec.name for spec in specs).items():
        if count > 1:
            raise PluginError(
                f"{hook} gave {count} components called {name!r}; names are unique within a plugin and kind"
            )
    return specs


def _report(record: PluginRecord, strict: bool) -> None:
    message = f"plugin {record} is not loaded: {record.reason}"
    if strict:
        raise PluginError(message) from record.cause
    warnings.warn(message, PluginWarning, stacklevel=2)


_current: Registry | None = None


def registry() -> Registry:
    """The registry of this process: discovered on the first call, under ``MEDVL_PLUGINS`` and ``MEDVL_STRICT``.

    ``MEDVL_PLUGINS=a,b`` loads only these plugins, an empty value loads none.
    ``MEDVL_STRICT=1`` makes a broken plugin an error.
    """
    global _current
    if _current is None:
        listed = os.environ.get("MEDVL_PLUGINS")
        allow = None if listed is None else [word.strip() for word in listed.split(",") if word.strip()]
        _current = discover(allow=allow, strict=os.environ.get("MEDVL_STRICT") == "1")
    return _current


@contextmanager
def using(other: Registry | None) -> Iterator[None]:
    """Within the block ``registry()`` gives ``other``; ``None`` discovers again. For tests."""
    global _current
    before, _current = _current, other
    try:
        yield
    finally:
        _current = before

"""From a plugin module to named pytest cases."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from importlib.metadata import EntryPoint, entry_points
from typing import Any

import pytest

from medvl_core.build import component_options
from medvl_core.errors import did_you_mean
from medvl_core.manager import GROUP, Registry, discover
from medvl_core.protocols import Dataset, Encoder, Evaluator, TextEncoder, TextSource
from medvl_core.testing import datasets, encoders, evaluators, losses, poolings, text_sources
from medvl_core.testing.harness import ContractViolation, Subject, require

__all__ = ["HEAVY", "Case", "contract_cases", "registry_cases"]

Check = Callable[[Subject], None]

HEAVY = ("torch", "monai", "transformers")
"""What discovery must never import."""


def factory_signature(subject: Subject) -> None:
    """The factory exists, ``tiny`` names options it has, and no option is called like one of ``build_*`` itself."""
    options = component_options(subject.component)
    for taken in ("name", "options_for", "offers", *(["encoder"] if subject.component.kind == "pooling" else [])):
        require(taken not in options, subject, f"its factory has an option {taken!r}, which build_* takes for itself")
    takes_any = any(option.kind is option.VAR_KEYWORD for option in options.values())
    unknown = [] if takes_any else sorted(set(subject.spec.tiny) - set(options))
    require(not unknown, subject, f"tiny names {unknown}, which are no options of {subject.spec.factory}")


def protocol(subject: Subject) -> None:
    """An instance has every member that its protocol names."""
    kind = subject.component.kind
    wanted = TextEncoder if kind == "encoder" and subject.spec.spatial_dims == 0 else PROTOCOLS[kind]
    instance = subject.build()
    named = {name for base in wanted.__mro__ for name in (*vars(base), *getattr(base, "__annotations__", ()))}
    missing = sorted(name for name in named if not name.startswith("_") and not hasattr(instance, name))
    require(not missing, subject, f"{type(instance).__name__} lacks {missing} of protocols.{wanted.__name__}")


PROTOCOLS: Mapping[str, type] = {
    "encoder": Encoder,
    "text_source": TextSource,
    "evaluator": Evaluator,
    "dataset": Dataset,
}
CHECKS: Mapping[str, tuple[Check, ...]] = {
    "encoder": (factory_signature, protocol, *encoders.CHECKS),
    "pooling": (factory_signature, *poolings.CHECKS),
    "loss": (factory_signature, *losses.CHECKS),
    "text_source": (factory_signature, protocol, *text_sources.CHECKS),
    "evaluator": (factory_signature, protocol, *evaluators.CHECKS),
    "dataset": (factory_signature, protocol, *datasets.CHECKS),
}
"""Component kind → its checks. The docstring of a check is its rule."""


@dataclass(frozen=True)
class Case:
    """One check of one component; call it. ``id`` is ``kind/component/check``."""

    id: str
    run: Callable[[], None]

    def __call__(self) -> None:
        """Runs the check; raises ``ContractViolation`` if the contract is broken."""
        self.run()


def contract_cases(
    module: str,
    *,
    options: Mapping[str, Callable[[], Mapping[str, Any]]] | None = None,
    extras: Mapping[str, Callable[[int], Any]] | None = None,
    known_failures: Mapping[str, str] | None = None,
) -> list[Any]:
    """The contract of a plugin as pytest parameters, one per component and check.

    Args:
        module: The plugin module, e.g. ``"medvl_mine.plugin"``; it need not be installed, only importable.
        options: ``"kind/component"`` → function that gives its options, where ``tiny`` is not enough (e.g. a folder).
        extras: Makers of extra batch entries that a loss needs: name → function of the number of pairs.
        known_failures: Case id → reason. These cases must fail: a repaired one is reported until its entry is removed.

    Raises:
        PluginError: If the plugin cannot be loaded.
        ValueError: If ``options`` or ``known_failures`` names something that does not exist.
    """
    installed = [point for point in entry_points(group=GROUP) if point.value == module]
    point = installed[0] if installed else EntryPoint(name=module.split(".")[0], value=module, group=GROUP)
    registry = discover([point], strict=True)
    discovery = Case(f"{point.name}/discovery_is_light", lambda: _discovery_is_light(module))
    return registry_cases(
        registry, [discovery], options=options or {}, extras=extras or {}, known_failures=known_failures or {}
    )


def registry_cases(
    registry: Registry,
    first: Iterable[Case] = (),
    *,
    options: Mapping[str, Callable[[], Mapping[str, Any]]],
    extras: Mapping[str, Callable[[int], Any]],
    known_failures: Mapping[str, str],
) -> list[Any]:
    """As ``contract_cases``, for every component of a registry; ``first`` are put in front."""
    cases = list(first)
    components = {f"{component.kind}/{component.spec.name}": component for component in registry.components()}
    _known("options", options, components)
    for key, component in components.items():
        subject = Subject(component, options.get(key), extras)
        cases += [Case(f"{key}/{check.__name__}", _bind(check, subject)) for check in CHECKS[component.kind]]
    _known("known_failures", known_failures, [case.id for case in cases])
    return [pytest.param(case, id=case.id, marks=_marks(known_failures.get(case.id))) for case in cases]


def _bind(check: Check, subject: Subject) -> Callable[[], None]:
    return lambda: check(subject)


def _known(argument: str, given: Iterable[str], known: Iterable[str]) -> None:
    known = list(known)
    for key in given:
        if key not in known:
            raise ValueError(f"{argument} names {key!r}, which does not exist{did_you_mean(key, known)}")


def _marks(reason: str | None) -> list[pytest.MarkDecorator]:
    return [] if reason is None else [pytest.mark.xfail(reason=reason, strict=True, raises=ContractViolation)]


def _discovery_is_light(module: str) -> None:
    code = f"import sys, {module}; print(*[name for name in {HEAVY} if name in sys.modules])"
    environment = {**os.environ, "PYTHONPATH": os.pathsep.join(filter(None, sys.path))}
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False, env=environment)
    if done.returncode or done.stdout.strip():
        found = done.stdout.strip() or done.stderr.strip().splitlines()[-1]
        raise ContractViolation(
            f"{module}: importing the plugin module loads {found}; import it in the factory's module"
        )

"""Builds components by name, from Python and as ``_target_`` in a bundle. Factories are imported on first use."""

from __future__ import annotations

import inspect
from collections.abc import Callable, Mapping
from importlib import import_module
from inspect import Parameter
from typing import Any

from medvl_core.errors import ComponentError, OptionError, did_you_mean
from medvl_core.manager import Component, registry
from medvl_core.specs import EncoderSpec, LossSpec, PoolingSpec

__all__ = [
    "build_component",
    "build_dataset",
    "build_encoder",
    "build_evaluator",
    "build_loss",
    "build_pooling",
    "build_text_source",
    "component_options",
    "load_factory",
    "offered_options",
]


def build_encoder(name: str, **options: Any) -> Any:
    """Builds an encoder. The instance carries ``.input``, ``.embed_dim``, ``.component`` (its full name) and
    ``.built_with`` (the options).

    Args:
        name: ``"plugin/component"``, or the short name while it is unambiguous.
        options: Keyword arguments of its factory; ``medvl show NAME`` lists them. Two extra keywords let a config be
            switched to another component by overriding ``name`` alone: ``options_for`` maps full names to options that
            only this component gets, and ``offers`` maps options to values for whichever component has such an option.

    Raises:
        ComponentLookupError: If no encoder, or more than one, has this name.
        OptionError: If an option is unknown or missing.
    """
    return _build("encoder", name, options)


def build_pooling(name: str, encoder: Any = None, **options: Any) -> Any:
    """Builds a pooling, which carries ``.component`` and ``.built_with``; see ``build_encoder``.

    With ``encoder``, whose tokens it will read, its width is offered as ``embed_dim`` to one that does not take any.
    """
    if encoder is not None:
        width = component_options(registry().find("pooling", name)).get("embed_dim")
        wanted = {} if width is None or width.default is None else {"embed_dim": encoder.embed_dim}
        options["offers"] = wanted | options.get("offers", {})
    return _build("pooling", name, options)


def build_loss(name: str, **options: Any) -> Any:
    """Builds a loss, which carries ``.component`` and ``.needs``; see ``build_encoder``."""
    return _build("loss", name, options)


def build_text_source(name: str, **options: Any) -> Any:
    """Builds a text source; see ``build_encoder``."""
    return _build("text_source", name, options)


def build_evaluator(name: str, **options: Any) -> Any:
    """Builds an evaluator; see ``build_encoder``."""
    return _build("evaluator", name, options)


def build_dataset(name: str, **options: Any) -> Any:
    """Builds a dataset; see ``build_encoder``.

    A ``folder`` among the ``offers`` is where the data lie: also offered as ``dataset_dir``, and as ``data_dir``,
    ``root`` or ``path`` where the dataset needs such an option.
    """
    return _build("dataset", name, options)


def _build(kind: str, name: str, options: dict[str, Any]) -> Any:
    component = registry().find(kind, name)
    own = options.pop("options_for", {}).get(component.full_name, {})
    offered = offered_options(component, options.pop("offers", {}))
    return build_component(component, {**offered, **own, **options})


def offered_options(component: Component, offers: Mapping[str, Any]) -> dict[str, Any]:
    """Of what a config offers, that which this component has an option for, under the names of its options."""
    has = component_options(component) if offers else {}
    if component.kind == "dataset" and "folder" in offers:
        required = [one for one in ("data_dir", "root", "path") if one in has and has[one].default is Parameter.empty]
        offers = dict.fromkeys(["dataset_dir", *required], offers["folder"]) | dict(offers)
    return {option: value for option, value in offers.items() if option in has}


def build_component(component: Component, options: Mapping[str, Any]) -> Any:
    """Builds one component from its record, e.g. of a registry of your own.

    Raises:
        ComponentError: If the factory named by the spec does not exist.
        OptionError: If an option is unknown or missing. Errors of the factory itself are passed on, with a note.
    """
    factory = load_factory(component)
    _check_options(component, factory, options)
    try:
        instance = factory(**options)
    except Exception as error:  # only annotated, then raised on
        error.add_note(f"while building {component.kind} {component}")
        raise
    if isinstance(component.spec, EncoderSpec):
        for name, value in (("input", component.spec.input), ("embed_dim", component.spec.embed_dim)):
            if not hasattr(instance, name):
                setattr(instance, name, value)
    if isinstance(component.spec, (EncoderSpec, PoolingSpec)):
        instance.component, instance.built_with = component.full_name, dict(options)
    if isinstance(component.spec, LossSpec):
        instance.component, instance.needs = component.full_name, getattr(instance, "needs", component.spec.needs)
    if isinstance(component.spec, PoolingSpec):
        instance.order_sensitive = component.spec.order_sensitive
    return instance


def load_factory(component: Component) -> Callable[..., Any]:
    """Imports the factory of a component.

    Raises:
        ComponentError: If its module has no such callable. Errors of importing the module are passed on, with a note.
    """
    module_name, _, attribute = component.spec.factory.partition(":")
    try:
        module = import_module(module_name)
    except Exception as error:  # only annotated, then raised on
        error.add_note(f"while importing {module_name!r} for {component.kind} {component}")
        raise
    factory = getattr(module, attribute, None)
    if not callable(factory):
        raise ComponentError(
            f"{component}: factory {component.spec.factory!r} is not a callable{did_you_mean(attribute, dir(module))}"
        )
    return factory  # type: ignore[no-any-return]


def component_options(component: Component) -> Mapping[str, inspect.Parameter]:
    """The factory's parameters by name, in order."""
    return inspect.signature(load_factory(component)).parameters


def _check_options(component: Component, factory: Callable[..., Any], options: Mapping[str, Any]) -> None:
    parameters = inspect.signature(factory).parameters
    named = {name: p for name, p in parameters.items() if p.kind in (p.POSITIONAL_OR_KEYWORD, p.KEYWORD_ONLY)}
    takes_any = any(p.kind is p.VAR_KEYWORD for p in parameters.values())
    shown = ", ".join(name if p.default is p.empty else f"{name}={p.default!r}" for name, p in named.items()) or "none"
    for option in options:
        if option not in named and not takes_any:
            hint = did_you_mean(option, named)
            raise OptionError(f"{component.full_name} has no option {option!r}{hint}\n  options: {shown}")
    missing = [name for name, p in named.items() if p.default is p.empty and name not in options]
    if missing:
        raise OptionError(f"{component.full_name} needs the option {', '.join(missing)}\n  options: {shown}")

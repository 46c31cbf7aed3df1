"""Commands of authors: what is installed, what is wrong with a bundle, a plugin or method of one's own."""

from __future__ import annotations

import dataclasses
import json
import warnings
from collections.abc import Iterable
from pathlib import Path
from typing import Annotated, Any

import typer

from medvl_core.command.console import AsJson, terminal
from medvl_core.errors import EXIT_DATA, ComponentLookupError, MedvlError, PluginWarning
from medvl_core.manager import Component, PluginRecord, Registry, registry
from medvl_core.specs import KINDS

__all__ = ["bundle", "doctor", "new_bundle", "new_plugin", "plugins", "show"]

bundle = typer.Typer(help="Bundles.", no_args_is_help=True)


@bundle.callback()
def _bundle() -> None:
    """Bundles."""


def _registry() -> Registry:
    """The registry without warnings: these commands show broken plugins themselves."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", PluginWarning)
        return registry()


def plugins(as_json: AsJson = False) -> None:
    """List all components, and the plugins that could not be loaded. Exit code 65 if there are any of those."""
    found = _registry()
    if as_json:
        typer.echo(json.dumps([_plugin_as_json(record) for record in found.records], indent=2))
    else:
        _print_components(found)
    if any(record.status == "broken" for record in found.records):
        raise typer.Exit(EXIT_DATA)


def _plugin_as_json(record: PluginRecord) -> dict[str, Any]:
    fields = ("id", "distribution", "version", "module", "status", "reason")
    components = [
        {"kind": spec.kind, "name": f"{record.id}/{spec.name}", "summary": spec.summary} for spec in record.specs
    ]
    return {**{name: getattr(record, name) for name in fields}, "components": components}


def _print_components(found: Registry) -> None:
    from rich.table import Table

    console = terminal()
    table = Table("kind", "component", "summary", "from", box=None, pad_edge=False)
    for component in found.components():
        origin = f"{component.plugin.distribution} {component.plugin.version}"
        table.add_row(component.kind, component.full_name, component.spec.summary, origin)
    console.print(table)
    for record in found.records:
        if record.status != "loaded":
            console.print(f"{record.status}: {record}: {record.reason}", markup=False, style="red")


def show(name: Annotated[str, typer.Argument(help="Full name, or a short one while it is unambiguous.")]) -> None:
    """Show a component: its spec, its options with their defaults, and how to use it."""
    console = terminal()
    for component in _named(name):
        spec = component.spec
        builder = f"medvl_core.build_{component.kind}"
        origin = f"{component.plugin.distribution} {component.plugin.version}, {spec.factory}"
        rows = [("kind", component.kind), ("from", origin)]
        rows += [(field.name, _plain(getattr(spec, field.name))) for field in dataclasses.fields(spec)]
        rows += [("options", "\n".join(_option_lines(component)))]
        needed = _needed_options(component)
        arguments = "".join(f", {name}={value!r}" for name, value in needed.items())
        rows += [("in Python", f"{builder}({component.full_name!r}{arguments})")]
        rows += [("in a config", json.dumps({"_target_": builder, "name": component.full_name, **needed}, default=str))]
        console.print(component.full_name, style="bold")
        for label, text in rows:
            if label not in ("name", "factory"):
                console.print(f"  {label:<16}" + text.replace("\n", f"\n  {'':<16}"), markup=False, soft_wrap=True)


def _named(name: str) -> list[Component]:
    """Every component of that name; one name may stand for components of different kinds."""
    found = _registry()
    matches = [component for component in found.components() if name in (component.full_name, component.spec.name)]
    if matches:
        return matches
    errors = []
    for kind in KINDS:
        try:
            found.find(kind, name)
        except ComponentLookupError as error:
            errors.append(str(error))
    near = (text for text in errors if "did you mean" in text)
    raise ComponentLookupError(next(near, f"no component is called {name!r}; 'medvl plugins' lists all"))


def _plain(value: Any) -> str:
    return str(dict(value)) if hasattr(value, "items") else str(value)


def _needed_options(component: Component) -> dict[str, Any]:
    """Options without a default, with the values of ``tiny``, so that the lines shown can be run."""
    from medvl_core.build import component_options

    named = [name for name, option in component_options(component).items() if option.default is option.empty]
    return {name: component.spec.tiny.get(name, "...") for name in named}


def _option_lines(component: Component) -> Iterable[str]:
    from medvl_core.build import component_options

    for name, option in component_options(component).items():
        if option.kind is not option.VAR_KEYWORD:
            yield f"{name} (required)" if option.default is option.empty else f"{name} = {option.default!r}"


def doctor(as_json: AsJson = False) -> None:
    """Report versions, devices, disk space, stores, plugins, MEDVL_* settings. Exit code 65 if a plugin is broken."""
    from medvl_tools.doctor import report

    found = report(_registry())
    if as_json:
        typer.echo(json.dumps(found, indent=2))
    else:
        console = terminal()
        for section, lines in found.items():
            console.print(f"[bold]{section}[/bold]")
            for name, value in lines.items():
                console.print(f"  {name:<24} {value}", markup=False)
    if any(record.status == "broken" for record in _registry().records):
        raise typer.Exit(EXIT_DATA)


@bundle.command()
def check(
    folder: Annotated[Path, typer.Argument(help="The bundle's folder.")],
    schema: Annotated[
        Path | None, typer.Option(help="JSON schema of the metadata; default: the one medvl ships.")
    ] = None,
    override: Annotated[
        list[str] | None, typer.Option(help="Key you mean to override, e.g. epochs. Repeatable.")
    ] = None,
    config_file: Annotated[list[Path] | None, typer.Option(help="Config of --override; default: all.")] = None,
    as_json: AsJson = False,
) -> None:
    """Check a bundle without running it. Exit code 65 if there are problems."""
    from medvl_core.bundle.startup import unknown_override_keys
    from medvl_tools.check import check_bundle

    problems = [(problem.where, problem.message) for problem in check_bundle(folder, schema)]
    if override:
        configs = config_file or [path for path in (folder / "configs").glob("*.json") if path.name != "metadata.json"]
        try:
            problems += [("--override", line) for line in unknown_override_keys(configs, override)]
        except MedvlError as error:
            problems.append(("--override", str(error)))
    if as_json:
        typer.echo(json.dumps([{"where": where, "message": message} for where, message in problems], indent=2))
    else:
        for where, message in problems:
            typer.echo(f"{where}: {message}")
        typer.echo(f"{folder}: {len(problems)} problem(s)" if problems else f"{folder}: no problems")
    if problems:
        raise typer.Exit(EXIT_DATA)


def new_plugin(
    name: Annotated[str, typer.Argument(help="Plugin id, lower snake case: components become NAME/...")],
    folder: Annotated[Path | None, typer.Argument(help="Folder to make; default medvl-NAME.")] = None,
    kind: Annotated[list[str] | None, typer.Option(help=f"{', '.join(KINDS)}. Repeatable; default encoder.")] = None,
) -> None:
    """Start a plugin of your own: a copy of the examples of these kinds under your name."""
    from medvl_tools.new_plugin import create_plugin

    taken = [record.id for record in _registry().records]
    made = create_plugin(name, folder, kinds=kind or ["encoder"], taken=taken)
    typer.echo(f"made {made}; next: pip install -e {made} && pytest {made} && medvl plugins")


def new_bundle(
    name: Annotated[str, typer.Argument(help="Name of the method, lower snake case.")],
    folder: Annotated[Path | None, typer.Argument(help="Folder to make; default NAME.")] = None,
) -> None:
    """Start a method of your own: a bundle that trains at once on generated patients."""
    from medvl_tools.new_bundle import create_bundle

    made = create_bundle(name, folder)
    typer.echo(f"made {made}; next: python -m monai.bundle run --config_file {made / 'configs' / 'train.json'}")

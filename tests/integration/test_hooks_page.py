"""docs/reference/hooks.md: its examples are the example plugin and run as they stand, its tables are the classes."""

from __future__ import annotations

import dataclasses
import inspect
import json
import re
from pathlib import Path

import pytest

import medvl_core
from medvl_core import protocols, specs, study
from medvl_core.engine.loading import Draw

ROOT = Path(__file__).parents[2]
EXAMPLE = ROOT / "plugins" / "example" / "medvl_example"
PAGE = (ROOT / "docs" / "reference" / "hooks.md").read_text(encoding="utf-8")
BLOCKS = list(re.finditer(r"```python\n(.*?)```", PAGE, flags=re.DOTALL))
TABLES = {
    name: [line.strip("| ").replace(r"\|", "¦").split(" | ") for line in rows.splitlines()]
    for name, rows in re.findall(r"^\| `(\w+)` \| .*\n\|[ -|]+\n((?:\| `.*\n)+)", PAGE, flags=re.MULTILINE)
}
CLASSES = {
    name: found
    for module in (specs, protocols, study)
    for name in module.__all__
    if inspect.isclass(found := getattr(module, name))
} | {"Draw": Draw}
ABILITIES = dict(re.findall(r"^\| `(\w+)` \| (.*) \| [^|]+ \|$", PAGE.partition("| ability |")[2], flags=re.MULTILINE))
OFFERED = dict(re.findall(r"^\| (\w+) \| (`.*) \|$", PAGE, flags=re.MULTILINE))
BUNDLES = [*ROOT.glob("monai_bundles/*/configs/train.json"), *ROOT.glob("plugins/example_bundle/*/configs/train.json")]
DATA = sorted(name for name, found in CLASSES.items() if dataclasses.is_dataclass(found))
PROTOCOLS = sorted(name for name, found in CLASSES.items() if getattr(found, "_is_protocol", False))


def test_every_example_runs(capsys):
    names = {"__name__": "__main__"}
    for block in BLOCKS:
        lines = "\n" * PAGE[: block.start(1)].count("\n")  # so that a traceback gives the line of the page
        exec(compile(lines + block[1], "docs/reference/hooks.md", "exec", dont_inherit=True), names)
    studies = medvl_core.build_dataset("baseline/phantom").studies("validation")
    assert capsys.readouterr().out == f"{len(studies)}\n"  # of the command that counts


@pytest.mark.parametrize("file", sorted(path.name for path in EXAMPLE.glob("*.py") if path.stem != "__init__"))
def test_the_examples_are_the_example_plugin(file):
    head = f"# medvl_example/{file}\n"
    shown = [block[1].removeprefix(head).strip() for block in BLOCKS if block[1].startswith(head)]
    text = (EXAMPLE / file).read_text(encoding="utf-8")
    for part in shown:
        assert part in text, f"{file} has changed; the page shows {part.splitlines()[:2]}"
    for name in re.findall(r"^(?:def|class) \w+", text, flags=re.MULTILINE):
        assert any(name in part for part in shown), f"the page lacks {name} of {file}"


def test_every_class_has_its_table():
    assert {*DATA, *PROTOCOLS} - {*TABLES, *ABILITIES} == set()


@pytest.mark.parametrize("name", DATA)
def test_tables_of_dataclasses_give_their_own_fields(name):
    bases = [base for base in CLASSES[name].__mro__[1:] if dataclasses.is_dataclass(base)]
    inherited = {field.name for base in bases for field in dataclasses.fields(base)}
    own = [field for field in dataclasses.fields(CLASSES[name]) if field.name not in inherited]
    expected = [[f"`{field.name}`", f"`{field.type}`".replace("|", "¦"), default_of(field)] for field in own]
    assert [row[:3] for row in TABLES[name]] == expected


def default_of(field: dataclasses.Field) -> str:
    if field.default is not dataclasses.MISSING:
        return f"`{field.default!r}`"
    return "" if field.default_factory is dataclasses.MISSING else f"`{field.default_factory()!r}`"


@pytest.mark.parametrize("name", PROTOCOLS)
def test_tables_of_protocols_give_their_own_members(name):
    own = {member: value for member, value in vars(CLASSES[name]).items() if member == "__call__" or member[0] != "_"}
    expected = [*inspect.get_annotations(CLASSES[name]), *(call_of(*member) for member in own.items())]
    if name in ABILITIES:
        assert [member for member in expected if f"`{member}`" not in ABILITIES[name]] == []
    else:
        assert [row[0].strip("`") for row in TABLES[name]] == list(dict.fromkeys(expected))


def call_of(name: str, member: object) -> str:
    if not inspect.isfunction(member):
        return name
    parameters = list(inspect.signature(member).parameters.values())[1:]
    return f"{name}({', '.join(str(one.replace(annotation=one.empty)) for one in parameters)})"


def offers_of(node: object, config: dict[str, object]) -> set[tuple[str, str]]:
    """Kind and option of everything that a config offers."""
    if isinstance(node, list):
        return {offer for item in node for offer in offers_of(item, config)}
    if not isinstance(node, dict):
        return set()
    kind, offers = str(node.get("_target_", "")).removeprefix("medvl_core.build_"), node.get("offers", {})
    options = config.get(offers.removeprefix("@"), {}) if isinstance(offers, str) else offers  # "$...": not known here
    return {(kind, option) for option in options} | offers_of(list(node.values()), config)


@pytest.mark.parametrize("path", BUNDLES, ids=lambda path: path.parts[-3])
def test_the_page_lists_what_bundles_offer(path):
    config = json.loads(path.read_text(encoding="utf-8"))
    lacking = [f"{kind}: {option}" for kind, option in offers_of(config, config) if f"`{option}`" not in OFFERED[kind]]
    assert sorted(lacking) == [], "add these to the table in docs/reference/hooks.md"

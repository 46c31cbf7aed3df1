from __future__ import annotations

import inspect
import warnings
from importlib.metadata import EntryPoint, distributions
from pathlib import Path

import pytest

from medvl_core import hookspecs
from medvl_core.errors import ComponentLookupError, PluginError, PluginWarning
from medvl_core.manager import GROUP, HOOKS, PluginRecord, Registry, discover, registry, using
from medvl_core.specs import KINDS, LossSpec, PoolingSpec

ROOT = Path(__file__).parents[2]
BROKEN = sorted((ROOT / "tests/data/broken_plugins").glob("broken_*.py"))
GOOD = EntryPoint(name="baseline", value="medvl_baseline.plugin", group=GROUP)


def point(name: str, value: str) -> EntryPoint:
    return EntryPoint(name=name, value=value, group=GROUP)


def reason_of(path: Path) -> str:
    return path.read_text().splitlines()[0].removeprefix("# reason: ")


def record(plugin: str, *names: str, distribution: str = "dist") -> PluginRecord:
    specs = (LossSpec(name=name, factory="a:b", summary="s", source="medvl", license="MIT") for name in names)
    return PluginRecord(id=plugin, distribution=distribution, version="1.2", specs=tuple(specs))


def install(folder: Path, distribution: str, version: str, *entries: str) -> None:
    info = folder / f"{distribution}-{version}.dist-info"
    info.mkdir(parents=True)
    (info / "METADATA").write_text(f"Metadata-Version: 2.1\nName: {distribution}\nVersion: {version}\n")
    (info / "entry_points.txt").write_text(f"[{GROUP}]\n" + "\n".join(entries))


def points_in(folder: Path) -> list[EntryPoint]:
    return [point for dist in distributions(path=[str(folder)]) for point in dist.entry_points]


def test_hooks_are_those_of_the_hookspecs():
    functions = {name for name, value in vars(hookspecs).items() if name.startswith("medvl_") and callable(value)}
    assert set(HOOKS) == functions
    assert list(HOOKS.values()) == list(KINDS.values())
    assert not any(inspect.signature(getattr(hookspecs, name)).parameters for name in HOOKS)


def test_there_are_at_least_nine_ways_to_be_broken():
    assert len(BROKEN) >= 9


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_broken_plugin_is_isolated_with_its_reason(path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)
    with pytest.warns(PluginWarning) as caught:
        found = discover([point("bad", path.stem), GOOD])
    good, bad = sorted(found.records, key=lambda record: record.status, reverse=True)
    assert (bad.id, bad.module, bad.status, bad.specs) == ("bad", path.stem, "broken", ())
    assert bad.reason.startswith(reason_of(path))
    assert len(caught) == 1
    assert bad.reason in str(caught[0].message)
    assert good.status == "loaded"
    assert len(good.specs) > 10


@pytest.mark.parametrize("path", BROKEN, ids=lambda path: path.stem)
def test_strict_raises_instead(path, monkeypatch):
    monkeypatch.syspath_prepend(path.parent)
    with pytest.raises(PluginError, match=r"plugin bad .* is not loaded") as caught:
        discover([GOOD, point("bad", path.stem)], strict=True)
    assert caught.value.__cause__ is not None


def test_syntax_error_is_isolated(tmp_path, monkeypatch):
    (tmp_path / "half_written_plugin.py").write_text("def medvl_encoders(:\n")
    monkeypatch.syspath_prepend(tmp_path)
    with pytest.warns(PluginWarning, match="SyntaxError"):
        assert discover([point("bad", "half_written_plugin")]).components() == []


@pytest.mark.parametrize(
    ("name", "value", "reason"),
    [
        ("Bad-Id", "medvl_baseline.plugin", "plugin id 'Bad-Id' is not lower snake case"),
        ("bad", "not a module", "AttributeError"),
        ("bad", "medvl_baseline.plugin:nothing_here", "AttributeError"),
    ],
)
def test_bad_entry_point_is_isolated(name, value, reason):
    with pytest.warns(PluginWarning, match=reason):
        (bad,) = discover([point(name, value)]).records
    assert bad.reason.startswith(reason)


def test_two_distributions_with_one_plugin_id_are_both_reported(tmp_path):
    install(tmp_path, "medvl_first", "1.0", "mine = medvl_baseline.plugin")
    install(tmp_path, "medvl_second", "2.1", "mine = medvl_baseline.plugin")
    with pytest.warns(PluginWarning, match="medvl_first 1.0 and medvl_second 2.1; neither is loaded") as caught:
        found = discover(points_in(tmp_path))
    assert [(record.distribution, record.status) for record in found.records] == [
        ("medvl_first", "broken"),
        ("medvl_second", "broken"),
    ]
    assert len(caught) == 2
    assert found.components() == []


def test_records_name_distribution_and_version(tmp_path):
    install(tmp_path, "medvl_first", "1.0", "mine = medvl_baseline.plugin")
    (found,) = discover(points_in(tmp_path)).records
    assert str(found) == "mine (medvl_first 1.0)"
    assert found.module == "medvl_baseline.plugin"


def test_damaged_metadata_does_not_stop_discovery(tmp_path):
    install(tmp_path, "medvl_first", "1.0", "mine = medvl_baseline.plugin")
    (tmp_path / "medvl_first-1.0.dist-info/METADATA").write_bytes(b"\xff\xfe\x00")
    (found,) = discover(points_in(tmp_path)).records
    assert (found.distribution, found.status) == ("?", "loaded")


def test_allow_list_blocks_the_others_without_importing_them():
    found = discover([GOOD, point("bad", "a_module_nobody_has")], allow=["baseline"])
    assert {record.id: record.status for record in found.records} == {"bad": "blocked", "baseline": "loaded"}


def test_allow_list_names_a_plugin_that_is_not_installed():
    with pytest.warns(PluginWarning, match="not installed; did you mean 'baseline'"):
        discover([GOOD], allow=["basline"])


def test_empty_allow_list_loads_none():
    assert discover([GOOD], allow=[]).components() == []


@pytest.mark.parametrize(("value", "expected"), [(None, None), ("", []), ("a, b", ["a", "b"])])
def test_registry_reads_the_environment(value, expected, monkeypatch):
    seen = {}
    monkeypatch.setattr("medvl_core.manager.discover", lambda **options: seen.update(options) or Registry([]))
    monkeypatch.delenv("MEDVL_PLUGINS", raising=False)
    monkeypatch.setenv("MEDVL_STRICT", "1")
    if value is not None:
        monkeypatch.setenv("MEDVL_PLUGINS", value)
    with using(None):
        registry()
    assert seen == {"allow": expected, "strict": True}


def test_registry_is_discovered_once_and_can_be_replaced():
    other = Registry([])
    before = registry()
    with using(other):
        assert registry() is other
    assert registry() is before


def test_full_and_short_names_find_the_component():
    found = Registry([record("mine", "infonce", "triplet"), record("theirs", "siglip")])
    assert found.find("loss", "mine/triplet").full_name == "mine/triplet"
    assert found.find("loss", "siglip").full_name == "theirs/siglip"
    assert [component.full_name for component in found.components("loss")] == [
        "mine/infonce",
        "mine/triplet",
        "theirs/siglip",
    ]


def test_ambiguous_short_name_lists_the_full_names():
    found = Registry([record("mine", "infonce"), record("theirs", "infonce", distribution="other")])
    with pytest.raises(ComponentLookupError, match=r"mine/infonce \(dist 1.2\), theirs/infonce \(other 1.2\)"):
        found.find("loss", "infonce")
    assert found.find("loss", "theirs/infonce").plugin.id == "theirs"


def test_unknown_name_says_what_there_is_and_what_failed():
    failed = PluginRecord(id="theirs", distribution="other", version="3", status="broken", reason="ImportError: no x")
    with pytest.raises(ComponentLookupError, match="no loss is called") as caught:
        Registry([record("mine", "infonce"), failed]).find("loss", "infonze")
    message = str(caught.value)
    assert message.startswith("no loss is called 'infonze'; did you mean 'infonce'?")
    assert "mine/infonce (dist 1.2)" in message
    assert "not loaded: theirs (other 3): ImportError: no x" in message


def test_name_of_another_kind_says_so():
    with pytest.raises(ComponentLookupError, match="'mine/infonce' is of kind loss"):
        Registry([record("mine", "infonce")]).find("encoder", "mine/infonce")


def test_unknown_kind_lists_the_kinds():
    with pytest.raises(ComponentLookupError, match="did you mean 'encoder'"):
        Registry([]).find("encodr", "x")


def test_one_name_in_two_kinds_is_no_clash():
    pooling = PoolingSpec(name="mean", factory="a:b", summary="s", source="medvl", license="MIT", scope="global")
    mean_loss = LossSpec(name="mean", factory="a:b", summary="s", source="medvl", license="MIT")
    found = Registry([PluginRecord(id="mine", specs=(pooling, mean_loss))])
    assert found.find("loss", "mean").spec is mean_loss
    assert found.find("pooling", "mean").spec is pooling


def test_a_good_plugin_gives_no_warning():
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        assert discover([GOOD]).records[0].status == "loaded"

from __future__ import annotations

from medvl_core.manager import PluginRecord, Registry
from medvl_tools.doctor import report


def test_sections_and_versions(tmp_path, monkeypatch):
    monkeypatch.setenv("MEDVL_STRICT", "0")
    monkeypatch.setenv("HF_HOME", str(tmp_path / "no" / "folder" / "yet"))
    found = report(Registry([PluginRecord(id="mine"), PluginRecord(id="bad", status="broken", reason="x")]), tmp_path)
    assert list(found) == ["versions", "devices", "disk", "stores", "plugins", "settings"]
    assert found["versions"]["torch"][0].isdigit()
    assert "cores" in found["devices"]["cpu"]
    assert "GiB free, writable" in found["disk"]["weights (HF_HOME)"]
    assert found["plugins"] == {"mine (? ?)": "loaded, 0 components", "bad (? ?)": "broken, x"}
    assert found["settings"]["MEDVL_STRICT"] == "0"
    assert found["stores"] == {}


def test_a_missing_package_is_named(monkeypatch, tmp_path):
    monkeypatch.setattr("medvl_tools.doctor._PACKAGES", ("a-package-nobody-has",))
    assert report(Registry([]), tmp_path)["versions"]["a-package-nobody-has"] == "not installed"


def test_stores_of_the_bundles_around(tmp_path):
    for name in ("x2ct", "radclip"):
        (tmp_path / "monai_bundles" / name / "configs").mkdir(parents=True)
        (tmp_path / "monai_bundles" / name / "configs/metadata.json").touch()
    (tmp_path / "monai_bundles/x2ct/models").mkdir()
    (tmp_path / "monai_bundles/x2ct/models/model.pt").write_bytes(bytes(3 * 2**20))
    (tmp_path / "monai_bundles/x2ct/mlruns.db").write_bytes(bytes(2**20))
    stores = {path.rsplit("/", 1)[1]: text for path, text in report(Registry([]), tmp_path)["stores"].items()}
    assert stores == {"radclip": "nothing written yet", "x2ct": "models 3.0 MiB, mlruns.db 1.0 MiB"}

from __future__ import annotations

import json

from medvl_tools.check import check_bundle
from medvl_tools.new_bundle import create_bundle


def test_the_copy_has_every_file_under_the_new_name_and_only_components_of_medvl(tmp_path):
    made = create_bundle("my_method", tmp_path / "there")
    assert {str(path.relative_to(made)) for path in made.rglob("*") if path.is_file()} == {
        "LICENSE",
        *(f"configs/{name}.json" for name in ("train", "evaluate", "inference", "metadata")),
        "configs/logging.conf",
        "docs/README.md",
        "docs/data_license.txt",
    }
    for path in made.rglob("*.*"):
        assert path.is_dir() or "example_bundle" not in path.read_text()
    assert json.loads((made / "configs/train.json").read_text())["job"]["name"] == "my_method"
    assert check_bundle(made) == []

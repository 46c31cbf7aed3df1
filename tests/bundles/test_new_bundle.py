"""What ``medvl new-bundle`` writes: trains, is evaluated again and infers, in miniature, without a change."""

from __future__ import annotations

import csv
import json
import re
import signal
import sys

import numpy as np
import pytest
from monai.bundle import verify_metadata
from PIL import Image

from medvl_tools.new_bundle import create_bundle
from tests.bundles import running
from tests.bundles.conftest import Trained

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("_process_as_before"),
]
PAGE = (running.ROOT / "plugins" / "example_bundle" / "example_bundle" / "configs" / "train.json").read_text()
TINY = {
    "dataset::options_for::baseline/phantom": {"n_subjects": 40, "shape": [16, 16, 16]},
    "image_encoder::offers": {"size": [32, 32], "base_width": 4},
    "train::trainer::batch_size": 8,
    "epochs": 2,
}


@pytest.fixture(scope="module")
def mine(tmp_path_factory) -> Trained:
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    folder = tmp_path_factory.mktemp("mine")
    (folder / "tiny.json").write_text(json.dumps(TINY))
    mine = Trained(create_bundle("my_method", folder / "my_method"), folder / "tiny.json")
    mine.missing = mine.run("train.json").check_properties()
    sys.excepthook = sys.__excepthook__
    for number, handler in handlers.items():
        signal.signal(number, handler)
    return mine


def metrics(bundle):
    return json.loads((bundle / "eval" / "metrics.json").read_text())["rows"]


def test_metadata_passes_monais_own_check(mine):
    schema = running.ROOT / "plugins" / "medvl_tools" / "schema" / "meta_schema_20240725.json"
    verify_metadata(meta_file=str(mine.bundle / "configs" / "metadata.json"), filepath=str(schema))


def test_it_has_what_monai_asks_of_a_training_workflow(mine):
    assert mine.missing == []


def test_it_trains_and_compares_with_the_untrained_network(mine):
    assert set(metrics(mine.bundle)) == {"chance", "untrained", "trained"}
    assert {"model.pt", "manifest.json"} <= {path.name for path in (mine.bundle / "models").iterdir()}
    assert {run.info.status for run in running.runs(mine.bundle)} == {"FINISHED"}


def test_the_evaluation_is_repeated_to_the_last_bit(mine):
    before = metrics(mine.bundle)
    (mine.bundle / "eval" / "metrics.json").unlink()
    mine.run("train.json", "evaluate.json")
    assert metrics(mine.bundle) == before


def test_it_gives_the_findings_of_a_film(mine, tmp_path):
    film = np.random.default_rng(0).integers(0, 255, (40, 40), dtype=np.uint8)
    Image.fromarray(film).save(tmp_path / "film.png")
    mine.run("inference.json", input=str(tmp_path / "film.png"), output_dir=str(tmp_path))
    (row,) = csv.DictReader((tmp_path / "findings.csv").open())
    assert row.pop("study") == "film.png"
    assert len(row) > 10
    assert all(0 <= float(value) <= 1 for value in row.values())


def test_its_page_is_short():
    assert len(PAGE.splitlines()) <= 80


def test_the_how_to_names_every_key_of_the_page():
    guide = (running.ROOT / "docs" / "how-to" / "write-a-bundle.md").read_text()
    table = guide[guide.index("| keys |") : guide.index("Every `")]
    named = [key for row in table.splitlines()[2:] if row for key in re.findall(r"`(\w+)`", row.split("|")[1])]
    assert sorted(named) == sorted(json.loads(PAGE))

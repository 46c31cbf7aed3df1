"""RadCLIP with components that are not its own, by one override each, and inference that is told none of it again."""

from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image

from medvl_core.manager import PluginRecord, Registry, discover, using
from medvl_core.specs import DatasetSpec
from medvl_radclip.demo import PhantomSlices, PhantomVolumes
from tests.bundles import running
from tests.bundles.conftest import Trained
from tests.bundles.test_radclip import run, trained  # noqa: F401

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("_process_as_before"),
]
QUICK = {"stage1::epochs": 1, "epochs": 1, "track": False}


def contents(folder):
    return {path.relative_to(folder): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def test_inference_builds_what_was_trained_and_the_models_stay_as_they_are(tmp_path):
    bundle = running.copy_bundle(tmp_path, "radclip")
    chosen = {
        "image_encoder::name": "baseline/clip_image",
        "text_encoder::name": "baseline/bert_small",
        "slice_pooling::name": "baseline/attention",
        "stage1::trainer::loss::losses::image_report::name": "baseline/siglip",
        "loss::losses::volume_report::name": "baseline/siglip",
        "plane": "coronal",
        "grey_window": [10.0, 200.0],
    }
    get = run(bundle, "train.json", **chosen, **QUICK).parser.get_parsed_content
    optimized = {id(p) for group in get("train::trainer").optimizer.param_groups for p in group["params"]}
    assert optimized == {id(p) for module in ("slice_pooling", "loss") for p in get(module).parameters()}
    before = contents(bundle / "models")
    picture = tmp_path / "a.png"
    Image.fromarray(np.random.default_rng(0).integers(0, 255, (60, 50), dtype=np.uint8)).save(picture)

    given = {"input": str(picture), "output_dir": str(tmp_path / "out")}
    again = run(bundle, "inference.json", **given).parser.get_parsed_content
    assert again("volume_tower").pooling.component == "baseline/attention"
    assert again("volume_tower").encoder.input == get("slice_encoder").input
    (study,) = again("predict").studies
    with torch.no_grad():
        embedding = get("image_tower").eval()(get("images").make(study)[None])[0]
    assert np.load(tmp_path / "out" / "embeddings.npz")["embedding"][0] == pytest.approx(embedding.numpy(), abs=1e-6)
    texts = again("predict").texts
    assert torch.equal(again("text_tower").embed_text(texts), get("text_tower").embed_text(texts))

    run(bundle, "train.json", "evaluate.json", **chosen)
    assert contents(bundle / "models") == before


def test_inference_finds_the_text_tower_of_a_first_stage_that_lies_elsewhere(trained, tmp_path):  # noqa: F811
    places = {"ckpt_dir": str(tmp_path / "models"), "output_dir": str(tmp_path / "out")}
    run(trained, "train.json", "adapter_only.json", stage1_dir=str(trained / "models"), **places, **QUICK)
    Image.fromarray(np.arange(81, dtype=np.uint8).reshape(9, 9)).save(tmp_path / "a.png")
    run(trained, "inference.json", input=str(tmp_path / "a.png"), **places)
    with (tmp_path / "out" / "ranking.csv").open() as file:
        assert {row["study"] for row in csv.DictReader(file)} == {"a.png"}


def test_datasets_of_another_plugin_take_the_shared_folder_and_no_option_they_lack(tmp_path):
    def dataset(name, modality):
        place = {"factory": f"{__name__}:{name}", "modalities": (modality,), "data_license": "MIT", "url": "u"}
        said = {"summary": "s", "source": "medvl", "license": "MIT", "has": ("labels",)}
        return DatasetSpec(name=name.lower(), **place, **said)

    specs = (dataset("Volumes", "volume"), dataset("Slices", "image"))
    mine = PluginRecord(id="mine", distribution="medvl-mine", version="1.0", specs=specs)
    bundle = running.copy_bundle(tmp_path, "radclip")
    chosen = {"dataset::name": "mine/volumes", "image_dataset::name": "mine/slices", "dataset_dir": str(tmp_path)}
    with using(Registry([*discover().records, mine])):
        get = run(bundle, "train.json", **chosen, **QUICK).parser.get_parsed_content
    assert get("dataset").dataset_dir == get("image_dataset").root == str(tmp_path)
    assert (bundle / "models" / "model.pt").is_file()


class Volumes(PhantomVolumes):
    """A stranger's volumes, who calls the folder ``dataset_dir``."""

    def __init__(self, dataset_dir: str) -> None:
        super().__init__(40, (32, 32, 16))
        self.dataset_dir = dataset_dir


class Slices(PhantomSlices):
    """A stranger's images, who calls the folder ``root``."""

    def __init__(self, root: str) -> None:
        super().__init__(40, (32, 32, 16))
        self.root = root


def test_old_keys_are_read_for_one_release(tmp_path, caplog):
    bundle = running.copy_bundle(tmp_path, "radclip")
    old = {"cxr_encoder::name": "baseline/resnet50_2d", "report_encoder::name": "baseline/bert_small"}
    workflow = run(bundle, "train.json", run=["@text_tower"], untrained_image_tower="@image_tower", **old)
    get = workflow.parser.get_parsed_content
    assert get("untrained").encoder.component == "baseline/resnet50_2d"
    assert get("text_tower").encoder.component == "baseline/bert_small"
    assert get("text_tower").embed_dim == get("image_tower").embed_dim
    assert "untrained_image_tower is now untrained; the old key goes with 0.2" in caplog.text


def test_workflow_has_every_property_monai_asks_for(trained):  # noqa: F811
    workflow = Trained(trained).workflow("train.json", resume=True)
    workflow.initialize()
    assert workflow.check_properties() == []

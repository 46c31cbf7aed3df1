"""Every bundle on disk passes ``medvl bundle check``."""

from pathlib import Path

import pytest
import torch
from monai.bundle import ConfigParser, verify_metadata

from medvl_tools.check import check_bundle

BUNDLES = sorted(path.parents[1] for path in (Path(__file__).parents[2] / "monai_bundles").glob("*/configs/train.json"))


def test_there_are_bundles():
    assert BUNDLES


@pytest.mark.parametrize("folder", BUNDLES, ids=lambda folder: folder.name)
def test_bundle_has_no_problems(folder):
    assert [str(problem) for problem in check_bundle(folder)] == []


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("folder", BUNDLES, ids=lambda folder: folder.name)
def test_metadata_passes_monais_own_check(folder):
    schema = Path(__file__).parents[2] / "plugins" / "medvl_tools" / "schema" / "meta_schema_20240725.json"
    verify_metadata(meta_file=str(folder / "configs" / "metadata.json"), filepath=str(schema))


@pytest.mark.filterwarnings("ignore::DeprecationWarning", "ignore::UserWarning")
@pytest.mark.parametrize("name", ["cxr_cml", "x2ct"])
def test_default_network_has_the_shape_the_metadata_states(name):
    configs = Path(__file__).parents[2] / "monai_bundles" / name / "configs"
    parser = ConfigParser()
    parser.read_config(str(configs / "train.json"))
    parser.read_meta(str(configs / "metadata.json"))
    image = parser["_meta_#network_data_format#inputs#image"]
    network = parser.get_parsed_content("image_tower").eval()
    out = network(torch.zeros(1, image["num_channels"], *image["spatial_shape"]))
    assert out.shape == (1, parser["_meta_#network_data_format#outputs#pred#num_channels"])

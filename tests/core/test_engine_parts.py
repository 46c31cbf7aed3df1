"""What a job built can be built again from its manifest."""

from __future__ import annotations

import json

import pytest
import torch

from medvl_core.build import build_encoder, build_pooling
from medvl_core.engine import Tower, trained_part
from medvl_core.engine.parts import comes_back, describe, rebuild
from medvl_core.engine.weights import save_weights
from medvl_core.errors import ComponentError

pytestmark = pytest.mark.filterwarnings("ignore::DeprecationWarning")


def tower(tmp_path, **options):
    encoder = build_encoder("baseline/resnet18_2d", size=(32, 32), base_width=4, **options)
    return Tower(encoder, build_pooling("baseline/attention", encoder=encoder, heads=2), 8)


def write(folder, part, weights=None):
    described = json.loads(json.dumps(describe(part, folder) | {"weights": weights}))
    (folder / "manifest.json").write_text(json.dumps({"parts": {"image_tower": described}}))


def test_a_tower_comes_back_with_its_weights(tmp_path):
    made = tower(tmp_path).eval()
    save_weights(torch.nn.ModuleDict({"cxr": made}), tmp_path / "model.pt")
    write(tmp_path, made, {"file": "model.pt", "prefix": "cxr."})
    again = trained_part(tmp_path, "image_tower")
    x = torch.randn(2, 1, 32, 32)
    assert torch.equal(again(x), made(x))
    assert not again.training


def test_files_beside_the_manifest_move_with_it(tmp_path):
    old, new = tmp_path / "old", tmp_path / "new"
    old.mkdir()
    (old / "vocabulary.txt").write_text("\n".join(["[PAD]", "[UNK]", "[CLS]", "[SEP]", "[MASK]", "lung"]) + "\n")
    options = {"vocabulary": str(old / "vocabulary.txt"), "hidden_size": 16, "layers": 1, "heads": 2}
    write(old, build_encoder("baseline/bert_small", **options))
    old.rename(new)
    assert trained_part(new, "image_tower").built_with["vocabulary"] == str(new / "vocabulary.txt")


def test_random_weights_do_not_come_back_and_those_of_a_fixed_seed_do(tmp_path):
    drawn, fixed = tower(tmp_path), Tower(build_encoder("baseline/word_vectors"), None, None)
    before = torch.random.get_rng_state()
    assert not comes_back(drawn, describe(drawn, tmp_path), tmp_path)
    assert comes_back(fixed, describe(fixed, tmp_path), tmp_path)
    assert torch.equal(torch.random.get_rng_state(), before)


def test_pretrained_weights_that_are_gone_are_not_looked_for(tmp_path):
    made = tower(tmp_path)
    described = describe(made, tmp_path)
    described["options"]["encoder"]["options"]["weights"] = "/gone/pretrained.pt"
    again = rebuild(described, tmp_path)
    assert again.encoder.built_with["weights"] == "random"


def test_what_json_cannot_hold_is_refused_when_it_is_needed(tmp_path):
    made = tower(tmp_path)
    made.made_of["pooling"] = print
    with pytest.raises(ComponentError, match="option 'pooling' was <built-in function print>, which no manifest"):
        rebuild(json.loads(json.dumps(describe(made, tmp_path))), tmp_path)


def test_only_networks_of_installed_plugins_are_built(tmp_path):
    for path in ("os.system", "medvl_core.build.build_encoder", "torch.nn.Linear"):
        with pytest.raises(ComponentError, match=f"made with {path}, which no installed plugin has"):
            rebuild({"class": path, "options": {}}, tmp_path)


def test_a_part_that_is_not_there(tmp_path):
    write(tmp_path, tower(tmp_path))
    with pytest.raises(ComponentError, match="has no part 'image_towr'; did you mean 'image_tower'"):
        trained_part(tmp_path, "image_towr")
    (tmp_path / "manifest.json").write_text("{}")
    with pytest.raises(ComponentError, match="it was made before parts were recorded, train again"):
        trained_part(tmp_path, "image_tower")


def test_a_module_that_does_not_say_what_it_is_made_of(tmp_path):
    write(tmp_path, torch.nn.Linear(1, 1))
    with pytest.raises(ComponentError, match="a Linear without made_of, which cannot be built from a manifest"):
        trained_part(tmp_path, "image_tower")

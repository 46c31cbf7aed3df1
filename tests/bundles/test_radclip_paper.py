"""The published RadCLIP setting run from end to end, in miniature: its data sets, its layout of weights, its losses."""

from __future__ import annotations

import pytest
import torch

from medvl_baseline.texts.vocabulary import bpe_merges
from medvl_core.engine.weights import WeightsError
from tests.bundles import running
from tests.bundles.test_radclip import rows, run, state
from tests.papers.radclip.radclip_sets import covid_ct_md, radimagenet

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.filterwarnings("ignore:.*GradScaler:FutureWarning"),  # inside MONAI, where amp is on
    pytest.mark.usefixtures("_process_as_before"),
]
TOWER = {"width": 16, "layers": 2, "heads": 2, "projection_dim": 16}


@pytest.fixture
def published(tmp_path):
    """A bundle with a small CLIP in the layout of ``RadCLIP.pth``, and the settings that make the run small."""
    from transformers import CLIPConfig, CLIPModel

    bundle = running.copy_bundle(tmp_path, "radclip")
    models = bundle / "models"
    models.mkdir()
    vocabulary = bpe_merges(["lung ct, covid", "abdomen ct, normal"], models / "merges.txt", 540)
    size = 514 + len(vocabulary.read_text().splitlines()) - 1
    sizes = {"hidden_size": 16, "intermediate_size": 64, "num_hidden_layers": 2, "num_attention_heads": 2}
    torch.manual_seed(5)
    config = CLIPConfig(
        text_config=sizes | {"vocab_size": size, "bos_token_id": size - 2, "eos_token_id": size - 1},
        vision_config=sizes | {"image_size": 28, "patch_size": 14},
        projection_dim=16,
    )
    content = CLIPModel(config).state_dict()
    content["text_model.embeddings.position_ids"] = torch.arange(77)[None]  # as transformers 4 wrote it
    for name in ("RadCLIP.pth", "clip_vit_l_14.pt"):
        torch.save(content, models / name)
    encoders = "{}::options_for::baseline/clip_{}"
    for name in ("rad", "covid"):
        (tmp_path / name).mkdir()
    small = {
        "image_dir": str(radimagenet(tmp_path / "rad")["folder"]),
        "dataset_dir": str(covid_ct_md(tmp_path / "covid")["folder"]),
        "clip_vocabulary": str(vocabulary),
        "image_size": [28, 28],
        encoders.format("image_encoder", "image"): {
            **TOWER,
            **{"size": [28, 28], "patch": 14, "weights": "@clip_weights", "gradient_checkpointing": True},
        },
        encoders.format("text_encoder", "text"): {
            **TOWER,
            "vocabulary": "@clip_vocabulary",
            "weights": "@clip_weights",
        },
        "stage1::epochs": 1,
        "stage1::batch_size": 2,
        "max_slices": 6,
        "batch_size": 4,
        "n_folds": 2,
        "linear_probe::validation": 0.3,
        "num_workers": 0,
        "track": False,
    }
    return bundle, content, small


def test_both_stages_run_at_the_published_values(published):
    bundle, before, small = published
    run(bundle, "train.json", "paper.json", **small)
    after = state(bundle / "models" / "stage1.pt")
    key = "vision_model.encoder.layers.0.mlp.fc1.weight"
    moved = (after[f"towers.image.encoder.model.{key}"] - before[key]).abs().max()
    assert 0 < moved < 1e-3  # a few steps of 1e-5
    key = "text_model.encoder.layers.0.mlp.fc1.weight"
    assert torch.equal(after[f"towers.report.encoder.model.{key}"], before[key])
    assert set(rows(bundle / "eval")) == {"chance", "average pooling", "trained"}


def test_published_weights_start_the_adapter_and_stay_as_they_are(published):
    bundle, before, small = published
    run(bundle, "train.json", "paper.json", "radclip_weights.json", **small)
    after = state(bundle / "models" / "model.pt")
    towers = {key: value for key, value in before.items() if key.startswith(("vision_model.", "visual_projection."))}
    for key, value in towers.items():
        assert torch.equal(after[f"encoder.tower.encoder.model.{key}"], value), key
    assert after["pooling.attn.in_proj_weight"].shape == (48, 16)


@pytest.mark.parametrize("fault", ["missing", "unknown", "shape"])
def test_weights_of_another_layout_are_refused(published, fault):
    bundle, content, small = published
    key = "vision_model.encoder.layers.1.mlp.fc2.weight"
    if fault == "missing":
        del content[key]
    else:
        content[key if fault == "shape" else "vision_model.extra"] = torch.zeros(3)
    torch.save(content, bundle / "models" / "RadCLIP.pth")
    with pytest.raises(RuntimeError) as caught:
        run(bundle, "train.json", "paper.json", "radclip_weights.json", **small)
    cause = caught.value
    while cause.__cause__ is not None:
        cause = cause.__cause__
    assert isinstance(cause, WeightsError)
    assert "RadCLIP.pth" in str(cause)
    assert ("extra" if fault == "unknown" else key) in str(cause)

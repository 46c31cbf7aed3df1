from __future__ import annotations

import numpy as np
import pytest
import torch

from medvl_core.build import build_encoder, build_pooling
from medvl_core.engine.alignment import AlignmentModel, Tower
from medvl_core.engine.loading import StudyDataset, collate
from medvl_core.study import Image
from medvl_imaging.frozen_tokens import FrozenTokens
from medvl_imaging.images import ImageRows
from medvl_imaging.transforms import standardise
from medvl_radclip.slices import build_slices
from tests.conftest import synthetic_studies

CLIP = {"size": (16, 16), "patch": 8, "width": 16, "layers": 1, "heads": 2, "projection_dim": 12}


@pytest.fixture
def encoder():
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        return build_slices(options=CLIP, max_slices=5)


def image(shape=(16, 16, 3)):
    return Image(np.random.default_rng(0).normal(size=shape).astype(np.float32), np.diag([-1.0, -1.0, 1.0, 1.0]))


def test_each_slice_is_what_the_2d_encoder_makes_of_its_picture(encoder):
    volume = image()
    grey = (np.clip((volume.array - volume.array.mean()) / volume.array.std(), -3, 3) + 3) / 6 * 255
    with torch.no_grad():
        output = encoder(standardise(encoder.input)(volume)[None])
        for z in range(3):
            picture = standardise(encoder.tower.encoder.input)(Image(grey[:, :, z].T.copy()))  # H W, row 0 at the top
            expected = encoder.tower.encoder(picture[None]).pooled
            torch.testing.assert_close(output.tokens[:, z], expected, rtol=0, atol=2e-5)
    assert output.mask.tolist() == [[True, True, True, False, False]]
    assert output.grid == (5,)
    assert output.tokens[:, 3:].abs().max() == 0


def test_the_number_of_slices_at_a_time_changes_nothing(encoder):
    x = torch.stack([standardise(encoder.input)(image((16, 16, n))) for n in (2, 5, 9)])
    with torch.no_grad():
        whole = encoder(x)
        encoder.slice_batch = 2
        torch.testing.assert_close(encoder(x).tokens, whole.tokens, rtol=0, atol=1e-6)
    assert whole.mask.sum(1).tolist() == [2, 5, 5]


@pytest.mark.parametrize(
    ("plane", "axis", "corner"),
    [("axial", 2, ("L", "P")), ("coronal", 1, ("L", "I")), ("sagittal", 0, ("P", "I"))],
)
def test_planes_cut_as_a_radiologist_sees_them(plane, axis, corner):
    """A block at the patient's left, back and feet lies at the end of columns and rows of each plane."""
    size = 16
    array = np.zeros((size, size, size), np.float32)  # stored as RAS: x to the right (index 0 is left)
    array[:6, :6, :6] = 100.0  # left, posterior, inferior
    encoder = build_slices(options=CLIP, plane=plane, max_slices=size, window=(0, 100))
    x = standardise(encoder.input)(Image(array, np.eye(4)))[0]
    filled = [set((x > 0.5).any(dim=tuple({0, 1, 2} - {d})).nonzero().flatten().tolist()) for d in range(3)]
    end, start = set(range(10, 16)), set(range(6))
    assert filled[0] == end  # columns grow to the left (or the back)
    assert filled[1] == end  # rows grow to the back (or the feet)
    assert filled[2] == {"axial": start, "coronal": end, "sagittal": end}[plane]


def test_hu_window_in_place_of_the_z_score():
    encoder = build_slices(options=CLIP, window=(-1000, 400))
    assert (encoder.input.window_hu, encoder.input.window_sd) == ((-1000.0, 400.0), None)
    array = np.full((16, 16, 2), -300.0, np.float32)
    x = standardise(encoder.input)(Image(array, np.diag([-1.0, -1.0, 1.0, 1.0])))
    assert x[0, 3, 3, 0].item() == pytest.approx(0.5)


def test_frozen_encoder_stays_as_it_is(encoder):
    assert not any(parameter.requires_grad for parameter in encoder.parameters())
    assert not encoder.train().tower.training
    free = build_slices(options=CLIP, max_slices=5, frozen=False).train()
    assert free.tower.training
    free(torch.rand(1, 1, 16, 16, 5)).tokens.sum().backward()
    assert free.tower.encoder.model.visual_projection.weight.grad.abs().max() > 0


def test_a_tower_is_shared_with_its_projection():
    tower = Tower(build_encoder("baseline/resnet18_2d", size=(32, 32), base_width=4), build_pooling("baseline/mean"), 7)
    encoder = build_slices(tower, max_slices=3)
    assert (encoder.embed_dim, encoder.tower is tower, encoder.input.size) == (7, True, (32, 32, 3))
    with torch.no_grad():
        x = torch.rand(1, 1, 32, 32, 3)
        low, high = tower.encoder.input.output_range
        picture = (low + (high - low) * x[0, :, :, :, 1].mT)[None].repeat(1, tower.encoder.input.channels, 1, 1)
        if tower.encoder.input.mean is not None:
            mean, std = (torch.tensor(v).view(-1, 1, 1) for v in (tower.encoder.input.mean, tower.encoder.input.std))
            picture = (picture - mean) / std
        torch.testing.assert_close(encoder(x).tokens[:, 1], tower.eval().project(picture), rtol=0, atol=1e-5)


def test_adapter_trains_on_stored_slices_as_on_volumes(tmp_path, encoder):
    studies = synthetic_studies(6)
    rows = ImageRows("ct", encoder.input)
    stored = FrozenTokens("volume", encoder, rows, tmp_path)
    stored.prepare(studies)
    adapter = build_pooling("radclip/slice_attention", embed_dim=12, heads=2, dropout=0.0)
    model = AlignmentModel({"volume": Tower(encoder, adapter, embed_dim=None)})

    def gradient(dataset):
        model.zero_grad()
        found = model(collate([dataset[i] for i in range(6)])).embeddings["volume"]
        (found * torch.linspace(-1, 1, found.numel()).view_as(found)).sum().backward()
        return found.detach(), adapter.attn.in_proj_weight.grad.clone()

    live = gradient(StudyDataset(studies, {"volume": rows}))
    cached = gradient(StudyDataset(studies, {"volume": stored}))
    torch.testing.assert_close(cached, live, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"plane": "oblique"}, "plane is 'oblique', .*choose from axial, coronal, sagittal"),
        ({"max_slices": 0}, "max_slices 0"),
        ({"encoder": "baseline/resnet_3d"}, "reads ImageInput.*slices need an encoder of square 2D images"),
        ({"encoder": torch.nn.Linear(1, 1), "options": CLIP}, "are for an encoder given by name"),
        ({"window": (5, 5)}, "the lower bound must be below the upper"),
    ],
)
def test_wrong_options_are_refused(options, message):
    with pytest.raises(ValueError, match=message):
        build_slices(**{"options": CLIP if "encoder" not in options else None, **options})


def test_volumes_of_another_size_are_refused(encoder):
    with pytest.raises(ValueError, match=r"images have the shape \(1, 1, 16, 16, 4\), it reads"):
        encoder(torch.zeros(1, 1, 16, 16, 4))

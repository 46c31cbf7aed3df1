from __future__ import annotations

import numpy as np
import pytest
import torch

from medvl_core.engine.loading import StudyDataset, study_loader
from medvl_ct_glip.regions.data import RegionPatches
from medvl_ct_glip.regions.texts import NORMAL, RegionTexts
from medvl_ct_glip.regions.volumes import RegionVolumes
from tests.papers.ct_glip.region_studies import NAMES, Texts, study
from tests.papers.ct_glip.test_regions_texts import Embed
from tests.papers.ct_glip.test_regions_volumes import INPUT

STUDIES = [study(number) for number in range(4)]


@pytest.fixture(scope="module")
def volumes(tmp_path_factory):
    return RegionVolumes(INPUT, NAMES, tmp_path_factory.mktemp("volumes"))


def data(volumes, seed=3, **options):
    texts = RegionTexts(Texts(), Embed(), NAMES, STUDIES, draws=2)
    patches = RegionPatches(volumes, **{"texts": texts, "min_voxels": 4, **options})
    return StudyDataset(STUDIES, {"ct": patches}, ("x",), seed)


def test_a_plain_index_gives_the_whole_scan(volumes):
    item = data(volumes)[1]
    assert item["ct"].shape == (1, 14, 12, 10)
    assert item["regions"].dtype == torch.uint8
    assert item["region_visible"].tolist() == [True, True, True]
    assert item["true_masks"] is item["regions"]
    assert item["voxel_ml"] == pytest.approx(0.008)
    assert item["labels"].isnan().all()
    assert "diagnosis_embedding" not in item
    assert "true_masks" not in data(volumes)[(1, 1)]


def test_a_patch_is_a_function_of_seed_epoch_and_study(volumes):
    made = data(volumes)
    first, again, later = made[(1, 0)], data(volumes)[(1, 0)], made[(2, 0)]
    assert first["ct"].shape == (1, 6, 6, 6)
    torch.testing.assert_close(first["ct"], again["ct"])
    torch.testing.assert_close(first["negatives"], again["negatives"])
    assert not torch.equal(first["ct"], later["ct"])
    other = data(volumes, seed=4)[(1, 0)]
    assert not torch.equal(first["ct"], other["ct"])


def test_visibility_equals_a_loop_over_regions(volumes):
    made = data(volumes, min_voxels=8, min_share=0.5)
    whole = np.asarray(volumes(STUDIES[0])[1])
    seen = set()
    for epoch in range(40):
        item = made[(epoch, 0)]
        for r, visible in enumerate(item["region_visible"].tolist(), start=1):
            inside = int((item["regions"] == r).sum())
            assert visible == (inside >= 8 and inside >= 0.5 * (whole == r).sum())
            seen.add((r, visible))
    assert seen >= {(1, True), (1, False), (2, True), (2, False), (3, True), (3, False)}


def test_negatives_are_drawn_for_visible_normal_regions_only(volumes):
    made = data(volumes)
    for epoch in range(30):
        item = made[(epoch, 3)]
        drawn = (item["negatives"].view(3, 2) >= 0).any(dim=1)
        allowed = item["region_visible"] & (item["status"] == NORMAL)
        assert (drawn == (allowed & torch.tensor([True, True, False]))).all()


def test_a_small_scan_is_padded_to_the_patch(tmp_path):
    small = study(0, shape=(14, 12, 10), spacing=(0.5, 0.5, 0.5))
    patches = RegionPatches(RegionVolumes(INPUT, NAMES, tmp_path), min_voxels=1)
    item = StudyDataset([small], {"ct": patches})[(0, 0)]
    assert item["ct"].shape == (1, 6, 6, 6)
    assert (item["ct"] == -1).any()
    assert "diagnosis_embedding" not in item


def test_patches_make_batches(volumes):
    batch = next(iter(study_loader(data(volumes), 2, shuffle=True, seed=0, group_unique=True)))
    assert batch["ct"].shape == (2, 1, 6, 6, 6)
    assert batch["diagnosis_embedding"].shape == (2, 3, 6)


def test_limits_are_checked(volumes):
    with pytest.raises(ValueError, match=r"min_voxels is 0 and min_share 0.5"):
        data(volumes, min_voxels=0)


def test_foreground_patches_hold_a_region_and_the_others_stay_as_they_were(volumes):
    plain, drawn = data(volumes), data(volumes, foreground=1.0)
    hits = [[bool((made[(epoch, 0)]["regions"] > 0).any()) for epoch in range(40)] for made in (plain, drawn)]
    assert all(hits[1])
    never = data(volumes, foreground=0.0)
    torch.testing.assert_close(plain[(3, 1)]["ct"], never[(3, 1)]["ct"])
    assert drawn[(1, 0)]["ct"].shape == (1, 6, 6, 6)
    with pytest.raises(ValueError, match=r"foreground is 1\.5; a share of patches"):
        data(volumes, foreground=1.5)

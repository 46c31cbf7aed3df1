from __future__ import annotations

import pytest
import torch
from torch import nn
from torch.nn import functional

from medvl_core.build import build_pooling
from medvl_core.protocols import EncoderOutput
from medvl_core.specs import ImageInput
from medvl_ct_glip.regions.model import RegionTower
from medvl_ct_glip.regions.windows import ScanEmbedding, windows


class Pointwise(nn.Module):
    """Features of single voxels: no context, so windows cannot change them."""

    embed_dim = 3
    input = ImageInput(channels=1, size=(4, 6, 4), axcodes="LPS", spacing_mm=(1.0, 1.0, 1.0))

    def forward(self, x):
        features = torch.cat([x, x**2, x.abs()], dim=1)
        return EncoderOutput(features.flatten(2).mT, tuple(x.shape[2:]), features=features, logits=(features,))


@pytest.fixture
def tower():
    torch.manual_seed(0)
    pooling = build_pooling("ct_glip/organ_mean", n_regions=4)
    return RegionTower(Pointwise(), pooling, embed_dim=5, hidden=7).eval()


def scan(shape=(9, 11, 5), seed=0):
    generator = torch.Generator().manual_seed(seed)
    regions = torch.randint(0, 4, (2, *shape), generator=generator).to(torch.uint8)  # region 4 is absent
    return {"ct": torch.randn(2, 1, *shape, generator=generator), "regions": regions}


@pytest.mark.parametrize("overlap", [0.0, 0.3, 0.75])
@pytest.mark.parametrize("shape", [(4, 6, 4), (5, 6, 9), (13, 17, 6)])
def test_own_parts_cover_every_voxel_once(shape, overlap):
    times = torch.zeros(shape)
    for window, own in windows(shape, (4, 6, 4), overlap):
        part = torch.zeros(4, 6, 4)
        part[own] = 1
        times[window] += part
    assert (times == 1).all()


def test_sums_over_windows_equal_the_whole_scan_in_float64(tower):
    batch = scan()
    got = ScanEmbedding(tower, overlap=0.5)(batch)
    x = batch["ct"].double()
    features = torch.cat([x, x**2, x.abs()], dim=1)
    for b in range(2):
        for r in range(1, 4):
            mean = features[b, :, batch["regions"][b] == r].mean(dim=1)
            expected = functional.normalize(tower.head(mean.float()), dim=0)
            torch.testing.assert_close(got.embeddings["ct_regions"][b, r - 1], expected, atol=1e-6, rtol=0)
        whole = functional.normalize(tower.head(features[b].flatten(1).mean(dim=1).float()), dim=0)
        torch.testing.assert_close(got.embeddings["ct"][b], whole, atol=1e-6, rtol=0)
    assert got.embeddings["ct_regions"][:, 3].abs().sum() == 0


def test_one_window_gives_what_the_tower_gives(tower):
    batch = scan((4, 6, 4))
    got, made = ScanEmbedding(tower)(batch), tower(batch["ct"], batch["regions"])
    torch.testing.assert_close(got.embeddings["ct_regions"][:, :3], made.embedding[:, :3], atol=1e-6, rtol=0)
    torch.testing.assert_close(got.embeddings["ct"], made.scan, atol=1e-6, rtol=0)


def test_segmentation_is_stitched_from_own_parts(tower):
    batch = scan()
    got = ScanEmbedding(tower, gives="masks")(batch).extras["predicted_masks"]
    x = batch["ct"]
    torch.testing.assert_close(got, torch.cat([x, x**2, x.abs()], dim=1).argmax(dim=1).to(torch.uint8))


def test_invisible_regions_are_zero(tower):
    batch = scan() | {"region_visible": torch.tensor([[True, False, True, True]] * 2)}
    rows = ScanEmbedding(tower)(batch).embeddings["ct_regions"]
    assert (rows.abs().sum(dim=2) > 0).tolist() == [[True, False, True, False]] * 2


def test_a_volume_below_the_window_is_refused(tower):
    with pytest.raises(ValueError, match=r"windows of \(4, 6, 4\) with overlap 0.5 do not fit a volume of \(4, 5, 4\)"):
        ScanEmbedding(tower)(scan((4, 5, 4)))

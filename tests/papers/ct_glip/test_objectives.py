from __future__ import annotations

import math

import pytest
import torch
from torch.nn import functional

from medvl_core.protocols import AlignmentBatch
from medvl_ct_glip.organ_contrast import OrganContrast
from medvl_ct_glip.organ_mean import OrganMean
from medvl_ct_glip.regions.model import voxels_of
from medvl_ct_glip.segmentation import SegmentationLoss

SCALE = 1 / 0.07


def drawn(*shape, seed=0):
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def labels(*shape, highest=5, seed=0):
    return torch.randint(0, highest + 1, shape, generator=torch.Generator().manual_seed(seed))


# -- pooling -----------------------------------------------------------------------------------------------------------


def pooled_slowly(features, regions, n_regions):
    out = torch.zeros(len(features), n_regions, features.shape[1], dtype=torch.float64)
    for row in range(len(features)):
        for organ in range(1, n_regions + 1):
            inside = regions[row] == organ
            if inside.any():
                out[row, organ - 1] = features[row].double()[:, inside].mean(dim=1)
    return out


@pytest.mark.parametrize("turned", [False, True])
def test_organ_mean_equals_a_loop_over_masks_with_its_gradient(turned):
    features = drawn(2, 3, 7, 6, 5)
    if turned:
        features = features.permute(0, 1, 4, 3, 2).contiguous().permute(0, 1, 4, 3, 2)  # other memory order
    regions = labels(2, 7, 6, 5).to(torch.uint8)
    regions[regions == 4] = 0  # an absent organ
    cotangent = drawn(2, 6, 3, seed=1)
    gradients = []
    for pool in (OrganMean(6), lambda f, r: pooled_slowly(f, r, 6)):
        leaf = features.clone().requires_grad_()
        out = pool(leaf, regions)
        (out * cotangent).sum().backward()
        gradients.append((out.detach().double(), leaf.grad.double()))
    torch.testing.assert_close(gradients[0], gradients[1], rtol=1e-5, atol=1e-6)
    assert voxels_of(regions, 6)[:, 3].eq(0).all()
    assert (gradients[0][0][:, 3] == 0).all()


def test_chunks_of_many_voxels_change_nothing(monkeypatch):
    features, regions = drawn(1, 2, 12, 12, 12), labels(1, 12, 12, 12)
    whole = OrganMean(5)(features, regions)
    monkeypatch.setattr("medvl_ct_glip.organ_mean._CHUNK", 100)
    torch.testing.assert_close(OrganMean(5)(features, regions), whole)


def test_finer_masks_are_sampled_at_the_nearest_cells():
    regions = labels(1, 8, 8, 8).repeat_interleave(2, 1).repeat_interleave(2, 2).repeat_interleave(2, 3)
    features = drawn(1, 2, 8, 8, 8)
    torch.testing.assert_close(OrganMean(5)(features, regions), OrganMean(5)(features, regions[:, ::2, ::2, ::2]))


@pytest.mark.parametrize(
    ("regions", "message"),
    [
        (torch.full((2, 4, 4, 4), 7), "regions holds label 7; this pooling knows organs 1 to 5"),
        (torch.zeros(1, 4, 4, 4, dtype=torch.long), "do not fit; give B F X Y Z and a label map"),
        (torch.zeros(2, 4, 4, 4), r"regions is torch\.float32; give an integer label map"),
    ],
)
def test_organ_mean_refuses(regions, message):
    with pytest.raises(ValueError, match=message):
        OrganMean(5)(drawn(2, 3, 4, 4, 4), regions)


# -- contrast ----------------------------------------------------------------------------------------------------------


def batch_of(sizes, text="anatomy", seed=0, groups=None):
    pairs = sum(sizes)
    image = functional.normalize(drawn(pairs, 8, seed=seed), dim=1)
    rows = functional.normalize(drawn(pairs, 8, seed=seed + 1), dim=1)
    scan = torch.repeat_interleave(torch.arange(len(sizes)), torch.tensor(sizes))
    group = torch.arange(pairs) if groups is None else torch.tensor(groups)
    return AlignmentBatch({"ct": image, text: rows}, torch.tensor(SCALE), {"scan": scan, f"{text}_group": group})


def printed(image, text, negatives=()):
    """Equations 1 to 3 for one scan in float64, the temperature inside the exponential."""
    organs, total = len(image), 0.0
    image, text = image.double(), text.double()
    for j in range(organs):
        own = math.exp(SCALE * float(image[j] @ text[j]))
        to_text = sum(math.exp(SCALE * float(image[j] @ text[k])) for k in range(organs))
        to_text += sum(math.exp(SCALE * float(image[j] @ negative.double())) for negative in negatives)
        to_image = sum(math.exp(SCALE * float(image[k] @ text[j])) for k in range(organs))
        total += -math.log(own / to_text) - math.log(own / to_image)
    return total / organs


def test_anatomy_contrast_is_the_mean_of_the_printed_equation_over_scans():
    batch = batch_of([3, 5])
    image, text = batch.embeddings["ct"], batch.embeddings["anatomy"]
    expected = (printed(image[:3], text[:3]) + printed(image[3:], text[3:])) / 2
    assert OrganContrast()(batch).total.item() == pytest.approx(expected, rel=1e-5)


def test_cross_scan_contrasts_the_whole_batch():
    batch = batch_of([3, 5])
    expected = printed(batch.embeddings["ct"], batch.embeddings["anatomy"])
    assert OrganContrast(scope="cross_scan")(batch).total.item() == pytest.approx(expected, rel=1e-5)


def test_dictionary_texts_are_negatives_of_their_scan_only_and_never_a_text_of_it():
    batch = batch_of([2, 3], text="diagnosis", groups=[10, 11, 12, 13, 14])
    dictionary = functional.normalize(drawn(4, 8, seed=9), dim=1)
    batch.extras |= {
        "dictionary": dictionary,
        "dictionary_group": torch.tensor([20, 21, 13, 23]),  # the third equals a text of the second scan
        "negatives": torch.tensor([[0, 2, -1], [1, 2, 3]]),
    }
    image, text = batch.embeddings["ct"], batch.embeddings["diagnosis"]
    first = printed(image[:2], text[:2], dictionary[[0, 2]])
    second = printed(image[2:], text[2:], dictionary[[1, 3]])
    assert OrganContrast(text="diagnosis")(batch).total.item() == pytest.approx((first + second) / 2, rel=1e-5)


def test_organs_without_a_text_take_no_part():
    batch = batch_of([4, 3], text="diagnosis")
    smaller = batch_of([4, 3], text="diagnosis")
    batch.embeddings["diagnosis"][[1, 5]] = 0
    kept = torch.tensor([0, 2, 3, 4, 6])
    smaller.embeddings = {name: rows[kept] for name, rows in smaller.embeddings.items()}
    smaller.extras = {name: rows[kept] for name, rows in smaller.extras.items()}
    loss = OrganContrast(text="diagnosis")
    torch.testing.assert_close(loss(batch).total, loss(smaller).total)


def test_no_text_at_all_is_zero_with_graph():
    batch = batch_of([3], text="diagnosis")
    batch.embeddings["ct"].requires_grad_()
    batch.embeddings["diagnosis"].zero_()
    total = OrganContrast(text="diagnosis")(batch).total
    total.backward()
    assert total == 0
    assert not batch.embeddings["ct"].grad.any()


def test_identical_texts_share_the_target_when_asked():
    batch = batch_of([4], text="diagnosis", groups=[1, 1, 2, 3])
    batch.embeddings["diagnosis"][1] = batch.embeddings["diagnosis"][0]
    batch.embeddings["ct"] = batch.embeddings["diagnosis"].clone()  # every organ sits on its text
    hard = OrganContrast(text="diagnosis")(batch).total
    soft = OrganContrast(text="diagnosis", soft_identical_targets=True)(batch).total
    logits = SCALE * (batch.embeddings["ct"] @ batch.embeddings["diagnosis"].T).double()
    target = torch.eye(4, dtype=torch.float64)
    target[:2, :2] = 0.5
    expected = functional.cross_entropy(logits, target) + functional.cross_entropy(logits.T, target)
    assert soft.item() == pytest.approx(expected.item(), rel=1e-5)
    assert hard > 0.5  # identical texts repel each other: at least log 2 for each of the two, in both directions


def test_unknown_scope_is_refused():
    with pytest.raises(ValueError, match="scope is 'patient'; give intra_scan or cross_scan"):
        OrganContrast(scope="patient")


# -- segmentation ------------------------------------------------------------------------------------------------------


def segmented_slowly(logits, regions):
    share = logits.double().softmax(dim=1)
    chosen = share.gather(1, regions[:, None])[:, 0]
    dice = []
    for organ in range(1, logits.shape[1]):
        true = (regions == organ).double()
        if true.any():
            dice.append(2 * (share[:, organ] * true).sum() / (share[:, organ].sum() + true.sum()))
    return -chosen.log().mean() + 1 - torch.stack(dice).mean()


def test_segmentation_is_cross_entropy_plus_dice_of_the_organs_present():
    logits, regions = drawn(2, 6, 4, 5, 6), labels(2, 4, 5, 6, highest=3)
    output = SegmentationLoss()(AlignmentBatch({}, torch.tensor(1.0), {"logits": (logits,), "regions": regions}))
    assert output.total.item() == pytest.approx(segmented_slowly(logits, regions).item(), rel=1e-5)
    assert set(output.terms) == {"cross_entropy", "dice"}


def test_deep_supervision_halves_the_weight_and_leaves_out_the_coarsest():
    levels = tuple(drawn(1, 4, n, n, n, seed=n) for n in (8, 4, 2))
    regions = labels(1, 2, 2, 2, highest=3)
    for axis in (1, 2, 3):
        regions = regions.repeat_interleave(4, axis)
    output = SegmentationLoss()(AlignmentBatch({}, torch.tensor(1.0), {"logits": levels, "regions": regions}))
    fine, middle = segmented_slowly(levels[0], regions), segmented_slowly(levels[1], regions[:, ::2, ::2, ::2])
    assert output.total.item() == pytest.approx(((2 * fine + middle) / 3).item(), rel=1e-5)


def test_foreground_weighs_more_in_the_cross_entropy():
    logits, regions = drawn(2, 4, 3, 4, 5), labels(2, 3, 4, 5, highest=3)
    batch = AlignmentBatch({}, torch.tensor(1.0), {"logits": (logits,), "regions": regions})
    likelihood = logits.double().log_softmax(dim=1).gather(1, regions[:, None])[:, 0]
    weight = torch.where(regions > 0, 20.0, 1.0).double()
    expected = -(weight * likelihood).sum() / weight.sum()
    weighted, plain = SegmentationLoss(foreground_weight=20)(batch), SegmentationLoss()(batch)
    assert weighted.terms["cross_entropy"].item() == pytest.approx(expected.item(), rel=1e-5)
    assert weighted.terms["dice"] == plain.terms["dice"]


def test_foreground_weight_must_be_positive():
    with pytest.raises(ValueError, match="foreground_weight is 0; a positive number"):
        SegmentationLoss(foreground_weight=0)


def test_segmentation_refuses_a_label_without_a_class():
    batch = AlignmentBatch(
        {}, torch.tensor(1.0), {"logits": (drawn(1, 3, 2, 2, 2),), "regions": torch.full((1, 2, 2, 2), 3)}
    )
    with pytest.raises(ValueError, match="label 3 in the regions, but the logits have 3 classes"):
        SegmentationLoss()(batch)


def test_an_empty_dictionary_is_no_dictionary():
    rows = functional.normalize(torch.randn(4, 6, generator=torch.Generator().manual_seed(0)), dim=1)
    extras = {"scan": torch.tensor([0, 0, 1, 1]), "diagnosis_group": torch.arange(4)}
    empty = {"dictionary": torch.zeros(0, 6), "dictionary_group": torch.zeros(0, dtype=torch.int64)}
    drawn = {"negatives": torch.full((2, 3), -1)}
    loss = OrganContrast("diagnosis")
    embeddings = {"ct": rows, "diagnosis": rows.flip(1)}
    without = loss(AlignmentBatch(embeddings, torch.tensor(14.0), extras)).total
    assert loss(AlignmentBatch(embeddings, torch.tensor(14.0), extras | empty | drawn)).total == without

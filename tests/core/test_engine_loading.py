from __future__ import annotations

import os
from collections import Counter
from dataclasses import replace

import numpy as np
import pytest
import torch
from monai.transforms import RandGaussianNoise

from medvl_core.engine.loading import (
    Cohort,
    CounterBatchSampler,
    Draw,
    StudyDataset,
    Text,
    collate,
    modalities,
    rng_for,
    study_loader,
)
from medvl_core.specs import ImageInput
from medvl_imaging.images import ImageRows

CXR = ImageInput(channels=1, size=(8, 8))


class Reports:
    def texts(self, studies, rng):
        return [f"{study.report.findings} {rng.integers(1000)}" for study in studies]


def _dataset(studies, **options):
    rows = ImageRows("cxr", CXR, augmentation=RandGaussianNoise(prob=1.0, std=1.0))
    return StudyDataset(studies, {"cxr": rows, "text": Text(Reports())}, ("a", "b", "c"), seed=3, **options)


def test_rng_depends_on_its_key_alone():
    assert rng_for(0, "x", 1).integers(2**60) == rng_for(0, "x", 1).integers(2**60)
    assert len({int(rng_for(0, "x", i).integers(2**60)) for i in range(100)}) == 100


def test_order_is_a_function_of_seed_and_epoch():
    sampler = CounterBatchSampler(20, 4, seed=1)
    orders = [tuple(sampler.order(epoch)) for epoch in (1, 2, 1)]
    assert orders[0] == orders[2] != orders[1]
    assert tuple(CounterBatchSampler(20, 4, seed=2).order(1)) != orders[0]


def test_sampler_starts_anywhere():
    sampler = CounterBatchSampler(22, 4, seed=1)
    sampler.set_epoch(3)
    whole = list(sampler)
    sampler.set_epoch(3, first_batch=2)
    assert list(sampler) == whole[2:]
    assert len(whole) == len(sampler) == 5
    assert all(epoch == 3 for batch in whole for epoch, _ in batch)


def test_without_shuffle_every_study_once_and_in_order():
    sampler = CounterBatchSampler(10, 4, shuffle=False, drop_last=False)
    assert [index for batch in sampler for index in batch] == list(range(10))
    assert len(sampler) == 3


@pytest.mark.parametrize("world", [2, 3])
def test_processes_share_the_global_batch(world):
    whole = CounterBatchSampler(25, 4 * world, seed=5)
    parts = []
    for rank in range(world):
        part = CounterBatchSampler(25, 4, seed=5)
        part.rank, part.world = rank, world
        parts.append(list(part))
    together = [[item for rank in range(world) for item in parts[rank][step]] for step in range(len(parts[0]))]
    assert together == list(whole)


@pytest.mark.parametrize("n", [5, 7, 8])
def test_uneven_evaluation_shards_hold_every_study_once(n):
    seen = Counter()
    for rank in range(2):
        part = CounterBatchSampler(n, 3, shuffle=False, drop_last=False)
        part.rank, part.world = rank, 2
        batches = list(part)
        assert len(batches) == len(part)
        seen.update(index for batch in batches for index in batch)
    assert seen == Counter(range(n))


def test_no_batch_holds_two_studies_of_one_scan():
    groups = [f"scan{i // 3}" for i in range(24)]
    sampler = CounterBatchSampler(24, 4, groups=groups)
    drawn = set()
    for epoch in range(1, 30):
        sampler.set_epoch(epoch)
        for batch in sampler:
            assert len({groups[index] for _, index in batch}) == 4
            drawn.update(index for _, index in batch)
    assert drawn == set(range(24))


def test_too_few_studies_are_refused():
    with pytest.raises(ValueError, match="3 studies do not fill one batch of 4 on 1 process"):
        CounterBatchSampler(3, 4)
    with pytest.raises(ValueError, match="no studies in this split"):
        StudyDataset([])


def test_sample_is_a_function_of_epoch_and_index(studies):
    dataset = _dataset(studies)
    torch.testing.assert_close(dataset[2, 5]["cxr"], dataset[2, 5]["cxr"], rtol=0, atol=0)
    assert not torch.equal(dataset[2, 5]["cxr"], dataset[3, 5]["cxr"])
    assert dataset[2, 5]["report"] == dataset[2, 5]["report"] != dataset[3, 5]["report"]
    plain = ImageRows("cxr", CXR)(studies[5])
    torch.testing.assert_close(dataset[5]["cxr"], plain, rtol=0, atol=0)  # a plain index is not augmented


def test_no_more_workers_than_cores(studies, monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda process: {3})  # torch warns of two workers there
    assert study_loader(_dataset(studies), 4, num_workers=2).num_workers == 1
    assert study_loader(_dataset(studies), 4, num_workers=0).num_workers == 0


def test_batches_do_not_depend_on_workers(studies):
    batches = {}
    for workers in (0, 2):
        loader = study_loader(_dataset(studies), 4, shuffle=True, seed=1, num_workers=workers)
        loader.batch_sampler.set_epoch(2, first_batch=1)
        batches[workers] = list(loader)
    assert len(batches[0]) == len(batches[2]) == 2
    for one, two in zip(batches[0], batches[2], strict=True):
        assert one["study_id"] == two["study_id"]
        assert one["report"] == two["report"]
        torch.testing.assert_close(one["cxr"], two["cxr"], rtol=0, atol=0)


def test_loading_leaves_the_global_generators_alone(studies):
    before = torch.get_rng_state(), np.random.get_state()[1].copy()
    for _ in study_loader(_dataset(studies), 4, shuffle=True):
        pass
    assert torch.equal(torch.get_rng_state(), before[0])
    assert np.array_equal(np.random.get_state()[1], before[1])


def test_unknown_label_is_nan_and_equal_texts_share_a_group(studies):
    dataset = StudyDataset(studies, label_names=("a", "missing"))
    assert dataset[1]["labels"][0] == 1
    assert torch.isnan(dataset[1]["labels"][1])
    source = type("T", (), {"texts": lambda _, s, r: [s[0].study_id]})()
    texts = StudyDataset([studies[0], studies[0], studies[1]], {"text": Text(source)})
    groups = [int(texts[i]["text_group"]) for i in range(3)]
    assert groups[0] == groups[1] != groups[2]


def test_collate_stacks_tensors_and_lists_the_rest(studies):
    batch = collate([StudyDataset(studies, label_names=("a",))[i] for i in range(3)])
    assert batch["labels"].shape == (3, 1)
    assert batch["study_id"] == ["study0", "study1", "study2"]


def test_fields_give_entries_under_their_own_names(studies):
    fields = {"age": lambda study, draw: len(study.study_id), "more": lambda study, draw: {"x": 1, "y": draw.random}}
    dataset = StudyDataset(studies, {**fields, "left out": None})
    assert {key: dataset[3][key] for key in ("age", "x", "y")} == {"age": 6, "x": 1, "y": False}
    assert dataset[1, 3]["y"] is True
    assert "left out" not in dataset[3]
    assert Draw(3, 2, 1).rng("x").integers(2**60) == rng_for(3, "x", 2, 1).integers(2**60)


class Offering:
    """A dataset with an entry of its own."""

    label_names = ("a",)

    def __init__(self, studies, fields=None):
        self.parts = {"train": studies[:6], "validation": studies[6:8], "test": studies[8:]}
        self.fields = fields or {}

    def studies(self, split):
        return iter(self.parts[split])


def test_a_cohort_reads_each_split_once_and_its_dataset_offers_fields(studies):
    dataset = Offering(studies, {"age": lambda study, draw: 7})
    read = []

    def usable(part, split):
        read.append(split)
        return part[1:] if split == "train" else part

    cohort = Cohort(dataset, seed=5, usable=usable)
    assert len(cohort.split("validation", {})) == 2
    assert read == ["validation"]  # and no other
    assert [len(part) for part in cohort.studies.values()] == [5, 2, 4]
    assert cohort.everyone == studies[1:]
    assert read == ["validation", "train", "test"]
    split = cohort.split("train", {"cxr": ImageRows("cxr", CXR)})
    assert split[0]["age"] == 7
    assert (split.seed, split.label_names) == (5, ("a",))
    with pytest.raises(ValueError, match="Offering offers the field 'age', which is taken"):
        cohort.split("train", {"age": lambda study, draw: 1})


def test_missing_modality_names_the_study(studies):
    with pytest.raises(ValueError, match=r"study0: has no mri image, only \['ct', 'cxr'\]"):
        ImageRows("mri", CXR).key(studies[0])


def test_an_image_that_does_not_fit_the_encoder_is_named_with_its_study(studies):
    rows = ImageRows("cxr", ImageInput(channels=1, size=(8, 8), window_hu=(-2000.0, -1000.0)))
    with pytest.raises(ValueError, match=r"^study0: image of mean .* is mostly above the window"):
        rows.make(studies[0])


def test_modalities_are_those_of_any_study(studies):
    assert modalities(studies) == ("ct", "cxr", "report")
    assert modalities([replace(study, report=None) for study in studies]) == ("ct", "cxr")
    assert modalities([]) == ()

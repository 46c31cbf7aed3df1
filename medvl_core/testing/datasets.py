"""Contract checks of datasets."""

from __future__ import annotations

import itertools
import math
from collections import Counter
from typing import Any

from medvl_core.engine.loading import Draw
from medvl_core.study import Study
from medvl_core.testing.harness import Subject, require, rng_untouched

__all__ = ["CHECKS"]

_IN_EVERY_BATCH = ("study_id", "subject_id", "scan_id", "metadata", "labels")
_SPLITS = ("train", "validation", "test")


def _splits(dataset: Any) -> dict[str, list[Study]]:
    return {split: list(dataset.studies(split)) for split in _SPLITS}


def stable_order(subject: Subject) -> None:
    """Two calls, and two instances, give the same studies in the same order; there are studies to train on."""
    dataset = subject.build()
    first = {split: [study.study_id for study in studies] for split, studies in _splits(dataset).items()}
    require(bool(first["train"]), subject, "the split 'train' is empty")
    for other, what in ((dataset, "a second call"), (subject.build(seed=1), "a second instance")):
        again = {split: [study.study_id for study in studies] for split, studies in _splits(other).items()}
        require(again == first, subject, f"{what} gives other studies or another order")


def ids(subject: Subject) -> None:
    """Study ids are unique over all splits, and one scan belongs to one subject."""
    studies = [study for split in _splits(subject.build()).values() for study in split]
    twice = [name for name, count in Counter(study.study_id for study in studies).items() if count > 1]
    require(not twice, subject, f"study ids occur more than once: {twice[:5]}")
    owners: dict[str, str] = {}
    for study in studies:
        owner = owners.setdefault(study.scan_id, study.subject_id)
        require(owner == study.subject_id, subject, f"scan {study.scan_id} belongs to {owner} and {study.subject_id}")


def subjects_are_disjoint(subject: Subject) -> None:
    """No subject is in two splits."""
    people = {split: {study.subject_id for study in studies} for split, studies in _splits(subject.build()).items()}
    for one, other in itertools.combinations(_SPLITS, 2):
        shared = sorted(people[one] & people[other])
        require(not shared, subject, f"subjects are in both {one} and {other}: {shared[:5]}")


def labels(subject: Subject) -> None:
    """Labels are named by ``label_names`` and are 0, 1 or NaN."""
    dataset = subject.build()
    names = tuple(dataset.label_names)
    require(len(set(names)) == len(names), subject, "label_names has a name twice")
    for study in itertools.chain.from_iterable(_splits(dataset).values()):
        unknown = set(study.labels) - set(names)
        require(not unknown, subject, f"{study.study_id}: labels {sorted(unknown)} are not in label_names")
        for name, value in study.labels.items():
            good = value in (0, 1) or math.isnan(value)
            require(good, subject, f"{study.study_id}: label {name!r} is {value}; it must be 0, 1 or NaN")


def keeps_its_promises(subject: Subject) -> None:
    """Some study carries each of the spec's modalities and of what it ``has``."""
    dataset = subject.build()
    studies = list(itertools.chain.from_iterable(_splits(dataset).values()))
    for modality in subject.spec.modalities:
        require(any(modality in study.images for study in studies), subject, f"no study has the image {modality!r}")
    present = {
        "reports": any(study.report is not None for study in studies),
        "labels": bool(dataset.label_names) and any(study.labels for study in studies),
        "regions": any(study.regions is not None and study.region_names for study in studies),
    }
    for name in subject.spec.has:
        require(present.get(name, False), subject, f"the spec says it has {name!r} but no study does")


def images(subject: Subject) -> None:
    """The first training study's images load, in three or two dimensions, finite, with a stable fingerprint."""
    study = next(iter(subject.build().studies("train")))
    for modality, source in study.images.items():
        array = source.load().array
        shown = f"{study.study_id}: image {modality!r}"
        dims = (2, 3) if modality in ("cxr", "image") else (3,)
        require(array.ndim in dims, subject, f"{shown} has shape {array.shape}")
        require(
            math.isfinite(float(array.min())) and math.isfinite(float(array.max())), subject, f"{shown} is not finite"
        )
        require(source.fingerprint() == source.fingerprint(), subject, f"{shown} has no stable fingerprint")
    if study.regions is not None:
        regions, shape = study.regions.load().array, study.images["ct"].load().array.shape
        require(regions.shape == shape, subject, f"{study.study_id}: regions {regions.shape} but ct {shape}")


def global_rng(subject: Subject) -> None:
    """The global random states stay as they are."""
    with rng_untouched(subject, "building it, listing studies and loading an image"):
        study = next(iter(subject.build().studies("train")))
        for source in study.images.values():
            source.load()


def fields(subject: Subject) -> None:
    """``fields`` of its own, if any, have free names and give the same for the same draw."""
    dataset = subject.build()
    study = next(iter(dataset.studies("train")))
    for name, field in getattr(dataset, "fields", {}).items():
        require(name not in _IN_EVERY_BATCH, subject, f"the field {name!r} is in every batch already; rename it")
        first, again = (repr(field(study, Draw(epoch=1, random=True))) for _ in range(2))
        require(first == again, subject, f"the field {name!r} gives {first}, then {again} for the same draw")


CHECKS = (stable_order, ids, subjects_are_disjoint, labels, keeps_its_promises, images, fields, global_rng)

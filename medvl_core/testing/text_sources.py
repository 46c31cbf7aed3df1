"""Contract checks of text sources."""

from __future__ import annotations

import copy
from typing import Any

import numpy as np

from medvl_core.study import Image, Report, Study
from medvl_core.testing.harness import Subject, require, rng_untouched

__all__ = ["CHECKS"]


class _NoImage:
    """A text source has no business with voxels."""

    def load(self) -> Image:
        raise RuntimeError("a text source must not read images")

    def fingerprint(self) -> str:
        return "0" * 64


def _studies() -> list[Study]:
    """Studies with both sections, with only one, with labels of every value, and with organs."""
    reports = (
        Report(
            "There is a small left effusion. The heart is normal. No nodule is seen.", "Small left pleural effusion."
        ),
        Report("Clear lungs. No consolidation. Normal mediastinum.", ""),
        Report("", "Cardiomegaly without congestion."),
        Report("Atelectasis of the left lower lobe. Liver without lesion.", "Atelectasis."),
    )
    labels = (
        {"Pleural effusion": 1.0},
        {"Pleural effusion": 0.0},
        {"Cardiomegaly": float("nan")},
        {"Atelectasis": 1.0},
    )
    organs = {1: "lung_lower_lobe_left", 2: "heart", 3: "liver"}
    return [
        Study(
            study_id=f"study{index}",
            subject_id=f"subject{index}",
            scan_id=f"scan{index}",
            images={"ct": _NoImage()},
            regions=_NoImage(),
            region_names=organs,
            report=report,
            labels=label,
        )
        for index, (report, label) in enumerate(zip(reports, labels, strict=True))
    ]


def _texts(source: Any, seed: int) -> list[str]:
    return source.texts(_studies(), np.random.default_rng(seed))  # type: ignore[no-any-return]


def one_text_per_study(subject: Subject) -> None:
    """As many texts as studies, none of them empty, for any seed."""
    source = subject.build()
    for seed in range(20):
        texts = _texts(source, seed)
        require(isinstance(texts, list), subject, f"texts gave {type(texts).__name__}, not a list")
        require(len(texts) == len(_studies()), subject, f"{len(_studies())} studies gave {len(texts)} texts")
        for study, text in zip(_studies(), texts, strict=True):
            good = isinstance(text, str) and bool(text.strip())
            require(good, subject, f"the text of {study.study_id} ({study.report}) is {text!r} with seed {seed}")


def deterministic(subject: Subject) -> None:
    """The same studies and seed give the same texts, from one instance twice and from another."""
    source = subject.build()
    first = _texts(source, 0)
    require(_texts(source, 0) == first, subject, "a second call with the same seed gives other texts")
    require(_texts(subject.build(seed=1), 0) == first, subject, "a second instance gives other texts for the same seed")


def studies_untouched(subject: Subject) -> None:
    """The studies are read, never changed."""
    studies = _studies()
    before = copy.deepcopy([(study.report, dict(study.labels), dict(study.region_names)) for study in studies])
    subject.build().texts(studies, np.random.default_rng(0))
    after = [(study.report, dict(study.labels), dict(study.region_names)) for study in studies]
    require(str(after) == str(before), subject, "texts changed a study")  # as text: NaN labels equal themselves


def global_rng(subject: Subject) -> None:
    """The global random states stay as they are."""
    with rng_untouched(subject, "building it and making texts"):
        _texts(subject.build(), 0)


CHECKS = (one_text_per_study, deterministic, studies_untouched, global_rng)

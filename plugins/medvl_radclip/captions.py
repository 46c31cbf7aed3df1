"""RadCLIP's captions: region, modality and condition of an image, in one spelling."""

from __future__ import annotations

import re
from collections.abc import Sequence
from typing import Literal

import numpy as np

from medvl_core.study import Study

__all__ = ["RegionModalityCondition", "caption", "modality_name", "parse_name", "region_name"]

_FORMS = {"comma": "{}, {}", "with": "{} with {}"}
_MODALITIES = {
    "X-Ray": ("xray", "xr", "cr", "dx", "rg", "dr", "radiograph", "radiography", "cxr"),
    "CT": ("ct", "cat", "computedtomography"),
    "MRI": ("mri", "mr", "mrt", "magneticresonance"),
    "PET": ("pet", "pt"),
    "Ultrasound": ("us", "ultrasound", "sonography"),
}
_SPELLINGS = {spelling: name for name, spellings in _MODALITIES.items() for spelling in spellings}
_NOTHING = ("", "0", "0.0", "nan", "none")


class RegionModalityCondition:
    """``"Abdomen CT, prostate lesion"`` from a study's metadata; its labels name the condition where metadata do not.

    Args:
        form: ``"comma"`` is what the published weights were trained on, ``"with"`` the paper's
            ``"Abdomen CT with prostate lesion"``.
        columns: Metadata that hold region, modality and condition, where ``none`` or ``0`` is no condition. RadCLIP's
            own tables: ``("region", "image_type", "Additional_Info")``.
        region: Region of studies without one.
        modality: Modality of studies without one.
        normal: Condition of studies that have labels, none of them positive, and no such column. Blank: none.

    Raises:
        ValueError: If ``form`` is unknown or there are not three columns.

    References:
        RadCLIP, arXiv:2403.09948; the form with a comma is that of luzhixiu/RadCLIP@2015e01, whose blank at the end is
        left out.
    """

    def __init__(
        self,
        form: Literal["comma", "with"] = "comma",
        *,
        columns: Sequence[str] = ("region", "modality", "condition"),
        region: str = "",
        modality: str = "",
        normal: str = "",
    ) -> None:
        _check_form(form)
        if len(columns) != 3:
            raise ValueError(f"caption columns are {tuple(columns)}; name those of region, modality and condition")
        self.form = form
        self.columns = tuple(columns)
        self.region, self.modality, self.normal = region, modality, normal

    def texts(self, studies: Sequence[Study], rng: np.random.Generator) -> list[str]:
        """One caption per study; ``rng`` is not touched.

        Raises:
            ValueError: If a study has no region or no modality. The message starts with its id.
        """
        return [self._text(study) for study in studies]

    def _text(self, study: Study) -> str:
        region, modality, condition = (_text(study.metadata.get(column, "")) for column in self.columns)
        region, modality = region or self.region, modality or self.modality
        if not region or not modality:
            raise ValueError(
                f"{study.study_id}: metadata have region {region!r} and modality {modality!r} in {self.columns[:2]}; "
                "name the right columns, or give a region and a modality for all"
            )
        if self.columns[2] not in study.metadata and study.labels:
            positive = [name for name, value in study.labels.items() if value == 1]
            condition = " and ".join(positive) or self.normal
        return caption(region, modality, condition, self.form)


def caption(region: str, modality: str, condition: str = "", form: Literal["comma", "with"] = "comma") -> str:
    """The caption of one image: ``("BRAIN", "MR", "pituitary_tumor")`` → ``"Brain MRI, pituitary tumor"``.

    Raises:
        ValueError: If ``form`` is unknown.
    """
    _check_form(form)
    words = f"{region_name(region)} {modality_name(modality)}"
    condition = _text(condition).replace("_", " ")
    return _FORMS[form].format(words, " ".join(condition.split())) if condition else words


def region_name(region: str) -> str:
    """Words joined by hyphens, each with a capital: ``"ankle foot"`` → ``"Ankle-Foot"``."""
    return "-".join(word.capitalize() for word in re.split(r"[\s_-]+", region.strip()) if word)


def modality_name(modality: str) -> str:
    """``"X-Ray"``, ``"CT"``, ``"MRI"``, ``"PET"`` or ``"Ultrasound"`` for any usual spelling; others as they are."""
    return _SPELLINGS.get(re.sub(r"[^a-z]", "", modality.lower()), modality.strip())


def parse_name(name: str) -> tuple[str, str, str]:
    """Region, modality and condition of a folder named ``"<Region> <Modality> <condition words>"``.

    Raises:
        ValueError: If it has fewer than two words or the second is no modality.
    """
    words = name.split()
    if len(words) < 2 or modality_name(words[1]) not in _MODALITIES:
        raise ValueError(
            f"{name!r} does not start with a region and a modality ({', '.join(_MODALITIES)}); "
            "write regions of two words with a hyphen, as in 'Ankle-Foot MRI normal'"
        )
    return region_name(words[0]), modality_name(words[1]), " ".join(words[2:])


def _check_form(form: str) -> None:
    if form not in _FORMS:
        raise ValueError(f"caption form is {form!r}; choose from {', '.join(_FORMS)}")


def _text(cell: object) -> str:
    text = str(cell).strip()
    return "" if text.lower() in _NOTHING else text

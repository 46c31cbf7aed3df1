"""The abnormalities that are looked for, the organ and regions of each, and region texts made from study labels."""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize

from medvl_core.errors import did_you_mean
from medvl_core.study import Study
from medvl_ct_glip.regions.texts import RegionText, spoken

__all__ = ["ROLES", "Abnormality", "OrganLabels", "prompt_pair", "question", "read_abnormalities"]

ROLES = ("listed", "ours", "training")
"""Of the paper's list; added where its list stops short of 16; only ever a training text."""


@dataclass(frozen=True, slots=True)
class Abnormality:
    """One line of the table.

    Args:
        name: As a report says it.
        organ: What results are grouped by.
        regions: Where it can be: sides and lobes of the organ.
        label: Study label that holds it.
        role: One of `ROLES`.
    """

    name: str
    organ: str
    regions: tuple[str, ...]
    label: str
    role: str


def read_abnormalities(
    path: str | Path | None = None, roles: Sequence[str] = ROLES, asked_of: Sequence[str] | None = None
) -> list[Abnormality]:
    """Read the table, by default the one of this plugin: 11 listed by the paper, 5 fillers, further training texts.

    Args:
        path: JSON list of objects with the fields of `Abnormality`.
        roles: Which to keep.
        asked_of: The regions of a model, when the table is what it is asked and not what it learns from: ``label`` and
            ``role`` may be left out, and a file of your own names these regions alone.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it is no such list, a name repeats, a region is unknown, or nothing is left. The message starts
            with the file.
    """
    source = files("medvl_ct_glip") / "tables/abnormalities.json" if path is None else Path(path)
    if not source.is_file():
        raise FileNotFoundError(f"{source}: no such table of abnormalities")
    optional, fields = ({}, ", label, role") if asked_of is None else ({"label": "", "role": "ours"}, "")
    try:
        given = [{**optional, **row} for row in json.loads(source.read_text(encoding="utf-8"))]
        rows = [Abnormality(**{**row, "regions": tuple(row["regions"])}) for row in given]
    except (ValueError, TypeError, KeyError) as error:
        raise ValueError(
            f"{source}: no table of abnormalities ({error!r}); give a list of name, organ, regions{fields}"
        ) from error
    for row in given:
        if not isinstance(row["regions"], list):
            raise ValueError(f'{source}: regions of {row["name"]} are {row["regions"]!r}; give a list, as in ["liver"]')
    names = [row.name for row in rows]
    bad = [row.name for row in rows if row.role not in ROLES or not row.regions]
    if bad or len(set(names)) < len(names):
        raise ValueError(f"{source}: {bad or names} must have regions, a role of {ROLES} and names that differ")
    kept = [row for row in rows if row.role in roles]
    if not kept:
        raise ValueError(f"{source}: no abnormality has a role among {tuple(roles)}")
    if asked_of is not None:
        named = [region for row in kept for region in row.regions if region not in asked_of]
        if (path is not None and named) or not any(region in asked_of for row in kept for region in row.regions):
            hint = did_you_mean(str(named[0]), asked_of)
            raise ValueError(
                f"{source}: the model has no region {named[0]!r}{hint}; it has {', '.join(list(asked_of)[:5])} ..."
            )
    return kept


def prompt_pair(
    row: Abnormality, region: str, embed_text: Callable[..., Tensor], abnormal: Sequence[str], normal: str
) -> tuple[Tensor, Tensor]:
    """Unit vectors ``E`` of an abnormality (the mean over its templates) and of the region without one.

    Args:
        row: The abnormality.
        region: Where it is asked for.
        embed_text: Texts → rows.
        abnormal: Templates with ``{abnormality}`` and perhaps ``{organ}``.
        normal: Template with ``{organ}``.
    """
    texts = [template.format(abnormality=row.name, organ=row.organ) for template in abnormal]
    rows = normalize(embed_text([*texts, normal.format(organ=spoken(region))]), dim=1)
    return normalize(rows[:-1].mean(dim=0), dim=0), rows[-1]


def question(row: Abnormality, abnormal: Sequence[str], normal: str) -> str:
    """What is asked of a scan, in one line: a threshold is good for the same question only."""
    return " | ".join([row.name, row.organ, " ".join(row.regions), *abnormal, normal])


class OrganLabels:
    """Region texts from study labels, for data without reports: every region of an abnormality's organ gets its name.

    Labels know no side: a kidney stone is said of both kidneys. A region is normal when all its labels are 0; one with
    an unknown label and no positive one gets no text.

    Args:
        abnormalities: Table as `read_abnormalities` reads it.
        normal: Template of the text of a normal region.
        join: What stands between several findings of one region.
    """

    def __init__(
        self,
        abnormalities: str | Path | None = None,
        normal: str = "no evident abnormality in {}",
        join: str = ", ",
    ) -> None:
        self.table = read_abnormalities(abnormalities)
        self.normal, self.join = normal, join

    def region_texts(self, study: Study) -> dict[str, RegionText]:
        """Region → text, for the regions that the table and the study have."""
        found: dict[str, RegionText] = {}
        for region in study.region_names.values():
            values = {row.name: study.labels.get(row.label, math.nan) for row in self.table if region in row.regions}
            positive = [name for name, value in values.items() if value == 1]
            if positive:
                found[region] = RegionText(self.join.join(positive), "abnormal")
            elif values and all(value == 0 for value in values.values()):
                found[region] = RegionText(self.normal.format(spoken(region)), "normal")
        return found

    def texts(self, studies: Sequence[Study], rng: np.random.Generator) -> list[str]:
        """The region texts of each study in one, sentence by sentence; ``rng`` is not touched."""
        return [_joined(self.region_texts(study)) for study in studies]


def _joined(texts: Mapping[str, RegionText]) -> str:
    sentences = dict.fromkeys(f"{text.text[0].upper()}{text.text[1:]}." for text in texts.values())
    return " ".join(sentences) or "No label is known."

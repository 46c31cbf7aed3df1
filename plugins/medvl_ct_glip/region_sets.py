"""Which structures a model knows, and what the numbers of a mask mean: always by name, never by number."""

from __future__ import annotations

import csv
import hashlib
import json
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from difflib import get_close_matches
from functools import cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from medvl_core.errors import did_you_mean

__all__ = [
    "REGION_SETS",
    "RegionSet",
    "is_known",
    "label_names",
    "region_map",
    "region_set",
]

_FOLDER = Path(__file__).parent / "region_sets"
REGION_SETS = ("ts_v1_104", "ts_v2_117", "shared_97", "body_26")
UNKNOWN = 255
"""What `region_map` gives for labels without a name."""


@dataclass(frozen=True, slots=True)
class RegionSet:
    """The structures a model tells apart; the id of a region is its place, from 1. 0 is background.

    Args:
        title: One of ``REGION_SETS``, a file or ``"own"``.
        names: TotalSegmentator's names where it has one.
    """

    title: str
    names: tuple[str, ...]

    def __post_init__(self) -> None:
        if not self.names or len(set(self.names)) < len(self.names) or len(self.names) >= UNKNOWN:
            raise ValueError(
                f"region set {self.title}: {len(self.names)} names, {len(set(self.names))} different; "
                f"give 1 to {UNKNOWN - 1}, each once"
            )

    @property
    def version(self) -> str:
        """Title and digest of the names in order: stored with masks, so that ids are never read by another list."""
        return f"{self.title}-{hashlib.sha256(json.dumps(self.names).encode()).hexdigest()[:8]}"

    @property
    def by_id(self) -> dict[int, str]:
        """Id → name, as ``Study.region_names`` has it."""
        return dict(enumerate(self.names, 1))

    def plus(self, names: Iterable[str]) -> RegionSet:
        """This set, and behind it the names that it lacks."""
        return replace(self, names=tuple(dict.fromkeys((*self.names, *names))))


def region_set(regions: str | Path | Sequence[str]) -> RegionSet:
    """A named region set, a file (JSON list, or JSON object with ``names``), or your own list.

    Raises:
        FileNotFoundError: If there is no such set or file.
        ValueError: If it holds no list of different names. The message starts with the file.
    """
    if not isinstance(regions, (str, Path)):
        return RegionSet("own", tuple(regions))
    path = _FOLDER / f"{regions}.json" if str(regions) in REGION_SETS else Path(regions)
    if not path.is_file():
        hint = did_you_mean(str(regions), REGION_SETS)
        raise FileNotFoundError(f"{regions}: no such region set{hint}; one of {', '.join(REGION_SETS)} or a JSON file")
    content = _json(path)
    names = content.get("names") if isinstance(content, dict) else content
    if not isinstance(names, list) or not all(isinstance(name, str) for name in names):
        raise ValueError(f'{path}: no list of region names; write ["liver", ...]')
    return RegionSet(path.stem, tuple(names))


def label_names(names: str | Path | Mapping[int, str]) -> dict[int, str]:
    """What the numbers of a mask mean: label → name.

    Args:
        names: One of ``REGION_SETS`` (``ts_v1_104`` and ``ts_v2_117`` number as TotalSegmentator's versions 1 and 2
            do), a mapping, a JSON file (``{"1": "spleen"}``, or a list from 1), or a CSV with a column ``id`` and a
            column ``name`` or ``structure``.

    Raises:
        FileNotFoundError: If there is no such set or file.
        ValueError: If it holds no such table, or a label twice. The message starts with the file.
    """
    if isinstance(names, Mapping):
        return {int(label): str(name) for label, name in names.items()}
    path = Path(names)
    if str(names) in REGION_SETS or not path.is_file():
        return region_set(names).by_id
    if path.suffix.lower() == ".csv":
        return _labels_of_csv(path)
    content = _json(path)
    if isinstance(content, dict) and "names" not in content:
        try:
            return {int(label): str(name) for label, name in content.items()}
        except ValueError as error:
            raise ValueError(f"{path}: labels must be whole numbers ({error})") from error
    return region_set(path).by_id


def region_map(source: Mapping[int, str], target: RegionSet) -> NDArray[np.uint8]:
    """Lookup table from the labels of a mask to region ids, by name.

    Args:
        source: Label → name.
        target: The regions wanted.

    Returns:
        256 entries: the region id; 0 for structures that ``target`` lacks; ``UNKNOWN`` for labels without a name.

    Raises:
        ValueError: If a label is not 1 to 255, two labels have one name, ``source`` has a region of ``target`` in
            another spelling, or none of them.
    """
    wrong = [label for label in source if not 1 <= label <= 255]
    if wrong:
        raise ValueError(f"labels {wrong} of the mask's table are no labels; 1 to 255 are")
    if len(set(source.values())) < len(source):
        twice = sorted({name for name in source.values() if list(source.values()).count(name) > 1})
        raise ValueError(f"{', '.join(twice)} has several labels in the mask's table; each name has one")
    _check_names(set(source.values()), target)
    ids = {name: number for number, name in target.by_id.items()}
    table = np.full(256, UNKNOWN, np.uint8)
    table[0] = 0
    for label, name in source.items():
        table[label] = ids.get(name, 0)
    return table


def is_known(name: str, target: RegionSet) -> bool:
    """Whether a structure is in ``target`` or in any set that comes with medvl."""
    return name in target.names or name in _all_known()


@cache
def _all_known() -> frozenset[str]:
    return frozenset(name for title in REGION_SETS[:2] for name in region_set(title).names)


def _check_names(given: set[str], target: RegionSet) -> None:
    """Refuse names that would silently become background."""
    lost = {_plain(name): name for name in target.names if name not in given}
    close: dict[str, str] = {}
    for name in sorted(name for name in given if not is_known(name, target)):
        alike = [plain for plain in lost if _marks(plain) == _marks(_plain(name))]
        # 0.9: kidny_right and "Right kidney" are kidney_right; bladder is no gallbladder, kidney no kidney_left
        for near in get_close_matches(_plain(name), alike, n=1, cutoff=0.9):
            close[name] = lost[near]
    if close:
        hints = ", ".join(f"{name!r} (did you mean {known!r}?)" for name, known in list(close.items())[:5])
        raise ValueError(f"structures in another spelling: {hints}; write the known names in the mask's table")
    if not given & set(target.names):
        have, want = ", ".join(sorted(given)[:5]), ", ".join(target.names[:5])
        raise ValueError(
            f"none of the structures ({have} ...) in the mask's table is asked for ({want} ...); give the right 'names'"
        )


def _marks(plain: str) -> list[str]:
    """Numbers and single letters: vertebrae_L6 is no vertebrae_T6."""
    return re.findall(r"\b(?:\d+|[a-z])\b", plain)


def _plain(name: str) -> str:
    """Words in small letters, in order of the alphabet."""
    return " ".join(sorted(re.findall(r"[a-z]+|\d+", name.lower())))


def _json(path: Path) -> object:
    try:
        return json.loads(path.read_text(encoding="utf-8"))
    except ValueError as error:  # undecodable bytes too
        raise ValueError(f"{path}: no JSON ({error})") from error


def _labels_of_csv(path: Path) -> dict[int, str]:
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    column = next((name for name in ("name", "structure") if rows and name in rows[0]), None)
    if column is None or "id" not in rows[0]:
        raise ValueError(f"{path}: needs the columns id and name (or structure)")
    try:
        labels = [(int(row["id"]), row[column]) for row in rows]
    except (TypeError, ValueError) as error:
        raise ValueError(f"{path}: ids must be whole numbers ({error})") from error
    if len({label for label, _ in labels}) < len(labels):
        raise ValueError(f"{path}: an id appears twice; each label has one name")
    return dict(labels)

"""A guard against leaks between splits: shared patients, studies, scans, reports and (near-)duplicate images."""

from __future__ import annotations

import re
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from itertools import combinations
from pathlib import Path
from typing import ClassVar, Literal

import numpy as np
from numpy.typing import NDArray

from medvl_core.errors import EXIT_DATA, MedvlError
from medvl_core.study import Image, Report, Study
from medvl_imaging.readers import FileSource
from medvl_imaging.tables import need_columns, read_table

__all__ = [
    "SAME_IMAGE",
    "Leak",
    "LeakageError",
    "compared",
    "find_leaks",
    "image_signature",
    "read_splits",
    "refuse_leaks",
]

SAME_IMAGE = 0.95
"""Images whose signatures correlate this much count as one. See `image_signature` for what that finds and what not."""

_IMAGES: Mapping[str, Literal["volume", "radiograph"]] = {"ct": "volume", "cxr": "radiograph"}
_WAVES = 16
_PAIRS_PER_CHUNK = 2**24


class LeakageError(MedvlError):
    """Two splits share what they must not share, or the table that states them is unusable."""

    exit_code: ClassVar[int] = EXIT_DATA


@dataclass(frozen=True, slots=True)
class Leak:
    """One thing that two splits share.

    Args:
        kind: ``"patient"``, ``"study"``, ``"scan"`` (sibling reconstructions), ``"report"`` or ``"image"``.
        what: The shared id, the shared text, or the modality and the similarity of two images.
        splits: Names of the two splits.
        studies: ``study_id`` of one study in each.
    """

    kind: str
    what: str
    splits: tuple[str, str]
    studies: tuple[str, str]


def find_leaks(
    splits: Mapping[str, Sequence[Study]],
    images: Sequence[str] = (),
    similarity: float = SAME_IMAGE,
    shortest_report: int = 0,
) -> list[Leak]:
    """Everything that two splits share, each id, text or image once per pair of splits.

    Args:
        splits: Name → its studies.
        images: Modalities whose images are read and compared; none by default, since every file has to be read.
        similarity: Correlation of two `image_signature` from which images count as one. Images of one study or scan
            are not listed again.
        shortest_report: Reports with fewer words are not compared. Texts are compared word by word, without case and
            punctuation. Normal studies share short texts: of 785 random Open-i reports 158 occur word by word among the
            3,142 others, 47 with 30 words or more, 2 with 50 or more.

    Returns:
        The leaks by kind, in the order of the studies. Empty: none found.

    Raises:
        ValueError: If there are fewer than two splits, one is empty, no study has a modality of ``images``,
            ``similarity`` is not in (0, 1], or a CT comes without affine.
    """
    _check(splits, images, similarity)
    keys: dict[str, Callable[[Study], str | None]] = {
        "patient": lambda study: study.subject_id,
        "study": lambda study: study.study_id,
        "scan": lambda study: study.scan_id,
        "report": lambda study: _words(study.report, shortest_report),
    }
    leaks = [leak for kind, key in keys.items() for leak in _shared_keys(splits, kind, key)]
    for modality in images:
        leaks += _shared_images(splits, modality, similarity)
    return leaks


def _check(splits: Mapping[str, Sequence[Study]], images: Sequence[str], similarity: float) -> None:
    """A guard that compares nothing would pass everything."""
    if len(splits) < 2 or not all(len(studies) for studies in splits.values()):
        sizes = {name: len(studies) for name, studies in splits.items()}
        raise ValueError(f"leakage guard: splits are {sizes}; give two or more, none of them empty")
    if not 0 < similarity <= 1:
        raise ValueError(f"leakage guard: similarity is {similarity}; give a correlation above 0 and at most 1")
    have = sorted({modality for studies in splits.values() for study in studies for modality in study.images})
    if isinstance(images, str) or not set(images) <= set(have):
        raise ValueError(f"leakage guard: images is {images!r}; give a list of modalities that studies have: {have}")


def refuse_leaks(
    splits: Mapping[str, Sequence[Study]],
    images: Sequence[str] = (),
    similarity: float = SAME_IMAGE,
    shortest_report: int = 0,
) -> None:
    """Raise `LeakageError` when two splits share anything: arguments as in `find_leaks`.

    Raises:
        LeakageError: With the number of leaks of each kind, and the first of each.
        ValueError: As `find_leaks`.
    """
    leaks = find_leaks(splits, images, similarity, shortest_report)
    if not leaks:
        return
    first = {leak.kind: leak for leak in reversed(leaks)}
    parts = []
    for kind in dict.fromkeys(leak.kind for leak in leaks):
        leak, n = first[kind], sum(other.kind == kind for other in leaks)
        (a, b), (study_a, study_b) = leak.splits, leak.studies
        what = "" if kind == "report" else f" {leak.what}"  # the text of a report stays out of logs
        many = {"study": "studies"}.get(kind, f"{kind}s")
        parts.append(
            f"{n} {many if n > 1 else kind} (first:{what} in study {study_a} of {a} and study {study_b} of {b})"
        )
    raise LeakageError(
        f"splits {', '.join(splits)} share {'; '.join(parts)}. Put all studies of a patient into one split "
        "(medvl_evaluation.splits.shares.split_by_patient) and drop duplicates; "
        "shortest_report leaves short reports out"
    )


def read_splits(
    table: str | Path,
    root: str | Path | None = None,
    split_column: str = "split",
    subject_column: str = "subject",
    study_column: str = "study",
    scan_column: str | None = None,
    report_column: str | None = None,
) -> dict[str, list[Study]]:
    """Studies of a table by the words in its split column, whatever these are. Images are found, and not yet read.

    Args:
        table: CSV, parquet or Excel file. Images are in the columns ``ct`` and ``cxr``.
        root: Folder that image paths start from. ``None``: the table's own.
        split_column: Column of splits.
        subject_column: Column of patients.
        study_column: Column of study ids.
        scan_column: Column that reconstructions of one acquisition share. ``None``: ``scan`` where there is one.
        report_column: Column of reports. ``None``: ``report``, or ``findings`` and ``impression``, where there are.

    Raises:
        FileNotFoundError: If there is no such table.
        ValueError: If a named column is missing, a split, patient or study is blank, or two patients have one file. The
            message starts with the table.
    """
    rows = read_table(table)
    ids = [split_column, subject_column, study_column]
    need_columns(table, rows, [*ids, *filter(None, (scan_column, report_column))])
    folder = Path(table).parent if root is None else Path(root)
    splits: dict[str, list[Study]] = {}
    owner: dict[Path, tuple[int, str]] = {}
    for number, row in zip(rows.index, rows.to_dict("records"), strict=True):
        if blank := [column for column in ids if not row[column]]:
            raise ValueError(f"{table}, row {number}: {blank[0]} is blank; fill it in or remove the row")
        split, subject, study = (row[column] for column in ids)
        whole = row.get(report_column or "report", "")
        report = Report(whole) if whole or report_column else Report(row.get("findings", ""), row.get("impression", ""))
        images = {m: FileSource(folder / row[m], kind) for m, kind in _IMAGES.items() if row.get(m)}
        for source in images.values():
            before, other = owner.setdefault(source.path.resolve(), (number, subject))
            if other != subject:
                raise ValueError(f"{table}, row {number}: {source.path} belongs to another patient in row {before}")
        scan = row.get(scan_column or "scan", "") or study
        one = Study(study_id=study, subject_id=subject, scan_id=scan, images=images, report=report)
        splits.setdefault(split, []).append(one)
    return splits


def compared(splits: Mapping[str, Sequence[Study]], images: Sequence[str] = (), shortest_report: int = 0) -> str:
    """What `find_leaks` compares when it is called with the same, in a line: without reports none is found shared."""
    studies = [study for part in splits.values() for study in part]
    scans = {study.scan_id for study in studies}
    n_reports = sum(_words(study.report, shortest_report) is not None for study in studies)
    parts = [f"{len({study.subject_id for study in studies})} patients", f"{len(studies)} studies"]
    parts.append("scans = studies" if scans == {study.study_id for study in studies} else f"{len(scans)} scans")
    parts.append(f"{n_reports} reports")
    parts += [f"{sum(modality in study.images for study in studies)} {modality} images" for modality in images]
    return ", ".join(parts)


def image_signature(image: Image) -> NDArray[np.float32]:
    r"""A perceptual signature: correlations between signatures tell copies from other images of the same kind.

    The 16 x 16 lowest waves of the picture's cosine transform but the mean, weighted by $(u^2 + v^2)^{0.75}$ so that
    what all chest radiographs have in common does not dominate, scaled to unit length. The picture of a CT is its
    simulated radiograph. It does not depend on size, brightness or contrast. The sign of a correlation is that of the
    grey scale: compare absolute values, so that an inverted copy counts.

    Args:
        image: ``H W``, ``H W 3`` or 4 (no affine), or ``X Y Z`` with affine.

    Returns:
        255 numbers of unit length; zeros for a constant image, which resembles nothing.

    Raises:
        ValueError: If a volume comes without affine, or the image is none of the above.

    Note:
        Measured at `SAME_IMAGE`: 0 false alarms among 331,497 pairs of different patients in 824 NIH radiographs of
        64 x 64 pixels (largest correlation 0.89), 0 among 4,497,071 pairs in 3,000 Kermany radiographs of 224 x 224
        (0.90); the largest grows by about 0.025 with ten times the pairs. Found of 150 copies each: all at JPEG quality
        20 to 75, at 0.5 to 1.5 times the size, at gamma 1.3, and with 20 % more contrast; 96 % (NIH) when halved to
        32 x 32 pixels and compressed at quality 50. *Not* found: most copies cropped by 2 % on each side (89 % NIH,
        98 % Kermany missed), and those mirrored or rotated.

    References:
        Perceptual hashing by low cosine waves: Zauner, Implementation and benchmarking of perceptual image hash
        functions, 2010. Not its 64 signs: those of two Kermany patients differ in one, those of some copies in eight.
    """
    picture = _picture(image)
    waves = _cosines(picture.shape[0]) @ picture @ _cosines(picture.shape[1]).T
    u, v = np.mgrid[:_WAVES, :_WAVES]
    signature = (waves * (u**2 + v**2) ** 0.75).ravel()[1:]
    length = np.linalg.norm(signature)
    scale = np.abs(picture).max(initial=0)
    if length <= 1e-6 * scale:  # rounding of a constant image
        return np.zeros(len(signature), dtype=np.float32)
    return (signature / length).astype(np.float32)


def _picture(image: Image) -> NDArray[np.float64]:
    array = image.array
    if array.ndim == 3 and image.affine is None and array.shape[2] in (3, 4):
        array = array[..., :3].mean(axis=2)
    elif array.ndim == 3 and image.affine is not None:
        from medvl_imaging.radiograph import simulate_radiograph  # imports torch

        array = simulate_radiograph(array, image.affine)
    if array.ndim != 2 or array.size == 0:
        raise ValueError(
            f"image of shape {image.array.shape}{'' if image.affine is not None else ' without affine'} has no "
            "signature; give H x W, H x W x 3, or X x Y x Z with affine"
        )
    return array.astype(np.float64)


def _cosines(n: int) -> NDArray[np.float64]:
    """The lowest waves of the cosine transform of n pixels, each a mean: pictures of any size compare."""
    return np.cos(np.pi * np.arange(_WAVES)[:, None] * (np.arange(n) + 0.5) / n) / n


def _words(report: Report | None, shortest: int) -> str | None:
    if report is None:
        return None
    words = re.findall(r"\w+", f"{report.findings} {report.impression}".casefold())
    return " ".join(words) if len(words) >= max(shortest, 1) else None


def _shared_keys(splits: Mapping[str, Sequence[Study]], kind: str, key: Callable[[Study], str | None]) -> list[Leak]:
    holders: dict[str, dict[str, str]] = {}
    for name, studies in splits.items():
        for study in studies:
            if (value := key(study)) is not None:
                holders.setdefault(value, {}).setdefault(name, study.study_id)
    return [
        Leak(kind, value, (a, b), (held[a], held[b]))
        for value, held in holders.items()
        for a, b in combinations(held, 2)
    ]


def _shared_images(splits: Mapping[str, Sequence[Study]], modality: str, similarity: float) -> list[Leak]:
    members = {name: [study for study in studies if modality in study.images] for name, studies in splits.items()}
    members = {name: studies for name, studies in members.items() if studies}
    signatures = {
        name: np.stack([image_signature(study.images[modality].load()) for study in studies])
        for name, studies in members.items()
    }
    leaks = []
    for a, b in combinations(members, 2):
        chunk = max(1, _PAIRS_PER_CHUNK // len(members[a]))
        for start in range(0, len(members[b]), chunk):
            likeness = np.abs(signatures[b][start : start + chunk] @ signatures[a].T)
            for i in np.flatnonzero((likeness >= similarity).any(axis=1)):
                study = members[b][start + i]
                alike = [j for j in np.flatnonzero(likeness[i] >= similarity) if not _listed(members[a][j], study)]
                if alike:
                    best = alike[int(likeness[i, alike].argmax())]
                    what = f"{modality}, similarity {likeness[i, best]:.3f}"
                    leaks.append(Leak("image", what, (a, b), (members[a][best].study_id, study.study_id)))
    return leaks


def _listed(one: Study, other: Study) -> bool:
    """Whether they leak by their ids already."""
    return one.study_id == other.study_id or one.scan_id == other.scan_id

"""Ready-made organ masks as region ids on the grid of their CT: a file of labels, or a folder with a file per organ."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import nibabel as nib
import numpy as np
from nibabel.orientations import apply_orientation, inv_ornt_aff, io_orientation, ornt_transform

from medvl_core.engine.files import safe_name
from medvl_core.protocols import Dataset
from medvl_core.study import Image, ImageSource, Shared, Study
from medvl_ct_glip.mask_checks import CHECKS_VERSION, MaskError, check_mask
from medvl_ct_glip.region_sets import UNKNOWN, RegionSet, is_known, label_names, region_map, region_set
from medvl_imaging.readers import FileSource, read_volume
from medvl_imaging.readers.listing import bare_name, format_of, named_format

__all__ = ["MaskError", "MaskedDataset", "RegionMask", "with_regions"]

_GRID_MM = 0.1  # tools round affines to about 1e-3 mm; a mask that is 1 mm off belongs to another resampling


@dataclass(frozen=True)
class RegionMask:
    """The regions of a CT, from masks that some tool has made. Every load checks them against the CT.

    Axes stored in another order or direction are put in the CT's order, without interpolation.

    Args:
        path: One file with a label per structure, or a folder with one binary file per structure, named after it
            (``liver.nii.gz``); other files there are left alone. Where structures overlap, the later region wins.
        ct: The CT it belongs to.
        regions: The structures wanted. Others are dropped.
        names: What the labels mean: one of ``REGION_SETS``, a table (see ``label_names``) or a mapping. ``None``: the
            label table in the file, which TotalSegmentator writes; a file without one is refused.
    """

    path: Path
    ct: ImageSource
    regions: RegionSet
    names: str | Path | Mapping[int, str] | None = None

    def load(self) -> Image:
        """Region ids, ``X Y Z`` uint8, on the CT's grid.

        Raises:
            FileNotFoundError: If there is no such file or folder.
            MaskError: If shape or affine are not the CT's, a label has no name or a misspelt one, or `check_mask`
                refuses the mask.
        """
        ct = self.ct.load()
        if ct.affine is None:
            raise MaskError(f"{self.path}: its CT has no affine, so no mask fits it; give a NIfTI, NRRD or DICOM CT")
        if self.path.is_dir():
            out = np.zeros(ct.array.shape, np.uint8)
            for path, region in sorted(self._files(), key=lambda item: item[1]):
                out[_on_grid(path, ct.array.shape, ct.affine) > 0] = region
        else:
            out = self._mapped(self.path, ct.array.shape, ct.affine)
        check_mask(str(self.path), ct, out, self.regions.by_id)
        return Image(out, ct.affine)

    def fingerprint(self) -> str:
        """Digest of the files, the meaning of the labels, the region set and the checks."""
        files = [path for path, _ in self._files()] if self.path.is_dir() else [self.path]
        parts = [FileSource(path, "labels").fingerprint() for path in files]
        meaning = None if self.names is None else sorted(label_names(self.names).items())
        return hashlib.sha256(json.dumps([CHECKS_VERSION, parts, meaning, self.regions.version]).encode()).hexdigest()

    def _mapped(self, path: Path, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
        source = _label_table(path) if self.names is None else label_names(self.names)
        labels = _on_grid(path, shape, affine)
        out = _lookup(self.names or path, source, self.regions)[labels]
        if out.max() == UNKNOWN:
            lost = np.unique(labels[out == UNKNOWN]).tolist()
            raise MaskError(
                f"{path}: labels {lost} are not in its table of {len(source)} names; give the right 'names'"
            )
        return out

    def _files(self) -> list[tuple[Path, int]]:
        """Mask files of wanted structures with their region ids."""
        ids = {name: number for number, name in self.regions.by_id.items()}
        files = [path for path in sorted(self.path.iterdir()) if named_format(path.name) in ("nifti", "nrrd")]
        named = {path: bare_name(path) for path in files}
        strange = [path.name for path, name in named.items() if not is_known(name, self.regions)]
        if strange or not named:
            what = f"{', '.join(strange[:5])} name no structure" if strange else "no masks in this folder"
            raise MaskError(f"{self.path}: {what}; name files after structures (liver.nii.gz) or extend the region set")
        return [(path, ids[name]) for path, name in named.items() if name in ids]


def with_regions(
    study: Study, path: str | Path, regions: RegionSet, names: str | Path | Mapping[int, str] | None = None
) -> Study:
    """The study with the masks at ``path`` as its regions; nothing is read. Arguments as for ``RegionMask``."""
    ct = Shared(study.images["ct"])  # read once for itself and for the check of its masks
    mask = RegionMask(Path(path), ct, regions, names)
    return replace(study, images={**study.images, "ct": ct}, regions=mask, region_names=regions.by_id)


class MaskedDataset:
    """Any dataset with masks from a folder as the regions of its studies.

    Args:
        dataset: Gives studies with a CT.
        masks: Holds ``<study>.nii.gz`` (or ``.nii``, ``.nrrd``), or a folder ``<study>`` with a file per structure.
        regions: The structures wanted, see ``region_set``.
        names: What the labels mean, see ``RegionMask``.
        missing: ``"refuse"`` stops at studies without masks, ``"leave_out"`` drops them.
        merge: Structures that are read beside ``regions``, which training counts to one of them: the keys of the
            ``merge`` of ``RegionVolumes``.

    Attributes:
        region_names: The names of ``regions``, in order.

    Raises:
        FileNotFoundError: If there is no such folder, or, by ``studies``, a study has no masks.
        ValueError: If ``missing`` is none of the two, ``regions`` is no region set, or ``names`` has none of them or
            another spelling.
    """

    def __init__(
        self,
        dataset: Dataset,
        masks: str | Path,
        regions: str | Path | Sequence[str] = "shared_97",
        names: str | Path | Mapping[int, str] | None = None,
        missing: Literal["refuse", "leave_out"] = "refuse",
        merge: Iterable[str] = (),
    ) -> None:
        if missing not in ("refuse", "leave_out"):
            raise ValueError(f"missing is {missing!r}; give 'refuse' or 'leave_out'")
        self.dataset, self.masks, self.missing = dataset, Path(masks), missing
        if not self.masks.is_dir():
            raise FileNotFoundError(f"{self.masks}: no such folder of masks; make them with make_masks.py")
        wanted = region_set(regions)
        self.regions, self.names = wanted.plus(merge), names
        if names is not None:
            _lookup(names, label_names(names), self.regions)
        self.label_names = dataset.label_names
        self.region_names = wanted.names

    def studies(self, split: Literal["train", "validation", "test"]) -> list[Study]:
        """The studies of a split that have masks; none is read."""
        studies = [study for study in self.dataset.studies(split) if "ct" in study.images]
        paths = {study.study_id: self._path(study) for study in studies}
        lost = [study_id for study_id, path in paths.items() if path is None]
        if lost and self.missing == "refuse":
            raise FileNotFoundError(
                f"{self.masks}: no masks for {len(lost)} of {len(studies)} {split} studies, the first is {lost[0]}; "
                "make them with make_masks.py or set missing to 'leave_out'"
            )
        return [with_regions(s, path, self.regions, self.names) for s in studies if (path := paths[s.study_id])]

    def _path(self, study: Study) -> Path | None:
        name = safe_name(study.study_id)
        places = (self.masks / (name + ending) for ending in (".nii.gz", ".nii", ".nrrd", ""))
        return next((place for place in places if place.exists()), None)


def _lookup(where: str | Path | Mapping[int, str], source: Mapping[int, str], regions: RegionSet) -> np.ndarray:
    """`region_map`, whose error starts with the file."""
    try:
        return region_map(source, regions)
    except ValueError as error:
        raise MaskError(f"{'names' if isinstance(where, Mapping) else where}: {error}") from error


def _on_grid(path: Path, shape: tuple[int, ...], affine: np.ndarray) -> np.ndarray:
    """Labels in the CT's order of axes, when they lie on its grid."""
    image = read_volume(path, content="labels")
    turn = ornt_transform(io_orientation(image.affine), io_orientation(affine))
    labels = apply_orientation(image.array, turn)
    own = image.affine @ inv_ornt_aff(turn, image.array.shape)
    if labels.shape != tuple(shape):
        raise MaskError(f"{path}: {labels.shape} voxels, the CT has {tuple(shape)}; resample the mask to its CT")
    corners = np.array(np.meshgrid(*[(0, n - 1) for n in shape], [1], indexing="ij")).reshape(4, -1)
    corners[3] = 1
    off = float(np.linalg.norm(((own - affine) @ corners)[:3], axis=0).max())
    if off > _GRID_MM:
        raise MaskError(
            f"{path}: lies up to {off:.2f} mm beside its CT (origin, spacing or direction differ; {_GRID_MM} mm is "
            "allowed); resample the mask to its CT, or check that it belongs to it"
        )
    return labels


def _label_table(path: Path) -> dict[int, str]:
    """The label table in a NIfTI's header extension, which TotalSegmentator writes."""
    extensions = nib.load(path).header.extensions if format_of(path) == "nifti" else []  # type: ignore[attr-defined]
    for extension in extensions:
        content = extension.get_content()
        text = content if isinstance(content, str) else bytes(content).decode("utf-8", "replace")
        try:
            labels = ElementTree.fromstring(text.strip(" \n\0")).iter("Label")
        except ElementTree.ParseError:
            continue
        table = {int(label.attrib["Key"]): str(label.text) for label in labels}
        if table:
            return table
    raise MaskError(
        f"{path}: has no label table, so its numbers mean nothing; say what made it: names 'ts_v2_117' for "
        "TotalSegmentator 2, 'ts_v1_104' for version 1, or a table"
    )

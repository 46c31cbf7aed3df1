"""NRRD volumes: the text header is checked here, the voxels are read by ITK."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from medvl_imaging.readers.checks import MAX_BYTES, ImageError, check_affine, check_budget, gunzip
from medvl_imaging.readers.with_itk import read_itk

__all__ = ["read_nrrd"]

_ITEMSIZE = {
    **dict.fromkeys(("signed char", "int8", "int8_t", "uchar", "unsigned char", "uint8", "uint8_t"), 1),
    **dict.fromkeys(
        ("short", "short int", "signed short", "int16", "int16_t", "ushort", "unsigned short", "uint16", "uint16_t"), 2
    ),
    **dict.fromkeys(
        ("int", "signed int", "int32", "int32_t", "uint", "unsigned int", "uint32", "uint32_t", "float"), 4
    ),
    "double": 8,
}


def read_nrrd(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Voxels and the RAS+ affine (ITK gives LPS).

    Returns:
        ``X Y Z``, float32, and 4 x 4.

    Raises:
        ImageError: If the header lacks the orientation, or the data are cut, damaged or in a separate file.
    """
    _check_bytes(path, path.read_bytes())
    try:
        image = read_itk(path)
    except RuntimeError as error:
        raise ImageError(f"{path}: ITK cannot read it ({str(error).splitlines()[-1]}); write the file again") from error
    array = np.asarray(image).T.astype(np.float32)
    affine = np.eye(4)
    affine[:3, :3] = np.asarray(image.GetDirection()) * np.asarray(image.GetSpacing())
    affine[:3, 3] = np.asarray(image.GetOrigin())
    return array, check_affine(path, np.diag([-1.0, -1.0, 1.0, 1.0]) @ affine)


def _check_bytes(path: Path, raw: bytes) -> None:
    head, gap, data = raw.partition(b"\n\n")
    if b"\r\n\r\n" in head + gap:
        head, gap, data = raw.partition(b"\r\n\r\n")
    if not raw.startswith(b"NRRD000") or not gap:
        raise ImageError(f"{path}: not an NRRD file (no magic or no end of the header); check the format")
    pairs = (line.split(":", 1) for line in head.decode("latin-1").splitlines()[1:] if ":" in line and line[0] != "#")
    fields = {name.strip().lower(): value.strip() for name, value in pairs}
    if "data file" in fields or "datafile" in fields:
        raise ImageError(f"{path}: its voxels lie in a separate file; save it as one .nrrd file")
    if fields.get("dimension") != "3" or "none" in fields.get("space directions", "none") or "space" not in fields:
        raise ImageError(
            f"{path}: a volume needs dimension 3, space and space directions; got {sorted(fields)}, write it again"
        )
    try:
        needed = check_budget(path, [int(n) for n in fields["sizes"].split()], _ITEMSIZE[fields["type"].lower()])
        vectors = fields["space directions"].strip("() ").replace(" ", "").split(")(")
        directions = np.array([[float(v) for v in vector.split(",")] for vector in vectors])
    except (KeyError, ValueError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path}: NRRD field {error} is missing or unknown; write the file again") from error
    check_affine(
        path, np.block([[directions.reshape(3, 3).T, np.zeros((3, 1))], [np.eye(4)[3:]]])
    )  # ITK would mend NaN silently
    encoding = fields.get("encoding", "").lower()
    if encoding in ("gzip", "gz"):
        data = gunzip(path, data, min(needed, MAX_BYTES))
    elif encoding != "raw":
        raise ImageError(f"{path}: encoding {encoding!r} is not checked here; save it as raw or gzip")
    if len(data) != needed:
        raise ImageError(
            f"{path}: {len(data):,} bytes of voxels, but the header needs {needed:,}; "
            "the file is cut or its header damaged"
        )

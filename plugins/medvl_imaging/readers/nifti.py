"""NIfTI-1 and NIfTI-2, single file, plain or gzipped: header checks, then one read of the bytes."""

from __future__ import annotations

import io
import struct
from pathlib import Path

import nibabel as nib
import numpy as np
from nibabel.orientations import aff2axcodes

from medvl_imaging.readers.checks import MAX_BYTES, ImageError, check_affine, check_budget, gunzip

__all__ = ["affine_of", "read_nifti", "read_stored"]

_HEADERS = {348: (nib.Nifti1Header, 344, b"n+1\0"), 540: (nib.Nifti2Header, 4, b"n+2\0\r\n\x1a\n")}
_TYPES = frozenset({2, 4, 8, 16, 64, 256, 512, 768, 1024, 1280})  # integers and floats; no complex, no RGB


def read_nifti(path: Path) -> tuple[np.ndarray, np.ndarray]:
    """Values after slope and intercept, with trailing axes of length 1 dropped, and the RAS+ affine.

    Returns:
        ``X Y Z`` (or ``X Y``), float32, in the file's memory order, and 4 x 4.

    Raises:
        ImageError: If the file is damaged, truncated, in another format or has no usable geometry.
    """
    stored, header = read_stored(path)
    affine = affine_of(path, header)
    slope, intercept = float(header["scl_slope"]), float(header["scl_inter"])
    if not np.isfinite([slope, intercept]).all():
        raise ImageError(f"{path}: scl_slope {slope}, scl_inter {intercept}; both must be finite, write the file again")
    array = stored.astype(np.float32, order="F")
    if slope not in (0.0, 1.0) or (slope and intercept):  # slope 0 means "not scaled"
        array *= np.float32(slope)
        array += np.float32(intercept)
    return array, affine


def read_stored(path: Path) -> tuple[np.ndarray, nib.Nifti1Header]:
    """The voxels as stored, before any slope and intercept, and the header, whose geometry is not checked.

    Returns:
        ``X Y Z`` (or ``X Y``), read-only, dtype and memory order of the file.

    Raises:
        ImageError: If the file is damaged, truncated or in another format.
    """
    raw = path.read_bytes()
    if raw[:2] == b"\x1f\x8b":
        raw = gunzip(path, raw, MAX_BYTES)
    header = _header(path, raw)
    dtype, shape, offset = _layout(path, header, raw)
    stored = np.frombuffer(raw, dtype, count=int(np.prod(shape)), offset=offset)
    return stored.reshape(shape, order="F"), header


def _header(path: Path, raw: bytes) -> nib.Nifti1Header:
    if len(raw) < 352:
        raise ImageError(
            f"{path}: {len(raw)} bytes hold no NIfTI header (352 at least); copy the file again from its source"
        )
    endianness = next((e for e in "<>" if struct.unpack(f"{e}i", raw[:4])[0] in _HEADERS), None)
    if endianness is None:
        raise ImageError(f"{path}: not a NIfTI file (sizeof_hdr is neither 348 nor 540); check the format")
    kind, at, magic = _HEADERS[struct.unpack(f"{endianness}i", raw[:4])[0]]
    found = raw[at : at + len(magic)]
    if found != magic:
        raise ImageError(
            f"{path}: magic is {found!r}, must be {magic!r}; two-file images (.hdr/.img) must be merged first"
        )
    if len(raw) < kind.template_dtype.itemsize:
        raise ImageError(f"{path}: {len(raw)} bytes hold no NIfTI-2 header (540); copy the file again from its source")
    return kind.from_fileobj(io.BytesIO(raw), endianness=endianness, check=False)


def _layout(path: Path, header: nib.Nifti1Header, raw: bytes) -> tuple[np.dtype, tuple[int, ...], int]:
    code, dims = int(header["datatype"]), [int(n) for n in header["dim"]]
    if code not in _TYPES:
        raise ImageError(
            f"{path}: datatype code {code} is no integer or floating type; complex and colour images are not read"
        )
    dtype = header.get_data_dtype()
    if int(header["bitpix"]) != 8 * dtype.itemsize:
        raise ImageError(
            f"{path}: bitpix {int(header['bitpix'])} disagrees with datatype {dtype.name}; the header is damaged"
        )
    if not 1 <= dims[0] <= 7:
        raise ImageError(f"{path}: header declares {dims[0]} dimensions, 2 or 3 are read; the header is damaged")
    shape = dims[1 : dims[0] + 1]
    while len(shape) > 2 and shape[-1] == 1:
        shape.pop()
    if len(shape) not in (2, 3):
        raise ImageError(
            f"{path}: shape {tuple(shape)} has {len(shape)} dimensions; give one volume (split time points into files)"
        )
    offset, needed = float(header["vox_offset"]), check_budget(path, shape, dtype.itemsize)
    if not np.isfinite(offset) or offset != int(offset) or not 4 + int(header["sizeof_hdr"]) <= offset <= len(raw):
        raise ImageError(f"{path}: vox_offset {offset} does not point behind the header; the header is damaged")
    if len(raw) - int(offset) != needed:
        have = len(raw) - int(offset)
        raise ImageError(
            f"{path}: {have:,} bytes of voxels, but {tuple(shape)} {dtype.name} needs {needed:,}; "
            "the file is cut or its header damaged"
        )
    return dtype, tuple(shape), int(offset)


def affine_of(path: Path, header: nib.Nifti1Header) -> np.ndarray:
    """The RAS+ affine, 4 x 4, when sform, qform and pixdim agree on one that an image can have.

    Raises:
        ImageError: If they do not.
    """
    sform, qform = int(header["sform_code"]), int(header["qform_code"])
    if not sform and not qform:
        raise ImageError(
            f"{path}: neither sform nor qform is set, so left and right are unknown; write the file with an affine"
        )
    pixdim = np.asarray(header["pixdim"][1:4], float)
    if not (np.isfinite(pixdim).all() and (pixdim > 0).all()):
        raise ImageError(
            f"{path}: spacing (pixdim) is {pixdim.tolist()}; three positive numbers are needed, write the file again"
        )
    try:
        affine = check_affine(path, header.get_sform() if sform else header.get_qform())
    except (ValueError, ArithmeticError) as error:
        if isinstance(error, ImageError):
            raise
        raise ImageError(f"{path}: qform is no rotation ({error}); write the file again") from error
    stated = np.linalg.norm(affine[:3, :3], axis=0)
    if not np.allclose(stated, pixdim, rtol=0.02):
        raise ImageError(
            f"{path}: spacing is {stated.round(4).tolist()} by the affine, {pixdim.tolist()} by pixdim; "
            "correct the wrong one"
        )
    if sform and qform:
        other = aff2axcodes(header.get_qform())
        if other != aff2axcodes(affine):
            codes = "".join(map(str, aff2axcodes(affine)))
            raise ImageError(
                f"{path}: sform says {codes}, qform {''.join(map(str, other))}; "
                "correct the wrong one or set its code to 0"
            )
    return affine

"""Radiographs from PNG, JPEG and two-dimensional NIfTI files."""

from __future__ import annotations

import warnings
from pathlib import Path

import numpy as np
from nibabel.orientations import aff2axcodes

from medvl_imaging.readers.checks import MAX_BYTES, ImageError, check_budget
from medvl_imaging.readers.nifti import read_nifti

__all__ = ["read_nifti_radiograph", "read_picture"]


def read_picture(path: Path) -> np.ndarray:
    """Grey values of a PNG or JPEG, 8 or 16 bit; alpha is dropped, colours are averaged. White is attenuation.

    Returns:
        ``H W``, float32, as stored.

    Raises:
        ImageError: If the file is damaged, cut or bilevel.
    """
    from PIL import Image as Picture

    try:
        with warnings.catch_warnings():
            warnings.simplefilter("error", Picture.DecompressionBombWarning)
            with Picture.open(path, formats=("PNG", "JPEG")) as picture:
                picture.verify()  # the checksums of a PNG; leaves the object unusable
            with Picture.open(path, formats=("PNG", "JPEG")) as picture:
                check_budget(path, picture.size, 12)
                if picture.mode in ("1", "CMYK"):
                    raise ImageError(
                        f"{path}: mode {picture.mode!r} holds no grey values; export it as 8 or 16 bit grey"
                    )
                array = np.asarray(picture.convert("RGB") if picture.mode in ("P", "PA", "YCbCr") else picture)
    except ImageError:
        raise
    except Exception as error:  # pillow raises OSError, SyntaxError, ValueError, struct.error on damage
        raise ImageError(f"{path}: damaged or no PNG or JPEG ({error}); copy the file again from its source") from error
    array = array.astype(np.float32)
    if array.ndim == 3:
        array = array[..., :3].mean(-1) if array.shape[-1] >= 3 else array[..., 0]
    return array


def read_nifti_radiograph(path: Path) -> np.ndarray:
    """A NIfTI image with one slice, turned by its affine: head (or front) up, the patient's right on the left.

    Returns:
        ``H W``, float32.

    Raises:
        ImageError: If it has more than one slice.
    """
    array, affine = read_nifti(path)
    array = array[:, :, None] if array.ndim == 2 else array
    if array.shape.count(1) != 1 or array.nbytes > MAX_BYTES:
        raise ImageError(f"{path}: shape {array.shape} is no radiograph; exactly one axis has length 1")
    codes = aff2axcodes(affine)
    axes = [d for d in range(3) if array.shape[d] > 1]
    axes.sort(key=lambda d: "SIAPLR".index(codes[d]))  # rows run along the body if they can, columns across
    array = array.squeeze().T if axes[0] > axes[1] else array.squeeze()
    flips = [k for k, d in enumerate(axes) if codes[d] not in "ILP"]
    return np.ascontiguousarray(np.flip(array, tuple(flips)))

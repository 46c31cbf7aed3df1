import gzip
import os
import struct
import subprocess
import sys

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Picture

from medvl_imaging.readers import FileSource, ImageError, read_radiograph, read_volume
from medvl_imaging.readers.source import _digest
from tests.refusals import refused

SHAPE = (20, 18, 16)


def hu(shape=SHAPE) -> np.ndarray:
    return np.clip(np.random.default_rng(0).normal(-200, 400, shape), -1000, 1500).astype(np.int16)


def nifti(array=None, spacing=(1.5, 1.5, 2.0), **header) -> bytes:
    """Bytes of an uncompressed NIfTI; ``header`` sets fields after nibabel made it consistent."""
    affine = np.diag([-spacing[0], -spacing[1], spacing[2], 1.0])
    raw = bytearray(nib.Nifti1Image(hu() if array is None else array, affine).to_bytes())
    head = nib.Nifti1Header(bytes(raw[:348]), check=False)
    for name, value in header.items():
        head[name] = value
    raw[:348] = head.binaryblock
    return bytes(raw)


def packed(raw: bytes) -> bytes:
    return gzip.compress(raw, mtime=0)


def dims(*sizes) -> list[int]:
    return [*sizes, *[1] * (8 - len(sizes))]


def filled(value, where=(3, 3, 3), dtype=np.float32) -> np.ndarray:
    array = hu().astype(dtype)
    array[where] = value
    return array


WHOLE = nifti()
AFFINE = np.diag([-1.5, -1.5, 2.0, 1.0])
SHEARED = AFFINE + np.eye(4, k=2) * [[0, 0, 0.4, 0]] * 1.0
DAMAGED = {
    # name: (file suffix, bytes, reason)
    "gzip tail cut": (".nii.gz", packed(WHOLE)[:-8], "gzip stream ends too early"),
    "gzip cut in half": (".nii.gz", packed(WHOLE)[: len(packed(WHOLE)) // 2], "gzip stream ends too early"),
    "gzip wrong CRC": (".nii.gz", packed(WHOLE)[:-8] + b"\1\2\3\4" + packed(WHOLE)[-4:], "damaged gzip data"),
    "gzip wrong length": (".nii.gz", packed(WHOLE)[:-4] + b"\1\2\3\4", "damaged gzip data"),
    "gzip garbage behind": (".nii.gz", packed(WHOLE) + b"garbage", "damaged gzip data"),
    "gzip of nothing": (".nii.gz", packed(b""), "0 bytes hold no NIfTI header"),
    "empty file": (".nii", b"", "0 bytes hold no NIfTI header"),
    "header only": (".nii", WHOLE[:352], "0 bytes of voxels"),
    "garbage": (".nii", b"garbage" * 100, "not a NIfTI file"),
    "raw data cut": (".nii", WHOLE[:-100], "11,420 bytes of voxels, but .* needs 11,520"),
    "bytes behind the data": (".nii", WHOLE + b"\0" * 10, "the file is cut or its header damaged"),
    "dimension too small": (".nii", nifti(dim=dims(3, 20, 18, 15)), "its header damaged"),
    "dimension 32767": (".nii", nifti(dim=dims(3, 32767, 18, 16)), "its header damaged"),
    "dimensions of 60 TB": (".nii", nifti(dim=dims(3, 32767, 32767, 32767)), "8 GiB in all"),
    "dimension 0": (".nii", nifti(dim=dims(3, 20, 0, 16)), "sizes are at least 1"),
    "dimension negative": (".nii", nifti(dim=dims(3, 20, -18, 16)), "sizes are at least 1"),
    "9 dimensions": (".nii", nifti(dim=dims(9, 20, 18, 16)), "9 dimensions"),
    "4-D": (".nii", nifti(hu((8, 8, 8, 3))), "4 dimensions; give one volume"),
    "2-D": (".nii", nifti(hu((8, 8))), "is no volume"),
    "single slice": (".nii", nifti(hu((20, 18, 1))), "is no volume"),
    "spacing 0": (".nii", nifti(pixdim=[1, 1.5, 1.5, 0, 0, 0, 0, 0]), "three positive numbers"),
    "spacing NaN": (".nii", nifti(pixdim=[1, 1.5, np.nan, 2, 0, 0, 0, 0]), "three positive numbers"),
    "spacing negative": (".nii", nifti(pixdim=[1, 1.5, -1.5, 2, 0, 0, 0, 0]), "three positive numbers"),
    "spacing against affine": (".nii", nifti(pixdim=[1, 1.5, 1.5, 2.5, 0, 0, 0, 0]), "by the affine, .* by pixdim"),
    "slices 15 m apart": (".nii", nifti(spacing=(1.5, 1.5, 15000.0)), "spacing is 1.5 x 1.5 x 1.5e[+]04 mm"),
    "affine NaN": (".nii", nifti(srow_x=[np.nan, 0, 0, 0]), "affine contains NaN or Inf"),
    "affine Inf": (".nii", nifti(srow_z=[0, 0, 2, np.inf]), "affine contains NaN or Inf"),
    "affine singular": (
        ".nii",
        nifti(srow_y=[-1.5, 0, 0, 0], srow_x=[0, -1.5, 0, 0], srow_z=[0, 0, 0, 0]),
        "spacing is",
    ),
    "two equal axes": (".nii", nifti(srow_x=[-1.5, -1.5, 0, 0], srow_y=[0, 0, 0, 0]), "90.0 degrees from orthogonal"),
    "sheared": (".nii", nifti(srow_x=[-1.5, 0, 0.4, 0]), "11.3 degrees from orthogonal"),
    "no orientation": (".nii", nifti(qform_code=0, sform_code=0), "neither sform nor qform is set"),
    "qform says mirrored": (
        ".nii",
        nifti(qform_code=1, quatern_b=1, quatern_c=0, quatern_d=0),
        "sform says LPS, qform",
    ),
    "qform no rotation": (".nii", nifti(sform_code=0, qform_code=1, quatern_b=2), "qform is no rotation"),
    "slope NaN": (".nii", nifti(scl_slope=np.nan), "scl_slope nan"),
    "slope Inf": (".nii", nifti(scl_slope=np.inf), "scl_slope inf"),
    "intercept NaN": (".nii", nifti(scl_slope=1, scl_inter=np.nan), "scl_inter nan"),
    "wrong magic": (".nii", nifti(magic=b"abc"), "magic is b'abc"),
    "two-file image": (".nii", nifti(magic=b"ni1"), "must be merged first"),
    "offset beyond the end": (".nii", nifti(vox_offset=1e6), "vox_offset 1000000.0"),
    "offset into the header": (".nii", nifti(vox_offset=100), "vox_offset 100.0"),
    "offset shifted": (".nii", nifti(vox_offset=368), "the file is cut or its header damaged"),
    "offset NaN": (".nii", nifti(vox_offset=np.nan), "vox_offset nan"),
    "unknown datatype": (".nii", nifti(datatype=77), "datatype code 77"),
    "colour datatype": (".nii", nifti(datatype=128, bitpix=24), "datatype code 128"),
    "bits against datatype": (".nii", nifti(bitpix=32), "bitpix 32 disagrees"),
    "datatype against bytes": (".nii", nifti(datatype=16, bitpix=32), "11,520 bytes of voxels"),
    "NaN voxel": (".nii", nifti(filled(np.nan)), "1 values are NaN or Inf"),
    "Inf voxel": (".nii", nifti(filled(np.inf)), "1 values are NaN or Inf"),
    "all zero": (".nii", nifti(np.zeros(SHAPE, np.int16)), "every value is 0"),
    "uint8": (".nii", nifti(np.random.default_rng(0).integers(0, 255, SHAPE, np.uint8)), "no CT in HU"),
    "raw values": (".nii", nifti((hu() + 1024).astype(np.uint16)), "no CT in HU .* apply RescaleSlope"),
    "scaled to -1..1": (".nii", nifti(hu().astype(np.float32) / 1000), "no CT in HU"),
    "intercept twice": (".nii", nifti((hu() - 1024).astype(np.int16)), "denser than nothing"),
    "intercept far off": (".nii", nifti((hu() - 8192).astype(np.int16)), "-9192 to .* are no CT"),
}


@pytest.mark.parametrize("kind", DAMAGED)
def test_damaged_nifti_is_rejected_with_path_and_reason(tmp_path, kind):
    suffix, content, reason = DAMAGED[kind]
    path = tmp_path / f"scan{suffix}"
    path.write_bytes(content)
    with refused(path, reason, ImageError):
        read_volume(path)


def test_the_undamaged_file_is_read_so_the_table_means_something(tmp_path):
    assert len(DAMAGED) >= 50
    for name, content in {"a.nii": WHOLE, "b.nii.gz": packed(WHOLE), "c.nii": packed(WHOLE)}.items():
        (tmp_path / name).write_bytes(content)
        image = read_volume(tmp_path / name)
        np.testing.assert_array_equal(image.array, hu())
        assert image.array.dtype == np.float32
        np.testing.assert_array_equal(image.affine, AFFINE)


@pytest.mark.parametrize(
    "variant",
    [
        "big endian",
        "slope 0",
        "slope and intercept",
        "float64",
        "NIfTI-2",
        "two gzip members",
        "zeros behind gzip",
        "4-D of one",
        "qform only",
    ],
)
def test_legal_variants_are_proven_equal(tmp_path, variant):
    image = nib.Nifti1Image(hu(), AFFINE)
    two = packed(WHOLE[:5000]) + packed(WHOLE[5000:])
    shifted = bytearray(nifti(((hu() + 1024) * 2).astype(np.int16), scl_slope=0.5, scl_inter=-1024))
    content = {
        "big endian": lambda: nib.Nifti1Image(hu(), AFFINE, nib.Nifti1Header(endianness=">")).to_bytes(),
        "slope 0": lambda: nifti(scl_slope=0, scl_inter=7),
        "slope and intercept": lambda: bytes(shifted),
        "float64": lambda: nifti(hu().astype(np.float64)),
        "NIfTI-2": lambda: nib.Nifti2Image(hu(), AFFINE).to_bytes(),
        "two gzip members": lambda: two,
        "zeros behind gzip": lambda: packed(WHOLE) + b"\0" * 512,
        "4-D of one": lambda: nifti(hu()[..., None]),
        "qform only": lambda: nifti(sform_code=0, qform_code=1),
    }[variant]()
    assert image.shape == SHAPE
    path = tmp_path / "scan.nii"
    path.write_bytes(content)
    read = read_volume(path)
    np.testing.assert_array_equal(read.array, hu())
    np.testing.assert_allclose(read.affine, AFFINE, atol=1e-5)


def test_random_edits_of_a_gzipped_scan_are_rejected_or_equal(tmp_path):
    rng, whole, path = np.random.default_rng(0), packed(WHOLE), tmp_path / "scan.nii.gz"
    rejected = equal = 0
    for _ in range(200):
        content = bytearray(whole)
        kind = rng.integers(3)
        if kind == 0:
            content[rng.integers(len(content))] ^= int(rng.integers(1, 256))
        elif kind == 1:
            content = content[: rng.integers(len(content))]
        else:
            at = rng.integers(len(content))
            content[at : at + 50] = rng.bytes(50)
        path.write_bytes(content)
        try:
            image = read_volume(path)
        except ImageError as error:
            rejected += str(error).startswith(f"{path}: ")
        else:
            np.testing.assert_array_equal(image.array, hu())
            np.testing.assert_array_equal(image.affine, AFFINE)
            equal += 1
    assert rejected + equal == 200
    assert rejected > 150


def test_gzip_bomb_is_stopped_by_the_byte_budget(tmp_path, monkeypatch):
    monkeypatch.setattr("medvl_imaging.readers.nifti.MAX_BYTES", 1 << 20)
    path = tmp_path / "scan.nii.gz"
    path.write_bytes(packed(WHOLE + b"\0" * (4 << 20)))
    with pytest.raises(ImageError, match="decompresses to more than the 1,048,576 bytes"):
        read_volume(path)


def test_padding_outside_the_scanner_becomes_minus_1024(tmp_path):
    array = hu()
    array[:4] = -2048
    path = tmp_path / "scan.nii"
    path.write_bytes(nifti(array))
    np.testing.assert_array_equal(read_volume(path).array, np.maximum(array, -1024))


def test_other_contents_have_their_own_rules(tmp_path):
    path = tmp_path / "x.nii"
    path.write_bytes(nifti(hu().clip(0, 200).astype(np.float32)))
    assert read_volume(path, content="mr").array.max() == 200
    path.write_bytes(nifti(np.full(SHAPE, 7, np.uint8)))
    labels = read_volume(path, content="labels").array
    assert labels.dtype == np.uint8
    assert (labels == 7).all()
    with pytest.raises(ImageError, match="every value is 7"):
        read_volume(path, content="mr")
    path.write_bytes(nifti(hu()))
    with pytest.raises(ImageError, match="are no labels"):
        read_volume(path, content="labels")


def test_missing_and_unknown_files_are_named(tmp_path):
    with pytest.raises(FileNotFoundError, match="no such file or folder"):
        read_volume(tmp_path / "none.nii.gz")
    (tmp_path / "scan.mha").write_bytes(b"x")
    with pytest.raises(ImageError, match="unknown volume format"):
        read_volume(tmp_path / "scan.mha")
    (tmp_path / "film.bmp").write_bytes(b"x")
    with pytest.raises(ImageError, match="unknown radiograph format"):
        read_radiograph(tmp_path / "film.bmp")
    with pytest.raises(ImageError, match="a radiograph is one file"):
        read_radiograph(tmp_path)


NRRD_HEAD = {
    "type": "short",
    "dimension": "3",
    "space": "left-posterior-superior",
    "sizes": "20 18 16",
    "space directions": "(1.5,0,0) (0,1.5,0) (0,0,2)",
    "kinds": "domain domain domain",
    "endian": "little",
    "encoding": "gzip",
    "space origin": "(-10,-20,-30)",
}


def nrrd(data=None, **changes) -> bytes:
    fields = {**NRRD_HEAD, **{k.replace("_", " "): v for k, v in changes.items()}}
    head = "NRRD0004\n" + "".join(f"{k}: {v}\n" for k, v in fields.items() if v is not None) + "\n"
    return head.encode() + (packed(hu().tobytes(order="F")) if data is None else data)


def test_nrrd_is_read_with_its_geometry(tmp_path):
    path = tmp_path / "scan.nrrd"
    for content in (nrrd(), nrrd(hu().tobytes(order="F"), encoding="raw")):
        path.write_bytes(content)
        image = read_volume(path)
        np.testing.assert_array_equal(image.array, hu())
        np.testing.assert_allclose(image.affine, [[-1.5, 0, 0, 10], [0, -1.5, 0, 20], [0, 0, 2, -30], [0, 0, 0, 1]])


DAMAGED_NRRD = {
    "no magic": (b"NRR" + nrrd(), "not an NRRD file"),
    "no end of header": (b"NRRD0004\ntype: short\n", "not an NRRD file"),
    "gzip cut": (nrrd()[:-20], "gzip stream ends too early"),
    "raw cut": (nrrd(hu().tobytes()[:-2], encoding="raw"), "the file is cut"),
    "sizes too small": (nrrd(sizes="20 18 15"), "decompresses to more than"),
    "sizes too large": (nrrd(sizes="20 18 17"), "the file is cut or its header damaged"),
    "sizes missing": (nrrd(sizes=None), "NRRD field 'sizes' is missing"),
    "type unknown": (nrrd(type="block"), "'block' is missing or unknown"),
    "no space": (nrrd(space=None), "needs dimension 3, space"),
    "no directions": (nrrd(space_directions=None), "needs dimension 3, space"),
    "directions NaN": (nrrd(space_directions="(nan,0,0) (0,1.5,0) (0,0,2)"), "affine contains NaN"),
    "directions 0": (nrrd(space_directions="(0,0,0) (0,1.5,0) (0,0,2)"), "spacing is 0 x 1.5 x 2 mm"),
    "detached": (nrrd(data_file="other.raw"), "separate file"),
    "bzip2": (nrrd(encoding="bzip2"), "encoding 'bzip2' is not checked"),
    "origin garbled": (nrrd(space_origin="(a,b,c)"), "ITK cannot read it|affine contains|origin"),
}


@pytest.mark.parametrize("kind", DAMAGED_NRRD)
def test_damaged_nrrd_is_rejected_with_path_and_reason(tmp_path, kind):
    content, reason = DAMAGED_NRRD[kind]
    path = tmp_path / "scan.nrrd"
    path.write_bytes(content)
    with refused(path, reason, ImageError):
        read_volume(path)


def test_fingerprint_is_of_the_bytes_and_follows_a_change(tmp_path):
    path = tmp_path / "scan.nii"
    path.write_bytes(WHOLE)
    source = FileSource(path, "volume")
    first = source.fingerprint()
    assert len(first) == 64
    (tmp_path / "copy.nii").write_bytes(WHOLE)
    assert FileSource(tmp_path / "copy.nii", "volume").fingerprint() == first
    assert FileSource(path, "mr").fingerprint() != first  # other checks, other values
    path.write_bytes(WHOLE[:-1] + bytes([WHOLE[-1] ^ 1]))
    os.utime(path, ns=(1, 1))
    assert source.fingerprint() != first
    np.testing.assert_array_equal(FileSource(tmp_path / "copy.nii", "volume").load().array, hu())


def test_fingerprint_follows_the_version_of_the_readers(tmp_path, monkeypatch):
    path = tmp_path / "scan.nii"
    path.write_bytes(WHOLE)
    first = FileSource(path, "volume").fingerprint()
    monkeypatch.setattr("medvl_imaging.readers.source.VERSION", 99)
    _digest.cache_clear()
    assert FileSource(path, "volume").fingerprint() != first
    _digest.cache_clear()


def test_fingerprint_of_unchanged_files_is_remembered(tmp_path, monkeypatch):
    import hashlib

    path = tmp_path / "scan.nii"
    path.write_bytes(WHOLE)
    source = FileSource(path, "volume")
    first = source.fingerprint()
    monkeypatch.setattr(hashlib, "file_digest", None)
    assert source.fingerprint() == first


def test_readers_load_neither_torch_nor_monai():
    code = "import sys; from medvl_imaging.readers import dicom, film, nrrd; "
    code += "print({'torch', 'monai', 'itk', 'pandas'} & set(sys.modules))"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, check=True, env=dict(os.environ)
    )
    assert done.stdout.strip() == "set()"


# radiographs -------------------------------------------------------------------------------------------------------


def film(dtype=np.uint8) -> np.ndarray:
    return np.random.default_rng(0).integers(0, np.iinfo(dtype).max, (24, 30), dtype)


def saved(path, array, mode=None):
    Picture.fromarray(array, mode).save(path)
    return path


def test_pictures_of_every_kind_give_the_same_grey_values(tmp_path):
    grey = film()
    rgb = np.repeat(grey[..., None], 3, -1)
    rgba = np.concatenate([rgb, np.full_like(grey, 255)[..., None]], -1)
    la = np.stack([grey, np.full_like(grey, 255)], -1)
    for name, array in {"grey": grey, "rgb": rgb, "rgba": rgba, "la": la}.items():
        image = read_radiograph(saved(tmp_path / f"{name}.png", array))
        np.testing.assert_allclose(image.array, grey, atol=1e-4)
        assert image.array.dtype == np.float32
        assert image.affine is None
    deep = film(np.uint16)
    np.testing.assert_array_equal(read_radiograph(saved(tmp_path / "deep.png", deep)).array, deep)
    jpeg = read_radiograph(
        saved(tmp_path / "film.jpg", np.full((24, 30), 90, np.uint8) + np.arange(30, dtype=np.uint8))
    )
    assert np.abs(jpeg.array - (90 + np.arange(30))).max() < 6


def test_nifti_radiograph_is_turned_by_its_affine(tmp_path):
    axes = {"R": [1, 0, 0], "L": [-1, 0, 0], "A": [0, 1, 0], "P": [0, -1, 0], "S": [0, 0, 1], "I": [0, 0, -1]}
    upright = film().astype(np.float32)  # rows run down, columns to the patient's left
    for codes in ("LIA", "RSA", "SRP", "LPS", "IAL"):
        change = {"LIA": upright.T[:, :, None], "RSA": upright.T[::-1, ::-1, None], "LPS": upright.T[:, :, None]}
        array = {**change, "SRP": upright[::-1, ::-1, None], "IAL": None}[codes]
        if codes == "IAL":  # lateral: second axis to the front, so columns are turned
            array = upright[:, ::-1, None]
        affine = np.eye(4)
        affine[:3, :3] = np.stack([axes[code] for code in codes], 1)
        path = tmp_path / "film.nii.gz"
        nib.save(nib.Nifti1Image(np.ascontiguousarray(array), affine), path)
        np.testing.assert_array_equal(read_radiograph(path).array, upright, err_msg=codes)


DAMAGED_PICTURES = {
    "png cut": lambda b: b[: len(b) // 2],
    "png flipped bit": lambda b: b[:80] + bytes([b[80] ^ 4]) + b[81:],
    "png empty": lambda b: b"",
    "png garbage": lambda b: b"\x89PNG\r\n\x1a\n" + b"garbage" * 20,
    "png without end": lambda b: b[:-20],
    "png is a pdf": lambda b: b"%PDF-1.4 ...",
}


@pytest.mark.parametrize("kind", DAMAGED_PICTURES)
def test_damaged_pictures_are_rejected_with_path(tmp_path, kind):
    path = saved(tmp_path / "film.png", film())
    path.write_bytes(DAMAGED_PICTURES[kind](path.read_bytes()))
    with pytest.raises(ImageError, match="damaged or no PNG or JPEG") as caught:
        read_radiograph(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_unusable_radiographs_are_named(tmp_path):
    with pytest.raises(ImageError, match="every value is 7"):
        read_radiograph(saved(tmp_path / "flat.png", np.full((9, 9), 7, np.uint8)))
    Picture.fromarray(film() > 100).save(tmp_path / "bits.png")
    with pytest.raises(ImageError, match="mode '1' holds no grey values"):
        read_radiograph(tmp_path / "bits.png")
    (tmp_path / "cut.jpg").write_bytes(saved(tmp_path / "x.jpg", film()).read_bytes()[:-200])
    with pytest.raises(ImageError, match="damaged or no PNG or JPEG"):
        read_radiograph(tmp_path / "cut.jpg")
    nib.save(nib.Nifti1Image(hu(), AFFINE), tmp_path / "volume.nii.gz")
    with pytest.raises(ImageError, match="is no radiograph; exactly one axis has length 1"):
        read_radiograph(tmp_path / "volume.nii.gz")


@pytest.mark.real_data
def test_real_formats_agree(real_data):
    series = read_volume(real_data / "ct_cip_tiny/ct-64Dicom")
    volume = read_volume(real_data / "ct_cip_tiny/ct-64.nrrd")
    np.testing.assert_array_equal(series.array, volume.array)
    np.testing.assert_allclose(series.affine, volume.affine, atol=1e-3)
    compressed = read_volume(real_data / "ct_totalsegmentator/example_ct_dicom")  # JPEG 2000
    assert compressed.array.shape == (512, 512, 20)
    for path in sorted((real_data / "cxr_nih1000_64/images").iterdir())[:100]:
        assert read_radiograph(path).array.shape == (64, 64)


def test_header_of_a_short_file_is_not_read_beyond_its_end(tmp_path):
    path = tmp_path / "scan.nii"
    path.write_bytes(struct.pack("<i", 540) + WHOLE[4:400])
    with pytest.raises(ImageError, match=r"NIfTI header|magic is"):
        read_volume(path)

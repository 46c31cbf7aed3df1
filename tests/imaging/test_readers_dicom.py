import os
import struct
import warnings

import numpy as np
import pytest
from pydicom import dcmread
from pydicom.uid import JPEG2000Lossless

from medvl_imaging.readers import FileSource, ImageError, read_radiograph, read_volume
from tests.imaging.dicom_files import ct_slices, dataset, save_series


def hu(shape=(12, 10, 8)) -> np.ndarray:
    return np.clip(np.random.default_rng(0).normal(-200, 400, shape), -1000, 1500).round().astype(np.int16)


def test_series_is_ordered_by_position_and_in_hu(tmp_path):
    slices = ct_slices(hu())
    folder = save_series(tmp_path / "a", [slices[i] for i in (3, 0, 7, 1, 2, 6, 5, 4)])
    (folder / "DICOMDIR").write_bytes(b"x")
    (folder / "notes.txt").write_text("x")
    image = read_volume(folder)
    np.testing.assert_array_equal(image.array, hu())
    np.testing.assert_allclose(image.affine, [[-0.8, 0, 0, 10], [0, -0.9, 0, 20], [0, 0, 1.5, -30], [0, 0, 0, 1]])


def test_series_without_file_extensions_is_read(tmp_path):
    folder = save_series(tmp_path / "a", ct_slices(hu()))
    for file in sorted(folder.iterdir()):
        file.rename(folder / f"IM{file.stem}")
    np.testing.assert_array_equal(read_volume(folder).array, hu())


def test_series_equals_itk(tmp_path):
    from medvl_imaging.readers.with_itk import read_itk

    folder = save_series(tmp_path / "a", ct_slices(hu()))
    first = read_itk(folder / "000.dcm")
    np.testing.assert_array_equal(np.asarray(first)[0].T, read_volume(folder).array[:, :, 0])
    np.testing.assert_allclose(np.asarray(first.GetOrigin()), [-10, -20, -30])


def test_oblique_and_coronal_series_keep_their_geometry(tmp_path):
    slices = ct_slices(hu())
    for z, ds in enumerate(slices):  # coronal: rows run down the body, slices to the back
        ds.ImageOrientationPatient = [1, 0, 0, 0, 0, -1]
        ds.ImagePositionPatient = [-10, -20 + 1.5 * z, 100]
    image = read_volume(save_series(tmp_path / "a", slices))
    np.testing.assert_allclose(image.affine[:3, :3], [[-0.8, 0, 0], [0, 0, -1.5], [0, -0.9, 0]], atol=1e-9)
    np.testing.assert_array_equal(image.array, hu())


def change(index, **values):
    def fault(slices):
        for name, value in values.items():
            if value is None:
                delattr(slices[index], name)
            else:
                setattr(slices[index], name, value)
        return slices

    return fault


def change_all(**values):
    def fault(slices):
        for i in range(len(slices)):
            change(i, **values)(slices)
        return slices

    return fault


def tilted(slices):
    for z, ds in enumerate(slices):
        ds.ImagePositionPatient = [-10, -20 + 0.3 * z, -30 + 1.5 * z]
    return slices


def second_series(slices):
    more = ct_slices(hu())
    for z, ds in enumerate(more):
        ds.SeriesInstanceUID = "1.2.3.5"
        ds.ImagePositionPatient = [-10, -20, -29.25 + 1.5 * z]
        ds.SOPInstanceUID = ds.file_meta.MediaStorageSOPInstanceUID = f"1.2.3.5.{z + 1}"
    return slices + more


def copied(slices):
    twin = ct_slices(hu())[3]
    twin.SOPInstanceUID = twin.file_meta.MediaStorageSOPInstanceUID = "1.2.3.4.99"
    return [*slices, twin]


SERIES_FAULTS = {
    "slice missing": (lambda s: s[:3] + s[4:], "gap of 3.00 mm after -27.00 mm, elsewhere 1.50; a slice is missing"),
    "same position twice": (copied, "two slices at the same position -25.50 mm"),
    "file twice": (lambda s: [*s, ct_slices(hu())[0]], "1 files repeat a SOPInstanceUID"),
    "two series": (second_series, "16 files have 2 different values of SeriesInstanceUID"),
    "two patients": (change(2, PatientID="p2"), "2 different values of PatientID"),
    "two studies": (change(2, StudyInstanceUID="1.2.9"), "2 different values of StudyInstanceUID"),
    "no position": (change(3, ImagePositionPatient=None), "ImagePositionPatient missing"),
    "no orientation": (change(3, ImageOrientationPatient=None), "ImageOrientationPatient missing"),
    "no spacing": (change(3, PixelSpacing=None), "PixelSpacing missing"),
    "no slope": (change(3, RescaleSlope=None), "RescaleSlope missing"),
    "no intercept anywhere": (change_all(RescaleIntercept=None), "RescaleIntercept missing"),
    "slope 0": (change(3, RescaleSlope=0), "rescale .* is unusable"),
    "spacing 0": (change_all(PixelSpacing=[0.8, 0]), "spacing or rescale .* is unusable"),
    "spacing negative": (change_all(PixelSpacing=[-0.8, 0.8]), "spacing or rescale .* is unusable"),
    "spacing of metres": (change_all(PixelSpacing=[800, 800]), "must lie in 0.01 to 50.0 mm"),
    "orientation not unit": (change_all(ImageOrientationPatient=[2, 0, 0, 0, 1, 0]), "not two unit vectors"),
    "gantry tilt": (tilted, "gantry tilt"),
    "localizer inside": (change(0, ImageOrientationPatient=[1, 0, 0, 0, 0, -1]), "oriented differently"),
    "other size": (change(2, Rows=5, PixelData=b"\0" * 120), "2 different values of Rows"),
    "segmentation inside": (change(2, Modality="SEG"), "modality 'SEG' in a CT series"),
    "multi-frame": (change_all(NumberOfFrames=3), "multi-frame DICOM is not read"),
    "wrong BitsStored": (change(2, BitsStored=12), "BitsStored 12, HighBit 15"),
    "pixels short": (change(2, PixelData=b"\0" * 100), "pixels cannot be decoded"),
    "no pixels": (change(2, PixelData=None), "pixels cannot be decoded"),
    "one slice": (lambda s: s[:1], "one slice is no volume"),
    "position text": (change(2, ImagePositionPatient=[1, 2]), "is unusable"),
    "raw values": (change_all(RescaleIntercept=0), "are no CT in HU"),
}


@pytest.mark.parametrize("kind", SERIES_FAULTS)
def test_damaged_series_is_rejected_with_path_and_reason(tmp_path, kind):
    fault, reason = SERIES_FAULTS[kind]
    folder = save_series(tmp_path / "a", fault(ct_slices(hu())))
    with pytest.raises(ImageError, match=reason) as caught:
        read_volume(folder)
    assert str(caught.value).startswith(str(folder))
    assert "\n" not in str(caught.value)
    assert "p2" not in str(caught.value).replace(str(folder), "")  # patient ids are not shown


def cut(path):
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def executable(path):
    path.write_bytes(b"MZ" + path.read_bytes()[2:])


def odd_vr(path):
    raw = path.read_bytes()
    at = raw.index(b"\x20\x00\x32\x00DS")
    path.write_bytes(raw[: at + 4] + b"QQ" + raw[at + 6 :])


def sequences(depth, undefined):
    """Sequences inside each other, as bytes; of stated or of undefined length."""
    body = b""
    for _ in range(depth):
        if undefined:
            item = b"\xfe\xff\x00\xe0\xff\xff\xff\xff" + body + b"\xfe\xff\x0d\xe0\0\0\0\0"
            body = b"\x08\x00\x10\x11SQ\0\0\xff\xff\xff\xff" + item + b"\xfe\xff\xdd\xe0\0\0\0\0"
        else:
            item = b"\xfe\xff\x00\xe0" + struct.pack("<I", len(body)) + body
            body = b"\x08\x00\x10\x11SQ\0\0" + struct.pack("<I", len(item)) + item
    return body


def nest(path, undefined=True):
    raw = path.read_bytes()
    at = raw.index(b"\x10\x00\x20\x00LO")
    path.write_bytes(raw[:at] + sequences(1000, undefined) + raw[at:])


FILE_FAULTS = {
    "nested 1000 deep": (nest, "malformed DICOM header .RecursionError"),
    "cut in half": (cut, "pixels cannot be decoded|malformed DICOM header|missing"),
    "empty": (lambda p: p.write_bytes(b""), "not a DICOM file"),
    "garbage": (lambda p: p.write_bytes(b"garbage" * 50), "not a DICOM file"),
    "executable preamble": (executable, "executable program"),
    "odd VR": (odd_vr, "malformed DICOM header|missing|unusable"),
    "header only": (lambda p: p.write_bytes(p.read_bytes()[:140]), "malformed DICOM header|modality None"),
}


@pytest.mark.parametrize("kind", FILE_FAULTS)
def test_one_damaged_file_of_a_series_is_named(tmp_path, kind):
    damage, reason = FILE_FAULTS[kind]
    folder = save_series(tmp_path / "a", ct_slices(hu()))
    damage(folder / "004.dcm")
    with pytest.raises(ImageError, match=reason) as caught:
        read_volume(folder)
    assert str(caught.value).startswith(str(folder / "004.dcm"))


def test_deep_sequences_that_nobody_needs_are_not_unfolded(tmp_path):
    folder = save_series(tmp_path / "a", ct_slices(hu()))
    nest(folder / "004.dcm", undefined=False)
    np.testing.assert_array_equal(read_volume(folder).array, hu())


def test_every_length_of_a_cut_file_is_rejected(tmp_path):
    folder = save_series(tmp_path / "a", ct_slices(hu()))
    whole = (folder / "004.dcm").read_bytes()
    for length in range(1, len(whole), 7):
        (folder / "004.dcm").write_bytes(whole[:length])
        with pytest.raises(ImageError, match=r"004\.dcm"):
            read_volume(folder)


@pytest.mark.real_data
def test_cut_jpeg_2000_slice_is_rejected(tmp_path, real_data):
    source = sorted((real_data / "ct_totalsegmentator/example_ct_dicom").iterdir())[:3]
    for i, file in enumerate(source):
        content = file.read_bytes()
        (tmp_path / f"{i}.dcm").write_bytes(content[: len(content) * 2 // 3] if i == 1 else content)
    assert dcmread(tmp_path / "0.dcm", stop_before_pixels=True).file_meta.TransferSyntaxUID == JPEG2000Lossless
    with pytest.raises(ImageError, match=r"1\.dcm: pixels cannot be decoded"):
        read_volume(tmp_path)


def test_folders_without_a_series_are_named(tmp_path):
    with pytest.raises(ImageError, match="holds no DICOM image"):
        read_volume(tmp_path)
    (tmp_path / "DICOMDIR").write_bytes(b"\0" * 128 + b"DICM")
    with pytest.raises(ImageError, match="a DICOMDIR alone has no pixels"):
        read_volume(tmp_path)


def test_fingerprint_of_a_folder_covers_every_file(tmp_path):
    folder = save_series(tmp_path / "a", ct_slices(hu()))
    first = FileSource(folder, "volume").fingerprint()
    os.utime(folder / "003.dcm")
    assert FileSource(folder, "volume").fingerprint() == first
    (folder / "003.dcm").unlink()
    assert FileSource(folder, "volume").fingerprint() != first


def radiograph(path, stored=None, modality="DX", **changes):
    stored = np.arange(120, dtype=np.uint16).reshape(10, 12) * 30 if stored is None else stored
    ds = dataset(stored, "1.2.3.4.5", modality)
    for name, value in changes.items():
        setattr(ds, name, value)
    ds.save_as(path, enforce_file_format=True)
    return path


def test_radiograph_applies_rescale_window_and_inversion(tmp_path):
    stored = np.arange(120, dtype=np.float32).reshape(10, 12) * 30
    path = tmp_path / "film.dcm"
    np.testing.assert_array_equal(read_radiograph(radiograph(path)).array, stored)
    image = read_radiograph(radiograph(path, RescaleSlope=2, RescaleIntercept=-100))
    np.testing.assert_array_equal(image.array, stored * 2 - 100)
    inverted = read_radiograph(radiograph(path, PhotometricInterpretation="MONOCHROME1"))
    np.testing.assert_array_equal(inverted.array, stored.max() - stored)
    window = read_radiograph(radiograph(path, WindowCenter=1000, WindowWidth=200)).array
    assert (np.diff(window.ravel()) >= 0).all()
    assert (window[stored < 900] == window.min()).all()
    assert (window[stored > 1100] == window.max()).all()


def test_radiograph_without_suffix_is_recognised(tmp_path):
    assert read_radiograph(radiograph(tmp_path / "IM0001")).array.shape == (10, 12)


RADIOGRAPH_FAULTS = {
    "ct slice": ({"modality": "CT"}, "a radiograph is CR, DX"),
    "colour": ({"PhotometricInterpretation": "PALETTE COLOR"}, "in MONOCHROME1 or 2"),
    "frames": ({"NumberOfFrames": 4}, "holds 4 frames"),
    "pixels short": ({"PixelData": b"\0" * 20}, "pixels cannot be decoded"),
    "constant": ({"stored": np.full((10, 12), 5, np.uint16)}, "every value is 5"),
    "window width 0": ({"WindowCenter": 100, "WindowWidth": 0}, "rescale or window cannot be applied"),
}


@pytest.mark.parametrize("kind", RADIOGRAPH_FAULTS)
def test_damaged_radiograph_is_rejected_with_path_and_reason(tmp_path, kind):
    options, reason = RADIOGRAPH_FAULTS[kind]
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        path = radiograph(tmp_path / "film.dcm", **options)
    with pytest.raises(ImageError, match=reason) as caught:
        read_radiograph(path)
    assert str(caught.value).startswith(f"{path}: ")


def test_pixels_through_itk_equal_those_through_pydicom(tmp_path):
    from medvl_imaging.readers.dicom import _itk_pixels

    folder = save_series(tmp_path / "a", ct_slices(hu()))
    for file in sorted(folder.iterdir())[:2]:
        np.testing.assert_array_equal(_itk_pixels(file), dcmread(file).pixel_array)


def test_a_slice_of_any_modality_is_a_picture_in_its_window(tmp_path):
    hu = np.linspace(-1000, 1000, 24).astype(int).reshape(4, 6)
    ds = ct_slices(np.stack([hu, hu], 2))[0]
    ds.WindowCenter, ds.WindowWidth = 40, 400
    ds.save_as(tmp_path / "slice.dcm", enforce_file_format=True)
    grey = read_radiograph(tmp_path / "slice.dcm", any_modality=True).array
    inside = (hu.T > -160) & (hu.T < 240)
    assert np.corrcoef(grey[inside], hu.T[inside])[0, 1] > 0.9999
    assert (len(np.unique(grey[hu.T < -161])), len(np.unique(grey[hu.T > 240]))) == (1, 1)
    assert FileSource(tmp_path / "slice.dcm", "picture").load().array.shape == (6, 4)
    with pytest.raises(ImageError, match="modality 'CT', 'MONOCHROME2'; a radiograph is CR, DX, RG or DR"):
        FileSource(tmp_path / "slice.dcm", "radiograph").load()


@pytest.mark.parametrize("modality", ["CT", "MR", "PT"])
def test_a_scan_may_be_of_any_modality(tmp_path, modality):
    slices = ct_slices(np.arange(3 * 4 * 5).reshape(3, 4, 5))
    for ds in slices:
        ds.Modality = modality
    array = FileSource(save_series(tmp_path / "series", slices), "scan").load().array
    np.testing.assert_array_equal(array, np.arange(3 * 4 * 5).reshape(3, 4, 5))
    slices[0].Modality = "SR"
    with pytest.raises(ImageError, match="modality 'SR' in a CT or MR or PT series"):
        FileSource(save_series(tmp_path / "series", slices), "scan").load()

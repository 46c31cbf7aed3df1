"""Small DICOM series and radiographs, made for the tests of the readers."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from pydicom.dataset import FileDataset, FileMetaDataset
from pydicom.uid import CTImageStorage, DigitalXRayImageStorageForPresentation, ExplicitVRLittleEndian


def dataset(stored: np.ndarray, uid: str, modality: str) -> FileDataset:
    """A file in memory with pixels and identity; geometry is up to the caller."""
    meta = FileMetaDataset()
    meta.TransferSyntaxUID = ExplicitVRLittleEndian
    meta.MediaStorageSOPClassUID = CTImageStorage if modality == "CT" else DigitalXRayImageStorageForPresentation
    meta.MediaStorageSOPInstanceUID = uid
    ds = FileDataset("", {}, file_meta=meta, preamble=b"\0" * 128)
    ds.SOPClassUID, ds.SOPInstanceUID, ds.Modality = meta.MediaStorageSOPClassUID, uid, modality
    ds.PatientID, ds.StudyInstanceUID, ds.SeriesInstanceUID = "p1", "1.2.3", "1.2.3.4"
    ds.Rows, ds.Columns = stored.shape
    ds.SamplesPerPixel, ds.PhotometricInterpretation = 1, "MONOCHROME2"
    ds.BitsAllocated, ds.BitsStored, ds.HighBit = 16, 16, 15
    ds.PixelRepresentation = int(stored.dtype.kind == "i")
    ds.PixelData = stored.astype(stored.dtype.newbyteorder("<")).tobytes()
    return ds


def ct_slices(hu: np.ndarray, spacing: tuple[float, float, float] = (0.8, 0.9, 1.5)) -> list[FileDataset]:
    """One axial slice per z of ``X Y Z``, at LPS origin (-10, -20, -30)."""
    slices = []
    for z in range(hu.shape[2]):
        ds = dataset((hu[:, :, z].T + 1024).astype(np.uint16), f"1.2.3.4.{z + 1}", "CT")
        ds.ImagePositionPatient = [-10.0, -20.0, -30.0 + z * spacing[2]]
        ds.ImageOrientationPatient = [1, 0, 0, 0, 1, 0]
        ds.PixelSpacing = [spacing[1], spacing[0]]
        ds.SliceThickness = spacing[2]
        ds.InstanceNumber = z + 1
        ds.RescaleSlope, ds.RescaleIntercept = 1, -1024
        slices.append(ds)
    return slices


def save_series(folder: Path, slices: list[FileDataset]) -> Path:
    """Write slices as ``000.dcm`` and so on."""
    folder.mkdir(exist_ok=True)
    for i, ds in enumerate(slices):
        ds.save_as(folder / f"{i:03d}.dcm", enforce_file_format=True)
    return folder

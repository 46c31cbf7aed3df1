"""Miniatures of the sets that the RadCLIP plugin reads, in their exact layout on disk."""

from __future__ import annotations

from pathlib import Path

import nibabel as nib
import numpy as np

from tests.imaging.dicom_files import ct_slices, dataset, save_series
from tests.papers.cxr_cml.cxr_sets import draw, write_table

RSNA = ("Normal", "No Lung Opacity / Not Normal", "Lung Opacity")


def class_folders(folder: Path) -> dict[str, object]:
    """Kaggle's paediatric radiographs: the type of pneumonia and the patient are in the file names."""
    for i in range(8):
        draw(folder / "train" / "NORMAL" / f"IM-{i:04d}-0001.jpeg", i)
        for kind in ("bacteria", "virus"):
            for k in range(2):
                name = f"person{i + 10 * (kind == 'virus')}_{kind}_{k}.jpeg"
                draw(folder / "train" / "PNEUMONIA" / name, 100 * i + 10 * k + len(kind))
    return {
        "folder": folder,
        "label": r"_(bacteria|virus)_|(NORMAL)",
        "subject": r"(person\d+)_",
        "region": "Chest",
        "modality": "X-Ray",
        "condition": {"NORMAL": "normal", "bacteria": "bacterial pneumonia", "virus": "viral pneumonia"},
    }


def crystal_clean(folder: Path) -> dict[str, object]:
    """Twelve images of each class; every third has two augmented copies."""
    places = {"N": "Normal", "G": "Tumor/glioma_tumor", "M": "Tumor/meningioma_tumor", "P": "Tumor/pituitary_tumor"}
    for k, (letter, place) in enumerate(places.items()):
        for i in range(1, 13):
            for suffix in ("", "_VF_", "_SP_") if i % 3 == 0 else ("",):
                draw(folder / "Data" / place / f"{letter}_{i}{suffix}.jpg", 100 * k + i)
    return {"folder": folder}


def radimagenet(folder: Path) -> dict[str, object]:
    """Three lists with CT, MR and ultrasound; the last file of the test list is not there."""
    places = ("CT/abd/normal", "MR/af/Plantar_plate_tear", "MR/brain/normal", "US/abd/kidney")
    for name, count in (("train", 8), ("val", 4), ("test", 5)):
        rows = []
        for i in range(count):
            file = f"radiology_ai/{places[i % 4]}/{name}{i:06d}.png"
            rows.append({"filename": file, "label": places[i % 4].split("/")[-1]})
            if (name, i) != ("test", 4):
                draw(folder / file, i)
        write_table(folder / f"RadiologyAI_{name}.csv", rows)
    return {"folder": folder}


def rsna_pneumonia(folder: Path) -> dict[str, object]:
    """Eighteen patients; an opacity has two boxes, so two rows in both tables. One film is inverted."""
    (folder / "stage_2_train_images").mkdir(parents=True)
    classes, boxes = [], []
    for i in range(18):
        patient = f"0004cfab-14fd-4e49-80ba-63a80b6b{i:04d}"
        for k in range(1 + (i % 3 == 2)):
            classes.append({"patientId": patient, "class": RSNA[i % 3]})
            cells = {"x": 10 * k, "y": 5, "width": 4, "height": 6} if i % 3 == 2 else dict.fromkeys("xy", "")
            boxes.append({"patientId": patient, "x": "", "y": "", "width": "", "height": ""} | cells)
            boxes[-1]["Target"] = int(i % 3 == 2)
        stored = np.random.default_rng(i).integers(0, 255, (20, 16)).astype(np.uint16)
        film = dataset(stored, f"1.2.{i}", "CR")
        film.PhotometricInterpretation = "MONOCHROME1" if i == 0 else "MONOCHROME2"
        film.save_as(folder / "stage_2_train_images" / f"{patient}.dcm", enforce_file_format=True)
    write_table(folder / "stage_2_detailed_class_info.csv", classes)
    write_table(folder / "stage_2_train_labels.csv", boxes)
    return {"folder": folder}


def medmnist(folder: Path) -> dict[str, object]:
    """A file with two classes."""
    rng = np.random.default_rng(0)
    arrays = {}
    for name, count in (("train", 6), ("val", 2), ("test", 4)):
        arrays[f"{name}_images"] = rng.integers(0, 255, (count, 28, 28)).astype(np.uint8)
        arrays[f"{name}_labels"] = (np.arange(count) % 2).astype(np.uint8)[:, None]
    np.savez_compressed(folder / "pneumoniamnist.npz", **arrays)
    names = ("normal", "pneumonia")
    return {"file": folder / "pneumoniamnist.npz", "classes": names, "region": "Chest", "modality": "X-Ray"}


def class_volumes(folder: Path) -> dict[str, object]:
    """Twelve patients with CT, MR and PET and a mask of each."""
    for i in range(12):
        for kind in ("CT", "MR_T1", "PET"):
            nifti(folder / f"STS_{i:03d}" / f"{kind}_image.nii.gz", i)
            nifti(folder / f"STS_{i:03d}" / f"{kind}_mask.nii.gz", i)
    return {
        "folder": folder,
        "files": "*_image.nii.gz",
        "label": "(CT|MR_T1|PET)_image",
        "subject": r"(STS_\d+)",
        "region": "Limb",
        "modality": {"CT": "CT", "MR_T1": "MR", "PET": "PET"},
        "condition": "",
    }


def ixi(folder: Path) -> dict[str, object]:
    """Twelve people; the third has no row, the fourth two that disagree, the fifth no file."""
    rows = []
    for i in range(12):
        if i != 4:
            nifti(folder / f"IXI{i:03d}-{('Guys', 'HH', 'IOP')[i % 3]}-{i + 700:04d}-T1.nii.gz", i)
            nifti(folder / f"IXI{i:03d}-Guys-{i + 700:04d}-T2.nii.gz", i)
        for sex in (1, 2) if i == 3 else (1 + i % 2,):
            if i != 2:
                rows.append({"IXI_ID": i, "SEX_ID (1=m, 2=f)": sex, "HEIGHT": 170, "AGE": 30 + i})
    write_table(folder / "IXI.csv", rows)
    return {"folder": folder}


def covid_ct_md(folder: Path) -> dict[str, object]:
    """Six patients of each class."""
    for place, name in (("COVID-19 Cases", "P"), ("Cap Cases", "cap"), ("Normal Cases", "normal")):
        for i in range(6):
            (folder / place).mkdir(exist_ok=True)
            save_series(folder / place / f"{name}{i + 1:03d}", ct_slices(hounsfield(i)))
    return {"folder": folder}


def dicom_collection(folder: Path) -> dict[str, object]:
    """Twelve patients with a CT or MR each and a scout, which is too short."""
    for i in range(12):
        study = folder / "CPTAC-PDA" / f"C3L-{i:05d}" / "1.3.6.1.4.1.14519" / f"1.3.6.1.{i}"
        study.mkdir(parents=True)
        for name, count in (("scout", 2), ("series", 9)):
            slices = ct_slices(hounsfield(i))[:count]
            for one in slices:
                one.PatientID, one.BodyPartExamined, one.SeriesDescription = f"C3L-{i:05d}", "ABDOMEN", name
                one.Modality = "MR" if i % 2 else "CT"
            save_series(study / name, slices)
    return {"folder": folder}


def hounsfield(seed: int) -> np.ndarray:
    """Noise between air and bone, ``X Y Z``."""
    return np.random.default_rng(seed).integers(-1000, 900, (10, 12, 9))


def nifti(path: Path, seed: int) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    array = np.random.default_rng(seed).integers(0, 900, (10, 12, 9)).astype(np.int16)
    nib.save(nib.Nifti1Image(array, np.diag([-1.0, -1.0, 2.0, 1.0])), path)


SETS = {
    "class_folders": class_folders,
    "crystal_clean": crystal_clean,
    "radimagenet": radimagenet,
    "rsna_pneumonia": rsna_pneumonia,
    "medmnist": medmnist,
    "class_volumes": class_volumes,
    "ixi": ixi,
    "covid_ct_md": covid_ct_md,
    "dicom_collection": dicom_collection,
}

"""Miniatures of the public chest X-ray sets in their exact layout on disk: twenty patients with two or three images."""

from __future__ import annotations

import csv
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from PIL import Image as Picture

from medvl_cxr_cml.chexpert import CHEXPERT_LABELS
from medvl_cxr_cml.cxr_lt import CXR_LT_LABELS

PATIENTS = range(20)
RELEASE = "CheXpert-v1.0-small"


def write_table(path: Path, rows: Sequence[Mapping[str, object]]) -> Path:
    path.parent.mkdir(parents=True, exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    return path


def read_rows(path: Path) -> list[dict[str, str]]:
    with path.open(encoding="utf-8", newline="") as file:
        return list(csv.DictReader(file))


def edit(path: Path, row: int, **cells: object) -> None:
    """Change cells of a row, counted as a spreadsheet does."""
    rows = read_rows(path)
    rows[row - 2] |= {name: str(cell) for name, cell in cells.items()}
    write_table(path, rows)


def draw(path: Path, seed: int, bits: int = 8) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    kind = np.uint8 if bits == 8 else np.uint16
    array = np.random.default_rng(seed).integers(0, 2**bits - 1, (20, 16)).astype(kind)
    Picture.fromarray(array).save(path)


def cxr_lt(folder: Path) -> dict[str, object]:
    """CXR-LT 2024 beside MIMIC-CXR-JPG: an AP and a lateral of one study, a PA of another; odd patients are normal."""
    rows = []
    for patient in PATIENTS:
        subject = 10000032 + patient
        for k, view in enumerate(("AP", "LATERAL", "PA")):
            study, dicom = 50000000 + 10 * patient + k // 2, f"{patient:02d}{k}aa804e-bde0afdd"
            path = f"files/p10/p{subject}/s{study}/{dicom}.jpg"
            labels = {name: int((patient + i) % 10 == 0) for i, name in enumerate(CXR_LT_LABELS)}
            if patient % 2:
                labels = {name: int(name == "Normal") for name in CXR_LT_LABELS}
            ids = {"dicom_id": dicom, "subject_id": subject, "study_id": f"s{study}", "ViewPosition": view}
            rows.append({**ids, "ViewCodeSequence_CodeMeaning": "", "fpath": path, **labels})
            draw(folder / "mimic-cxr-jpg" / path, patient * 3 + k)
    table = write_table(folder / "cxr-lt-2024" / "train_labeled.csv", rows)
    return {"table": table, "root": folder / "mimic-cxr-jpg"}


def chexpert(folder: Path) -> dict[str, object]:
    """CheXpert-v1.0-small; its valid set is three patients of their own."""
    for name, patients in (("train", PATIENTS), ("valid", range(64541, 64544))):
        rows = []
        for patient in patients:
            for k, view in enumerate(("frontal", "lateral", "frontal")):
                study = f"{name}/patient{patient:05d}/study{1 + k // 2}/view{1 + k % 2}_{view}"
                front = view == "frontal"
                cells = {"Sex": "Female", "Age": 60 + patient % 10, "Frontal/Lateral": view.title()}
                values = ("1.0", "0.0", "-1.0", "")
                labels = {label: values[(patient + i + k) % 4] for i, label in enumerate(CHEXPERT_LABELS)}
                rows.append({"Path": f"{RELEASE}/{study}.jpg", **cells, "AP/PA": "AP" if front else "", **labels})
                draw(folder / RELEASE / f"{study}.jpg", patient * 3 + k)
        write_table(folder / RELEASE / f"{name}.csv", rows)
    return {"folder": folder / RELEASE}


def nih(folder: Path) -> dict[str, object]:
    """ChestX-ray14 with two of its image folders and the official lists: the last two patients are the test set."""
    findings = ("No Finding", "Cardiomegaly|Emphysema", "Pleural_Thickening", "Hernia", "Effusion|Mass|Nodule")
    rows = []
    for patient in PATIENTS:
        for k in range(2):
            name = f"{patient + 1:08d}_{k:03d}.png"
            who = {"Patient ID": patient + 1, "Patient Age": 50 + patient, "Patient Gender": "FM"[patient % 2]}
            cells = {"Image Index": name, "Finding Labels": findings[(patient + k) % 5], "Follow-up #": k, **who}
            rows.append({**cells, "View Position": ("PA", "AP")[k], "OriginalImage[Width": 16, "Height]": 20})
            draw(folder / f"images_{1 + patient // 10:03d}" / "images" / name, patient * 2 + k)
    write_table(folder / "Data_Entry_2017_v2020.csv", rows)
    names = [str(row["Image Index"]) for row in rows]
    (folder / "train_val_list.txt").write_text("\n".join(names[:36]))
    (folder / "test_list.txt").write_text("\n".join(names[36:]))
    return {"folder": folder}


def padchest(folder: Path) -> dict[str, object]:
    """PadChest with 16-bit PNGs in numbered folders, a lateral, an unusable and an unlabelled row."""
    cells = ("['normal']", "['COPD signs', ' cardiomegaly']", "['pleural effusion', '']", "['unchanged', 'COPD signs']")
    rows = []
    for patient in PATIENTS:
        for k, projection in enumerate(("PA", "L", "AP_horizontal")):
            image = f"2168401113669640{patient:02d}{k}_00-163-0{k}8.png"
            labels = cells[(patient + k) % 4]
            if patient == 9:
                labels = "['normal', 'suboptimal study']" if k == 0 else "nan"
            where = {"ImageID": image, "ImageDir": patient % 2, "StudyDate_DICOM": 20140915}
            ids = {"StudyID": f"20536{patient:02d}{k // 2}", "PatientID": f"8398{patient:02d}", "PatientBirth": 1950.0}
            view = {"PatientSex_DICOM": "F", "Projection": projection}
            method = {"MethodLabel": "Physician" if patient % 2 else "RNN_model", "Labels": labels}
            rows.append({**where, **ids, **view, **method, "labelCUIS": "['C0034069'\n 'C0742362']"})
            draw(folder / str(patient % 2) / image, patient * 3 + k, bits=16)
    write_table(folder / "PADCHEST_chest_x_ray_images_labels_160K_01.02.19.csv", rows)
    return {"folder": folder, "min_images": 2}

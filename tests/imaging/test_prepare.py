from __future__ import annotations

import csv
import os
from dataclasses import dataclass, replace
from pathlib import Path

import nibabel as nib
import numpy as np
import pytest
from PIL import Image as Picture

from medvl_core.study import Image, Report, Shared
from medvl_imaging.embedding import FrozenEmbedding, image_store, prepare_images
from medvl_imaging.images import ImageRows
from medvl_imaging.prepare import PrepareStudy, source_version, write_tables
from medvl_imaging.radiograph import SimulatedRadiograph
from medvl_imaging.readers import FileSource, read_radiograph, read_volume
from medvl_imaging.scale import Journal, ScaleReport, map_studies
from tests.conftest import ArraySource, synthetic_studies
from tests.imaging.test_embedding import CT, CXR, Reports, towers  # noqa: F401  (a fixture)

AFFINE = np.diag([-2.0, -2.0, 2.5, 1.0])


class Raw:
    """A CT that is no plain file."""

    def __init__(self, seed=0):
        self.seed = seed

    def load(self):
        array = np.random.default_rng(self.seed).normal(-300, 400, (12, 11, 10)).round()
        return Image(np.clip(array, -1000, 1500).astype(np.float32), AFFINE)

    def fingerprint(self):
        return f"raw-{self.seed}"


@dataclass(frozen=True)
class Scaled(Raw):
    """A file whose HU come from a table beside it, as in CT-RATE v1."""

    path: Path
    slope: float

    def load(self):
        return replace(Raw(0).load(), array=np.load(self.path) * self.slope)

    def fingerprint(self):
        if not self.path.is_file():
            raise FileNotFoundError(f"{self.path}: no such file")
        return f"{self.path.stat().st_size} {self.slope}"


def study_of(source, **options):
    shared = Shared(source)
    return replace(synthetic_studies(1)[0], images={"ct": shared, "cxr": SimulatedRadiograph(shared, **options)})


@pytest.fixture
def ct_file(tmp_path):
    nib.save(nib.Nifti1Image(Raw().load().array.astype(np.int16), AFFINE), tmp_path / "scan.nii.gz")
    return tmp_path / "scan.nii.gz"


def test_files_of_a_study_and_its_row(tmp_path):
    study = study_of(Raw())
    row = PrepareStudy(tmp_path, write_ct=True)(study)
    assert row == {"ct": "ct/study0.nii.gz", "cxr": "cxr/study0.png"}
    volume = read_volume(tmp_path / row["ct"])
    np.testing.assert_array_equal(volume.array, Raw().load().array)
    np.testing.assert_allclose(volume.affine, AFFINE)
    film, expected = read_radiograph(tmp_path / row["cxr"]).array, study.images["cxr"].load().array
    assert film.max() == 65535
    scaled = film / 65535 * np.ptp(expected) + expected.min()
    np.testing.assert_allclose(scaled, expected, atol=np.ptp(expected) / 65535)


def test_same_study_gives_the_same_bytes(tmp_path):
    for name in ("a", "b"):
        PrepareStudy(tmp_path / name, write_ct=True)(study_of(Raw()))
    for part in ("ct/study0.nii.gz", "cxr/study0.png"):
        assert (tmp_path / "a" / part).read_bytes() == (tmp_path / "b" / part).read_bytes()
    assert sorted(p.name for p in (tmp_path / "a").rglob("*.*")) == ["study0.nii.gz", "study0.png"]


def test_plain_files_are_named_where_they_are(tmp_path, ct_file):
    Picture.fromarray(np.arange(400, dtype=np.uint8).reshape(20, 20)).save(tmp_path / "film.png")
    images = {"ct": FileSource(ct_file, "volume"), "cxr": FileSource(tmp_path / "film.png", "radiograph")}
    row = PrepareStudy(tmp_path / "out", write_ct=True)(replace(synthetic_studies(1)[0], images=images))
    assert (row["ct"], row["cxr"]) == (str(ct_file), str(tmp_path / "film.png"))
    assert not (tmp_path / "out").exists()


def test_odd_ids_become_distinct_file_names(tmp_path):
    rows = [PrepareStudy(tmp_path)(replace(study_of(Raw()), study_id=name)) for name in ("a/b", "a b", "../a")]
    assert len({row["cxr"] for row in rows}) == 3
    assert all((tmp_path / row["cxr"]).parent == tmp_path / "cxr" for row in rows)


def test_what_training_needs_is_found_by_training(tmp_path, towers):  # noqa: F811
    studies = synthetic_studies(4)
    rows = [ImageRows(m, spec, image_store(tmp_path, m, spec)) for m, spec in (("ct", CT), ("cxr", CXR))]
    frozen = [
        FrozenEmbedding("ct", towers["ct"], rows[0], tmp_path),
        FrozenEmbedding("report", towers["report"], Reports(), tmp_path),
    ]
    function = PrepareStudy(tmp_path / "out", False, rows, frozen, Reports())
    for study in studies:
        function(study)
    seen = towers["ct"].encoder.rows_seen
    before = {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")}
    prepare_images(studies, rows)
    for embedding in frozen:
        embedding.prepare(studies)
    assert {path: path.stat().st_mtime_ns for path in tmp_path.rglob("*.safetensors")} == before
    assert towers["ct"].encoder.rows_seen == seen == 4
    np.testing.assert_allclose(np.linalg.norm(frozen[0](studies[2])), 1, rtol=1e-6)


def test_study_without_text_or_with_a_flat_picture_is_refused(tmp_path):
    class Flat(Raw):
        def load(self):
            return Image(np.full((4, 4, 4), -500, np.float32), AFFINE)

    class Texts:
        def texts(self, studies, rng):
            raise ValueError("study0: no text in report sections")

    with pytest.raises(ValueError, match="study0: no text"):
        PrepareStudy(tmp_path, text=Texts())(study_of(Raw()))
    with pytest.raises(ValueError, match="study0: the simulated radiograph is -500 everywhere"):
        PrepareStudy(tmp_path)(study_of(Flat(99)))


def test_version_follows_files_and_options(ct_file):
    study = study_of(FileSource(ct_file, "volume"))
    before = source_version(study)
    assert source_version(study_of(FileSource(ct_file, "volume"))) == before
    assert source_version(study_of(FileSource(ct_file, "volume"), size=(8, 8))) != before
    os.utime(ct_file, (1, 1))
    assert source_version(study) != before
    assert source_version(study_of(Raw(1))) != source_version(study_of(Raw(2)))
    gone = study_of(FileSource(ct_file.with_name("gone.nii.gz"), "volume"))
    assert len(source_version(gone)) == 64
    folder = study_of(FileSource(ct_file.parent, "volume"))
    one = source_version(folder)
    (ct_file.parent / "slice.dcm").write_bytes(b"x")
    assert source_version(folder) != one


def test_task_follows_what_is_made(tmp_path):
    rows = ImageRows("ct", CT, image_store(tmp_path, "ct", CT))
    tasks = [PrepareStudy(tmp_path), PrepareStudy(tmp_path, True), PrepareStudy(tmp_path, images=[rows])]
    assert len({function.task() for function in tasks}) == 3


def test_tables_hold_good_rows_and_reasons(tmp_path):
    studies = {"train": synthetic_studies(3), "test": synthetic_studies(4)[3:]}
    function = PrepareStudy(tmp_path)
    records = {s.study_id: function(s) for part in studies.values() for s in part if s.study_id != "study1"}
    table, failed = write_tables(tmp_path, studies, ScaleReport(records, {"study1": 'a "bad", file'}, 4))
    with table.open(newline="") as file:
        rows = list(csv.DictReader(file))
    assert [(row["study"], row["split"], row["a"], row["b"]) for row in rows] == [
        ("study0", "train", "0", "1"),
        ("study2", "train", "0", "0"),
        ("study3", "test", "1", "1"),
    ]
    with failed.open(newline="") as file:
        assert list(csv.reader(file)) == [["study", "reason"], ["study1", 'a "bad", file']]


def test_unknown_labels_are_blank_in_the_table(tmp_path):
    study = replace(study_of(Raw()), labels={"a": float("nan"), "b": 1.0}, report=None)
    record = PrepareStudy(tmp_path)(study)
    table, _ = write_tables(tmp_path, {"train": [study]}, ScaleReport({study.study_id: record}, {}, 1))
    assert table.read_text().splitlines()[1].endswith(",,1")


def test_sources_of_memory_are_versioned_by_content():
    one = replace(synthetic_studies(1)[0], images={"ct": ArraySource(1, (4, 4, 4))})
    other = replace(one, images={"ct": ArraySource(2, (4, 4, 4))})
    assert source_version(one) != source_version(other)


def prepared(tmp_path, study):
    function = PrepareStudy(tmp_path)
    report = map_studies(function, [study], Journal(tmp_path / "journal", ""), workers=0, version=source_version)
    with write_tables(tmp_path, {"train": [study]}, report)[0].open(newline="") as file:
        return report, list(csv.DictReader(file))


def test_second_pass_takes_labels_report_and_ids_as_they_are_now(tmp_path):
    study = study_of(Raw())
    assert prepared(tmp_path, study)[0].computed == 1
    new = {"subject_id": "p7", "scan_id": "c7", "report": Report("New."), "labels": {"a": 1.0, "c": 0.0}}
    report, rows = prepared(tmp_path, replace(study, **new))
    assert report.computed == 0
    expected = {"study": "study0", "subject": "p7", "scan": "c7", "split": "train", "ct": "", "cxr": "cxr/study0.png"}
    assert rows == [{**expected, "findings": "New.", "impression": "", "a": "1", "c": "0"}]


def test_corrected_cell_beside_an_unchanged_file_makes_the_radiograph_anew(tmp_path):
    np.save(tmp_path / "raw.npy", Raw().load().array)
    study = study_of(Scaled(tmp_path / "raw.npy", 1.0), size=(16, 16), mode="beer_lambert")
    prepared(tmp_path, study)
    before = (tmp_path / "cxr" / "study0.png").read_bytes()
    report, _ = prepared(tmp_path, study)
    assert report.computed == 0
    corrected = study_of(Scaled(tmp_path / "raw.npy", 0.5), size=(16, 16), mode="beer_lambert")
    report, _ = prepared(tmp_path, corrected)
    assert report.computed == 1
    assert (tmp_path / "cxr" / "study0.png").read_bytes() != before


def test_source_without_a_fingerprint_is_a_bad_study_and_stops_nothing(tmp_path):
    report, rows = prepared(tmp_path, study_of(Scaled(tmp_path / "gone.npy", 1.0)))
    assert list(report.failed) == ["study0"]
    assert "gone.npy" in report.failed["study0"]
    assert rows == []


@pytest.mark.parametrize("name", ["RADIOGRAPH_VERSION", "READERS_VERSION"])
def test_version_follows_simulation_and_readers(name, ct_file, monkeypatch):
    study = study_of(FileSource(ct_file, "volume"))
    before = source_version(study)
    monkeypatch.setattr(f"medvl_imaging.prepare.{name}", -1)
    assert source_version(study) != before


def test_metal_above_int16_stays_metal(tmp_path):
    class Metal(Raw):
        def load(self):
            image = super().load()
            image.array[5, 5, 5] = 40_000
            return image

    row = PrepareStudy(tmp_path, write_ct=True)(study_of(Metal(3)))
    assert read_volume(tmp_path / row["ct"]).array[5, 5, 5] == 32_767


def test_stores_of_a_finished_preparation_are_a_file_each(tmp_path, towers):  # noqa: F811
    studies = synthetic_studies(4)
    rows = ImageRows("ct", CT, image_store(tmp_path, "ct", CT))
    frozen = FrozenEmbedding("ct", towers["ct"], rows, tmp_path)
    function = PrepareStudy(tmp_path / "out", False, [rows], [frozen])
    for study in studies:
        function(study)
    kept = [rows.store.get(rows.key(study)).copy() for study in studies]
    assert len(list(tmp_path.rglob("*.safetensors"))) == 8
    function.finish()
    assert len(list(tmp_path.rglob("*.safetensors"))) == 2
    np.testing.assert_array_equal([rows.store.get(rows.key(study)) for study in studies], kept)
    assert all(frozen(study).isfinite().all() for study in studies)

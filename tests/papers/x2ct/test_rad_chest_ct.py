from __future__ import annotations

import math
import shutil
import zipfile

import nibabel as nib
import numpy as np
import pytest
from nibabel.orientations import aff2axcodes

from medvl_imaging.radiograph import simulate_radiograph
from medvl_imaging.readers import ImageError
from medvl_phantom import PhantomCohort
from medvl_x2ct.rad_chest_ct import RadChestDataset
from tests.papers.x2ct.x2ct_layouts import edit, write_rad_chest
from tests.refusals import refused


@pytest.fixture(scope="module")
def phantoms():
    return PhantomCohort(4, (32, 32, 32), shares=(1, 0, 0), follow_up=0, second_reconstruction=0).studies("train")


@pytest.fixture(scope="module")
def original(tmp_path_factory, phantoms):
    folder = tmp_path_factory.mktemp("rad_chest")
    write_rad_chest(folder, phantoms)
    return folder


@pytest.fixture
def folder(original, tmp_path):
    """A copy that a test may damage."""
    shutil.copytree(original, tmp_path, dirs_exist_ok=True)
    return tmp_path


def test_splits_and_ids_follow_the_names(folder):
    data = RadChestDataset(folder)
    found = {split: [s.study_id for s in data.studies(split)] for split in ("train", "validation", "test")}
    assert found == {"train": ["trn00001", "trn00002"], "validation": ["val00003"], "test": ["tst00004"]}
    study = data.studies("test")[0]
    assert (study.subject_id, study.scan_id, study.report) == ("mrn3", "notetst00004", None)
    external = RadChestDataset(folder, split="test")
    assert len(external.studies("test")) == 4
    assert external.studies("train") == []


def test_anatomy_lies_where_it_should(folder, phantoms):
    """Liver to the patient's right, heart to the left, spine to the back, lungs above the liver."""
    data = RadChestDataset(folder, split="test")
    for study, phantom in zip(data.studies("test"), phantoms, strict=True):
        image = study.images["ct"].load()
        assert "".join(aff2axcodes(image.affine)) == "LPI"
        np.testing.assert_allclose(np.linalg.norm(image.affine[:3, :3], axis=0), 0.8)
        ras = nib.as_closest_canonical(nib.Nifti1Image(image.array, image.affine)).get_fdata()
        regions = phantom.regions.load()
        truth = nib.as_closest_canonical(nib.Nifti1Image(regions.array, regions.affine)).get_fdata()
        organ = {name: number for number, name in phantom.region_names.items()}
        place = {name: np.argwhere(truth == organ[name]).mean(0) for name in organ if (truth == organ[name]).any()}
        middle = (np.array(ras.shape) - 1) / 2
        assert place["liver"][0] > middle[0]
        assert place["lung_upper_lobe_right"][2] > place["liver"][2]
        spine = np.mean([p for name, p in place.items() if name.startswith("vertebrae")], axis=0)
        assert spine[1] < middle[1]
        # where the truth has an organ, the loaded volume has its density
        assert ras[truth == organ["liver"]].mean() > 0
        lungs = np.isin(truth, [n for name, n in organ.items() if name.startswith("lung_")])
        assert ras[lungs].mean() < -500
        spines = np.isin(truth, [n for name, n in organ.items() if name.startswith("vertebrae")])
        assert ras[spines].mean() > ras[truth == organ["liver"]].mean()


def test_radiograph_equals_that_of_the_same_scan_in_other_storage(folder, phantoms):
    study = RadChestDataset(folder, split="test", simulate_cxr={"size": (48, 48)}).studies("test")[0]
    original = phantoms[0].images["ct"].load()
    spacing = np.diag([*(0.8 * np.sign(np.diag(original.affine)[:3])), 1.0])  # the same spacing in the same directions
    expected = simulate_radiograph(np.rint(original.array), spacing, size=(48, 48))
    np.testing.assert_allclose(study.images["cxr"].load().array, expected, atol=0.01)


def test_labels_are_found_by_prefix_and_merged_over_places(folder):
    def change(rows):
        rows[0].update({"nodulegr1cm*heart": 1, "calcification*heart": 1, "stent*other_location": 1})
        rows[1].update({"nodule*right_lower": 1, "opacity*heart": "", "hernia*heart": ""})
        rows[1].update({"hernia*right_lower": 1})

    edit(folder / "imgtrain_Abnormality_and_Location_Labels.csv", change)
    one, two = RadChestDataset(folder).studies("train")
    assert one.labels["Lung nodule"] == 0  # a prefix, not a part of the name
    assert one.labels["Arterial or coronary wall calcification"] == 1
    assert one.labels["Medical material"] == 1
    assert two.labels["Lung nodule"] == 1
    assert math.isnan(two.labels["Lung opacity"])
    assert two.labels["Hiatal hernia"] == 1


@pytest.mark.parametrize(("name", "n"), [("rad_chest_16", 16), ("rad_chest_15", 15), ("rad_chest_9", 9)])
def test_label_sets(folder, name, n):
    data = RadChestDataset(folder, label_set=name)
    assert len(data.label_names) == n
    assert ("Medical material" in data.label_names) == (n == 16)
    assert tuple(data.studies("train")[0].labels) == data.label_names


def test_own_label_set_and_one_that_does_not_fit(folder, tmp_path):
    own = tmp_path / "own.json"
    own.write_text('{"Metal": {"rad_chest_ct": ["hardware"]}}')
    assert RadChestDataset(folder, label_set=own).label_names == ("Metal",)
    with pytest.raises(ValueError, match=r"Arterial wall calcification, .* cannot be made from rad_chest_ct"):
        RadChestDataset(folder, label_set="ct_rate_18")
    own.write_text("[1]")
    with pytest.raises(ValueError, match=r"own\.json: no label set"):
        RadChestDataset(folder, label_set=own)


def test_raw_values_and_a_second_slope_are_refused(folder):
    path = folder / "trn00001.npz"
    with np.load(path) as arrays:
        stored = arrays["ct"]
    for wrong in (stored + 1024, stored - 1024, stored.astype(np.float32) / 1000):
        np.savez(path, ct=wrong)
        with pytest.raises(ImageError, match=r"trn00001\.npz: values .* are not HU"):
            RadChestDataset(folder).studies("train")[0].images["ct"].load()


def damaged(path):
    raw = bytearray(path.read_bytes())
    raw[len(raw) // 2] ^= 0xFF
    path.write_bytes(bytes(raw))


FILE_FAULTS = {
    "flipped byte": (damaged, "damaged array"),
    "cut": (lambda p: p.write_bytes(p.read_bytes()[: p.stat().st_size // 2]), "damaged npz file"),
    "other name": (lambda p: np.savez(p, volume=np.zeros((4, 4, 4))), "holds no array called 'ct'"),
    "objects": (lambda p: np.savez(p, ct=np.array([{}], object)), "damaged array"),
    "two dimensions": (lambda p: np.savez(p, ct=np.zeros((4, 4))), "is no volume of slices, rows and columns"),
    "not finite": (lambda p: np.savez(p, ct=np.full((8, 8, 8), np.nan)), "are not HU"),
}


@pytest.mark.parametrize("fault", FILE_FAULTS)
def test_damaged_files_are_named(folder, fault):
    damage, message = FILE_FAULTS[fault]
    damage(folder / "trn00001.npz")
    study = RadChestDataset(folder).studies("train")[0]
    with pytest.raises(ImageError, match=message) as caught:
        study.images["ct"].load()
    assert str(caught.value).startswith(str(folder / "trn00001.npz"))


def test_huge_declared_array_is_refused_before_it_is_read(folder, monkeypatch):
    monkeypatch.setattr("medvl_imaging.readers.checks.MAX_BYTES", 1000)
    with pytest.raises(ImageError, match="sizes are at least 1"):
        RadChestDataset(folder).studies("train")[0].images["ct"].load()


def test_fingerprint_follows_content_not_compression(folder):
    path = folder / "trn00001.npz"
    before = RadChestDataset(folder).studies("train")[0].images["ct"].fingerprint()
    with np.load(path) as arrays:
        stored = arrays["ct"]
    np.savez(path, ct=stored)
    with zipfile.ZipFile(path) as archive:
        assert archive.infolist()[0].compress_type == zipfile.ZIP_STORED
    assert RadChestDataset(folder).studies("train")[0].images["ct"].fingerprint() == before
    np.savez(path, ct=stored + 1)
    assert RadChestDataset(folder).studies("train")[0].images["ct"].fingerprint() != before


METADATA = "CT_Scan_Metadata_Complete_35747.csv"
LABELS = "imgtrain_Abnormality_and_Location_Labels.csv"
TABLE_FAULTS = {
    "twice": (METADATA, lambda r: [*r, r[0]], r"row 7: VolumeAcc_DEID 'trn00001' was already in row 2"),
    "odd name": (
        METADATA,
        lambda r: r[0].update(VolumeAcc_DEID="abc1"),
        "row 2: VolumeAcc_DEID 'abc1' starts with none",
    ),
    "patient in two": (
        METADATA,
        lambda r: r[3].update(MRN_DEID="0"),
        "row 5: its patient is in test, but in train in row 2",
    ),
    "no patient": (METADATA, lambda r: r[0].update(MRN_DEID=""), "row 2: MRN_DEID is empty"),
    "no labels": (LABELS, lambda r: r[1:], "row 2: NoteAcc_DEID 'notetrn00001' has no row"),
    "label 3": (LABELS, lambda r: r[1].update({"nodule*heart": "3"}), r"row 3: nodule\*heart is '3'; labels are 1, 0"),
    "label row twice": (
        LABELS,
        lambda r: [*r, r[0]],
        "row 5: NoteAcc_DEID 'notetrn00001' was already in an earlier row",
    ),
    "no column": (
        LABELS,
        lambda r: [{k: v for k, v in x.items() if "hernia" not in k} for x in r],
        r"no column 'hernia\*",
    ),
}


@pytest.mark.parametrize(("name", "change", "message"), TABLE_FAULTS.values(), ids=TABLE_FAULTS)
def test_table_faults_are_named_with_file_and_row(folder, name, change, message):
    edit(folder / name, change)
    with refused(folder, message):
        RadChestDataset(folder)


@pytest.mark.parametrize("spacing", ["", "[0.8, 0.8, 1.5]", "thin", "[0.8, 0.8]"])
def test_spacing_in_doubt_is_refused(folder, spacing):
    edit(folder / METADATA, lambda rows: rows[0].update(final_spacing=spacing))
    with pytest.raises(ImageError, match=r"row 2: final_spacing is .*one number or three equal ones"):
        RadChestDataset(folder).studies("train")[0].images["ct"].load()


def test_missing_tables_and_volumes_are_named(folder, tmp_path):
    for path in folder.glob("*.npz"):
        path.unlink()
    with pytest.raises(FileNotFoundError, match="no npz file of any row"):
        RadChestDataset(folder)
    (folder / METADATA).unlink()
    with pytest.raises(FileNotFoundError, match=r"0 tables are named CT_Scan_Metadata_\*\.csv"):
        RadChestDataset(folder)
    (tmp_path / "empty").mkdir()
    with pytest.raises(FileNotFoundError, match="no table named img"):
        RadChestDataset(tmp_path / "empty")


def test_options_out_of_range_and_exclusion(folder, tmp_path):
    with pytest.raises(ValueError, match="split is 'x'; give 'official' or 'test'"):
        RadChestDataset(folder, split="x")
    with pytest.raises(ValueError, match="no split 'dev'"):
        RadChestDataset(folder).studies("dev")
    (tmp_path / "bad.csv").write_text("study,reason\ntrn00001,x\n")
    assert [s.study_id for s in RadChestDataset(folder, exclude=tmp_path / "bad.csv").studies("train")] == ["trn00002"]

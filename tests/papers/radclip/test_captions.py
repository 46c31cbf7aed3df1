from __future__ import annotations

import numpy as np
import pytest

from medvl_core.study import Study
from medvl_radclip.captions import RegionModalityCondition, caption, modality_name, parse_name, region_name


def study(labels=None, **metadata):
    return Study(study_id="s1", subject_id="p1", scan_id="s1", images={}, labels=labels or {}, metadata=metadata)


def text(source, one):
    (found,) = source.texts([one], np.random.default_rng(0))
    return found


def test_both_forms_of_the_paper_and_of_the_code():
    one = study(region="abdomen", modality="CT", condition="prostate lesion ")
    assert text(RegionModalityCondition(), one) == "Abdomen CT, prostate lesion"
    assert text(RegionModalityCondition("with"), one) == "Abdomen CT with prostate lesion"
    assert text(RegionModalityCondition(), study(region="Spine", modality="MR")) == "Spine MRI"


@pytest.mark.parametrize("cell", ["", "0", 0.0, "nan", "none", " "])
def test_no_condition_leaves_no_comma_and_no_blank(cell):
    assert text(RegionModalityCondition(), study(region="Hand", modality="CT", condition=cell)) == "Hand CT"


def test_tables_with_other_columns():
    source = RegionModalityCondition(columns=("region", "image_type", "Additional_Info"))
    assert text(source, study(region="Ankle Foot", image_type="mr", Additional_Info="Plantar_plate_tear")) == (
        "Ankle-Foot MRI, Plantar plate tear"
    )


def test_labels_name_the_condition_where_metadata_do_not():
    source = RegionModalityCondition(region="chest", modality="X-ray", normal="normal")
    assert text(source, study({"edema": 1.0, "mass": 0.0, "pneumonia": 1.0})) == "Chest X-Ray, edema and pneumonia"
    assert text(source, study({"edema": 0.0, "mass": float("nan")})) == "Chest X-Ray, normal"
    assert text(source, study({"edema": 1.0}, condition="none")) == "Chest X-Ray"


def test_missing_words_are_named():
    with pytest.raises(ValueError, match="s1: metadata have region 'Chest' and modality '' in"):
        text(RegionModalityCondition(), study(region="Chest"))


@pytest.mark.parametrize(
    ("spelling", "name"),
    [
        ("x-ray", "X-Ray"), ("X ray", "X-Ray"), ("XRAY", "X-Ray"), ("DX", "X-Ray"), ("ct", "CT"), ("MR", "MRI"),
        ("mri", "MRI"), ("PT", "PET"), ("US", "Ultrasound"), ("Fundus", "Fundus"),
    ],
)  # fmt: skip
def test_modalities_have_one_spelling(spelling, name):
    assert modality_name(spelling) == name


def test_regions_have_hyphens():
    assert [region_name(r) for r in ("ANKLE FOOT", "ankle-foot", "Ankle_Foot", " brain ")] == ["Ankle-Foot"] * 3 + [
        "Brain"
    ]


def test_folder_names():
    assert parse_name("Abdomen CT prostate lesion ") == ("Abdomen", "CT", "prostate lesion")
    assert parse_name("Ankle-Foot MR") == ("Ankle-Foot", "MRI", "")
    for name in ("Ankle Foot MRI", "Abdomen"):
        with pytest.raises(ValueError, match=f"'{name}' does not start with a region and a modality"):
            parse_name(name)


def test_wrong_options_are_refused():
    with pytest.raises(ValueError, match="caption form is 'dash'; choose from comma, with"):
        RegionModalityCondition("dash")
    with pytest.raises(ValueError, match="caption form is 'dash'; choose from comma, with"):
        caption("Chest", "CT", form="dash")
    with pytest.raises(ValueError, match="name those of region, modality and condition"):
        RegionModalityCondition(columns=("region",))

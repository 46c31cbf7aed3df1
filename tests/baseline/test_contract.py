from __future__ import annotations

import json
from pathlib import Path

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from medvl_core.build import build_evaluator
from medvl_core.testing import contract_cases

COHORT: dict[str, object] = {"label_columns": ["nodule"], "simulate_cxr": {"size": (16, 16)}}
FOLDER: dict[str, Path] = {}


@pytest.fixture(scope="module", autouse=True)
def _cohort(tmp_path_factory):
    """Ten subjects with a small CT each, for the folder dataset."""
    folder = tmp_path_factory.mktemp("cohort")
    rng = np.random.default_rng(0)
    rows = []
    for index in range(10):
        array = rng.normal(-300, 400, (12, 11, 10)).astype(np.int16)
        nib.save(nib.Nifti1Image(array, np.diag([-3.0, -3.0, 4.0, 1.0])), folder / f"{index}.nii.gz")
        rows.append(
            {"study": f"s{index}", "subject": f"p{index}", "ct": f"{index}.nii.gz", "report": "Clear.", "nodule": 0}
        )
    pd.DataFrame(rows).to_csv(folder / "studies.csv", index=False)
    COHORT["table"] = folder / "studies.csv"
    (folder / "labels.json").write_text(json.dumps({"Nodule": ["Lung nodule"]}))
    FOLDER["path"] = folder


def _zero_shot():
    return build_evaluator("baseline/zero_shot", classes=("Nodule", "Hernia"), image="cxr")


def _efficientnet():
    pytest.importorskip("efficientnet_lite_pytorch", reason="the extra 'pretrained' is not installed")
    return {"size": (32, 32), "weights": "random"}


OPTIONS = {
    "encoder/efficientnet_lite": _efficientnet,
    "dataset/folder": lambda: COHORT,
    "evaluator/external": lambda: {
        "evaluator": _zero_shot(),
        "columns": ("Lung nodule", "Hernia"),
        "label_map": FOLDER["path"] / "labels.json",
    },
    "evaluator/subgroups": lambda: {"evaluator": _zero_shot(), "column": "sex"},
}


@pytest.mark.parametrize("case", contract_cases("medvl_baseline.plugin", options=OPTIONS))
def test_contract(case):
    case()

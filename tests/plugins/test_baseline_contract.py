from __future__ import annotations

import nibabel as nib
import numpy as np
import pandas as pd
import pytest

from medvl_core.testing import contract_cases

COHORT: dict[str, object] = {"label_columns": ["nodule"], "simulate_cxr": {"size": (16, 16)}}


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


@pytest.mark.parametrize("case", contract_cases("medvl_baseline.plugin", options={"dataset/folder": lambda: COHORT}))
def test_contract(case):
    case()

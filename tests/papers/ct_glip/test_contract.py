from __future__ import annotations

import nibabel as nib
import pytest
import torch

from medvl_core.engine.files import safe_name
from medvl_core.testing import contract_cases
from medvl_phantom import ORGANS, PhantomCohort

EXTRAS = {
    "scan": lambda pairs: torch.arange(pairs) // 4,
    "anatomy_group": torch.arange,
    "logits": lambda pairs: (
        torch.randn(2, 5, 4, 4, 4, generator=torch.Generator().manual_seed(0)).requires_grad_(),
        torch.randn(2, 5, 2, 2, 2, generator=torch.Generator().manual_seed(1)).requires_grad_(),
    ),
    "regions": lambda pairs: torch.randint(0, 5, (2, 4, 4, 4), generator=torch.Generator().manual_seed(2)),
}
COHORT = PhantomCohort(8, (32, 32, 32), follow_up=0.0, second_reconstruction=0.0)
MASKS = {"dataset": COHORT, "regions": ["liver", "spleen", "aorta"], "names": ORGANS}


@pytest.fixture(scope="module", autouse=True)
def _masks(tmp_path_factory):
    """A label map per phantom, for the dataset with masks."""
    folder = tmp_path_factory.mktemp("masks")
    for study in (study for split in ("train", "validation", "test") for study in COHORT.studies(split)):
        image = study.regions.load()
        nib.save(nib.Nifti1Image(image.array, image.affine), folder / f"{safe_name(study.study_id)}.nii.gz")
    MASKS["masks"] = folder


@pytest.mark.parametrize(
    "case", contract_cases("medvl_ct_glip.plugin", extras=EXTRAS, options={"dataset/masked": lambda: MASKS})
)
def test_contract(case):
    case()

from __future__ import annotations

import pytest

from medvl_core.testing import contract_cases
from medvl_phantom import PhantomCohort, write_ct_rate_layout
from tests.papers.x2ct.x2ct_layouts import write_mimic, write_rad_chest

FOLDERS: dict[str, dict[str, object]] = {"ct_rate": {}, "rad_chest_ct": {}, "mimic_ct": {"shares": (0.5, 0.0, 0.5)}}


@pytest.fixture(scope="module", autouse=True)
def _data(tmp_path_factory):
    """Each dataset in miniature."""
    folders = {name: tmp_path_factory.mktemp(name) for name in FOLDERS}
    cohort = PhantomCohort(4, (32, 32, 32), shares=(1, 0, 0), follow_up=0, second_reconstruction=0)
    write_ct_rate_layout(PhantomCohort(6, (16, 16, 16)), folders["ct_rate"], "v1")
    write_rad_chest(folders["rad_chest_ct"], cohort.studies("train"))
    write_mimic(folders["mimic_ct"])
    for name, folder in folders.items():
        FOLDERS[name]["folder"] = folder


OPTIONS = {f"dataset/{name}": (lambda options=options: options) for name, options in FOLDERS.items()}


@pytest.mark.parametrize("case", contract_cases("medvl_x2ct.plugin", options=OPTIONS))
def test_contract(case):
    case()

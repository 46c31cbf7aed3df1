"""Import paths of 0.1 work for one release, each with a warning that names the new one."""

from __future__ import annotations

import subprocess
import sys
import warnings
from importlib import import_module

import pytest

from medvl_core.bundle.moved import MOVED


@pytest.mark.parametrize("old", MOVED)
def test_every_old_module_has_its_new_ones_and_is_gone(old):
    sys.modules.pop(old, None)
    with pytest.warns(DeprecationWarning, match=f"{old} is now {MOVED[old][0]}"):
        module = import_module(old)
    first = import_module(MOVED[old][0])
    for name in getattr(first, "__all__", ()):
        assert getattr(module, name) is getattr(first, name)


def test_names_that_went_apart_are_found_under_the_old_path():
    code = (
        "from medvl_core.data import ImageRows, StudyDataset; from medvl_core.metrics.bootstrap import bootstrap_ci; "
        "from medvl_baseline.phantom.findings import FINDINGS; import medvl_core.bundle as b; b.check_overrides; "
        "print(ImageRows.__module__, StudyDataset.__module__, bootstrap_ci.__module__)"
    )
    done = subprocess.run(
        [sys.executable, "-W", "always::DeprecationWarning", "-c", code], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == [
        "medvl_imaging.images",
        "medvl_core.engine.loading",
        "medvl_evaluation.metrics.bootstrap",
    ]
    assert "medvl_core.bundle.check_overrides is now medvl_core.bundle.startup.check_overrides" in done.stderr


def test_what_is_nowhere_is_said_to_be_missing():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        module = import_module("medvl_core.store")
    with pytest.raises(AttributeError, match=r"'medvl_core.store' has no attribute 'Nothing'; it is now medvl_imaging"):
        module.Nothing  # noqa: B018
    with pytest.raises(ModuleNotFoundError, match="never_there"):
        import_module("medvl_core.never_there")

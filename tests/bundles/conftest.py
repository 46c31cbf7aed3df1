from __future__ import annotations

import json
from pathlib import Path

import pytest
from monai.bundle import ConfigWorkflow

from tests.bundles import running


class Trained:
    """A bundle trained in miniature in this process, and a way to run it further."""

    def __init__(self, bundle, tiny=None):
        self.bundle = bundle
        self.tiny = json.loads((tiny or running.tiny(bundle)).read_text())

    def workflow(self, *configs, **overrides):
        files = [str(self.bundle / "configs" / name) for name in configs]
        kind = "inference" if configs[0] == "inference.json" else "train"
        known = json.loads(Path(files[0]).read_text())
        tiny = {key: value for key, value in self.tiny.items() if key.split("::")[0] in known}
        return ConfigWorkflow(
            config_file=files,
            meta_file=str(self.bundle / "configs" / "metadata.json"),
            logging_file=False,
            workflow_type=kind,
            bundle_root=str(self.bundle),
            **{**tiny, **overrides},
        )

    def run(self, *configs, **overrides):
        workflow = self.workflow(*configs, **overrides)
        workflow.initialize()
        workflow.run()
        workflow.finalize()
        return workflow


def trained_copy(folder, name="x2ct"):
    """A copy of the bundle, trained."""
    trained = Trained(running.copy_bundle(folder, name))
    with running.process_as_before():
        trained.run("train.json")
    return trained


@pytest.fixture
def _process_as_before():
    with running.process_as_before():
        yield


@pytest.fixture(scope="package")
def trained(tmp_path_factory):
    """The x2ct bundle, trained once for all tests of this folder."""
    return trained_copy(tmp_path_factory.mktemp("trained"))

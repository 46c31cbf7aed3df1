"""A stranger's component, and another one of ours, in every place of every bundle: by one override each, and no fork.

What cannot make sense is refused before anything is trained, in the line given here.
"""

from __future__ import annotations

import json
import sys
from importlib.metadata import EntryPoint, entry_points

import numpy as np
import pytest
from monai.bundle import ConfigWorkflow

from medvl_core.bundle.manifest import read_manifest
from medvl_core.bundle.startup import explain
from medvl_core.manager import GROUP, discover, using
from medvl_evaluation.preflight import PreflightError
from tests.bundles import running

pytestmark = [
    pytest.mark.filterwarnings("ignore::ResourceWarning", "ignore::DeprecationWarning", "ignore::UserWarning"),
    pytest.mark.usefixtures("_newcomer"),
]

POOLING = {"_target_": "medvl_core.build_pooling", "name": "baseline/mean"}
COMMON = {"track": False, "epochs": 1, "n_resamples": 10, "prepare_workers": 0, "augmentation": None}
FEW = {
    "x2ct": {**COMMON, "stage1::epochs": 1},
    "cxr_cml": {**COMMON, "image_pooling": {**POOLING, "encoder": "@image_encoder"}, "keep_checkpoints": 0},
    "radclip": {**COMMON, "stage1::epochs": 1},
    "ct_glip": {"track": False, "epochs": 1, "n_resamples": 10},
}
"""Bundle → what makes its tiny run shorter still."""

PLACES = {
    "x2ct": {
        "image encoder": ["image_encoder"],
        "volume encoder": ["ct_encoder"],
        "text encoder": ["text_encoder"],
        "pooling": ["image_pooling", "ct_pooling", "text_pooling"],
        "loss": ["loss::losses::cxr_report", "loss::losses::cxr_ct", "stage1::trainer::loss::losses::ct_report"],
        "text source": ["captions"],
        "evaluator": ["to_report", "stage1::trainer::metrics::ct_to_report"],
        "dataset": ["dataset"],
    },
    "cxr_cml": {
        "image encoder": ["image_encoder"],
        "text encoder": ["text_encoder"],
        "pooling": ["image_pooling", "text_pooling"],
        "loss": ["losses::clip", "losses::metric"],
        "text source": ["captions"],
        "evaluator": ["zero_shot"],
        "dataset": ["dataset"],
    },
    "radclip": {
        "image encoder": ["image_encoder"],
        "text encoder": ["text_encoder"],
        "pooling": ["image_pooling", "text_pooling", "slice_pooling"],
        "loss": ["loss::losses::volume_report", "stage1::trainer::loss::losses::image_report"],
        "evaluator": ["matching", "image_matching"],
    },
    "ct_glip": {
        "text encoder": ["text_encoder"],
        "pooling": ["text_pooling"],
        "loss": ["loss::losses::anatomy", "loss::losses::diagnosis"],
    },
}
"""Bundle → kind → config keys where a component of the kind is chosen.

What cannot make sense: in RadCLIP a data set without an ``image`` or a ``volume`` and a text source that reads reports,
which its data sets do not have; in CT-GLIP whatever does not know organs: an image encoder without segmentation, a
pooling of whole images, texts and numbers per study, a data set without masks.
"""

NEWCOMER = {
    "image encoder": "newcomer/film",
    "volume encoder": "newcomer/volume",
    "text encoder": "newcomer/words",
    "pooling": "newcomer/gate",
    "loss": "newcomer/pull",
    "text source": "newcomer/loud",
    "evaluator": "newcomer/knn",
    "dataset": "newcomer/cohort",
}
OURS = {
    "image encoder": "baseline/swin_t_2d",
    "volume encoder": "baseline/vit_3d",
    "pooling": "baseline/attention",
    "loss": "baseline/siglip",
    "text source": "baseline/report",
}
"""No text encoder: ours read vocabularies of different kinds, and another is refused when it is built. No evaluator:
ours need options of their own (classes, depths), which the configs that choose them give."""


@pytest.fixture
def _newcomer(monkeypatch):
    monkeypatch.syspath_prepend(str(running.ROOT / "tests" / "data" / "newcomer"))
    point = EntryPoint(name="newcomer", value="medvl_newcomer.plugin", group=GROUP)
    with using(discover([*entry_points(group=GROUP), point], strict=True)):
        yield
    for name in [name for name in sys.modules if name.startswith("medvl_newcomer")]:
        del sys.modules[name]


@pytest.fixture(scope="module")
def arrays(tmp_path_factory):
    """The newcomer's folder: twenty patients."""
    folder, rng = tmp_path_factory.mktemp("arrays"), np.random.default_rng(0)
    for i in range(20):
        np.save(folder / f"p{i:02d}_ct.npy", rng.normal(-200, 300, (24, 24, 16)).astype(np.float32))
        np.save(folder / f"p{i:02d}_cxr.npy", rng.integers(0, 255, (40, 56)).astype(np.float32))
    return folder


def train(tmp_path, name, **overrides):
    """Train a bundle in miniature in this process, by overrides alone."""
    bundle = running.copy_bundle(tmp_path, name)
    tiny = json.loads((running.ROOT / "tests" / "data" / f"tiny_{name}.json").read_text())
    workflow = ConfigWorkflow(
        config_file=str(bundle / "configs" / "train.json"),
        meta_file=str(bundle / "configs" / "metadata.json"),
        logging_file=False,
        workflow_type="train",
        bundle_root=str(bundle),
        **{**tiny, **FEW[name], **overrides},
    )
    with running.process_as_before():
        workflow.initialize()
        try:
            workflow.run()
        except RuntimeError as error:  # MONAI's
            raise error.__cause__ or error from None
        workflow.finalize()
    return bundle


def chosen(bundle, kinds, components):
    return {f"{key}::name": components[kind] for kind in kinds for key in PLACES[bundle].get(kind, [])}


@pytest.mark.parametrize("name", PLACES)
def test_a_newcomer_takes_every_place_at_once(name, tmp_path, arrays):
    overrides = chosen(name, NEWCOMER, NEWCOMER)
    if "dataset" in PLACES[name]:
        overrides["dataset_dir"] = str(arrays)
    bundle = train(tmp_path, name, **overrides)
    used = set(read_manifest(bundle / "models" / "manifest.json")["components"].values())
    towers = ("image encoder", "volume encoder", "text encoder", "pooling")
    assert {NEWCOMER[kind] for kind in towers if kind in PLACES[name]} <= used
    if "evaluator" in PLACES[name]:
        rows = json.loads((bundle / "eval" / "metrics.json").read_text())["rows"]
        assert "knn/agreement" in rows["trained"]


def test_a_text_source_without_reports_to_read_is_refused(tmp_path):
    with pytest.raises(RuntimeError) as caught:
        train(tmp_path, "radclip", **{"captions::name": "newcomer/loud"})
    assert "has no report" in explain(caught.value)
    assert not list(tmp_path.rglob("*.pt"))


def test_a_global_pooling_in_place_of_one_of_organs_is_refused(tmp_path):
    with pytest.raises(Exception, match=r"organ|region|Gate"):
        train(tmp_path, "ct_glip", **{"image_pooling::name": "newcomer/gate"})
    assert not list(tmp_path.rglob("*.pt"))


@pytest.mark.slow
@pytest.mark.parametrize("components", [NEWCOMER, OURS], ids=["newcomer", "ours"])
@pytest.mark.parametrize(("name", "kind"), [(name, kind) for name in PLACES for kind in PLACES[name]])
def test_one_override_changes_one_kind(name, kind, components, tmp_path, arrays):
    if kind not in components:
        pytest.skip("none of ours takes this place by its name alone")
    overrides = chosen(name, [kind], components)
    if kind == "dataset":
        overrides["dataset_dir"] = str(arrays)
    train(tmp_path, name, **overrides)


def test_what_a_loss_needs_comes_from_the_data_set_that_has_it(tmp_path, arrays):
    ages = {"loss::losses::cxr_ct::name": "newcomer/ages"}
    with pytest.raises(PreflightError) as caught:
        train(tmp_path / "without", "x2ct", **ages, **{"to_ct::offers::gallery": "mri"})
    told = str(caught.value)
    assert "student, training: loss cxr_ct (newcomer/ages) needs 'age'; the batch has" in told
    assert "student, validation, Retrieval: Retrieval cxr_to_mri needs ['mri'] in embeddings" in told
    assert not list((tmp_path / "without").rglob("*.pt"))
    train(tmp_path / "with", "x2ct", **ages, **{"dataset::name": "newcomer/cohort", "dataset_dir": str(arrays)})

from __future__ import annotations

import json
from pathlib import Path

import pytest

from medvl_tools.check import check_bundle

METADATA = {
    "schema": "https://example.org/meta_schema_20240725.json",
    "version": "0.1.0",
    "monai_version": "1.6.1",
    "pytorch_version": "2.13.0",
    "numpy_version": "2.4.6",
    "required_packages_version": {"medvl": "0.1.0"},
    "task": "t",
    "description": "d",
    "authors": "a",
    "copyright": "c",
    "network_data_format": {
        "inputs": {
            "image": {
                "type": "image",
                "format": "magnitude",
                "num_channels": 1,
                "spatial_shape": [96, 96],
                "dtype": "float32",
                "value_range": [],
            }
        },
        "outputs": {},
    },
    "medvl": {"components": {"encoder": ["baseline/resnet18_2d"], "pooling": ["baseline/mean"]}},
}
TRAIN = {
    "size": [96, 96],
    "encoder": {"_target_": "medvl_core.build_encoder", "name": "baseline/resnet18_2d", "size": "@size"},
    "pooling": {"_target_": "medvl_core.build_pooling", "name": "baseline/mean", "_disabled_": False},
    "inferer": {"_target_": "SimpleInferer"},
    "optimizer": {"_target_": "torch.optim.AdamW", "params": "$@encoder.parameters()"},
}


def write_bundle(folder: Path, train=TRAIN, metadata=METADATA) -> Path:
    for name in ("LICENSE", "docs/README.md", "docs/data_license.txt"):
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_text("text")
    (folder / "configs").mkdir()
    (folder / "configs/metadata.json").write_text(json.dumps(metadata))
    (folder / "configs/train.json").write_text(json.dumps(train))
    return folder


@pytest.fixture
def folder(tmp_path):
    return tmp_path / "monai_bundles" / "mine"


def problems(folder, **content):
    return [str(problem) for problem in check_bundle(write_bundle(folder, **content))]


def test_a_good_bundle_has_no_problems(folder):
    assert problems(folder) == []


def test_a_folder_that_is_not_there(tmp_path):
    with pytest.raises(NotADirectoryError, match="no such bundle folder"):
        check_bundle(tmp_path / "nothing")


@pytest.mark.parametrize(
    "name", ["LICENSE", "docs/README.md", "docs/data_license.txt", "configs/metadata.json", "configs/train.json"]
)
def test_missing_files(name, folder):
    write_bundle(folder)
    (folder / name).unlink()
    assert f"{name}: is missing" in map(str, check_bundle(folder))


@pytest.mark.parametrize("name", ["__init__.py", "../__init__.py", "scripts/__init__.py"])
def test_importable_folders(name, folder):
    write_bundle(folder)
    (folder / name).parent.mkdir(exist_ok=True)
    (folder / name).touch()
    (problem,) = check_bundle(folder)
    assert "MONAI scans importable packages" in problem.message


def with_node(key, node):
    return {**TRAIN, key: node}


@pytest.mark.parametrize(
    ("node", "expected"),
    [
        ({"_target_": "scripts.losses.Loss"}, "'scripts.losses.Loss' names the package 'scripts'"),
        (["$import scripts"], "names the package 'scripts'"),
        ("$scripts.losses.f()", "names the package 'scripts'"),
        ("finding #1", "MONAI turns '#' into '::'"),
        ({"_target_": "SimpleInferrer"}, "MONAI has no component 'SimpleInferrer'"),
        ({"_target_": "os.system"}, "'os.system' is not from ignite, medvl_core, monai, torch"),
        ({"_target_": "torch.optim.AdamWW"}, "'torch.optim.AdamWW' does not exist"),
        (
            {"_target_": "medvl_baseline.losses.infonce.InfoNCE"},
            "is the component baseline/infonce (medvl 0.1.0); build it by medvl_core.build_loss",
        ),
        ({"_target_": "medvl_imaging.images._source"}, "'medvl_imaging.images._source' is private"),
        ({"_target_": "pandas.read_pickle"}, "or an installed plugin; put it into a plugin"),
        ({"_target_": "$@encoder"}, "is not the name of a class or function"),
        ({"_target_": ["torch.optim.AdamW"]}, "['torch.optim.AdamW'] is not the name of a class or function"),
        (
            {"_target_": "medvl_core.build_pooling", "name": "baseline/mean", "options_for": ["baseline/cls"]},
            "['baseline/cls'] is no object; map names of components to their options",
        ),
        (
            {"_target_": "medvl_core.build_pooling", "name": "baseline/mean", "options_for": {"baseline/cls": 3}},
            "3 is no object",
        ),
        ({"_target_": "medvl_core.build_pooling", "name": "mean"}, "'mean' is a short name; write 'baseline/mean'"),
        ({"_target_": "medvl_core.build_pooling", "name": "baseline/maen"}, "did you mean 'baseline/mean'"),
        ({"_target_": "medvl_core.build_pooling"}, "None is not a component's name"),
        (
            {"_target_": "medvl_core.build_pooling", "name": "baseline/mean", "embed_dmi": 3},
            "baseline/mean has no option 'embed_dmi'; did you mean 'embed_dim'?",
        ),
        (
            {
                "_target_": "medvl_core.build_pooling",
                "name": "baseline/mean",
                "options_for": {"baseline/cls": {"x": 1}},
            },
            "baseline/cls has no option 'x'",
        ),
    ],
)
def test_problems_of_a_config(node, expected, folder):
    found = problems(folder, train=with_node("node", node))
    assert any(line.startswith("configs/train.json::node") and expected in line for line in found), found


def test_references_are_no_texts_with_a_number_sign(folder):
    assert problems(folder, train=with_node("node", ["@encoder#size", "$@encoder#size", "%train.json#size"])) == []


def test_transforms_that_a_plugin_publishes_are_allowed(folder):
    found = problems(folder, train=with_node("node", {"_target_": "medvl_baseline.transforms.Window"}))
    assert found == ["configs/train.json::node::_target_: 'medvl_baseline.transforms.Window' does not exist"]


def test_options_by_reference_are_checked_and_expressions_are_not(folder):
    node = {"_target_": "medvl_core.build_pooling", "name": "baseline/mean", "options_for": "@own"}
    found = problems(
        folder,
        train={**TRAIN, "node": node, "own": {"baseline/mean": "$dict(a=1)", "baseline/cls": "@x"}, "x": {"y": 1}},
    )
    assert [line for line in found if "options_for" in line or "no option" in line] == [
        "configs/train.json::node: baseline/cls has no option 'y' (options: embed_dim)"
    ]


def test_offered_options_are_options_of_some_component_of_the_kind(folder):
    node = {"_target_": "medvl_core.build_loss", "name": "baseline/infonce", "offers": {"pair": ["a", "b"], "qurey": 1}}
    found = [line for line in problems(folder, train=with_node("node", node)) if "::node" in line]
    assert found == ["configs/train.json::node::offers: no installed loss has the option 'qurey'"]


def test_what_is_offered_is_the_size_of_the_chosen_encoder(folder):
    offered = {"_target_": "medvl_core.build_encoder", "name": "baseline/resnet18_2d", "offers": {"size": "@size"}}
    assert problems(folder, train={**TRAIN, "encoder": offered}) == []


def test_a_pooling_takes_the_encoder_it_reads_from(folder):
    node = {"_target_": "medvl_core.build_pooling", "name": "baseline/mean", "encoder": "@encoder"}
    assert problems(folder, train={**TRAIN, "pooling": node}) == []


def test_name_by_reference(folder):
    train = {**TRAIN, "which": "baseline/nope", "node": {"_target_": "medvl_core.build_pooling", "name": "@which"}}
    assert any("no pooling is called 'baseline/nope'" in line for line in problems(folder, train=train))


def test_name_by_expression_is_known_when_it_runs_and_its_options_are_checked_now(folder):
    node = {
        "_target_": "medvl_core.build_pooling",
        "name": "$@m['pooling']",
        "options_for": {"baseline/mean": {"x": 1}},
    }
    found = [line for line in problems(folder, train={**TRAIN, "node": node}) if "::node" in line]
    assert len(found) == 1
    assert "baseline/mean has no option 'x'" in found[0]


def test_component_that_does_not_build_with_tiny(folder, monkeypatch):
    def broken(component, options):
        raise ValueError(f"{component.full_name} is broken today")

    monkeypatch.setattr("medvl_tools.check.build_component", broken)
    found = problems(folder)
    assert (
        "configs/train.json::encoder: baseline/resnet18_2d does not build with its tiny options: "
        "ValueError: baseline/resnet18_2d is broken today" in found
    )


def test_duplicate_keys(folder):
    write_bundle(folder)
    (folder / "configs/other.json").write_text('{"epochs": 1, "epochs": 2}')
    (problem,) = check_bundle(folder)
    assert str(problem) == "configs/other.json: the key 'epochs' occurs 2 times; MONAI keeps the last one"


@pytest.mark.parametrize(("text", "expected"), [("{", "is not JSON"), ("[]", "must hold one JSON object")])
def test_unreadable_config(text, expected, folder):
    write_bundle(folder)
    (folder / "configs/other.json").write_text(text)
    assert any(str(problem).startswith(f"configs/other.json: {expected}") for problem in check_bundle(folder))


def test_schema(folder):
    found = problems(folder, metadata={**METADATA, "authors": ["a"], "version": 1})
    assert "configs/metadata.json::authors: ['a'] is not of type 'string'" in found
    assert "configs/metadata.json::version: 1 is not of type 'string'" in found


def test_own_schema(folder, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text('{"required": ["colour"]}')
    (problem,) = check_bundle(write_bundle(folder), schema)
    assert problem.message == "'colour' is a required property"


def test_metadata_lists_the_components(folder):
    (missing,) = problems(folder, metadata={**METADATA, "medvl": {}})
    assert missing.endswith(
        'is missing; the configs use {"encoder": ["baseline/resnet18_2d"], "pooling": ["baseline/mean"]}'
    )


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"medvl": {"components": ["baseline/mean"]}}, 'components: is ["baseline/mean"], no object of lists'),
        ({"medvl": ["x"]}, "components: is missing"),
        (
            {"medvl": {"components": {"encoder": "x", "pooling": [{}]}}},
            'components::encoder: is "x", no list of full names',
        ),
        ({"network_data_format": ["x"]}, "network_data_format: ['x'] is not of type 'object'"),
        ({"network_data_format": {"inputs": {"image": {"spatial_shape": 3}}, "outputs": {}}}, "spatial_shape"),
    ],
)
def test_metadata_of_another_shape_is_a_problem(change, expected, folder):
    found = problems(folder, metadata={**METADATA, **change})
    assert any(expected in line for line in found), found


@pytest.mark.parametrize("text", ["{", '{"type": 5}'])
def test_own_schema_that_is_none(text, folder, tmp_path):
    schema = tmp_path / "schema.json"
    schema.write_text(text)
    (problem,) = check_bundle(write_bundle(folder), schema)
    assert str(problem).startswith(f"{schema}: is no JSON schema: ")


def test_metadata_lists_what_the_configs_use_and_perhaps_more_that_exists(folder):
    listed = {"encoder": ["baseline/vit_3d"], "pooling": ["baseline/mean"], "loss": ["baseline/siglip", "mine/loss"]}
    assert problems(folder, metadata={**METADATA, "medvl": {"components": listed}}) == [
        "configs/metadata.json::medvl::components::encoder: does not list baseline/resnet18_2d, which the configs use",
        "configs/metadata.json::medvl::components::loss: lists 'mine/loss', which no plugin has",
    ]


@pytest.mark.parametrize("change", [{"spatial_shape": [224, 224]}, {"num_channels": 3}])
def test_metadata_image_disagrees_with_the_encoder(change, folder):
    image = {**METADATA["network_data_format"]["inputs"]["image"], **change}
    metadata = {**METADATA, "network_data_format": {"inputs": {"image": image}, "outputs": {}}}
    (found,) = problems(folder, metadata=metadata)
    assert found.endswith("the configs' encoders read baseline/resnet18_2d [96, 96] with 1 channel(s)")


def test_metadata_image_of_any_size(folder):
    image = {**METADATA["network_data_format"]["inputs"]["image"], "spatial_shape": ["*", "32*n"]}
    metadata = {**METADATA, "network_data_format": {"inputs": {"image": image}, "outputs": {}}}
    assert problems(folder, metadata=metadata) == []

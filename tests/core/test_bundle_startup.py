from __future__ import annotations

import inspect
import json
import os
import subprocess
import sys
from pathlib import Path

import monai.bundle
import pytest

from medvl_core.bundle.startup import (
    MONAI_ARGUMENTS,
    OverrideError,
    check_overrides,
    exit_code,
    explain,
    install_excepthook,
    running_config,
    unknown_override_keys,
)
from medvl_core.errors import MedvlError

PROGRAM = str(Path(monai.bundle.__file__).parent / "__main__.py")


@pytest.fixture
def config(tmp_path):
    path = tmp_path / "configs" / "train.json"
    path.parent.mkdir()
    path.write_text(json.dumps({"epochs": 1, "train#trainer": {}, "+handlers": []}))
    return path


def failing(content, key="broken"):
    """The error MONAI gives for one item of a config."""
    try:
        monai.bundle.ConfigParser(content).get_parsed_content(key)
    except Exception as error:  # the caller looks at it, whatever MONAI made of it
        return error
    raise AssertionError(f"{key} was parsed")


def test_monais_own_arguments_are_known():
    named = {name for name, p in inspect.signature(monai.bundle.run).parameters.items() if p.kind is not p.VAR_KEYWORD}
    workflow = set(inspect.signature(monai.bundle.ConfigWorkflow).parameters) - {"override"}
    assert named | workflow <= MONAI_ARGUMENTS


@pytest.mark.parametrize(
    "key", ["epochs", "train#trainer#max_epochs", "train::x", "+handlers", "_meta_#version", "run_id"]
)
def test_known_override_keys(key, config):
    assert unknown_override_keys([config], [key]) == []


@pytest.mark.parametrize(
    ("key", "line"),
    [
        ("epoch", "no config has the key 'epoch'; did you mean 'epochs'?"),
        ("trian#trainer", "no config has the key 'trian'; did you mean 'train'?"),
        ("zzz", "no config has the key 'zzz'"),
    ],
)
def test_unknown_override_keys(key, line, config):
    assert unknown_override_keys([config], [key]) == [line]


@pytest.mark.parametrize(
    "arguments",
    [
        ["--epoch", "3"],
        ["--epoch=3"],
        ["--epochs", "3", "--epoch", "3"],
        ["training", "--epoch", "3"],
    ],
)
def test_check_overrides_refuses_a_mistyped_key(arguments, config):
    with pytest.raises(OverrideError, match="'epoch'; did you mean 'epochs'"):
        check_overrides([PROGRAM, "run", "--config_file", str(config), *arguments])


def test_check_overrides_accepts_good_ones(config):
    lists = f"['{config}', '{config}']"
    check_overrides([PROGRAM, "run", "--config-file", lists, "--epochs", "-1", "--train#trainer#x=3", "--", "--trace"])


def test_check_overrides_reads_args_file(config, tmp_path):
    args = tmp_path / "args.json"
    args.write_text(json.dumps({"config_file": str(config), "epoch": 3}))
    with pytest.raises(OverrideError, match="'epoch'"):
        check_overrides([PROGRAM, "run", "--args_file", str(args)])


def test_check_overrides_is_silent_outside_monai_bundle():
    check_overrides(["pytest", "--nonsense"])


def test_explain_gives_config_id_and_cause_of_a_component():
    error = failing({"broken": {"_target_": "torch.nn.Linear", "in_features": 3}})
    assert explain(error).startswith("broken: TypeError: ")
    assert "out_features" in explain(error)


def test_explain_gives_the_innermost_id():
    content = {"a": {"b": {"_target_": "medvl_core.build_encoder", "name": "baseline/resnt18_2d"}}, "broken": "$@a::b"}
    text = explain(failing(content))
    assert text.startswith("a::b: no encoder is called 'baseline/resnt18_2d'; did you mean 'baseline/resnet18_2d'?")


def test_explain_shows_a_plugins_factory_note():
    content = {"broken": {"_target_": "medvl_core.build_encoder", "name": "baseline/vit_3d", "size": [7, 7, 7]}}
    text = explain(failing(content))
    assert text.startswith("broken: ValueError: ")
    assert "while building encoder baseline/vit_3d" in text


def test_explain_of_expression_and_reference():
    assert explain(failing({"broken": "$1 / 0"})) == "broken: ZeroDivisionError: division by zero"
    assert "@nothing" in explain(failing({"broken": "@nothing"}))


def test_explain_keeps_a_chain_that_is_not_monais():
    error = ValueError("ours, with the way out")
    error.__cause__ = KeyError("detail")
    assert explain(error) == "ValueError: ours, with the way out"
    assert explain(ValueError()) == "ValueError: ValueError"


def test_explain_unwraps_an_import_error(tmp_path, monkeypatch):
    (tmp_path / "half_a_module.py").write_text("import a_library_nobody_has\n")
    monkeypatch.syspath_prepend(tmp_path)
    error = failing({"broken": {"_target_": "half_a_module.Net"}})
    assert explain(error) == "broken: ModuleNotFoundError: No module named 'a_library_nobody_has'"


@pytest.mark.parametrize(
    ("error", "code"), [(MedvlError("x"), 2), (FileNotFoundError("x"), 74), (ValueError("x"), 1)], ids=str
)
def test_exit_codes(error, code):
    wrapped = RuntimeError("Failed to instantiate component 'x'")
    wrapped.__cause__ = error
    assert exit_code(error) == exit_code(wrapped) == code


def run_failing(body, debug="0"):
    code = f"from medvl_core.bundle.startup import install_excepthook\ninstall_excepthook()\n{body}"
    return subprocess.run(
        [sys.executable, "-c", code],
        capture_output=True,
        text=True,
        check=False,
        env={"PYTHONPATH": ":".join(sys.path), "MEDVL_DEBUG": debug},
    )


def test_excepthook_prints_one_line_and_sets_the_exit_code():
    done = run_failing("raise FileNotFoundError('weights.pt: is missing; download it')")
    assert done.returncode == 74
    assert done.stderr.splitlines() == [
        "ERROR FileNotFoundError: weights.pt: is missing; download it",
        "(MEDVL_DEBUG=1 shows the full traceback)",
    ]


def test_debug_keeps_the_traceback():
    done = run_failing("raise ValueError('x')", debug="1")
    assert done.returncode == 1
    assert "Traceback" in done.stderr


def test_excepthook_leaves_keyboard_interrupt_alone():
    assert "KeyboardInterrupt" in run_failing("raise KeyboardInterrupt").stderr


def test_excepthook_is_not_installed_in_debug_mode(monkeypatch):
    monkeypatch.setattr(sys, "excepthook", sys.__excepthook__)
    install_excepthook({"MEDVL_DEBUG": "1"})
    assert sys.excepthook is sys.__excepthook__


def test_running_config_is_the_merged_one_and_only_while_it_runs():
    now = {"_target_": "medvl_core.bundle.startup.running_config"}
    parser = monai.bundle.ConfigParser({"epochs": 1, "twice": "$@epochs * 2", "now": now})
    parser.update({"epochs": 3})
    seen = parser.get_parsed_content("now")
    assert (seen["epochs"], seen["twice"]) == (3, "$@epochs * 2")
    assert running_config() == {}


def test_error_of_a_distributed_process_is_shown():
    code = (
        "from medvl_core.bundle.startup import install_excepthook; from medvl_core.engine import start_process_group\n"
        "install_excepthook(); start_process_group(); raise ValueError('nosuch.csv: no such table')"
    )
    group = {"RANK": "0", "LOCAL_RANK": "0", "WORLD_SIZE": "1", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "0"}
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, env={**os.environ, **group}
    )
    assert "ERROR ValueError: nosuch.csv: no such table" in done.stderr
    assert done.returncode == 1


WORKER = """
import time
from torch.utils.data import Dataset
from medvl_core.bundle.startup import install_excepthook
from medvl_core.engine.loading import study_loader

class Broken(Dataset):
    studies = ["a", "b", "c", "d"]
    def __len__(self):
        return 4
    def __getitem__(self, index):
        if index == 0:
            raise ValueError("case 0: damaged\\ncell_3: empty")
        time.sleep(300)

install_excepthook()
for batch in study_loader(Broken(), 1, num_workers=2):
    pass
"""


def test_error_in_a_worker_is_one_line_and_ends_the_program():
    done = subprocess.run([sys.executable, "-c", WORKER], capture_output=True, text=True, timeout=60)
    assert done.returncode == 1
    assert done.stderr == "ERROR ValueError: case 0: damaged\ncell_3: empty\n(MEDVL_DEBUG=1 shows the full traceback)\n"

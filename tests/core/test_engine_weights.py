from __future__ import annotations

import os
import subprocess
import sys

import pytest
import torch
from torch import nn

from medvl_core.engine.weights import (
    WeightsError,
    atomic_save,
    load_state,
    load_weights,
    read_checkpoint,
    save_weights,
    weights_digest,
)


def _module(seed: int = 0) -> nn.Sequential:
    torch.manual_seed(seed)
    return nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_round_trip_gives_equal_weights(tmp_path, suffix):
    source, target = _module(0), _module(1)
    assert weights_digest(source) != weights_digest(target)
    load_weights(target, save_weights(source, tmp_path / f"w{suffix}"))
    assert weights_digest(source) == weights_digest(target)


def test_every_misfit_is_listed_and_nothing_is_loaded(tmp_path):
    state = _module().state_dict()
    del state["0.bias"]
    state["1.weight"] = torch.zeros(9)
    state["extra"] = torch.zeros(2)
    path = atomic_save(state, tmp_path / "w.pt")
    target = _module(1)
    before = weights_digest(target)
    with pytest.raises(
        WeightsError, match=r"w\.pt: .*missing 0\.bias.*unexpected extra.*1\.weight is \(9,\), needs \(4,\)"
    ):
        load_weights(target, path)
    assert weights_digest(target) == before


def test_prefix_rename_and_ignore_select_keys(tmp_path):
    state = {
        f"net.old{key[1:]}" if key[0] == "0" else f"net.{key}": value for key, value in _module().state_dict().items()
    }
    state |= {"net.head.weight": torch.zeros(1), "other.weight": torch.zeros(1)}
    path = atomic_save(state, tmp_path / "w.pt")
    target = _module(1)
    load_weights(target, path, prefix="net.", rename={"old": "0"}, ignore=("head.*",))
    assert weights_digest(target) == weights_digest(_module())


def test_a_module_on_the_meta_device_takes_over_the_tensors():
    state = {key: value.half() if value.is_floating_point() else value for key, value in _module().state_dict().items()}
    with torch.device("meta"):
        target = _module(1)
    target[0].bias.requires_grad_(False)
    load_state(target, state, "w.pt")
    assert {value.dtype for value in target.state_dict().values()} == {torch.float32, torch.int64}
    assert torch.equal(target[0].weight, state["0.weight"].float())
    assert [name for name, parameter in target.named_parameters() if not parameter.requires_grad] == ["0.bias"]


def test_errors_show_the_names_of_the_file_and_ignored_keys_are_left_out():
    state = {key: value for key, value in _module().state_dict().items() if key != "0.bias"}
    with pytest.raises(WeightsError, match=r"w\.pt: .*\(1 of 7 keys\): missing linear\.b \(4,\)$"):
        load_state(_module(1), {**state, "head": torch.zeros(1)}, "w.pt", {"0.bias": "linear.b"}, ignore=("head",))


def test_missing_file_is_named(tmp_path):
    with pytest.raises(WeightsError, match=r"absent\.pt: no such weights file"):
        read_checkpoint(tmp_path / "absent.pt")


@pytest.mark.parametrize("suffix", [".pt", ".safetensors"])
def test_truncated_file_is_refused(tmp_path, suffix):
    path = save_weights(_module(), tmp_path / f"w{suffix}")
    path.write_bytes(path.read_bytes()[:-40])
    with pytest.raises(WeightsError, match="not a readable weights file"):
        load_weights(_module(), path)


def test_code_in_a_checkpoint_is_not_executed(tmp_path):
    class Payload:
        def __reduce__(self):
            return os.system, (f"touch {tmp_path / 'canary'}",)

    torch.save({"w": Payload()}, tmp_path / "evil.pt")
    with pytest.raises(WeightsError, match=r"evil\.pt: not a readable weights file"):
        read_checkpoint(tmp_path / "evil.pt")
    assert not (tmp_path / "canary").exists()


def test_failed_write_keeps_the_previous_file(tmp_path, monkeypatch):
    path = save_weights(_module(0), tmp_path / "w.pt")

    def full_disk(*args, **kwargs):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(torch, "save", full_disk)
    with pytest.raises(OSError, match=r"w\.pt: could not be written .*previous file is unchanged"):
        save_weights(_module(1), path)
    monkeypatch.undo()
    restored = _module(2)
    load_weights(restored, path)
    assert weights_digest(restored) == weights_digest(_module(0))
    assert [p.name for p in tmp_path.iterdir()] == ["w.pt"]


def test_digest_is_the_same_in_another_process():
    code = (
        "import torch; from torch import nn; from medvl_core.engine.weights import weights_digest; "
        "torch.manual_seed(0); "
        "print(weights_digest(nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4))))"
    )
    out = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout.strip()
    assert out == weights_digest(_module())


def test_a_fresh_head_keeps_its_values_and_the_rest_is_loaded_strictly(tmp_path):
    source, target = _module(0), _module(1)
    wider = nn.Sequential(nn.Linear(3, 4), nn.BatchNorm1d(4), nn.Linear(4, 2))
    head = wider[2].weight.detach().clone()
    load_weights(wider, save_weights(source, tmp_path / "w.pt"), fresh=["2.*"])
    assert torch.equal(wider[0].weight, source[0].weight)
    assert torch.equal(wider[2].weight, head)
    before = target[0].weight.detach().clone()
    load_weights(target, tmp_path / "w.pt", fresh=["0.*"])  # in the file too: the module's own values stay
    assert torch.equal(target[0].weight, before)
    with pytest.raises(WeightsError, match=r"missing 2.bias"):
        load_weights(wider, tmp_path / "w.pt", fresh=["2.weight"])
    with pytest.raises(WeightsError, match=r"fresh names head.\*, which fit no weight of Sequential"):
        load_weights(wider, tmp_path / "w.pt", fresh=["head.*"])

from __future__ import annotations

import sys

import pytest
import torch

from medvl_baseline.encoders.clip import build_clip_image

TINY = {"size": (16, 16), "patch": 8, "width": 16, "layers": 2, "heads": 2, "projection_dim": 8}


def test_adapters_start_without_effect_and_train_alone():
    pytest.importorskip("peft", reason="peft is not installed (the extra 'lora')")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        plain = build_clip_image(**TINY)
        torch.manual_seed(0)
        encoder = build_clip_image(**TINY, lora_rank=2)
    x = torch.rand(2, 3, 16, 16, generator=torch.Generator().manual_seed(0))
    torch.testing.assert_close(encoder(x).pooled, plain(x).pooled)
    trained = {name for name, parameter in encoder.named_parameters() if parameter.requires_grad}
    assert len(trained) == 2 * 2 * 2 + 1  # layers x (query, value) x (A, B), and the projection
    assert all("lora_" in name or name == "model.visual_projection.weight" for name in trained)
    encoder(x).pooled.sum().backward()
    assert all(parameter.grad is not None for name, parameter in encoder.named_parameters() if name in trained)


def test_missing_peft_and_wrong_rank_are_named(monkeypatch):
    with pytest.raises(ValueError, match="lora_rank is 0; give at least 1"):
        build_clip_image(**TINY, lora_rank=0)
    monkeypatch.setitem(sys.modules, "peft", None)
    with pytest.raises(ValueError, match=r"lora_rank is 2, but peft is not installed; pip install 'medvl\[lora\]'"):
        build_clip_image(**TINY, lora_rank=2)

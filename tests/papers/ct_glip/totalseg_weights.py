"""TotalSegmentator's 6 mm network with random weights, in the folder layout of the published one."""

from __future__ import annotations

import json
from pathlib import Path

from tests.papers.ct_glip.nnunet_plans import architecture

NAME = "Dataset298_TotalSegmentator_total_6mm_1559subj"
_FEATURES, _STRIDES = [4, 8], [[1, 1, 1], [2, 2, 2]]


def random_weights(root: Path, classes: int = 118) -> Path:
    """Write plans, labels and a checkpoint under ``root``, and return it."""
    import torch
    from dynamic_network_architectures.architectures.unet import PlainConvUNet
    from totalsegmentator.map_to_binary import class_map

    folder = root / NAME / "nnUNetTrainer_4000epochs_NoMirroring__nnUNetPlans__3d_fullres"
    (folder / "fold_0").mkdir(parents=True)
    labels = {"background": 0} | {name: label for label, name in class_map["total"].items()}
    dataset = {"channel_names": {"0": "CT"}, "labels": labels, "numTraining": 1, "file_ending": ".nii.gz"}
    (folder / "dataset.json").write_text(json.dumps(dataset))
    (folder / "plans.json").write_text(json.dumps(_plans()))
    torch.manual_seed(0)
    kinds = {"conv_op": torch.nn.Conv3d, "norm_op": torch.nn.InstanceNorm3d, "nonlin": torch.nn.LeakyReLU}
    network = PlainConvUNet(
        1, 2, _FEATURES, kernel_sizes=3, strides=_STRIDES, n_conv_per_stage=1, num_classes=classes,
        n_conv_per_stage_decoder=1, conv_bias=True, norm_op_kwargs={"eps": 1e-5, "affine": True},
        nonlin_kwargs={"inplace": True}, deep_supervision=False, **kinds,
    )  # fmt: skip
    checkpoint = {
        "network_weights": network.state_dict(),
        "trainer_name": "nnUNetTrainer",
        "init_args": {"configuration": "3d_fullres"},
        "inference_allowed_mirroring_axes": None,
    }
    torch.save(checkpoint, folder / "fold_0" / "checkpoint_final.pth")
    return root


def _plans() -> dict[str, object]:
    numbers = {"mean": 0.0, "std": 400.0, "percentile_00_5": -1000.0, "percentile_99_5": 1000.0, "min": -1024.0}
    network = architecture(_FEATURES, [[3, 3, 3], [3, 3, 3]], _STRIDES, convolutions=1)
    resample = {"is_seg": False, "order": 1, "order_z": 0, "force_separate_z": None}
    return {
        "dataset_name": NAME,
        "plans_name": "nnUNetPlans",
        "original_median_spacing_after_transp": [6.0, 6.0, 6.0],
        "original_median_shape_after_transp": [48, 48, 48],
        "image_reader_writer": "SimpleITKIO",
        "transpose_forward": [0, 1, 2],
        "transpose_backward": [0, 1, 2],
        "experiment_planner_used": "ExperimentPlanner",
        "label_manager": "LabelManager",
        "foreground_intensity_properties_per_channel": {"0": {**numbers, "max": 3000.0, "median": 0.0}},
        "configurations": {
            "3d_fullres": {
                "data_identifier": "nnUNetPlans_3d_fullres",
                "preprocessor_name": "DefaultPreprocessor",
                "batch_size": 2,
                "patch_size": [32, 32, 32],
                "median_image_size_in_voxels": [48.0, 48.0, 48.0],
                "spacing": [6.0, 6.0, 6.0],
                "normalization_schemes": ["CTNormalization"],
                "use_mask_for_norm": [False],
                "resampling_fn_data": "resample_data_or_seg_to_shape",
                "resampling_fn_seg": "resample_data_or_seg_to_shape",
                "resampling_fn_data_kwargs": {**resample, "order": 3},
                "resampling_fn_seg_kwargs": {**resample, "is_seg": True},
                "resampling_fn_probabilities": "resample_data_or_seg_to_shape",
                "resampling_fn_probabilities_kwargs": resample,
                "architecture": network,
                "batch_dice": False,
            }
        },
    }

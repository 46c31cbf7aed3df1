"""The simulation as a MONAI dictionary transform. Importing it imports monai, which takes seconds."""

from __future__ import annotations

from collections.abc import Hashable, Mapping
from typing import Any

import numpy as np
import torch
from monai.config import KeysCollection
from monai.data import MetaTensor
from monai.transforms import MapTransform, Randomizable
from monai.utils import ensure_tuple_rep

from medvl_imaging.radiograph.simulate import simulate_radiograph
from medvl_imaging.radiograph.source import check_jitter, draw_pose

__all__ = ["SimulateRadiographd"]


class SimulateRadiographd(MapTransform, Randomizable):
    """Project CT volumes ``1 X Y Z`` of a dictionary to radiographs ``1 H W``.

    The volumes are ``MetaTensor`` in HU whose affine leads to RAS+ millimetres, as MONAI's ``LoadImaged`` and
    ``EnsureChannelFirstd`` give them.

    Args:
        keys: Volumes to project.
        names: Where the radiographs go, one per key. Equal to a key: the volume is replaced.
        jitter_deg: Largest random turn of the patient about each axis, drawn at each call; needs ``mode="cone_beam"``.
            Seed it with ``set_random_state``.
        jitter_mm: Largest random shift along each axis.
        allow_missing_keys: Skip absent keys.
        options: Keyword arguments of ``simulate_radiograph``.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If a jitter is no jitter, or goes with parallel rays or with a pose.
    """

    def __init__(
        self,
        keys: KeysCollection,
        names: KeysCollection,
        jitter_deg: float = 0.0,
        jitter_mm: float = 0.0,
        allow_missing_keys: bool = False,
        **options: Any,
    ) -> None:
        MapTransform.__init__(self, keys, allow_missing_keys)
        self.names = ensure_tuple_rep(names, len(self.keys))
        self.jitter = (jitter_deg, jitter_mm)
        self.options = check_jitter(jitter_deg, jitter_mm, options)

    def __call__(self, data: Mapping[Hashable, Any]) -> dict[Hashable, Any]:
        """A copy of the dictionary with the radiographs, float32.

        Raises:
            ValueError: If a volume has more than one channel or no affine.
        """
        result = dict(data)
        for key, name in self.key_iterator(result, self.names):
            volume = result[key]
            if not isinstance(volume, MetaTensor) or volume.ndim != 4 or len(volume) != 1:
                raise ValueError(
                    f"{key!r} is {type(volume).__name__} of shape {tuple(np.shape(volume))}; "
                    "give a MetaTensor 1 X Y Z, as LoadImaged with ensure_channel_first=True does"
                )
            pose = draw_pose(self.R, *self.jitter) if any(self.jitter) else {}
            film = simulate_radiograph(
                volume[0].cpu().numpy(), np.asarray(volume.affine.cpu()), **{**self.options, **pose}
            )
            result[name] = torch.from_numpy(film)[None]
        return result

"""The radiograph of a CT as an image source, and the random pose of a patient."""

from __future__ import annotations

import hashlib
import inspect
import json
from typing import Any

import numpy as np

from medvl_core.study import Image, ImageSource
from medvl_imaging.radiograph.simulate import simulate_radiograph

__all__ = ["VERSION", "SimulatedRadiograph", "check_jitter", "draw_pose"]

VERSION = 2
"""Of the pixels, part of every fingerprint: raise it when they change."""


def draw_pose(
    generator: np.random.Generator | np.random.RandomState, jitter_deg: float, jitter_mm: float
) -> dict[str, tuple[float, ...]]:
    """A pose for ``mode="cone_beam"``: each turn uniform within ± ``jitter_deg``, each shift within ± ``jitter_mm``."""
    if not (0 <= jitter_deg < 45 and 0 <= jitter_mm < np.inf):
        raise ValueError(f"jitter_deg {jitter_deg}, jitter_mm {jitter_mm}; at least 0, and less than 45 degrees")
    return {
        "rotation_deg": tuple(generator.uniform(-jitter_deg, jitter_deg, 3).tolist()),
        "shift_mm": tuple(generator.uniform(-jitter_mm, jitter_mm, 3).tolist()),
    }


def check_jitter(jitter_deg: float, jitter_mm: float, options: dict[str, Any]) -> dict[str, Any]:
    """All options of ``simulate_radiograph``, the given ones and the defaults.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If a jitter is no jitter, or goes with parallel rays or with a pose.
    """
    bound = inspect.signature(simulate_radiograph).bind(None, None, **options)
    bound.apply_defaults()
    draw_pose(np.random.default_rng(0), jitter_deg, jitter_mm)  # refuses wrong ones now
    posed = "rotation_deg" in options or "shift_mm" in options
    if (jitter_deg or jitter_mm) and (posed or bound.kwargs["mode"] != "cone_beam"):
        raise ValueError(
            f"jitter_deg {jitter_deg}, jitter_mm {jitter_mm} with options {options}; "
            "they need mode 'cone_beam' and no pose beside them"
        )
    return bound.kwargs


class SimulatedRadiograph:
    """The radiograph of a CT source, made when asked for.

    Args:
        source: A CT volume in HU.
        jitter_deg: Largest turn of the patient about each axis in a cone beam. Every scan has a pose of its own, a
            function of ``seed`` and the scan's content.
        jitter_mm: Largest shift along each axis.
        seed: Of the poses.
        options: Keyword arguments of ``simulate_radiograph``.

    Raises:
        TypeError: If an option is unknown.
        ValueError: If a jitter is no jitter, or goes with parallel rays or with a pose.
    """

    def __init__(
        self, source: ImageSource, *, jitter_deg: float = 0.0, jitter_mm: float = 0.0, seed: int = 0, **options: Any
    ) -> None:
        self.source = source
        self.jitter = {"jitter_deg": jitter_deg, "jitter_mm": jitter_mm, "seed": seed}
        self.options = check_jitter(jitter_deg, jitter_mm, options)

    def load(self) -> Image:
        """Read the volume and project it: ``H W``, float32."""
        image = self.source.load()
        if image.affine is None:
            raise ValueError(f"volume of shape {image.array.shape} has no affine; a radiograph needs the orientation")
        return Image(simulate_radiograph(image.array, image.affine, **{**self.options, **self._pose()}))

    def _pose(self) -> dict[str, tuple[float, ...]]:
        jitter_deg, jitter_mm, seed = self.jitter.values()
        if not jitter_deg and not jitter_mm:
            return {}
        digest = hashlib.sha256(f"{seed} {self.source.fingerprint()}".encode()).digest()
        return draw_pose(np.random.default_rng(list(digest)), jitter_deg, jitter_mm)

    def fingerprint(self) -> str:
        """Digest of the source's fingerprint, the options and the version of the simulation."""
        content = json.dumps([VERSION, self.source.fingerprint(), self.jitter, self.options], sort_keys=True)
        return hashlib.sha256(content.encode()).hexdigest()

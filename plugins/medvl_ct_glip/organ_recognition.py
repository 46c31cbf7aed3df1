"""Which organ is it: every organ of every scan against the names of all organs."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from torch import Tensor
from torch.nn.functional import normalize

from medvl_core.specs import Metric
from medvl_ct_glip.figures import heat_map
from medvl_ct_glip.region_rows import RegionRows
from medvl_ct_glip.regions.texts import spoken
from medvl_evaluation.metrics import bootstrap_ci

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["OrganRecognition"]


class OrganRecognition:
    r"""Top-1 accuracy over all organ instances: $\arg\max_k \cos(z, t_k)$ over the R names.

    The masks are given, so this measures whether features and texts agree, not segmentation.

    Args:
        regions: Region names R, in the order of the embeddings.
        embed_text: Texts → rows; may be set later. Not needed when outputs carry ``"prompt_embeddings"`` with
            ``"regions"`` ``R E``.
        image: Modality that the regions lie on: reads the embeddings ``"<image>_regions"``.
        template: Text of a region.
        prefix: Put before metrics and tables.

    References:
        Lin et al., CT-GLIP, arXiv:2404.15272, zero-shot organ classification. No code copied.
    """

    def __init__(
        self,
        regions: Sequence[str],
        embed_text: Callable[..., Tensor] | None = None,
        image: str = "ct",
        template: str = "This is the {} in the CT scans.",
        prefix: str = "organ",
    ) -> None:
        if len(set(regions)) < len(regions) or len(regions) < 2:
            raise ValueError(f"OrganRecognition: regions is {list(regions)}; give two or more different names")
        if "{}" not in template:
            raise ValueError(f"OrganRecognition: template is {template!r}; it needs one {{}} for the organ")
        self.regions, self.embed_text, self.image = tuple(regions), embed_text, image
        self.template, self.prefix = template, prefix
        self.reset()

    @property
    def metrics(self) -> tuple[Metric, ...]:
        """Top-1 over instances, and the mean over organs."""
        return (Metric(name=f"{self.prefix}/top_1"), Metric(name=f"{self.prefix}/top_1_macro"))

    def reset(self) -> None:
        """Forget everything collected."""
        self._rows = RegionRows("OrganRecognition", self.image, len(self.regions))
        self._prompts: Tensor | None = None

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Collect one batch: embeddings ``"<image>_regions"`` ``B R E`` (zero rows: not visible) and ids."""
        self._rows.add(outputs)
        if (given := outputs.get("prompt_embeddings")) is not None and "regions" in given:
            self._prompts = given["regions"]

    def compute(self) -> dict[str, float]:
        """Share of instances whose nearest name is their own; organs without an instance are left out of the mean."""
        values = self._statistic()(np.ones((len(self._rows), 1)))[0]
        return {metric.name: float(value) for metric, value in zip(self.metrics, values, strict=True)}

    def intervals(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """Bootstrap over subjects."""
        found = bootstrap_ci(self._statistic(), self._rows.ids["subject_id"], n_resamples, seed, level)
        pairs = zip(found.low.tolist(), found.high.tolist(), strict=True)
        return {metric.name: pair for metric, pair in zip(self.metrics, pairs, strict=True)}

    def chance(self) -> dict[str, float]:
        """1 / R."""
        return {metric.name: 1 / len(self.regions) for metric in self.metrics}

    def tables(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, pd.DataFrame]:
        """``<prefix>_per_organ``: instances, accuracy, and the name it is most often taken for."""
        import pandas as pd

        visible, hits = self._hits()
        similarity = self._similarities()
        lines = []
        for r, name in enumerate(self.regions):
            nearest = similarity[visible[:, r], r].argmax(axis=1)
            wrong = nearest[nearest != r]
            taken = self.regions[np.bincount(wrong).argmax()] if len(wrong) else ""
            n = int(visible[:, r].sum())
            lines.append((name, n, float(hits[visible[:, r], r].mean()) if n else np.nan, taken))
        return {f"{self.prefix}_per_organ": pd.DataFrame(lines, columns=["organ", "instances", "top_1", "taken_for"])}

    def figures(self, folder: str | Path, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> list[Path]:
        """Mean cosine of every organ with every name."""
        visible, _ = self._hits()
        similarity = np.where(visible[..., None], self._similarities(), np.nan)
        count = visible.sum(axis=0)
        present = count > 0
        mean = np.nansum(similarity, axis=0)[present] / count[present, None]
        names = [spoken(name) for name in self.regions]
        rows = [name for name, there in zip(names, present, strict=True) if there]
        path = Path(folder) / f"{self.prefix}_similarity.png"
        title = f"Organs and organ names: mean cosine over {len(self._rows)} scans"
        heat_map(path, mean, rows, names, title, ("organ in the scan", "text"))
        return [path]

    def _similarities(self) -> np.ndarray:
        """``N R R``: study, region, text."""
        rows = self._rows.embeddings().double()
        prompts = self._prompts
        if prompts is None:
            if self.embed_text is None:
                raise ValueError("OrganRecognition has no text tower; set embed_text, or give prompt_embeddings")
            prompts = self.embed_text([self.template.format(spoken(name)) for name in self.regions])
        return (rows @ normalize(prompts.double(), dim=1).T).numpy()

    def _hits(self) -> tuple[np.ndarray, np.ndarray]:
        visible = self._rows.visible()
        nearest = self._similarities().argmax(axis=2)
        return visible, (nearest == np.arange(len(self.regions))) & visible

    def _statistic(self) -> Any:
        visible, hits = (part.astype(float) for part in self._hits())
        if not visible.any():
            raise ValueError("OrganRecognition: no region is visible in any study; check names, masks and min_voxels")

        def statistic(weights: np.ndarray) -> np.ndarray:
            right, all_ = hits.T @ weights, visible.T @ weights
            with np.errstate(invalid="ignore", divide="ignore"):
                organs = right / all_
                macro = np.nansum(organs, axis=0) / (all_ > 0).sum(axis=0)
                return np.stack([right.sum(axis=0) / all_.sum(axis=0), macro], axis=1)

        return statistic

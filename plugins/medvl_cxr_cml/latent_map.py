"""A map of the latent space, coloured by cluster and by label."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from medvl_core.specs import Metric
from medvl_cxr_cml.em import Covariance
from medvl_cxr_cml.mixture import StudentTMixture
from medvl_evaluation.drawing import save_png, sheet
from medvl_evaluation.page.case_panels import project_embeddings

if TYPE_CHECKING:
    import pandas as pd

__all__ = ["LatentMap"]

_AGREEMENT = "latent_map/adjusted_mutual_information"
_PER_CLUSTER = 5  # studies: fewer make clusters of noise


class LatentMap:
    """t-SNE of the image embeddings (UMAP where it is installed), in the colours of clusters and of labels.

    The clusters are those of a Student-t mixture fitted to the evaluated embeddings themselves, whatever the model was
    trained with: models with and without the metric loss are drawn alike. How much the clusters say about the labels is
    their adjusted mutual information over pairs of study and positive label (0: nothing, 1: everything).

    Args:
        classes: Names of the label columns, in order.
        image: Modality that is drawn.
        n_clusters: K; never more than a fifth of the studies.
        nu: Degrees of freedom of the mixture; ``inf`` (``"inf"`` in JSON) for Gaussians.
        covariance: Of the mixture.
        regularisation: Added to the variances.
        pca_dim: Cluster in this many principal components.
        most: Studies drawn at most, at random; clusters and their agreement are those of all.
        seed: Of the mixture's start, and of which studies are drawn.

    Raises:
        ValueError: If there are no classes, or ``n_clusters`` is below 1.

    References:
        CXR-CML, arXiv:2507.19398, figure 2, which draws the validation set coloured by disease.
    """

    metrics = (Metric(name=_AGREEMENT, unit="AMI"),)

    def __init__(
        self,
        classes: Sequence[str],
        image: str = "cxr",
        n_clusters: int = 40,
        nu: float | str = 4.0,
        covariance: Covariance = "diagonal",
        regularisation: float = 1e-3,
        pca_dim: int | None = None,
        most: int = 2000,
        seed: int = 0,
    ) -> None:
        if isinstance(classes, str) or not classes or n_clusters < 1:
            raise ValueError(f"LatentMap: classes={classes!r}, n_clusters={n_clusters}; give a list of names, and K")
        self.classes, self.image, self.n_clusters = tuple(classes), image, n_clusters
        self.most, self.seed = most, seed
        self._options: dict[str, Any] = {
            "nu": nu,
            "covariance": covariance,
            "regularisation": regularisation,
            "pca_dim": pca_dim,
            "seed": seed,
        }
        self.reset()

    def reset(self) -> None:
        """Forget everything collected."""
        self._rows: list[Tensor] = []
        self._labels: list[Tensor] = []
        self._ids: list[str] = []
        self._found: np.ndarray | None = None

    def update(self, outputs: Mapping[str, Any]) -> None:
        """Collect one batch: embeddings, ``study_id`` and ``labels``.

        Raises:
            ValueError: If the embeddings or the labels are missing or do not fit.
        """
        rows, labels = outputs["embeddings"].get(self.image), outputs.get("labels")
        if rows is None or labels is None or tuple(labels.shape) != (len(rows), len(self.classes)):
            raise ValueError(
                f"LatentMap needs {self.image} embeddings and labels of {len(self.classes)} classes; got embeddings of "
                f"{sorted(outputs['embeddings'])}, labels {None if labels is None else tuple(labels.shape)}"
            )
        self._rows.append(rows.detach().float().cpu())
        self._labels.append(labels.detach().cpu() == 1)
        self._ids.extend(map(str, outputs["study_id"]))
        self._found = None

    def compute(self) -> dict[str, float]:
        """How much the clusters say about the labels."""
        from sklearn.metrics import adjusted_mutual_info_score

        labels = self._positive()
        study, label = np.nonzero(np.column_stack([labels, ~labels.any(axis=1)]))  # no label is a label too
        return {_AGREEMENT: float(adjusted_mutual_info_score(label, self.clusters()[study]))}

    def intervals(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, tuple[float, float]]:
        """None: studies drawn twice would make clusters of their own."""
        return {}

    def chance(self) -> dict[str, float]:
        """None, as there are no intervals to set it beside; by its definition 0."""
        return {}

    def tables(self, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> dict[str, pd.DataFrame]:
        """``latent_map_clusters``: size and labels of each cluster; ``latent_map_points``: where each study lies."""
        import pandas as pd

        points, _, drawn = self._points()
        ids = [self._ids[i] for i in drawn]
        places = {"study_id": ids, "x": points[:, 0], "y": points[:, 1], "cluster": self.clusters()[drawn]}
        return {"latent_map_clusters": self._cluster_table(), "latent_map_points": pd.DataFrame(places)}

    def figures(self, folder: str | Path, n_resamples: int = 1000, seed: int = 0, level: float = 0.95) -> list[Path]:
        """``latent_map.png``: the same points by cluster, and by the rarest of their labels."""
        points, method, drawn = self._points()
        drawing = sheet(12, 6.2)
        left, right = drawing.subplots(1, 2)
        _draw_clusters(left, points, self.clusters()[drawn])
        _draw_labels(right, points, self._positive()[drawn], self.classes)
        for ax in (left, right):
            ax.set(xticks=[], yticks=[], xlabel=f"{method} 1", ylabel=f"{method} 2")
        agreement = self.compute()[_AGREEMENT]
        title = (
            f"{method} of {len(points)} of {len(self._ids)} {self.image} embeddings; clusters and labels share "
            f"{agreement:.2f} (adjusted mutual information: 0 none, 1 all)"
        )
        return [save_png(drawing, Path(folder) / "latent_map.png", title)]

    def clusters(self) -> np.ndarray:
        """Cluster of each study, ``N``.

        Raises:
            ValueError: If nothing was collected.
        """
        if self._found is None:
            rows = self._embeddings()
            k = max(1, min(self.n_clusters, len(rows) // _PER_CLUSTER))
            mixture = StudentTMixture(rows.shape[1], k, **self._options)
            mixture.fit(rows)
            self._found = mixture.predict(rows).numpy()
        return self._found

    def _embeddings(self) -> Tensor:
        if not self._rows:
            raise ValueError("LatentMap has collected no study; call update() before compute()")
        return torch.cat(self._rows)

    def _positive(self) -> np.ndarray:
        self._embeddings()
        return torch.cat(self._labels).numpy()

    def _points(self) -> tuple[np.ndarray, str, np.ndarray]:
        n = len(self._embeddings())
        drawn = np.sort(np.random.default_rng(self.seed).choice(n, min(n, self.most), replace=False))
        return *project_embeddings(self._embeddings().numpy()[drawn]), drawn

    def _cluster_table(self) -> pd.DataFrame:
        """Per cluster the label that is most over-represented, its share there and in all studies."""
        import pandas as pd

        labels, clusters = self._positive(), self.clusters()
        overall = labels.mean(axis=0)
        rows = []
        for cluster in np.unique(clusters):
            inside = labels[clusters == cluster]
            label = int((inside.mean(axis=0) - overall).argmax())
            rows.append(
                {
                    "cluster": int(cluster),
                    "n": len(inside),
                    "without_label": float((~inside.any(axis=1)).mean()),
                    "label": self.classes[label] if inside.any() else "",
                    "share": float(inside[:, label].mean()),
                    "share_overall": float(overall[label]),
                }
            )
        return pd.DataFrame(rows)


def _draw_clusters(ax: Any, points: np.ndarray, clusters: np.ndarray) -> None:
    colours = _colours(int(clusters.max()) + 1)
    for cluster in np.unique(clusters):
        inside = points[clusters == cluster]
        ax.scatter(*inside.T, s=14, color=colours[cluster], linewidths=0)
        middle = np.abs(inside - np.median(inside, axis=0)).sum(axis=1).argmin()
        ax.annotate(str(cluster), inside[middle], fontsize=9, fontweight="bold", ha="center", va="center")
    ax.set_title(f"by cluster ({len(np.unique(clusters))})", fontsize=10)


def _draw_labels(ax: Any, points: np.ndarray, labels: np.ndarray, classes: Sequence[str]) -> None:
    counts = labels.sum(axis=0)
    rarest = np.where(labels, counts, len(labels) + 1).argmin(axis=1)
    rarest[~labels.any(axis=1)] = -1
    without = points[rarest == -1]
    ax.scatter(*without.T, s=10, color="#d0d0d0", linewidths=0, label=f"none ({len(without)})")
    colours = _colours(len(classes))
    for label in np.argsort(-counts, kind="stable"):  # rare ones on top
        inside = points[rarest == label]
        if len(inside):
            name = f"{classes[label]} ({len(inside)})"
            ax.scatter(*inside.T, s=18, color=colours[label], linewidths=0, label=name)
    ax.legend(loc="center left", bbox_to_anchor=(1.0, 0.5), fontsize=7, frameon=False, markerscale=1.4)
    ax.set_title("by label: of several, the rarest", fontsize=10)


def _colours(n: int) -> np.ndarray:
    """``n`` colours: a qualitative map while it lasts, then hues."""
    from matplotlib import colormaps

    return colormaps["tab20"](np.arange(n)) if n <= 20 else colormaps["turbo"](np.linspace(0.03, 0.97, n))

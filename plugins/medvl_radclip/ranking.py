"""Texts for a 2D image or a volume, ranked by their cosine with it, and the slices that mattered."""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
import torch
from torch import Tensor

from medvl_core.engine.files import atomic, read_text, write_csv
from medvl_core.study import Study
from medvl_evaluation.drawing import save_png, sheet
from medvl_evaluation.inference import figure_path, found_files, predict_each
from medvl_imaging.readers import FileSource
from medvl_imaging.readers.listing import Format, format_of, slice_folders

if TYPE_CHECKING:
    from medvl_core.engine.alignment import Tower
    from medvl_imaging.images import ImageRows

__all__ = ["Ranked", "TextRanking", "image_or_volume_studies", "read_texts", "slice_strip"]

logger = logging.getLogger(__name__)


def image_or_volume_studies(path: str | Path) -> list[Study]:
    """One study per image: ``"image"`` for PNG, JPEG and DICOM files, ``"volume"`` for NIfTI, NRRD and DICOM series.

    Args:
        path: A file, the folder of a series, or a folder that is searched for all of these. DICOM files of one folder
            are a series if they are CT, MR or PET and more than one.

    Raises:
        FileNotFoundError: If there is no such file, or nothing of these kinds in the folder.
    """
    found = found_files(path, _images)
    if not found:
        raise FileNotFoundError(f"{path}: no image here; give a PNG, JPEG, DICOM, NIfTI or NRRD file or a DICOM folder")
    return [_study(file, name) for file, name in found.items()]


def read_texts(path: str | Path) -> list[str]:
    """Candidate texts, one per line; blank lines are left out.

    Raises:
        FileNotFoundError: If there is no such file.
        ValueError: If it has fewer than two different texts, or is not UTF-8.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no such file of texts; write one text per line")
    texts = list(dict.fromkeys(line.strip() for line in read_text(path).splitlines() if line.strip()))
    if len(texts) < 2:
        raise ValueError(f"{path}: {len(texts)} text(s); give two or more to rank")
    return texts


@dataclass(frozen=True, slots=True)
class Ranked:
    """What is known about one image.

    Args:
        texts: Text → cosine, best first.
        embedding: ``E``, L2-normalised.
        slices: The volume as the encoder read it, ``X Y N``, valid slices only; ``None`` for a 2D image.
        weights: Weight of each slice, ``N``; ``None`` where the pooling has no weights.
    """

    texts: dict[str, float]
    embedding: Tensor
    slices: Tensor | None = None
    weights: Tensor | None = None


class TextRanking:
    """Ranks texts for images and volumes and writes tables, figures and embeddings.

    Args:
        towers: ``"image"`` and ``"volume"`` → trained tower. The volume's encoder gives one token per slice.
        rows: The same → how images are standardised.
        embed_text: ``embed_text(texts) -> P E`` of the model's text tower.
        texts: Candidates.
        studies: From :func:`image_or_volume_studies`. One that cannot be used is listed with its reason.
        folder: Receives ``ranking.csv``, ``embeddings.npz``, and for volumes ``slices.csv`` and ``<study>_slices.png``.
        device: Where the towers run.
        shown: Slices in a figure.
    """

    def __init__(
        self,
        towers: Mapping[str, Tower],
        rows: Mapping[str, ImageRows],
        embed_text: Callable[[Sequence[str]], Tensor],
        texts: Sequence[str],
        studies: Sequence[Study],
        folder: str | Path,
        device: torch.device | str = "cpu",
        shown: int = 6,
    ) -> None:
        self.towers, self.rows, self.embed_text = dict(towers), dict(rows), embed_text
        self.texts, self.studies = list(texts), list(studies)
        self.folder, self.device, self.shown = Path(folder), device, shown

    def run(self) -> dict[str, Ranked]:
        """Rank and write.

        Returns:
            Study id → what was found.

        Raises:
            RefusedInputs: If an image could not be used; the others are written. The message gives the reasons.
        """
        texts = self.embed_text(self.texts).float()
        return predict_each(self.studies, lambda study: self._rank(study, texts), self._write)

    @torch.no_grad()
    def _rank(self, study: Study, texts: Tensor) -> Ranked:
        (modality,) = study.images
        tower = self.towers[modality].to(self.device).eval()
        x = self.rows[modality].make(study)[None].to(self.device)
        slices = weights = None
        pooling: Any = tower.pooling
        if modality == "volume":
            output = tower.encoder(x)
            row = tower.pool(output.tokens, output.mask)
            kept = output.mask[0]
            slices = x[0, 0][..., kept].cpu()
            if hasattr(pooling, "slice_weights"):
                weights = pooling.slice_weights(output.tokens, output.mask)[0][kept].cpu()
        else:
            row = tower(x)
        cosines = (row.cpu() @ texts.T)[0]
        order = cosines.argsort(descending=True, stable=True).tolist()
        return Ranked({self.texts[i]: float(cosines[i]) for i in order}, row[0].cpu(), slices, weights)

    def _write(self, found: dict[str, Ranked], refused: Mapping[str, str]) -> dict[str, Ranked]:
        ranking = [
            (study, rank, text, f"{cosine:.6f}")
            for study, one in found.items()
            for rank, (text, cosine) in enumerate(one.texts.items(), 1)
        ]
        write_csv(self.folder / "ranking.csv", ("study", "rank", "text", "cosine"), ranking)
        rows = torch.stack([one.embedding for one in found.values()]).numpy()
        with atomic(self.folder / "embeddings.npz") as file:
            np.savez(file, study=np.array(list(found)), embedding=rows)
        weighed = {study: one for study, one in found.items() if one.weights is not None}
        if weighed:
            weights = [(s, k, f"{w:.6f}") for s, one in weighed.items() for k, w in enumerate(one.weights.tolist(), 1)]  # type: ignore[union-attr]
            write_csv(self.folder / "slices.csv", ("study", "slice", "weight"), weights)
        for study, one in weighed.items():
            slice_strip(figure_path(self.folder, study, "_slices.png"), one, self.shown, study)
        for study, one in found.items():
            best = ", ".join(f"{text} {cosine:.3f}" for text, cosine in list(one.texts.items())[:3])
            logger.info("%s: %s", study, best)
        logger.info("%d image(s) → %s; %d refused", len(found), self.folder / "ranking.csv", len(refused))
        return found


def slice_strip(path: str | Path, found: Ranked, shown: int = 6, title: str = "") -> Path:
    """Draw the slices with the largest weights, in their order in the body, over the weights of all.

    Args:
        path: PNG to write.
        found: With slices and weights.
        shown: Slices drawn, at most.
        title: First line of the figure.

    Raises:
        ValueError: If there are no slices or no weights.
    """
    if found.slices is None or found.weights is None:
        raise ValueError(f"{path}: a strip needs slices and their weights; use a pooling that has slice_weights")
    weights = found.weights.numpy()
    chosen = np.sort(np.argsort(-weights, kind="stable")[:shown])
    figure = sheet(1.6 * len(chosen) + 0.4, 3.6)
    grid = figure.add_gridspec(2, len(chosen), height_ratios=(3, 2))
    for place, k in enumerate(chosen):
        axes = figure.add_subplot(grid[0, place])
        axes.imshow(found.slices[..., k].T.numpy(), cmap="gray", vmin=0, vmax=1)
        axes.set_title(f"slice {k + 1}: {100 * weights[k]:.1f} %", fontsize=8)
        axes.set_axis_off()
    bars = figure.add_subplot(grid[1, :])
    bars.bar(
        np.arange(1, len(weights) + 1),
        100 * weights,
        color=["C1" if k in chosen else "C0" for k in range(len(weights))],
    )
    bars.axhline(100 / len(weights), color="0.4", linewidth=0.8, linestyle="--")
    bars.set_xlabel("slice (dashed: the same weight for all)", fontsize=8)
    bars.set_ylabel("weight, %", fontsize=8)
    bars.tick_params(labelsize=7)
    best, cosine = next(iter(found.texts.items()))
    figure.suptitle(f"{title}\nbest text: {best} (cosine {cosine:.3f})".strip(), fontsize=9, parse_math=False)
    return save_png(figure, path)


def _images(files: Mapping[Path, Format]) -> list[Path]:
    stacks = slice_folders(files)
    slices = {path for paths in stacks.values() for path in paths}
    return sorted([*stacks, *(path for path in files if path not in slices)])


def _study(path: Path, name: str) -> Study:
    flat = path.is_file() and format_of(path) not in ("nifti", "nrrd")
    source = FileSource(path, "picture" if flat else "scan")
    return Study(study_id=name, subject_id=name, scan_id=name, images={"image" if flat else "volume": source})

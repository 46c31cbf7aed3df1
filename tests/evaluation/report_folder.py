"""A small evaluation folder with everything a report can show, and names that try to break out of the page."""

from __future__ import annotations

import math
from pathlib import Path

import numpy as np
import pandas as pd

from medvl_core.specs import Metric
from medvl_evaluation.comparison import Context, Estimate, compare, write_evaluation
from medvl_evaluation.metrics import auroc_auprc, recall_at_k
from medvl_evaluation.page import write_provenance
from medvl_evaluation.page.cases import Cases, write_cases, write_pictures
from medvl_evaluation.page.folder import CASES, PICTURES
from medvl_evaluation.predictions import Predictions

SCRIPT = "<script>window.hacked = true</script>"
CLASSES = ("Effusion", SCRIPT, 'Nodule" onmouseover="window.hacked = true', "Never seen", "Mass")
CANARY = f"Canary report {SCRIPT} <img src=x onerror='window.hacked = true'>"
N = 40


def ids(n: int = N) -> list[str]:
    return [f"study{i}<b>" for i in range(n)]


def told(n: int = N, seed: int = 0, signal: float = 1.5) -> Predictions:
    """Scores that rank better than chance; the fourth class has no positive, one label of the first is unknown."""
    labels = (np.random.default_rng(7).random((n, 5)) < (0.4, 0.3, 0.5, 0.0, 0.5)).astype(float)
    labels[0, 0] = np.nan
    scores = signal * np.nan_to_num(labels) + np.random.default_rng(seed).standard_normal((n, 5)) - 0.5
    subjects = [f"subject{i // 2}" for i in range(n)]
    return Predictions(ids(n), subjects, CLASSES, labels, scores, 1 / (1 + np.exp(-scores)))


def per_class(scored: Predictions) -> pd.DataFrame:
    auroc, auprc = auroc_auprc(scored.labels, scored.scores)
    table = pd.DataFrame({"class": CLASSES, "n_positive": (scored.labels == 1).sum(0)})
    table["n_negative"] = (scored.labels == 0).sum(0)
    for name, values in (("auroc", auroc), ("auprc", auprc)):
        table[name], table[f"{name}_low"], table[f"{name}_high"] = values, values - 0.1, values + 0.1
    table["auprc_chance"] = 0.4
    return table


def cases(reports: bool = False) -> Cases:
    rng = np.random.default_rng(1)
    ct = rng.standard_normal((N, 8)).astype(np.float32)
    cxr = ct + 0.8 * rng.standard_normal((N, 8)).astype(np.float32)
    return Cases(
        study_id=np.array(ids()),
        scan_id=np.array([f"scan{i}" for i in range(N)]),
        n_findings=np.nansum(told().labels, axis=1).astype(int),
        embeddings={"cxr": cxr, "ct": ct},
        reports=np.array([f"{CANARY} {i}" for i in range(N)]) if reports else None,
    )


def make(folder: Path, *, validation: bool = True, reports: bool = False, seed: int = 0) -> Path:
    """All the files of an evaluation."""
    scored, kept = told(seed=seed), cases(reports)
    recall = recall_at_k(kept.embeddings["cxr"], kept.embeddings["ct"], (1,))[1]
    rows = {
        "chance": {"cxr_to_ct/recall_at_1": Estimate(1 / N), "auroc_macro": Estimate(0.5)},
        "trained": {"cxr_to_ct/recall_at_1": Estimate(recall, 0.1, 0.9), "auroc_macro": Estimate(0.8, 0.7, 0.9)},
    }
    context = Context(n_studies=N, n_subjects=N // 2, n_resamples=10, seed=0)
    comparison = compare(rows, context, [Metric(name=name) for name in rows["trained"]])
    groups = pd.DataFrame({"group": ["F", SCRIPT], "n_studies": [22, 18], "auroc_macro": [0.81, math.nan]})
    tables = {
        "zero_shot_per_class": per_class(scored),
        "zero_shot_predictions": scored.table(),
        "prompts_wordings": pd.DataFrame({"wording": ["plain", SCRIPT], "auroc_macro": [0.8, 0.7]}),
        "subgroups_sex": groups,
        "probe_summary": pd.DataFrame({"fraction": [0.1, 1.0], "auroc": [0.61, 0.7]}),
        **({"validation_zero_shot_predictions": told(30, seed=9).table()} if validation else {}),
    }
    write_evaluation(folder, comparison, tables)
    labels = {name: {"positive": 10, "known": 40} for name in CLASSES}
    split = {"studies": 40, "subjects": 20, "labels": labels, "digest": "0123456789abcdef" * 4}
    manifest = {
        "command": "python -m monai.bundle run --config_file x2ct/configs/train.json",
        "commit": "f" * 40 + "-dirty",
        "data": {"train": split, "test": split},
        "seed": 3,
        "packages": {"torch": "2.13"},
    }
    write_provenance(folder, None, manifest)
    write_cases(folder / CASES, kept)
    rng = np.random.default_rng(2)
    write_pictures(folder / PICTURES, {study: rng.integers(0, 255, (64, 56), dtype=np.uint8) for study in ids()})
    return folder

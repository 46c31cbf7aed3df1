"""Panels of single cases: retrieval gallery, failure cases, the map of embeddings."""

from __future__ import annotations

import importlib.util
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray

from medvl_evaluation.metrics import chance_recall, recall_of_ranks, retrieval_ranks
from medvl_evaluation.page.cases import Cases
from medvl_evaluation.page.figures import embedding_scatter, grey_png, recall_lines
from medvl_evaluation.page.folder import EvaluationFolder
from medvl_evaluation.page.label_panels import points_of
from medvl_evaluation.page.panels import Panel, number

__all__ = ["embedding_map", "failures", "gallery", "project_embeddings", "shown_studies"]

_SHOWN = 5
_FAILURES = 12
_MOST_OF_ONE_FINDING = 2
_MOST_MAPPED = 400
_EXCERPT = 320


def shown_studies(folder: EvaluationFolder) -> list[str]:
    """Ids of the studies that the report shows a picture of."""
    studies = [case["study"] for side in _gallery_cases(folder).values() for case in side]
    return list(dict.fromkeys([*studies, *(case["study"] for case in _mistakes(folder))]))


def gallery(folder: EvaluationFolder, show_text: bool) -> Panel:
    """The queries that find their own item first, those that find it last, and the recall over k."""
    title = "Retrieval"
    directions = _directions(folder)
    if not directions:
        return Panel("gallery", title, missing="nothing was retrieved: no pair of modalities with a recall metric")
    query, item = directions[0]
    sides = _gallery_cases(folder)
    content = {
        "sides": {side: _with_pictures(folder, cases, show_text) for side, cases in sides.items()},
        "figure": _recalls(folder, directions),
    }
    text = f"Query: {query}. Shown: the rank of its own {item} (or of one of the same scan) among all {_n(folder)}."
    return Panel("gallery", title, content, (text,))


def _n(folder: EvaluationFolder) -> int:
    return 0 if folder.cases is None else len(folder.cases.study_id)


def _directions(folder: EvaluationFolder) -> list[tuple[str, str]]:
    """(query, gallery) of every ``<query>_to_<gallery>/…`` metric whose embeddings are there."""
    names = dict.fromkeys(name.split("/")[0] for name in folder.metrics["metrics"] if "_to_" in name.split("/")[0])
    pairs = [tuple(name.split("_to_", 1)) for name in names]
    have = {} if folder.cases is None else folder.cases.embeddings
    return [(query, item) for query, item in pairs if query in have and item in have]


def _ranks(cases: Cases, query: str, item: str) -> NDArray[np.int64]:
    return retrieval_ranks(cases.embeddings[query], cases.embeddings[item], cases.scan_id, cases.scan_id)


def _gallery_cases(folder: EvaluationFolder) -> dict[str, list[dict[str, Any]]]:
    directions = _directions(folder)
    if folder.cases is None or not directions:
        return {}
    cases, ranks = folder.cases, _ranks(folder.cases, *directions[0])
    order = np.argsort(ranks, kind="stable")
    _, first = np.unique(cases.scan_id[order], return_index=True)
    order = order[np.sort(first)]  # one study per scan: reconstructions look alike
    few = min(_SHOWN, len(order) // 2)
    chosen = {"found first": order[:few], "found last": order[len(order) - few :][::-1]}
    return {
        side: [
            {"study": str(cases.study_id[i]), "line": f"rank {ranks[i]:,}", "detail": f"of {len(ranks):,}"}
            for i in rows
        ]
        for side, rows in chosen.items()
    }


def _recalls(folder: EvaluationFolder, directions: list[tuple[str, str]]) -> Any:
    assert folder.cases is not None
    n = len(folder.cases.study_id)
    depths = [k for k in (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000) if k <= n]
    _, group, sizes = np.unique(folder.cases.scan_id, return_inverse=True, return_counts=True)
    curves = {
        f"{query} → {item}": list(recall_of_ranks(_ranks(folder.cases, query, item), depths).values())
        for query, item in directions
    }
    return recall_lines(curves, depths, list(chance_recall(sizes[group], n, depths).values()))


def failures(folder: EvaluationFolder, show_text: bool) -> Panel:
    """The mistakes furthest on the wrong side of the operating point."""
    if not folder.predictions:
        return Panel("failures", "Failure cases", missing="no predictions of single cases were written")
    cases = _mistakes(folder)
    if not cases:
        return Panel("failures", "Failure cases", missing="no mistake at the operating points")
    note = (
        "Furthest on the wrong side of the operating point, in standard deviations (SD) of that finding's scores; "
        f"one per subject, at most {_MOST_OF_ONE_FINDING} per finding."
    )
    return Panel("failures", "Failure cases", {"cases": _with_pictures(folder, cases, show_text)}, (note,))


def _mistakes(folder: EvaluationFolder) -> list[dict[str, Any]]:
    if not folder.predictions:
        return []
    name, told = next(iter(folder.predictions.items()))
    thresholds = points_of(folder, name).threshold
    spread = told.scores.std(axis=0)
    distance = (told.scores - thresholds) / np.where(spread > 0, spread, np.inf)
    said = told.scores >= thresholds
    wrong = np.where((told.labels == 1) & ~said | (told.labels == 0) & said, np.abs(distance), -np.inf)
    wrong[:, np.isnan(thresholds)] = -np.inf
    chosen: list[dict[str, Any]] = []
    subjects: set[str] = set()
    per_class = np.zeros(len(told.classes), dtype=int)
    for flat in np.argsort(-wrong, axis=None, kind="stable"):
        i, c = np.unravel_index(flat, wrong.shape)
        if len(chosen) == _FAILURES or not np.isfinite(wrong[i, c]):
            break
        if told.subject_id[i] in subjects or per_class[c] == _MOST_OF_ONE_FINDING:
            continue
        subjects.add(told.subject_id[i])
        per_class[c] += 1
        what = "missed" if told.labels[i, c] == 1 else "false alarm"
        shown = told.scores[i, c] if told.probabilities is None else told.probabilities[i, c]
        detail = f"{what}: score {number(float(shown))}, {wrong[i, c]:.1f} SD off"
        chosen.append({"study": str(told.study_id[i]), "line": str(told.classes[c]), "detail": detail})
    return chosen


def _with_pictures(folder: EvaluationFolder, cases: list[dict[str, Any]], show_text: bool) -> list[dict[str, Any]]:
    texts = _texts(folder) if show_text else {}
    return [
        {
            **case,
            "picture": grey_png(folder.pictures[case["study"]], f"radiograph of study {case['study']}")
            if case["study"] in folder.pictures
            else None,
            "text": texts.get(case["study"], ""),
        }
        for case in cases
    ]


def _texts(folder: EvaluationFolder) -> Mapping[str, str]:
    if folder.cases is None or folder.cases.reports is None:
        return {}
    reports = (str(text) for text in folder.cases.reports)
    short = (text if len(text) <= _EXCERPT else text[:_EXCERPT].rsplit(" ", 1)[0] + " …" for text in reports)
    return dict(zip(map(str, folder.cases.study_id), short, strict=True))


def embedding_map(folder: EvaluationFolder) -> Panel:
    """All modalities on one map: UMAP where it is installed, else t-SNE."""
    title = "Map of the embeddings"
    cases = folder.cases
    if cases is None or not cases.embeddings:
        return Panel("map", title, missing="no embeddings were written")
    widths = {rows.shape[1] for rows in cases.embeddings.values()}
    if len(cases.study_id) < 10 or len(widths) > 1:
        return Panel("map", title, missing="a map needs ten studies or more, and embeddings of one width")
    rng = np.random.default_rng(0)
    n = len(cases.study_id)
    kept = np.sort(rng.choice(n, min(n, _MOST_MAPPED), replace=False))
    rows = np.concatenate([values[kept] for values in cases.embeddings.values()])
    modality = [name for name in cases.embeddings for _ in kept]
    directions = _directions(folder)
    main = directions[0][0] if directions else modality[0]
    points, method = project_embeddings(rows)
    figure = embedding_scatter(points, modality, cases.n_findings[kept], main, method)
    drawn = f"{len(kept)} of {n} studies, drawn at random. " if len(kept) < n else ""
    note = f"{drawn}Distances between groups on such a map carry no meaning; neighbours do."
    return Panel("map", title, {"figure": figure}, (note,))


def project_embeddings(rows: NDArray[np.float32]) -> tuple[NDArray[np.float64], str]:
    """Rows ``N E`` on a plane by their cosines, ``N 2``, and the method: UMAP where it is installed, else t-SNE."""
    if importlib.util.find_spec("umap") is not None:
        import umap

        return np.asarray(umap.UMAP(metric="cosine", random_state=0).fit_transform(rows), dtype=float), "UMAP"
    from sklearn.manifold import TSNE

    perplexity = min(30.0, (len(rows) - 1) / 3)
    unit = rows / np.linalg.norm(rows, axis=1, keepdims=True).clip(1e-12)  # then distances order as cosines do
    made = TSNE(init="pca", perplexity=perplexity, random_state=0).fit_transform(unit)
    return np.asarray(made, dtype=float), "t-SNE"

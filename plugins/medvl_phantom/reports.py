"""Radiology-style reports from what a scan holds: no voxel is needed."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np

from medvl_core.study import Report
from medvl_phantom.findings import FINDINGS, Detail
from medvl_phantom.phrases import PHRASES, SYSTEMS, System

__all__ = ["clinical_information", "write_report"]

_DEGREES = ("mild", "moderate", "marked")
_EXTENTS = ("small", "moderate", "large")
_NUMBERS = ("a", "two", "three", "four", "several")
_DEVICES = {
    "port": ("a port catheter with its tip in the superior vena cava", "a venous port catheter"),
    "pacemaker": ("a cardiac pacemaker with leads in the right heart", "a left-sided pacemaker"),
    "sternotomy": (
        "sternotomy wire material with a prosthetic heart valve",
        "metallic suture material of a sternotomy",
    ),
    "tube": ("an endotracheal tube with a nasogastric catheter", "a nasogastric catheter"),
}
_HEDGES = ("Possible {}.", "Findings are suspicious for {}.", "Appearance suggests {}.", "Probable {}.")
_DENIALS = ("No {} is seen.", "No {}.", "No evidence of {}.", "There is no {}.", "No {} was detected.")


def _pick(rng: np.random.Generator, options: tuple[str, ...]) -> str:
    return options[int(rng.random() * len(options))]


def _capital(text: str) -> str:
    return text[:1].upper() + text[1:]


def _slots(detail: Detail, rng: np.random.Generator) -> dict[str, str]:
    """Values of every slot that a sentence may have."""
    level = min(int(3 * detail.severity), 2)
    both, many = len(detail.sides) > 1, detail.count > 1
    side = "bilateral" if both else "".join(detail.sides)
    slots = {
        "degree": _DEGREES[level],
        "extent": _EXTENTS[level],
        "side": side,
        "kind": detail.kind,
        "lobes": " and ".join(detail.lobes)
        if len(detail.lobes) < 3
        else ", ".join(detail.lobes[:-1]) + " and " + detail.lobes[-1],
        "size": f"{detail.size_mm:.0f}",
        "number": _NUMBERS[min(detail.count, 5) - 1],
        "device": _pick(rng, _DEVICES[detail.kind]) if detail.kind in _DEVICES else "",
        "are": "are" if many else "is",
    }
    for plural in ("nodules", "cysts", "stones"):
        slots[plural] = plural if many else plural[:-1]
    slots |= {word: word + "s" * both for word in ("zone", "base", "kidney")}
    slots["apex"] = "apices" if both else "apex"
    return slots | {_capital(key): _capital(value) for key, value in slots.items()}


def _positive(name: str, detail: Detail, rng: np.random.Generator) -> str:
    phrase, slots = PHRASES[name], _slots(detail, rng)
    if detail.severity < 0.4 and rng.random() < 0.3:
        return _pick(rng, _HEDGES).format(_pick(rng, phrase.nouns).format_map(slots))
    return _capital(_pick(rng, phrase.sentences).format_map(slots))


def _system(system: System, details: Mapping[str, Detail], rng: np.random.Generator) -> list[str]:
    """The sentences about one organ system: what is there, then what is not."""
    present = [name for name in system.findings if name in details]
    absent = [name for name in system.findings if name not in details]
    sentences = [_positive(present[i], details[present[i]], rng) for i in rng.permutation(len(present))]
    if not present and system.normal and rng.random() < 0.75:
        sentences.append(_pick(rng, system.normal))
    denied = [name for name in absent if rng.random() < 0.28]
    if len(denied) > 1 and rng.random() < 0.5:
        first, second = (PHRASES[name].negated for name in denied[:2])
        sentences.append(_pick(rng, _DENIALS).format(f"{first} or {second}"))
        denied = denied[2:]
    sentences += [_pick(rng, _DENIALS).format(PHRASES[name].negated) for name in denied[:2]]
    return sentences


def write_report(details: Mapping[str, Detail], rng: np.random.Generator) -> Report:
    """Write the findings and the impression.

    Every finding in ``details`` is stated once in the findings and never denied; some absent ones are denied, the rest
    go without mention; mild ones may be hedged ("Possible ...").

    Args:
        details: Present findings.
        rng: Chooses sentences and their order.

    Returns:
        The report.
    """
    order = np.argsort(np.arange(len(SYSTEMS)) + rng.uniform(0, 2.2, len(SYSTEMS)))
    sentences = [sentence for k in order for sentence in _system(SYSTEMS[k], details, rng)]
    return Report(findings=" ".join(sentences), impression=_impression(details, rng))


def _impression(details: Mapping[str, Detail], rng: np.random.Generator) -> str:
    if not details:
        return _pick(
            rng, ("No significant abnormality.", "Findings within normal limits.", "No acute pathology is detected.")
        )
    named = sorted(details, key=lambda name: -details[name].severity)
    kept = [name for name in named if details[name].severity > 0.25 or rng.random() < 0.5] or named[:1]
    nouns = [_pick(rng, PHRASES[name].nouns).format_map(_slots(details[name], rng)) for name in kept]
    if len(nouns) > 1 and rng.random() < 0.4:
        return _capital(", ".join(nouns[:-1]) + " and " + nouns[-1] + ".")
    return " ".join(_capital(noun) + "." for noun in nouns)


_REASONS = (
    "Cough",
    "Shortness of breath",
    "Chest pain",
    "Fever",
    "Follow-up",
    "Weight loss",
    "Abdominal pain",
    "Not given",
)


def clinical_information(details: Mapping[str, Detail], rng: np.random.Generator) -> str:
    """Why the scan was made: loosely tied to what it shows, or the placeholder ``"Not given."``."""
    weights = np.array([1.0, 1, 1, 1, 1.5, 0.5, 0.5, 2])
    weights[[0, 3]] += 2 * any(name in details for name in ("Consolidation", "Lung opacity"))
    weights[1] += 2 * any(name in details for name in ("Pleural effusion", "Cardiomegaly", "Emphysema"))
    weights[6] += 2 * any(organ in ("pancreas", "gallbladder") for name in details for organ in FINDINGS[name].organs)
    return _REASONS[int(rng.choice(len(_REASONS), p=weights / weights.sum()))] + "."

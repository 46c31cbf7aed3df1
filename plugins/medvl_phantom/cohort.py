"""The cohort as a dataset: patients, scans and reconstructions in fixed splits."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cache
from pathlib import Path
from typing import Any, Literal

import numpy as np

from medvl_core.study import Image, Study
from medvl_phantom.findings import FINDINGS, LESIONS
from medvl_phantom.organs import ORGANS
from medvl_phantom.render import PAINTED, Address, Scan, plan, reconstruction, render
from medvl_phantom.reports import clinical_information, write_report
from medvl_phantom.streams import stream

__all__ = ["PhantomCohort", "PhantomImage", "PhantomRegions"]

SPLITS = ("train", "validation", "test")
_GOLDEN = 0.6180339887498949


@cache
def _code_digest() -> str:
    """Digest of the generator's own source: a changed generator never passes for the old one."""
    digest = hashlib.sha256()
    for path in sorted(Path(__file__).parent.glob("*.py")):
        digest.update(path.name.encode() + path.read_bytes())
    return digest.hexdigest()


def _fingerprint(kind: str, address: Address) -> str:
    return hashlib.sha256(f"{kind} {address!r} {_code_digest()}".encode()).hexdigest()


@dataclass(frozen=True, slots=True)
class PhantomImage:
    """The CT of one address, made when asked for: HU ``X Y Z`` float32, RAS+ affine in mm."""

    address: Address

    def load(self) -> Image:
        """Make the volume."""
        scan = plan(self.address)
        return Image(render(self.address)[0].copy(), reconstruction(self.address, scan).grid.affine)

    def fingerprint(self) -> str:
        """Digest of the address and of the generator's source."""
        return _fingerprint("ct", self.address)

    def showing(self, *findings: str) -> PhantomImage:
        """The same patient, pose and noise with exactly these findings."""
        return PhantomImage(
            replace(self.address, findings=tuple(name for name in FINDINGS if name in _known(findings)))
        )


def _known(findings: Sequence[str]) -> Sequence[str]:
    unknown = [name for name in findings if name not in FINDINGS]
    if unknown:
        raise ValueError(f"unknown findings {unknown}; known are {', '.join(FINDINGS)}")
    return findings


@dataclass(frozen=True, slots=True)
class PhantomRegions:
    """The organ labels on the grid of a ``PhantomImage``: ``X Y Z`` uint8."""

    address: Address

    def load(self) -> Image:
        """Make the label map."""
        scan = plan(self.address)
        return Image(render(self.address)[1].copy(), reconstruction(self.address, scan).grid.affine)

    def fingerprint(self) -> str:
        """Digest of the address and of the generator's source."""
        return _fingerprint("regions", self.address)


class PhantomCohort:
    """Procedural patients with chest-to-abdomen CTs, organ labels, findings, reports and simulated radiographs.

    Args:
        n_subjects: Patients.
        shape: Voxels ``(X, Y, Z)`` of every CT; their spacing follows the field of view.
        seed: Seed. A patient depends on ``seed`` and their number only, never on ``n_subjects``.
        shares: Shares of patients in train, validation and test.
        follow_up: Share of patients with a second scan.
        second_reconstruction: Share of scans with a second kernel and field of view; both share ``scan_id`` and report.
        radiograph: Keyword arguments of ``medvl_imaging.radiograph.SimulatedRadiograph``.
        labels: Findings that studies are labelled with; ``None``: all. The images hold the others too.
        rare: Labels to report as a group of their own.
        prevalence: Finding → share of scans that have it, in place of the catalogue's (2 % to 38 %).
        lesions: Findings whose voxels are structures of their own in ``regions`` (``liver_cyst``), over the organs.

    Attributes:
        label_names: CT-RATE's 18 labels in its order, then abdominal and vascular ones; or those of ``labels``.
        label_groups: ``"base"`` and ``"rare"``; empty without ``rare``.

    Raises:
        ValueError: If an argument breaks its rule, or ``n_subjects`` is too small to fill every split with a share.
    """

    label_names: tuple[str, ...] = tuple(FINDINGS)

    def __init__(
        self,
        n_subjects: int = 200,
        shape: Sequence[int] = (96, 96, 96),
        seed: int = 0,
        shares: Sequence[float] = (0.7, 0.1, 0.2),
        follow_up: float = 0.12,
        second_reconstruction: float = 0.25,
        radiograph: Mapping[str, Any] | None = None,
        labels: Sequence[str] | None = None,
        rare: Sequence[str] = (),
        prevalence: Mapping[str, float] | None = None,
        lesions: Sequence[str] = (),
    ) -> None:
        if n_subjects < 1:
            raise ValueError(f"n_subjects is {n_subjects}; at least 1")
        if len(shape) != 3 or min(shape) < 16:
            raise ValueError(f"shape is {tuple(shape)}; three axes of at least 16 voxels")
        if len(shares) != 3 or min(shares) < 0 or abs(sum(shares) - 1) > 1e-6:
            raise ValueError(f"shares is {tuple(shares)}; three shares (train, validation, test) that sum to 1")
        for name, value in (("follow_up", follow_up), ("second_reconstruction", second_reconstruction)):
            if not 0 <= value <= 1:
                raise ValueError(f"{name} is {value}; a share between 0 and 1")
        if wrong := {name: share for name, share in (prevalence or {}).items() if not 0 < share < 1}:
            raise ValueError(f"prevalence is {wrong}; shares between 0 and 1")
        if bodily := [name for name in _known(lesions) if name not in PAINTED]:
            raise ValueError(f"lesions names {bodily}, which have no voxels of their own; {', '.join(PAINTED)} do")
        self.prevalence = tuple((name, float((prevalence or {})[name])) for name in _known(tuple(prevalence or ())))
        self.lesions = tuple(lesions)
        self.region_names = ORGANS | dict(LESIONS[name] for name in self.lesions)
        self.n_subjects, self.seed = n_subjects, seed
        self.shape = (int(shape[0]), int(shape[1]), int(shape[2]))
        self.follow_up, self.second_reconstruction = follow_up, second_reconstruction
        self.radiograph = dict(radiograph or {})
        if labels is not None:
            self.label_names = tuple(_known(labels))
        if unlabelled := [name for name in rare if name not in self.label_names]:
            raise ValueError(f"rare names {unlabelled}, not among the labels {', '.join(self.label_names)}")
        groups = {"base": tuple(name for name in self.label_names if name not in rare), "rare": tuple(rare)}
        self.label_groups: dict[str, tuple[str, ...]] = groups if rare else {}
        # Golden-ratio steps fill the shares evenly at every n_subjects and never move a patient.
        place = ((np.arange(n_subjects) + 0.5) * _GOLDEN) % 1.0
        self._split = np.searchsorted(np.cumsum(shares)[:2], place, side="right")
        empty = [name for k, name in enumerate(SPLITS) if shares[k] > 0 and k not in self._split]
        if empty:
            raise ValueError(
                f"n_subjects is {n_subjects}, which leaves {' and '.join(empty)} empty; give more or set shares"
            )

    def studies(self, split: Literal["train", "validation", "test"]) -> list[Study]:
        """The studies of a split, by patient, scan and reconstruction; nothing is rendered.

        Raises:
            ValueError: If ``split`` is unknown.
        """
        if split not in SPLITS:
            raise ValueError(f"split is {split!r}; one of {', '.join(SPLITS)}")
        subjects = np.flatnonzero(self._split == SPLITS.index(split)).tolist()
        return [study for subject in subjects for study in self._subject(subject)]

    def _subject(self, subject: int) -> list[Study]:
        scans = 1 + int(stream(self.seed, subject, "scans").random() < self.follow_up)
        studies = []
        for scan in range(scans):
            base = Address(self.seed, subject, scan, 0, self.shape, None, self.prevalence, self.lesions)
            held = plan(base)
            report = write_report(held.details, stream(self.seed, subject, scan, "report"))
            again = stream(self.seed, subject, scan, "reconstructions").random() < self.second_reconstruction
            studies += [self._study(replace(base, reconstruction=r), held, report) for r in range(1 + int(again))]
        return studies

    def _study(self, address: Address, scan: Scan, report: Any) -> Study:
        from medvl_imaging.radiograph import SimulatedRadiograph  # loads torch

        image = PhantomImage(address)
        subject_id = f"phantom{address.seed}_{address.subject:05d}"
        scan_id = f"{subject_id}_{'ab'[address.scan]}"
        made, person = reconstruction(address, scan), scan.body.person
        reason = clinical_information(scan.details, stream(address.seed, address.subject, address.scan, "reason"))
        return Study(
            study_id=f"{scan_id}_{address.reconstruction + 1}",
            subject_id=subject_id,
            scan_id=scan_id,
            images={"ct": image, "cxr": SimulatedRadiograph(image, **self.radiograph)},
            regions=PhantomRegions(address),
            region_names=self.region_names,
            report=report,
            labels={name: float(name in scan.details) for name in self.label_names},
            metadata={
                "age": float(person.age),
                "sex": person.sex,
                "contrast_phase": scan.body.phase,
                "kernel": made.kernel,
                "noise_hu": round(made.noise_hu, 1),
                "fov_mm": made.fov_mm,
                "clinical_information": reason,
            },
        )

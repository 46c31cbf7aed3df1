"""Shared fixtures: a small synthetic cohort, real data where it is, and no network."""

from __future__ import annotations

import os
import socket
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import pytest

from medvl_core.manager import PluginRecord, Registry, registry, using
from medvl_core.study import Image, Report, Study

ROOT = Path(__file__).resolve().parents[1]


@dataclass(frozen=True)
class ArraySource:
    """An image source over an array that is made from a seed."""

    seed: int
    shape: tuple[int, ...]

    def load(self) -> Image:
        rng = np.random.default_rng(self.seed)
        array = (rng.standard_normal(self.shape) * 100).astype(np.float32)
        return Image(array, np.diag([-2.0, -2.0, 2.0, 1.0]) if len(self.shape) == 3 else None)

    def fingerprint(self) -> str:
        return f"array-{self.seed}-{self.shape}"


def synthetic_studies(n: int) -> list[Study]:
    """Studies with a CT of 10³ voxels, a 16² radiograph, a report, two labels; two studies per scan."""
    return [
        Study(
            study_id=f"study{i}",
            subject_id=f"subject{i // 2}",
            scan_id=f"scan{i // 2}",
            images={"ct": ArraySource(i, (10, 10, 10)), "cxr": ArraySource(1000 + i, (16, 16))},
            report=Report(findings=f"finding number {i}.", impression="stable."),
            labels={"a": float(i % 2), "b": float(i % 3 == 0)},
        )
        for i in range(n)
    ]


@pytest.fixture
def with_broken() -> Iterator[None]:
    """All plugins, and one that could not be loaded."""
    broken = PluginRecord(id="theirs", distribution="other", version="3", status="broken", reason="ImportError: no [x]")
    with using(Registry([*registry().records, broken])):
        yield


@pytest.fixture
def studies() -> list[Study]:
    return synthetic_studies(12)


@pytest.fixture
def real_data() -> Path:
    """The folder of real CTs, radiographs and reports; skips where it is absent."""
    folder = Path(os.environ.get("MEDVL_REAL_DATA", ROOT.parent / "shared" / "data"))
    if not folder.is_dir():
        pytest.skip(f"no real data at {folder}; set MEDVL_REAL_DATA")
    return folder


@pytest.fixture(autouse=True)
def _no_network(monkeypatch: pytest.MonkeyPatch) -> None:
    """Anything but this machine is out of reach."""
    connect = socket.socket.connect

    def guarded(self: socket.socket, address: object) -> object:
        if self.family in (socket.AF_INET, socket.AF_INET6) and str(address[0]) not in (
            "127.0.0.1",
            "::1",
            "localhost",
        ):  # type: ignore[index]
            raise AssertionError(f"the test tried to reach {address}")
        return connect(self, address)  # type: ignore[arg-type]

    monkeypatch.setattr(socket.socket, "connect", guarded)

"""What a run was made with: commit, versions, plugins, command, seeds, data, device. Written beside its weights."""

from __future__ import annotations

import hashlib
import json
import math
import platform
import shlex
import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from importlib import metadata
from pathlib import Path
from typing import Any

from medvl_core.bundle.paths import config_files
from medvl_core.engine.files import write_text
from medvl_core.study import Study

__all__ = ["cohort_digest", "read_manifest", "run_manifest", "write_manifest"]

_PACKAGES = ("medvl", "torch", "monai", "pytorch-ignite", "transformers", "numpy", "nibabel", "itk", "mlflow", "pluggy")


def run_manifest(
    *, seed: int, device: object, studies: Mapping[str, Iterable[Study]] | None = None, **details: Any
) -> dict[str, Any]:
    """Everything needed to tell two runs apart.

    Args:
        seed: Of the run.
        device: It ran on.
        studies: Split → studies: recorded are their number, that of subjects, positive and known labels, and a digest
            of ids and image contents.
        details: Further entries, e.g. digests of weights.
    """
    from medvl_core.manager import registry

    return {
        "made": time.strftime("%Y-%m-%dT%H:%M:%S%z"),
        "command": " ".join(map(_quoted, sys.orig_argv)),
        "configs": {
            path.name: hashlib.sha256(path.read_bytes()).hexdigest() for path in config_files() if path.is_file()
        },
        "commit": _commit(),
        "seed": seed,
        "device": str(device),
        "platform": platform.platform(),
        "python": platform.python_version(),
        "packages": {name: _version(name) for name in _PACKAGES},
        "plugins": {
            record.id: {"distribution": record.distribution, "version": record.version, "status": record.status}
            for record in registry().records
        },
        "data": {split: _cohort(list(part)) for split, part in (studies or {}).items()},
        **details,
    }


def write_manifest(path: str | Path, manifest: Mapping[str, Any]) -> Path:
    """Write it as JSON, atomically."""
    return write_text(path, json.dumps(manifest, indent=1, sort_keys=True))


def read_manifest(path: str | Path) -> dict[str, Any]:
    """Read a manifest.

    Raises:
        FileNotFoundError: If there is none: the bundle has not been trained, or lacks the file.
    """
    path = Path(path)
    if not path.is_file():
        raise FileNotFoundError(f"{path}: no manifest; train the bundle first, or copy it with the weights")
    manifest: dict[str, Any] = json.loads(path.read_text())
    return manifest


def cohort_digest(studies: Iterable[Study]) -> str:
    """SHA-256 over study ids and the fingerprints of their images, in order."""
    digest = hashlib.sha256()
    for study in studies:
        digest.update(study.study_id.encode())
        for modality in sorted(study.images):
            digest.update(f"{modality}:{study.images[modality].fingerprint()}".encode())
    return digest.hexdigest()


def _cohort(studies: Sequence[Study]) -> dict[str, Any]:
    names = dict.fromkeys(name for study in studies for name in study.labels)
    values = {name: [study.labels.get(name, math.nan) for study in studies] for name in names}
    return {
        "studies": len(studies),
        "subjects": len({study.subject_id for study in studies}),
        "labels": {
            name: {"positive": column.count(1), "known": sum(value in (0, 1) for value in column)}
            for name, column in values.items()
        },
        "digest": cohort_digest(studies),
    }


def _quoted(word: str) -> str:
    """For a shell; a list of config files, full of single quotes, stays readable in double ones."""
    plain = "'" in word and not set(word) & set('"$`\\!')
    return f'"{word}"' if plain else shlex.quote(word)


def _commit() -> str:
    """The commit, with ``-dirty`` when tracked files differ from it."""
    command = ["git", "-C", str(Path(__file__).parent), "describe", "--always", "--dirty", "--abbrev=40", "--exclude=*"]
    try:
        result = subprocess.run(command, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return "not in a git checkout"
    return result.stdout.strip()


def _version(package: str) -> str:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return "not installed"

"""``medvl doctor``: what a bug report needs to say about the machine and the installation."""

from __future__ import annotations

import os
import platform
import shutil
import sys
import tempfile
from importlib import import_module
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path

from medvl_core.manager import Registry

__all__ = ["report"]

_PACKAGES = ("medvl", "torch", "monai", "pytorch-ignite", "transformers", "mlflow", "numpy", "nibabel", "itk")
_WRITTEN = ("models", "cache", "eval", "mlruns.db")


def report(registry: Registry, folder: Path | None = None) -> dict[str, dict[str, str]]:
    """Section → name → value, all text.

    Args:
        registry: The plugins to report on.
        folder: Where to look for bundles and their stores; the current folder by default.
    """
    return {
        "versions": {"python": f"{sys.version.split()[0]} ({platform.platform()})", **_versions()},
        "devices": _devices(),
        "disk": _disk(folder or Path.cwd()),
        "stores": _stores(folder or Path.cwd()),
        "plugins": {
            str(record): f"{record.status}, {record.reason or f'{len(record.specs)} components'}"
            for record in registry.records
        },
        "settings": {name: value for name, value in sorted(os.environ.items()) if name.startswith("MEDVL_")},
    }


def _versions() -> dict[str, str]:
    found = {}
    for name in _PACKAGES:
        try:
            found[name] = version(name)
        except PackageNotFoundError:
            found[name] = "not installed"
    return found


def _devices() -> dict[str, str]:
    try:
        torch = import_module("torch")
    except ImportError as error:
        return {"torch": f"cannot be imported: {error}"}
    found = {"cpu": f"{os.cpu_count()} cores, {torch.get_num_threads()} torch threads"}
    for index in range(torch.cuda.device_count()):
        properties = torch.cuda.get_device_properties(index)
        found[f"cuda:{index}"] = f"{properties.name}, {properties.total_memory / 2**30:.0f} GiB"
    if torch.backends.mps.is_available():
        found["mps"] = "available"
    return found


def _disk(folder: Path) -> dict[str, str]:
    hub = Path(os.environ.get("HF_HOME", Path.home() / ".cache" / "huggingface"))
    places = {"current folder": folder, "temporary files": Path(tempfile.gettempdir()), "weights (HF_HOME)": hub}
    return {name: f"{path}: {_free(path)}" for name, path in places.items()}


def _free(path: Path) -> str:
    nearest = next(parent for parent in (path, *path.resolve().parents) if parent.exists())
    writable = "writable" if os.access(nearest, os.W_OK) else "NOT writable"
    return f"{shutil.disk_usage(nearest).free / 2**30:.1f} GiB free, {writable}"


def _stores(folder: Path) -> dict[str, str]:
    """Bundles at and below the folder, with the size of what their runs have written."""
    found = {}
    places = ("", "*/", "monai_bundles/*/")
    for metadata in sorted({path for place in places for path in folder.glob(f"{place}configs/metadata.json")}):
        bundle = metadata.parent.parent
        sizes = [f"{name} {_size(bundle / name)}" for name in _WRITTEN if (bundle / name).exists()]
        found[str(bundle)] = ", ".join(sizes) or "nothing written yet"
    return found


def _size(path: Path) -> str:
    files = [path] if path.is_file() else [item for item in path.rglob("*") if item.is_file()]
    return f"{sum(item.stat().st_size for item in files) / 2**20:.1f} MiB"

"""Runs of a bundle in miniature: as a command, in a copy of the bundle."""

from __future__ import annotations

import importlib.util
import os
import shutil
import signal
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import ModuleType

import mlflow

ROOT = Path(__file__).parents[2]


def copy_bundle(folder: Path, name: str = "x2ct") -> Path:
    """A fresh copy of the bundle's tracked files, as ``folder/monai_bundles/<name>``."""
    target = folder / "monai_bundles" / name
    ignored = shutil.ignore_patterns("models", "eval", "cache", "mlruns*")
    shutil.copytree(ROOT / "monai_bundles" / name, target, ignore=ignored)
    return target


@contextmanager
def process_as_before() -> Iterator[None]:
    """A bundle's ``initialize`` takes over signals and the hook for uncaught errors; after the block they are back."""
    handlers = {number: signal.getsignal(number) for number in (signal.SIGINT, signal.SIGTERM)}
    try:
        yield
    finally:
        sys.excepthook = sys.__excepthook__
        for number, handler in handlers.items():
            signal.signal(number, handler)


def tiny(bundle: Path) -> Path:
    """The settings that make the bundle a miniature."""
    return ROOT / "tests" / "data" / f"tiny_{bundle.name}.json"


def script(name: str, bundle: Path = ROOT / "monai_bundles" / "x2ct") -> ModuleType:
    """A bundle's script as a module."""
    path = bundle / "scripts" / name
    spec = importlib.util.spec_from_file_location(path.stem, path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def command(
    bundle: Path, *arguments: str, configs: tuple[str, ...] = ("train.json",), inside: bool = False, processes: int = 1
) -> list[str]:
    """The command line, to be run from the bundle's parent folder, or from inside it."""
    torchrun = ("-m", "torch.distributed.run", "--standalone", f"--nproc_per_node={processes}")
    files = [str(Path("configs" if inside else f"{bundle.name}/configs") / config) for config in configs]
    files.append(str(tiny(bundle)))
    start = [sys.executable, *(torchrun if processes > 1 else ()), "-m", "monai.bundle", "run"]
    return [*start, "--config_file", str(files), *arguments]


def run(bundle: Path, *arguments: str, inside: bool = False, **options) -> subprocess.CompletedProcess[str]:
    """Run it to its end."""
    return subprocess.run(
        command(bundle, *arguments, inside=inside, **options),
        cwd=bundle if inside else bundle.parent,
        env=environment(),
        capture_output=True,
        text=True,
        timeout=500,
    )


def start(bundle: Path, *arguments: str) -> subprocess.Popen[str]:
    """Start it; what it says can be read line by line."""
    return subprocess.Popen(
        command(bundle, *arguments),
        cwd=bundle.parent,
        env=environment(),
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
    )


def environment() -> dict[str, str]:
    """One thread per process; processes meet on the loopback device, whatever the host's name resolves to."""
    return {**os.environ, "OMP_NUM_THREADS": "1", "GLOO_SOCKET_IFNAME": "lo"}


def losses(bundle: Path, key: str = "loss") -> dict[tuple[str, int], set[float]]:
    """(stage, step) → every loss that was logged for it; with ``"epoch_loss"``, of each epoch."""
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{bundle / 'mlruns.db'}")
    found: dict[tuple[str, int], set[float]] = {}
    for run in runs(bundle):
        stage = run.info.run_name.rsplit("-", 1)[1]
        for metric in client.get_metric_history(run.info.run_id, key):
            found.setdefault((stage, metric.step), set()).add(metric.value)
    return found


def runs(bundle: Path) -> list[mlflow.entities.Run]:
    """Every MLflow run of the bundle."""
    client = mlflow.MlflowClient(tracking_uri=f"sqlite:///{bundle / 'mlruns.db'}")
    experiment = client.get_experiment_by_name(bundle.name)
    return list(client.search_runs(experiment.experiment_id)) if experiment else []

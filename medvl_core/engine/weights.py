"""Weights in and out: strict loading, atomic saving, digests. A partial load never passes in silence."""

from __future__ import annotations

import hashlib
import logging
import os
from collections.abc import Mapping, Sequence
from fnmatch import fnmatchcase
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from medvl_core.errors import EXIT_DATA, MedvlError

__all__ = [
    "WeightsError",
    "atomic_save",
    "file_digest",
    "load_state",
    "load_weights",
    "read_checkpoint",
    "save_weights",
    "weights_digest",
]

logger = logging.getLogger(__name__)


class WeightsError(MedvlError, ValueError):
    """A weights file that is absent, unreadable or does not fit the module."""

    exit_code = EXIT_DATA


def read_checkpoint(path: Path | str) -> Any:
    """Read a ``.safetensors`` or a torch file on the CPU, never executing anything in it.

    Raises:
        WeightsError: If the file is missing, damaged, or holds anything but tensors and plain containers.
    """
    path = Path(path)
    if not path.is_file():
        raise WeightsError(f"{path}: no such weights file; put the file there or name another")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import load_file

            return load_file(path)
        return torch.load(path, map_location="cpu", weights_only=True)
    except Exception as error:  # torch and safetensors raise half a dozen types for a damaged or unsafe file
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise WeightsError(f"{path}: not a readable weights file ({reason}); fetch it again") from error


def load_weights(
    module: nn.Module,
    path: Path | str,
    *,
    prefix: str = "",
    rename: Mapping[str, str] | None = None,
    ignore: Sequence[str] = (),
    fresh: Sequence[str] = (),
) -> None:
    """Load a state dict into ``module``: every key must be there, none left over, every shape equal.

    Args:
        module: Receives the weights in place; unchanged when anything does not fit.
        path: ``.safetensors`` or torch file holding a flat state dict.
        prefix: Only keys that start with it are used, and it is cut off.
        rename: Further prefix → replacement, applied after ``prefix``.
        ignore: Patterns (``fnmatch``) of keys in the file that are known not to be needed.
        fresh: Patterns of the module's keys that keep their values, whatever the file has: a new head.

    Raises:
        WeightsError: Listing what is missing, unexpected and mis-shaped, after the file's name; or a pattern of
            ``fresh`` that fits no key of the module.
    """
    content = read_checkpoint(path)
    if not isinstance(content, Mapping) or not all(isinstance(value, Tensor) for value in content.values()):
        raise WeightsError(f"{path}: not a flat state dict (name → tensor); convert it first")
    state = {key[len(prefix) :]: value for key, value in content.items() if key.startswith(prefix)}
    for old, new in (rename or {}).items():
        state = {new + key[len(old) :] if key.startswith(old) else key: value for key, value in state.items()}
    own = module.state_dict()
    if idle := [pattern for pattern in fresh if not any(fnmatchcase(key, pattern) for key in own)]:
        raise WeightsError(f"{path}: fresh names {', '.join(idle)}, which fit no weight of {type(module).__name__}")
    kept = {key: value for key, value in own.items() if any(fnmatchcase(key, pattern) for pattern in fresh)}
    state = {key: value for key, value in state.items() if not any(fnmatchcase(key, one) for one in fresh)}
    load_state(module, state | kept, path, ignore=ignore)


def load_state(
    module: nn.Module,
    state: Mapping[str, Tensor],
    path: Path | str,
    names: Mapping[str, str] | None = None,
    *,
    ignore: Sequence[str] = (),
) -> None:
    """Load a state dict that was read from ``path`` and renamed or converted, strictly as ``load_weights`` does.

    A module on the meta device takes over the tensors themselves, cast to its types: nothing is drawn or copied.

    Args:
        module: Receives the weights in place; unchanged when anything does not fit.
        state: Name → tensor, in the module's own names.
        path: Named in errors.
        names: The module's name → the file's, where errors shall show the file's.
        ignore: Patterns (``fnmatch``) of keys that are known not to be needed.

    Raises:
        WeightsError: Listing what is missing, unexpected and mis-shaped, after the file's name.
    """
    names = names or {}
    state = {key: value for key, value in state.items() if not any(fnmatchcase(key, pattern) for pattern in ignore)}
    own = module.state_dict()
    own = {key: value for key, value in own.items() if key in state or not key.endswith("input_sha256")}  # see Tower
    problems = [
        *(f"missing {names.get(key, key)} {tuple(own[key].shape)}" for key in own if key not in state),
        *(f"unexpected {key} {tuple(state[key].shape)}" for key in state if key not in own),
        *(
            f"{names.get(key, key)} is {tuple(state[key].shape)}, needs {tuple(own[key].shape)}"
            for key in own
            if key in state and state[key].shape != own[key].shape
        ),
    ]
    if problems:
        listed = "; ".join(problems[:12]) + (f"; and {len(problems) - 12} more" if len(problems) > 12 else "")
        raise WeightsError(
            f"{path}: does not fit {type(module).__name__} ({len(problems)} of {len(own)} keys): {listed}"
        )
    state = {key: value.to(own[key].dtype) for key, value in state.items()}
    module.load_state_dict(state, strict=True, assign=any(value.is_meta for value in own.values()))
    logger.info("loaded %d tensors from %s", len(state), path)


def save_weights(module: nn.Module, path: Path | str) -> Path:
    """Write the module's state dict atomically: ``.safetensors`` or a torch file, by the suffix."""
    state = {key: value.detach().cpu().contiguous() for key, value in module.state_dict().items()}
    return atomic_save(state, path)


def atomic_save(content: Any, path: Path | str) -> Path:
    """Write beside the target, flush to disk, then replace it: a killed process leaves the old file or the new one.

    Raises:
        OSError: Naming the path, when the disk is full or not writable; the previous file stays.
    """
    path = Path(path)
    path.parent.mkdir(parents=True, exist_ok=True)
    partial = path.with_name(f".{path.name}.{os.getpid()}.part")
    try:
        if path.suffix == ".safetensors":
            from safetensors.torch import save_file

            save_file(content, partial)
        else:
            torch.save(content, partial)
        with partial.open("rb") as file:
            os.fsync(file.fileno())
        os.replace(partial, path)
    except (OSError, RuntimeError) as error:  # torch reports a full disk as RuntimeError
        partial.unlink(missing_ok=True)
        raise OSError(
            f"{path}: could not be written ({error}); free some space, the previous file is unchanged"
        ) from error
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)
    return path


def weights_digest(module: nn.Module) -> str:
    """SHA-256 over names, types, shapes and values of the state dict: the address of everything the module computes."""
    digest = hashlib.sha256()
    for key, value in sorted(module.state_dict().items()):
        value = value.detach().cpu().contiguous()
        digest.update(f"{key}:{value.dtype}:{tuple(value.shape)};".encode())
        digest.update(value.reshape(-1).view(torch.uint8).numpy().tobytes())
    return digest.hexdigest()


def file_digest(path: Path | str) -> str:
    """SHA-256 of a file's bytes."""
    with Path(path).open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()

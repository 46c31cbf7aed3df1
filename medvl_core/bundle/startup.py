"""What a bundle asks of medvl at start-up: mistyped overrides are refused, and errors are one line."""

from __future__ import annotations

import atexit
import json
import logging
import multiprocessing
import os
import re
import signal
import sys
from collections.abc import Iterable, Mapping, Sequence
from importlib import import_module
from pathlib import Path
from types import FrameType, TracebackType
from typing import TYPE_CHECKING, Any

from medvl_core.bundle.overrides import misread_overrides, rename_old_keys, unread_overrides
from medvl_core.bundle.paths import bundle_root, config_files, options
from medvl_core.errors import EXIT_IO, MedvlError, did_you_mean

if TYPE_CHECKING:
    from monai.bundle.config_parser import ConfigParser

__all__ = [
    "OverrideError",
    "begin",
    "bundle_root",
    "check_overrides",
    "exit_code",
    "explain",
    "install_excepthook",
    "running_config",
    "running_parser",
    "unknown_override_keys",
]

logger = logging.getLogger(__name__)

# fmt: off
MONAI_ARGUMENTS = frozenset({
    "run_id", "init_id", "final_id", "meta_file", "config_file", "logging_file", "tracking", "args_file",
    "workflow_name", "workflow_type", "properties_path",
    "tracking_uri", "experiment_name", "run_name", "save_execute_config", "output_dir",
})
# fmt: on
"""What ``python -m monai.bundle run`` and its MLflow tracking take themselves; everything else overrides a config."""


class OverrideError(MedvlError):
    """An override on the command line names no key of the configs."""


def begin(seed: int = 0) -> None:
    """What a bundle does first, in ``initialize``: errors in one line, overrides checked, processes joined, seed set.

    Ctrl-C and SIGTERM stop it after the current step.

    Args:
        seed: Of the weights that are made anew.
    """
    from medvl_core.engine.job import set_seed, start_process_group
    from medvl_core.engine.stop import handle_signals

    install_excepthook()
    if (parser := running_parser()) is not None and (lines := rename_old_keys(parser.get())):
        logger.warning("%s", "; ".join(lines))
        parser.parse(reset=True)
    check_overrides()
    if int(os.environ.get("WORLD_SIZE", "1")) > 1:
        start_process_group()
    handle_signals()
    set_seed(seed)


def unknown_override_keys(files: Iterable[str | Path], overrides: Iterable[str]) -> list[str]:
    """One line per override whose top-level key is in none of the config files.

    MONAI notices a mistyped nested key, but takes a mistyped top-level key for a new one and runs with the defaults.

    Args:
        files: JSON config files, as given to ``--config_file``.
        overrides: Keys such as ``"epochs"`` or ``"train#trainer#max_epochs"``.

    Raises:
        OverrideError: If a file is no JSON object.
    """
    files = list(files)
    contents = [_content(file) for file in files]
    known = {_top(key) for content in contents for key in content} | {"_meta_"}
    for metadata in {Path(file).parent / "metadata.json" for file in files}:
        known |= set(_content(metadata).get("medvl", {}).get("aliases", {})) if metadata.is_file() else set()
    unknown = [key for key in overrides if _top(key) not in known | MONAI_ARGUMENTS]
    return [f"no config has the key {_top(key)!r}{did_you_mean(_top(key), known)}" for key in unknown]


def check_overrides(argv: Sequence[str] | None = None) -> None:
    """Refuses overrides of ``python -m monai.bundle run`` that would do nothing; call it in ``initialize``.

    Mistyped top-level keys, words that MONAI reads otherwise (``false``, ``None``), and keys that are read only by a
    component that is not chosen.

    Does nothing when the process was not started as ``monai.bundle``, e.g. from Python.

    Args:
        argv: Command line with the program's path first; ``sys.argv`` when ``None``.

    Raises:
        OverrideError: One line per such override, with the nearest key or what to write.
    """
    argv = list(sys.argv if argv is None else argv)
    if Path(argv[0]).parts[-3:] != ("monai", "bundle", "__main__.py"):
        return
    overrides = options(argv[1:])
    wrong = unknown_override_keys(config_files(argv[1:]), overrides) or misread_overrides(overrides)
    if wrong := wrong or unread_overrides(running_config(), overrides):
        raise OverrideError("; ".join(wrong))


def _content(file: str | Path) -> dict[str, Any]:
    try:
        content = json.loads(Path(file).read_text(encoding="utf-8"))
    except ValueError as error:  # also of bytes that are no UTF-8
        raise OverrideError(f"{file}: is not JSON ({error}); correct it") from error
    if not isinstance(content, dict):
        raise OverrideError(f"{file}: must hold one JSON object")
    return content


def _top(key: str) -> str:
    """``"+train#trainer"`` → ``"train"``; MONAI reads ``#`` and ``::`` alike, and ``+`` extends a value."""
    return key.lstrip("+").replace("#", "::").split("::")[0]


def running_config() -> dict[str, Any]:
    """The config that MONAI is resolving right now: all files merged, overrides applied, expressions as written.

    Call it from something a config builds or runs; elsewhere it is empty.
    """
    parser = running_parser()
    return {} if parser is None else dict(parser.get())


def running_parser() -> ConfigParser | None:
    """MONAI's parser of that config. It hands it to nobody, but the parser stands on the stack."""
    from monai.bundle.config_parser import ConfigParser

    frame: FrameType | None = sys._getframe()
    while frame is not None:
        owner = frame.f_locals.get("self")
        if isinstance(owner, ConfigParser):
            return owner
        frame = frame.f_back
    return None


def explain(error: BaseException) -> str:
    """An error in one paragraph: the config id it happened at, and the cause that MONAI wrapped.

    Args:
        error: Anything raised while a config was parsed or run.

    Returns:
        ``"<config id>: <cause>"``; the type is left out for medvl's own errors, whose messages are written for users.
    """
    cause = _unwrapped(error)
    message = _of_worker(str(cause)) or type(cause).__name__
    text = message if isinstance(cause, MedvlError) else f"{type(cause).__name__}: {message}"
    notes = [note for note in getattr(cause, "__notes__", ()) if note.startswith("while ")]
    where = _config_id(error)
    return "\n  ".join([f"{where}: {text}" if where else text, *notes])


def _of_worker(message: str) -> str:
    """Without the traceback of the loader's worker process, which torch puts into the message: what it ends with."""
    if not re.match(r"Caught \w+ in DataLoader worker process", message):
        return message
    last = message.rpartition("Traceback (most recent call last):")[2]
    return re.split(r"^[\w.]+: ", last, maxsplit=1, flags=re.MULTILINE)[-1].rstrip()


def _unwrapped(error: BaseException) -> BaseException:
    """Follows MONAI's "Failed to ..." and pydoc's import wrapper, and no other: a plugin's own message stays."""
    while True:
        inner = error.__cause__ if isinstance(error, RuntimeError) and str(error).startswith("Failed to ") else None
        if type(error).__name__ == "ErrorDuringImport":  # pydoc's, which keeps the error in an attribute
            inner = error.value  # type: ignore[attr-defined]
        if inner is None:
            return error
        error = inner


def _config_id(error: BaseException) -> str:
    """Id of the innermost config item that was being resolved. MONAI's messages lack it, its stack frames have it."""
    found = ""
    trace: TracebackType | None = error.__traceback__
    while trace is not None:
        code = trace.tb_frame.f_code
        if code.co_name == "_resolve_one_item" and code.co_filename.endswith("reference_resolver.py"):
            found = str(trace.tb_frame.f_locals.get("id", found))
        trace = trace.tb_next
    return found


def exit_code(error: BaseException) -> int:
    """2, 65, 74, 75 or 77 where the cause has one of its own, else 1."""
    cause = _unwrapped(error)
    code: Any = getattr(cause, "exit_code", None)
    return code if isinstance(code, int) else EXIT_IO if isinstance(cause, OSError) else 1


def install_excepthook(environ: Mapping[str, str] = os.environ) -> None:
    """Shows an uncaught error as one ``ERROR`` paragraph on stderr and ends with its exit code. Workers end with it.

    Call it first in ``initialize``. ``MEDVL_DEBUG=1`` keeps Python's full traceback.
    """
    import_module("multiprocessing.util")  # its exit is registered before ours, which then comes first
    atexit.register(_end_workers)
    if environ.get("MEDVL_DEBUG") == "1":
        return

    def show(kind: type[BaseException], error: BaseException, trace: TracebackType | None) -> None:
        if not isinstance(error, Exception):
            sys.__excepthook__(kind, error, trace)
            return
        stream = sys.__stderr__ or sys.stderr  # torch holds back what its own hook writes to sys.stderr
        start = "\n" if stream.isatty() else ""  # a progress bar may stand in this line
        stream.write(f"{start}ERROR {explain(error)}\n(MEDVL_DEBUG=1 shows the full traceback)\n")
        stream.flush()
        raise SystemExit(exit_code(error))

    sys.excepthook = show


def _end_workers() -> None:
    """Before multiprocessing asks its children by SIGTERM, which loaders' workers ignore, and waits for them."""
    if hasattr(signal, "SIGCHLD"):
        signal.signal(signal.SIGCHLD, signal.SIG_DFL)  # torch's handler would raise
    for child in multiprocessing.active_children():
        if child.daemon:
            child.kill()

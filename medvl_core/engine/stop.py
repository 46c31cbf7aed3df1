"""Ctrl-C and SIGTERM: finish the step, save, leave with exit code 75. A second signal ends the process at once."""

from __future__ import annotations

import logging
import signal
import threading
from types import FrameType

from medvl_core.engine import distributed
from medvl_core.errors import EXIT_RESUME

__all__ = ["StopRequested", "handle_signals", "raise_if_requested"]

logger = logging.getLogger(__name__)
_requested = threading.Event()


class StopRequested(SystemExit):
    """Raised between steps after a signal; the process ends with code 75."""

    def __init__(self) -> None:
        super().__init__(EXIT_RESUME)

    def __str__(self) -> str:
        return "stopped by a signal; run the same command with --resume True to go on"


def handle_signals() -> None:
    """Take SIGINT and SIGTERM as a request to stop after the current step. Does nothing outside the main thread."""
    _requested.clear()
    if threading.current_thread() is threading.main_thread():
        for number in (signal.SIGINT, signal.SIGTERM):
            signal.signal(number, _on_signal)


def raise_if_requested() -> None:
    """Raise :class:`StopRequested` once any process got a signal; all processes call it, where work can resume."""
    if any(distributed.gather_objects(_requested.is_set())):
        raise StopRequested


def _on_signal(number: int, frame: FrameType | None) -> None:
    _requested.set()
    signal.signal(signal.SIGINT, signal.SIG_DFL)
    signal.signal(signal.SIGTERM, signal.SIG_DFL)
    logger.warning("%s: stopping after this step; a second signal stops at once", signal.Signals(number).name)

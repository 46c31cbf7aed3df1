"""Errors of the plugin system and the command line, each with the exit code the ``medvl`` command ends with."""

from __future__ import annotations

import difflib
from collections.abc import Iterable
from typing import ClassVar

__all__ = [
    "EXIT_DATA",
    "EXIT_IO",
    "EXIT_RESUME",
    "EXIT_UNSAFE",
    "EXIT_USAGE",
    "ComponentError",
    "ComponentLookupError",
    "MedvlError",
    "OptionError",
    "PluginError",
    "PluginWarning",
    "did_you_mean",
]

EXIT_USAGE = 2
EXIT_DATA = 65
EXIT_IO = 74
EXIT_RESUME = 75
EXIT_UNSAFE = 77


class MedvlError(Exception):
    """Base of the errors whose message is written for the user: shown as one line, without a traceback."""

    exit_code: ClassVar[int] = EXIT_USAGE


class PluginError(MedvlError):
    """A plugin could not be loaded, and ``MEDVL_STRICT=1`` asked for an error."""


class ComponentError(MedvlError):
    """A component's spec and its factory disagree."""


class ComponentLookupError(MedvlError, LookupError):
    """No component, or more than one, has the name asked for."""


class OptionError(MedvlError, TypeError):
    """A component was built with an option it does not have, or without one it needs."""


class PluginWarning(UserWarning):
    """A plugin is installed but was not loaded."""


def did_you_mean(word: str, known: Iterable[str]) -> str:
    """``"; did you mean 'x'?"`` for the known word nearest to ``word``, or an empty string."""
    close = difflib.get_close_matches(word, list(known), n=1, cutoff=0.6)
    return f"; did you mean {close[0]!r}?" if close else ""

"""How the predictors of all bundles go through their inputs and name their files."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar

from medvl_core.engine.files import safe_name, write_text
from medvl_core.errors import EXIT_DATA, MedvlError
from medvl_core.study import Study

__all__ = ["RefusedInputs", "figure_path", "predict_each", "write_record"]

logger = logging.getLogger(__name__)

One = TypeVar("One")
Result = TypeVar("Result")

_SHOWN = 5


class RefusedInputs(MedvlError, ValueError):
    """Inputs that could not be used; the results of the others are written. The message starts with the first file."""

    exit_code = EXIT_DATA


def predict_each(
    studies: Sequence[Study],
    predict: Callable[[Study], One],
    write: Callable[[dict[str, One], dict[str, str]], Result],
) -> Result:
    """Predict study by study and write: a study that cannot be used is listed with its reason, the rest go on.

    Args:
        studies: What was asked for.
        predict: Of one study. ``ValueError`` and ``OSError``, what readers raise for a bad file, refuse it; others are
            programming errors and go on up.
        write: Study id → prediction, study id → why it is left out; writes the files. Not called if nothing was found.

    Returns:
        What ``write`` gave.

    Raises:
        RefusedInputs: If a study was refused: after everything is written.
    """
    found: dict[str, One] = {}
    refused: dict[str, str] = {}
    for study in studies:
        try:
            found[study.study_id] = predict(study)
        except (ValueError, OSError) as error:
            if len(studies) == 1 and isinstance(error, (MedvlError, OSError)):
                raise  # it says more than the list would, and has an exit code of its own
            refused[study.study_id] = str(error)
            if len(studies) > 1:
                logger.error("%s", error)
    if not found:
        raise RefusedInputs("; ".join(refused.values()) or "no input; give a file or a folder of files")
    result = write(found, refused)
    if refused:
        reasons = list(refused.values())
        more = "; ..." if len(reasons) > _SHOWN else ""
        raise RefusedInputs(
            f"{'; '.join(reasons[:_SHOWN])}{more} ({len(refused)} of {len(studies)} inputs refused, the results of the "
            f"other {len(found)} are written; replace or remove these files)"
        )
    return result


def figure_path(folder: str | Path, study: str, ending: str = ".png") -> Path:
    """Where a study's figure goes; no two studies share a file. The folder is made."""
    path = Path(folder) / f"{safe_name(study)}{ending}"
    path.parent.mkdir(parents=True, exist_ok=True)
    return path


def write_record(path: str | Path, content: Mapping[str, Any], *notes: str) -> Path:
    """Write JSON that says what it may be used for, under ``"note"``."""
    note = "; ".join(["research use only", *notes])
    return write_text(path, json.dumps({**content, "note": note}, indent=1))

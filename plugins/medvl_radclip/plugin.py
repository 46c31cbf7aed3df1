"""What this plugin offers. Imports specs only: discovery loads neither torch nor monai."""

from __future__ import annotations

MEDVL_API = "1.0"

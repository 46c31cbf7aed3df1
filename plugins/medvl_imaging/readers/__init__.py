"""Read volumes and radiographs, and refuse what is damaged: each error is one line that starts with the path.

No reader of files is enough on its own: nibabel accepts a cut gzip tail, ITK a half-empty file, both a scan in no unit
at all. The checks here run before any number is used. Nothing here imports torch or monai.
"""

from __future__ import annotations

from medvl_imaging.readers.checks import ImageError
from medvl_imaging.readers.source import FileSource, read_radiograph, read_volume

__all__ = ["FileSource", "ImageError", "read_radiograph", "read_volume"]

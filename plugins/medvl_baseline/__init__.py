"""Generic components that any paper may use: encoders, poolings, losses, text sources, datasets."""

import medvl_core as medvl_core  # its import registers the old paths of this package, too

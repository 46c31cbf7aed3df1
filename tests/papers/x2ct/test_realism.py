"""The panel of simulated films beside real ones."""

import numpy as np
from PIL import Image as Picture

from medvl_core.study import Image
from medvl_x2ct import realism


def test_panel_has_a_row_per_volume_and_the_films_below(tmp_path):
    volume = np.full((20, 18, 16), -1000.0, np.float32)
    volume[5:15, 4:14, 2:14] = 40
    ct, film = Image(volume, np.diag([10.0, 10, 10, 1])), Image(np.eye(12, dtype=np.float32))
    sizes = {}
    for name, volumes, films in (("one", [ct], []), ("films", [ct], [film] * 7)):
        path = tmp_path / f"{name}.png"
        realism.save_panel(volumes, films, path, pixels=24)
        with Picture.open(path) as picture:
            sizes[name] = picture.size
            pixels = np.asarray(picture.convert("L"))
            assert (pixels < 60).any()  # air
    assert sizes["films"] == (sizes["one"][0], 3 * sizes["one"][1])


def test_phantoms_are_two_patients():
    first, second = realism.phantoms(16)
    assert first.array.shape == second.array.shape == (16, 16, 16)
    assert not np.array_equal(first.array, second.array)

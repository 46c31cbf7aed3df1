from __future__ import annotations

import csv

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn
from torch.nn.functional import normalize

from medvl_core.engine.alignment import Tower
from medvl_core.protocols import EncoderOutput
from medvl_core.specs import ImageInput
from medvl_evaluation.inference import RefusedInputs
from medvl_imaging.images import ImageRows
from medvl_radclip.ranking import Ranked, TextRanking, image_or_volume_studies, read_texts, slice_strip
from tests.imaging.dicom_files import ct_slices, dataset, save_series

TEXTS = ["bright", "dark", "striped"]


class Grey(nn.Module):
    """Mean grey value and its complement: nearest to the text "bright" or "dark"."""

    embed_dim = 3
    input = ImageInput(channels=1, size=(8, 8), window_hu=(0.0, 255.0), output_range=(0.0, 1.0), pad_value=0.0)

    def __init__(self):
        super().__init__()
        self.weight = nn.Parameter(torch.ones(()))

    def forward(self, x):
        mean = x.flatten(1).mean(1) * self.weight
        pooled = torch.stack([mean, 1 - mean, torch.zeros_like(mean)], 1)
        return EncoderOutput(tokens=pooled[:, None], grid=(1,), pooled=pooled)


def embed_text(texts, normalise=True):
    return torch.eye(3)[[TEXTS.index(text) for text in texts]]


def ranking(studies, folder):
    tower = Tower(Grey(), embed_dim=None)
    return TextRanking({"image": tower}, {"image": ImageRows("image", Grey.input)}, embed_text, TEXTS, studies, folder)


def picture(path, level):
    array = np.full((10, 10), level, dtype=np.uint8)
    array[0, 0] = level + 1  # a constant image is refused
    Image.fromarray(array).save(path)


def test_texts_come_in_the_order_of_their_cosine(tmp_path):
    picture(tmp_path / "a.png", 200)
    picture(tmp_path / "b.png", 30)
    found = ranking(image_or_volume_studies(tmp_path), tmp_path / "out").run()
    assert {study: list(one.texts) for study, one in found.items()} == {
        "a.png": ["bright", "dark", "striped"],
        "b.png": ["dark", "bright", "striped"],
    }
    mean = 200 / 255
    expected = normalize(torch.tensor([mean, 1 - mean, 0.0]), dim=0)
    torch.testing.assert_close(torch.tensor(list(found["a.png"].texts.values())), expected, atol=1e-3, rtol=0)
    with (tmp_path / "out" / "ranking.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["study"], row["rank"], row["text"]) for row in rows[:2]] == [
        ("a.png", "1", "bright"),
        ("a.png", "2", "dark"),
    ]
    exported = np.load(tmp_path / "out" / "embeddings.npz")
    np.testing.assert_allclose(exported["embedding"][0], expected, atol=1e-3)


def test_unusable_image_is_named_and_the_rest_go_on(tmp_path, caplog):
    picture(tmp_path / "a.png", 200)
    (tmp_path / "bad.png").write_bytes(b"no")
    studies = image_or_volume_studies(tmp_path)
    with pytest.raises(RefusedInputs, match=r"bad\.png: damaged .*1 of 2 inputs refused"):
        ranking(studies, tmp_path / "out").run()
    assert "bad.png" in caplog.text
    with (tmp_path / "out" / "ranking.csv").open() as file:
        assert {row["study"] for row in csv.DictReader(file)} == {"a.png"}


def test_nothing_usable_gives_the_reasons(tmp_path):
    (tmp_path / "bad.png").write_bytes(b"no")
    with pytest.raises(ValueError, match=r"bad\.png"):
        ranking(image_or_volume_studies(tmp_path), tmp_path / "out").run()


def test_a_dicom_folder_is_one_volume_and_a_folder_of_files_is_many(tmp_path):
    hu = np.random.default_rng(0).integers(-900, 900, (12, 10, 6)).astype(np.float32)
    save_series(tmp_path / "series", ct_slices(hu))
    (study,) = image_or_volume_studies(tmp_path / "series")
    assert list(study.images) == ["volume"]
    assert study.images["volume"].load().array.ndim == 3
    for place, ds in (("chest", dataset(np.eye(9, dtype=np.uint16), "1.2", "DX")), ("slice", ct_slices(hu)[0])):
        (tmp_path / "dump" / place).mkdir(parents=True)
        ds.save_as(tmp_path / "dump" / place / "IM0001", enforce_file_format=True)
    (tmp_path / "series").rename(tmp_path / "dump" / "series")
    found = {study.study_id: list(study.images) for study in image_or_volume_studies(tmp_path / "dump")}
    assert found == {"chest/IM0001": ["image"], "series": ["volume"], "slice/IM0001": ["image"]}
    (tmp_path / "many").mkdir()
    picture(tmp_path / "many" / "a.png", 100)
    (tmp_path / "many" / "b.nii.gz").write_bytes(b"")
    assert [list(s.images) for s in image_or_volume_studies(tmp_path / "many")] == [["image"], ["volume"]]


@pytest.mark.parametrize("name", ["absent.png", "."])
def test_no_image_is_refused(tmp_path, name):
    with pytest.raises(FileNotFoundError, match="no image here; give a PNG"):
        image_or_volume_studies(tmp_path / name)


def test_texts_are_lines_and_two_or_more(tmp_path):
    path = tmp_path / "texts.txt"
    path.write_text("one #2\n\n two \none #2\n")
    assert read_texts(path) == ["one #2", "two"]
    path.write_text("one\none\n")
    with pytest.raises(ValueError, match="1 text"):
        read_texts(path)
    with pytest.raises(FileNotFoundError, match="write one text per line"):
        read_texts(tmp_path / "absent.txt")


def test_strip_shows_the_heaviest_slices(tmp_path):
    weights = torch.full((12,), 0.05)
    weights[[3, 7]] = 0.25
    found = Ranked(
        {"bright": 0.5}, torch.ones(3), torch.rand(6, 6, 12, generator=torch.Generator().manual_seed(0)), weights
    )
    one = slice_strip(tmp_path / "two.png", found, shown=2, title="case")
    more = slice_strip(tmp_path / "six.png", found, shown=6, title="case")
    assert _width(one) < _width(more)
    with pytest.raises(ValueError, match="needs slices and their weights"):
        slice_strip(tmp_path / "none.png", Ranked({"bright": 0.5}, torch.ones(3)))


def _width(path):
    with Image.open(path) as image:
        return image.size[0]


def test_names_that_differ_in_a_slash_get_figures_of_their_own(tmp_path):
    one = Ranked({"a": 1.0}, torch.ones(2), torch.rand(4, 4, 3), torch.full((3,), 1 / 3))
    run = ranking([], tmp_path / "out")
    run._write({"a/b.nii.gz": one, "a_b.nii.gz": one}, {})
    assert len(list((tmp_path / "out").glob("*_slices.png"))) == 2


def test_texts_with_dollar_signs_are_drawn_as_they_are(tmp_path):
    one = Ranked({r"$\frac{mass$ and $": 1.0}, torch.ones(2), torch.rand(4, 4, 3), torch.full((3,), 1 / 3))
    assert slice_strip(tmp_path / "a.png", one, title="$x_$").is_file()


def test_texts_of_another_encoding_are_refused_by_file(tmp_path):
    (tmp_path / "texts.txt").write_bytes("Läsion\nnormal\n".encode("latin-1"))
    with pytest.raises(ValueError, match=r"texts.txt: byte 0xe4 .* is not UTF-8"):
        read_texts(tmp_path / "texts.txt")

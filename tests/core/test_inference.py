from __future__ import annotations

import csv
import json

import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from medvl_core.alignment import Tower
from medvl_core.build import build_evaluator
from medvl_core.inference import FindingsPrediction, radiograph_studies
from medvl_core.protocols import EncoderOutput
from medvl_core.specs import ImageInput

CLASSES = ("Pleural effusion, left", "Nodule")


class Encoder(nn.Module):
    """The mean of the upper and of the lower half."""

    embed_dim = 2
    input = ImageInput(channels=1, size=(16, 16))

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))

    def forward(self, x):
        row = torch.stack([x[:, 0, :8].mean((1, 2)), x[:, 0, 8:].mean((1, 2))], 1) + self.anchor
        return EncoderOutput(row[:, None], (1,), pooled=row)


def _embed_text(texts, normalise=True):
    return torch.tensor([[1.0, -1.0] if "not" in text else [-1.0, 1.0] for text in texts])


@pytest.fixture
def films(tmp_path):
    folder = tmp_path / "films"
    folder.mkdir()
    for name, bright in (("lower.png", slice(20, 40)), ("upper.jpg", slice(0, 20))):
        film = np.zeros((40, 40), np.uint8)
        film[bright] = 255
        Image.fromarray(film).save(folder / name)
    return folder


def _predict(films, out):
    classifier = build_evaluator("baseline/zero_shot", classes=CLASSES, image="cxr", embed_text=_embed_text)
    tower = Tower(Encoder(), None, embed_dim=None)
    return FindingsPrediction(tower, classifier, radiograph_studies(films), out).run()


def test_probabilities_follow_the_image_and_are_written(films, tmp_path):
    found = _predict(films, tmp_path / "out")
    assert found["lower.png"]["Nodule"] > 0.9
    assert found["upper.jpg"]["Nodule"] < 0.1
    with (tmp_path / "out" / "findings.csv").open() as file:
        header, *rows = list(csv.reader(file))
    assert header == ["study", *CLASSES]
    assert {row[0]: float(row[2]) for row in rows} == pytest.approx(
        {name: values["Nodule"] for name, values in found.items()}, abs=1e-6
    )
    content = json.loads((tmp_path / "out" / "findings.json").read_text())
    assert content["prompts"]["positive"]["Nodule"] == ["Nodule is present."]
    assert content["refused"] == {}


def test_bad_file_is_listed_and_the_rest_go_on(films, tmp_path):
    (films / "broken.png").write_bytes(b"no picture")
    found = _predict(films, tmp_path / "out")
    assert set(found) == {"lower.png", "upper.jpg"}
    refused = json.loads((tmp_path / "out" / "findings.json").read_text())["refused"]
    assert list(refused) == ["broken.png"]
    assert "broken.png" in refused["broken.png"]


def test_nothing_usable_is_an_error_with_each_reason(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png"):
        _predict(tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"absent: no radiograph here; give a file or a folder with \.png"):
        radiograph_studies(tmp_path / "absent")

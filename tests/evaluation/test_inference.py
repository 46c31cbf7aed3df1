from __future__ import annotations

import csv
import json

import nibabel as nib
import numpy as np
import pytest
import torch
from PIL import Image
from torch import nn

from medvl_core.build import build_evaluator, build_text_source
from medvl_core.engine.alignment import Tower
from medvl_core.errors import OptionError
from medvl_core.protocols import EncoderOutput
from medvl_core.specs import ImageInput, TextInput
from medvl_evaluation.inference import (
    FindingsPrediction,
    NearestReports,
    RefusedInputs,
    ct_studies,
    given_studies,
    radiograph_studies,
)
from medvl_imaging.embedding import FrozenEmbedding
from tests.imaging.dicom_files import ct_slices, dataset, save_series

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


def _predict(films, out, studies=None, encoder=None, refused=(), **options):
    """What was found; with refused files, what was written before the end."""
    if refused:
        with pytest.raises(RefusedInputs, match=rf"{len(refused)} of \d+ inputs refused") as caught:
            _predict(films, out, studies, encoder, **options)
        assert "\n" not in str(caught.value)
        content = json.loads((out / "findings.json").read_text())
        assert set(content["refused"]) == set(refused)
        return content["probabilities"]
    classifier = build_evaluator("baseline/zero_shot", classes=CLASSES, image="cxr", embed_text=_embed_text)
    tower = Tower(encoder or Encoder(), None, embed_dim=None)
    return FindingsPrediction(tower, classifier, studies or radiograph_studies(films), out, **options).run()


class Texts(nn.Module):
    """``"upper ..."`` and ``"lower ..."`` where the images of these films are."""

    embed_dim = 2
    input = TextInput(max_length=8)

    def __init__(self) -> None:
        super().__init__()
        self.anchor = nn.Parameter(torch.zeros(1))
        self.seen = []

    def tokenize(self, texts):
        self.seen += texts
        return torch.tensor([[1.0, -1.0] if "upper" in text else [-1.0, 1.0] for text in texts])

    def forward(self, x):
        return EncoderOutput(x[:, None], (1,), pooled=x + self.anchor)


def _nearest(table, folder, texts, **options):
    source = build_text_source("baseline/report")
    embedding = FrozenEmbedding("report", Tower(texts, None, embed_dim=None), source, folder)
    return NearestReports(table, embedding, **options)


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


def test_bad_files_are_listed_and_the_rest_go_on(films, tmp_path):
    good = (films / "lower.png").read_bytes()
    jpeg = (films / "upper.jpg").read_bytes()
    film = dataset(np.arange(1600, dtype=np.uint16).reshape(40, 40), "1.2.3", "DX")
    film.save_as(films / "z_good.dcm", enforce_file_format=True)
    bad = {
        "bad.png": b"no picture",
        "empty.png": b"",
        "cut.png": good[: len(good) // 2],
        "cut.jpg": jpeg[: len(jpeg) // 3],
        "cut.dcm": (films / "z_good.dcm").read_bytes()[:-900],
        "head.dcm": b"\0" * 128 + b"DICM",
        "cut.nii.gz": b"\x1f\x8b\x08\x00cut",
    }
    for name, content in bad.items():
        (films / name).write_bytes(content)
    nib.save(nib.Nifti1Image(np.full((9, 9, 9), 3, np.int16), np.eye(4)), films / "volume.nii")
    found = _predict(films, tmp_path / "out", refused=[*bad, "volume.nii"])
    assert list(found) == ["lower.png", "upper.jpg", "z_good.dcm"]
    refused = json.loads((tmp_path / "out" / "findings.json").read_text())["refused"]
    for name, reason in refused.items():
        assert name in reason
        assert "\n" not in reason


def test_a_film_that_fails_in_the_preprocessing_is_listed_too(films, tmp_path):
    """MONAI's Compose wraps the error: it is a bad file all the same."""
    Image.fromarray(np.full((40, 40), 60000, np.uint16) - np.arange(40, dtype=np.uint16)).save(films / "sixteen.png")
    encoder = Encoder()
    encoder.input = ImageInput(channels=1, size=(16, 16), window_hu=(0.0, 255.0))
    found = _predict(films, tmp_path / "out", encoder=encoder, refused=["sixteen.png"])
    assert list(found) == ["lower.png", "upper.jpg"]
    (reason,) = json.loads((tmp_path / "out" / "findings.json").read_text())["refused"].values()
    assert reason.startswith("sixteen.png: image of mean")


def test_dicom_is_inverted_and_windowed_before_it_is_scored(tmp_path):
    """The same film as MONOCHROME1 and through a window that shows the lower half only."""
    stored = np.zeros((40, 40), np.uint16)
    stored[:20] = 1000
    stored[20:] = 3000
    for name, photometric in (("two.dcm", "MONOCHROME2"), ("one.dcm", "MONOCHROME1")):
        ds = dataset(stored, "1.2.3", "DX")
        ds.PhotometricInterpretation = photometric
        ds.WindowCenter, ds.WindowWidth = 2000, 2000
        ds.save_as(tmp_path / name, enforce_file_format=True)
    found = _predict(tmp_path, tmp_path / "out")
    assert found["two.dcm"]["Nodule"] > 0.9
    assert found["one.dcm"]["Nodule"] < 0.1


def test_figure_of_every_film(films, tmp_path):
    (films / "sub").mkdir()
    (films / "lower.png").rename(films / "sub" / "lower 1.png")
    _predict(films, tmp_path / "out")
    names = {path.name for path in (tmp_path / "out" / "figures").iterdir()}
    assert len(names) == 2
    assert "upper.jpg.png" in names
    assert any(name.startswith("sub_lower_1.png-") for name in names)
    with Image.open(tmp_path / "out" / "figures" / "upper.jpg.png") as figure:
        assert figure.size[0] == 1320
        assert np.asarray(figure.convert("L")).std() > 10
    _predict(films, tmp_path / "bare", figures=False)
    assert not (tmp_path / "bare" / "figures").exists()


def test_nearest_reports_best_first_from_a_store_that_is_filled_once(films, tmp_path):
    table = tmp_path / "studies.csv"
    rows = "study,findings,impression\na,upper opacity.,upper.\nb,,\nc,lower opacity.,\n"
    table.write_text(rows)
    texts = Texts()
    _predict(films, tmp_path / "out", nearest=_nearest(table, tmp_path / "store", texts, n=5, show_text=True))
    near = json.loads((tmp_path / "out" / "findings.json").read_text())["nearest_reports"]
    assert [entry["study"] for entry in near["upper.jpg"]] == ["a", "c"]
    assert near["upper.jpg"][0]["report"] == "upper opacity. upper."
    assert near["lower.png"][0] == {"study": "c", "cosine": pytest.approx(1, abs=0.01), "report": "lower opacity."}
    assert texts.seen == ["upper opacity. upper.", "lower opacity."]
    again = Texts()
    _predict(films, tmp_path / "out", nearest=_nearest(table, tmp_path / "store", again, n=1))
    assert again.seen == []  # found in the store
    (entry,) = json.loads((tmp_path / "out" / "findings.json").read_text())["nearest_reports"]["upper.jpg"]
    assert set(entry) == {"study", "cosine"}  # no text unless asked for
    assert "opacity" not in (tmp_path / "out" / "findings.json").read_text()


def test_report_tables_are_checked(tmp_path):
    table = tmp_path / "reports.csv"
    for content, message in (
        ("study,text\na,b\n", r"reports\.csv: .*report"),
        ("study,report\na,x\na,y\n", r"reports\.csv, row 3: study 'a' is blank or there twice"),
        ("study,report\na,\n", r"reports\.csv: no row has text in report"),
    ):
        table.write_text(content)
        with pytest.raises(ValueError, match=message):
            _nearest(table, tmp_path, Texts())
    table.write_text("study,report\na,upper\n")
    assert _nearest(table, tmp_path, Texts()).studies[0].report.findings == "upper"
    with pytest.raises(ValueError, match="nearest reports: n is 0; at least 1"):
        _nearest(table, tmp_path, Texts(), n=0)
    with pytest.raises(FileNotFoundError, match=r"absent\.csv: no such table"):
        _nearest(tmp_path / "absent.csv", tmp_path, Texts())


def _scan():
    hu = np.full((24, 24, 24), -1000, np.float32)
    hu[4:20, 4:20, 4:14] = 40  # the body, at the lower end
    return hu


def test_ct_is_simulated_in_the_mode_asked_for(tmp_path):
    scans = tmp_path / "scans"
    scans.mkdir()
    save_series(scans / "series", ct_slices(_scan().astype(np.int16)))
    nib.save(nib.Nifti1Image(_scan().astype(np.int16), np.diag([-2.0, -2.0, 2.0, 1.0])), scans / "scan.nii.gz")
    (scans / "broken.nii.gz").write_bytes(b"no scan")
    found = _predict(None, tmp_path / "out", ct_studies(scans), refused=["broken.nii.gz"])
    assert set(found) == {"scan.nii.gz", "series"}
    assert all(row["Nodule"] > 0.9 for row in found.values())  # bright below
    modes = [
        ct_studies(scans / "scan.nii.gz", {"mode": mode})[0].images["cxr"].load().array
        for mode in ("mean_hu", "beer_lambert", "cone_beam")
    ]
    assert not np.allclose(modes[0], modes[1])
    assert modes[2].shape != modes[0].shape or not np.allclose(modes[2], modes[0])
    with pytest.raises(TypeError, match="mod"):
        ct_studies(scans, {"mod": "mean_hu"})
    with pytest.raises(FileNotFoundError, match="absent: no CT here"):
        ct_studies(tmp_path / "absent")


def test_exactly_one_kind_of_input_is_given(films):
    assert [study.study_id for study in given_studies(films, None)] == ["lower.png", "upper.jpg"]
    for both in ((None, None), ("a", "b")):
        with pytest.raises(ValueError, match=r"give one: --input FILE .* or --ct FILE"):
            given_studies(*both)


def test_nothing_usable_is_an_error_with_each_reason(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(ValueError, match=r"broken\.png"):
        _predict(tmp_path, tmp_path / "out")
    with pytest.raises(FileNotFoundError, match=r"absent: no radiograph here; give a file or a folder with \.png"):
        radiograph_studies(tmp_path / "absent")


def test_dicom_of_any_name_is_found_and_slices_of_a_ct_are_no_films(tmp_path, caplog):
    folder = tmp_path / "export"
    film = dataset(np.arange(1600, dtype=np.uint16).reshape(40, 40), "1.2.3", "DX")
    (folder / "films").mkdir(parents=True)
    film.save_as(folder / "films" / "IM0001", enforce_file_format=True)
    series = save_series(folder / "series", ct_slices(_scan().astype(np.int16)))
    for number, file in enumerate(sorted(series.iterdir())):
        file.rename(series / f"1.2.840.99.{number}")
    assert [study.study_id for study in ct_studies(series)] == ["series"]
    assert [study.study_id for study in radiograph_studies(folder / "films")] == ["IM0001"]
    with caplog.at_level("INFO"):
        assert list(_predict(folder, tmp_path / "out")) == ["films/IM0001"]
    assert "24 slices of CT, MR or PET are no radiographs" in caplog.text
    with caplog.at_level("INFO"):
        (scan,) = ct_studies(folder)
    assert scan.study_id == "series"
    assert "folders of radiographs, passed over as they are no scans: 1" in caplog.text
    assert scan.images["cxr"].load().array.ndim == 2


def test_what_does_not_predict_is_refused_before_a_file_is_read(films, tmp_path):
    retrieval = build_evaluator("baseline/retrieval", query="cxr", gallery="report")
    with pytest.raises(OptionError, match="Retrieval does not predict without labels; give an evaluator"):
        FindingsPrediction(Tower(Encoder(), None, embed_dim=None), retrieval, [], tmp_path)


def test_one_bad_file_alone_ends_with_its_reason_and_the_code_of_bad_data(tmp_path):
    (tmp_path / "broken.png").write_bytes(b"no picture")
    with pytest.raises(RefusedInputs, match=r"^\S+broken\.png: damaged") as caught:
        _predict(tmp_path, tmp_path / "out")
    assert caught.value.exit_code == 65
    assert not (tmp_path / "out").exists()


def test_an_embedding_that_is_not_finite_refuses_its_file(films, tmp_path):
    encoder = Encoder()
    encoder.anchor.data.fill_(torch.nan)
    with pytest.raises(RefusedInputs, match=r"lower\.png: its cxr embedding is not finite; .*upper\.jpg"):
        _predict(films, tmp_path / "out", encoder=encoder)

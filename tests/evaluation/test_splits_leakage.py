"""The leakage guard on planted leaks, clean splits, and real radiographs."""

from __future__ import annotations

import io
from dataclasses import dataclass, replace
from itertools import combinations
from pathlib import Path

import numpy as np
import pytest
from PIL import Image as Picture
from scipy.fft import dctn
from scipy.ndimage import gaussian_filter

from medvl_core.study import Image, Report, Study
from medvl_evaluation.splits import leakage
from medvl_evaluation.splits.leakage import (
    SAME_IMAGE,
    LeakageError,
    find_leaks,
    image_signature,
    read_splits,
    refuse_leaks,
)


@dataclass(frozen=True)
class Array:
    """An image source over an array."""

    array: np.ndarray
    affine: np.ndarray | None = None

    def load(self) -> Image:
        return Image(self.array, self.affine)

    def fingerprint(self) -> str:
        return str(hash(self.array.tobytes()))


class Unreadable:
    """Fails when read."""

    def load(self) -> Image:
        raise AssertionError("the guard read an image nobody asked for")

    fingerprint = load


def film(seed: int, shape: tuple[int, int] = (96, 80)) -> np.ndarray:
    """A smooth grey picture: one shape that all share, and details of its own."""
    rows, columns = np.mgrid[: shape[0], : shape[1]] / np.array(shape)[:, None, None]
    own = gaussian_filter(np.random.default_rng(seed).standard_normal(shape), 4)
    return (120 + 80 * np.cos(6 * columns) * np.sin(3 * rows) + 400 * own).clip(0, 255).astype(np.float32)


def jpeg(array: np.ndarray, quality: int = 40) -> np.ndarray:
    buffer = io.BytesIO()
    Picture.fromarray(array.clip(0, 255).astype(np.uint8)).save(buffer, "JPEG", quality=quality)
    return np.asarray(Picture.open(buffer)).astype(np.float32)


def resized(array: np.ndarray, factor: float) -> np.ndarray:
    size = [round(n * factor) for n in array.shape[::-1]]
    return np.asarray(Picture.fromarray(array).resize(size, Picture.Resampling.BICUBIC))


def study(i: int, **changes) -> Study:
    return replace(
        Study(
            study_id=f"study{i}",
            subject_id=f"patient{i}",
            scan_id=f"scan{i}",
            images={"cxr": Array(film(i))},
            report=Report(findings=f"Nodule of {i} mm.", impression="Follow up."),
        ),
        **changes,
    )


def clean() -> dict[str, list[Study]]:
    return {"train": [study(i) for i in range(12)], "val": [study(20)], "test": [study(30), study(31)]}


def planted(kind: str) -> Study:
    """A test study that shares exactly one thing with study 3 of the training set."""
    changes = {
        "patient": {"subject_id": "patient3"},
        "study": {"study_id": "study3"},
        "scan": {"scan_id": "scan3"},
        "report": {"report": Report(impression="nodule of 3 MM; follow up")},
        "image": {"images": {"cxr": Array(jpeg(resized(film(3), 0.7)))}},
    }
    return study(99, **changes[kind])


def test_a_clean_split_passes():
    assert find_leaks(clean(), images=["cxr"]) == []
    refuse_leaks(clean(), images=["cxr"])


@pytest.mark.parametrize("kind", ["patient", "study", "scan", "report", "image"])
def test_every_planted_leak_is_found_alone(kind):
    splits = clean()
    splits["test"].append(planted(kind))
    (leak,) = find_leaks(splits, images=["cxr"])
    assert (leak.kind, leak.splits, leak.studies) == (kind, ("train", "test"), ("study3", splits["test"][-1].study_id))
    with pytest.raises(LeakageError, match=f"share 1 {kind} .*study3 of train and study .* of test.*split_by_patient"):
        refuse_leaks(splits, images=["cxr"])


def test_all_leaks_at_once_are_counted_by_kind():
    splits = clean()
    splits["val"] += [planted(kind) for kind in ("patient", "study", "scan", "report", "image")]
    splits["test"] += [study(40, subject_id="patient4"), study(4, subject_id="x", scan_id="x", report=None, images={})]
    with pytest.raises(LeakageError, match=r"2 patients \(first: patient3.*2 studies .*1 scan .*1 report .*1 image "):
        refuse_leaks(splits, images=["cxr"])


def test_a_report_never_reaches_the_message():
    splits = clean()
    splits["test"].append(planted("report"))
    with pytest.raises(LeakageError, match="1 report") as caught:
        refuse_leaks(splits)
    assert "ollow" not in str(caught.value)
    assert caught.value.exit_code == 65


def test_images_are_read_only_when_asked_for():
    splits = {name: [replace(s, images={"cxr": Unreadable()}) for s in studies] for name, studies in clean().items()}
    assert find_leaks(splits) == []
    with pytest.raises(AssertionError, match="nobody asked"):
        find_leaks(splits, images=["cxr"])


def test_short_and_missing_reports():
    splits = {"train": [study(0), study(1, report=None)], "test": [study(2, report=None), study(3, report=Report())]}
    assert find_leaks(splits) == []
    splits["test"].append(study(5, report=splits["train"][0].report))
    assert [leak.kind for leak in find_leaks(splits)] == ["report"]
    assert find_leaks(splits, shortest_report=7) == []
    assert len(find_leaks(splits, shortest_report=6)) == 1


def test_copies_within_one_split_are_no_leak():
    assert find_leaks({"train": [study(0), study(0)], "test": [study(1)]}, images=["cxr"]) == []


def test_a_duplicate_is_found_beside_a_sibling():
    """The best match is a sibling, listed as such; the other copy of the picture is still told."""
    picture = {"cxr": Array(film(0))}
    train = [study(0), study(1, images={"cxr": Array(jpeg(film(0)))})]
    leaks = find_leaks({"train": train, "test": [study(2, scan_id="scan0", images=picture)]}, images=["cxr"])
    assert [(leak.kind, leak.studies) for leak in leaks] == [
        ("scan", ("study0", "study2")),
        ("image", ("study1", "study2")),
    ]


def test_signature_equals_the_cosine_transform():
    picture = film(0).astype(np.float64)
    waves = dctn(picture, norm=None)[:16, :16]
    u, v = np.mgrid[:16, :16]
    expected = (waves * (u**2 + v**2) ** 0.75).ravel()[1:]
    np.testing.assert_allclose(image_signature(Image(picture)), expected / np.linalg.norm(expected), atol=1e-6)


@pytest.mark.parametrize(
    "copy",
    [
        lambda a: jpeg(a, 25),
        lambda a: resized(a, 0.5),
        lambda a: resized(a, 1.7),
        lambda a: 3 * a - 1000,
        lambda a: 255 - a,
        lambda a: 255 * (a / 255) ** 1.3,
        lambda a: np.repeat(a[..., None], 3, axis=2),
    ],
    ids=["jpeg", "smaller", "larger", "linear", "inverted", "gamma", "colour"],
)
def test_copies_keep_their_signature_and_others_do_not(copy):
    signature = image_signature(Image(copy(film(1))))
    assert abs(signature @ image_signature(Image(film(1)))) > SAME_IMAGE
    assert max(abs(signature @ image_signature(Image(film(i)))) for i in range(2, 30)) < SAME_IMAGE


def test_ct_is_compared_by_its_simulated_radiograph_in_any_orientation():
    volumes = [gaussian_filter(np.random.default_rng(i).standard_normal((24, 20, 22)), 2) * 3000 for i in range(2)]
    affine = np.diag([-2.0, -2.0, 2.0, 1.0])
    flip = np.array([[0, -1, 0, 23], [1, 0, 0, 0], [0, 0, 1, 0], [0, 0, 0, 1.0]])
    one, other = (image_signature(Image(volume, affine)) for volume in volumes)
    turned = image_signature(Image(volumes[0][::-1].swapaxes(0, 1), affine @ flip))
    thick = image_signature(Image((volumes[0][..., ::2] + volumes[0][..., 1::2]) / 2, affine @ np.diag([1, 1, 2, 1])))
    assert one @ turned == pytest.approx(1, abs=1e-4)
    assert one @ thick > SAME_IMAGE > abs(one @ other)


def test_constant_image_resembles_nothing():
    assert not image_signature(Image(np.full((40, 30), 1234.5))).any()


@pytest.mark.parametrize("array", [np.zeros((4, 4, 5)), np.zeros(5), np.zeros((0, 3))])
def test_images_without_signature(array):
    with pytest.raises(ValueError, match="without affine has no signature"):
        image_signature(Image(array))


@pytest.mark.parametrize("splits", [{"train": [study(0)]}, {"train": [study(0)], "test": []}])
def test_guard_needs_two_splits(splits):
    with pytest.raises(ValueError, match="give two or more, none of them empty"):
        find_leaks(splits)


def largest_between_patients(paths: list[Path], patients: list[str]) -> tuple[float, int]:
    pictures = (np.asarray(Picture.open(path).convert("L")) for path in paths)
    signatures = np.stack([image_signature(Image(picture)) for picture in pictures])
    other = np.triu(np.array(patients)[:, None] != np.array(patients), 1)
    return float(np.abs(signatures @ signatures.T)[other].max()), int(other.sum())


@pytest.mark.real_data
def test_no_false_alarm_and_no_miss_on_real_radiographs(real_data):
    paths = sorted((real_data / "cxr_nih1000_64/images").glob("*.png"))
    largest, pairs = largest_between_patients(paths, [path.name[:8] for path in paths])
    assert pairs > 300_000
    assert largest < 0.9 < SAME_IMAGE
    for path in paths[::40]:
        array = np.asarray(Picture.open(path).convert("L")).astype(np.float32)
        copies = (jpeg(array, 20), jpeg(resized(array, 1.5), 60), resized(array, 0.5))
        signatures = [image_signature(Image(copy)) for copy in (array, *copies)]
        assert all(abs(signatures[0] @ copy) > SAME_IMAGE for copy in signatures[1:]), path


@pytest.mark.slow
@pytest.mark.real_data
def test_no_false_alarm_among_children(real_data):
    paths = sorted((real_data / "cxr_kermany_224/train").glob("*/*.jpeg"))
    names = [path.name for path in paths]
    patients = [n.split("_")[0] if n.startswith("person") else "-".join(n.split("-")[:3]) for n in names]
    largest, pairs = largest_between_patients(paths, patients)
    assert pairs > 4_000_000
    assert largest < 0.91 < SAME_IMAGE


def test_no_pair_of_splits_is_left_out():
    splits = {name: [study(i, subject_id="p")] for i, name in enumerate("abcd")}
    assert {leak.splits for leak in find_leaks(splits)} == set(combinations("abcd", 2))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"images": ["xray"]}, r"images is \['xray'\]; give a list of modalities that studies have: \['cxr'\]"),
        ({"images": "cxr"}, "images is 'cxr'; give a list"),
        ({"similarity": 95}, "similarity is 95; give a correlation above 0 and at most 1"),
        ({"similarity": float("nan")}, "similarity is nan"),
    ],
)
def test_a_guard_that_would_compare_nothing_is_refused(options, message):
    with pytest.raises(ValueError, match=message):
        find_leaks(clean(), **options)


def test_many_pictures_are_compared_in_blocks(monkeypatch):
    splits = clean()
    splits["test"] += [study(50), planted("image"), study(51)]
    whole = find_leaks(splits, images=["cxr"])
    monkeypatch.setattr(leakage, "_PAIRS_PER_CHUNK", 5)
    assert find_leaks(splits, images=["cxr"]) == whole
    assert [leak.kind for leak in whole] == ["image"]


TABLE = """subject,study,scan,cxr,report,fold
p0,s0,c0,0.png,"No acute <b>finding</b>, today.",one
p1,s1,c1,1.png,Nodule.,one
p0,s2,c2,2.png,Mass.,two
p3,s3,c1,3.png,no acute b FINDING b today,two
p4,s4,c4,4.png,Fine.,three
"""


@pytest.fixture
def table(tmp_path):
    for i in range(5):
        picture = jpeg(film(0)) if i == 4 else film(i)
        Picture.fromarray(picture.astype(np.uint8)).save(tmp_path / f"{i}.png")
    path = tmp_path / "table.csv"
    path.write_text(TABLE, encoding="utf-8")
    return path


def test_a_table_is_read_by_its_split_column_whatever_its_words(table):
    splits = read_splits(table, split_column="fold")
    assert {name: [s.study_id for s in studies] for name, studies in splits.items()} == {
        "one": ["s0", "s1"],
        "two": ["s2", "s3"],
        "three": ["s4"],
    }
    table.write_text(TABLE.replace("today,two", "today,"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"table.csv, row 5: fold is blank"):
        read_splits(table, split_column="fold")


def test_a_study_in_two_splits_is_a_leak_and_absent_pictures_are_not_asked_for(table):
    table.write_text(TABLE.replace("p3,s3", "p3,s0").replace("0.png", "gone.png"), encoding="utf-8")
    leaks = find_leaks(read_splits(table, split_column="fold"))
    assert ("study", "s0", ("one", "two")) in [(leak.kind, leak.what, leak.splits) for leak in leaks]


def test_one_file_under_two_patients_is_refused(table):
    table.write_text(TABLE.replace("3.png", "1.png"), encoding="utf-8")
    with pytest.raises(ValueError, match=r"table.csv, row 5: .*1.png belongs to another patient in row 3"):
        read_splits(table, split_column="fold")

"""MIMIC-CT: chest CT reports of MIMIC-IV-Note paired with radiographs of MIMIC-CXR from the same admission."""

from __future__ import annotations

import hashlib
import json
import logging
import math
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal

from medvl_core.build import build_dataset
from medvl_core.engine.files import write_text
from medvl_x2ct.labels import load_label_set
from medvl_x2ct.report_labels import Labeler, RuleLabeler, named_labeler, sections

if TYPE_CHECKING:
    from pandas import DataFrame, Series

__all__ = ["build_mimic_ct", "curate"]

logger = logging.getLogger(__name__)
_CHUNK = 50_000
_CHEST_CT = r"^(?=.*\bCTA?\b)(?=.*(?:CHEST|THORA|TORSO|LUNG|PULM))(?!.*(?:GUID|BIOPSY|\bBX\b|DRAIN|ABLAT|NEEDLE))"


def build_mimic_ct(
    folder: str | Path,
    *,
    notes: str | Path = "mimic-iv-note",
    admissions: str | Path = "mimic-iv",
    radiographs: str | Path = "mimic-cxr-jpg",
    image: Literal["jpg", "dcm"] = "jpg",
    label_set: str = "mimic_ct_11",
    labeler: str = "rules",
    shares: tuple[float, float, float] = (0.0, 0.0, 1.0),
    seed: int = 0,
) -> Any:
    """MIMIC-CT as studies with a real radiograph, the CT's report and labels; there is no CT volume.

    The pairs are curated once into ``folder/mimic_ct-<digest>.csv`` (the digest is of ``label_set``, ``labeler`` and
    ``image``) and read from there by ``baseline/folder``; delete the table to curate again. It holds report text:
    keep it where the notes may be kept. Logs and messages hold counts, files and rows, never text.

    Args:
        folder: Where the table is kept, and the three downloads unless their paths are absolute.
        notes: MIMIC-IV-Note: ``note/radiology.csv.gz`` and ``note/radiology_detail.csv.gz``.
        admissions: MIMIC-IV: ``hosp/admissions.csv.gz``.
        radiographs: MIMIC-CXR-JPG: ``mimic-cxr-*-metadata.csv.gz`` and ``files/``.
        image: ``"dcm"`` where the images of MIMIC-CXR itself lie in ``files/``.
        label_set: A name in ``medvl_x2ct.labels.LABEL_SETS`` that has report rules, or a JSON file; with a labeler of
            your own any will do.
        labeler: ``"rules"``, or ``"package.module:function"``: called with a report's text and the label names, it
            returns 1, 0 or NaN for each. The place for a language model.
        shares: Shares of patients in train, validation and test. The paper only tests on them.
        seed: Of that split.

    Returns:
        A dataset.

    Raises:
        FileNotFoundError: If a table or radiograph is missing.
        ValueError: If a table breaks a rule, or nothing matches.
    """
    folder = Path(folder)
    if image not in ("jpg", "dcm"):
        raise ValueError(f"image is {image!r}; give 'jpg' or 'dcm'")
    own = labeler != "rules"
    names = list(load_label_set(label_set, "ct_rate" if own else "report"))
    digest = hashlib.sha256(json.dumps([label_set, labeler, image]).encode()).hexdigest()[:8]
    table = folder / f"mimic_ct-{digest}.csv"
    if not table.is_file():
        label = named_labeler(labeler) if own else RuleLabeler(load_label_set(label_set, "report"))
        pairs = curate(folder / notes, folder / admissions, folder / radiographs, label, names, image)
        write_text(table, pairs.to_csv(index=False, lineterminator="\n"))
        logger.info("%s: %d pairs", table, len(pairs))
    _check_images(table, folder / radiographs)
    return build_dataset(
        "baseline/folder",
        table=table,
        root=folder / radiographs,
        label_columns=names,
        metadata_columns=("gap_hours",),
        shares=shares,
        seed=seed,
    )


def curate(
    notes: Path, admissions: Path, radiographs: Path, labeler: Labeler, names: Sequence[str], image: str = "jpg"
) -> DataFrame:
    """One pair per admission: the chest CT report and the frontal radiograph nearest to each other in time.

    A note belongs to the admission it names, or, without one, to the admission of its patient whose window holds its
    time; a radiograph always goes by the window. Dates of the three releases are shifted alike per patient.

    Args:
        notes: MIMIC-IV-Note.
        admissions: MIMIC-IV.
        radiographs: MIMIC-CXR-JPG.
        labeler: Makes labels of findings and impression.
        names: Labels wanted.
        image: Suffix of the radiographs.

    Returns:
        Columns ``study subject scan cxr findings impression gap_hours`` and the labels, sorted by study.

    Raises:
        FileNotFoundError: If a table is missing.
        ValueError: If a table breaks a rule (file and row are named), nothing matches, or the labeler errs.
    """
    stays = _stays(_find(admissions, "admissions.csv", "hosp", "core"))
    reports = _within(_reports(notes), stays, by_id=True)
    films = _within(_films(radiographs), stays, by_id=False)
    pairs = reports.merge(films, on=["subject_id", "hadm_id"], suffixes=("", "_film"))
    if pairs.empty:
        raise ValueError(
            f"{notes}: none of {len(reports)} chest CT reports of an admission has one of {len(films)} frontal "
            "radiographs in it; are the three downloads of matching versions?"
        )
    pairs["gap_hours"] = (pairs["time_film"] - pairs["time"]).abs().dt.total_seconds() / 3600
    pairs = pairs.sort_values(["gap_hours", "note_id", "dicom_id"]).drop_duplicates("hadm_id").sort_values("note_id")
    logger.info("%s: %d reports, %d radiographs, %d admissions", notes, len(reports), len(films), len(pairs))
    import pandas as pd

    labels = [_labels(labeler, f"{r.findings} {r.impression}".strip(), names) for r in pairs.itertuples()]
    subject = pairs["subject_id"]
    path = "files/p" + subject.str[:2] + "/p" + subject + "/s" + pairs["film"] + "/" + pairs["dicom_id"] + f".{image}"
    columns = {
        "study": pairs["note_id"],
        "subject": subject,
        "scan": pairs["hadm_id"],
        "cxr": path,
        "findings": pairs["findings"],
        "impression": pairs["impression"],
        "gap_hours": pairs["gap_hours"].round(2),
    }
    return pd.concat([pd.DataFrame(columns).reset_index(drop=True), pd.DataFrame(labels, columns=list(names))], axis=1)


def _find(folder: Path, name: str, *below: str) -> Path:
    places = [folder / part / f"{name}{suffix}" for part in ("", *below) for suffix in ("", ".gz")]
    found = next((path for path in places if path.is_file()), None)
    if found is None:
        raise FileNotFoundError(f"{folder}: no {name} or {name}.gz, also not in {' or '.join(below)}; download it")
    return found


def _chunks(path: Path, columns: Sequence[str]) -> Iterator[DataFrame]:
    """The table as text, in parts; the index counts rows as a spreadsheet does."""
    import pandas as pd

    try:
        reader = pd.read_csv(path, usecols=list(columns), dtype=str, keep_default_na=False, chunksize=_CHUNK)
        for part in reader:
            yield part.set_axis(part.index + 2)
    except (ValueError, OSError, EOFError) as error:
        reason = str(error).splitlines()[0][:160]
        raise ValueError(f"{path}: unreadable or without a column of {', '.join(columns)} ({reason})") from error


def _times(path: Path, values: Series[str], what: str) -> Series[Any]:
    import pandas as pd

    times = pd.to_datetime(values, errors="coerce", format="ISO8601")
    if times.isna().any():
        raise ValueError(f"{path}, row {times.index[times.isna()][0]}: {what} is no time; correct or remove the row")
    return times


def _stays(path: Path) -> DataFrame:
    import pandas as pd

    rows = pd.concat(list(_chunks(path, ["subject_id", "hadm_id", "admittime", "dischtime"])))
    for column in ("admittime", "dischtime"):
        rows[column] = _times(path, rows[column], column)
    twice = rows["hadm_id"].duplicated()
    if twice.any():
        raise ValueError(f"{path}, row {rows.index[twice][0]}: hadm_id occurs twice; download the table again")
    return rows.sort_values(["admittime", "hadm_id"])


def _reports(notes: Path) -> DataFrame:
    """Chest CT reports with a findings or impression section."""
    import pandas as pd

    wanted: set[str] = set()
    for part in _chunks(_find(notes, "radiology_detail.csv", "note"), ["note_id", "field_name", "field_value"]):
        chosen = (part["field_name"] == "exam_name") & part["field_value"].str.upper().str.contains(_CHEST_CT)
        wanted |= set(part.loc[chosen, "note_id"])
    path, kept = _find(notes, "radiology.csv", "note"), []
    for part in _chunks(path, ["note_id", "subject_id", "hadm_id", "charttime", "text"]):
        part = part[part["note_id"].isin(wanted)]
        part = part.assign(time=_times(path, part["charttime"], "charttime"))
        texts = pd.DataFrame([sections(text) for text in part["text"]], part.index, ["findings", "impression"])
        kept.append(part.drop(columns=["text", "charttime"]).join(texts))
    rows = pd.concat(kept)
    empty = (rows["findings"] == "") & (rows["impression"] == "")
    logger.info("%s: %d chest CT reports, %d of them without findings and impression", path, len(rows), empty.sum())
    return rows[~empty].assign(hadm_id=rows["hadm_id"].str.removesuffix(".0"))


def _films(folder: Path) -> DataFrame:
    """Frontal radiographs with their time."""
    import pandas as pd

    found = sorted(folder.glob("mimic-cxr-*-metadata.csv*"))
    if len(found) != 1:
        raise FileNotFoundError(
            f"{folder}: {len(found)} tables mimic-cxr-*-metadata.csv.gz, one is needed; download it"
        )
    rows = pd.concat(
        list(_chunks(found[0], ["dicom_id", "subject_id", "study_id", "ViewPosition", "StudyDate", "StudyTime"]))
    )
    rows = rows[rows["ViewPosition"].isin(("PA", "AP"))]
    clock = rows["StudyTime"].str.split(".").str[0].str.zfill(6)  # 93014.5 is half past nine
    stamp = rows["StudyDate"] + "T" + clock.str[:2] + ":" + clock.str[2:4] + ":" + clock.str[4:]
    rows = rows.assign(time=_times(found[0], stamp, "StudyDate and StudyTime"), film=rows["study_id"].str.lstrip("s"))
    return rows[["dicom_id", "subject_id", "film", "time"]]


def _within(rows: DataFrame, stays: DataFrame, *, by_id: bool) -> DataFrame:
    """Each row with the admission it names (``by_id``), or whose window holds its time; others are dropped."""
    import pandas as pd

    windows = stays[["subject_id", "hadm_id", "admittime", "dischtime"]]
    named = rows[rows["hadm_id"] != ""] if by_id else rows.iloc[:0]
    named = named.merge(windows[["subject_id", "hadm_id"]]) if by_id else named
    open_rows = rows[rows["hadm_id"] == ""].drop(columns="hadm_id") if by_id else rows
    inside = open_rows.merge(windows, on="subject_id")
    inside = inside[(inside["time"] >= inside["admittime"]) & (inside["time"] <= inside["dischtime"])]
    inside = inside.drop_duplicates("note_id" if by_id else "dicom_id").drop(columns=["admittime", "dischtime"])
    return pd.concat([named, inside]) if by_id else inside


def _labels(labeler: Labeler, text: str, names: Sequence[str]) -> dict[str, float]:
    found = labeler(text, names)
    wrong = [name for name in names if name not in found or not (found[name] in (0, 1) or math.isnan(found[name]))]
    if wrong:
        raise ValueError(f"the labeler gives no 1, 0 or NaN for {', '.join(wrong)}; correct it")
    return {name: found[name] for name in names}


def _check_images(table: Path, root: Path) -> None:
    from medvl_imaging.tables import read_table

    rows = read_table(table)
    absent = [number for number, name in rows["cxr"].items() if not (root / name).is_file()]
    if absent:
        raise FileNotFoundError(
            f"{table}, row {absent[0]} and {len(absent) - 1} more: the radiograph is not under {root}; "
            "download what the column cxr lists"
        )

"""How well the report rules of CT-GLIP read: Open-i reports against their MeSH labels, and phantom reports.

Open-i's labels were given by people to whole reports, so "absent" there means "not worth a label". The rules were
written while looking at reports with even numbers; the numbers to believe are those of the odd ones. Only counts are
written, never text.
"""

from __future__ import annotations

import argparse
import csv
import logging
import sys
import tarfile
from collections import Counter
from collections.abc import Iterator, Sequence
from pathlib import Path
from xml.etree import ElementTree

from medvl_core.study import Report
from medvl_ct_glip.report_findings import Mention, RuleExtractor

logging.basicConfig(level=logging.INFO, format="%(message)s")
logger = logging.getLogger(__name__)
HERE = Path(__file__).parent
OPENI = HERE.parents[1] / "shared" / "data" / "text_openi_reports" / "NLMCXR_reports.tgz"
Case = tuple[Report, list[Mention], set[str]]
MISSED = ("no mention", "denied", "history")
"""Labelled and not found: no word of it; mentions, but all read as denied; or as history."""
WRONG = ("cue missed", "doubted", "label differs")
"""Found and not labelled: behind a denial in the same sentence; only ever "possible"; stated, and no label."""
KINDS = MISSED + WRONG


def openi_reports(archive: Path, odd: bool, every: int = 1) -> Iterator[tuple[Report, list[frozenset[str]]]]:
    """Report and MeSH labels (each the set of its parts, lower case) of the labelled reports with text, of one half."""
    with tarfile.open(archive) as tar:
        for member in sorted(tar.getmembers(), key=lambda m: m.name):
            number = Path(member.name).stem
            file = tar.extractfile(member) if number.isdigit() and int(number) % (2 * every) == odd else None
            if file is None:
                continue
            root = ElementTree.parse(file).getroot()
            texts = {node.attrib.get("Label"): (node.text or "") for node in root.iter("AbstractText")}
            report = Report(texts.get("FINDINGS", ""), texts.get("IMPRESSION", ""))
            labels = [
                frozenset(part.strip().lower() for part in (node.text or "").split("/")) for node in root.iter("major")
            ]
            if (report.findings or report.impression) and frozenset({"no indexing"}) not in labels:
                yield report, labels


def label_rules(path: Path) -> dict[str, list[frozenset[str]]]:
    """Target → MeSH labels that mean it, each as the parts a label must have."""
    with path.open(encoding="utf-8", newline="") as file:
        rows = list(csv.DictReader(file))
    return {row["target"]: [frozenset(part.split("/")) for part in row["mesh"].split(";")] for row in rows}


def finding_rules(path: Path) -> dict[str, frozenset[str]]:
    """Target → findings of the lexicon that mean it."""
    with path.open(encoding="utf-8", newline="") as file:
        return {row["target"]: frozenset(row["findings"].split(";")) for row in csv.DictReader(file)}


def count(cases: Sequence[Case], targets: dict[str, frozenset[str]]) -> list[dict[str, object]]:
    """A row per target: hits, errors by kind, precision and recall, and in how many reports all mentions are denied.

    Args:
        cases: Report, its mentions and the targets it truly has.
        targets: Target → findings that mean it.
    """
    rows = []
    for target, names in targets.items():
        kinds: Counter[str] = Counter()
        for report, mentions, truth in cases:
            own = [m for m in mentions if m.finding in names]
            kinds[_outcome(report, own, mentions, target in truth)] += 1
            kinds["denials"] += bool(own) and all(m.status == "absent" for m in own)
        missed, wrong = (sum(kinds[kind] for kind in part) for part in (MISSED, WRONG))
        precision, recall = (_ratio(kinds["hit"], kinds["hit"] + n) for n in (wrong, missed))
        row = {"target": target, "labelled": kinds["hit"] + missed, "found": kinds["hit"] + wrong}
        rows.append({**row, "precision": precision, "recall": recall, **{kind: kinds[kind] for kind in KINDS}})
        rows[-1]["denials"] = kinds["denials"]
    return rows


def _outcome(report: Report, own: list[Mention], mentions: list[Mention], truth: bool) -> str:
    """``hit``, ``right`` (absent in both), or the kind of the error; doubted mentions count as found."""
    found = [m for m in own if m.status in ("present", "uncertain")]
    if truth:
        if found:
            return "hit"
        statuses = {m.status for m in own}
        return "denied" if "absent" in statuses else "history" if "history" in statuses else "no mention"
    if not found:
        return "right"
    denied = [
        (m, f) for f in found for m in mentions if m.status == "absent" and m.section == f.section and m.end < f.start
    ]
    near = any("." not in getattr(report, f.section)[m.end : f.start] for m, f in denied)
    if near:
        return "cue missed"
    return "doubted" if all(m.status == "uncertain" for m in found) else "label differs"


def _ratio(part: int, whole: int) -> float:
    return round(part / whole, 3) if whole else float("nan")


def overall(rows: Sequence[dict[str, object]]) -> dict[str, object]:
    """All targets together."""
    total = {key: sum(int(row[key]) for row in rows) for key in ("labelled", "found", *KINDS, "denials")}  # type: ignore[call-overload]
    hits = total["found"] - sum(total[kind] for kind in WRONG)
    ratios = {"precision": _ratio(hits, total["found"]), "recall": _ratio(hits, total["labelled"])}
    return {"target": "all", **total, **ratios}


def openi_cases(archive: Path, odd: bool, every: int = 1) -> list[Case]:
    """Mentions and true targets of one half of the reports, or of every n-th of it."""
    extract, labels = RuleExtractor(), label_rules(HERE / "openi_targets.csv")
    cases = []
    for report, mesh in openi_reports(archive, odd, every):
        truth = {target for target, rules in labels.items() if any(rule <= label for rule in rules for label in mesh)}
        cases.append((report, extract(report), truth))
    return cases


def phantom_cases(subjects: int) -> list[Case]:
    """The same for phantom reports, whose truth is exact."""
    from medvl_phantom import PhantomCohort

    studies = PhantomCohort(subjects, (16, 16, 16), seed=1, shares=(1, 0, 0), second_reconstruction=0).studies("train")
    extract = RuleExtractor()
    return [
        (s.report, extract(s.report), {name.lower() for name, value in s.labels.items() if value == 1}) for s in studies
    ]


def phantom_places(subjects: int) -> list[dict[str, object]]:
    """Of findings that the phantom puts in lobes or kidneys: in how many scans exactly these regions were read."""
    from medvl_phantom import PhantomCohort
    from medvl_phantom.findings import FINDINGS, LOBES
    from medvl_phantom.render import plan

    studies = PhantomCohort(subjects, (16, 16, 16), seed=1, shares=(1, 0, 0), second_reconstruction=0).studies("train")
    extract, scans, right = RuleExtractor(), Counter[str](), Counter[str]()
    for study in studies:
        mentions = [m for m in extract(study.report) if m.status in ("present", "uncertain")]
        for name, detail in plan(study.images["ct"].address).details.items():
            truth = {LOBES[lobe][2] for lobe in detail.lobes}
            if FINDINGS[name].organs[0].startswith("kidney"):
                truth = {f"kidney_{side}" for side in detail.sides}
            # a phrase may leave the place out ("ground-glass density increase"); then nothing can be read wrong
            own = [set(m.regions) for m in mentions if m.finding == name.lower() and len(m.regions) < 5]
            if truth and own:
                scans[name] += 1
                right[name] += all(regions == truth for regions in own)
    return [{"finding": name, "scans": scans[name], "exact": right[name]} for name in FINDINGS if scans[name]]


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument(
        "--reports", type=Path, default=OPENI, help="NLMCXR_reports.tgz of Open-i; left out when absent"
    )
    parser.add_argument(
        "--half", choices=["odd", "even"], default="odd", help="even: the reports the rules were written on"
    )
    parser.add_argument("--subjects", type=int, default=400, help="phantom patients; 0 leaves them out")
    parser.add_argument("--out", type=Path, default=HERE / "results", help="gets extraction_*.csv")
    options = parser.parse_args()
    if options.reports.is_file():
        cases = openi_cases(options.reports, options.half == "odd")
        write(options.out / f"extraction_openi_{options.half}.csv", cases, finding_rules(HERE / "openi_targets.csv"))
    if options.subjects:
        from medvl_phantom import PhantomCohort

        targets = {name.lower(): frozenset({name.lower()}) for name in PhantomCohort.label_names}
        write(options.out / "extraction_phantom.csv", phantom_cases(options.subjects), targets)
        table(options.out / "extraction_phantom_places.csv", phantom_places(options.subjects))


def write(path: Path, cases: Sequence[Case], targets: dict[str, frozenset[str]]) -> None:
    """Count, log and write one table."""
    rows = count(cases, targets)
    logger.info("%d reports", len(cases))
    table(path, [*rows, overall(rows)])


def table(path: Path, rows: Sequence[dict[str, object]]) -> None:
    """Log and write rows."""
    path.parent.mkdir(exist_ok=True)
    with path.open("w", encoding="utf-8", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]), lineterminator="\n")
        writer.writeheader()
        writer.writerows(rows)
    logger.info(path.name)
    for row in rows:
        logger.info("  %-36s " + " ".join(f"{key} %s" for key in list(row)[1:]), *row.values())


if __name__ == "__main__":
    sys.exit(main())

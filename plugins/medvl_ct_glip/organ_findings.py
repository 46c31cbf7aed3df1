"""Training texts per organ from reports: a diagnosis where there is one, a normal sentence where the report says so."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

import numpy as np

from medvl_core.study import Study
from medvl_ct_glip.lexicon import load_lexicon
from medvl_ct_glip.regions.texts import RegionText, spoken
from medvl_ct_glip.report_findings import Extractor, RuleExtractor, check_mentions, status_of, unread

__all__ = ["OrganFindings"]


class OrganFindings:
    """What the report of a study says about each of its regions.

    Args:
        unmentioned: ``"skip"`` gives no text for regions that the report does not mention, ``"normal"`` calls them
            normal, as radiologists mean it when a report is complete; but not those of which it says something that no
            rule understands, or what they once had.
        normal: Sentence of a normal region; ``{}`` is its name.
        rules: Folder with a lexicon of your own with the files of ``report_rules``.
        cues: CSV with your own rules of negation.
        extract: Reads reports in place of the rules, e.g. a language model: ``Report`` → list of ``Mention``. Every one
            must lie in the report, else ``ExtractionError``.

    Raises:
        ValueError: If an argument breaks its rule.

    References:
        Lin et al., CT-GLIP, arXiv:2404.15272, section 2.1; there a language model reads the reports, here rules do.
    """

    def __init__(
        self,
        unmentioned: Literal["skip", "normal"] = "skip",
        normal: str = "no evident abnormality in {}",
        rules: str | None = None,
        cues: str | None = None,
        extract: Extractor | None = None,
    ) -> None:
        if unmentioned not in ("skip", "normal"):
            raise ValueError(f"unmentioned is {unmentioned!r}; give 'skip' or 'normal'")
        if "{}" not in normal:
            raise ValueError(f"normal is {normal!r}; write {{}} where the organ's name goes")
        if extract is not None and (rules or cues):
            raise ValueError("rules and cues are for the rule extractor; leave them out with extract")
        self.unmentioned, self.normal = unmentioned, normal
        lexicon = (load_lexicon(rules, cues) if rules else load_lexicon(cues=cues)) if extract is None else None
        self.extract: Extractor = extract or RuleExtractor(lexicon)

    def region_texts(self, study: Study) -> dict[str, RegionText]:
        """Region name → text and status, for the regions of the study.

        Raises:
            ValueError: If the study has no report. The message starts with its id.
        """
        if study.report is None or not (study.report.findings.strip() or study.report.impression.strip()):
            raise ValueError(f"{study.study_id}: has no report text; drop the study or give it a report")
        mentions = check_mentions(study.report, self.extract(study.report))
        found, closed = status_of(mentions), unread(mentions)
        texts = {}
        for region in study.region_names.values():
            filled = self.unmentioned == "normal" and region not in closed
            text = found.get(region, RegionText("", "normal") if filled else None)
            if text is not None:
                texts[region] = text if text.text else RegionText(self.normal.format(spoken(region)), text.status)
        return texts

    def texts(self, studies: Sequence[Study], rng: np.random.Generator) -> list[str]:
        """One text per study: what is abnormal in which region, or that nothing is."""
        return [self._joined(study) for study in studies]

    def _joined(self, study: Study) -> str:
        regions: dict[str, list[str]] = {}
        for region, text in self.region_texts(study).items():
            if text.status != "normal":
                regions.setdefault(text.text, []).append(spoken(region))
        return ". ".join(f"{', '.join(names)}: {text}" for text, names in regions.items()) or self.normal.format(
            "the scan"
        )

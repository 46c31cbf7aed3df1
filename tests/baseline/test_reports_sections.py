from __future__ import annotations

import pytest

from medvl_baseline.reports.sections import split_report
from medvl_core.study import Report


@pytest.mark.parametrize(
    ("text", "findings", "impression"),
    [
        (
            "INDICATION: cough.\nFINDINGS: Clear lungs.\nImpression: Normal.\nCOMPARISON: none",
            "Clear lungs.",
            "Normal.",
        ),
        ("Clear lungs.", "Clear lungs.", ""),
        ("FINDINGS:\nLiver: 2 cm cyst.\nSpleen: Normal.", "Liver: 2 cm cyst.\nSpleen: Normal.", ""),
        ("Liver: 2 cm cyst.", "Liver: 2 cm cyst.", ""),
        (
            "INDICATION: Known emphysema, rule out fracture.\nIMPRESSION: No acute abnormality.",
            "",
            "No acute abnormality.",
        ),
        ("CLINICAL HISTORY: pneumonia\nCONCLUSION: normal lungs", "", "normal lungs"),
        ("HISTORY: x.\n\nTECHNIQUE: y.\n\nThe liver is normal.\n\nIMPRESSION: z.", "The liver is normal.", "z."),
        ("The liver is normal.\nIMPRESSION: z.", "The liver is normal.", "z."),
        ("CT ABDOMEN\nEXAM: pancreatitis\nIMPRESSION: z.", "", "z."),
        ("INDICATION: cough. FINDINGS: Clear. IMPRESSION: Normal.", "Clear.", "Normal."),
        ("The findings: none of note.", "The findings: none of note.", ""),
        ("Findings\nClear.\r\nImpression\r\nNormal.", "Clear.", "Normal."),
        ("FINDINGS (CHEST): One.\nFINDINGS (ABDOMEN): Two.", "One.\n\nTwo.", ""),
        ("INDICATION: cough", "", ""),
        ("FINDINGS: Clear. IMPRESSION AND RECOMMENDATIONS: 1. Liver mass", "Clear.", "1. Liver mass"),
        ("FINDINGS/IMPRESSION: Liver cyst.", "Liver cyst.", ""),
        (
            "INDICATION: cough\nTECHNIQUE: CT chest\nNodule left lower lobe.\nIMPRESSION: x",
            "Nodule left lower lobe.",
            "x",
        ),
        ("INDICATION: a man with cough and\nknown emphysema.\nIMPRESSION: No acute change.", "", "No acute change."),
        ("Findings:\nTechnique: limited.\nLiver cyst.", "Liver cyst.", ""),
        ("The liver has a cyst.\n\nCOMPARISON: none.\n\nIMPRESSION: a", "The liver has a cyst.", "a"),
        ("", "", ""),
    ],
)
def test_only_named_sections_are_headings(text, findings, impression):
    assert split_report(text) == Report(findings, impression)

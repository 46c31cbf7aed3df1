# ruff: noqa: E501 - a table of sentences reads better unbroken
"""What the reports say: sentences per finding, normal statements per organ system, negations."""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["PHRASES", "SYSTEMS", "Phrase", "System"]


@dataclass(frozen=True, slots=True)
class Phrase:
    """How one finding is written.

    Args:
        nouns: Noun phrases; the first is the plainest. Used in impressions, hedged sentences and negations.
        sentences: Whole sentences with ``{degree}``, ``{side}``, ``{lobes}``, ``{size}``, ``{number}`` slots.
        negated: What "No ..." denies when the finding is absent.
    """

    nouns: tuple[str, ...]
    sentences: tuple[str, ...]
    negated: str


@dataclass(frozen=True, slots=True)
class System:
    """Findings reported together, and what is written when none of them is there."""

    name: str
    findings: tuple[str, ...]
    normal: tuple[str, ...]


SYSTEMS = (
    System("devices", ("Medical material",), ()),
    System(
        "lungs",
        ("Emphysema", "Atelectasis", "Lung nodule", "Lung opacity", "Pulmonary fibrotic sequela", "Mosaic attenuation pattern",
         "Peribronchial thickening", "Consolidation", "Bronchiectasis", "Interlobular septal thickening"),
        ("Both lungs are clear.", "Aeration of both lung parenchyma is normal.", "The lungs are well expanded and clear."),
    ),
    System("pleura", ("Pleural effusion",), ("Both pleural spaces are clear.", "The pleura appears normal.")),
    System(
        "heart",
        ("Cardiomegaly", "Pericardial effusion", "Coronary artery wall calcification"),
        ("Heart size and contour are normal.", "The heart is normal in size.", "The cardiac silhouette is unremarkable."),
    ),
    System(
        "vessels",
        ("Arterial wall calcification", "Arteriosclerosis"),
        ("The thoracic aorta is normal in calibre.", "Calibre of the great vessels is natural."),
    ),
    System(
        "mediastinum",
        ("Lymphadenopathy", "Hiatal hernia"),
        ("Trachea and both main bronchi are patent.", "The mediastinum is unremarkable.", "Mediastinal structures are normal."),
    ),
    System(
        "liver",
        ("Fatty liver", "Liver cyst", "Liver calcification"),
        ("Liver size and density are normal.", "The liver is unremarkable.", "The liver is homogeneous."),
    ),
    System(
        "gallbladder",
        ("Gallstone", "Cholecystitis"),
        ("The gallbladder is unremarkable.", "The gallbladder is normally distended with a thin wall."),
    ),
    System(
        "spleen",
        ("Splenomegaly", "Splenic calcification"),
        ("The spleen is normal in size.", "Spleen size and density are normal."),
    ),
    System(
        "pancreas",
        ("Acute pancreatitis", "Chronic pancreatitis", "Pancreatic duct stones"),
        ("The pancreas is unremarkable.", "Pancreatic contour and density are normal."),
    ),
    System(
        "kidneys",
        ("Kidney stone", "Kidney cyst"),
        ("Both kidneys are normal in size and position.", "The kidneys and adrenal glands are unremarkable."),
    ),
    System("bones", (), ("Vertebral body heights are preserved.", "Bone structures in the study area are natural.",
                         "No lytic or destructive bone lesion is seen.", "Degenerative changes are noted in the spine.")),
)  # fmt: skip

PHRASES: dict[str, Phrase] = {
    "Medical material": Phrase(
        ("an implanted medical device", "medical material"),
        ("{device} is in place.", "{device} is noted.", "{device} is observed."),
        "medical device",
    ),
    "Arterial wall calcification": Phrase(
        ("aortic wall calcification", "calcified atheroma of the aorta"),
        ("{Degree} calcified atheromatous plaques are present in the aortic wall.", "There are {degree} calcifications of the aortic wall.",
         "Aortic wall calcification is {degree}.", "Calcified atheroma of the aorta is observed."),
        "aortic wall calcification",
    ),
    "Cardiomegaly": Phrase(
        ("cardiomegaly", "an enlarged heart"),
        ("The heart is {degree}ly enlarged.", "{Degree} cardiomegaly is present.", "The cardiothoracic ratio is increased, in keeping with cardiomegaly.",
         "Heart size is increased."),
        "cardiomegaly",
    ),
    "Pericardial effusion": Phrase(
        ("pericardial effusion", "fluid in the pericardial space"),
        ("There is a pericardial effusion measuring {size} mm in thickness.", "{Degree} pericardial effusion is observed.",
         "Pericardial fluid reaches {size} mm."),
        "pericardial effusion",
    ),
    "Coronary artery wall calcification": Phrase(
        ("coronary artery calcification", "coronary atherosclerosis"),
        ("Calcified plaques are seen in the coronary arteries.", "{Degree} coronary artery wall calcifications are noted.",
         "Coronary artery calcification is {degree}."),
        "coronary artery calcification",
    ),
    "Hiatal hernia": Phrase(
        ("a hiatal hernia", "herniation of the stomach through the oesophageal hiatus"),
        ("A {extent} hiatal hernia is present.", "There is a {extent} sliding type hiatal hernia at the lower end of the oesophagus.",
         "Part of the stomach lies above the diaphragm, consistent with hiatal hernia."),
        "hiatal hernia",
    ),
    "Lymphadenopathy": Phrase(
        ("mediastinal lymphadenopathy", "enlarged mediastinal lymph nodes"),
        ("Enlarged mediastinal and hilar lymph nodes are present, the largest {size} mm.", "There is mediastinal lymphadenopathy up to {size} mm in diameter.",
         "{Number} pathologically enlarged lymph nodes are seen in the mediastinum, the largest measuring {size} mm."),
        "lymphadenopathy",
    ),
    "Emphysema": Phrase(
        ("emphysema", "emphysematous change"),
        ("{Degree} {kind} emphysema is present in both lungs.", "Emphysematous changes are observed, {degree} in degree.",
         "There are {kind} emphysematous areas, predominantly in the upper lobes, with hyperinflation."),
        "emphysema",
    ),
    "Atelectasis": Phrase(
        ("{side} atelectasis", "{side} basal volume loss with atelectasis"),
        ("{kind} atelectasis is seen in the {side} lower {zone}.", "There is {degree} {side} basal atelectasis with volume loss.",
         "Atelectatic changes are present at the {side} lung {base}."),
        "atelectasis",
    ),
    "Lung nodule": Phrase(
        ("pulmonary nodule in the {lobes}", "lung nodule measuring {size} mm"),
        ("{Number} {nodules} of up to {size} mm {are} seen in the {lobes}.", "{Number} pulmonary {nodules}, up to {size} mm, in the {lobes}.",
         "There {are} {number} solid {nodules} in the {lobes}, measuring up to {size} mm."),
        "pulmonary nodule",
    ),
    "Lung opacity": Phrase(
        ("ground-glass opacities in the {lobes}", "ground-glass density increase"),
        ("Patchy ground-glass opacities are observed in the {lobes}.", "{Degree} ground-glass density increases are present in the {lobes}.",
         "Multifocal ground-glass areas are seen, mainly in the {lobes}."),
        "ground-glass opacity",
    ),
    "Pulmonary fibrotic sequela": Phrase(
        ("{side} apical fibrotic sequelae", "sequela fibrotic change"),
        ("{Side} apical pleuroparenchymal fibrotic sequelae are observed.", "Fibrotic bands with {degree} volume loss are present in the {side} {apex}, sequela in nature.",
         "Fibroatelectatic sequela changes in the {side} upper {zone}."),
        "fibrotic sequela",
    ),
    "Pleural effusion": Phrase(
        ("{side} pleural effusion", "{side} pleural fluid"),
        ("There is a {extent} {side} pleural effusion.", "{Side} pleural effusion is present, {extent} in amount.",
         "{Extent} {side} pleural fluid is noted with compression of the adjacent lung."),
        "pleural effusion",
    ),
    "Mosaic attenuation pattern": Phrase(
        ("mosaic attenuation", "small airway disease with mosaic attenuation"),
        ("A mosaic attenuation pattern is observed in both lungs.", "{Degree} mosaic attenuation is present, suggesting small airway disease."),
        "mosaic attenuation",
    ),
    "Peribronchial thickening": Phrase(
        ("peribronchial thickening", "bronchial wall thickening"),
        ("{Degree} peribronchial thickening is observed.", "Bronchial wall thickening is present in both lungs.",
         "The bronchial walls are thickened centrally."),
        "peribronchial thickening",
    ),
    "Consolidation": Phrase(
        ("consolidation in the {lobes}", "airspace consolidation of the {lobes}"),
        ("There is consolidation in the {lobes}, up to {size} mm across.", "Airspace consolidation with air bronchograms in the {lobes}.",
         "A consolidated area of {size} mm is seen in the {lobes}."),
        "consolidation",
    ),
    "Bronchiectasis": Phrase(
        ("bronchiectasis in the {lobes}", "bronchiectatic change"),
        ("{Degree} bronchiectasis is present in the {lobes}.", "Bronchiectatic changes are seen in the {lobes}.",
         "Dilated bronchi consistent with bronchiectasis in the {lobes}."),
        "bronchiectasis",
    ),
    "Interlobular septal thickening": Phrase(
        ("interlobular septal thickening", "thickened interlobular septa"),
        ("{Degree} interlobular septal thickening is observed.", "Interlobular septa are thickened in both lungs.",
         "There is smooth thickening of the interlobular septa."),
        "interlobular septal thickening",
    ),
    "Splenomegaly": Phrase(
        ("splenomegaly", "an enlarged spleen"),
        ("The spleen is {degree}ly enlarged.", "{Degree} splenomegaly is present.", "Spleen size is increased."),
        "splenomegaly",
    ),
    "Splenic calcification": Phrase(
        ("splenic calcification", "calcified splenic granulomas"),
        ("Punctate calcifications are seen in the spleen.", "{Number} splenic calcifications are noted.", "Calcified granulomas are present in the spleen."),
        "splenic calcification",
    ),
    "Acute pancreatitis": Phrase(
        ("acute pancreatitis", "acute inflammation of the pancreas"),
        ("The pancreas is swollen with peripancreatic fat stranding, consistent with acute pancreatitis.",
         "{Degree} acute pancreatitis with stranding of the surrounding fat."),
        "acute pancreatitis",
    ),
    "Chronic pancreatitis": Phrase(
        ("chronic pancreatitis",),
        ("The pancreas is atrophic with a dilated duct, in keeping with chronic pancreatitis.", "Findings of {degree} chronic pancreatitis are present."),
        "sign of chronic pancreatitis",
    ),
    "Pancreatic duct stones": Phrase(
        ("pancreatic duct stones", "pancreatic ductal calculi"),
        ("{Number} pancreatic duct stones are seen.", "Calculi are present within the pancreatic duct."),
        "pancreatic duct stone",
    ),
    "Arteriosclerosis": Phrase(
        ("arteriosclerosis of the aorta", "an ectatic arteriosclerotic aorta"),
        ("The aorta is elongated and ectatic, in keeping with arteriosclerosis.", "{Degree} arteriosclerosis of the aorta with mural plaques.",
         "Arteriosclerotic changes are seen in a tortuous aorta."),
        "arteriosclerosis",
    ),
    "Kidney stone": Phrase(
        ("{side} nephrolithiasis", "{side} kidney stone"),
        ("{Size} mm stone in the {side} {kidney}.", "{Side} nephrolithiasis, up to {size} mm.", "{Side} renal calculi are present, the largest {size} mm."),
        "kidney stone",
    ),
    "Kidney cyst": Phrase(
        ("{side} renal cyst", "{side} kidney cyst"),
        ("Simple cortical cyst of {size} mm in the {side} {kidney}.", "{Side} renal cyst, {size} mm.",
         "There is a {side} kidney cyst measuring {size} mm."),
        "renal cyst",
    ),
    "Fatty liver": Phrase(
        ("hepatic steatosis", "fatty liver"),
        ("Liver density is diffusely decreased, consistent with hepatic steatosis.", "{Degree} fatty liver is observed.", "{Degree} hepatosteatosis is present."),
        "hepatic steatosis",
    ),
    "Liver cyst": Phrase(
        ("liver cyst", "simple hepatic cyst"),
        ("{Number} hypodense {cysts} of up to {size} mm {are} seen in the liver.", "{Number} hepatic {cysts}, up to {size} mm.", "Liver {cysts} up to {size} mm {are} noted."),
        "hepatic cyst",
    ),
    "Liver calcification": Phrase(
        ("liver calcification", "calcified hepatic granuloma"),
        ("A coarse calcification of {size} mm is present in the liver.", "Hepatic calcification is noted, up to {size} mm.",
         "Liver parenchymal calcification is seen."),
        "hepatic calcification",
    ),
    "Gallstone": Phrase(
        ("cholelithiasis", "gallstones"),
        ("{Number} {stones} in the gallbladder, up to {size} mm.", "Cholelithiasis is present.", "Gallstones up to {size} mm are seen in the gallbladder."),
        "gallstone",
    ),
    "Cholecystitis": Phrase(
        ("cholecystitis", "inflammation of the gallbladder"),
        ("The gallbladder wall is thickened with pericholecystic fluid, consistent with cholecystitis.",
         "{Degree} cholecystitis with stranding of the adjacent fat."),
        "sign of cholecystitis",
    ),
}  # fmt: skip
"""Finding → how it is written."""

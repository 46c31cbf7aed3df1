"""Organ names and label ids: TotalSegmentator version 2, task ``total``."""

from __future__ import annotations

__all__ = ["ORGANS", "ORGAN_ID", "LUNG_LOBES"]

_VERTEBRAE = ("L3", "L2", "L1", *(f"T{n}" for n in range(12, 0, -1)))
ORGANS: dict[int, str] = {
    1: "spleen",
    2: "kidney_right",
    3: "kidney_left",
    4: "gallbladder",
    5: "liver",
    6: "stomach",
    7: "pancreas",
    8: "adrenal_gland_right",
    9: "adrenal_gland_left",
    10: "lung_upper_lobe_left",
    11: "lung_lower_lobe_left",
    12: "lung_upper_lobe_right",
    13: "lung_middle_lobe_right",
    14: "lung_lower_lobe_right",
    15: "esophagus",
    16: "trachea",
    17: "thyroid_gland",
    18: "small_bowel",
    19: "duodenum",
    20: "colon",
    23: "kidney_cyst_left",
    24: "kidney_cyst_right",
    **{29 + i: f"vertebrae_{name}" for i, name in enumerate(_VERTEBRAE)},
    51: "heart",
    52: "aorta",
    53: "pulmonary_vein",
    54: "brachiocephalic_trunk",
    57: "common_carotid_artery_right",
    58: "common_carotid_artery_left",
    62: "superior_vena_cava",
    63: "inferior_vena_cava",
    64: "portal_vein_and_splenic_vein",
    71: "scapula_left",
    72: "scapula_right",
    73: "clavicula_left",
    74: "clavicula_right",
    79: "spinal_cord",
    86: "autochthon_left",
    87: "autochthon_right",
    **{92 + i: f"rib_left_{i + 1}" for i in range(12)},
    **{104 + i: f"rib_right_{i + 1}" for i in range(12)},
    116: "sternum",
    117: "costal_cartilages",
}
"""Label id → organ name. Numbers not listed are organs that the phantom does not draw."""

ORGAN_ID = {name: number for number, name in ORGANS.items()}
LUNG_LOBES = range(10, 15)

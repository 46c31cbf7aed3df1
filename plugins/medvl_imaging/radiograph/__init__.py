"""Simulated radiographs of a CT, placed by the anatomy its affine states."""

from medvl_imaging.radiograph.detector import WATER_PER_MM
from medvl_imaging.radiograph.simulate import simulate_radiograph
from medvl_imaging.radiograph.source import SimulatedRadiograph, draw_pose

__all__ = ["WATER_PER_MM", "SimulatedRadiograph", "draw_pose", "simulate_radiograph"]

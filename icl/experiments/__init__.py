"""Experiments by paper, a file each, as presets that `icl train NAME` runs."""

from . import capacity, garg, looped, park, raventos
from .presets import PRESETS, Preset, preset, register, report

__all__ = [
    "PRESETS",
    "Preset",
    "capacity",
    "garg",
    "looped",
    "park",
    "preset",
    "raventos",
    "register",
    "report",
]

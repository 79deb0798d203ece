"""Experiments by paper, a file each, as presets that `icl train NAME` runs."""

from . import ahn, capacity, garg, looped, oswald, park, raventos, ren
from .presets import (
    PRESETS,
    STUDIES,
    Preset,
    Study,
    preset,
    register,
    register_study,
    report,
    study,
)

__all__ = [
    "PRESETS",
    "STUDIES",
    "Preset",
    "Study",
    "ahn",
    "capacity",
    "garg",
    "looped",
    "oswald",
    "park",
    "preset",
    "raventos",
    "register",
    "register_study",
    "ren",
    "report",
    "study",
]

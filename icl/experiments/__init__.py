"""Experiments by paper, a file each, as presets that `icl train NAME` runs."""

from . import garg
from .presets import PRESETS, Preset, preset, register

__all__ = ["PRESETS", "Preset", "garg", "preset", "register"]

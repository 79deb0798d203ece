"""Experiments by paper, a file each, as presets that `icl train NAME` runs.

A file is imported when one of its presets is asked for.
"""

from .presets import PRESETS, Preset, preset, register, report

__all__ = ["PRESETS", "Preset", "preset", "register", "report"]

"""Presets of experiments, one file per paper; `icl train NAME` trains a preset.

A file is imported when one of its presets is looked up.
"""

from .presets import PRESETS, Preset, preset, register, report

__all__ = ["PRESETS", "Preset", "preset", "register", "report"]

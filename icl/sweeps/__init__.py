"""Sweeps: populations of models over settings and seeds, in as few programs as they have shapes."""

from .folder import Member, Sweep
from .grid import parse_over
from .results import SweepResult, sweep_figure
from .train import resume_sweep, train_sweep

__all__ = [
    "Member",
    "Sweep",
    "SweepResult",
    "parse_over",
    "resume_sweep",
    "sweep_figure",
    "train_sweep",
]

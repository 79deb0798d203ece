"""Evaluation: error by number of in-context examples, baselines, tables and figures."""

from .curves import bootstrap, draw_prompts, estimators, evaluate
from .figures import evaluation_figure, training_figure
from .result import Curve, Evaluation

__all__ = [
    "Curve",
    "Evaluation",
    "bootstrap",
    "draw_prompts",
    "estimators",
    "evaluate",
    "evaluation_figure",
    "training_figure",
]

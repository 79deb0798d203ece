"""Evaluation: error by number of in-context examples, comparators, baselines, queries."""

from .comparators import Comparator, comparators
from .curves import bootstrap, draw_prompts, evaluate
from .figures import training_figure
from .queries import predict_queries
from .result import Curve, Evaluation

__all__ = [
    "Comparator",
    "Curve",
    "Evaluation",
    "bootstrap",
    "comparators",
    "draw_prompts",
    "evaluate",
    "predict_queries",
    "training_figure",
]

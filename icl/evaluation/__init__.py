"""Evaluation: error by number of in-context examples, baselines, tables and figures."""

from .comparators import Comparator, comparators
from .curves import bootstrap, draw_prompts, evaluate
from .figures import evaluation_figure, training_figure
from .loops import errors_by_loop
from .pool import PoolEvaluation, discrete_mmse, evaluate_pool
from .queries import predict_queries
from .result import Curve, Evaluation
from .shifts import SHIFTS, Shifts, evaluate_shifts, shifts_of

__all__ = [
    "Comparator",
    "Curve",
    "Evaluation",
    "PoolEvaluation",
    "SHIFTS",
    "Shifts",
    "bootstrap",
    "comparators",
    "discrete_mmse",
    "draw_prompts",
    "errors_by_loop",
    "evaluate",
    "evaluate_pool",
    "evaluate_shifts",
    "evaluation_figure",
    "predict_queries",
    "shifts_of",
    "training_figure",
]

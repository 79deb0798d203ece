"""Classical estimators that predict from every prefix of a prompt at once.

Each function takes a batch of prompts, x `[B, P, D]` and y `[B, P]`, and returns predictions
`[B, P]`: entry i predicts y_i at x_i from the i points before it, and is 0 if i is 0, as in Garg et
al. 2022 (arXiv 2208.01066, appendix A.3). With nearly as many points as dimensions, accurate
results need float64: call the functions under `jax.enable_x64(True)`, as
`icl.evaluation.evaluate` does. Three modules have other arguments, and say which: `symbols.py`
predicts symbols from those before, `known_tasks.py` the labels of tasks that are known, and
`tables.py` the labels of a table's rows from its examples.
"""

from collections.abc import Callable

import jax

from .bases import mixture_of_ridges, ridge_in_basis
from .boosting import boosting
from .classifiers import nearest_class, ridge_class, sgd_class
from .lasso import lasso, lasso_path
from .linear import averaging, least_squares, ridge, zero
from .neighbours import nearest_neighbours
from .network import two_layer_network
from .online import least_mean_squares, mesa
from .tree import greedy_tree

Baseline = Callable[[jax.Array, jax.Array], jax.Array]

__all__ = [
    "Baseline",
    "averaging",
    "boosting",
    "greedy_tree",
    "lasso",
    "lasso_path",
    "least_mean_squares",
    "least_squares",
    "mesa",
    "mixture_of_ridges",
    "nearest_class",
    "nearest_neighbours",
    "ridge",
    "ridge_class",
    "ridge_in_basis",
    "sgd_class",
    "two_layer_network",
    "zero",
]

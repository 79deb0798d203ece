"""Task families drawn on the device, pools, curricula and layouts."""

from .base import Difficulty, Episode, TaskFamily
from .curriculum import Curriculum, garg_curriculum
from .decision_tree import DecisionTree, Tree
from .layouts import LAYOUTS, Concatenated, Interleaved, Layout
from .linear_regression import LinearRegression
from .sampling import MAX_POOL_SIZE, pool_task, sample_batch, sample_prompt

FAMILIES: dict[str, type[TaskFamily]] = {
    "linear_regression": LinearRegression,
    "decision_tree": DecisionTree,
}

__all__ = [
    "FAMILIES",
    "LAYOUTS",
    "MAX_POOL_SIZE",
    "Concatenated",
    "Curriculum",
    "DecisionTree",
    "Difficulty",
    "Episode",
    "Interleaved",
    "Layout",
    "LinearRegression",
    "TaskFamily",
    "Tree",
    "garg_curriculum",
    "pool_task",
    "sample_batch",
    "sample_prompt",
]

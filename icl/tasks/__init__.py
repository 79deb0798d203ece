"""Task families drawn on the device, pools, curricula and layouts."""

from .base import Difficulty, Episode, TaskFamily
from .classification import LinearClassification, Parity
from .curriculum import Curriculum, garg_curriculum
from .decision_tree import DecisionTree, Tree
from .layouts import LAYOUTS, Concatenated, Interleaved, Layout, Separate, Tagged
from .linear_regression import LinearRegression
from .outliers import ManyOutlierRegression, OrthogonalOutlierRegression
from .quadratic_regression import QuadraticRegression
from .relu_network import Network, ReLUNetwork
from .sampling import MAX_POOL_SIZE, pool_task, sample_batch, sample_prompt
from .sine import SineRegression
from .sparse_linear_regression import SparseLinearRegression
from .vector_retrieval import Store, VectorRetrieval
from .whitened_regression import WhitenedRegression

FAMILIES: dict[str, type[TaskFamily]] = {
    "linear_regression": LinearRegression,
    "sparse_linear_regression": SparseLinearRegression,
    "quadratic_regression": QuadraticRegression,
    "relu_network": ReLUNetwork,
    "decision_tree": DecisionTree,
    "linear_classification": LinearClassification,
    "parity": Parity,
    "many_outlier_regression": ManyOutlierRegression,
    "orthogonal_outlier_regression": OrthogonalOutlierRegression,
    "vector_retrieval": VectorRetrieval,
    "sine": SineRegression,
    "whitened_regression": WhitenedRegression,
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
    "LinearClassification",
    "LinearRegression",
    "ManyOutlierRegression",
    "Network",
    "OrthogonalOutlierRegression",
    "Parity",
    "QuadraticRegression",
    "ReLUNetwork",
    "Separate",
    "SineRegression",
    "SparseLinearRegression",
    "Store",
    "Tagged",
    "TaskFamily",
    "Tree",
    "VectorRetrieval",
    "WhitenedRegression",
    "garg_curriculum",
    "pool_task",
    "sample_batch",
    "sample_prompt",
]

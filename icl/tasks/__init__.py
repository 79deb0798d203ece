"""Task families sampled on the device, task pools, curricula and layouts."""

from collections.abc import Callable

from ..registry import Kind, register
from .associative_recall import AssociativeRecall, Pairs
from .base import Data, Difficulty, Episode, FunctionFamily, TaskFamily
from .basis_regression import BasisRegression, WeightsInBasis
from .class_sequences import ClassSequences
from .classification import LinearClassification, Parity
from .curriculum import Curriculum, garg_curriculum
from .decision_tree import DecisionTree, Tree
from .inputs import Images, InputKind, Rows, Symbols, Vectors
from .labels import Classes, LabelKind, Measure, NextSymbol, Scalar, ShownClasses, Signs, Vector
from .layouts import (
    LAYOUTS,
    Concatenated,
    Inputs,
    Interleaved,
    Layout,
    Masked,
    Paired,
    Separate,
    Shifted,
    Tagged,
)
from .linear_regression import LinearRegression
from .markov_chains import MarkovChains
from .mixed_regression import FunctionOfKind, MixedRegression
from .mixture import Mixture, MixtureTask
from .outliers import ManyOutlierRegression, OrthogonalOutlierRegression
from .projected_images import ProjectedImages
from .quadratic_regression import QuadraticRegression
from .random_network import Lines, RandomNetwork
from .relabelled_classes import RelabelledClasses, Relabelling
from .relu_network import Network, ReLUNetwork
from .repeated_sequences import RepeatedSequences
from .sampling import MAX_POOL_SIZE, pool_task, sample_batch, sample_prompt
from .sequence_kinds import KINDS
from .sine import SineRegression, fast_sines
from .sparse_linear_regression import SparseLinearRegression
from .symbol_sequences import SymbolSequences
from .tables import Table, Tables
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
    "projected_images": ProjectedImages,
    "random_network": RandomNetwork,
    "lines": Lines,
    "class_sequences": ClassSequences,
    "relabelled_classes": RelabelledClasses,
    "repeated_sequences": RepeatedSequences,
    "markov_chains": MarkovChains,
    "associative_recall": AssociativeRecall,
    "basis_regression": BasisRegression,
    "mixed_regression": MixedRegression,
    "mixture": Mixture,
    "tables": Tables,
}


def register_family(name: str) -> Callable[[Kind], Kind]:
    """Class decorator that registers a `TaskFamily` under a name, for configs and commands.

        @register_family("rotations")
        @dataclasses.dataclass(frozen=True)
        class Rotations(TaskFamily): ...

    Raises:
      TypeError, ValueError: as `icl.registry.register`.
    """
    return register(FAMILIES, TaskFamily, name)


__all__ = [
    "FAMILIES",
    "KINDS",
    "LAYOUTS",
    "MAX_POOL_SIZE",
    "AssociativeRecall",
    "BasisRegression",
    "ClassSequences",
    "Classes",
    "Concatenated",
    "Curriculum",
    "Data",
    "DecisionTree",
    "Difficulty",
    "Episode",
    "FunctionFamily",
    "FunctionOfKind",
    "Images",
    "InputKind",
    "Inputs",
    "Interleaved",
    "LabelKind",
    "Layout",
    "LinearClassification",
    "LinearRegression",
    "Lines",
    "ManyOutlierRegression",
    "MarkovChains",
    "Masked",
    "Measure",
    "MixedRegression",
    "Mixture",
    "MixtureTask",
    "Network",
    "NextSymbol",
    "OrthogonalOutlierRegression",
    "Paired",
    "Pairs",
    "Parity",
    "ProjectedImages",
    "QuadraticRegression",
    "RandomNetwork",
    "ReLUNetwork",
    "RelabelledClasses",
    "Relabelling",
    "RepeatedSequences",
    "Rows",
    "Scalar",
    "Separate",
    "Shifted",
    "ShownClasses",
    "Signs",
    "SineRegression",
    "SparseLinearRegression",
    "Store",
    "SymbolSequences",
    "Symbols",
    "Table",
    "Tables",
    "Tagged",
    "TaskFamily",
    "Tree",
    "Vector",
    "VectorRetrieval",
    "Vectors",
    "WeightsInBasis",
    "WhitenedRegression",
    "fast_sines",
    "garg_curriculum",
    "pool_task",
    "register_family",
    "sample_batch",
    "sample_prompt",
]

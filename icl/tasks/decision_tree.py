"""Decision trees of fixed depth (Garg et al. 2022, section 5 and appendix A.2)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from ..ranges import Range, check_ranges
from .base import Data, Difficulty, FunctionFamily
from .draws import normal


class Tree(NamedTuple):
    """A complete binary tree; the children of node n are 2n + 1 and 2n + 2."""

    coordinates: jax.Array  # int32 [2^depth - 1]: coordinate of x that each inner node tests
    leaves: jax.Array  # [2^depth]: label of each leaf, left to right


@dataclasses.dataclass(frozen=True)
class DecisionTree(FunctionFamily):
    """Each inner node goes right if its coordinate of x is positive; leaf labels are N(0, 1).

    The coordinate of a node is uniform among the coordinates in use, so that under a curriculum no
    node tests a coordinate that is always 0. The public code draws it among all coordinates. A task
    is a `Tree`.
    """

    points: int = 101
    """Number of (x, y) points in a prompt."""
    depth: int = 4
    """Depth of the tree, which has 2^depth leaves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("task", self, depth=Range(1, 12))

    def sample_task(self, key: jax.Array, difficulty: Difficulty, data: Data = None) -> Tree:
        coordinate_key, leaf_key = jax.random.split(key)
        inner = 2**self.depth - 1
        return Tree(
            jax.random.randint(coordinate_key, (inner,), 0, difficulty.dim),
            normal(leaf_key, (inner + 1,)),
        )

    def label(self, task: Tree, x: jax.Array) -> jax.Array:
        right = x[..., task.coordinates] > 0
        # Works from the leaves up: selecting between two halves is faster than a gather.
        values = task.leaves
        for level in reversed(range(self.depth)):
            asked = right[..., 2**level - 1 : 2 ** (level + 1) - 1]
            values = jnp.where(asked, values[..., 1::2], values[..., ::2])
        return values[..., 0]

"""Decision trees of fixed depth (Garg et al. 2022, section 5 and appendix A.2)."""

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp

from .base import Difficulty, TaskFamily


class Tree(NamedTuple):
    """A complete binary tree; the children of node n are 2n + 1 and 2n + 2."""

    coordinates: jax.Array  # int32 [2^depth - 1]: the coordinate of x each inner node asks for
    leaves: jax.Array  # [2^depth]: the label at each leaf, left to right


@dataclasses.dataclass(frozen=True)
class DecisionTree(TaskFamily):
    """Each inner node goes right where its coordinate of x is positive; leaves are N(0, 1).

    Coordinates are uniform among those in use, so that under a curriculum no node asks for
    one that is always 0 (the public code draws them among all). A task is a `Tree`.
    """

    points: int = 101
    """Number of (x, y) points in a prompt."""
    depth: int = 4
    """Depth of the tree: it has 2^depth leaves."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if not 1 <= self.depth <= 16:
            raise ValueError(f"depth must be from 1 to 16, got {self.depth}")

    def sample_task(self, key: jax.Array, difficulty: Difficulty) -> Tree:
        coordinate_key, leaf_key = jax.random.split(key)
        inner = 2**self.depth - 1
        return Tree(
            jax.random.randint(coordinate_key, (inner,), 0, difficulty.dim),
            jax.random.normal(leaf_key, (inner + 1,)),
        )

    def label(self, task: Tree, x: jax.Array) -> jax.Array:
        node = jnp.zeros(x.shape[:-1], jnp.int32)
        for _ in range(self.depth):
            asked = task.coordinates[node]
            value = jnp.take_along_axis(x, asked[..., None], axis=-1)[..., 0]
            node = 2 * node + 1 + (value > 0)
        return task.leaves[node - (2**self.depth - 1)]

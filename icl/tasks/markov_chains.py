"""Markov chains whose transition matrix is inferred in context (Edelman et al. 2024)."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..ranges import POSITIVE, Range, check_ranges
from .base import Data, Difficulty
from .symbol_sequences import SymbolSequences

SQUARINGS = 12  # of the transition matrix: its 4096th power


@dataclasses.dataclass(frozen=True)
class MarkovChains(SymbolSequences):
    """Chains of order 1; each row of a transition matrix is drawn from a Dirichlet distribution.

    The in-context learning of Markov chains of Edelman et al. 2024 (arXiv 2402.11004, section 2).
    The first symbol has the chain's stationary distribution. A task is the transition matrix,
    `[vocabulary, vocabulary]`, from row to column.
    """

    points: int = 99
    """Number of symbols that are predicted; a sequence has one more."""
    vocabulary: int = 3
    """Number of states of a chain."""
    concentration: float = 1.0
    """Concentration of the Dirichlet distribution of a row; 1 is uniform over the simplex."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("task", self, vocabulary=Range(2, 1024), concentration=POSITIVE)

    def sample_task(self, key: jax.Array, difficulty: Difficulty, data: Data = None) -> jax.Array:
        parameters = jnp.full((self.vocabulary,), self.concentration)
        return jax.random.dirichlet(key, parameters, (self.vocabulary,))

    def stationary(self, task: jax.Array) -> jax.Array:
        """The stationary distribution of a chain, `[vocabulary]`."""
        power = task
        for _ in range(SQUARINGS):
            power = jnp.matmul(power, power, precision="highest")
            power = power / power.sum(axis=1, keepdims=True)
        return power.mean(axis=0)

    def sample_sequence(self, key: jax.Array, task: Any) -> jax.Array:
        draws = jax.random.uniform(key, (self.points + 1,))
        # A symbol is the number of cumulated probabilities that a uniform number exceeds.
        drawn = lambda cumulated, uniform: (uniform >= cumulated[:-1]).sum().astype(jnp.int32)
        first = drawn(jnp.cumsum(self.stationary(task)), draws[0])
        rows = jnp.cumsum(task, axis=1)

        def step(symbol: jax.Array, uniform: jax.Array) -> tuple[jax.Array, jax.Array]:
            after = drawn(rows[symbol], uniform)
            return after, after

        rest = jax.lax.scan(step, first, draws[1:])[1]
        return jnp.concatenate([first[None], rest])

"""Random symbols that repeat with a period, which a model must find in the sequence."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from ..ranges import Range, check_ranges
from .base import Data, Difficulty
from .symbol_sequences import SymbolSequences


@dataclasses.dataclass(frozen=True)
class RepeatedSequences(SymbolSequences):
    """Symbols drawn independently and uniformly, repeated with a period of the sequence's own.

    Nothing can be predicted in the first period, and all afterwards, by a head that finds the
    earlier occurrence of the present symbol and copies the symbol after it: the induction head of
    Olsson et al. 2022 ("In-context learning and induction heads"), who measure heads on repeated
    random tokens. A task is a period, uniform between the bounds.
    """

    shortest: int = 12
    """Shortest period, in symbols."""
    longest: int = 24
    """Longest period, in symbols."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("task", self, longest=Range(1, self.points))
        check_ranges("task", self, shortest=Range(1, self.longest))

    def sample_task(self, key: jax.Array, difficulty: Difficulty, data: Data = None) -> jax.Array:
        return jax.random.randint(key, (), self.shortest, self.longest + 1)

    def sample_sequence(self, key: jax.Array, task: Any) -> jax.Array:
        symbols = jax.random.randint(key, (self.longest,), 0, self.vocabulary)
        return symbols[jnp.arange(self.points + 1) % task]

"""Sequences of symbols, as of a language: each symbol is predicted from those before it."""

import dataclasses
from abc import abstractmethod
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from ..ranges import SIZE, check_ranges
from .base import Data, Difficulty, Episode, TaskFamily
from .inputs import Symbols
from .labels import NextSymbol


@dataclasses.dataclass(frozen=True)
class SymbolSequences(TaskFamily):
    """A distribution over sequences of symbols; the label of a symbol is the next symbol.

    The layout is `inputs`, and a model needs the embedder `table`.
    """

    inputs_alone: ClassVar[bool] = True

    points: int = 64
    """Number of symbols that are predicted; a sequence has one more."""
    vocabulary: int = 32
    """Number of different symbols."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("task", self, vocabulary=SIZE._replace(low=2))

    @property
    def input_kind(self) -> Symbols:
        return Symbols(self.vocabulary)

    @property
    def label_kind(self) -> NextSymbol:
        return NextSymbol(self.vocabulary)

    @abstractmethod
    def sample_sequence(self, key: jax.Array, task: Any) -> jax.Array:
        """Draws a sequence of symbols, int32 `[points + 1]`. The key is consumed."""

    def sample_episode(
        self, key: jax.Array, task: Any, difficulty: Difficulty, data: Data = None
    ) -> Episode:
        symbols = self.sample_sequence(key, task)
        used = jnp.arange(self.points) < difficulty.points
        return Episode(symbols[:-1], symbols[1:], used, used)

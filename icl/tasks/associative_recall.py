"""Multi-query associative recall: several keys are shown again, and their values predicted."""

import dataclasses
from typing import ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from ..ranges import POSITIVE, SIZE, Range, check_ranges
from .base import Data, Difficulty, Episode, TaskFamily
from .inputs import Symbols
from .labels import Classes


class Pairs(NamedTuple):
    """Different keys, and a value for each."""

    keys: jax.Array  # int32 [pairs], below vocabulary / 2
    values: jax.Array  # int32 [pairs], from vocabulary / 2 on


@dataclasses.dataclass(frozen=True)
class AssociativeRecall(TaskFamily):
    """Pairs of symbols, a key and its value, then each key again, at random places.

    MQAR of Arora et al. 2023 (arXiv 2312.04927, section 4). Keys are the lower half of the
    vocabulary and values the upper half. After the pairs come random symbols and the queries: each
    key once, an even number of symbols after the pairs. Values are not shown again. The layout is
    `inputs`. A task is a `Pairs`.
    """

    inputs_alone: ClassVar[bool] = True
    every_point_is_query: ClassVar[bool] = False
    may_shorten: ClassVar[bool] = False

    points: int = 64
    """Number of symbols of a prompt."""
    vocabulary: int = 8192
    """Number of different symbols; half are keys and half values."""
    pairs: int = 4
    """Number of pairs, and of queries."""
    gap_exponent: float = 0.01
    """Exponent a of the power law of a query's place: place g of the places after the pairs has a
    weight of g^(a-1); 1 is uniform."""
    random_rest: bool = True
    """Fill the places between queries with random symbols, and not with symbol 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            "task",
            self,
            points=SIZE._replace(low=4),
            vocabulary=SIZE._replace(low=4),
            gap_exponent=POSITIVE,
        )
        most = min(self.points // 4, self.vocabulary // 2)
        check_ranges("task", self, pairs=Range(1, most))
        if self.vocabulary % 2:
            raise ValueError(f"vocabulary must be even, keys and values; got {self.vocabulary}")

    @property
    def input_kind(self) -> Symbols:
        return Symbols(self.vocabulary)

    @property
    def label_kind(self) -> Classes:
        return Classes(self.vocabulary)

    def sample_task(self, key: jax.Array, difficulty: Difficulty, data: Data = None) -> Pairs:
        half = self.vocabulary // 2
        drawn = jax.lax.top_k(jax.random.uniform(key, (2, half)), self.pairs)[1].astype(jnp.int32)
        return Pairs(drawn[0], half + drawn[1])

    def sample_episode(
        self, key: jax.Array, task: Pairs, difficulty: Difficulty, data: Data = None
    ) -> Episode:
        place_key, rest_key = jax.random.split(key)
        shown = 2 * self.pairs
        places = (self.points - shown) // 2
        gaps = jnp.arange(1, places + 1, dtype=jnp.float32)
        # The largest sums with Gumbel noise are a draw without replacement.
        noisy = (self.gap_exponent - 1) * jnp.log(gaps) + jax.random.gumbel(place_key, (places,))
        at = shown + 2 * jax.lax.top_k(noisy, self.pairs)[1]
        rest = jnp.zeros((self.points,), jnp.int32)
        if self.random_rest:
            rest = jax.random.randint(rest_key, (self.points,), 0, self.vocabulary)
        x = rest.at[:shown].set(jnp.stack([task.keys, task.values], axis=1).reshape(-1))
        x = x.at[at].set(task.keys)
        y = jnp.zeros((self.points,), jnp.int32).at[at].set(task.values)
        position = jnp.arange(self.points)
        used = position < difficulty.points
        queries = jnp.zeros((self.points,), bool).at[at].set(True)
        return Episode(x, y, used & queries, used)

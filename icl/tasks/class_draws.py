"""Draws of classes from uniform and Zipf distributions, of orders, and of items of classes.

The functions map uniform numbers in [0, 1) to the draws of one prompt.
"""

import dataclasses
import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from .draws import uniform_at

MOST_COMPARED = 64  # numbers that are ordered by comparing all pairs, which is faster than a sort


class Uniforms:
    """Uniform numbers in [0, 1) of one key, each used once.

    Args:
      key: it is consumed.
    """

    def __init__(self, key: jax.Array):
        self._key = key
        self._used = 0

    def __call__(self, count: int) -> jax.Array:
        """The next numbers, `[count]`."""
        first, self._used = self._used, self._used + count
        return uniform_at(self._key, count, first)

    def one(self) -> jax.Array:
        """The next number, `[]`."""
        return self(1)[0]


@dataclasses.dataclass(frozen=True)
class Group:
    """Consecutive classes with their probabilities.

    Class j of n has a probability proportional to 1 / (total - before - j)^exponent: the last
    classes are the most frequent (Chan et al. 2022, arXiv 2205.05055, section 2).
    """

    first: int
    """Number of the first class."""
    count: int
    """Number of classes, n."""
    exponent: float = 0.0
    """Exponent of the Zipf distribution; 0 for equal probabilities."""
    before: int = 0
    """Number of classes of the same distribution before the first."""
    total: int = 0
    """Number of classes of the distribution; without effect if the exponent is 0."""

    def draw(self, numbers: jax.Array, taken: Sequence[jax.Array] = ()) -> jax.Array:
        """Classes, int32 of the shape of `numbers`, each drawn from those that are not taken.

        Args:
          numbers: uniform in [0, 1).
          taken: different classes of this group.
        """
        gone = list(jnp.sort(jnp.stack(taken)) - self.first) if taken else []
        left = self.count - len(gone)
        if not self.exponent:
            drawn = jnp.minimum((numbers * left).astype(jnp.int32), left - 1)
            for one in gone:
                drawn = drawn + (drawn >= one).astype(jnp.int32)
            return drawn + self.first
        share, below = map(jnp.asarray, _shares(self))
        at = numbers * (1 - sum((share[one] for one in gone), jnp.float32(0)))
        for one in gone:
            at = at + jnp.where(at >= below[one], share[one], 0)
        drawn = jnp.searchsorted(below, at, side="right", method="scan") - 1
        # Rounding may return a class that is taken.
        for _ in gone:
            for one in gone:
                drawn = jnp.where(drawn == one, (drawn + 1) % self.count, drawn)
        return drawn.astype(jnp.int32) + self.first


@functools.lru_cache(maxsize=64)
def _shares(group: Group) -> tuple[np.ndarray, np.ndarray]:
    """The probability of each class of a group and that of all classes before it, float32 `[n]`."""
    rank = group.total - group.before - np.arange(group.count, dtype=np.float64)
    share = rank**-group.exponent
    share /= share.sum()
    return share.astype(np.float32), (np.cumsum(share) - share).astype(np.float32)


def order(numbers: jax.Array) -> jax.Array:
    """A uniform permutation of 0 to n - 1, int32 `[n]`, from uniform numbers `[n]`."""
    count = len(numbers)
    if count > MOST_COMPARED:
        return jnp.argsort(numbers).astype(jnp.int32)
    index = jnp.arange(count)
    earlier = index[None] < index[:, None]
    lower = numbers[None] < numbers[:, None]
    equal = numbers[None] == numbers[:, None]
    return (lower | (equal & earlier)).sum(axis=1, dtype=jnp.int32)


def merged(numbers: jax.Array, first: jax.Array, second: jax.Array, ordered: bool) -> jax.Array:
    """Two arrays `[m]` and `[n]` in one, `[m + n]`, in a uniformly random order.

    Args:
      numbers: uniform `[m + n]`.
      first, second: the arrays; the entries of `second` must be exchangeable.
      ordered: keep the order of the entries of `first`.
    """
    place = order(numbers)
    if not ordered:
        return jnp.concatenate([first, second])[place]
    is_first = place < len(first)
    number = jnp.cumsum(is_first, dtype=jnp.int32) - 1
    return jnp.where(is_first, first[number], second[jnp.maximum(place - len(first), 0)])


def items(numbers: jax.Array, classes: jax.Array, count: jax.Array) -> jax.Array:
    """Items of classes, int32 `[P]`: uniform, and without repetition within a class.

    Args:
      numbers: uniform `[P]`.
      classes: int `[P]`; equal numbers are the same class.
      count: number of items of each of these classes, int `[P]`. If a class
        occurs more often, its further items are independent.
    """
    points = len(classes)
    position = jnp.arange(points)

    def pick(drawn: tuple[jax.Array, jax.Array], now: jax.Array):
        chosen, rank = drawn  # earlier items, and their ranks among earlier items of their class
        same = (classes == classes[now]) & (position < now)
        left = count[now] - same.sum(dtype=jnp.int32)
        # A class without items left starts anew, as if no item were taken.
        again = left <= 0
        same = same & ~again
        left = jnp.where(again, count[now], left)
        free = jnp.minimum((numbers[now] * left.astype(jnp.float32)).astype(jnp.int32), left - 1)
        # The free-th number that is not among the taken ones.
        item = free + (same & (chosen - rank <= free)).sum(dtype=jnp.int32)
        own = (same & (chosen < item)).sum(dtype=jnp.int32)
        rank = rank + (same & (chosen > item)).astype(jnp.int32)
        here = position == now
        return (jnp.where(here, item, chosen), jnp.where(here, own, rank)), None

    # Made from the classes, so that under shard_map they vary over devices as the classes do. XLA
    # would compute each step of an unrolled loop anew in each later step.
    zeros = 0 * classes
    (chosen, _), _ = jax.lax.scan(pick, (zeros, zeros), position)
    return chosen

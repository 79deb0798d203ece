"""Normal and uniform draws, bit-equal to `jax.random`'s and faster on a CPU.

On a CPU, JAX runs the rounds of threefry in a loop that passes over memory five times. Here the
rounds are unrolled, so that XLA fuses them with the code that uses the draws. Threefry is
Salmon et al. 2011, "Parallel random numbers: as easy as 1, 2, 3", section 4.
"""

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

ROTATIONS = ((13, 15, 26, 6), (17, 29, 16, 24))


def normal(key: jax.Array, shape: tuple[int, ...]) -> jax.Array:
    """Draws float32 bit-equal to `jax.random.normal(key, shape)`. The key is consumed."""
    count = math.prod(shape)
    if not _is_threefry(key) or count >= 2**32:
        return jax.random.normal(key, shape)
    return _normal(_bits(key, count)).reshape(shape)


def uniform(key: jax.Array, shape: tuple[int, ...], low: float, high: float) -> jax.Array:
    """Draws float32 bit-equal to `jax.random.uniform(key, shape, minval=low, maxval=high)`.

    The key is consumed.
    """
    count = math.prod(shape)
    if not _is_threefry(key) or count >= 2**32:
        return jax.random.uniform(key, shape, minval=low, maxval=high)
    numbers = _between(_bits(key, count), low, high)
    return jax.lax.optimization_barrier(numbers).reshape(shape)


def uniform_at(
    key: jax.Array, count: int, first: int | jax.Array = 0, row: int | jax.Array = 0
) -> jax.Array:
    """Numbers of a table that a key defines, uniform in [0, 1), float32 `[count]`.

    Args:
      key: the key; it is not consumed, so nothing else may be drawn from it.
      count: number of numbers.
      first: column of the first.
      row: row of all. Rows and columns are below 2^32.
    """
    if not _is_threefry(key):
        key = jax.random.fold_in(jax.random.fold_in(key, row), first)
        return jax.random.uniform(key, (count,))
    return _between(_bits(key, count, first, row), 0.0, 1.0)


def normal_at(
    key: jax.Array, count: int, first: int | jax.Array = 0, row: int | jax.Array = 0
) -> jax.Array:
    """Numbers of a table that a key defines, standard normal; arguments as for `uniform_at`."""
    if not _is_threefry(key):
        key = jax.random.fold_in(jax.random.fold_in(key, row), first)
        return jax.random.normal(key, (count,))
    return _normal(_bits(key, count, first, row))


class Draws:
    """Random numbers of one key, handed out part by part; see `drawn_together`."""

    def __init__(self, normals: jax.Array | None = None, uniforms: jax.Array | None = None):
        self._normals, self._uniforms = normals, uniforms
        self.counts = [0, 0]

    def _part(self, which: int, source: jax.Array | None, shape: tuple[int, ...]) -> jax.Array:
        first, count = self.counts[which], math.prod(shape)
        self.counts[which] += count
        if source is None:
            return jnp.zeros(shape, jnp.float32)
        return source[first : first + count].reshape(shape)

    def normal(self, *shape: int) -> jax.Array:
        """Standard normal numbers, float32."""
        return self._part(0, self._normals, shape)

    def uniform(self, low: float, high: float, *shape: int) -> jax.Array:
        """Uniform numbers from low to high, float32."""
        return low + (high - low) * self._part(1, self._uniforms, shape)

    def chance(self, probability: float | jax.Array, *shape: int) -> jax.Array:
        """True with a probability, a number or an array of that shape; bool."""
        return self.uniform(0, 1, *shape) < probability

    def integer(self, low: int, high: int | jax.Array, *shape: int) -> jax.Array:
        """Uniform integers from low to below high, int32."""
        count = jnp.asarray(high - low, jnp.float32)
        number = jnp.floor(self.uniform(0, 1, *shape) * count).astype(jnp.int32)
        return low + jnp.minimum(number, jnp.asarray(high - low, jnp.int32) - 1)

    def choice(self, weights: jax.Array, *shape: int) -> jax.Array:
        """Positions among weights `[n]`, with probabilities in proportion to them; int32."""
        index = jnp.arange(len(weights))
        up_to = jnp.where(index[None] <= index[:, None], weights[None], 0).sum(axis=1)
        at = self.uniform(0, 1, *shape)[..., None] * weights.sum()
        found = (at >= up_to.reshape(*[1] * len(shape), -1)).sum(axis=-1, dtype=jnp.int32)
        return jnp.minimum(found, jnp.where(weights > 0, index, 0).max().astype(jnp.int32))

    def permutation(self, count: int, *shape: int) -> jax.Array:
        """Random orders of 0, 1, ..., count - 1, int32 `[*shape, count]`."""
        return ranks(self.uniform(0, 1, *shape, count))


def ranks(numbers: jax.Array) -> jax.Array:
    """The rank of each number along the last axis, from 0, int32; equal numbers keep their order.

    For few numbers, comparing all pairs compiles and runs faster than a sort.
    """
    index = jnp.arange(numbers.shape[-1])
    before = (index[None] < index[:, None]).reshape(*[1] * (numbers.ndim - 1), *[len(index)] * 2)
    own, other = numbers[..., :, None], numbers[..., None, :]
    return ((other < own) | ((other == own) & before)).sum(axis=-1, dtype=jnp.int32)


def drawn_together(key: jax.Array, build: Callable[[Draws], Any]) -> Any:
    """The result of `build`, whose random numbers are drawn in two calls. The key is consumed.

    A sampler that draws many small arrays compiles and runs several times faster in this way.

    Args:
      key: the key.
      build: maps `Draws` to a pytree of arrays; it is traced twice, and must ask for equal shapes.
    """
    counting = Draws()
    jax.eval_shape(lambda: build(counting))
    normal_key, uniform_key = jax.random.split(key)
    normals, uniforms = counting.counts
    return build(Draws(normal(normal_key, (normals,)), uniform(uniform_key, (uniforms,), 0.0, 1.0)))


def _is_threefry(key: jax.Array) -> bool:
    return str(jax.random.key_impl(key)) == "threefry2x32"


def _normal(bits: jax.Array) -> jax.Array:
    symmetric = _between(bits, jnp.nextafter(jnp.float32(-1), jnp.float32(0)), 1)
    # Flat and behind a barrier, so that the code around it cannot change its bits.
    return jax.lax.optimization_barrier(jnp.float32(2**0.5) * jax.lax.erf_inv(symmetric))


def _between(bits: jax.Array, low: float | jax.Array, high: float) -> jax.Array:
    low, high = jnp.float32(low), jnp.float32(high)
    mantissa = (bits >> 9) | jnp.uint32(0x3F800000)
    unit = jax.lax.bitcast_convert_type(mantissa, jnp.float32) - 1
    return jnp.maximum(low, unit * (high - low) + low)


def _bits(
    key: jax.Array, count: int, first: int | jax.Array = 0, row: int | jax.Array = 0
) -> jax.Array:
    """uint32 `[count]`, one block a number; row 0 is `jax.random.bits(key, (count,))`."""
    index = jnp.arange(count, dtype=jnp.uint32) + jnp.asarray(first, jnp.uint32)
    rows = jnp.broadcast_to(jnp.asarray(row, jnp.uint32), index.shape)
    first_word, second_word = _threefry2x32(jax.random.key_data(key), rows, index)
    return first_word ^ second_word


def _threefry2x32(
    key: jax.Array, first: jax.Array, second: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Twenty rounds of threefry-2x32 on a two-word counter, with a key uint32 `[2]`."""
    schedule = (key[0], key[1], key[0] ^ key[1] ^ jnp.uint32(0x1BD11BDA))
    first, second = first + schedule[0], second + schedule[1]
    for group in range(5):
        for rotation in ROTATIONS[group % 2]:
            first = first + second
            second = (second << rotation) | (second >> (32 - rotation))
            second = second ^ first
        first = first + schedule[(group + 1) % 3]
        second = second + schedule[(group + 2) % 3] + jnp.uint32(group + 1)
    return first, second


def stream(name: str, seed: int | None = None) -> jax.Array:
    """Random key for one purpose, different from the keys of training and of other purposes.

    Args:
      name: the purpose; only its first four letters are used.
      seed: seed of the evaluation or analysis; None for a purpose without a seed.
    """
    number = int.from_bytes(name[:4].encode("ascii"), "big")
    return (
        jax.random.key(number) if seed is None else jax.random.fold_in(jax.random.key(seed), number)
    )

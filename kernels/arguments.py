"""Checks of users' arguments, shared by the public functions."""

import math
import operator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer


def check_floating(name: str, array: jax.Array) -> None:
    """Raises TypeError for integers and booleans."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point, got {array.dtype}")


def check_tensors(features: str, **arrays: jax.Array) -> None:
    """Raises ValueError or TypeError unless each is floating `[..., length, heads, features]`.

    features: what the last axis is called in the message.
    """
    for name, array in arrays.items():
        if array.ndim < 3:
            raise ValueError(f"{name} must be [..., length, heads, {features}], got {array.shape}")
        check_floating(name, array)


def flat(array: jax.Array) -> jax.Array:
    """`[..., length, heads, features]` with one batch axis."""
    return array.reshape(math.prod(array.shape[:-3]), *array.shape[-3:])


def as_scale(scale: Any, width: int) -> float:
    """`scale`, or `1 / sqrt(width)` when None."""
    if scale is None:
        return max(width, 1) ** -0.5
    if isinstance(scale, Tracer):
        raise TypeError("scale must be a number; multiply the query by a scale that JAX traces")
    number = np.asarray(scale)
    kinds = (jnp.integer, jnp.floating)
    if number.ndim or not any(jnp.issubdtype(number.dtype, kind) for kind in kinds):
        raise TypeError(f"scale must be one number, got {scale!r}; multiply the query by any other")
    if not math.isfinite(float(number)):
        raise ValueError(f"scale must be finite, got {scale!r}")
    return float(number)


def _is(given: Any, *kinds: type) -> bool:
    """`isinstance`, after which a type checker still takes `given` for anything."""
    return isinstance(given, kinds)


def as_flag(name: str, flag: Any) -> bool:
    """`flag`, which must be True or False."""
    if not _is(flag, bool, np.bool_):
        raise TypeError(f"{name} must be True or False, got {flag!r}")
    return bool(flag)


def as_window(window: Any) -> tuple[int, int] | None:
    """`(left, right)` of a window; one number stands for both sides."""
    if window is None:
        return None
    sides: Any = window if _is(window, tuple, list) else (window, window)
    try:
        if len(sides) != 2 or any(isinstance(side, bool | np.bool_) for side in sides):
            raise TypeError
        left, right = map(operator.index, sides)
    except TypeError:
        raise TypeError(
            f"local_window_size must be an integer or two, (left, right), got {window!r}"
        ) from None
    if left < 0 or right < 0:
        raise ValueError(f"local_window_size must not be negative, got {window}")
    return left, right


def flat_rows(
    name: str, array: Any, batch: tuple[int, ...], rest: tuple[int, ...], letters: str
) -> jax.Array | None:
    """An array that broadcasts to `[*batch, *rest]`, as `[B or 1, ...]`.

    Axes of size 1 in `rest` stay.

    letters: names of the axes of `rest`, for the message.
    """
    if array is None:
        return None
    array = jnp.asarray(array)
    target = (*batch, *rest)
    padded = (1,) * (len(target) - array.ndim) + array.shape
    if len(padded) != len(target) or any(a not in (1, b) for a, b in zip(padded, target)):
        raise ValueError(
            f"{name} of shape {array.shape} cannot broadcast to [..., {letters}] = {target}"
        )
    array = array.reshape(padded)
    mine, rest = padded[: len(batch)], padded[len(batch) :]
    if all(size == 1 for size in mine):
        return array.reshape(1, *rest)
    return jnp.broadcast_to(array, (*batch, *rest)).reshape(math.prod(batch), *rest)


def flat_lengths(name: str, lengths: Any, batch: tuple[int, ...]) -> jax.Array | None:
    """Lengths as int32 `[B]`."""
    if lengths is None:
        return None
    lengths = jnp.asarray(lengths)
    if lengths.shape != batch:
        raise ValueError(f"{name} must have the batch shape {batch}, got {lengths.shape}")
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {lengths.dtype}")
    return lengths.astype(jnp.int32).reshape(-1)

"""Checks of what users give, that the public functions share."""

import contextlib
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp


def check_floating(name: str, array: jax.Array) -> None:
    """Raises TypeError for integers and booleans."""
    if not jnp.issubdtype(array.dtype, jnp.floating):
        raise TypeError(f"{name} must be floating point, got {array.dtype}")


def as_scale(scale: Any, width: int) -> float:
    """`scale`, or `1 / sqrt(width)` when None."""
    if scale is None:
        return max(width, 1) ** -0.5
    if isinstance(scale, jax.core.Tracer):
        raise TypeError("scale must be a number; multiply the query by a scale that JAX traces")
    return float(scale)


def flat_rows(
    name: str, array: Any, batch: tuple[int, ...], rest: tuple[int, ...], letters: str
) -> jax.Array | None:
    """`[B or 1, ...]` of what broadcasts to `[*batch, *rest]`, whose axes of size 1 stay.

    letters: what `rest` is called in the message.
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
    """int32 `[B]`."""
    if lengths is None:
        return None
    lengths = jnp.asarray(lengths)
    if lengths.shape != batch:
        raise ValueError(f"{name} must have the batch shape {batch}, got {lengths.shape}")
    if not jnp.issubdtype(lengths.dtype, jnp.integer):
        raise TypeError(f"{name} must be integers, got {lengths.dtype}")
    return lengths.astype(jnp.int32).reshape(-1)


@contextlib.contextmanager
def forward_mode_hint(implementation: str) -> Iterator[None]:
    """Says which implementation has forward mode, where JAX says that this one has not."""
    try:
        yield
    except TypeError as error:
        if "forward-mode" in str(error):
            error.add_note(f"icl.kernels: ask for implementation={implementation!r} to use jax.jvp")
        raise

"""Cuts long rows into segments, if the batch has too few rows to fill a GPU.

A pass over the keys and values alone gives what each segment adds to the state. A sum over the
segments gives the state before each, and then all segments are taken at once, as rows of a larger
batch with initial states. The backward pass does the same with the derivatives of the states, from
the last segment to the first.
"""

from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from ..wiring import batch_rows
from .problem import Operands


def fold(operands: Operands, segments: int) -> Operands:
    """The operands of a call whose batch rows are the segments, `[B * segments, T / segments]`.

    The initial state is left out.
    """
    batch = batch_rows(operands)
    found: dict[str, jax.Array] = {}
    for name in ("query", "key", "value", "log_decay"):
        array = getattr(operands, name)
        if array is not None:
            array = jnp.broadcast_to(array, (batch, *array.shape[1:]))
            found[name] = fold_steps(array, segments)
    if operands.key_lengths is not None:
        steps = found["query"].shape[1]
        lengths = jnp.broadcast_to(operands.key_lengths, (batch,))[:, None]
        left = jnp.clip(lengths - steps * jnp.arange(segments)[None], 0, steps)
        found["key_lengths"] = left.reshape(-1).astype(jnp.int32)
    return Operands(**found)


def fold_steps(array: jax.Array, segments: int) -> jax.Array:
    """`[B, T, ...]` as `[B * segments, T / segments, ...]`."""
    return array.reshape(array.shape[0] * segments, -1, *array.shape[2:])


def unfold_steps(array: jax.Array, segments: int) -> jax.Array:
    """The inverse of `fold_steps`."""
    return array.reshape(array.shape[0] // segments, -1, *array.shape[2:])


def whole_decays(folded: Operands, segments: int) -> jax.Array | None:
    """The factor by which each segment decays a state, `[B, segments, N, 1, 1]`, or None."""
    if folded.log_decay is None:
        return None
    log_decay = folded.log_decay.astype(jnp.float32)
    # A step that holds NaN or infinity decays nothing, as in the kernels.
    counts = log_decay < jnp.inf
    if folded.key_lengths is not None:
        steps = jnp.arange(log_decay.shape[1])
        counts &= (steps[None] < folded.key_lengths[:, None])[..., None]
    whole = jnp.exp(jnp.where(counts, log_decay, 0).sum(axis=1))
    return whole.reshape(-1, segments, whole.shape[1], 1, 1)


def scan(
    state: jax.Array, added: jax.Array, decays: jax.Array | None, order: Sequence[int]
) -> tuple[jax.Array, jax.Array]:
    """Passes a state through the segments.

    Args:
      state: `[B or 1, N, H, W]`, before the first segment in `order`.
      added: `[B, segments, N, H, W]`, what each segment adds.
      decays: those of `whole_decays`.
      order: the indices of the segments, forward or backward.

    Returns:
      The state before each segment, as `added`, and the one after the last.
    """
    state = jnp.broadcast_to(state, added[:, 0].shape)
    before: dict[int, Any] = {}
    for i in order:
        before[i] = state
        state = added[:, i] + (state if decays is None else decays[:, i] * state)
    return jnp.stack([before[i] for i in sorted(before)], axis=1), state


def broken_before(broken: jax.Array) -> jax.Array:
    """Whether an earlier segment holds NaN or infinity: bool.

    broken: `[B, segments, N]`, 1 or True if the segment itself does.
    """
    return jnp.cumsum(broken, axis=1) > broken

"""Combines all that hides keys from queries into one boolean mask."""

from typing import Any

import jax
import jax.numpy as jnp

from .problem import Dimensions, Operands, Problem


def allowed_pairs(problem: Problem, operands: Operands) -> Any:
    """The keys each query may see: boolean, four axes, broadcastable to `[B, N, T, S]`.

    None if nothing is hidden.
    """
    sizes = Dimensions.of(operands)
    rows = jnp.arange(sizes.T)[None, None, :, None]
    columns = jnp.arange(sizes.S)[None, None, None, :]
    parts: list[jax.Array] = []
    if operands.mask is not None:
        parts.append(operands.mask)
    if problem.is_causal:
        parts.append(columns <= rows)
    if problem.left is not None:
        parts.append(columns >= rows - problem.left)
    if problem.right is not None:
        parts.append(columns <= rows + problem.right)
    for lengths, index in ((operands.query_lengths, rows), (operands.key_lengths, columns)):
        if lengths is not None:
            parts.append(index < lengths[:, None, None, None])
    if not parts:
        return None
    combined = parts[0]
    for part in parts[1:]:
        combined = combined & part
    return combined

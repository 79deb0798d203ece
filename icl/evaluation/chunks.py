"""Applies a function to many prompts in chunks of bounded size."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CHUNK = 128


def in_chunks(function: Callable[..., Any], *trees: Any, dtype: Any = np.float32) -> Any:
    """Applies a function to at most `CHUNK` prompts at a time, and concatenates the results.

    Args:
      function: maps pytrees of arrays with prompts as leading axis to such a pytree. All chunks
        have equal shapes, so that a jitted function compiles once.
      *trees: arguments of the function for all prompts.
      dtype: dtype that floating-point arrays are cast to.

    Returns:
      NumPy arrays with all prompts as leading axis.
    """
    cast = lambda a: a.astype(dtype) if np.issubdtype(a.dtype, np.floating) else a
    whole = jax.tree.map(lambda a: cast(np.asarray(a)), trees)
    count = len(jax.tree.leaves(whole)[0])
    size = min(CHUNK, count)
    parts = []
    for first in range(0, count, size):
        # The last chunk overlaps the one before, so that all have equal shapes.
        start = min(first, count - size)
        given = jax.tree.map(lambda a, start=start: jnp.asarray(a[start : start + size]), whole)
        done = lambda a, first=first, start=start: np.asarray(a)[first - start :]
        parts.append(jax.tree.map(done, function(*given)))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

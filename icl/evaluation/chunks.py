"""Many prompts through a function that takes some at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

CHUNK = 128


def in_chunks(function: Callable[..., Any], *trees: Any, dtype: Any = np.float32) -> Any:
    """What the function gives for all prompts, though it is given at most `CHUNK` at once.

    Args:
      function: from pytrees of arrays with prompts as leading axis to such a pytree; it sees one
        shape, so that a jitted one compiles once.
      *trees: its arguments for all prompts.
      dtype: dtype of the floating-point arrays that it is given.

    Returns:
      NumPy arrays with all prompts as leading axis.
    """
    cast = lambda a: a.astype(dtype) if np.issubdtype(a.dtype, np.floating) else a
    whole = jax.tree.map(lambda a: cast(np.asarray(a)), trees)
    count = len(jax.tree.leaves(whole)[0])
    size = min(CHUNK, count)
    parts = []
    for first in range(0, count, size):
        # The last chunk starts early rather than have a shape of its own to compile.
        start = min(first, count - size)
        given = jax.tree.map(lambda a, start=start: jnp.asarray(a[start : start + size]), whole)
        done = lambda a, first=first, start=start: np.asarray(a)[first - start :]
        parts.append(jax.tree.map(done, function(*given)))
    return jax.tree.map(lambda *arrays: np.concatenate(arrays), *parts)

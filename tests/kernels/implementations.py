"""Which implementations are tested here: on a GPU those of the GPU, else through interpreters."""

import os

import jax.numpy as jnp
import numpy as np

ON_GPU = os.environ.get("ICL_TEST_DEVICE") == "gpu"
FUSED = ["triton"] if ON_GPU else ["triton", "pallas"]
ALL = ["reference", "xla", *FUSED]


def draw_inputs(seed, batch, length, key_length, heads, key_heads, width, dtype=jnp.float32):
    """Query, key, value and a cotangent."""
    rng = np.random.default_rng(seed)
    query, keys = (batch, length, heads, width), (batch, key_length, key_heads, width)
    return [jnp.asarray(rng.normal(size=s), dtype) for s in (query, keys, keys, query)]

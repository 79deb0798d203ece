"""The implementations under test: on a GPU its own, elsewhere through interpreters."""

import functools
import os

import jax.numpy as jnp
import numpy as np

ON_GPU = os.environ.get("ICL_TEST_DEVICE") == "gpu"
FUSED = ["triton"] if ON_GPU else ["triton", "pallas"]
ALL = ["reference", "xla", *FUSED]


def patch_once():
    """Makes Triton's interpreter patch its language once per kernel.

    It also patches at each call of a function inside, without effect, for two fifths of its time.
    """
    from icl.kernels import interpreter

    triton = interpreter.triton_interpreter
    patch_language, patched = triton._patch_lang, set()

    @functools.cache
    def languages(function):
        modules = (triton.tl, triton.tl.core)
        return {m.__name__ for m in modules if any(m is v for v in function.__globals__.values())}

    def patch(function):
        if languages(function) <= patched:
            return None
        patched.update(languages(function))
        scope = patch_language(function)
        restore = scope.restore

        def restore_all():
            patched.clear()
            restore()

        scope.restore = restore_all
        return scope

    triton._patch_lang = patch


if not ON_GPU:
    patch_once()


def draw_inputs(seed, batch, length, key_length, heads, key_heads, width, dtype=jnp.float32):
    """Query, key, value and a cotangent."""
    rng = np.random.default_rng(seed)
    query, keys = (batch, length, heads, width), (batch, key_length, key_heads, width)
    return [jnp.asarray(rng.normal(size=s), dtype) for s in (query, keys, keys, query)]

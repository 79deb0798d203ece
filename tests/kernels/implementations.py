"""The implementations under test: on a GPU its own, elsewhere through interpreters."""

import dataclasses
import functools
import math
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


def share_types():
    """Makes Triton's interpreter share the types and shapes of tensors, which never change.

    It makes them anew for each operation, and does integer operations a second time in 64 bits to
    find overflows, which tests are too small for. Together they take half of its time.
    """
    from icl.kernels import interpreter

    triton = interpreter.triton_interpreter
    core, builder = triton.tl.core, triton.interpreter_builder
    builder.options = dataclasses.replace(builder.options, sanitize_overflow=False)
    find_dtype, make_block = triton._get_np_dtype, core.block_type.__init__
    dtypes, blocks = {}, {}

    def dtype_of(kind):
        name = kind.scalar.name
        if name not in dtypes:
            dtypes[name] = find_dtype(kind)
        return dtypes[name]

    def block(cls, element, shape):
        key = element.name, *map(core._unwrap_if_constexpr, shape)
        if key not in blocks:
            blocks[key] = object.__new__(cls)
            make_block(blocks[key], element, shape)
        return blocks[key]

    @functools.cache
    def sizes(*shape):
        return core.tuple([core.constexpr(n) for n in shape]), core.constexpr(math.prod(shape))

    def make_tensor(tensor, handle, kind):
        tensor.handle, tensor.type, tensor.dtype = handle, kind, kind.scalar
        tensor.shape, tensor.numel = sizes(*(kind.shape if kind.is_block() else ()))

    triton._get_np_dtype = dtype_of
    core.block_type.__new__ = block
    core.block_type.__init__ = lambda *_: None
    core.tensor.__init__ = make_tensor


if not ON_GPU:
    patch_once()
    share_types()


def on_device(array, dtype):
    """A JAX array of a NumPy array; NumPy rounds, as JAX would compile a program for each shape."""
    return jnp.asarray(np.asarray(array).astype(dtype))


def draw_inputs(seed, batch, length, key_length, heads, key_heads, width, dtype=jnp.float32):
    """Query, key, value and a cotangent."""
    rng = np.random.default_rng(seed)
    query, keys = (batch, length, heads, width), (batch, key_length, key_heads, width)
    return [on_device(rng.normal(size=s), dtype) for s in (query, keys, keys, query)]

"""The calls whose kernels are checked: each op's workloads and options."""

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from icl.kernels import (
    delta_rule,
    dot_product_attention,
    linear_attention,
    packed_dot_product_attention,
)
from icl.kernels.attention.workloads import WORKLOADS as ATTENTION
from icl.kernels.linear_attention.workloads import WORKLOADS as LINEAR

# Options that are about float32, and JAX's default_matmul_precision for each.
SINGLE = {"float32": None, "tf32": "tensorfloat32", "tf32x3": "high", "float32 wide": None}

Shape = jax.ShapeDtypeStruct
Call = tuple[Callable, tuple]


class Op(NamedTuple):
    """What is checked of an op.

    call: `(workload, option) -> (function of arrays, their shapes)`.
    options: what the kernels are compiled with, one at a time.
    option_workloads: for which workloads.
    widest: features of a head, the most that there may be.
    most_bytes: what a row form may move, over the least.
    """

    call: Callable[[Any, str], Call]
    options: tuple[str, ...]
    option_workloads: tuple[str, ...]
    widest: int
    most_bytes: float


def _dtype(option: str) -> jnp.dtype:
    return jnp.dtype(
        "float32" if option in SINGLE else "float16" if option == "float16" else "bfloat16"
    )


def _width(workload: Any, option: str, widest: int) -> int:
    return widest if option.endswith("wide") else workload.H


def _attention(workload: Any, option: str) -> Call:
    batch, length, heads, width = workload[:4]
    width = _width(workload, option, 256)
    own = _dtype(option)
    array = lambda *shape, dtype=own: Shape(shape, dtype)
    key_heads = max(1, heads // 4) if option == "grouped" else heads
    keys = array(batch, length, key_heads, width)
    tensors, attend = (array(batch, length, heads, width), keys, keys), dot_product_attention
    if option == "packed":
        tensors, attend = (array(batch, length, 3, heads, width),), packed_dot_product_attention
    bias, extras = None, {}
    static: dict[str, Any] = dict(is_causal=workload.is_causal, implementation="triton")
    if option == "bias":
        bias = array(heads, length, length, dtype=jnp.float32)
    elif option == "batch bias":
        bias = array(batch, heads, length, length)
    elif option == "mask":
        extras["mask"] = array(batch, 1, length, length, dtype=jnp.bool_)
    elif option == "lengths":
        for name in ("query_seq_lengths", "key_value_seq_lengths"):
            extras[name] = array(batch, dtype=jnp.int32)
    elif option == "window":
        static["local_window_size"] = (length // 4, length // 4)

    def function(tensors, bias, extras):
        return attend(*tensors, bias=bias, **extras, **static)

    return function, (tensors, bias, extras)


def _recurrence(op: Callable, workload: Any, option: str) -> Call:
    batch, length, heads, _, is_causal = workload
    width = _width(workload, option, 128)
    tensor = Shape((batch, length, heads, width), _dtype(option))
    numbers = Shape((batch, length, heads), jnp.float32)
    arrays = dict(query=tensor, key=tensor, value=tensor)
    static: dict[str, Any] = dict(implementation="triton")
    if op is delta_rule:
        arrays["beta"] = numbers
    else:
        static["is_causal"] = is_causal
    normalize = option in ("normalize", "everything") and op is linear_attention
    if normalize:
        static["normalize"] = True
    if option in ("decay", "everything") and is_causal:
        arrays["log_decay"] = numbers
    if option in ("state", "everything"):
        arrays["initial_state"] = Shape((batch, heads, width, width + normalize), jnp.float32)
        static["return_state"] = True
    lengths = None
    if option in ("lengths", "everything") and op is linear_attention:
        lengths = Shape((batch,), jnp.int32)

    def function(arrays, lengths):
        extra = {} if lengths is None else dict(key_value_seq_lengths=lengths)
        return op(**arrays, **extra, **static)

    return function, (arrays, lengths)


def _linear(workload: Any, option: str) -> Call:
    return _recurrence(linear_attention, workload, option)


def _delta(workload: Any, option: str) -> Call:
    return _recurrence(delta_rule, workload, option)


_PRECISIONS = ("float16", "wide", *SINGLE)
OPS = {
    "attention": Op(
        _attention,
        ("bias", "batch bias", "mask", "lengths", "window", "grouped", "packed", *_PRECISIONS),
        # A row of one tile and one warp, one of a block, one of several, and the tiled form.
        ("tiny-causal", "garg", "medium-full", "long-causal"),
        256,
        1.05,
    ),
    "linear": Op(
        _linear,
        ("decay", "state", "lengths", "normalize", "everything", *_PRECISIONS),
        ("linear-tiny", "linear-short", "linear-oswald", "linear-long"),
        128,
        1.1,
    ),
    "delta": Op(
        _delta,
        ("decay", "state", "everything", *_PRECISIONS),
        ("delta-tiny", "delta-short", "delta-long"),
        128,
        1.1,
    ),
}
# By name, the op and the workload.
WORKLOADS: dict[str, tuple[str, Any]] = {
    **{name: ("attention", workload) for name, workload in ATTENTION.items()},
    **{f"linear-{name}": ("linear", workload) for name, workload in LINEAR.items()},
    **{f"delta-{name}": ("delta", w) for name, w in LINEAR.items() if w.is_causal},
}


def call(name: str, option: str = "") -> Call:
    """The function of a named workload, and the shapes of its arguments."""
    return call_of(*WORKLOADS[name], option)


def call_of(op: str, workload: Any, option: str = "") -> Call:
    """The same of an op and a workload that need not have a name."""
    return OPS[op].call(workload, option)


def gradient(function: Callable) -> Callable:
    """Its result, and what comes back for a cotangent equal to it."""

    def both(*arguments):
        floats = lambda leaf: jnp.issubdtype(leaf.dtype, jnp.floating)
        leaves, structure = jax.tree.flatten(arguments)

        def of(moving):
            rest = iter(moving)
            mine = [next(rest) if floats(leaf) else leaf for leaf in leaves]
            return function(*structure.unflatten(mine))

        out, pull_back = jax.vjp(of, [leaf for leaf in leaves if floats(leaf)])
        return out, pull_back(out)

    return both

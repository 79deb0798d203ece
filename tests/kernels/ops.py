"""The ops as seen by the laws that all of them keep."""

import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from icl.kernels import delta_rule, dot_product_attention, linear_attention
from icl.kernels.attention import api as attention_api
from icl.kernels.linear_attention import api as linear_api

from .recurrence_oracle import draw


class Op(NamedTuple):
    """An op, and how it differs from the others.

    api: the module that chooses among its implementations.
    options: arguments of every call.
    shared: names of the arrays that `inputs` gives without a batch axis.
    forward_mode: the implementations that have it; an error recommends the last one.
    """

    function: Callable
    api: Any
    options: dict
    shared: tuple[str, ...]
    forward_mode: tuple[str, ...]


OPS = {
    "attention": Op(
        dot_product_attention, attention_api, dict(is_causal=True), ("bias",), ("reference",)
    ),
    "linear_attention": Op(
        linear_attention,
        linear_api,
        dict(is_causal=True),
        ("log_decay", "initial_state"),
        ("reference", "xla"),
    ),
    "delta_rule": Op(
        delta_rule, linear_api, {}, ("log_decay", "beta", "initial_state"), ("reference", "xla")
    ),
}


def attend(op, implementation, **options):
    """The op as a function of a dictionary of arrays, with the state if it has one."""
    function, _, always, shared, _ = OPS[op]
    options = always | dict(implementation=implementation) | options
    if "initial_state" in shared:
        options = dict(return_state=True) | options
    return lambda arrays: function(**arrays, **options)


def inputs(op, batch, length=5, width=8, dtype=jnp.float32):
    """Arrays of a call with all that the op takes, two heads."""
    kind = "delta_rule" if op == "delta_rule" else "linear_attention"
    arrays, _ = draw(kind, 0, batch, length, width=width, log_decay=True, initial_state=True)
    arrays = {name: array.astype(dtype) for name, array in arrays.items()}
    if op == "attention":
        arrays = {name: arrays[name] for name in ("query", "key", "value")}
        bias = np.random.default_rng(0).normal(size=(1, 2, length, length))
        arrays["bias"] = jnp.asarray(bias, dtype)
    return {name: a[0] if name in OPS[op].shared else a for name, a in arrays.items()}


def squares(op, implementation):
    """A loss: the sum of the squares of all results."""
    results = attend(op, implementation)
    return lambda arrays: sum((a**2).sum() for a in jax.tree.leaves(results(arrays)))


def gradient(op, implementation, arrays):
    """The gradient of `squares`."""
    return jax.jit(jax.grad(squares(op, implementation)))(arrays)


@functools.cache
def expected(compute, op, *sizes):
    """compute(op, "reference"), once for all implementations.

    sizes: those of the arrays that `compute` takes; without any it takes none.
    """
    return compute(op, "reference", *([inputs(op, *sizes)] if sizes else []))


def close(ours, expected, atol=2e-5):
    """Relative to the largest entry of an array if that is above 1."""
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=atol * max(1, np.abs(theirs).max()))

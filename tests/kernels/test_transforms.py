"""Every op under JAX's transforms: nested, in any order, over any operands."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from .implementations import FUSED, ON_GPU
from .ops import OPS, attend, close, expected, gradient, inputs, squares

OTHERS = ["xla", *FUSED]
CALLS = [(op, name) for op in OPS for name in OTHERS]
if not ON_GPU:
    # Triton and Pallas share all but the kernels, and so do the chunks of both linear ops.
    CALLS.remove(("linear_attention", "xla"))
    CALLS.remove(("linear_attention", "pallas"))
    CALLS.remove(("delta_rule", "pallas"))


def rows_of(op, arrays):
    """`in_axes` of the batch."""
    return ({name: None if name in OPS[op].shared else 0 for name in arrays},)


def nested(op):
    """Arrays of which each is mapped by one of two vmaps, by both or by neither, and `in_axes`."""
    arrays = inputs(op, 3)
    extra = OPS[op].shared[0]
    factors = jnp.arange(1, 3).reshape(2, *[1] * arrays[extra].ndim)
    arrays |= {
        "query": jnp.stack([arrays["query"], 2 * arrays["query"]]),
        "key": arrays["key"][0],
        extra: arrays[extra][None] * factors.astype(jnp.float32),
    }
    outer = {name: 0 if name in ("query", extra) else None for name in arrays}
    inner = {name: 0 if name in ("query", "value") else None for name in arrays}
    return arrays, outer, inner


def run_nested(op, implementation):
    """The op under two vmaps, and under one that maps an inner axis of the query alone."""
    arrays, outer, inner = nested(op)
    one = inputs(op, 1)
    last = jnp.stack([one["query"], 2 * one["query"]], axis=2)
    axes = {name: 2 if name == "query" else None for name in one}
    function = attend(op, implementation)

    @jax.jit
    def run(arrays, one):
        twice = jax.vmap(jax.vmap(function, (inner,)), (outer,))(arrays)
        return twice, jax.vmap(function, (axes,), 2)(one)

    return run(arrays, one | dict(query=last))


def step_of_descent(op, implementation):
    """The gradient of a loss after a step of gradient descent, as in MAML."""
    inner = squares(op, implementation)

    def loss(arrays):
        gradients = jax.grad(inner)(arrays)
        moved = jax.tree.map(lambda array, g: array - 0.01 * g, arrays, gradients)
        return inner(moved) + 0.01 * sum((g**2).sum() for g in jax.tree.leaves(gradients))

    return jax.grad(loss)


def descent(op, implementation, arrays):
    return jax.jit(step_of_descent(op, implementation))(arrays)


def descent_in_rows(op, implementation, arrays):
    return jax.jit(jax.vmap(step_of_descent(op, implementation), rows_of(op, arrays)))(arrays)


def scanned(op, implementation, wrap=lambda function: function):
    """Value and gradient of calls under scan, whose carry is the state or the query."""
    arrays = inputs(op, 2)
    carried = "initial_state" if "initial_state" in arrays else "query"
    function = wrap(attend(op, implementation))

    def step(carry, _):
        result = function(arrays | {carried: carry})
        out, state = result if isinstance(result, tuple) else (result, carry + result)
        return state, out

    def loss(carry):
        carry, out = jax.lax.scan(step, carry, None, length=2)
        return (carry**2).sum() + (out**2).sum()

    carry = arrays[carried]
    carry = jnp.broadcast_to(carry, (2, *carry.shape[-3:]))
    return jax.jit(jax.value_and_grad(loss))(carry)


@pytest.mark.parametrize("op", OPS)
def test_vmap_of_the_reference_is_a_loop(op):
    arrays, outer, inner = nested(op)
    one = {name: a[1] if outer[name] == 0 else a for name, a in arrays.items()}
    one = {name: a[2] if inner[name] == 0 else a for name, a in one.items()}
    rows = jax.tree.map(lambda a: a[1, 2], expected(run_nested, op)[0])
    close(rows, jax.jit(attend(op, "reference"))(one))


@pytest.mark.parametrize("op, implementation", CALLS)
def test_nested_vmap_with_unmapped_operands(op, implementation):
    close(run_nested(op, implementation), expected(run_nested, op))


@pytest.mark.parametrize("op, implementation", CALLS)
def test_grad_of_vmap_and_vmap_of_grad(op, implementation):
    arrays, whole = inputs(op, 3), expected(gradient, op, 3)
    loss = squares(op, implementation)
    over_rows = lambda arrays: jax.vmap(loss, rows_of(op, arrays))(arrays).sum()

    @jax.jit
    def run(arrays):
        of_rows = jax.vmap(jax.grad(loss), rows_of(op, arrays))(arrays)
        return jax.grad(over_rows)(arrays), of_rows

    of_sum, of_rows = run(arrays)
    close(of_sum, whole)
    close({n: d.sum(0) if n in OPS[op].shared else d for n, d in of_rows.items()}, whole)


def of_one_row(op, implementation):
    """The gradient of one row's query, mapped over queries."""
    arrays = inputs(op, 3)

    def loss(query, rest):
        results = attend(op, implementation)({"query": query[None]} | rest)
        return sum(a.sum() for a in jax.tree.leaves(results))

    rest = {n: a if n in OPS[op].shared else a[:1] for n, a in arrays.items() if n != "query"}
    return jax.jit(jax.vmap(jax.grad(loss), (0, None)))(arrays["query"], rest)


@pytest.mark.parametrize("op, implementation", CALLS)
def test_vmap_of_the_gradient_of_one_row(op, implementation):
    """The cotangent of a sum is the same for all rows, so vmap does not map it."""
    close(of_one_row(op, implementation), expected(of_one_row, op), 1e-5)


def jacobian(op, implementation):
    arrays = inputs(op, 1, 3, 4)
    results = attend(op, implementation)
    return jax.jit(jax.jacrev(lambda query: results(arrays | dict(query=query))))(arrays["query"])


@pytest.mark.parametrize("op", OPS)
def test_vmap_of_the_cotangent_alone(op):
    """All operands have one batch row, and the cotangent has many."""
    close(jacobian(op, "triton"), jacobian(op, "reference"))


DESCENTS = [(*call, form) for call in CALLS for form in (descent, descent_in_rows)]
if not ON_GPU:
    # Triton's second derivatives of the linear ops are those of XLA's form.
    DESCENTS = [
        ("attention", "xla", descent_in_rows),
        ("attention", "triton", descent),
        ("attention", "pallas", descent_in_rows),
        ("linear_attention", "triton", descent),
        ("delta_rule", "triton", descent_in_rows),
    ]


@pytest.mark.parametrize("op, implementation, form", DESCENTS)
def test_second_order_agrees_with_the_definition(op, implementation, form):
    sizes = 2, 3, 4
    close(form(op, implementation, inputs(op, *sizes)), expected(form, op, *sizes), 1e-4)


@pytest.mark.parametrize("op, implementation", CALLS)
def test_scan_and_checkpoint(op, implementation):
    close(scanned(op, implementation, jax.checkpoint), expected(scanned, op), 1e-4)


@pytest.mark.parametrize(
    "op, implementation",
    [(op, name) for op in OPS for name in OTHERS if name not in OPS[op].forward_mode],
)
def test_jvp_is_refused_with_a_hint(op, implementation):
    arrays = inputs(op, 1, 3, 4)
    with pytest.raises(TypeError) as caught:
        jax.jvp(attend(op, implementation), (arrays,), (arrays,))
    hint = f"implementation={OPS[op].forward_mode[-1]!r}"
    assert hint in "".join(caught.value.__notes__)


@pytest.mark.parametrize("op", OPS)
def test_forward_mode_agrees_with_reverse_mode(op):
    arrays = inputs(op, 1, 3, 4)
    loss = squares(op, OPS[op].forward_mode[-1])

    @jax.jit
    def run(arrays):
        return jax.jvp(loss, (arrays,), (arrays,))[1], jax.grad(loss)(arrays)

    forward, reverse = run(arrays)
    along = sum((reverse[n] * a).sum() for n, a in arrays.items())
    np.testing.assert_allclose(forward, along, rtol=1e-5)


def test_a_function_from_linearize_is_refused_when_called():
    arrays = inputs("attention", 1, 3, 4)
    _, linear = jax.linearize(attend("attention", "xla"), arrays)
    with pytest.raises(TypeError, match="forward-mode"):
        linear(arrays)


def test_reference_has_hessians():
    arrays = inputs("attention", 1, 3, 4)
    loss = lambda q: attend("attention", "reference")(arrays | dict(query=q)).sum()
    assert np.isfinite(jax.jit(jax.hessian(loss))(arrays["query"])).all()


SHARDED = """
import jax
from jax.sharding import AxisType, PartitionSpec
from icl.kernels import targeting
from tests.kernels.ops import OPS, close, inputs, squares

mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

def sharded(op, implementation, arrays):
    # check_vma is on by default: the gradient of an array that all devices share is added up.
    of = lambda name: PartitionSpec() if name in OPS[op].shared else PartitionSpec("data")
    spec = {name: of(name) for name in arrays}
    gradients = jax.grad(squares(op, implementation))
    return jax.jit(jax.shard_map(gradients, mesh=mesh, in_specs=(spec,), out_specs=spec))

for op in OPS:
    arrays = inputs(op, 8)
    expected = jax.jit(jax.grad(squares(op, "reference")))(arrays)
    for implementation in ("xla", "triton"):
        run = sharded(op, implementation, arrays).lower(arrays).compile()
        close(run(arrays), expected)
        assert "all-gather" not in run.as_text(), implementation

    # Pallas' own interpreter does not pass check_vma, so this is lowered for a TPU and not run.
    with targeting("tpu"):
        traced = sharded(op, "pallas", arrays).trace(arrays)
        text = traced.lower(lowering_platforms=("tpu",)).as_text()
    assert "tpu_custom_call" in text and "all_gather" not in text
"""


@pytest.mark.skipif(ON_GPU, reason="needs eight devices")
def test_shard_map_over_eight_devices():
    environment = os.environ | {"JAX_NUM_CPU_DEVICES": "8"}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=environment,
        cwd=Path(__file__).parents[2],
        capture_output=True,
        text=True,
        timeout=300,
    )
    assert done.returncode == 0, done.stderr[-2000:]

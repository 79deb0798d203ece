"""Linear attention and the delta rule under JAX's transforms, nested, over any operands."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl.kernels import delta_rule, linear_attention

from .implementations import ALL, FUSED, ON_GPU
from .recurrence_oracle import draw

OPS = ["linear_attention", "delta_rule"]


def attend(op, implementation):
    """The output and the state, of a dictionary of arrays."""
    options = dict(implementation=implementation, return_state=True)
    if op == "linear_attention":
        return lambda arrays: linear_attention(**arrays, is_causal=True, **options)
    return lambda arrays: delta_rule(**arrays, **options)


def inputs(op, batch, length=5, width=8):
    """Arrays of which the decay, beta and the initial state have no batch axis."""
    arrays, _ = draw(op, 0, batch, length, width=width, log_decay=True, initial_state=True)
    shared = {"log_decay", "beta", "initial_state"}
    return {name: a[0] if name in shared else a for name, a in arrays.items()}


def rows_of(arrays):
    """`in_axes` of the batch."""
    batched = ("query", "key", "value")
    return ({name: 0 if name in batched else None for name in arrays},)


def squares(op, implementation):
    """A loss."""
    return lambda arrays: sum((a**2).sum() for a in attend(op, implementation)(arrays))


def close(ours, expected, atol=2e-5):
    """Relative to the largest of each array where that is above 1."""
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=atol * max(1, np.abs(theirs).max()))


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("implementation", ALL)
def test_nested_vmap_with_unmapped_operands(implementation, op):
    """Each operand is mapped by one of the two, by both, or by neither."""
    arrays = inputs(op, 3)
    arrays |= dict(query=jnp.stack([arrays["query"], 2 * arrays["query"]]), key=arrays["key"][0])
    arrays["log_decay"] = arrays["log_decay"] * jnp.arange(1, 3)[:, None, None]
    outer = {name: 0 if name in ("query", "log_decay") else None for name in arrays}
    inner = {name: 0 if name in ("query", "value") else None for name in arrays}
    run = lambda name: jax.jit(jax.vmap(jax.vmap(attend(op, name), (inner,)), (outer,)))
    expected = run("reference")(arrays)
    one = {name: a[1] if outer[name] == 0 else a for name, a in arrays.items()}
    one = {name: a[2] if inner[name] == 0 else a for name, a in one.items()}
    close([a[1, 2] for a in expected], attend(op, "reference")(one))
    close(run(implementation)(arrays), expected)
    last = {name: 2 if name == "query" else None for name in arrays}
    moved = one | dict(query=jnp.moveaxis(arrays["query"][0], 0, 2))
    fixed = one | dict(query=arrays["query"][0, 1])
    out, _ = jax.vmap(attend(op, implementation), (last,), (2, 0))(moved)
    close(out[:, :, 1], attend(op, "reference")(fixed)[0])


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("implementation", ALL)
def test_grad_of_vmap_and_vmap_of_grad(implementation, op):
    arrays = inputs(op, 3)
    loss = squares(op, implementation)
    whole = jax.jit(jax.grad(squares(op, "reference")))(arrays)
    of_rows = jax.jit(jax.vmap(jax.grad(loss), rows_of(arrays)))(arrays)
    summed = {n: d if whole[n].ndim == 4 else d.sum(0) for n, d in of_rows.items()}
    close(summed, whole)
    over_rows = lambda arrays: jax.vmap(loss, rows_of(arrays))(arrays).sum()
    close(jax.jit(jax.grad(over_rows))(arrays), whole)
    close(jax.jit(jax.grad(loss))(arrays), whole)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("implementation", ["xla", *FUSED])
def test_second_order_agrees_with_the_definition(implementation, op):
    """A step of gradient descent inside the loss, as MAML takes it, and a norm of gradients."""
    arrays = inputs(op, 2, 4, 4)

    def outer(name):
        inner = squares(op, name)

        def loss(arrays):
            gradients = jax.grad(inner)(arrays)
            moved = jax.tree.map(lambda array, g: array - 0.01 * g, arrays, gradients)
            return inner(moved) + 0.01 * sum((g**2).sum() for g in jax.tree.leaves(gradients))

        return jax.grad(loss)

    expected = jax.jit(outer("reference"))(arrays)
    close(jax.jit(outer(implementation))(arrays), expected, 1e-4)
    in_rows = lambda name: jax.jit(jax.vmap(outer(name), rows_of(arrays)))(arrays)
    close(in_rows(implementation), in_rows("reference"), 1e-4)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("implementation", ["xla", *FUSED])
def test_scan_and_checkpoint(implementation, op):
    """Chunks of a sequence under scan, with the state as its carry."""
    arrays = inputs(op, 2)

    def loss(name, wrap):
        def step(state, _):
            out, state = wrap(attend(op, name))(arrays | dict(initial_state=state))
            return state, out

        def run(state):
            state, out = jax.lax.scan(step, state, None, length=3)
            return (state**2).sum() + (out**2).sum()

        return jax.jit(jax.value_and_grad(run))

    state = jnp.broadcast_to(arrays["initial_state"], (2, 2, 8, 8))
    expected = loss("reference", lambda f: f)(state)
    close(loss(implementation, jax.checkpoint)(state), expected, 1e-4)


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("implementation", FUSED)
def test_jvp_is_refused_with_a_hint(implementation, op):
    arrays = inputs(op, 1, 3, 4)
    with pytest.raises(TypeError) as caught:
        jax.jvp(attend(op, implementation), (arrays,), (arrays,))
    assert "implementation='xla'" in "".join(caught.value.__notes__)


@pytest.mark.parametrize("op", OPS)
def test_forward_mode_of_the_others_agrees_with_reverse_mode(op):
    arrays = inputs(op, 1, 3, 4)
    for name in ("reference", "xla"):
        loss = squares(op, name)
        forward = jax.jit(lambda a, loss=loss: jax.jvp(loss, (a,), (a,))[1])(arrays)
        gradient = jax.jit(jax.grad(loss))(arrays)
        along = sum((gradient[n] * a).sum() for n, a in arrays.items())
        np.testing.assert_allclose(forward, along, rtol=1e-5)


SHARDED = """
import jax
from jax.sharding import AxisType, PartitionSpec
from icl.kernels import targeting
from tests.kernels.test_linear_attention_transforms import OPS, close, inputs, squares

mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))

def sharded(op, implementation, arrays):
    # check_vma is on by default: the gradient of what all devices share is added up over them.
    mapped = ("query", "key", "value")
    spec = {name: PartitionSpec("data") if name in mapped else PartitionSpec() for name in arrays}
    gradients = jax.grad(squares(op, implementation))
    return jax.jit(jax.shard_map(gradients, mesh=mesh, in_specs=(spec,), out_specs=spec))

for op in OPS:
    arrays = inputs(op, 16)
    expected = jax.jit(jax.grad(squares(op, "reference")))(arrays)
    for implementation in ("xla", "triton"):
        run = sharded(op, implementation, arrays)
        close(run(arrays), expected)
        assert "all-gather" not in run.lower(arrays).compile().as_text(), implementation

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

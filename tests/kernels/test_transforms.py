"""Attention under JAX's transforms: nested, in any order, over any operands."""

import os
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl.kernels import dot_product_attention

from .implementations import ALL, FUSED, ON_GPU, draw_inputs


def attend(implementation, **options):
    return lambda *arrays: dot_product_attention(
        *arrays, is_causal=True, implementation=implementation, **options
    )


def close(ours, expected, atol=2e-5):
    for mine, theirs in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, theirs, atol=atol)


@pytest.mark.parametrize("implementation", ALL)
def test_nested_vmap_with_unmapped_operands(implementation):
    query, key, value, _ = draw_inputs(0, 6, 5, 5, 2, 2, 8)
    bias = jnp.asarray(np.random.default_rng(0).normal(size=(3, 2, 5, 5)), jnp.float32)
    query, key = query.reshape(2, 3, 5, 2, 8), key[:3]
    run = lambda attend: jax.jit(jax.vmap(jax.vmap(attend, (0, 0, None, 0)), (0, None, None, None)))
    expected = run(attend("reference"))(query, key, value[0], bias)
    close(run(attend(implementation))(query, key, value[0], bias), expected)
    last = jax.vmap(attend(implementation), (2, None, None, None), 2)
    moved = last(jnp.moveaxis(query[0], 0, 2), key[0], value[0], bias[0])
    close(moved[:, :, 0], expected[0, 0])


@pytest.mark.parametrize("implementation", ALL)
def test_grad_of_vmap_and_vmap_of_grad(implementation):
    query, key, value, _ = draw_inputs(1, 3, 5, 5, 2, 1, 8)

    def loss(query, key, value, bias):
        return (attend(implementation)(query, key, value, bias) ** 2).sum()

    bias = jnp.asarray(np.random.default_rng(0).normal(size=(2, 5, 5)), jnp.float32)
    every = (0, 1, 2, 3)
    whole = jax.jit(jax.grad(loss, every))(query, key, value, bias)
    of_rows = jax.jit(jax.vmap(jax.grad(loss, every), (0, 0, 0, None)))(query, key, value, bias)
    close(of_rows[:3], whole[:3])
    close(of_rows[3].sum(0), whole[3])
    over_rows = lambda *a: jax.vmap(loss, (0, 0, 0, None))(*a).sum()
    close(jax.jit(jax.grad(over_rows, every))(query, key, value, bias), whole)


@pytest.mark.parametrize("implementation", ["xla", *FUSED])
def test_second_order_agrees_with_the_definition(implementation):
    """A step of gradient descent inside the loss, as MAML takes it, and a norm of gradients."""
    arrays = draw_inputs(2, 2, 4, 4, 2, 1, 4)[:3]

    def loss(implementation):
        inner = lambda *a: (attend(implementation)(*a) ** 2).sum()

        def outer(*arrays):
            gradients = jax.grad(inner, (0, 1, 2))(*arrays)
            moved = [array - 0.1 * g for array, g in zip(arrays, gradients)]
            return inner(*moved) + sum((g**2).sum() for g in gradients)

        return outer

    expected = jax.jit(jax.grad(loss("reference"), (0, 1, 2)))(*arrays)
    ours = jax.grad(loss(implementation), (0, 1, 2))
    close(jax.jit(ours)(*arrays), expected, 1e-4)
    close(jax.jit(jax.vmap(ours))(*arrays), expected, 1e-4)


@pytest.mark.parametrize("implementation", ["xla", *FUSED])
def test_scan_and_checkpoint(implementation):
    query, key, value, _ = draw_inputs(3, 2, 5, 5, 2, 2, 8)

    def loss(implementation, wrap):
        def step(carry, _):
            return carry + wrap(attend(implementation))(carry, key, value), None

        return lambda q: (jax.lax.scan(step, q, None, length=2)[0] ** 2).sum()

    expected = jax.jit(jax.value_and_grad(loss("reference", lambda f: f)))(query)
    close(jax.jit(jax.value_and_grad(loss(implementation, jax.checkpoint)))(query), expected, 1e-3)


@pytest.mark.parametrize("implementation", ["xla", *FUSED])
def test_jvp_is_refused_with_a_hint(implementation):
    query, key, value, _ = draw_inputs(4, 1, 3, 3, 1, 1, 4)
    with pytest.raises(TypeError) as caught:
        jax.jvp(lambda q: attend(implementation)(q, key, value), (query,), (query,))
    assert "implementation='reference'" in "".join(caught.value.__notes__)


def test_what_linearize_returns_is_refused_when_called():
    query, key, value, _ = draw_inputs(4, 1, 3, 3, 1, 1, 4)
    _, linear = jax.linearize(lambda q: attend("xla")(q, key, value), query)
    with pytest.raises(TypeError, match="forward-mode"):
        linear(query)


def test_reference_has_forward_mode_and_hessians():
    query, key, value, _ = draw_inputs(4, 1, 3, 3, 1, 1, 4)
    loss = lambda q: attend("reference")(q, key, value).sum()
    assert np.isfinite(jax.jit(jax.hessian(loss))(query)).all()


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import AxisType, PartitionSpec
from icl.kernels import dot_product_attention, targeting

rng = np.random.default_rng(0)
query, key, value = (jnp.asarray(rng.normal(size=(16, 5, 2, 8)), jnp.float32) for _ in range(3))
bias = jnp.asarray(rng.normal(size=(2, 5, 5)), jnp.float32)
mesh = jax.make_mesh((8,), ("data",), axis_types=(AxisType.Auto,))
spec, whole = PartitionSpec("data"), PartitionSpec()

def gradients(implementation, *arrays):
    def loss(query, key, value, bias):
        out = dot_product_attention(
            query, key, value, bias, is_causal=True, implementation=implementation
        )
        return (out**2).sum()
    return jax.grad(loss, (0, 1, 2, 3))(*arrays)

def sharded(implementation):
    # check_vma is on by default: the gradient of what all devices share is added up over them.
    return jax.jit(jax.shard_map(
        lambda *a: gradients(implementation, *a),
        mesh=mesh, in_specs=(spec, spec, spec, whole), out_specs=(spec, spec, spec, whole),
    ))

arrays = query, key, value, bias
expected = gradients("reference", *arrays)
for implementation in ("xla", "triton"):
    run = sharded(implementation)
    for mine, theirs in zip(run(*arrays), expected):
        np.testing.assert_allclose(mine, theirs, atol=1e-4)
    assert "all-gather" not in run.lower(*arrays).compile().as_text(), implementation

# Pallas' own interpreter does not pass check_vma, so this is lowered for a TPU and not run.
with targeting("tpu"):
    text = sharded("pallas").trace(*arrays).lower(lowering_platforms=("tpu",)).as_text()
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

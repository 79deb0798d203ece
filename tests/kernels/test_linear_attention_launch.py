"""The launch of linear attention's Triton kernels changes nothing beyond rounding."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl.kernels import targeting
from icl.kernels.linear_attention import launch
from icl.kernels.linear_attention.launch import Config, Plan
from icl.kernels.linear_attention.problem import Operands, Problem
from icl.kernels.plans import forcing

from .recurrence_oracle import draw
from .test_linear_attention import OPS, close, draw_full, results

# Chunks that divide the 48 steps or do not, states saved at other steps, rows together.
PLANS = {
    "one chunk": Plan(Config(64, 4), Config(64, 4)),
    "small chunks": Plan(Config(16, 1), Config(16, 1)),
    "forward smaller": Plan(Config(16, 1), Config(32, 2)),
    "rows together": Plan(Config(32, 2, rows=2), Config(64, 4, rows=4)),
    "few states": Plan(Config(16, 1), Config(16, 1), chunks_per_state=2),
    "segments": Plan(Config(16, 1, num_stages=2), Config(16, 1), segments=3),
    "segments of several chunks": Plan(Config(16, 1, rows=2), Config(16, 1, rows=4), segments=2),
}
ONLY = {"few states": "delta_rule", "segments": "linear_attention"}
ONLY["segments of several chunks"] = "linear_attention"
CALLS = [(plan, op) for plan in PLANS for op in OPS if ONLY.get(plan, op) == op]


@pytest.mark.parametrize("plan, op", CALLS)
def test_any_launch_gives_the_same(plan, op):
    """Also if a number of one batch row is broken."""
    arrays, cotangents, options = draw_full(op, batch=4, length=48, heads=1)
    arrays["value"] = arrays["value"].at[1, 20, 0, 2].set(np.nan)
    expected = results(op, "xla", arrays, cotangents, **options)
    attend = lambda arrays: OPS[op](**arrays, return_state=True, implementation="triton", **options)

    @jax.jit
    def run(arrays, cotangents):
        (out, state), pull_back = jax.vjp(attend, arrays)
        gradient = pull_back(cotangents)[0]
        # That of what is broken may be anything.
        gradient["value"] = gradient["value"].at[1, 20, 0, 2].set(expected["value"][1, 20, 0, 2])
        return dict(out=out, state=state) | gradient

    with forcing(PLANS[plan]):
        close(run(arrays, cotangents), expected, atol=1e-4)


@pytest.mark.parametrize("given", ["lengths", "nothing", "mapped cotangents"])
def test_segments_of_plain_calls(given):
    """Some rows end within a segment, before all others, or are empty."""
    arrays, (d_out, _) = draw("linear_attention", 0, batch=4, length=64, heads=1)
    lengths = np.array([0, 20, 40, 64]) if given == "lengths" else None

    @functools.partial(jax.jit, static_argnums=0)
    def run(implementation, arrays, d_out):
        def attend(arrays):
            return OPS["linear_attention"](
                **arrays,
                is_causal=True,
                key_value_seq_lengths=lengths,
                implementation=implementation,
            )

        out, pull_back = jax.vjp(attend, arrays)
        if given == "mapped cotangents":
            gradient = jax.vmap(lambda scale: pull_back(scale * d_out)[0])(jnp.arange(1.0, 3.0))
        else:
            gradient = pull_back(d_out)[0]
        return dict(out=out) | gradient

    expected = run("xla", arrays, d_out)
    with forcing(Plan(Config(16, 1), Config(16, 1), segments=2)):
        close(run("triton", arrays, d_out), expected, atol=1e-4)


@pytest.mark.parametrize("implementation", ["triton", None])
def test_rows_that_vmap_adds_keep_the_number_of_segments(implementation, monkeypatch):
    """What the forward pass saves depends on it; a call of all rows would have no segments."""
    monkeypatch.setattr(launch, "FEWEST_SEGMENTS", 4)
    monkeypatch.setattr(launch, "FEWEST_CHUNKS", 1)
    arrays, _ = draw("linear_attention", 0, batch=8, length=64, heads=1, log_decay=True)

    def gradient(implementation):
        def loss(arrays):
            attend = OPS["linear_attention"]
            return (attend(**arrays, is_causal=True, implementation=implementation) ** 2).sum()

        rows = {name: array.reshape(4, 2, *array.shape[1:]) for name, array in arrays.items()}
        return jax.jit(jax.vmap(jax.grad(loss)))(rows)

    expected = gradient("xla")
    with targeting("cuda", 90) if implementation is None else contextlib.nullcontext():
        close(gradient(implementation), expected, atol=1e-3)


def test_few_long_rows_are_taken_in_segments():
    of = lambda batch: jax.ShapeDtypeStruct((batch, 4096, 8, 64), jnp.bfloat16)
    with targeting("cuda", 90):
        segments = [launch.plan(Problem(1.0), Operands(*[of(b)] * 3)).segments for b in (16, 256)]
    assert segments[0] > 1 and segments[1] == 1


@pytest.mark.parametrize("blocks", [(16, 16), (64, 64)])
def test_any_launch_gives_the_same_if_not_causal(blocks):
    arrays, cotangents, _ = draw_full("linear_attention", batch=2, length=40)
    del arrays["log_decay"]
    options = dict(is_causal=False, normalize=True)
    expected = results("linear_attention", "xla", arrays, cotangents, **options)

    @jax.jit
    def run(arrays, cotangents):
        attend = lambda arrays: OPS["linear_attention"](
            **arrays, return_state=True, implementation="triton", **options
        )
        (out, state), pull_back = jax.vjp(attend, arrays)
        return dict(out=out, state=state) | pull_back(cotangents)[0]

    forward, backward = (Config(block, 1, rows=2) for block in blocks)
    with forcing(Plan(forward, backward)):
        close(run(arrays, cotangents), expected, atol=1e-4)


UNFIT = {
    "rows": (Plan(Config(16, 1, rows=3), Config(16, 1)), "evenly"),
    "chunks": (Plan(Config(32, 1), Config(16, 1)), "multiple"),
    "segments": (Plan(Config(16, 1), Config(16, 1), segments=3), "evenly"),
    "states": (Plan(Config(16, 1), Config(16, 1), chunks_per_state=2), "each backward chunk"),
}


@pytest.mark.parametrize("case", UNFIT)
def test_a_launch_that_does_not_fit_is_refused(case):
    plan, message = UNFIT[case]
    x = jnp.ones((4, 20, 1, 8))
    with forcing(plan), pytest.raises(ValueError, match=message):
        OPS["linear_attention"](x, x, x, is_causal=True, implementation="triton")


@pytest.mark.parametrize("capability", [80, 90, 100])
@pytest.mark.parametrize("dtype", [jnp.float32, jnp.bfloat16])
@pytest.mark.parametrize("is_delta", [False, True])
def test_the_heuristic_fits_every_shape(is_delta, dtype, capability):
    for batch in (1, 3, 4096, 65536):
        for length in (1, 11, 16, 17, 64, 100, 129, 512, 5000):
            for width in (1, 8, 32, 33, 64, 128):
                array = jax.ShapeDtypeStruct((batch, length, 2, width), dtype)
                beta = jax.ShapeDtypeStruct((batch, length, 2), dtype) if is_delta else None
                operands = Operands(array, array, array, beta)
                with targeting("cuda", capability):
                    plan = launch.plan(Problem(1.0), operands)
                for config in (plan.forward, plan.backward):
                    assert batch % config.rows == 0 and config.block_t >= 16
                    assert 1 <= config.num_warps <= 8
                assert plan.backward.block_t % plan.forward.block_t == 0

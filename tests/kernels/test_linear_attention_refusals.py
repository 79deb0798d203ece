"""What linear attention and the delta rule cannot do, and what they say then."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl.kernels import (
    delta_rule,
    dispatch,
    linear_attention,
    pallas_call,
    targeting,
    triton_call,
)
from icl.kernels.linear_attention import api

from .implementations import FUSED
from .recurrence_oracle import draw

CAUSAL = dict(is_causal=True)
FULL = dict(is_causal=False)
NORMALIZED = CAUSAL | dict(normalize=True)
NAME = "no implementation of linear_attention called"
STATE = r"initial_state must be \(2, 3, 8, {0}\) or \(3, 8, {0}\)"

BAD_INPUTS = {
    "two axes": (dict(query=(5, 8)), CAUSAL, r"query must be \[\.\.\., length, heads, features\]"),
    "other features": (dict(key=(2, 5, 3, 4)), CAUSAL, "must agree in all but the length"),
    "fewer heads": (dict(key=(2, 5, 1, 8), value=(2, 5, 1, 4)), CAUSAL, "repeat the keys"),
    "other batch": (dict(query=(1, 5, 3, 8)), CAUSAL, "must agree in all but the length"),
    "key and value": (dict(value=(2, 4, 3, 4)), CAUSAL, "must agree in all but the features"),
    "causal lengths": (dict(query=(2, 4, 3, 8)), CAUSAL, "as many queries as keys, got 4 and 5"),
    "decay, not causal": (dict(log_decay=(3,)), FULL, "log_decay needs is_causal=True"),
    "decay per feature": (dict(log_decay=(2, 5, 3, 8)), CAUSAL, "log_decay of shape"),
    "decay of other heads": (dict(log_decay=(5, 2)), CAUSAL, "log_decay of shape"),
    "lengths": ({}, CAUSAL | dict(key_value_seq_lengths=np.ones(3, int)), "batch shape"),
    "state": (dict(initial_state=(3, 4, 8)), CAUSAL, STATE.format(4)),
    "state of other rows": (dict(initial_state=(1, 3, 8, 4)), CAUSAL, STATE.format(4)),
    "name": ({}, CAUSAL | dict(implementation="cudnn"), NAME + " 'cudnn'"),
    "names": ({}, CAUSAL | dict(implementation=["xla", "flash"]), NAME + " 'flash'"),
    "no names": ({}, CAUSAL | dict(implementation=[]), NAME + " nothing"),
    "no steps, bad name": (
        dict(query=(2, 0, 3, 8), key=(2, 0, 3, 8), value=(2, 0, 3, 4)),
        CAUSAL | dict(implementation="flash"),
        NAME + " 'flash'",
    ),
    "NaN scale": ({}, CAUSAL | dict(scale=np.nan), "scale must be finite"),
}


def arrays_of(changes, dtype=jnp.float32):
    shapes = dict(query=(2, 5, 3, 8), key=(2, 5, 3, 8), value=(2, 5, 3, 4)) | changes
    return {name: jnp.ones(shape, dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs(case):
    changes, options, message = BAD_INPUTS[case]
    with pytest.raises(ValueError, match=message):
        linear_attention(**arrays_of(changes), **options)


def test_a_state_without_the_sum_of_keys_is_explained():
    arrays = arrays_of(dict(initial_state=(2, 3, 8, 4)))
    linear_attention(**arrays, **CAUSAL)
    with pytest.raises(ValueError, match=STATE.format(5) + ".*one longer than the values"):
        linear_attention(**arrays, **NORMALIZED)


BAD_INPUTS_OF_THE_DELTA_RULE = {
    "beta": (dict(beta=(4, 3)), {}, r"beta of shape \(4, 3\)"),
    "beta per feature": (dict(beta=(2, 5, 3, 8)), {}, "beta of shape"),
    "lengths": (dict(query=(2, 4, 3, 8)), {}, "as many queries as keys"),
    "state": (dict(initial_state=(2, 3, 8, 5)), {}, STATE.format(4)),
    "name": ({}, dict(implementation="flash"), "no implementation of delta_rule called 'flash'"),
}


@pytest.mark.parametrize("case", BAD_INPUTS_OF_THE_DELTA_RULE)
def test_bad_inputs_of_the_delta_rule(case):
    changes, options, message = BAD_INPUTS_OF_THE_DELTA_RULE[case]
    with pytest.raises(ValueError, match=message):
        delta_rule(**arrays_of(dict(beta=(5, 3)) | changes), **options)


@pytest.mark.parametrize("name", ["query", "key", "value", "beta", "log_decay", "initial_state"])
def test_integers(name):
    arrays = arrays_of(dict(beta=(5, 3), log_decay=(3,), initial_state=(3, 8, 4)))
    with pytest.raises(TypeError, match=f"{name} must be floating point, got int32"):
        delta_rule(**arrays | {name: arrays[name].astype(jnp.int32)})


def test_lengths_that_are_no_integers():
    with pytest.raises(TypeError, match="key_value_seq_lengths must be integers"):
        linear_attention(**arrays_of({}), **CAUSAL, key_value_seq_lengths=np.ones(2))


BAD_OPTIONS = {
    "is_causal": ("no", "is_causal must be True or False, got 'no'"),
    "normalize": (None, "normalize must be True or False, got None"),
    "return_state": (1, "return_state must be True or False, got 1"),
    "scale": ("1", "scale must be one number, got '1'"),
    "implementation": (3, "implementation must be a name, several or None, got 3"),
}


@pytest.mark.parametrize("name", BAD_OPTIONS)
def test_options_of_the_wrong_type(name):
    given, message = BAD_OPTIONS[name]
    with pytest.raises(TypeError, match=message):
        linear_attention(**arrays_of({}), **CAUSAL | {name: given})


def test_the_delta_rule_needs_beta():
    with pytest.raises(TypeError, match="beta must be given"):
        delta_rule(**arrays_of({}), beta=None)


def test_traced_scale():
    with pytest.raises(TypeError, match="multiply the query"):
        jax.jit(lambda s: linear_attention(**arrays_of({}), **CAUSAL, scale=s))(1.0)


UNABLE = {
    "triton on a CPU": ("triton", ("cpu",), jnp.float32, 8, 8, "needs a GPU"),
    "triton on a TPU": ("triton", ("tpu",), jnp.float32, 8, 8, "needs a GPU"),
    "old GPU": ("triton", ("cuda", 75), jnp.float32, 8, 8, "8.0"),
    "float64": ("triton", ("cuda", 90), jnp.float64, 8, 8, "float64"),
    "wide keys": ("triton", ("cuda", 90), jnp.float32, 129, 8, "128"),
    "wide values": ("triton", ("cuda", 90), jnp.float32, 8, 129, "128"),
    "pallas on a CPU": ("pallas", ("cpu",), jnp.float32, 8, 8, "TPU"),
    "float64 on a TPU": ("pallas", ("tpu",), jnp.float64, 8, 8, "float64"),
}


def on_a_machine(monkeypatch):
    """As without the interpreters, and with Triton installed."""
    for module in (triton_call, pallas_call):
        monkeypatch.setattr(module, "interpreting", lambda: False)
    monkeypatch.setattr(triton_call, "_is_installed", lambda package: True)


@pytest.mark.parametrize("case", UNABLE)
def test_an_implementation_that_cannot_says_why(case, monkeypatch):
    name, here, dtype, width, columns, message = UNABLE[case]
    on_a_machine(monkeypatch)
    shapes = dict(query=(2, 5, 2, width), key=(2, 5, 2, width), value=(2, 5, 2, columns))
    with jax.enable_x64(True), targeting(*here):
        arrays = {n: jax.ShapeDtypeStruct(s, dtype) for n, s in shapes.items()}
        beta = jax.ShapeDtypeStruct((2, 5, 2), dtype)
        for op, given in (
            (lambda a, **k: linear_attention(**a, **CAUSAL, **k), arrays),
            (lambda a, **k: delta_rule(**a, **k), arrays | dict(beta=beta)),
        ):
            trace = lambda op=op, given=given, **k: jax.eval_shape(lambda a: op(a, **k), given)
            with pytest.raises(NotImplementedError, match=f"{name}: .*{message}"):
                trace(implementation=name)
            # A sequence goes on to what can, and None always finds something.
            trace(implementation=[name, "xla"])
            trace()


def test_the_widest_heads_are_taken():
    shapes = dict(query=(2, 5, 2, 128), key=(2, 5, 2, 128), value=(2, 5, 2, 128))
    arrays = {n: jax.ShapeDtypeStruct(s, jnp.bfloat16) for n, s in shapes.items()}
    out = jax.eval_shape(
        lambda a: linear_attention(**a, **NORMALIZED, implementation="triton"), arrays
    )
    assert out.shape == (2, 5, 2, 128) and out.dtype == jnp.bfloat16


@pytest.mark.parametrize("implementation", FUSED)
def test_mixed_dtypes_are_refused_by_the_kernels_alone(implementation):
    arrays = arrays_of({}) | dict(query=jnp.ones((2, 5, 3, 8), jnp.bfloat16))
    with pytest.raises(NotImplementedError, match="one dtype"):
        linear_attention(**arrays, **CAUSAL, implementation=implementation)
    out, state = linear_attention(**arrays, **CAUSAL, return_state=True)
    assert out.dtype == jnp.bfloat16 and state.dtype == jnp.float32


def chosen(platform, capability, dtype, op="linear_attention", length=64, width=8):
    """The name that None stands for."""
    taken, define = [], api.IMPLEMENTATIONS["reference"].run
    spies = {
        name: dispatch.Implementation(
            lambda p, o, name=name: taken.append(name) or define(p, o), i.refusal, i.is_best
        )
        for name, i in api.IMPLEMENTATIONS.items()
    }
    arrays, _ = draw(op, 0, 1, length, width=width, dtype=dtype)
    with pytest.MonkeyPatch.context() as patch, targeting(platform, capability):
        patch.setattr(api, "IMPLEMENTATIONS", spies)
        if op == "linear_attention":
            linear_attention(**arrays, **CAUSAL)
        else:
            delta_rule(**arrays)
    return taken[0]


@pytest.mark.parametrize("op", ["linear_attention", "delta_rule"])
def test_what_none_stands_for(op):
    assert chosen("cpu", None, jnp.float32, op) == "xla"
    assert chosen("cuda", 90, jnp.bfloat16, op) == "triton"
    assert chosen("rocm", None, jnp.bfloat16, op) == "xla"
    # Wider heads spill registers.
    assert chosen("cuda", 90, jnp.bfloat16, op, width=128) == "triton"
    assert chosen("cuda", 80, jnp.bfloat16, op, width=128) == "xla"
    assert chosen("cuda", 90, jnp.float32, op, width=64) == "xla"
    # No steps are left to no kernel.
    assert chosen("cuda", 90, jnp.bfloat16, op, length=0) == "reference"


@pytest.mark.parametrize("op", ["linear_attention", "delta_rule"])
def test_what_is_chosen_for_a_gpu_still_runs_on_a_cpu(op):
    """A program traced for one machine and compiled for another takes the plain form."""
    arrays, _ = draw(op, 0, 2, 9, log_decay=True, initial_state=True)

    def loss(implementation):
        if op == "linear_attention":
            attend = lambda a: linear_attention(**a, **CAUSAL, implementation=implementation)
        else:
            attend = lambda a: delta_rule(**a, implementation=implementation)
        return lambda a: (attend(a) ** 2).sum()

    expected = jax.jit(jax.grad(loss("reference")))(arrays)
    with targeting("cuda", 90):
        ours = jax.jit(jax.grad(loss(None)))(arrays)
    for name, mine in ours.items():
        np.testing.assert_allclose(mine, expected[name], atol=1e-5, rtol=1e-5, err_msg=name)

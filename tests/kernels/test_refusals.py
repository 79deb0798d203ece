"""What each op cannot do, and its error messages."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl.kernels import (
    choices,
    dispatch,
    packed_dot_product_attention,
    pallas_call,
    targeting,
    triton_call,
)
from icl.kernels.triton_call import triton_call as call_triton

from .implementations import FUSED
from .ops import OPS, attend, close, expected, gradient, inputs

LINEAR_SHAPES = dict(query=(2, 5, 3, 8), key=(2, 5, 3, 8), value=(2, 5, 3, 4))
SHAPES = {
    "attention": {name: (2, 5, 2, 8) for name in ("query", "key", "value")},
    "linear_attention": LINEAR_SHAPES,
    "delta_rule": LINEAR_SHAPES | dict(beta=(5, 3)),
}


def ones(op, dtype=jnp.float32, **shapes):
    return {name: jnp.ones(shape, dtype) for name, shape in (SHAPES[op] | shapes).items()}


def call(op, arrays, **options):
    return OPS[op].function(**arrays, **OPS[op].options | options)


NAME = "no implementation of {op} called"
STATE = r"initial_state must be \(2, 3, 8, {0}\) or \(3, 8, {0}\)"
NO_STEPS = dict(query=(2, 0, 3, 8), key=(2, 0, 3, 8), value=(2, 0, 3, 4))

# Shapes, options, and what the ValueError says.
OF_ALL = {
    "name": ({}, dict(implementation="flash"), NAME + " 'flash'"),
    "names": ({}, dict(implementation=["xla", "flash"]), NAME + " 'flash'"),
    "no names": ({}, dict(implementation=[]), NAME + " nothing"),
    "NaN scale": ({}, dict(scale=np.nan), "scale must be finite, got nan"),
    "infinite scale": ({}, dict(scale=np.float32("inf")), "scale must be finite"),
    "two axes": (dict(query=(5, 8)), {}, r"query must be \[\.\.\., length, heads, "),
}
LENGTHS = dict(key_value_seq_lengths=np.ones(3, int))
BAD_INPUTS = {
    "attention": {
        "other head dim": (dict(key=(2, 5, 2, 4), value=(2, 5, 2, 4)), {}, "agree"),
        "key and value": (dict(value=(2, 4, 2, 8)), {}, "same shape"),
        "heads": (dict(key=(2, 5, 3, 8), value=(2, 5, 3, 8)), {}, "evenly"),
        "bias": ({}, dict(bias=np.ones((3, 5), np.float32)), "bias of shape"),
        "mask": ({}, dict(mask=np.ones((7, 2, 5, 5), bool)), "mask of shape"),
        "lengths": ({}, LENGTHS, "batch shape"),
        "window": ({}, dict(local_window_size=(-1, 2)), "negative"),
    },
    "linear_attention": {
        "other features": (dict(key=(2, 5, 3, 4)), {}, "must agree in all but the length"),
        "fewer heads": (dict(key=(2, 5, 1, 8), value=(2, 5, 1, 4)), {}, "repeat the keys"),
        "other batch": (dict(query=(1, 5, 3, 8)), {}, "must agree in all but the length"),
        "key and value": (dict(value=(2, 4, 3, 4)), {}, "must agree in all but the features"),
        "causal lengths": (dict(query=(2, 4, 3, 8)), {}, "as many queries as keys, got 4 and 5"),
        "decay, not causal": (
            dict(log_decay=(3,)),
            dict(is_causal=False),
            "log_decay needs is_causal=True",
        ),
        "decay per feature": (dict(log_decay=(2, 5, 3, 8)), {}, "log_decay of shape"),
        "decay of other heads": (dict(log_decay=(5, 2)), {}, "log_decay of shape"),
        "lengths": ({}, LENGTHS, "batch shape"),
        "state": (dict(initial_state=(3, 4, 8)), {}, STATE.format(4)),
        "state of other rows": (dict(initial_state=(1, 3, 8, 4)), {}, STATE.format(4)),
        "state without the sum of the keys": (
            dict(initial_state=(2, 3, 8, 4)),
            dict(normalize=True),
            STATE.format(5) + ".*one longer than the values",
        ),
        "no steps, bad name": (NO_STEPS, dict(implementation="flash"), NAME + " 'flash'"),
    },
    "delta_rule": {
        "beta": (dict(beta=(4, 3)), {}, r"beta of shape \(4, 3\)"),
        "beta per feature": (dict(beta=(2, 5, 3, 8)), {}, "beta of shape"),
        "lengths": (dict(query=(2, 4, 3, 8)), {}, "as many queries as keys"),
        "state": (dict(initial_state=(2, 3, 8, 5)), {}, STATE.format(4)),
    },
}
BAD_INPUTS = {op: OF_ALL | cases for op, cases in BAD_INPUTS.items()}


@pytest.mark.parametrize("op, case", [(op, case) for op in OPS for case in BAD_INPUTS[op]])
def test_bad_inputs(op, case):
    shapes, options, message = BAD_INPUTS[op][case]
    with pytest.raises(ValueError, match=message.format(op=op)):
        call(op, ones(op, **shapes), **options)


@pytest.mark.parametrize("case", ["bias", "mask", "lengths", "window", "name", "NaN scale"])
def test_an_empty_batch_hides_no_bad_input(case):
    _, options, message = BAD_INPUTS["attention"][case]
    empty = dict.fromkeys(SHAPES["attention"], (0, 5, 2, 8))
    with pytest.raises(ValueError, match=message.format(op="attention")):
        call("attention", ones("attention", **empty), **options)
    with pytest.raises(ValueError, match=message.format(op="attention")):
        packed_dot_product_attention(jnp.ones((0, 5, 3, 2, 8)), **options)


def test_packed_shape():
    with pytest.raises(ValueError, match=r"qkv must be \[\.\.\., length, 3"):
        packed_dot_product_attention(jnp.ones((2, 5, 2, 8)))


# Options, and what the TypeError says.
TYPES_OF_ALL = {
    "string scale": (dict(scale="0.3"), "scale must be one number, got '0.3'"),
    "array scale": (dict(scale=np.ones(2)), "scale must be one number"),
    "true scale": (dict(scale=True), "scale must be one number"),
    "number": (dict(implementation=3), "implementation must be a name, several or None, got 3"),
    "numbers": (dict(implementation=["xla", 3]), "a name, several or None"),
}
WINDOWS = [2.0, True, (True, 1), (1.0, 2), (3, None), (1, 2, 3), (), "12", np.array([3, 4])]
IS_CAUSAL = (dict(is_causal="no"), "is_causal must be True or False, got 'no'")
STATE_FLAG = (dict(return_state=1), "return_state must be True or False, got 1")
FLOAT_LENGTHS = dict(key_value_seq_lengths=np.ones(2))
BAD_TYPES = {
    "attention": {
        "causal string": IS_CAUSAL,
        "float mask": (dict(mask=np.ones((5, 5))), "boolean"),
        "integer bias": (dict(bias=np.ones((5, 5), int)), "bias must be floating"),
        "float lengths": (dict(query_seq_lengths=np.ones(2)), "integers"),
        "float key lengths": (FLOAT_LENGTHS, "integers"),
    }
    | {f"window {w!r}": (dict(local_window_size=w), "an integer or two") for w in WINDOWS},
    "linear_attention": {
        "causal string": IS_CAUSAL,
        "normalize": (dict(normalize=None), "normalize must be True or False, got None"),
        "return_state": STATE_FLAG,
        "float lengths": (FLOAT_LENGTHS, "key_value_seq_lengths must be integers"),
    },
    "delta_rule": {"return_state": STATE_FLAG},
}
BAD_TYPES = {op: TYPES_OF_ALL | cases for op, cases in BAD_TYPES.items()}


@pytest.mark.parametrize("op, case", [(op, case) for op in OPS for case in BAD_TYPES[op]])
def test_bad_types(op, case):
    options, message = BAD_TYPES[op][case]
    with pytest.raises(TypeError, match=message):
        call(op, ones(op), **options)


@pytest.mark.parametrize("op, name", [(op, name) for op in OPS for name in inputs(op, 1)])
def test_integers(op, name):
    arrays = inputs(op, 2)
    with pytest.raises(TypeError, match=f"{name} must be floating point, got int32"):
        call(op, arrays | {name: arrays[name].astype(jnp.int32)})


def test_the_delta_rule_needs_beta():
    with pytest.raises(TypeError, match="beta must be given"):
        call("delta_rule", ones("delta_rule") | dict(beta=None))


def test_numbers_of_any_kind_are_taken():
    run = lambda **options: call("attention", inputs("attention", 2), **options)
    plain = run(local_window_size=2, scale=0.5, is_causal=True, implementation="xla")
    for window in (np.int64(2), (2, np.int32(2)), jnp.int32(2), [2, 2]):
        given = dict(scale=jnp.float32(0.5), is_causal=np.True_, implementation=("xla",))
        np.testing.assert_array_equal(run(local_window_size=window, **given), plain)


@pytest.mark.parametrize("op", OPS)
def test_traced_scale(op):
    with pytest.raises(TypeError, match="multiply the query"):
        jax.jit(lambda scale: call(op, ones(op), scale=scale))(1.0)


# Implementation, machine, dtype, features of keys and of values, and what the error says.
UNABLE = {
    "triton on a CPU": ("triton", ("cpu",), jnp.float32, 8, 8, "needs a GPU"),
    "triton on a TPU": ("triton", ("tpu",), jnp.float32, 8, 8, "needs a GPU"),
    "old GPU": ("triton", ("cuda", 75), jnp.float32, 8, 8, "8.0"),
    "float64": ("triton", ("cuda", 90), jnp.float64, 8, 8, "float64"),
    "wide heads": ("triton", ("cuda", 90), jnp.float32, 300, 300, "at most (256|128) wide"),
    "pallas on a CPU": (
        *("pallas", ("cpu",), jnp.float32, 8, 8),
        "need a TPU and this is 'cpu'.*INTERPRET=1",
    ),
    "old TPU": (
        *("pallas", ("tpu", None, "TPU v3"), jnp.float32, 8, 8),
        "v4 or newer and this is a TPU v3",
    ),
    "float64 on a TPU": (
        *("pallas", ("tpu",), jnp.float64, 8, 8),
        "one of float32, bfloat16, float16, got float64",
    ),
}
WIDE = {
    "wide keys": ("triton", ("cuda", 90), jnp.float32, 129, 8, "at most 128 wide"),
    "wide values": ("triton", ("cuda", 90), jnp.float32, 8, 129, "at most 128 wide"),
}
CUDNN = {
    "cudnn on a CPU": ("cudnn", ("cpu",), jnp.bfloat16, 8, 8, "NVIDIA GPU"),
    "cudnn in float32": ("cudnn", ("cuda", 90), jnp.float32, 8, 8, "bfloat16"),
    "cudnn head dim": ("cudnn", ("cuda", 90), jnp.bfloat16, 12, 12, "multiples of 8"),
}
UNABLE = {op: UNABLE | (CUDNN if op == "attention" else WIDE) for op in OPS}


def shapes_of(op, dtype, width, columns):
    """Shapes of the arrays, for `jax.eval_shape`."""
    key = (2, 5, 2, width)
    shapes = dict(query=key, key=key, value=(2, 5, 2, columns))
    if op == "delta_rule":
        shapes["beta"] = (2, 5, 2)
    return {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}


@pytest.mark.parametrize("op, case", [(op, case) for op in OPS for case in UNABLE[op]])
def test_an_implementation_that_cannot_says_why(op, case, monkeypatch):
    name, here, dtype, width, columns, message = UNABLE[op][case]
    for module in (triton_call, pallas_call):
        monkeypatch.setattr(module, "interpreting", lambda: False)
    if name == "triton":
        monkeypatch.setattr(triton_call, "_is_installed", lambda package: True)
    with jax.enable_x64(True), targeting(*here):
        arrays = shapes_of(op, dtype, width, columns)
        trace = lambda asked: jax.eval_shape(lambda a: call(op, a, implementation=asked), arrays)
        with pytest.raises(NotImplementedError, match=f"{name}: .*{message}"):
            trace(name)
        # A sequence goes on to the next name, and None always finds an implementation.
        trace([name, "xla"])
        trace(None)


@pytest.mark.parametrize("op", ["linear_attention", "delta_rule"])
def test_the_widest_heads_are_taken(op):
    arrays = shapes_of(op, jnp.bfloat16, 128, 128)
    out = jax.eval_shape(lambda a: call(op, a, implementation="triton"), arrays)
    assert out.shape == (2, 5, 2, 128) and out.dtype == jnp.bfloat16


@pytest.mark.parametrize("package", ["triton", "jax_triton"])
def test_a_missing_package_is_named(package, monkeypatch):
    monkeypatch.setattr(triton_call, "interpreting", lambda: False)
    monkeypatch.setattr(triton_call, "_is_installed", lambda name: name != package)
    said = triton_call.refusal(dispatch.Target("cuda", 90))
    assert said is not None and "extra cuda12 or cuda13" in said


@pytest.mark.parametrize("op", OPS)
@pytest.mark.parametrize("implementation", FUSED)
def test_mixed_dtypes_are_refused_by_the_kernels_alone(implementation, op):
    arrays = inputs(op, 1)
    arrays |= dict(query=arrays["query"].astype(jnp.bfloat16))
    with pytest.raises(NotImplementedError, match="one dtype, got bfloat16, float32"):
        attend(op, implementation)(arrays)
    shapes = jax.eval_shape(attend(op, None), arrays)
    out, *state = shapes if isinstance(shapes, tuple) else (shapes,)
    assert out.dtype == jnp.bfloat16 and all(s.dtype == jnp.float32 for s in state)


def chosen(op, platform, capability, dtype, length=64, width=8, **options):
    """The implementation that None stands for."""
    api, taken = OPS[op].api, []
    define = api.IMPLEMENTATIONS["reference"].run
    spies = {
        name: dispatch.Implementation(
            lambda p, o, name=name: taken.append(name) or define(p, o), i.refusal, i.is_best
        )
        for name, i in api.IMPLEMENTATIONS.items()
    }
    shape = (1, length, 1, width)
    shapes = dict(query=shape, key=shape, value=shape)
    if op == "delta_rule":
        shapes["beta"] = shape[:3]
    arrays = {name: jax.ShapeDtypeStruct(shape, dtype) for name, shape in shapes.items()}
    with pytest.MonkeyPatch.context() as patch, targeting(platform, capability):
        patch.setattr(api, "IMPLEMENTATIONS", spies)
        jax.eval_shape(lambda a: call(op, a, **options), arrays)
    return taken[0]


def test_what_none_stands_for_in_attention():
    choice = lambda *machine, **options: chosen("attention", *machine, is_causal=False, **options)
    assert choice("cpu", None, jnp.float32, 8) == "xla"
    assert choice("cuda", 90, jnp.bfloat16, 64) == "triton"
    assert choice("cuda", 90, jnp.float32, 1024) == "triton"
    assert chosen("attention", "cuda", 90, jnp.bfloat16, 1024) == "cudnn"
    lengths = np.array([3])
    assert choice("cuda", 90, jnp.bfloat16, 1024, query_seq_lengths=lengths) == "triton"
    assert choice("rocm", None, jnp.bfloat16, 64) == "xla"


@pytest.mark.parametrize("op", ["linear_attention", "delta_rule"])
def test_what_none_stands_for(op):
    assert chosen(op, "cpu", None, jnp.float32) == "xla"
    assert chosen(op, "cuda", 90, jnp.bfloat16) == "triton"
    assert chosen(op, "rocm", None, jnp.bfloat16) == "xla"
    # Wider heads spill registers.
    assert chosen(op, "cuda", 90, jnp.bfloat16, width=128) == "triton"
    assert chosen(op, "cuda", 80, jnp.bfloat16, width=128) == "xla"
    assert chosen(op, "cuda", 90, jnp.float32, width=64) == "xla"
    # A call without steps runs no kernel.
    assert chosen(op, "cuda", 90, jnp.bfloat16, length=0) == "reference"


@pytest.mark.parametrize("op", OPS)
def test_what_is_chosen_for_a_gpu_still_runs_on_a_cpu(op):
    """A program traced for one machine and compiled for another takes the plain form."""
    with targeting("cuda", 90):
        close(gradient(op, None, inputs(op, 3)), expected(gradient, op, 3), 1e-5)


@pytest.mark.parametrize("change", ["missing", "unknown"])
def test_a_kernel_refuses_tensors_of_other_names(change):
    """A kernel takes its pointers by name, so that two cannot be swapped."""
    from icl.kernels.attention.triton_row import forward_kernel as kernel

    arrays = {name: jnp.ones(1) for name in kernel.arg_names}
    outputs = {"out": arrays.pop("out")}
    constants = {name: arrays.pop(name) for name in ("STRIDES", "CALL")}
    if change == "missing":
        del arrays["bias"]
    else:
        arrays["gamma"] = arrays["bias"]
    with pytest.raises(TypeError, match="the kernel takes query, key, value, bias"):
        call_triton(kernel, 1, arrays, outputs, constants, num_warps=1, num_stages=1)


@pytest.mark.parametrize("op", OPS)
def test_choices_lists_the_implementations_that_a_traced_program_takes(op):
    trace = lambda **options: jax.eval_shape(lambda arrays: call(op, arrays, **options), ones(op))
    with choices() as chosen:
        trace(implementation="reference")
        trace(implementation=["pallas", "xla"])
        with targeting("cpu"):
            trace()
        with choices() as inner, pytest.raises(ValueError, match="called 'flash'"):
            trace(implementation=["reference", "flash"])
    trace()
    assert chosen == [(op, "reference"), (op, "pallas"), (op, "xla")] and inner == []

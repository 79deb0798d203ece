"""What attention cannot do, and what it says then."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl.kernels import (
    dispatch,
    dot_product_attention,
    packed_dot_product_attention,
    pallas_call,
    targeting,
    triton_call,
)
from icl.kernels.attention import api

from .implementations import draw_inputs

BAD_INPUTS = {
    "other head dim": (dict(key=(2, 5, 2, 4), value=(2, 5, 2, 4)), {}, "agree"),
    "key and value": (dict(value=(2, 4, 2, 8)), {}, "same shape"),
    "heads": (dict(key=(2, 5, 3, 8), value=(2, 5, 3, 8)), {}, "evenly"),
    "two axes": (dict(query=(5, 8)), {}, "length, heads, head_dim"),
    "bias": ({}, dict(bias=np.ones((3, 5), np.float32)), "bias of shape"),
    "mask": ({}, dict(mask=np.ones((7, 2, 5, 5), bool)), "mask of shape"),
    "lengths": ({}, dict(key_value_seq_lengths=np.ones(3, int)), "batch shape"),
    "window": ({}, dict(local_window_size=(-1, 2)), "negative"),
    "name": ({}, dict(implementation="flash"), "no implementation of attention called 'flash'"),
    "names": ({}, dict(implementation=["flash", "xla"]), "called 'flash'"),
    "no names": ({}, dict(implementation=[]), "called nothing"),
    "NaN scale": ({}, dict(scale=np.nan), "scale must be finite, got nan"),
    "infinite scale": ({}, dict(scale=np.float32("inf")), "scale must be finite"),
}


@pytest.mark.parametrize("case", BAD_INPUTS)
def test_bad_inputs(case):
    changes, options, message = BAD_INPUTS[case]
    shapes = {name: (2, 5, 2, 8) for name in ("query", "key", "value")} | changes
    with pytest.raises(ValueError, match=message):
        dot_product_attention(*(jnp.ones(shape) for shape in shapes.values()), **options)


@pytest.mark.parametrize("case", ["bias", "mask", "lengths", "window", "name", "NaN scale"])
def test_an_empty_batch_hides_no_bad_input(case):
    _, options, message = BAD_INPUTS[case]
    with pytest.raises(ValueError, match=message):
        dot_product_attention(*[jnp.ones((0, 5, 2, 8))] * 3, **options)
    with pytest.raises(ValueError, match=message):
        packed_dot_product_attention(jnp.ones((0, 5, 3, 2, 8)), **options)


BAD_TYPES = {
    "float mask": (jnp.float32, dict(mask=np.ones((5, 5))), "boolean"),
    "integers": (jnp.int32, {}, "floating point"),
    "integer bias": (jnp.float32, dict(bias=np.ones((5, 5), int)), "bias must be floating"),
    "float lengths": (jnp.float32, dict(query_seq_lengths=np.ones(2)), "integers"),
    "causal string": (jnp.float32, dict(is_causal="no"), "is_causal must be True or False, got"),
    "string scale": (jnp.float32, dict(scale="0.3"), "scale must be one number, got '0.3'"),
    "array scale": (jnp.float32, dict(scale=np.ones(2)), "scale must be one number"),
    "true scale": (jnp.float32, dict(scale=True), "scale must be one number"),
    "number": (jnp.float32, dict(implementation=3), "a name, several or None, got 3"),
    "numbers": (jnp.float32, dict(implementation=["xla", 3]), "a name, several or None"),
}
WINDOWS = [2.0, True, (True, 1), (1.0, 2), (3, None), (1, 2, 3), (), "12", np.array([3, 4])]
BAD_TYPES |= {
    f"window {w!r}": (jnp.float32, dict(local_window_size=w), "an integer or two") for w in WINDOWS
}


@pytest.mark.parametrize("case", BAD_TYPES)
def test_bad_types(case):
    dtype, options, message = BAD_TYPES[case]
    with pytest.raises(TypeError, match=message):
        dot_product_attention(*[jnp.ones((2, 5, 2, 8), dtype)] * 3, **options)


def test_numbers_of_any_kind_are_taken():
    run = lambda **options: dot_product_attention(*[jnp.ones((2, 5, 2, 8))] * 3, **options)
    plain = run(local_window_size=2, scale=0.5, is_causal=True, implementation="xla")
    for window in (np.int64(2), (2, np.int32(2)), jnp.int32(2), [2, 2]):
        given = dict(scale=jnp.float32(0.5), is_causal=np.True_, implementation=("xla",))
        np.testing.assert_array_equal(run(local_window_size=window, **given), plain)


def test_traced_scale():
    with pytest.raises(TypeError, match="multiply the query"):
        jax.jit(lambda s: dot_product_attention(*[jnp.ones((2, 1, 4))] * 3, scale=s))(1.0)


def test_packed_shape():
    with pytest.raises(ValueError, match=r"qkv must be \[\.\.\., length, 3"):
        packed_dot_product_attention(jnp.ones((2, 5, 2, 8)))


UNABLE = {
    "triton on a CPU": ("triton", ("cpu",), jnp.float32, 8, "needs a GPU"),
    "old GPU": ("triton", ("cuda", 75), jnp.float32, 8, "8.0"),
    "float64": ("triton", ("cuda", 90), jnp.float64, 8, "float64"),
    "wide heads": ("triton", ("cuda", 90), jnp.float32, 300, "256"),
    "cudnn on a CPU": ("cudnn", ("cpu",), jnp.bfloat16, 8, "NVIDIA GPU"),
    "cudnn in float32": ("cudnn", ("cuda", 90), jnp.float32, 8, "bfloat16"),
    "cudnn head dim": ("cudnn", ("cuda", 90), jnp.bfloat16, 12, "multiples of 8"),
    "pallas on a CPU": ("pallas", ("cpu",), jnp.float32, 8, "needs? a TPU"),
}


@pytest.mark.parametrize("case", UNABLE)
def test_an_implementation_that_cannot_says_why(case, monkeypatch):
    name, here, dtype, width, message = UNABLE[case]
    for module in (triton_call, pallas_call):
        monkeypatch.setattr(module, "interpreting", lambda: False)
    if name == "triton":
        monkeypatch.setattr(triton_call, "_is_installed", lambda package: True)
    with jax.enable_x64(True), targeting(*here):
        arrays = [jax.ShapeDtypeStruct((2, 5, 2, width), dtype)] * 3
        attend = lambda *a, **k: jax.eval_shape(lambda *b: dot_product_attention(*b, **k), *a)
        with pytest.raises(NotImplementedError, match=f"{name}: .*{message}"):
            attend(*arrays, implementation=name)
        # A sequence goes on to what can, and None always finds something.
        attend(*arrays, implementation=[name, "xla"])
        attend(*arrays)


@pytest.mark.parametrize("package", ["triton", "jax_triton"])
def test_a_missing_package_is_named(package, monkeypatch):
    monkeypatch.setattr(triton_call, "interpreting", lambda: False)
    monkeypatch.setattr(triton_call, "_is_installed", lambda name: name != package)
    said = triton_call.refusal(dispatch.Target("cuda", 90))
    assert said is not None and "extra cuda12 or cuda13" in said


def test_mixed_dtypes_are_refused_by_the_kernels_alone():
    query, key, value, _ = draw_inputs(0, 1, 3, 3, 1, 1, 8)
    with pytest.raises(NotImplementedError, match="one dtype"):
        dot_product_attention(query.astype(jnp.bfloat16), key, value, implementation="triton")
    assert dot_product_attention(query.astype(jnp.bfloat16), key, value).dtype == jnp.bfloat16


def chosen(platform, capability, dtype, length, **options):
    """The name that None stands for."""
    taken = []
    spies = {
        name: dispatch.Implementation(
            lambda p, o, name=name: taken.append(name) or o.query, i.refusal, i.is_best
        )
        for name, i in api.IMPLEMENTATIONS.items()
    }
    with pytest.MonkeyPatch.context() as patch, targeting(platform, capability):
        patch.setattr(api, "IMPLEMENTATIONS", spies)
        dot_product_attention(*[jnp.ones((1, length, 1, 8), dtype)] * 3, **options)
    return taken[0]


def test_what_none_stands_for():
    assert chosen("cpu", None, jnp.float32, 8) == "xla"
    assert chosen("cuda", 90, jnp.bfloat16, 64) == "triton"
    assert chosen("cuda", 90, jnp.float32, 1024) == "triton"
    assert chosen("cuda", 90, jnp.bfloat16, 1024, is_causal=True) == "cudnn"
    lengths = np.array([3])
    assert chosen("cuda", 90, jnp.bfloat16, 1024, query_seq_lengths=lengths) == "triton"
    assert chosen("rocm", None, jnp.bfloat16, 64) == "xla"


def test_what_is_chosen_for_a_gpu_still_runs_on_a_cpu():
    """A program traced for one machine and compiled for another takes the plain form."""
    arrays = draw_inputs(0, 2, 9, 9, 2, 1, 8)[:3]

    def loss(implementation):
        attend = lambda *a: dot_product_attention(*a, is_causal=True, implementation=implementation)
        return lambda *a: (attend(*a) ** 2).sum()

    expected = jax.grad(loss("reference"), (0, 1, 2))(*arrays)
    with targeting("cuda", 90):
        ours = jax.jit(jax.grad(loss(None), (0, 1, 2)))(*arrays)
    for mine, theirs in zip(ours, expected):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)

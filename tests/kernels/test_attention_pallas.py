"""What is Pallas' own: that it lowers for TPU, what it refuses, and that its kernels are right.

Agreement with float64 over many shapes and options is tested with the other forms.
"""

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from icl.kernels import (
    dot_product_attention,
    packed_dot_product_attention,
    pallas_call,
    targeting,
)

RNG = np.random.default_rng(0)
BF16 = jnp.bfloat16


def normal(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.normal(size=shape), dtype)


def random_mask(*shape):
    return jnp.asarray(RNG.random(shape) < 0.6)


def make_inputs(batch, length, key_length, heads, key_heads, width, dtype=jnp.float32):
    keys = (batch, key_length, key_heads, width)
    shapes = dict(query=(batch, length, heads, width), key=keys, value=keys)
    return {name: normal(*shape, dtype=dtype) for name, shape in shapes.items()}


def value_and_gradients(floats, d_out, implementation="pallas", **options):
    attend = packed_dot_product_attention if "qkv" in floats else dot_product_attention
    attend = partial(attend, implementation=implementation, **options)
    out, pull_back = jax.vjp(lambda floats: attend(**floats), floats)
    return out, pull_back(d_out)[0]


def kernels_for_tpu(function, *arguments):
    """How many kernels there are in what is lowered for TPU."""
    with targeting("tpu"):
        traced = jax.jit(function).trace(*arguments)
    return traced.lower(lowering_platforms=("tpu",)).as_text().count("@tpu_custom_call")


def assert_close(ours, theirs, **tolerance):
    wide = lambda array: np.asarray(array, np.float32)
    compare = partial(np.testing.assert_allclose, **tolerance)
    jax.tree.map(lambda a, b: compare(wide(a), wide(b)), ours, theirs)


CAUSAL = make_inputs(2, 9, 9, 2, 2, 20)
LENGTHS = jnp.asarray([3, 0])
LOWERED = {
    "causal": (CAUSAL, dict(is_causal=True)),
    "bfloat16": (make_inputs(2, 41, 41, 2, 2, 20, BF16), dict(is_causal=True)),
    "float16": (make_inputs(2, 8, 8, 1, 1, 8, jnp.float16), {}),
    "bias, mask and lengths": (
        make_inputs(2, 5, 9, 2, 2, 8, BF16) | dict(bias=normal(2, 5, 9, dtype=BF16)),
        dict(
            mask=random_mask(2, 1, 1, 9), query_seq_lengths=LENGTHS, key_value_seq_lengths=LENGTHS
        ),
    ),
    "grouped heads": (
        make_inputs(2, 5, 9, 4, 2, 8) | dict(bias=normal(2, 1, 5, 1)),
        dict(mask=random_mask(4, 5, 9)),
    ),
    "window": (make_inputs(2, 8, 8, 4, 1, 8), dict(local_window_size=(2, 1))),
    "packed": (dict(qkv=normal(2, 8, 3, 2, 8)), dict(is_causal=True)),
    "one key": (make_inputs(2, 5, 1, 2, 2, 8, BF16), dict(is_causal=True)),
}


@pytest.mark.parametrize("case", LOWERED)
def test_forward_and_backward_lower_for_tpu(case):
    floats, options = LOWERED[case]
    d_out = floats["qkv"][:, :, 0] if "qkv" in floats else floats["query"]
    assert kernels_for_tpu(partial(value_and_gradients, **options), floats, d_out) == 2


@pytest.mark.parametrize("precision", ["bfloat16", "high", "highest"])
def test_every_matmul_precision_lowers(precision):
    with jax.default_matmul_precision(precision):
        run = partial(value_and_gradients, is_causal=True)
        assert kernels_for_tpu(run, CAUSAL, CAUSAL["query"]) == 2


def test_lowers_inside_shard_map():
    mesh = AbstractMesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    rows, shared = PartitionSpec("batch"), PartitionSpec()
    specs = dict(query=rows, key=rows, value=rows, bias=shared)

    @partial(jax.shard_map, mesh=mesh, in_specs=(specs, rows, shared), out_specs=(rows, specs))
    def run(floats, d_out, length):
        lengths = jnp.broadcast_to(length, d_out.shape[:1])
        return value_and_gradients(floats, d_out, key_value_seq_lengths=lengths)

    floats = CAUSAL | dict(bias=normal(2, 9, 9))
    assert kernels_for_tpu(run, floats, CAUSAL["query"], jnp.asarray([3])) == 2


REFUSALS = {
    "other machine": (dict(platform="cpu"), {}, "need a TPU and this is 'cpu'.*INTERPRET=1"),
    "old TPU": (dict(platform="tpu", device="TPU v3"), {}, "v4 or newer and this is a TPU v3"),
    "float64": (
        dict(platform="tpu"),
        dict(query="float64", key="float64", value="float64"),
        "one of float32, bfloat16, float16, got float64",
    ),
    "two dtypes": (dict(platform="tpu"), dict(key="bfloat16"), "one dtype, got bfloat16, float32"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_say_why(case, monkeypatch):
    machine, dtypes, message = REFUSALS[case]
    monkeypatch.setenv("ICL_KERNELS_INTERPRET", "0")
    with jax.enable_x64(True), targeting(**machine):
        dtypes = dict(query="float32", key="float32", value="float32") | dtypes
        arrays = {name: jnp.ones((1, 3, 1, 4), dtype) for name, dtype in dtypes.items()}
        with pytest.raises(NotImplementedError, match=message):
            dot_product_attention(**arrays, implementation="pallas")


@pytest.mark.parametrize(
    "length, heads, bias", [(1024, 1, None), (256, 32, None), (512, 1, (512, 512))]
)
def test_what_does_not_fit_on_chip_is_refused(length, heads, bias):
    shapes = dict(query=(1, length, heads, 64), key=(1, length, 1, 64), value=(1, length, 1, 64))
    shapes |= {} if bias is None else dict(bias=bias)
    arrays = {name: jax.ShapeDtypeStruct(shape, jnp.float32) for name, shape in shapes.items()}
    run = partial(dot_product_attention, implementation="pallas")
    with targeting("tpu"), pytest.raises(NotImplementedError, match="MiB on chip"):
        jax.eval_shape(run, **arrays)


AGREES = {
    "everything": (
        make_inputs(3, 5, 7, 4, 2, 8) | dict(bias=normal(4, 5, 7)),
        dict(
            mask=random_mask(3, 1, 5, 7),
            query_seq_lengths=jnp.asarray([0, 3, 9]),
            key_value_seq_lengths=jnp.asarray([4, 0, 7]),
            local_window_size=(2, 3),
        ),
    ),
    "broadcast bias and mask": (
        make_inputs(3, 5, 7, 4, 2, 8) | dict(bias=normal(3, 1, 1, 7)),
        dict(mask=random_mask(3, 1, 5, 1), is_causal=True, local_window_size=2, scale=0.7),
    ),
    "nothing hidden": (make_inputs(2, 6, 9, 2, 1, 5) | dict(bias=normal(2, 2, 6, 9)), {}),
    "packed bfloat16": (dict(qkv=normal(2, 9, 3, 2, 8, dtype=BF16)), dict(is_causal=True)),
}


@pytest.mark.parametrize("case", AGREES)
def test_agrees_with_the_reference(case):
    floats, options = AGREES[case]
    first = next(iter(floats.values()))
    d_out = normal(*(first[:, :, 0] if "qkv" in floats else first).shape, dtype=first.dtype)
    run = jax.jit(partial(value_and_gradients, **options), static_argnums=2)
    tolerance = 0.04 if first.dtype == BF16 else 3e-6
    assert_close(run(floats, d_out, "pallas"), run(floats, d_out, "reference"), atol=tolerance)


def test_what_is_hidden_or_blind_may_hold_nan():
    clean, d_out = make_inputs(2, 5, 7, 2, 2, 8), normal(2, 5, 2, 8)
    mask = random_mask(2, 1, 5, 7).at[..., 3].set(False).at[0, :, 2].set(False)
    dirty = dict(
        query=clean["query"].at[0, 2].set(jnp.nan),
        key=clean["key"].at[:, 3].set(jnp.nan),
        value=clean["value"].at[:, 3].set(jnp.inf),
    )
    run = jax.jit(partial(value_and_gradients, mask=mask))
    result = run(dirty, d_out.at[0, 2].set(jnp.nan))
    assert_close(result, run(clean, d_out), atol=0)
    np.testing.assert_array_equal(result[0][0, 2], 0)
    np.testing.assert_array_equal(result[1]["query"][0, 2], 0)


def test_a_broken_key_reaches_those_who_see_it_alone():
    floats = make_inputs(1, 6, 6, 2, 2, 8)
    floats["value"] = floats["value"].at[0, 3, :, 0].set(jnp.nan)
    run = jax.jit(partial(value_and_gradients, is_causal=True, local_window_size=1))
    out, gradients = run(floats, floats["query"])
    # Queries 3 and 4 see it, and no key but 2, 3 and 4.
    for array, broken in ((out, [3, 4]), (gradients["query"], [3, 4]), (gradients["key"], [2, 4])):
        assert np.isnan(array[0, broken]).all()
    for array, whole in ((out, [0, 1, 2, 5]), (gradients["key"], [0, 1, 5])):
        assert np.isfinite(array[0, whole]).all()


@pytest.mark.parametrize(
    "key_heads, shape, index",
    [(2, (1, 1, 5, 7), (0, 0)), (2, (4, 6, 5, 7), (3, 1)), (6, (4, 6, 5, 7), (3, 1))],
)
def test_an_axis_of_one_is_read_by_all_programs(key_heads, shape, index):
    # Interpreted, an index out of range is clamped and goes unseen; on a TPU it is not.
    block = pallas_call.block(key_heads, jax.ShapeDtypeStruct(shape, jnp.float32))
    assert block.index_map(3, 1) == (*index, 0, 0)


def test_vmap_with_operands_that_are_not_mapped():
    shared = make_inputs(2, 5, 7, 4, 2, 8) | dict(bias=normal(2, 1, 5, 7))
    query, d_out = normal(3, 2, 5, 4, 8), normal(2, 5, 4, 8)
    lengths = jnp.asarray([[1, 7], [0, 4], [7, 7]])

    def run(implementation, query, lengths):
        options = dict(implementation=implementation, key_value_seq_lengths=lengths)
        return value_and_gradients(shared | dict(query=query), d_out, **options)

    mapped = jax.jit(jax.vmap(run, in_axes=(None, 0, 0)), static_argnums=0)
    assert_close(mapped("pallas", query, lengths), mapped("reference", query, lengths), atol=3e-6)

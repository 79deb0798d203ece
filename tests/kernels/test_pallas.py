"""Laws of the Pallas kernels alone: they lower for TPU, fit on chip, and spread NaN as they should.

Agreement with float64 over many shapes and options is tested with the other implementations.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from icl.kernels import (
    delta_rule,
    dot_product_attention,
    linear_attention,
    packed_dot_product_attention,
    pallas_call,
    targeting,
)

from .ops import OPS, inputs

RNG = np.random.default_rng(0)
BF16, F16, F32 = jnp.bfloat16, jnp.float16, jnp.float32


def normal(*shape, scale=1.0, dtype=F32):
    return jnp.asarray(scale * RNG.normal(size=shape), dtype)


def random_mask(*shape):
    return jnp.asarray(RNG.random(shape) < 0.6)


def beta(*shape):
    return jnp.asarray(RNG.uniform(0, 1, shape), F32)


def log_decay(*shape, scale=1.0):
    return jnp.asarray(-scale * RNG.exponential(size=shape), F32)


def value_and_gradients(floats, d_out, implementation="pallas", **options):
    """Of the op that takes these arrays; the cotangent of a state is its cosine."""
    if "qkv" in floats:
        attend = packed_dot_product_attention
    elif "beta" in floats:
        attend = delta_rule
    else:
        attend = linear_attention if "normalize" in options else dot_product_attention
    attend = partial(attend, implementation=implementation, **options)
    result, pull_back = jax.vjp(lambda floats: attend(**floats), floats)
    cotangent = (d_out, jnp.cos(result[1])) if isinstance(result, tuple) else d_out
    return result, pull_back(cotangent)[0]


# Tests that share shapes and options share the compiled program.
run = jax.jit(
    value_and_gradients,
    static_argnames=(
        *("implementation", "is_causal", "normalize", "return_state", "local_window_size"),
    ),
)


def cotangent(floats):
    """A fixed array of the shape of the output."""
    query = floats["qkv"][..., 0, :, :] if "qkv" in floats else floats["query"]
    columns = floats.get("value", query).shape[-1]
    shape = *query.shape[:-1], columns
    return jnp.asarray(np.cos(np.arange(np.prod(shape))).reshape(shape), query.dtype)


def kernels_for_tpu(function, *arguments):
    """The number of kernels in the program lowered for TPU."""
    with targeting("tpu"):
        traced = jax.jit(function).trace(*arguments)
    return traced.lower(lowering_platforms=("tpu",)).as_text().count("@tpu_custom_call")


def assert_close(ours, theirs, atol):
    """atol is relative to the largest entry of an array if that is above 1."""

    def compare(a, b):
        a, b = np.asarray(a, np.float32), np.asarray(b, np.float32)
        np.testing.assert_allclose(a, b, rtol=1e-7, atol=atol * max(1, np.abs(b).max()))

    jax.tree.map(compare, ours, theirs)


def attention_inputs(batch, length, key_length, heads, key_heads, width, dtype=F32):
    keys = (batch, key_length, key_heads, width)
    shapes = dict(query=(batch, length, heads, width), key=keys, value=keys)
    return {name: normal(*shape, dtype=dtype) for name, shape in shapes.items()}


def linear_inputs(batch, length, heads, width, columns, dtype=F32):
    steps = batch, length, heads
    shapes = dict(query=(*steps, width), key=(*steps, width), value=(*steps, columns))
    return {name: normal(*shape, scale=0.5, dtype=dtype) for name, shape in shapes.items()}


LENGTHS = jnp.asarray([3, 0])
OF_ATTENTION = {
    "causal": (attention_inputs(2, 9, 9, 2, 2, 20), dict(is_causal=True)),
    "bfloat16": (attention_inputs(2, 41, 41, 2, 2, 20, BF16), dict(is_causal=True)),
    "float16": (attention_inputs(2, 8, 8, 1, 1, 8, F16), {}),
    "bias, mask and lengths": (
        attention_inputs(2, 5, 9, 2, 2, 8, BF16) | dict(bias=normal(2, 5, 9, dtype=BF16)),
        dict(
            mask=random_mask(2, 1, 1, 9), query_seq_lengths=LENGTHS, key_value_seq_lengths=LENGTHS
        ),
    ),
    "grouped heads": (
        attention_inputs(2, 5, 9, 4, 2, 8) | dict(bias=normal(2, 1, 5, 1)),
        dict(mask=random_mask(4, 5, 9)),
    ),
    "window": (attention_inputs(2, 8, 8, 4, 1, 8), dict(local_window_size=(2, 1))),
    "packed": (dict(qkv=normal(2, 8, 3, 2, 8)), dict(is_causal=True)),
    "one key": (attention_inputs(2, 5, 1, 2, 2, 8, BF16), dict(is_causal=True)),
}


def of_linear_attention():
    """Names and `(arrays, options)` over kinds of call, what else it has, dtypes and odd shapes."""
    causal = dict(is_causal=True)
    kinds = {
        "sums": causal | dict(normalize=False),
        "normalised": causal | dict(normalize=True),
        "all": dict(is_causal=False, normalize=False),
        "all, normalised": dict(is_causal=False, normalize=True),
        "delta": {},
    }
    shapes = [(2, 9, 2, 20, 12), (2, 16, 1, 8, 8), (1, 1, 2, 4, 1), (2, 5, 1, 1, 130)]
    variants = zip(itertools.cycle((F32, BF16, F16)), itertools.cycle(shapes))
    for given, kind in itertools.product(("nothing", "start", "state", "everything"), kinds):
        if kind not in ("sums", "delta") and given in ("start", "state"):
            continue
        dtype, (batch, length, heads, width, columns) = next(variants)
        options = kinds[kind] | dict(return_state=given in ("state", "everything"))
        causal, steps = options.get("is_causal", True), (batch, length, heads)
        floats = linear_inputs(batch, length, heads, width, columns, dtype)
        if not causal:
            floats["query"] = normal(batch, length + 3, heads, width, dtype=dtype)
        if kind == "delta":
            floats["beta"] = beta(*steps)
        if given == "everything" and causal:
            floats["log_decay"] = log_decay(*steps)
        if given == "everything" and kind != "delta":
            options["key_value_seq_lengths"] = np.arange(batch) * 3
        if given in ("start", "everything"):
            wider = columns + options.get("normalize", False)
            floats["initial_state"] = normal(heads, width, wider)
        yield f"{kind}, {given}, {length}, {dtype.__name__}", (floats, options)


LOWERED = OF_ATTENTION | dict(of_linear_attention())


@pytest.mark.parametrize("case", LOWERED)
def test_forward_and_backward_lower_for_tpu(case):
    floats, options = LOWERED[case]
    assert kernels_for_tpu(partial(value_and_gradients, **options), floats, cotangent(floats)) == 2


LONG = linear_inputs(2, 130, 2, 16, 16) | dict(beta=beta(130, 2), log_decay=log_decay(2))


@pytest.mark.parametrize("floats, options", [OF_ATTENTION["causal"], (LONG, {})])
@pytest.mark.parametrize("precision", ["bfloat16", "high", "highest"])
def test_every_matmul_precision_lowers(precision, floats, options):
    with jax.default_matmul_precision(precision):
        function = partial(value_and_gradients, **options)
        assert kernels_for_tpu(function, floats, cotangent(floats)) == 2


@pytest.mark.parametrize("op", ["attention", "linear_attention"])
def test_lowers_inside_shard_map(op):
    mesh = AbstractMesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    rows, all_devices = PartitionSpec("batch"), PartitionSpec()
    floats = inputs(op, 2, 9)
    specs = {name: all_devices if name in OPS[op].shared else rows for name in floats}
    options = dict(normalize=False, is_causal=True) if op == "linear_attention" else {}

    @partial(jax.shard_map, mesh=mesh, in_specs=(specs, rows, all_devices), out_specs=(rows, specs))
    def run(floats, d_out, length):
        lengths = jnp.broadcast_to(length, d_out.shape[:1])
        return value_and_gradients(floats, d_out, key_value_seq_lengths=lengths, **options)

    assert kernels_for_tpu(run, floats, cotangent(floats), jnp.asarray([3])) == 2


@pytest.mark.parametrize(
    "length, heads, bias", [(1024, 1, None), (256, 32, None), (512, 1, (512, 512))]
)
def test_attention_that_does_not_fit_on_chip_is_refused(length, heads, bias):
    shapes = dict(query=(1, length, heads, 64), key=(1, length, 1, 64), value=(1, length, 1, 64))
    shapes |= {} if bias is None else dict(bias=bias)
    arrays = {name: jax.ShapeDtypeStruct(shape, F32) for name, shape in shapes.items()}
    attend = partial(dot_product_attention, implementation="pallas")
    with targeting("tpu"), pytest.raises(NotImplementedError, match="MiB on chip"):
        jax.eval_shape(attend, **arrays)


@pytest.mark.parametrize("length, fits", [(512, True), (640, False)])
def test_steps_that_do_not_fit_on_chip_are_refused(length, fits):
    arrays = [jax.ShapeDtypeStruct((1, length, 1, 64), BF16)] * 3
    arrays += [jax.ShapeDtypeStruct((1, length, 1), F32)]
    attend = partial(delta_rule, implementation="pallas")
    with targeting("tpu"):
        if fits:
            assert jax.eval_shape(attend, *arrays).shape == arrays[2].shape
            return
        with pytest.raises(NotImplementedError, match="MiB on chip"):
            jax.eval_shape(attend, *arrays)


DELTA = (
    linear_inputs(2, 9, 2, 8, 5)
    | dict(beta=beta(9, 2), log_decay=log_decay(2, 9, 2), initial_state=normal(2, 8, 5)),
    dict(return_state=True),
)
AGREES = {
    "everything": (
        attention_inputs(3, 5, 7, 4, 2, 8) | dict(bias=normal(4, 5, 7)),
        dict(
            mask=random_mask(3, 1, 5, 7),
            query_seq_lengths=jnp.asarray([0, 3, 9]),
            key_value_seq_lengths=jnp.asarray([4, 0, 7]),
            local_window_size=(2, 3),
        ),
    ),
    "delta": DELTA,
}


@pytest.mark.parametrize("case", AGREES)
def test_agrees_with_the_reference(case):
    floats, options = AGREES[case]
    forms = ("pallas", "reference")
    ours, theirs = (run(floats, cotangent(floats), form, **options) for form in forms)
    assert_close(ours, theirs, atol=3e-6)


def test_a_broken_key_reaches_only_queries_that_see_it():
    floats = attention_inputs(1, 6, 6, 2, 2, 8)
    floats["value"] = floats["value"].at[0, 3, :, 0].set(jnp.nan)
    out, gradients = run(floats, floats["query"], is_causal=True, local_window_size=1)
    # Queries 3 and 4 see it, and no key but 2, 3 and 4.
    for array, broken in ((out, [3, 4]), (gradients["query"], [3, 4]), (gradients["key"], [2, 4])):
        assert np.isnan(array[0, broken]).all()
    for array, whole in ((out, [0, 1, 2, 5]), (gradients["key"], [0, 1, 5])):
        assert np.isfinite(array[0, whole]).all()


def test_a_broken_step_reaches_only_later_steps_of_its_head():
    floats, options = DELTA
    places = dict(key=(0, 3, 1, 0), value=(0, 3, 1, 0), beta=(3, 1), log_decay=(0, 3, 1))
    for name, at in places.items():
        broken = floats | {name: floats[name].at[at].set(jnp.inf)}
        (out, state), gradients = run(broken, cotangent(floats), "pallas", **options)
        assert np.isnan(out[0, 3:, 1]).all() and np.isnan(state[0, 1]).all()
        assert np.isfinite(out[0, :3]).all() and np.isfinite(out[0, :, 0]).all()
        assert gradients[name][at] == 0 and np.isfinite(state[0, 0]).all()
    d_out = cotangent(floats).at[0, 3, 1, 0].set(jnp.nan)
    _, gradients = run(floats, d_out, "pallas", **options)
    for name, seen in (("query", [3]), ("key", [0, 1, 2, 3]), ("value", [0, 1, 2, 3])):
        expected = np.zeros((2, 9, 2), bool)
        expected[0, seen, 1] = True
        np.testing.assert_array_equal(np.isnan(gradients[name]).any(axis=-1), expected)


@pytest.mark.parametrize(
    "key_heads, shape, index",
    [(2, (1, 1, 5, 7), (0, 0)), (2, (4, 6, 5, 7), (3, 1)), (6, (4, 6, 5, 7), (3, 1))],
)
def test_an_axis_of_one_is_read_by_all_programs(key_heads, shape, index):
    # The interpreter clamps an index out of range, which goes unseen; a TPU does not.
    block = pallas_call.block(key_heads, jax.ShapeDtypeStruct(shape, F32))
    assert block.index_map(3, 1) == (*index, 0, 0)


def test_vmap_with_operands_that_are_not_mapped():
    shared = attention_inputs(2, 5, 7, 4, 2, 8) | dict(bias=normal(2, 1, 5, 7))
    query, d_out = normal(3, 2, 5, 4, 8), normal(2, 5, 4, 8)
    lengths = jnp.asarray([[1, 7], [0, 4], [7, 7]])

    def of_row(implementation, query, lengths):
        options = dict(implementation=implementation, key_value_seq_lengths=lengths)
        return value_and_gradients(shared | dict(query=query), d_out, **options)

    mapped = jax.jit(jax.vmap(of_row, in_axes=(None, 0, 0)), static_argnums=0)
    assert_close(mapped("pallas", query, lengths), mapped("reference", query, lengths), atol=3e-6)


def test_vmap_of_one_operand_and_of_the_cotangent_alone():
    floats = linear_inputs(1, 4, 1, 3, 2)
    betas = beta(3, 1, 4, 1)

    def jacobian(implementation, beta):
        attend = lambda query: delta_rule(
            query, floats["key"], floats["value"], beta, implementation=implementation
        )
        return jax.jacrev(attend)(floats["query"])

    mapped = jax.jit(jax.vmap(jacobian, in_axes=(None, 0)), static_argnums=0)
    expected = mapped("reference", betas)
    assert_close(mapped("pallas", betas), expected, atol=3e-6)
    single = jax.jit(jacobian, static_argnums=0)
    assert_close(single("pallas", betas[0]), expected[0], atol=3e-6)

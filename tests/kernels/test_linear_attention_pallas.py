"""What is Pallas' own: that it lowers for TPU, what it refuses, and that its kernels are right.

Agreement with float64 over many shapes and options is tested with the other forms.
"""

import itertools
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

from icl.kernels import targeting
from icl.kernels.linear_attention import delta_rule, linear_attention, pallas

# Compiling takes longest, and takes less without optimising.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
BF16, F16 = jnp.bfloat16, jnp.float16


def normal(*shape, dtype=jnp.float32):
    return jnp.asarray(RNG.normal(size=shape), dtype)


def make_inputs(batch, length, heads, width, columns, *, key_length=None, dtype=jnp.float32):
    steps = batch, key_length or length, heads
    shapes = dict(query=(batch, length, heads, width), key=(*steps, width), value=(*steps, columns))
    return {name: normal(*shape, dtype=dtype) / 2 for name, shape in shapes.items()}


def beta(*shape):
    return jnp.asarray(RNG.uniform(0, 1, shape), jnp.float32)


def log_decay(*shape):
    return -jnp.asarray(RNG.exponential(size=shape), jnp.float32)


def value_and_gradients(floats, d_out, implementation="pallas", **options):
    attend = delta_rule
    if "beta" not in floats:
        attend = partial(linear_attention, is_causal=True)
    attend = partial(attend, implementation=implementation, **options)
    result, pull_back = jax.vjp(lambda floats: attend(**floats), floats)
    d_state = jax.tree.map(jnp.cos, result[1:]) if isinstance(result, tuple) else ()
    cotangent = (d_out, *d_state) if d_state else d_out
    return result, pull_back(cotangent)[0]


def kernels_for_tpu(function, *arguments):
    """How many kernels there are in what is lowered for TPU."""
    with targeting("tpu"):
        traced = jax.jit(function).trace(*arguments)
    return traced.lower(lowering_platforms=("tpu",)).as_text().count("@tpu_custom_call")


def assert_close(ours, theirs, **tolerance):
    wide = lambda array: np.asarray(array, np.float32)
    compare = partial(np.testing.assert_allclose, **tolerance)
    jax.tree.map(lambda a, b: compare(wide(a), wide(b)), ours, theirs)


def every_option():
    """Names and `(inputs, options)` of all combinations, over dtypes and awkward shapes."""
    kinds = {
        "sums": {},
        "normalised": dict(normalize=True),
        "all": dict(is_causal=False),
        "all, normalised": dict(is_causal=False, normalize=True),
        "delta": {},
    }
    shapes = [(2, 9, 2, 20, 12), (2, 16, 1, 8, 8), (1, 1, 2, 4, 1), (2, 5, 1, 1, 130)]
    variants = itertools.cycle(itertools.product((jnp.float32, BF16, F16), shapes))
    flags = itertools.product(kinds, (False, True), (False, True), (False, True))
    for kind, extra, has_start, returns_state in flags:
        # extra: a decay where one may be, and the lengths.
        dtype, (batch, length, heads, width, columns) = next(variants)
        options = kinds[kind] | dict(return_state=returns_state)
        causal, steps = options.get("is_causal", True), (batch, length, heads)
        floats = make_inputs(batch, length, heads, width, columns, dtype=dtype)
        if not causal:
            floats["query"] = normal(batch, length + 3, heads, width, dtype=dtype)
        if kind == "delta":
            floats["beta"] = beta(*steps)
        if extra and causal:
            floats["log_decay"] = log_decay(*steps)
        if extra and kind != "delta":
            options["key_value_seq_lengths"] = jnp.arange(batch) * 3
        if has_start:
            wider = columns + options.get("normalize", False)
            floats["initial_state"] = normal(heads, width, wider)
        named = extra * "decay", has_start * "start", returns_state * "state"
        name = ", ".join([kind, *filter(None, named), f"{length}", dtype.__name__])
        yield name, (floats, options)


OPTIONS = dict(every_option())


def cotangent(floats):
    query, value = floats["query"], floats["value"]
    return (
        jnp.cos(jnp.arange(query[..., 0].size * value.shape[-1]))
        .reshape(*query.shape[:-1], value.shape[-1])
        .astype(query.dtype)
    )


@pytest.mark.parametrize("case", OPTIONS)
def test_forward_and_backward_lower_for_tpu(case):
    floats, options = OPTIONS[case]
    assert kernels_for_tpu(partial(value_and_gradients, **options), floats, cotangent(floats)) == 2


LONG = make_inputs(2, 130, 2, 16, 16) | dict(beta=beta(130, 2), log_decay=log_decay(2))


@pytest.mark.parametrize("precision", ["bfloat16", "high", "highest"])
def test_every_matmul_precision_lowers(precision):
    with jax.default_matmul_precision(precision):
        assert kernels_for_tpu(value_and_gradients, LONG, cotangent(LONG)) == 2


def test_lowers_inside_shard_map():
    mesh = AbstractMesh((2,), ("batch",), axis_types=(AxisType.Auto,))
    rows, shared = PartitionSpec("batch"), PartitionSpec()
    specs = dict(query=rows, key=rows, value=rows, log_decay=shared, initial_state=shared)

    @partial(jax.shard_map, mesh=mesh, in_specs=(specs, rows, shared), out_specs=(rows, specs))
    def run(floats, d_out, length):
        lengths = jnp.broadcast_to(length, d_out.shape[:1])
        return value_and_gradients(floats, d_out, key_value_seq_lengths=lengths)

    floats = make_inputs(2, 9, 2, 20, 12)
    floats |= dict(log_decay=log_decay(2), initial_state=normal(2, 20, 12))
    assert kernels_for_tpu(run, floats, cotangent(floats), jnp.asarray([3])) == 2


def positive(floats):
    """Sums of weights are then not near 0."""
    return {name: jnp.abs(a) + 0.1 if name != "value" else a for name, a in floats.items()}


AGREES = {
    "sums": (
        make_inputs(2, 9, 2, 8, 5)
        | dict(log_decay=4 * log_decay(9, 2), initial_state=normal(2, 8, 5)),
        dict(return_state=True, key_value_seq_lengths=jnp.asarray([0, 6])),
    ),
    "normalised": (
        positive(make_inputs(2, 9, 2, 8, 5) | dict(initial_state=normal(2, 2, 8, 6)))
        | dict(log_decay=log_decay(2)),
        dict(normalize=True, return_state=True, key_value_seq_lengths=jnp.asarray([4, 9])),
    ),
    "all, normalised": (
        positive(make_inputs(2, 3, 2, 8, 5, key_length=7)),
        dict(normalize=True, is_causal=False, key_value_seq_lengths=jnp.asarray([0, 9])),
    ),
    "delta": (
        make_inputs(2, 13, 2, 8, 5)
        | dict(beta=beta(13, 2), log_decay=log_decay(2, 13, 2), initial_state=normal(2, 8, 5)),
        dict(return_state=True),
    ),
    "delta, bfloat16": (make_inputs(2, 8, 2, 8, 5, dtype=BF16) | dict(beta=beta(2, 8, 2)), {}),
}


@pytest.mark.parametrize("case", AGREES)
def test_agrees_with_the_reference(case):
    floats, options = AGREES[case]
    run = compiled(partial(value_and_gradients, **options), static_argnums=2)
    ours, theirs = (run(floats, cotangent(floats), form) for form in ("pallas", "reference"))
    tolerance = 0.03 if floats["query"].dtype == BF16 else 3e-6
    jax.tree.map(lambda a, b: assert_close(a, b, atol=tolerance * jnp.abs(b).max()), ours, theirs)


def test_many_steps_with_keys_alike():
    # Sums of powers of the system have no digit left here.
    key = normal(8) + normal(1, 100, 1, 8) / 20
    key /= jnp.linalg.norm(key, axis=-1, keepdims=True)
    arrays = normal(1, 100, 1, 8), key, normal(1, 100, 1, 3), beta(1, 100, 1) + 0.5
    run = compiled(lambda form: delta_rule(*arrays, implementation=form), static_argnums=0)
    assert_close(run("pallas"), run("reference"), atol=3e-5)


def test_forgotten_steps_get_no_gradient():
    floats = make_inputs(1, 6, 1, 4, 4) | dict(log_decay=log_decay(6, 1))
    floats["log_decay"] = floats["log_decay"].at[3].set(-jnp.inf)
    d_out = cotangent(floats).at[:, :3].set(0)
    gradients = compiled(value_and_gradients)(floats, d_out)[1]
    for name in ("key", "value"):
        np.testing.assert_array_equal(gradients[name][:, :3], 0)
        assert np.abs(gradients[name][:, 3:]).min() > 0
    np.testing.assert_array_equal(gradients["log_decay"][:4], 0)
    assert np.isfinite(gradients["log_decay"]).all()


def test_what_is_past_the_lengths_may_be_nan():
    clean = positive(make_inputs(2, 6, 2, 4, 3)) | dict(log_decay=log_decay(2, 6, 2))
    dirty = {n: a if n == "query" else a.at[:, 4:].set(jnp.nan) for n, a in clean.items()}
    options = dict(normalize=True, return_state=True, key_value_seq_lengths=jnp.asarray([0, 4]))
    run = compiled(partial(value_and_gradients, **options))
    result = run(dirty, cotangent(clean))
    assert_close(result, run(clean, cotangent(clean)), atol=0)
    np.testing.assert_array_equal(result[0][0][0], 0)
    for name in ("key", "value", "log_decay"):
        np.testing.assert_array_equal(result[1][name][0], 0)
        np.testing.assert_array_equal(result[1][name][1, 4:], 0)


def test_what_is_broken_reaches_those_who_see_it_alone():
    floats = make_inputs(1, 6, 2, 4, 3) | dict(beta=beta(1, 6, 2), log_decay=log_decay(1, 6, 2))
    run = compiled(partial(value_and_gradients, return_state=True))
    for name in ("key", "value", "beta", "log_decay"):
        at = (0, 3, 1, 0)[: floats[name].ndim]
        broken = floats | {name: floats[name].at[at].set(jnp.inf)}
        (out, state), gradients = run(broken, cotangent(floats))
        assert np.isnan(out[0, 3:, 1]).all() and np.isnan(state[0, 1]).all()
        assert np.isfinite(out[0, :3]).all() and np.isfinite(out[0, :, 0]).all()
        assert gradients[name][at] == 0 and np.isfinite(state[0, 0]).all()
    _, gradients = run(floats, cotangent(floats).at[0, 3, 1, 0].set(jnp.nan))
    for name, seen in (("query", [3]), ("key", [0, 1, 2, 3]), ("value", [0, 1, 2, 3])):
        expected = np.zeros((6, 2), bool)
        expected[seen, 1] = True
        np.testing.assert_array_equal(np.isnan(gradients[name]).any(axis=(0, -1)), expected)


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
            linear_attention(**arrays, is_causal=True, implementation="pallas")


@pytest.mark.parametrize("length, fits", [(512, True), (640, False)])
def test_what_does_not_fit_on_chip_is_refused(length, fits):
    arrays = [jax.ShapeDtypeStruct((1, length, 1, 64), BF16)] * 3
    arrays += [jax.ShapeDtypeStruct((1, length, 1), jnp.float32)]
    run = partial(delta_rule, implementation="pallas")
    with targeting("tpu"):
        if fits:
            assert jax.eval_shape(run, *arrays).shape == arrays[2].shape
            return
        with pytest.raises(NotImplementedError, match="MiB on chip"):
            jax.eval_shape(run, *arrays)


@pytest.mark.parametrize("shape, index", [((1, 1, 1, 7), (0, 0)), ((4, 6, 5, 7), (3, 2))])
def test_an_axis_of_one_is_read_by_all_programs(shape, index):
    # Interpreted, an index out of range is clamped and goes unseen; on a TPU it is not.
    block = pallas._block(jax.ShapeDtypeStruct(shape, jnp.float32))
    assert block.index_map(3, 2) == (*index, 0, 0)


def test_vmap_of_one_operand_and_of_the_cotangent_alone():
    floats = make_inputs(1, 4, 1, 3, 2)
    betas = beta(3, 1, 4, 1)

    def jacobian(implementation, beta):
        run = lambda query: delta_rule(
            query, floats["key"], floats["value"], beta, implementation=implementation
        )
        return jax.jacrev(run)(floats["query"])

    mapped = compiled(jax.vmap(jacobian, in_axes=(None, 0)), static_argnums=0)
    assert_close(mapped("pallas", betas), mapped("reference", betas), atol=3e-6)
    single = compiled(jacobian, static_argnums=0)
    assert_close(single("pallas", betas[0]), single("reference", betas[0]), atol=3e-6)

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

from icl.kernels import delta_rule, linear_attention, targeting

# Compiling takes longest, and takes less without optimising.
compiled = partial(jax.jit, compiler_options={"xla_backend_optimization_level": 0})
RNG = np.random.default_rng(0)
BF16, F16 = jnp.bfloat16, jnp.float16


def normal(*shape, scale=1.0, dtype=jnp.float32):
    return jnp.asarray(scale * RNG.normal(size=shape), dtype)


def make_inputs(batch, length, heads, width, columns, *, key_length=None, dtype=jnp.float32):
    steps = batch, key_length or length, heads
    shapes = dict(query=(batch, length, heads, width), key=(*steps, width), value=(*steps, columns))
    return {name: normal(*shape, scale=0.5, dtype=dtype) for name, shape in shapes.items()}


def beta(*shape):
    return jnp.asarray(RNG.uniform(0, 1, shape), jnp.float32)


def log_decay(*shape, scale=1.0):
    return jnp.asarray(-scale * RNG.exponential(size=shape), jnp.float32)


def value_and_gradients(floats, d_out, implementation="pallas", **options):
    attend = delta_rule
    if "beta" not in floats:
        attend = partial(linear_attention, is_causal=True)
    attend = partial(attend, implementation=implementation, **options)
    result, pull_back = jax.vjp(lambda floats: attend(**floats), floats)
    d_state = jax.tree.map(jnp.cos, result[1:]) if isinstance(result, tuple) else ()
    cotangent = (d_out, *d_state) if d_state else d_out
    return result, pull_back(cotangent)[0]


# Tests that share shapes and options share what is compiled.
run = compiled(
    value_and_gradients,
    static_argnames=("implementation", "is_causal", "normalize", "return_state"),
)


def kernels_for_tpu(function, *arguments):
    """How many kernels there are in what is lowered for TPU."""
    with targeting("tpu"):
        traced = jax.jit(function).trace(*arguments)
    return traced.lower(lowering_platforms=("tpu",)).as_text().count("@tpu_custom_call")


def assert_close(ours, theirs, **tolerance):
    wide = lambda array: np.asarray(array, np.float32)
    compare = partial(np.testing.assert_allclose, **tolerance)
    jax.tree.map(lambda a, b: compare(wide(a), wide(b)), ours, theirs)


def lowered():
    """Names and `(inputs, options)` of kinds and what else is given, dtypes and awkward shapes."""
    kinds = {
        "sums": {},
        "normalised": dict(normalize=True),
        "all": dict(is_causal=False),
        "all, normalised": dict(is_causal=False, normalize=True),
        "delta": {},
    }
    shapes = [(2, 9, 2, 20, 12), (2, 16, 1, 8, 8), (1, 1, 2, 4, 1), (2, 5, 1, 1, 130)]
    variants = zip(itertools.cycle((jnp.float32, BF16, F16)), itertools.cycle(shapes))
    for given, kind in itertools.product(("nothing", "start", "state", "everything"), kinds):
        if kind not in ("sums", "delta") and given in ("start", "state"):
            continue
        dtype, (batch, length, heads, width, columns) = next(variants)
        options = kinds[kind] | dict(return_state=given in ("state", "everything"))
        causal, steps = options.get("is_causal", True), (batch, length, heads)
        floats = make_inputs(batch, length, heads, width, columns, dtype=dtype)
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


LOWERED = dict(lowered())


def cotangent(floats):
    query, value = floats["query"], floats["value"]
    shape = *query.shape[:-1], value.shape[-1]
    return jnp.asarray(np.cos(np.arange(np.prod(shape))).reshape(shape), query.dtype)


@pytest.mark.parametrize("case", LOWERED)
def test_forward_and_backward_lower_for_tpu(case):
    floats, options = LOWERED[case]
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
        | dict(log_decay=log_decay(9, 2, scale=4), initial_state=normal(2, 8, 5)),
        dict(return_state=True, key_value_seq_lengths=np.array([0, 6])),
    ),
    "normalised": (
        positive(make_inputs(2, 9, 2, 8, 5) | dict(initial_state=normal(2, 2, 8, 6)))
        | dict(log_decay=log_decay(2, 9, 2)),
        dict(normalize=True, return_state=True, key_value_seq_lengths=np.array([4, 9])),
    ),
    "all, normalised": (
        positive(make_inputs(2, 3, 2, 8, 5, key_length=7)),
        dict(normalize=True, is_causal=False, key_value_seq_lengths=np.array([0, 9])),
    ),
    "delta": (
        make_inputs(2, 13, 2, 8, 5)
        | dict(beta=beta(13, 2), log_decay=log_decay(2, 13, 2), initial_state=normal(2, 8, 5)),
        dict(return_state=True),
    ),
}


@pytest.mark.parametrize("case", AGREES)
def test_agrees_with_the_reference(case):
    floats, options = AGREES[case]
    ours, theirs = (
        run(floats, cotangent(floats), implementation=form, **options)
        for form in ("pallas", "reference")
    )
    jax.tree.map(lambda a, b: assert_close(a, b, atol=3e-6 * np.abs(b).max()), ours, theirs)


def test_bfloat16_agrees_with_the_reference_in_float32():
    floats, options = AGREES["delta"]
    names = "query", "key", "value"
    narrow = floats | {name: floats[name].astype(BF16) for name in names}
    wide = floats | {name: narrow[name].astype(jnp.float32) for name in names}
    d_out = cotangent(narrow)
    ours = run(narrow, d_out, implementation="pallas", **options)
    theirs = run(wide, d_out.astype(jnp.float32), implementation="reference", **options)
    assert ours[0][0].dtype == ours[1]["key"].dtype == BF16
    jax.tree.map(lambda a, b: assert_close(a, b, atol=0.03 * np.abs(b).max()), ours, theirs)


def test_many_steps_with_keys_alike():
    # Sums of powers of the system have no digit left here.
    key = normal(8) + normal(1, 100, 1, 8) / 20
    key /= jnp.linalg.norm(key, axis=-1, keepdims=True)
    arrays = normal(1, 100, 1, 8), key, normal(1, 100, 1, 3), beta(1, 100, 1) + 0.5
    attend = compiled(lambda form: delta_rule(*arrays, implementation=form), static_argnums=0)
    assert_close(attend("pallas"), attend("reference"), atol=3e-5)


def test_forgotten_steps_get_no_gradient():
    floats, options = AGREES["sums"]
    floats = floats | dict(log_decay=floats["log_decay"].at[3].set(-jnp.inf))
    options = options | dict(key_value_seq_lengths=np.array([9, 9]))
    d_out = cotangent(floats).at[:, :3].set(0)
    gradients = run(floats, d_out, implementation="pallas", **options)[1]
    for name in ("key", "value"):
        np.testing.assert_array_equal(gradients[name][:, :3], 0)
        assert np.abs(gradients[name][:, 3:]).min() > 0
    np.testing.assert_array_equal(gradients["initial_state"], 0)
    np.testing.assert_array_equal(gradients["log_decay"][:4], 0)
    assert np.isfinite(gradients["log_decay"]).all()


def test_what_is_past_the_lengths_may_be_nan():
    floats, options = AGREES["normalised"]
    clean = floats | dict(initial_state=jnp.zeros_like(floats["initial_state"]))
    steps = {n: clean[n].at[:, 4:].set(jnp.nan) for n in ("key", "value", "log_decay")}
    options = options | dict(key_value_seq_lengths=np.array([0, 4]))
    result, expected = (
        run(given, cotangent(clean), implementation="pallas", **options)
        for given in (clean | steps, clean)
    )
    assert_close(result, expected, atol=0)
    np.testing.assert_array_equal(result[0][0][0], 0)
    for name in steps:
        np.testing.assert_array_equal(result[1][name][0], 0)
        np.testing.assert_array_equal(result[1][name][1, 4:], 0)


def test_what_is_broken_reaches_those_who_see_it_alone():
    floats, options = AGREES["delta"]
    run_pallas = partial(run, implementation="pallas", **options)
    places = dict(key=(0, 3, 1, 0), value=(0, 3, 1, 0), beta=(3, 1), log_decay=(0, 3, 1))
    for name, at in places.items():
        broken = floats | {name: floats[name].at[at].set(jnp.inf)}
        (out, state), gradients = run_pallas(broken, cotangent(floats))
        assert np.isnan(out[0, 3:, 1]).all() and np.isnan(state[0, 1]).all()
        assert np.isfinite(out[0, :3]).all() and np.isfinite(out[0, :, 0]).all()
        assert gradients[name][at] == 0 and np.isfinite(state[0, 0]).all()
    _, gradients = run_pallas(floats, cotangent(floats).at[0, 3, 1, 0].set(jnp.nan))
    for name, seen in (("query", [3]), ("key", [0, 1, 2, 3]), ("value", [0, 1, 2, 3])):
        expected = np.zeros((2, 13, 2), bool)
        expected[0, seen, 1] = True
        np.testing.assert_array_equal(np.isnan(gradients[name]).any(axis=-1), expected)


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


def test_vmap_of_one_operand_and_of_the_cotangent_alone():
    floats = make_inputs(1, 4, 1, 3, 2)
    betas = beta(3, 1, 4, 1)

    def jacobian(implementation, beta):
        run = lambda query: delta_rule(
            query, floats["key"], floats["value"], beta, implementation=implementation
        )
        return jax.jacrev(run)(floats["query"])

    mapped = compiled(jax.vmap(jacobian, in_axes=(None, 0)), static_argnums=0)
    expected = mapped("reference", betas)
    assert_close(mapped("pallas", betas), expected, atol=3e-6)
    single = compiled(jacobian, static_argnums=0)
    assert_close(single("pallas", betas[0]), expected[0], atol=3e-6)

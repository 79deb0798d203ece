"""Every implementation of attention against a float64 definition, with all options together."""

import contextlib
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl.kernels import (
    attention_weights,
    dot_product_attention,
    packed_dot_product_attention,
)
from icl.kernels.attention import launch
from icl.kernels.plans import forcing

from . import oracle
from .implementations import ALL, FUSED, ON_GPU, draw_inputs

EDGES = [1, 2, 15, 16, 17, 63, 64, 65, 127, 128, 129, 257]
TILED = launch.Plan(
    "tiled", launch.Config(32, 32, 4), launch.Config(32, 16, 4), launch.Config(16, 32, 4)
)


def draw_length(rng, longest):
    """One of EDGES as often as any other length."""
    edges = [n for n in EDGES if n <= longest]
    return int(rng.choice(edges) if rng.random() < 0.5 else rng.integers(1, longest + 1))


SPLIT = launch.Plan("row", launch.Config(16, 16, 1), launch.Config(16, 32, 2))


def form_of(implementation):
    """The implementation to ask for, and a context in which it is taken.

    "tiled" is Triton's, and "split" its row form with several tiles, for up to 64 keys.
    """
    if implementation in ("tiled", "split"):
        plan = TILED if implementation == "tiled" else SPLIT
        return "triton", functools.partial(forcing, plan)
    return implementation, contextlib.nullcontext


def runner(implementation, **options):
    """A function that returns the output and the gradients of all arrays, the bias last."""
    name, context = form_of(implementation)

    @jax.jit
    def run(d_out, arrays):
        attend = lambda *a: dot_product_attention(*a, implementation=name, **options)
        out, pull_back = jax.vjp(attend, *arrays)
        return [out, *pull_back(d_out)]

    def run_in_context(arrays, d_out):
        with context():
            return [np.asarray(result, np.float64) for result in run(d_out, arrays)]

    return run_in_context


def results(implementation, arrays, d_out, **options):
    return runner(implementation, **options)(arrays, d_out)


def assert_as_exact_as(name, baseline, ours, exact, dtype, score=0.0):
    """The root mean square error is at most twice that of the baseline, plus two roundings.

    A gradient of 0 is a difference of larger numbers, which kernels hold in float32. The two forms
    in XLA, each the baseline of the other, round them to the dtype. The XLA form may have four
    times the error of the definition: it rounds the gradients of scores, as every kernel does.
    A rounding of the largest `score` changes its probability in proportion. The gradient of a bias,
    the last result, is a sum over the axes along which the bias was broadcast.
    """
    size = lambda array: np.sqrt(np.mean(array**2))
    times = 4 if name == "xla" else 2
    eps, single = float(jnp.finfo(dtype).eps), float(jnp.finfo(jnp.float32).eps)
    inside = eps if name in ("reference", "xla") else max(eps**2, single)
    slack = 2 * (inside + single * score) * max(size(truth) for truth in exact)
    slack += float(jnp.finfo(dtype).smallest_subnormal)
    batch, length, heads, _ = exact[0].shape
    scores = batch * heads * length * exact[2].shape[1]
    for i, (theirs, mine, truth) in enumerate(zip(baseline, ours, exact, strict=True)):
        terms = scores / truth.size if i == 4 else 1
        allowed = times * size(theirs - truth) + slack * np.sqrt(terms) + 2 * eps * size(truth)
        assert size(mine - truth) <= allowed, f"{name}, result {i}"


def spoil(arrays, d_out, **options):
    """Puts NaN or infinity in hidden keys and values, and in blind queries and their cotangents."""
    query, key, value, *bias = arrays
    batch, length, heads, _ = query.shape
    key_length, key_heads = key.shape[1:3]
    seen = oracle.allowed_pairs((batch, heads, length, key_length), **options)
    blind = ~seen.any(-1).swapaxes(1, 2)[..., None]
    of_groups = seen.any(2).reshape(batch, key_heads, -1, key_length)
    hidden = ~of_groups.any(2).swapaxes(1, 2)[..., None]
    fill = lambda array, where, bad: np.where(where, np.asarray(bad, array.dtype), array)
    arrays = [fill(query, blind, np.nan), fill(key, hidden, np.nan), fill(value, hidden, np.inf)]
    return [*arrays, *bias], fill(d_out, blind, np.nan)


def draw_options(rng, batch, heads, length, key_length, dtype):
    """Options of a call, and its bias or None."""
    options, bias = {}, None
    shape = (batch, heads, length, key_length)
    flip = lambda: rng.random() < 0.5
    cut = lambda: tuple(n if flip() else 1 for n in shape)

    def draw_lengths(longest):
        lengths = rng.integers(0, longest + 1, batch)
        lengths[-1] = max(lengths[-1], (longest + 1) // 2)  # not all of them 0
        return lengths

    if flip():
        options["is_causal"] = True
    if flip():
        options["mask"] = rng.random(cut()) < 0.7
    if flip():
        bias = rng.normal(size=cut())
        # A row of the lowest number gives the mean of the values; the highest selects one value.
        lowest, highest = (float(getattr(jnp.finfo(dtype), end)) for end in ("min", "max"))
        bias[..., -1, :] = lowest
        bias[:, :, bias.shape[2] // 2, -1] = highest
        bias = jnp.asarray(bias, dtype)
    if flip():
        options["key_value_seq_lengths"] = draw_lengths(key_length)
    if flip():
        options["query_seq_lengths"] = draw_lengths(length)
    if flip():
        options["local_window_size"] = [0, 3, (40, 2), (1, 70)][rng.integers(4)]
    return options, bias


@pytest.mark.parametrize("case", range(12 if ON_GPU else 9))
def test_all_options_together(case):
    """Every implementation on the same call, whose lengths, heads and options are drawn.

    Every dtype meets every size, every scale and every width occurs, most calls have more keys than
    queries, and entries that nothing reads are not finite.
    """
    # With these seeds every option occurs, and heads that share a tile each have a mask.
    rng = np.random.default_rng(245 + case)
    dtype = [jnp.float32, jnp.bfloat16, jnp.float16][case % 3]
    longest = [20, 70, 140][case // 3 % 3]
    width = [8, 64, 128, 16, 1, 100, 24, 32][case % 8]
    length, key_length = (draw_length(rng, longest) for _ in range(2))
    if case % 4:
        length, key_length = sorted((length, key_length))
    batch, key_heads, groups = (2, rng.integers(1, 3), 4) if longest == 20 else (1, 1, 3)
    heads = key_heads * rng.integers(1, groups)
    *arrays, d_out = draw_inputs(case, batch, length, key_length, heads, key_heads, width, dtype)
    options, bias = draw_options(rng, batch, heads, length, key_length, dtype)
    options |= [{}, dict(scale=0.3), dict(scale=0.0), dict(scale=100.0)][case % 4]
    if bias is not None:
        arrays.append(bias)
    arrays, d_out = spoil(arrays, d_out, **options)
    exact = oracle.attention(*arrays, d_out=d_out, **options)
    assert exact[0].any(), "nothing is seen"
    names = [*ALL, "tiled"] + ["split"] * (key_length <= 64)
    if not ON_GPU:
        # By turns, each in all dtypes: one has no tiles, the other is a kernel of the rest.
        names = [name for name in names if name != ("pallas" if case % 2 else "split")]
    ours = {name: results(name, arrays, d_out, **options) for name in names}
    for name, mine in ours.items():
        baseline = ours["reference" if name == "xla" else "xla"]
        score = options.get("scale", 1) * 4 * width
        assert_as_exact_as(name, baseline, mine, exact, dtype, score)


@pytest.mark.parametrize("dtype", ["float16", "bfloat16"])
def test_half_precision_at_its_limits(dtype):
    """Three batch rows: saturated, keys and values with a large common part, small gradients."""
    *arrays, d_out = draw_inputs(0, 3, 5, 40, 2, 1, 16)
    query, key, value, d_out = map(np.asarray, (*arrays, d_out))
    row = np.arange(3)[:, None, None, None]
    arrays = [query / np.where(row == 0, 1, 50), key + 4 * (row == 1), value + 8 * (row == 1)]
    arrays = [array.astype(jnp.dtype(dtype)) for array in arrays]
    d_out = (d_out * np.where(row == 2, 1e-6, 1)).astype(jnp.dtype(dtype))
    options = dict(scale=100.0)
    exact = oracle.attention(*arrays, d_out=d_out, **options)
    baseline = results("xla", arrays, d_out, **options)
    ours = {name: results(name, arrays, d_out, **options) for name in (*FUSED, "tiled")}
    for name, mine in ours.items():
        for i in range(3):
            of_row = ([array[i : i + 1] for array in tree] for tree in (baseline, mine, exact))
            assert_as_exact_as(f"{name}, row {i}", *of_row, dtype)


@pytest.mark.parametrize(
    "length, key_length",
    [(1, 2), (15, 16), (16, 17), (17, 63), (63, 64), (65, 127), (127, 128), (129, 257), (257, 1)],
)
def test_lengths_around_the_tiles(length, key_length):
    *arrays, d_out = draw_inputs(length, 1, length, key_length, 1, 1, 16)
    options = dict(is_causal=length % 2 == 0)
    arrays, d_out = spoil(arrays, d_out, **options)
    exact = oracle.attention(*arrays, d_out=d_out, **options)
    baseline = results("xla", arrays, d_out, **options)
    # Longer rows are tiled anyway, and Pallas has no tiles.
    names = ["triton", "tiled"] if key_length <= 128 else FUSED
    ours = {name: results(name, arrays, d_out, **options) for name in names}
    for name, mine in ours.items():
        assert_as_exact_as(name, baseline, mine, exact, jnp.float32)


@pytest.mark.parametrize("is_causal", [False, True])
def test_many_tiles_of_queries_and_several_rows_of_a_program(is_causal):
    *arrays, d_out = draw_inputs(0, 2, 100, 40, 2, 1, 16)
    options = dict(is_causal=is_causal)
    expected = results("xla", arrays, d_out, **options)
    config = launch.Config(16, 16, 1, rows=2)
    with forcing(launch.Plan("row", config, config)):
        ours = results("triton", arrays, d_out, **options)
    for mine, theirs in zip(ours, expected):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("implementation", ["reference", "xla"])
def test_float64_is_computed_in_float64(implementation):
    with jax.enable_x64(True):
        *arrays, d_out = draw_inputs(0, 2, 9, 9, 2, 1, 8, jnp.float64)
        ours = results(implementation, arrays, d_out, is_causal=True)
    exact = oracle.attention(*arrays, d_out=d_out, is_causal=True)
    for mine, truth in zip(ours, exact):
        np.testing.assert_allclose(mine, truth, atol=1e-13)


@pytest.mark.parametrize("is_causal", [False, True])
@pytest.mark.parametrize("implementation", [*ALL, "split"])
def test_a_bias_of_minus_infinity_for_every_key(implementation, is_causal):
    """The query gives 0 with gradient 0, and other queries are unaffected."""
    *arrays, d_out = draw_inputs(0, 1, 5, 5, 2, 1, 8)
    bias = jnp.zeros((5, 5)).at[2].set(-jnp.inf)
    ours = results(implementation, (*arrays, bias), d_out, is_causal=is_causal)
    out, d_query, d_key, d_value, d_bias = ours
    for array in (out[:, 2], d_query[:, 2], d_bias[2]):
        np.testing.assert_array_equal(array, 0)
    mask = dict(mask=np.arange(5)[:, None] != 2)
    exact = oracle.attention(*arrays, 0 * bias[0], d_out=d_out, is_causal=is_causal, **mask)
    for mine, theirs in zip((out, d_query, d_key, d_value, d_bias.sum(0)), exact):
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


HIDING = {
    "causal": (dict(is_causal=True), np.s_[:, 9:]),
    "lengths": (dict(key_value_seq_lengths=np.array([7, 5])), np.s_[:, 7:]),
    "mask": (dict(mask=np.arange(24) % 3 != 1), np.s_[:, 1::3]),
    # The last query sees keys up to 20.
    "window": (dict(local_window_size=(4, 1)), np.s_[:, 21:]),
}


@pytest.mark.parametrize("hiding", HIDING)
@pytest.mark.parametrize("implementation", ["xla", *FUSED, "tiled", "split"])
def test_what_is_hidden_never_leaks(implementation, hiding):
    """NaN or infinity in keys and values changes no bit for queries that do not see it."""
    options, hidden = HIDING[hiding]
    query, key, value, d_out = draw_inputs(3, 2, 20, 24, 2, 1, 8)
    seen_by = oracle.allowed_pairs((2, 2, 20, 24), **options)
    touched = np.zeros((2, 24, 1, 8), bool)
    touched[hidden] = True
    blind = ~(seen_by & touched[:, None, None, :, 0, 0]).any(-1).swapaxes(1, 2)[..., None]
    # Only results of the spared queries are compared; the others see NaN.
    d_out = jnp.where(blind, d_out, 0)
    broken = jnp.array([jnp.nan, jnp.inf])[:, None, None, None]  # one in each batch row
    bad = [jnp.where(touched, broken, array) for array in (key, value)]
    run = runner(implementation, **options)
    clean, found = run([query, key, value], d_out), run([query, *bad], d_out)
    spared = np.broadcast_to(blind, clean[0].shape)
    np.testing.assert_array_equal(found[0][spared], clean[0][spared])
    np.testing.assert_array_equal(found[1][spared], clean[1][spared])
    if blind.all():
        for mine, theirs in zip(found[2:], clean[2:]):
            np.testing.assert_array_equal(mine, theirs)
    else:
        assert np.isnan(found[0][~spared]).all()


DTYPES = ["float32", "bfloat16", "float16"]


FORMS = [(form, dtype) for form in ("triton", "split", "tiled") for dtype in DTYPES]
if not ON_GPU:
    FORMS = [*FORMS[:3], ("split", "bfloat16"), ("tiled", "float32"), ("tiled", "float16")]


@pytest.mark.parametrize("form, dtype", FORMS)
def test_a_single_broken_number_is_found(form, dtype):
    """NaN or infinity anywhere in a key or value spoils the queries that see it, of its head."""
    query, key, value, d_out = draw_inputs(0, 3, 40, 40, 2, 2, 8, jnp.dtype(dtype))
    run = runner(form, is_causal=True)
    clean = run([query, key, value], d_out)
    # The first number, one in the middle, and the last one that any query but the last sees; each
    # meets each kind of broken number in one dtype.
    places = [(0, 0, 0, 0), (1, 17, 1, 3), (2, 38, 1, 7)]
    kinds = 2 * [("key", np.nan), ("value", np.inf), ("key", -np.inf)]
    broken = {"key": key, "value": value}
    for place, (spoiled, number) in zip(places, kinds[DTYPES.index(dtype) :]):
        broken[spoiled] = broken[spoiled].at[place].set(number)
    found = run([query, *broken.values()], d_out)
    seen = np.zeros(clean[0].shape, bool)
    for b, t, n, _ in places:
        seen[b, t:, n] = True
    for mine, right in zip(found[:2], clean[:2]):
        np.testing.assert_array_equal(np.isnan(mine), seen)
        np.testing.assert_array_equal(mine[~seen], right[~seen])
    for mine in found[2:]:
        for b, t, n, _ in places:
            assert np.isnan(mine[b, t, n]).any(), "the broken key itself"
            assert np.isfinite(np.delete(mine[b, :, n], t, 0)).all(), "other keys"
            assert np.isfinite(mine[b, :, 1 - n]).all(), "the other head"


@pytest.mark.parametrize("form", ["triton", "split"])
def test_heads_that_share_a_tile_do_not_spoil_each_other(form):
    """Nothing is hidden here, so NaN spreads as in the formula, within its own head."""
    query, key, value, d_out = draw_inputs(0, 1, 5, 20, 4, 4, 4)
    run = runner(form)
    clean = run([query, key, value], d_out)
    in_key = run([query, key.at[0, 3, 1, 2].set(np.nan), value], d_out)
    in_value = run([query, key, value.at[0, 3, 1, 2].set(np.nan)], d_out)
    others = [0, 2, 3]
    for found in (in_key, in_value):
        for mine, right in zip(found, clean):
            np.testing.assert_array_equal(mine[:, :, others], right[:, :, others])
    assert np.isnan(in_key[0][:, :, 1]).all()
    np.testing.assert_array_equal(np.isnan(in_value[0][0, 0, 1]), np.arange(4) == 2)


@pytest.mark.parametrize("implementation", [*ALL, "tiled", "split"])
def test_padding_may_hold_anything(implementation):
    """Past the lengths query, key, value and cotangent are NaN, and gradients are unaffected."""
    lengths = np.array([0, 5, 20])
    options = dict(query_seq_lengths=lengths, key_value_seq_lengths=lengths[::-1].copy())
    query, key, value, d_out = draw_inputs(4, 3, 20, 20, 2, 2, 8)
    past = lambda counts: np.arange(20)[None, :, None, None] >= counts[:, None, None, None]
    rows, columns = past(lengths), past(lengths[::-1])
    fill = lambda array, where: jnp.where(where, jnp.nan, array)
    run = runner(implementation, **options)
    clean = run([query, key, value], d_out)
    bad = [fill(query, rows), fill(key, columns), fill(value, columns)]
    poisoned = run(bad, fill(d_out, rows))
    for mine, theirs in zip(poisoned, clean):
        np.testing.assert_array_equal(mine, theirs)
    np.testing.assert_array_equal(clean[0][np.broadcast_to(rows, clean[0].shape)], 0)


@pytest.mark.parametrize("form", ["triton", "split", "tiled"])
def test_an_infinite_cotangent_does_not_reach_the_bias_of_hidden_pairs(form):
    *arrays, d_out = draw_inputs(0, 1, 20, 20, 2, 2, 8)
    arrays.append(jnp.zeros((2, 20, 20)))
    d_bias = results(form, arrays, d_out.at[0, 5, 0, 0].set(jnp.inf), is_causal=True)[-1]
    np.testing.assert_array_equal(d_bias[~np.tril(np.ones((2, 20, 20), bool))], 0)


@pytest.mark.parametrize("implementation", [*ALL, "tiled", "split"])
def test_a_query_that_sees_nothing_is_zero_with_zero_gradient(implementation):
    *arrays, d_out = draw_inputs(0, 1, 4, 4, 2, 2, 8)
    mask = np.ones((4, 4), bool)
    mask[2] = False
    out, d_query, d_key, _ = results(implementation, arrays, d_out, mask=mask)
    np.testing.assert_array_equal(out[0, 2], 0)
    np.testing.assert_array_equal(d_query[0, 2], 0)
    assert np.isfinite(d_key).all() and np.abs(d_query[0, 1]).max() > 0


@pytest.mark.parametrize("implementation", [*FUSED, "tiled", "split"])
def test_two_runs_give_the_same_bits(implementation):
    # Interpreters are slow.
    batch, heads = (4, 4) if ON_GPU else (1, 2)
    *arrays, d_out = draw_inputs(0, batch, 33, 40, heads, heads // 2, 16, jnp.bfloat16)
    bias = np.random.default_rng(0).normal(size=(heads, 33, 40))
    arrays.append(jnp.asarray(bias, jnp.bfloat16))
    run = runner(implementation, is_causal=True)
    first, second = (run(arrays, d_out) for _ in range(2))
    for mine, theirs in zip(first, second):
        np.testing.assert_array_equal(mine, theirs)


@pytest.mark.parametrize("implementation", [*ALL, "tiled", "split"])
def test_packed_is_the_same(implementation):
    query, key, value, d_out = draw_inputs(0, 2, 17, 17, 2, 2, 8)
    qkv = jnp.stack([query, key, value], axis=2)
    apart = results(implementation, [query, key, value], d_out, is_causal=True)
    name, context = form_of(implementation)
    options = dict(is_causal=True, implementation=name)

    @jax.jit
    def run(qkv, d_out):
        out, pull_back = jax.vjp(lambda x: packed_dot_product_attention(x, **options), qkv)
        return out, *pull_back(d_out)

    with context():
        out, d_qkv = run(qkv, d_out)
    together = [out, *(d_qkv[:, :, i] for i in range(3))]
    for mine, theirs in zip(together, apart):
        np.testing.assert_allclose(mine, theirs, atol=1e-6)


@pytest.mark.parametrize("implementation", FUSED)
def test_gradient_of_a_bias_that_rows_share(implementation, monkeypatch):
    """The row form sums it on chip over groups of batch rows, which vmap must not mix."""
    monkeypatch.setattr(launch, "FEWEST_PROGRAMS", 2)
    *arrays, d_out = draw_inputs(0, 6, 5, 7, 2, 2, 8)
    bias = jnp.asarray(np.random.default_rng(1).normal(size=(2, 5, 7)), jnp.float32)
    options = dict(is_causal=True)
    ours = results(implementation, [*arrays, bias], d_out, **options)
    exact = oracle.attention(*arrays, bias, d_out=d_out, **options)
    np.testing.assert_allclose(ours[-1], exact[-1], atol=1e-5)

    def d_bias(query, key, value, d_out):
        attend = lambda b: dot_product_attention(
            query, key, value, b, implementation=implementation, **options
        )
        return jax.vjp(attend, bias)[1](d_out)[0]

    parts = jax.vmap(d_bias)(*(array.reshape(3, 2, *array.shape[1:]) for array in (*arrays, d_out)))
    first = oracle.attention(*(array[:2] for array in arrays), bias, d_out=d_out[:2], **options)
    np.testing.assert_allclose(parts[0], first[-1], atol=1e-5)
    np.testing.assert_allclose(parts.sum(0), exact[-1], atol=1e-5)


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("batch", [(), (2, 1, 2), (2, 0)])
def test_any_leading_axes(implementation, batch):
    rng = np.random.default_rng(0)
    arrays = [jnp.asarray(rng.normal(size=(*batch, 5, 2, 8)), jnp.float32) for _ in range(3)]
    mask = rng.random((*batch, 1, 5, 5)) < 0.8
    attend = functools.partial(dot_product_attention, implementation=implementation)
    ours = jax.jit(attend)(*arrays, mask=mask)
    assert ours.shape == arrays[0].shape
    flat = lambda array: np.asarray(array).reshape(-1, *array.shape[len(batch) :])
    [exact] = oracle.attention(*map(flat, arrays), mask=flat(mask))
    np.testing.assert_allclose(flat(ours), exact, atol=1e-6)


def test_no_queries_or_no_keys():
    query, key = jnp.ones((2, 3, 1, 4)), jnp.ones((2, 0, 1, 4))
    np.testing.assert_array_equal(dot_product_attention(query, key, key), 0)
    assert dot_product_attention(key, query, query).shape == (2, 0, 1, 4)
    gradient = jax.grad(lambda q: dot_product_attention(q, key, key).sum())(query)
    np.testing.assert_array_equal(gradient, 0)


@pytest.mark.parametrize("options", [{}, {"is_causal": True}, {"local_window_size": (2, 0)}])
def test_weights_are_those_that_sum_the_values(options):
    rng = np.random.default_rng(0)
    draw = lambda *shape: rng.normal(size=shape).astype(np.float32)
    query, key, value = draw(2, 3, 7, 4, 8), draw(2, 3, 7, 2, 8), draw(2, 3, 7, 2, 8)
    mask, lengths = rng.random((2, 3, 4, 7, 7)) < 0.7, rng.integers(0, 8, (2, 3))
    shared = dict(bias=draw(1, 1, 4, 7, 7), mask=mask, key_value_seq_lengths=lengths, **options)
    weights = np.asarray(attention_weights(query, key, scale=0.5, **shared), np.float64)
    assert weights.shape == (2, 3, 4, 7, 7)
    # Rows of queries that see no key are 0; the others are distributions.
    total = weights.sum(axis=-1)
    assert (np.isclose(total, 1, atol=1e-5) | (total == 0)).all() and (total == 0).any()
    assert (weights[~np.broadcast_to(mask, weights.shape)] == 0).all()
    repeated = np.repeat(value, 2, axis=-2)
    expected = dot_product_attention(query, key, value, scale=0.5, **shared)
    summed = np.einsum("abnts,absnh->abtnh", weights, repeated)
    np.testing.assert_allclose(summed, expected, atol=1e-5)


def test_weights_of_nothing_and_of_what_does_not_fit():
    assert attention_weights(np.zeros((0, 3, 2, 4)), np.zeros((0, 5, 2, 4))).shape == (0, 2, 3, 5)
    assert attention_weights(np.zeros((1, 0, 2, 4)), np.zeros((1, 5, 2, 4))).shape == (1, 2, 0, 5)
    with pytest.raises(ValueError, match="2 query heads cannot share 3 key heads evenly"):
        attention_weights(np.zeros((1, 3, 2, 4)), np.zeros((1, 3, 3, 4)))
    with pytest.raises(TypeError, match="mask must be boolean"):
        attention_weights(np.zeros((1, 3, 2, 4)), np.zeros((1, 3, 2, 4)), mask=np.ones((3, 3)))

"""Attention against a float64 definition written with NumPy, and its refusals."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from icl.kernels import dot_product_attention

IMPLEMENTATIONS = ["reference", "xla"]
LENGTHS = st.sampled_from([1, 2, 5, 15, 16, 17, 33])


def numpy_attention(query, key, value, bias=None, allowed=None, scale=None):
    """Loops over heads, in float64; `allowed` is `[B, N, T, S]`."""
    query, key, value = (np.asarray(a, np.float64) for a in (query, key, value))
    batch, length, heads, width = query.shape
    group = heads // key.shape[2]
    scale = width**-0.5 if scale is None else scale
    result = np.zeros_like(query)
    for b in range(batch):
        for n in range(heads):
            scores = scale * query[b, :, n] @ key[b, :, n // group].T
            if bias is not None:
                scores = scores + np.broadcast_to(bias, (batch, heads, *scores.shape))[b, n]
            if allowed is not None:
                scores = np.where(allowed[b, n], scores, -np.inf)
            highest = scores.max(axis=-1, keepdims=True)
            weights = np.exp(scores - np.where(np.isfinite(highest), highest, 0))
            total = weights.sum(axis=-1, keepdims=True)
            weights = weights / np.where(total > 0, total, 1)
            result[b, :, n] = weights @ value[b, :, n // group]
    return result


def inputs(seed, batch, length, key_length, heads, key_heads, width, dtype=np.float32):
    rng = np.random.default_rng(seed)
    shapes = [(batch, length, heads, width)] + 2 * [(batch, key_length, key_heads, width)]
    return [jnp.asarray(rng.normal(size=shape), dtype) for shape in shapes]


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
@given(data=st.data())
def test_matches_float64_definition(implementation, data):
    length, key_length = data.draw(LENGTHS), data.draw(LENGTHS)
    key_heads = data.draw(st.sampled_from([1, 2]))
    heads = key_heads * data.draw(st.sampled_from([1, 2]))
    width = data.draw(st.sampled_from([1, 8, 17]))
    arrays = inputs(data.draw(st.integers(0, 9)), 2, length, key_length, heads, key_heads, width)
    rng = np.random.default_rng(1)
    shape = (2, heads, length, key_length)
    rows, columns = np.arange(length)[:, None], np.arange(key_length)
    allowed = np.ones(shape, bool)
    options = {}
    if data.draw(st.booleans()):
        options["is_causal"] = True
        allowed &= columns <= rows
    if data.draw(st.booleans()):
        options["mask"] = rng.random(shape) < 0.7
        allowed &= options["mask"]
    if data.draw(st.booleans()):
        options["bias"] = rng.normal(size=(1, heads, 1, key_length)).astype(np.float32)
    if data.draw(st.booleans()):
        options["key_value_seq_lengths"] = np.array([0, key_length])
        allowed &= columns < options["key_value_seq_lengths"][:, None, None, None]
    if data.draw(st.booleans()):
        options["query_seq_lengths"] = np.array([1, length])
        allowed &= rows < options["query_seq_lengths"][:, None, None, None]
    if data.draw(st.booleans()):
        options["local_window_size"] = (2, 1)
        allowed &= (columns >= rows - 2) & (columns <= rows + 1)
    ours = dot_product_attention(*arrays, implementation=implementation, **options)
    expected = numpy_attention(*arrays, options.get("bias"), allowed)
    np.testing.assert_allclose(ours, expected, atol=2e-6)


@settings(max_examples=12)
@given(length=LENGTHS, causal=st.booleans(), seed=st.integers(0, 5))
def test_gradients_of_xla_match_the_reference(length, causal, seed):
    query, key, value = inputs(seed, 2, length, length, 2, 1, 8)
    rng = np.random.default_rng(seed)
    mask = jnp.asarray(rng.random((2, 1, length, length)) < 0.8)
    bias = jnp.asarray(rng.normal(size=(2, 1, length)), jnp.float32)
    weight = jnp.asarray(rng.normal(size=query.shape), jnp.float32)

    def loss(implementation, query, key, value, bias):
        result = dot_product_attention(
            query, key, value, bias, mask, is_causal=causal, implementation=implementation
        )
        return (result * weight).sum()

    ours = jax.grad(loss, argnums=(1, 2, 3, 4))("xla", query, key, value, bias)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in (query, key, value, bias)]
        expected = jax.grad(loss, argnums=(1, 2, 3, 4))("reference", *wide)
    for mine, theirs in zip(ours, expected):
        assert mine.dtype == jnp.float32
        np.testing.assert_allclose(mine, theirs, atol=1e-5)


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_a_row_that_sees_nothing_is_zero_with_zero_gradient(implementation):
    query, key, value = inputs(0, 1, 4, 4, 2, 2, 8)
    mask = jnp.ones((4, 4), bool).at[2].set(False)

    def run(query):
        return dot_product_attention(query, key, value, mask=mask, implementation=implementation)

    np.testing.assert_array_equal(run(query)[0, 2], 0)
    gradient = jax.grad(lambda q: (run(q) ** 2).sum())(query)
    assert np.isfinite(gradient).all()
    np.testing.assert_array_equal(gradient[0, 2], 0)
    assert np.abs(gradient[0, 1]).max() > 0


@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_any_leading_axes_and_vmap_agree(implementation):
    query, key, value = inputs(0, 6, 5, 5, 2, 2, 8)
    attend = lambda *a: dot_product_attention(*a, is_causal=True, implementation=implementation)
    expected = attend(query, key, value)
    split = [a.reshape(2, 3, *a.shape[1:]) for a in (query, key, value)]
    np.testing.assert_allclose(attend(*split).reshape(expected.shape), expected, atol=1e-6)
    np.testing.assert_allclose(jax.vmap(attend)(query, key, value), expected, atol=1e-6)
    gradient = jax.vmap(jax.grad(lambda q, k, v: (attend(q, k, v) ** 2).sum()))(query, key, value)
    whole = jax.grad(lambda q: (attend(q, key, value) ** 2).sum())(query)
    np.testing.assert_allclose(gradient, whole, atol=1e-5)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, jnp.float16, jnp.float32])
@pytest.mark.parametrize("implementation", IMPLEMENTATIONS)
def test_dtype_is_the_querys(implementation, dtype):
    arrays = inputs(0, 2, 9, 9, 2, 2, 8, dtype)
    ours = dot_product_attention(*arrays, implementation=implementation)
    assert ours.dtype == dtype
    expected = numpy_attention(*(np.asarray(a, np.float64) for a in arrays))
    tolerance = 4 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(np.asarray(ours, np.float64), expected, atol=tolerance)


def test_reference_has_second_derivatives():
    query, key, value = inputs(0, 1, 3, 3, 1, 1, 4)
    loss = lambda q: dot_product_attention(q, key, value, implementation="reference").sum()
    assert np.isfinite(jax.hessian(loss)(query)).all()


REFUSALS = {
    "other head dim": (dict(key=(2, 5, 2, 4), value=(2, 5, 2, 4)), ValueError, "agree"),
    "key and value": (dict(value=(2, 4, 2, 8)), ValueError, "same shape"),
    "heads": (dict(key=(2, 5, 3, 8), value=(2, 5, 3, 8)), ValueError, "evenly"),
    "bias": (dict(bias=(3, 5)), ValueError, "bias of shape"),
    "mask": (dict(mask=(7, 2, 5, 5)), ValueError, "mask of shape"),
    "float mask": (dict(float_mask=(5, 5)), TypeError, "boolean"),
    "two axes": (dict(query=(5, 8)), ValueError, "length, heads, head_dim"),
    "lengths": (dict(lengths=(3,)), ValueError, "batch shape"),
}


@pytest.mark.parametrize("case", REFUSALS)
def test_refusals_say_what_is_wrong(case):
    changes, error, message = REFUSALS[case]
    shapes = {name: (2, 5, 2, 8) for name in ("query", "key", "value")} | changes
    arguments = [jnp.ones(shapes[name]) for name in ("query", "key", "value")]
    options = {}
    if "bias" in shapes:
        options["bias"] = jnp.ones(shapes["bias"])
    if "mask" in shapes:
        options["mask"] = jnp.ones(shapes["mask"], bool)
    if "float_mask" in shapes:
        options["mask"] = jnp.ones(shapes["float_mask"])
    if "lengths" in shapes:
        options["key_value_seq_lengths"] = jnp.ones(shapes["lengths"], jnp.int32)
    with pytest.raises(error, match=message):
        dot_product_attention(*arguments, **options)


def test_implementations_are_chosen_by_name():
    arrays = inputs(0, 1, 3, 3, 1, 1, 4)
    with pytest.raises(ValueError, match="no implementation of attention called 'flash'"):
        dot_product_attention(*arrays, implementation="flash")
    with pytest.raises(TypeError, match="floating point"):
        dot_product_attention(*(a.astype(jnp.int32) for a in arrays))
    first = dot_product_attention(*arrays, implementation=["flash", "reference"])
    np.testing.assert_array_equal(first, dot_product_attention(*arrays, implementation="reference"))

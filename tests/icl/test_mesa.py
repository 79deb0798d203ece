"""The mesa-layer, and the estimators computed by layers: ridge and least mean squares."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st
from jax.test_util import check_grads

from icl.evaluation import baselines
from icl.evaluation.comparators import comparators
from icl.layers import MIXERS
from icl.layers.mesa import _inverse_factor, mesa_attention
from icl.tasks import LinearRegression

from .helpers import linear_prompts, predictions


def inputs(shape, columns, seed=0):
    """Query and key `[..., T, N, H]`, value `[..., T, N, columns]`, NumPy float64."""
    rng = np.random.default_rng(seed)
    draw = lambda *shape: rng.normal(size=shape)
    return draw(*shape), draw(*shape), draw(*shape[:-1], columns)


def refitted(query, key, value, penalty):
    """The definition: one ridge regression for each prefix and head."""
    *batch, length, heads, width = query.shape
    out = np.zeros(value.shape)
    for at in np.ndindex(*batch, heads):
        head = (*at[:-1], slice(None), at[-1])
        q, k, v = query[head], key[head], value[head]
        for t in range(length):
            gram = k[: t + 1].T @ k[: t + 1] + penalty[at[-1]] * np.eye(width)
            out[head][t] = v[: t + 1].T @ k[: t + 1] @ np.linalg.solve(gram, q[t])
    return out


layer = jax.jit(mesa_attention)


@settings(max_examples=12)
@given(
    case=st.sampled_from(
        [((1, 1, 1), 1, False), ((9, 2, 3), 5, True), ((2, 2, 40, 1, 8), 1, False)]
    ),
    penalty=st.sampled_from([0.1, 1.0, 30.0]),
    seed=st.integers(0, 9),
)
def test_every_prefix_is_a_ridge_regression(case, penalty, seed):
    shape, columns, by_head = case
    arrays = inputs(shape, columns, seed)
    heads = shape[-2]
    penalties = penalty * np.arange(1.0, heads + 1) if by_head else np.full(heads, penalty)
    expected = refitted(*arrays, penalties)
    given = penalties if by_head else np.array(penalty)
    ours = layer(*(jnp.asarray(a, jnp.float32) for a in (*arrays, given)))
    assert ours.dtype == jnp.float32 and ours.shape == expected.shape
    np.testing.assert_allclose(ours, expected, atol=1e-4 * np.abs(expected).max())
    with jax.enable_x64(True):
        wide = layer(*map(jnp.asarray, (*arrays, given)))
        assert wide.dtype == jnp.float64
        np.testing.assert_allclose(wide, expected, atol=1e-10 * np.abs(expected).max())


def test_gradients_match_finite_differences():
    with jax.enable_x64(True):
        arrays = *map(jnp.asarray, inputs((2, 6, 2, 3), 4)), jnp.array([0.5, 2.0])
        check_grads(layer, arrays, order=1, modes=["rev"], atol=1e-6, rtol=1e-6)


def test_the_layer_is_causal_and_vmaps():
    query, key, value = (jnp.asarray(a, jnp.float32) for a in inputs((3, 8, 2, 4), 4))
    out = layer(query, key, value)
    later = [a.at[:, 5:].add(9.0) for a in (query, key, value)]
    np.testing.assert_allclose(layer(*later)[:, :5], out[:, :5], atol=1e-6)
    assert np.abs(layer(*later)[:, 5:] - out[:, 5:]).min(axis=(2, 3)).max() > 0.1
    each = jax.jit(jax.vmap(mesa_attention, in_axes=(0, 0, 0, None)))
    np.testing.assert_allclose(each(query, key, value, 1.0), out, rtol=1e-5, atol=1e-5)
    swept = jax.jit(jax.vmap(mesa_attention, in_axes=(None, None, None, 0)))
    many = swept(query, key, value, jnp.array([1.0, 3.0]))
    np.testing.assert_allclose(many[0], out, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(many[1], layer(query, key, value, 3.0), rtol=1e-5, atol=1e-5)


def test_half_precision_is_computed_in_float32():
    half = [jnp.asarray(a, jnp.bfloat16) for a in inputs((12, 2, 4), 3)]
    single = layer(*(a.astype(jnp.float32) for a in half))
    out = layer(*half)
    assert out.dtype == jnp.bfloat16
    np.testing.assert_array_equal(out, single.astype(jnp.bfloat16))


@pytest.mark.parametrize(
    ("changes", "error", "message"),
    [
        (dict(query=np.zeros((5, 2))), ValueError, r"query must be \[..., steps"),
        (dict(key=np.zeros((4, 2, 3))), ValueError, "must have the same shape"),
        (dict(value=np.zeros((5, 1, 3))), ValueError, "all but the features"),
        (dict(value=np.zeros((5, 2, 3), int)), TypeError, "value must be floating"),
        (dict(regularization=0.0), ValueError, "must be positive, got 0.0"),
        (dict(regularization=[1.0, np.nan]), ValueError, "must be positive"),
        (dict(regularization=np.ones(3)), ValueError, "one for each of 2 heads"),
    ],
)
def test_impossible_layers_are_refused(changes, error, message):
    usual = dict.fromkeys(("query", "key", "value"), np.zeros((5, 2, 3), np.float32))
    with pytest.raises(error, match=message):
        mesa_attention(**(usual | changes))


def test_the_mixer_reduces_the_loss_and_learns_its_regularization():
    init = nnx.initializers.normal(0.3)
    mixer = MIXERS["mesa"](8, 2, kernel_init=init, out_init=init, rngs=nnx.Rngs(params=0))
    graph, state = nnx.split(mixer)
    np.testing.assert_array_equal(state["log_regularization"][...], 0)
    x, _ = linear_prompts(8, 6, 8)
    x = jnp.asarray(x, jnp.float32)
    previous = jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1]
    optimizer = optax.adam(2e-2)

    @jax.jit
    def train(state):
        loss = lambda state: ((nnx.merge(graph, state)(x) - x - previous) ** 2).mean()

        def step(carry, _):
            state, memory = carry
            value, gradient = jax.value_and_grad(loss)(state)
            updates, memory = optimizer.update(gradient, memory)
            return (optax.apply_updates(state, updates), memory), value

        (state, _), losses = jax.lax.scan(step, (state, optimizer.init(state)), length=150)
        return state["log_regularization"][...], losses

    learned, losses = train(state)
    assert losses[-1] < 0.6 * losses[0]
    assert learned.shape == (2,) and (learned != 0).all()


# Estimators


def test_the_mesa_layer_is_ridge_regression():
    penalty = 0.25
    x, y = linear_prompts(4, 41, 20, noise=0.5)
    ridge, mesa = (
        predictions(lambda x, y, fit=fit: fit(x, y, penalty), x, y)
        for fit in (baselines.ridge, baselines.mesa)
    )
    np.testing.assert_allclose(mesa, ridge, rtol=0, atol=1e-10 * np.abs(ridge).max())
    single = jax.jit(baselines.mesa)(*(jnp.asarray(a, jnp.float32) for a in (x, y)), penalty)
    assert np.linalg.norm(single - ridge) < 1e-5 * np.linalg.norm(ridge)
    assert (mesa[:, 0] == 0).all()


def one_by_one(x, y, rate):
    """Predictions with weights that are updated after each point."""
    w, out = np.zeros((len(x), x.shape[-1])), np.zeros(y.shape)
    for i in range(x.shape[1]):
        out[:, i] = (w * x[:, i]).sum(axis=-1)
        size = (x[:, i] ** 2).sum(axis=-1)
        w += rate * np.where(size > 0, (y[:, i] - out[:, i]) / np.maximum(size, 1e-300), 0)[
            :, None
        ] * x[:, i]  # fmt: skip
    return out


online = jax.jit(baselines.least_mean_squares, static_argnums=2)


@settings(max_examples=10)
@given(points=st.sampled_from([1, 41]), rate=st.sampled_from([0.3, 1.9]), seed=st.integers(0, 9))
def test_least_mean_squares_updates_the_weights_after_each_point(points, rate, seed):
    x, y = linear_prompts(3, points, 8, noise=0.1, seed=seed)
    x[0, : points // 2] = 0  # points of length 0 do not change the weights
    with jax.enable_x64(True):
        ours = online(jnp.asarray(x), jnp.asarray(y), rate)
    np.testing.assert_allclose(ours, one_by_one(x, y, rate), atol=1e-10)


def test_least_mean_squares_projects_at_rate_1_and_converges():
    x, y = linear_prompts(8, 120, 2)
    x[:, 1], y[:, 1] = x[:, 0], y[:, 0]
    ours = predictions(baselines.least_mean_squares, x, y)
    np.testing.assert_allclose(ours[:, 1], y[:, 0], atol=1e-12)
    assert np.abs(ours - y)[:, -20:].max() < 1e-6
    for rate in (0.0, 2.0):
        with pytest.raises(ValueError, match="between 0 and 2"):
            baselines.least_mean_squares(jnp.asarray(x), jnp.asarray(y), rate)


def test_linear_regression_is_compared_with_least_mean_squares():
    family = LinearRegression(dim=3, points=6)
    for task in (family, dataclasses.replace(family, noise=0.5)):
        names = [name for comparator in comparators(task)[0] for name in comparator.names]
        assert "least mean squares" in names and "mesa" not in names


def test_a_training_step_makes_no_lapack_call_on_a_cpu():
    """Batched LAPACK calls in a compiled training step deadlock."""
    x = jnp.ones((2, 5, 2, 4))
    loss = lambda x: (mesa_attention(x, x, x, 1.0) ** 2).sum()
    program = jax.jit(jax.grad(loss), backend="cpu").lower(x).compile().as_text()
    assert 'custom_call_target="lapack' not in program


def test_the_inverse_factor_and_its_derivative_match_lapack():
    rows = jax.random.normal(jax.random.key(0), (3, 6, 6))
    gram = rows @ jnp.swapaxes(rows, -1, -2) + jnp.eye(6)[None]
    change = jax.random.normal(jax.random.key(1), gram.shape)
    change = change + jnp.swapaxes(change, -1, -2)
    expected = lambda gram: jnp.linalg.inv(jnp.linalg.cholesky(gram))
    for found, right in zip(
        jax.jvp(_inverse_factor, (gram,), (change,)), jax.jvp(expected, (gram,), (change,))
    ):
        np.testing.assert_allclose(found, right, rtol=2e-3, atol=2e-4)

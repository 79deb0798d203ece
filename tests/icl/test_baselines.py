"""Estimators fitted to every prefix at once, against scikit-learn and loops over prefixes."""

import functools
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st
from sklearn.linear_model import Lasso
from sklearn.tree import DecisionTreeRegressor

from icl.evaluation import baselines
from icl.evaluation.baselines.lasso import PENALTIES

from .helpers import linear_prompts, per_prefix, predictions

ALL = {
    "lasso": baselines.lasso,
    "tree": baselines.greedy_tree,
    "sign tree": lambda x, y: baselines.greedy_tree(jnp.sign(x), y),
    "network": partial(baselines.two_layer_network, width=5, steps=20),
    "boosting": partial(baselines.boosting, trees=5),
}


@functools.cache
def compiled(name, **options):
    """Tests share it, and so what is compiled for equal shapes."""
    fit = partial(ALL[name], **options)
    # XGBoost runs on the host and cannot be jitted.
    return fit if name == "boosting" else jax.jit(fit)


def fitted(name, x, y, **options):
    return predictions(compiled(name, **options), x, y, jit=False)


@pytest.fixture(params=ALL)
def fit(request):
    if request.param == "boosting":
        pytest.importorskip("xgboost")
    return partial(fitted, request.param)


def test_a_prediction_uses_only_earlier_points(fit):
    x, y = linear_prompts(2, 12, 3)
    later_x, later_y = x.copy(), y.copy()
    later_x[:, 8:] += 9.0
    later_y[:, 7:] += 9.0
    before, changed = fit(x, y), fit(later_x, later_y)
    np.testing.assert_allclose(before[:, :8], changed[:, :8], rtol=0, atol=1e-12)
    assert (before[:, 0] == 0).all() and (before[:, 8:] != changed[:, 8:]).any()


def test_predictions_do_not_depend_on_other_prompts_of_the_batch(fit):
    x, y = linear_prompts(2, 12, 3, noise=0.1)
    other_x, other_y = x + [[[0.0]], [[9.0]]], y * [[1.0], [-3.0]]
    together, beside = fit(x, y), fit(other_x, other_y)
    np.testing.assert_allclose(together[:1], beside[:1], atol=1e-9)
    assert (together[1, 1:] != beside[1, 1:]).any()


# Lasso


def all_penalties(x, y):
    with jax.enable_x64(True):
        return np.asarray(baselines.lasso_path(jnp.asarray(x), jnp.asarray(y), PENALTIES))


@pytest.mark.filterwarnings("ignore::sklearn.exceptions.ConvergenceWarning")
@pytest.mark.parametrize("nonzero", [None, 3], ids=["dense", "sparse"])
@pytest.mark.parametrize("noise", [0.0, 0.5])
def test_lasso_matches_scikit_learn(nonzero, noise):
    x, y = linear_prompts(1, 41, 20, nonzero, noise)
    ours, compared = all_penalties(x, y), 0
    for penalty, predicted in zip(PENALTIES, ours[:, 0], strict=True):
        # With small penalties scikit-learn does not converge in the time of a test.
        model = Lasso(penalty, fit_intercept=False, tol=1e-11, max_iter=20_000)
        for k in range(1, 41):
            model.fit(x[0, :k], y[0, :k])
            if model.n_iter_ < 20_000:
                assert abs(x[0, k] @ model.coef_ - predicted[k]) < 1e-4
                compared += 1
    assert compared > 120


def lasso_weights(x, y):
    """Weights `[A, D]` fitted to x `[K, D]`, read from predictions at the unit vectors."""
    dim = x.shape[1]
    prompts = [np.concatenate([x, query[None]]) for query in np.eye(dim)]
    labels = np.tile(np.append(y, 0.0), (dim, 1))
    return all_penalties(np.stack(prompts), labels)[:, :, -1]


@given(
    size=st.sampled_from([(1, 5), (4, 1), (15, 5)]),  # each is compiled
    kind=st.sampled_from(["gaussian", "signs", "signs and labels", "twins", "nearly twins"]),
    noise=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 99),
)
def test_lasso_meets_the_optimality_conditions(size, kind, noise, seed):
    points, dim = size
    x, y = linear_prompts(1, points, dim, noise=noise, seed=seed)
    x, y = x[0], y[0]
    if kind.startswith("signs"):
        x = np.sign(x)
        y = np.sign(y) if kind == "signs and labels" else y
    elif "twins" in kind:
        x[:, -1] = x[:, 0] + ("nearly" in kind) * 1e-4 * x[:, -1]
    weights = lasso_weights(x, y)
    for penalty, w in zip(PENALTIES, weights, strict=True):
        correlation, bound = x.T @ (y - x @ w), points * penalty
        tolerance = 1e-9 * np.abs(x.T @ y).max()
        used = np.abs(w) > 1e-9
        assert (np.abs(correlation) <= bound + tolerance).all()
        np.testing.assert_allclose(
            correlation[used], (bound * np.sign(w))[used], rtol=0, atol=tolerance
        )


def test_lasso_with_one_penalty_equals_its_entry_of_the_path():
    x, y = linear_prompts(4, 12, 5, noise=0.1)
    one = predictions(lambda x, y: baselines.lasso(x, y, PENALTIES[2]), x, y)
    np.testing.assert_allclose(one, all_penalties(x, y)[2], atol=1e-12)


def test_lasso_in_float32_is_near_float64():
    x, y = linear_prompts(4, 12, 5, noise=0.1)
    single = baselines.lasso(jnp.asarray(x, jnp.float32), jnp.asarray(y, jnp.float32), 0.1)
    assert single.dtype == jnp.float32
    np.testing.assert_allclose(single, all_penalties(x, y)[1], atol=1e-3)


# Trees


def best_splits(x, y):
    """The splits, as (coordinate, threshold), that reduce the squared error most."""
    splits = []
    for d in range(x.shape[1]):
        values = np.unique(x[:, d])
        for threshold in (values[1:] + values[:-1]) / 2:
            left = x[:, d] <= threshold
            parts = y[left], y[~left]
            fall = np.var(y) * len(y) - sum(np.var(part) * len(part) for part in parts)
            splits.append((fall, d, threshold))
    best = max(splits, default=(0, 0, 0))[0]
    return [split[1:] for split in splits if split[0] > best - 1e-9 * (1 + best)]


def grow(x, y, query, depth):
    """The tree's prediction at a query, and whether any split on its branch was a tie."""
    tied = False
    for _ in range(depth):
        splits = best_splits(x, y)
        if not splits or np.ptp(y) == 0:
            break
        tied |= len(splits) > 1
        coordinate, threshold = splits[0]
        same = (x[:, coordinate] <= threshold) == (query[coordinate] <= threshold)
        x, y = x[same], y[same]
    return y.mean(), tied


@given(
    depth=st.sampled_from([1, 4]),
    kind=st.sampled_from(["gaussian", "signs", "steps", "equal labels", "integer labels"]),
    seed=st.integers(0, 99),
)
@example(depth=4, kind="gaussian", seed=88)  # two labels that differ little beside their size
def test_tree_uses_the_best_split_and_the_first_of_ties(depth, kind, seed):
    x, y = linear_prompts(2, 12, 3, noise=1.0, seed=seed)
    if kind == "signs":
        x = np.sign(x)
    elif kind == "steps":
        x = np.round(x)
    elif kind == "equal labels":
        y[:] = 0.3
    elif kind == "integer labels":
        y = np.round(y)
    ours = fitted("tree", x, y, depth=depth)
    expected = per_prefix(lambda x, y, query: grow(x, y, query, depth)[0], x, y)
    np.testing.assert_allclose(ours, expected, atol=1e-9)


def test_tree_matches_scikit_learn_if_no_splits_tie():
    x, y = linear_prompts(2, 50, 6, noise=0.5)
    x = x.astype(np.float32).astype(np.float64)  # scikit-learn rounds x to float32
    ours = predictions(partial(baselines.greedy_tree, depth=3), x, y)
    compared = 0
    for b, k in np.ndindex(*y.shape):
        if k > 10 and not grow(x[b, :k], y[b, :k], x[b, k], 3)[1]:
            tree = DecisionTreeRegressor(max_depth=3).fit(x[b, :k], y[b, :k])
            np.testing.assert_allclose(tree.predict(x[b, k : k + 1])[0], ours[b, k], atol=1e-9)
            compared += 1
    assert compared > 40


# Networks


def test_network_learns_a_linear_function():
    x, y = linear_prompts(8, 31, 3)
    fit = partial(baselines.two_layer_network, steps=400, learning_rate=5e-2, positions=[30])
    error = (predictions(fit, x, y) - y)[:, 30] ** 2
    assert error.mean() < 0.1 * (y[:, 30] ** 2).mean()


def test_network_is_deterministic_and_depends_on_the_seed():
    x, y = linear_prompts(2, 12, 3)
    fit = lambda seed: fitted("network", x, y, seed=seed)
    np.testing.assert_array_equal(fit(0), fit(0))
    assert (fit(0) != fit(1))[:, 1:].all()


def test_network_draws_only_from_the_prefix():
    """A prefix of one point is fitted exactly, whatever the later points are."""
    x, y = np.ones((1, 5, 2)), np.array([[2.0, -50.0, -50.0, -50.0, -50.0]])
    fit = partial(baselines.two_layer_network, steps=300, learning_rate=5e-2, positions=[1])
    np.testing.assert_allclose(predictions(fit, x, y)[0, 1], 2.0, atol=1e-3)


# Positions


@pytest.mark.parametrize("name", ["network", "boosting"])
def test_only_the_given_positions_are_fitted(name):
    if name == "boosting":
        pytest.importorskip("xgboost")
    x, y = linear_prompts(2, 12, 3)
    whole = fitted(name, x, y)
    some = fitted(name, x, y, positions=(5, 0, 3))
    asked = np.isin(np.arange(12), [0, 3, 5])
    assert np.isnan(some[:, ~asked]).all()
    np.testing.assert_allclose(some[:, asked], whole[:, asked], atol=1e-9)
    assert np.isnan(fitted(name, x, y, positions=())).all()
    for beyond in (12, -1):
        with pytest.raises(ValueError, match="within 0 to 11"):
            fitted(name, x, y, positions=(beyond,))


# Boosting


def test_boosting_matches_xgboost():
    xgboost = pytest.importorskip("xgboost")
    x, y = linear_prompts(2, 21, 3)
    ours = baselines.boosting(x, y, trees=7, depth=2, learning_rate=0.3, positions=[20])
    for b in range(2):
        model = xgboost.XGBRegressor(n_estimators=7, max_depth=2, learning_rate=0.3)
        expected = model.fit(x[b, :20], y[b, :20]).predict(x[b, 20:])
        np.testing.assert_allclose(ours[b, 20], expected[0], rtol=1e-6)


def test_boosting_without_xgboost_names_the_package_to_install(monkeypatch):
    monkeypatch.setitem(sys.modules, "xgboost", None)
    with pytest.raises(ModuleNotFoundError, match=r"pip install 'fused-icl\[baselines\]'"):
        baselines.boosting(np.zeros((1, 2, 1)), np.zeros((1, 2)))

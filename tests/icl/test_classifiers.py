"""Classifiers of every prefix against scikit-learn, and comparators of queries."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from sklearn.linear_model import Ridge
from sklearn.neighbors import KNeighborsClassifier

from icl.evaluation import Comparator, comparators, draw_prompts
from icl.evaluation.baselines import nearest_class, ridge_class, sgd_class
from icl.evaluation.comparators import one_query_at_a_time
from icl.tasks import LinearRegression, ProjectedImages

RNG = np.random.default_rng(0)
CENTRES = 2.0 * RNG.normal(size=(3, 5))
Y = RNG.integers(0, 3, (4, 12))
X = (CENTRES[Y] + RNG.normal(size=(4, 12, 5))).astype(np.float32)

FITS = {
    "nearest": jax.jit(lambda x, y: nearest_class(x, y, 3)),
    "ridge": jax.jit(lambda x, y: ridge_class(x, y, 3, 2.0)),
    "sgd": jax.jit(lambda x, y: sgd_class(x, y, 3, range(12), width=8, epochs=3)),
}


@pytest.mark.parametrize("name", FITS)
def test_scores_come_from_earlier_points_alone(name):
    fit = FITS[name]
    scores = np.asarray(fit(X, Y))
    assert scores.shape == (4, 12, 3) and (scores[:, 0] == 0).all()
    later = fit(X, np.where(np.arange(12) >= 7, (Y + 1) % 3, Y))
    np.testing.assert_allclose(later[:, :8], scores[:, :8], atol=1e-6)
    assert np.abs(np.asarray(later)[:, 8:] - scores[:, 8:]).max() > 0.1


def test_nearest_and_ridge_match_scikit_learn():
    nearest, ridge = (np.asarray(FITS[name](X, Y)) for name in ("nearest", "ridge"))
    for x, y, near, line in zip(X, Y, nearest, ridge):
        for k in range(1, 12):
            theirs = KNeighborsClassifier(1).fit(x[:k], y[:k]).predict(x[k : k + 1])
            assert near[k].argmax() == theirs[0] and near[k].sum() == 1
            target = np.eye(3)[y[:k]] - 1 / 3
            theirs = Ridge(alpha=2.0, fit_intercept=False).fit(x[:k], target).predict(x[k : k + 1])
            np.testing.assert_allclose(line[k], theirs[0], rtol=1e-3, atol=1e-4)


def test_sgd_learns_and_fits_only_what_was_asked():
    x, y = np.tile(X, (1, 4, 1)), np.tile(Y, (1, 4))
    fit = lambda x, y: sgd_class(x, y, 3, [0, 40], width=16, epochs=20, learning_rate=0.03)
    scores = np.asarray(jax.jit(fit)(x, y))
    assert np.isnan(scores[:, 1:40]).all() and np.isfinite(scores[:, [0, 40]]).all()
    assert (scores[:, 40].argmax(axis=-1) == y[:, 40]).all()


def test_a_prompt_is_scored_without_the_other_prompts():
    others = np.concatenate([X[:1], 30 * X[:0:-1]]), np.concatenate([Y[:1], Y[:0:-1]])
    for name, fit in FITS.items():
        np.testing.assert_allclose(fit(*others)[0], fit(X, Y)[0], atol=1e-5, err_msg=name)


def test_images_have_comparators_that_learn():
    family = ProjectedImages(points=20)
    episodes = draw_prompts(family, jax.random.key(0), 32)
    y = np.asarray(episodes.y)[:, -1]
    found, optimal = comparators(family)
    assert optimal is None
    accuracy = {
        c.names[0]: np.mean(np.asarray(jax.jit(c.predict)(episodes)).argmax(-1)[:, -1] == y)
        for c in found
    }
    assert set(accuracy) == {"1-nearest neighbour", "ridge", "SGD", "class frequencies"}
    assert min(accuracy[name] for name in ("1-nearest neighbour", "ridge")) > 0.4
    assert accuracy["SGD"] > 0.3 > 0.2 > accuracy["class frequencies"]


def test_images_of_bytes_are_standardised_for_comparators():
    family = ProjectedImages(points=20, projection="none")
    episodes = draw_prompts(family, jax.random.key(0), 64)
    ridge = {c.names[0]: c for c in comparators(family)[0]}["ridge"]
    scores = np.asarray(jax.jit(ridge.predict)(episodes))
    assert np.mean(scores.argmax(-1)[:, -1] == np.asarray(episodes.y)[:, -1]) > 0.5


def test_queries_are_predicted_from_the_examples_alone():
    family = LinearRegression(dim=2, points=7, queries=3)
    episodes = draw_prompts(family, jax.random.key(0), 5)
    sums = lambda e: jnp.cumsum(e.y, axis=1) - e.y + e.x[..., 0]
    for names, predict in ((("one",), sums), (("a", "b"), lambda e: jnp.stack([sums(e), e.y]))):
        alone = one_query_at_a_time(Comparator(names, predict), 3)
        found = np.asarray(jax.jit(alone.predict)(episodes))
        found = found if len(names) == 1 else found[0]
        assert np.isnan(found[:, :4]).all()
        expected = np.asarray(episodes.y)[:, :4].sum(axis=1, keepdims=True) + episodes.x[:, 4:, 0]
        np.testing.assert_allclose(found[:, 4:], expected, rtol=1e-5)

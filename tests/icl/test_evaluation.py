"""Baselines against closed forms and loops over prefixes; bootstrap; files of an evaluation."""

import importlib
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

import icl
from icl.evaluation import (
    Evaluation,
    baselines,
    bootstrap,
    chunks,
    comparators,
    curves,
    draw_prompts,
)
from icl.tasks import (
    FAMILIES,
    DecisionTree,
    FunctionFamily,
    LinearRegression,
    ManyOutlierRegression,
    Parity,
    QuadraticRegression,
    VectorRetrieval,
)
from icl.training import step

from .helpers import per_prefix, predictions, sized, tiny, untrained


def ridge_fit(x, y, query):
    return query @ np.linalg.solve(x.T @ x + 0.3 * np.eye(x.shape[1]), x.T @ y)


def neighbours_fit(x, y, query):
    return y[np.argsort(((x - query) ** 2).sum(axis=1), kind="stable")[:3]].mean()


@pytest.mark.parametrize(
    ("ours", "theirs"),
    [
        (baselines.least_squares, lambda x, y, q: q @ np.linalg.lstsq(x, y, rcond=None)[0]),
        (lambda x, y: baselines.ridge(x, y, 0.3), ridge_fit),
        (baselines.averaging, lambda x, y, q: q @ (x * y[:, None]).mean(axis=0)),
        (baselines.nearest_neighbours, neighbours_fit),
        (baselines.zero, lambda x, y, q: 0.0),
    ],
    ids=["least squares", "ridge", "averaging", "neighbours", "zero"],
)
@given(
    dim=st.sampled_from([1, 6]),
    points=st.sampled_from([1, 2, 11]),
    noise=st.sampled_from([0.0, 0.5]),
    seed=st.integers(0, 9),
)
def test_all_prefixes_at_once_match_a_fit_per_prefix(ours, theirs, dim, points, noise, seed):
    rng = np.random.default_rng(seed)
    x = rng.normal(size=(3, points, dim))
    y = np.einsum("bpd,bd->bp", x, rng.normal(size=(3, dim))) + noise * rng.normal(size=(3, points))
    np.testing.assert_allclose(predictions(ours, x, y), per_prefix(theirs, x, y), atol=1e-6)


def test_least_squares_has_minimum_norm_if_points_repeat():
    rng = np.random.default_rng(0)
    x = np.repeat(rng.normal(size=(4, 3, 5)), 3, axis=1)
    y = np.einsum("bpd,bd->bp", x, rng.normal(size=(4, 5)))
    expected = per_prefix(lambda x, y, q: q @ np.linalg.pinv(x, rcond=1e-9) @ y, x, y)
    np.testing.assert_allclose(predictions(baselines.least_squares, x, y), expected, atol=1e-6)


def test_a_prediction_uses_only_earlier_points():
    family = LinearRegression(dim=3, points=6)
    episodes = draw_prompts(family, jax.random.key(0), 4)
    later = episodes._replace(x=episodes.x.at[:, 4:].add(9.0), y=episodes.y.at[:, 3:].add(9.0))
    chosen = comparators(family)[0]
    predict = jax.jit(lambda episodes: [comparator.predict(episodes) for comparator in chosen])
    for comparator, before, changed in zip(chosen, predict(episodes), predict(later), strict=True):
        np.testing.assert_allclose(
            before[:, :4], changed[:, :4], atol=1e-3, err_msg=comparator.names[0]
        )


PROMPTS = 6000


def errors(family, estimator):
    episodes = draw_prompts(family, jax.random.key(1), PROMPTS)
    x, y = np.asarray(episodes.x), np.asarray(episodes.y)
    return (predictions(estimator, x, y) - y) ** 2 / family.label_kind.scale


def within(measured, expected, spread=5.0):
    """Asserts that mean errors are within `spread` standard errors of the expected values."""
    standard_error = measured.std(axis=0) / PROMPTS**0.5
    np.testing.assert_array_less(
        np.abs(measured.mean(axis=0) - expected), spread * standard_error + 1e-9
    )


def test_noiseless_least_squares_closed_form():
    family = LinearRegression(dim=8, points=14)
    k = np.arange(14)
    within(errors(family, baselines.least_squares), np.maximum(8 - k, 0) / 8)


def test_averaging_closed_form():
    family = LinearRegression(dim=8, points=14)
    k = np.arange(1, 14)
    within(errors(family, baselines.averaging)[:, 1:], (8 + 1) / k)


def test_noisy_least_squares_excess():
    d, noise = 4, 0.5
    family = LinearRegression(dim=d, points=20, noise=noise)
    k = np.arange(d + 4, 20)
    expected = noise**2 * (1 + d / (k - d - 1)) / d
    within(errors(family, baselines.least_squares)[:, k], expected)


def test_zero_predictor_has_error_one():
    for family in (LinearRegression(dim=4, points=6), DecisionTree(dim=4, points=6)):
        within(errors(family, baselines.zero), 1.0)


def test_ridge_with_the_noise_variance_is_the_best_linear_estimator():
    family = LinearRegression(dim=4, points=10, noise=1.0)
    assert comparators(family)[1] == "ridge"
    penalties = (1.0, 0.2, 5.0)
    each = lambda x, y: jnp.stack([baselines.ridge(x, y, penalty) for penalty in penalties])
    best, *others = errors(family, each).mean(axis=1)
    assert all((best[1:] < other[1:]).all() for other in others)


def test_nearest_neighbours_uses_only_earlier_points():
    x = np.array([[[0.0], [10.0], [0.1], [0.2]]])
    y = np.array([[1.0, 5.0, 2.0, 3.0]])
    ours = predictions(lambda x, y: baselines.nearest_neighbours(x, y, 2), x, y)
    np.testing.assert_allclose(ours, [[0.0, 1.0, 3.0, 1.5]])


def test_bootstrap_intervals_cover_the_mean_at_their_level():
    samples = np.random.default_rng(0).exponential(size=(200, 300))
    low, high = bootstrap(jax.random.key(0), samples, 1000)
    assert 0.85 < np.mean((low <= 1) & (1 <= high)) < 0.95
    deviation = samples.std(axis=0).mean() / 200**0.5
    np.testing.assert_allclose((high - low).mean(), 2 * 1.645 * deviation, rtol=0.1)


def test_evaluation_shares_no_key_with_training():
    evaluation, training = (
        np.asarray(jax.random.key_data(keys)) for keys in (curves._keys(0), step._keys(tiny()))
    )
    assert not (evaluation[:, None] == training).all(axis=-1).any()


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("runs") / "run", tiny(), step=20)


def test_evaluation_saves_its_result(run):
    result = icl.evaluate(run, prompts=300, resamples=20)
    saved = json.loads((run.path / "eval.json").read_text())
    assert saved["examples"] == [0, 1, 2, 3, 4] and saved["prompts"] == 300
    assert saved["step"] == 20 and saved["reference"] == "least squares"
    np.testing.assert_allclose(
        saved["normalised_error"]["transformer"]["mean"], result.curves["transformer"].mean
    )
    assert (run.path / "eval.png").stat().st_size > 10_000
    again = Evaluation.load(run)
    assert str(again) == str(result) and "least squares (optimal)" in str(result)
    for curve in result.curves.values():
        assert (curve.low <= curve.mean + 1e-12).all() and (curve.mean <= curve.high + 1e-12).all()


def test_evaluation_depends_on_the_seed_and_not_on_the_size_of_chunks(run, monkeypatch, undrawn):
    ask = lambda seed: icl.evaluate(run, prompts=23, resamples=2, seed=seed).curves
    first, again, other = map(ask, (0, 0, 1))
    np.testing.assert_array_equal(first["transformer"].mean, again["transformer"].mean)
    assert (first["transformer"].mean != other["transformer"].mean).all()
    monkeypatch.setattr(chunks, "CHUNK", 5)
    parts = ask(0)
    for name, curve in first.items():
        np.testing.assert_allclose(parts[name].mean, curve.mean, rtol=1e-5, atol=1e-9)


def test_concatenated_prompts_are_evaluated_only_at_the_query(tmp_path, undrawn):
    run = untrained(tmp_path / "run", tiny(layout="concatenated"))
    result = icl.evaluate(run, prompts=23, resamples=2)
    np.testing.assert_array_equal(result.examples, [4])


def optimal_errors(family, prompts=300):
    """Mean error of the comparator that is called optimal, and mean errors of the others."""
    episodes = draw_prompts(family, jax.random.key(2), prompts)
    chosen, reference = comparators(family)
    queried = np.asarray(episodes.queries)
    means = {}
    predict = jax.jit(lambda e: [c.predict(e) for c in chosen if not c.on_host])
    compiled = iter(predict(episodes))
    for comparator in chosen:
        found = comparator.predict(episodes) if comparator.on_host else next(compiled)
        error = np.asarray(family.label_kind.error(np.asarray(found), np.asarray(episodes.y)))
        means[comparator.names[0]] = error[queried].mean()
    return means.pop(reference), means


@pytest.mark.parametrize(
    "family",
    [
        QuadraticRegression(dim=3, points=12),
        Parity(dim=4, points=12),
        ManyOutlierRegression(dim=3, points=24, outliers=0.5),
        VectorRetrieval(dim=6, points=7),
    ],
    ids=lambda family: type(family).__name__,
)
def test_the_comparator_called_optimal_beats_the_others(family):
    best, others = optimal_errors(family)
    assert others and all(best < 0.7 * other for other in others.values())


def test_consistent_parities_are_a_posterior_mean():
    family = Parity(dim=4, points=10, relevant=2)
    episodes = draw_prompts(family, jax.random.key(0), 30)
    [posterior, *_], _ = comparators(family)
    predictions = np.asarray(jax.jit(posterior.predict)(episodes))
    x, y = np.asarray(episodes.x), np.asarray(episodes.y)
    subsets = [(i, j) for i in range(4) for j in range(i)]
    for b in range(30):
        for k in range(10):
            fits = [s for s in subsets if (x[b, :k, s[0]] * x[b, :k, s[1]] == y[b, :k]).all()]
            expected = np.mean([x[b, k, s[0]] * x[b, k, s[1]] for s in fits])
            np.testing.assert_allclose(predictions[b, k], expected, atol=1e-6)


@pytest.mark.parametrize(
    "name",
    ["relu_network", "linear_classification", "vector_retrieval"],
)
def test_families_are_evaluated_by_the_error_of_their_label_kind(
    name, tmp_path, monkeypatch, undrawn
):
    module = importlib.import_module("icl.evaluation.comparators")
    monkeypatch.setattr(module, "FITTED_PROMPTS", 2)
    monkeypatch.setattr(module, "MAX_COLUMNS", 3)
    monkeypatch.setattr(module, "FITTED_STEPS", 5)
    run = untrained(tmp_path / "run", tiny(task=FAMILIES[name](dim=3, points=6)))
    result = icl.evaluate(run, prompts=23, resamples=2)
    assert set(result.costs) == set(result.curves) and result.learner == "transformer"
    for label, curve in result.curves.items():
        known = np.isfinite(curve.mean)
        assert known.any() and (known.all() or label.startswith(("two-layer", "boosting")))
        assert (curve.low[known] <= curve.high[known]).all()
    again = Evaluation.load(run)
    assert str(again) == str(result) and family_error(name) in str(result)


def family_error(name):
    return FAMILIES[name](dim=3, points=6).label_kind.error_name.split()[0]


def test_means_and_bootstrap_intervals_leave_out_nan():
    rng = np.random.default_rng(0)
    samples = rng.exponential(size=(200, 3))
    samples[rng.random((200, 3)) < 0.5] = np.nan
    samples[:, 2] = np.nan
    low, high = bootstrap(jax.random.key(0), samples, 200)
    mean = np.nanmean(samples[:, :2], axis=0)
    assert (low[:2] < mean).all() and (mean < high[:2]).all() and np.isnan([low[2], high[2]]).all()
    width = samples[:, 0][np.isfinite(samples[:, 0])].std() / 100**0.5
    np.testing.assert_allclose((high - low)[0], 2 * 1.645 * width, rtol=0.35)


def test_every_family_has_comparators_and_trees_have_no_optimal_one():
    assert comparators(DecisionTree(dim=3, points=5))[1] is None
    functions = [name for name, kind in FAMILIES.items() if issubclass(kind, FunctionFamily)]
    for name in functions:
        chosen, reference = comparators(sized(name, dim=3, points=6))
        names = [name for comparator in chosen for name in comparator.names]
        assert len(names) >= 3 and names.count("zero") == 1
        assert reference is None or reference in names


def test_ridge_is_optimal_at_every_task_scale():
    family = LinearRegression(dim=3, points=6, noise=1.0, task_scale=3.0)
    chosen, reference = comparators(family)
    [ridge] = [one for one in chosen if one.names == ("ridge",)]
    episodes = draw_prompts(family, jax.random.key(0), 20)
    found = predictions(lambda x, y: ridge.predict(episodes._replace(x=x, y=y)), *episodes[:2])
    expected = predictions(lambda x, y: baselines.ridge(x, y, 1 / 9), *episodes[:2])
    assert reference == "ridge" and (found == expected).all()
    assert comparators(LinearRegression(dim=3, points=6, random_labels=2))[1] is None
    # Renormalising scales signal and noise alike, so the optimal penalty does not change.
    assert comparators(LinearRegression(noise=1.0, renormalize=True))[1] == "ridge"


def test_impossible_evaluations_are_refused(run):
    with pytest.raises(ValueError, match="at least 1"):
        icl.evaluate(run, prompts=0)

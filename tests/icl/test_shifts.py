"""Shifts of prompts: their distributions, and what the optimal predictor makes of them."""

import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl.analysis.learned_function import (
    LearnedFunction,
    draw_lines,
    gradient_cosines,
    learned_function,
    query_gradients,
)
from icl.analysis.shifts import SHIFTS, Shifts, error_name_of, evaluate_shifts, shifts_of
from icl.evaluation import baselines
from icl.tasks import (
    DecisionTree,
    LinearClassification,
    LinearRegression,
    OrthogonalOutlierRegression,
    QuadraticRegression,
    ReLUNetwork,
    SparseLinearRegression,
)
from icl.training import Run

from .helpers import tiny, untrained

DIM, POINTS, PROMPTS = 6, 9, 2000
FAMILY = LinearRegression(dim=DIM, points=POINTS)
RENORMALISED = LinearRegression(dim=DIM, points=POINTS, noise=1.0, renormalize=True)


@functools.cache
def draw(name, family=FAMILY, prompts=PROMPTS):
    return jax.jit(lambda key: SHIFTS[name].draw(family, key, prompts))(jax.random.key(3))


def spectrum(name, points=4000):
    """Eigenvalues of the covariance of the inputs of single prompts, ascending, mean over them."""
    x = np.asarray(draw(name, LinearRegression(dim=DIM, points=points), 20).episodes.x)
    covariances = np.einsum("bpd,bpe->bde", x, x) / points
    return np.linalg.eigvalsh(covariances).mean(axis=0), covariances


def least_squares_error(name):
    shifted = draw(name)
    asked = shifted.episodes.x if shifted.queries is None else shifted.queries
    with jax.enable_x64(True):
        given = (np.asarray(a, np.float64) for a in (shifted.episodes.x, shifted.episodes.y, asked))
        predictions = np.asarray(baselines.least_squares(*map(jnp.asarray, given)))
    return SHIFTS[name].error(FAMILY, predictions, np.asarray(shifted.labels, np.float64))


@pytest.mark.parametrize(
    ("name", "expected"),
    [
        ("skewed", 1 / np.arange(1, DIM + 1) ** 2),
        ("half_subspace", np.arange(DIM) < DIM // 2),
        ("scale_x=3", np.full(DIM, 9.0)),
    ],
)
def test_inputs_have_the_covariance_that_the_shift_names(name, expected):
    eigenvalues, covariances = spectrum(name)
    wanted = np.sort(expected / expected.mean() * (9 if "scale" in name else 1))
    np.testing.assert_allclose(eigenvalues, wanted, rtol=0.15, atol=1e-5)
    if "scale" not in name:
        assert np.abs(np.diff(covariances, axis=0)).max() > 0.3  # a basis for each prompt


@pytest.mark.parametrize(
    "family",
    [
        FAMILY,
        SparseLinearRegression(dim=DIM, points=POINTS, nonzeros=2),
        QuadraticRegression(dim=DIM, points=POINTS),
        ReLUNetwork(dim=DIM, points=POINTS, hidden=30),
        DecisionTree(dim=DIM, points=POINTS, depth=2),
        RENORMALISED,
    ],
    ids=lambda family: type(family).__name__,
)
def test_predicting_nothing_has_error_one_under_every_shift(family):
    shifts = shifts_of(family)
    if family is not FAMILY:
        names = ("half_subspace", "scale_x=3", "scale_y=3")
        names = ("noise", "scale_x=3") if family is RENORMALISED else names
        shifts = {name: shifts[name] for name in names}
    for name, shift in shifts.items():
        shifted = shift.draw(family, jax.random.key(4), 4000)
        first, past = shift.examples(DIM)
        errors = np.asarray(shift.error(family, 0.0, shifted.labels))[:, first:past].mean(axis=1)
        expected = 1.0
        if name == "noise_paper":
            expected += DIM / 20 / family.label_kind.scale
        tolerance = 6 * errors.std() / len(errors) ** 0.5
        assert abs(errors.mean() - expected) < tolerance, (name, errors.mean(), tolerance)


def test_an_error_names_the_noise_that_its_scale_leaves_out():
    plain = "squared error / mean squared label"
    assert error_name_of(FAMILY, SHIFTS) == f"{plain} (of noise_paper without its noise)"
    noisy = LinearRegression(dim=DIM, points=POINTS, noise=1.0)
    assert error_name_of(noisy, SHIFTS) == f"{plain} without noise"
    assert error_name_of(RENORMALISED, SHIFTS) == plain


def test_shifts_start_from_the_same_tasks_and_inputs():
    plain, scaled = draw("none"), draw("scale_y=3")
    np.testing.assert_array_equal(plain.episodes.x, scaled.episodes.x)
    np.testing.assert_allclose(3 * plain.episodes.y, scaled.episodes.y, rtol=1e-6)
    assert plain.queries is None
    np.testing.assert_array_equal(plain.labels, plain.episodes.y)


@pytest.mark.parametrize("name", ["random_quadrants", "opposite_quadrants"])
def test_examples_lie_in_one_orthant_of_each_prompt(name):
    shifted = draw(name)
    signs = np.sign(shifted.episodes.x)
    assert (signs == signs[:, :1]).all()
    assert np.abs(signs[:, 0].mean(axis=0)).max() < 0.15
    asked = np.sign(shifted.queries)
    if name == "opposite_quadrants":
        np.testing.assert_array_equal(asked, -signs)
    else:
        assert abs((asked * signs).mean()) < 0.05
    np.testing.assert_array_equal(np.abs(shifted.queries), np.abs(shifted.episodes.x))


def test_an_orthogonal_query_keeps_its_length_and_the_side_of_its_point():
    shifted = draw("orthogonal_query", prompts=50)
    x, queries = np.asarray(shifted.episodes.x), np.asarray(shifted.queries)[:, :DIM]
    inner = np.einsum("bid,bjd->bij", queries, x[:, :DIM])
    np.testing.assert_allclose(np.tril(inner, -1), 0, atol=1e-4)
    assert (np.diagonal(inner, axis1=1, axis2=2) > 0).all()
    lengths = np.linalg.norm(x[:, :DIM], axis=2)
    np.testing.assert_allclose(np.linalg.norm(queries, axis=2), lengths, rtol=1e-4)
    np.testing.assert_allclose(queries[:, 0], x[:, 0], rtol=1e-4, atol=1e-5)


def test_an_overlapping_query_is_each_earlier_point_as_often():
    shifted = draw("overlapping_query")
    x, queries = np.asarray(shifted.episodes.x), np.asarray(shifted.queries)
    same = (queries[:, :, None] == x[:, None]).all(axis=-1)
    for i in range(1, POINTS):
        assert (same[:, i].sum(axis=1) == 1).all() and not same[:, i, i:].any()
        np.testing.assert_allclose(same[:, i, :i].mean(axis=0), 1 / i, atol=0.06)
    for i in range(1, POINTS):
        label = (same[:, i] * np.asarray(shifted.episodes.y)).sum(axis=1)
        np.testing.assert_allclose(shifted.labels[:, i], label, rtol=1e-5, atol=1e-5)


def test_least_squares_knows_nothing_of_orthogonal_queries_and_all_of_repeated_ones():
    orthogonal = least_squares_error("orthogonal_query")[:, :DIM]
    tolerance = 5 * orthogonal.std(axis=0) / PROMPTS**0.5
    np.testing.assert_array_less(np.abs(orthogonal.mean(axis=0) - 1), tolerance)
    overlapping = least_squares_error("overlapping_query")[:, 1:]
    np.testing.assert_allclose(overlapping, 0, atol=1e-8)
    half = least_squares_error("half_subspace")[:, DIM // 2 :]
    np.testing.assert_allclose(half, 0, atol=1e-6)


def test_families_without_gaussian_inputs_have_no_shifts():
    assert set(shifts_of(FAMILY)) == set(SHIFTS)
    assert not shifts_of(OrthogonalOutlierRegression(dim=DIM, points=POINTS))
    assert "scale_x=3" in shifts_of(LinearClassification(dim=DIM, points=POINTS))
    assert "scale_y=3" not in shifts_of(LinearClassification(dim=DIM, points=POINTS))
    assert "noise" not in shifts_of(DecisionTree(dim=DIM, points=POINTS))


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return untrained(tmp_path_factory.mktemp("runs") / "run", tiny())


def test_an_evaluation_under_shifts_is_saved_shown_and_drawn(run, monkeypatch):
    names = "none half_subspace scale_x=1/3 scale_y=3 orthogonal_query overlapping_query".split()
    monkeypatch.setattr("icl.analysis.shifts.SHIFTS", {name: SHIFTS[name] for name in names})
    result = evaluate_shifts(run, prompts=150, resamples=20)
    assert list(result.curves) == names
    assert str(Shifts.load(run)) == str(result) and "half_subspace" in str(result)
    assert (run.path / "shifts.png").stat().st_size > 10_000
    saved = json.loads((run.path / "shifts.json").read_text())
    assert saved["examples"] == [0, 1, 2, 3, 4] and saved["prompts"] == 150
    assert saved["error"]["orthogonal_query"]["learner"]["mean"][3:] == [None, None]
    assert saved["error"]["overlapping_query"]["learner"]["mean"][0] is None
    plain = result.curves["none"]["least squares"].mean
    for scale in ("scale_x=1/3", "scale_y=3"):
        np.testing.assert_allclose(
            result.curves[scale]["least squares"].mean, plain, rtol=1e-3, atol=1e-6
        )
    with pytest.raises(ValueError, match="at least 1"):
        evaluate_shifts(run, prompts=0)


@pytest.mark.parametrize("points", [3, 8])
def test_the_gradient_of_an_exact_linear_predictor_lies_along_w(points):
    w, episodes, _ = draw_lines(LinearRegression(dim=4, points=points), jax.random.key(0), 10)
    exact = lambda episodes, queries: (queries * w[:, None]).sum(axis=-1)
    along, projected = gradient_cosines(query_gradients(exact, episodes, episodes.x), w, episodes.x)
    np.testing.assert_allclose(along, 1, rtol=1e-5)
    assert np.isnan(projected[:, 0]).all()
    np.testing.assert_allclose(projected[:, 4:], 1, rtol=1e-5)
    # Least squares from fewer points than dimensions knows the projection and no more.
    fit = lambda episodes, queries: baselines.least_squares(episodes.x, episodes.y, queries)
    _, projected = gradient_cosines(query_gradients(fit, episodes, episodes.x), w, episodes.x)
    np.testing.assert_allclose(projected[:, 1:4], 1, rtol=1e-3)


def test_the_learned_function_is_saved_shown_and_drawn(run):
    result = learned_function(run, prompts=40)
    assert str(LearnedFunction.load(run)) == str(result) and "cosine with w" in str(result)
    assert (run.path / "function.png").stat().st_size > 10_000
    np.testing.assert_allclose(result.error["least squares"][3:, [0, -1]], 0, atol=1e-6)
    np.testing.assert_allclose(
        result.example["least squares"], result.example["truth"], rtol=1e-3, atol=1e-3
    )
    assert np.isnan(result.cosine["projected w"][0]) and np.isfinite(result.cosine["w"]).all()


def test_the_learned_function_is_of_linear_regression(tmp_path):
    config = tiny(task=DecisionTree(dim=3, points=5))
    run = Run.create(tmp_path / "run", config)
    with pytest.raises(ValueError, match="DecisionTree has none"):
        learned_function(run)

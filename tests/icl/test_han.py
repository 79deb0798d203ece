"""Concept encoding and decoding: mixtures of bases and of functions, decodability, patching."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl.analysis import ask
from icl.analysis.concepts import (
    decodability,
    has_concepts,
    label_token,
    last_example,
    principal_plane,
    prompts_of_concepts,
)
from icl.analysis.patching import concept_directions, means_of, moved
from icl.evaluation import draw_prompts
from icl.evaluation.baselines import mixture_of_ridges, ridge_in_basis
from icl.evaluation.comparators import comparators
from icl.tasks import FAMILIES, BasisRegression, FunctionOfKind, LinearRegression, MixedRegression
from icl.training import Learner, Run

from .helpers import predictions, tiny, untrained

FAMILY = BasisRegression(dim=6, points=7, bases=3, noise=0.3)


def drawn(family, count, seed=0):
    keys = jax.random.split(jax.random.key(seed), count)
    return jax.jit(jax.vmap(lambda key: family.sample_task(key, family.full)))(keys)


@pytest.mark.parametrize(
    ("settings", "coordinates"),
    [
        (dict(dim=6, bases=3), [[0, 1], [2, 3], [4, 5]]),
        (dict(dim=7, bases=3, rank=1), [[0], [2], [4]]),
        (
            dict(dim=8, bases=4, rank=3, overlapping=True),
            [[0, 1, 2], [2, 3, 0], [4, 5, 6], [6, 7, 4]],
        ),
    ],
)
def test_weights_are_in_the_basis_of_their_task(settings, coordinates):
    family = BasisRegression(points=5, **settings)
    np.testing.assert_array_equal(family.coordinates, coordinates)
    tasks = drawn(family, 300)
    assert set(np.unique(family.concept(tasks))) == set(range(family.bases))
    for weights, basis in zip(*map(np.asarray, tasks)):
        np.testing.assert_array_equal(np.flatnonzero(weights), sorted(coordinates[basis]))


def test_impossible_bases_are_refused():
    with pytest.raises(ValueError, match="task.rank must be a whole number from 1 to 4, got 5"):
        BasisRegression(rank=5)
    with pytest.raises(ValueError, match="task.bases must be a whole number from 1 to 3, got 4"):
        BasisRegression(dim=3)
    with pytest.raises(ValueError, match="must be even, got 16 and 3"):
        BasisRegression(bases=3, overlapping=True)


def test_functions_of_each_kind():
    family = MixedRegression(dim=2, points=3)
    x = jnp.array([[1.0, 2.0], [-3.0, 1.0]])
    matrix = jnp.array([[1.0, 2.0], [0.0, -1.0]])
    weights = jnp.array([1.0, 1.0])
    of_kind = jax.jit(lambda kind: family.label(FunctionOfKind(weights, matrix, kind), x))
    labels = [of_kind(np.int32(kind)) for kind in range(4)]
    expected = [[3, -2], [3, -2], [3, -1], [1 / 2**0.5, 2 / 2**0.5]]
    np.testing.assert_allclose(labels, expected, rtol=1e-6)
    tasks = drawn(MixedRegression(dim=8, points=3), 200)
    nonzeros = np.asarray((tasks.weights != 0).sum(axis=1))
    np.testing.assert_array_equal(nonzeros, np.where(np.asarray(tasks.kind) == 1, 2, 8))


def by_bayes(family, x, y):
    """The posterior mean of each label, from Gaussian densities of all labels before it."""
    means, variance = np.zeros_like(y), family.noise**2
    for b, i in np.ndindex(*y.shape):
        evidence, mean = [], []
        for coordinates in family.coordinates:
            own = x[b, : i + 1, coordinates].T
            covariance = own @ own.T + variance * np.eye(i + 1)
            before, across = covariance[:i, :i], covariance[i, :i]
            solved = np.linalg.solve(before, y[b, :i])
            evidence.append(-(np.linalg.slogdet(before)[1] + y[b, :i] @ solved) / 2)
            mean.append(across @ solved)
        weights = np.exp(evidence - np.max(evidence))
        means[b, i] = weights @ mean / weights.sum()
    return means


def test_the_mixture_of_ridges_is_the_posterior_mean():
    for family in (FAMILY, BasisRegression(dim=8, points=7, bases=4, overlapping=True, noise=0.1)):
        episodes = draw_prompts(family, jax.random.key(0), 5)
        x, y = (np.asarray(a, np.float64) for a in (episodes.x, episodes.y))
        options = dict(coordinates=family.coordinates, variance=family.noise**2)
        ours = predictions(partial(mixture_of_ridges, **options), x, y)
        np.testing.assert_allclose(ours, by_bayes(family, x, y), rtol=1e-8, atol=1e-8)


def test_ridge_in_the_basis_of_the_prompt():
    family = dataclasses.replace(FAMILY, points=20, noise=0.1)
    episodes = prompts_of_concepts(family, jax.random.key(1), 4)
    x, y = (np.asarray(a, np.float64) for a in (episodes.x, episodes.y))
    options = dict(coordinates=family.coordinates, variance=0.01)
    ours = predictions(partial(ridge_in_basis, **options), x, y)[:, -1]
    for prompt, own in enumerate(family.coordinates.repeat(4, axis=0)):
        shown = x[prompt][:-1, own]
        weights = np.linalg.solve(shown.T @ shown + 0.01 * np.eye(2), shown.T @ y[prompt, :-1])
        np.testing.assert_allclose(ours[prompt], x[prompt, -1, own] @ weights, rtol=1e-8)


def test_the_bayes_mixture_is_the_best_comparator():
    several, optimal = comparators(FAMILY)
    assert optimal == several[0].names[0] and comparators(MixedRegression())[1] is None
    names = [name for one in several for name in one.names]
    assert "ridge" in names and "zero" in names and any("lasso" in name for name in names)


def test_prompts_have_the_concepts_asked_for():
    family = dataclasses.replace(FAMILY, noise=0.0)
    episodes = prompts_of_concepts(family, jax.random.key(0), 5)
    assert episodes.y.shape == (15, 7)
    for x, y, own in zip(
        *map(np.asarray, (episodes.x, episodes.y)), family.coordinates.repeat(5, axis=0)
    ):
        weights = np.linalg.lstsq(x[:, own], y, rcond=None)[0]
        np.testing.assert_allclose(x[:, own] @ weights, y, atol=1e-4)
    again = prompts_of_concepts(family, jax.random.key(0), 5)
    np.testing.assert_array_equal(episodes.x, again.x)
    assert len(np.unique(np.asarray(episodes.x[:, 0, 0]))) == 15


class Rare(LinearRegression):
    """A family of one's own, whose second concept never comes."""

    concepts = property(lambda self: ("often", "never"))

    def concept(self, task):
        return (task[0] > 99).astype(jnp.int32)


def test_a_concept_that_never_comes_is_named(monkeypatch):
    monkeypatch.setattr("icl.analysis.concepts.MOST_DRAWS", 4)
    with pytest.raises(ValueError, match="only 0 of 24 tasks have the concept 'never'"):
        prompts_of_concepts(Rare(dim=2, points=3), jax.random.key(0), 3)
    with pytest.raises(NotImplementedError, match="tasks of LinearRegression have no concepts"):
        LinearRegression().concept(jnp.zeros(20))


def test_decodability_is_1_apart_and_chance_in_noise():
    rng = np.random.default_rng(0)
    labels = np.repeat(np.arange(4), 100)
    centres = 20 * np.eye(4)[labels]
    noise = rng.normal(size=(400, 4))
    np.testing.assert_array_equal(decodability(centres + noise, labels), 1)
    # Standard error of the mean: about 0.02.
    assert abs(decodability(noise, labels).mean() - 0.25) < 0.08
    together = np.where(labels == 3, 2, labels)
    scores = decodability(20 * np.eye(4)[together] + noise, labels)
    np.testing.assert_array_equal(scores[:2], 1)
    assert abs(scores[2:].mean() - 0.5) < 0.15


def test_ties_go_to_nearer_neighbours_and_no_vote_is_ones_own():
    line = np.array([[0.0], [1.0], [2.1], [3.3]])
    np.testing.assert_array_equal(decodability(line, np.array([0, 1, 0, 1]), 1), [0, 0])
    np.testing.assert_array_equal(decodability(line, np.array([0, 0, 1, 1]), 2), [1, 0.5])


def test_the_plane_has_the_two_largest_variances():
    rng = np.random.default_rng(1)
    basis = np.linalg.qr(rng.normal(size=(5, 5)))[0]
    plane = principal_plane(rng.normal(size=(400, 5)) * [9, 5, 1, 1, 1] @ basis)
    np.testing.assert_allclose(plane.std(axis=0), [9, 5], rtol=0.1)
    assert principal_plane(np.ones((3, 1))).shape == (3, 2)


@pytest.mark.parametrize(
    "layout", ["interleaved", "tagged", "paired", "shifted", "concatenated", "separate"]
)
def test_the_token_of_the_last_label(layout):
    config = tiny(layout=layout, task=dataclasses.replace(FAMILY, points=4))
    learner = Learner(config)
    episodes = draw_prompts(config.task, jax.random.key(0), 1)
    point = last_example(config.task)
    assert point == 2
    y = np.array(episodes.y)
    y[:, point] += 1
    params = jax.eval_shape(learner.init, jax.random.key(0))  # no token is embedded
    params = jax.tree.map(lambda a: np.zeros(a.shape, a.dtype), params)
    encode = jax.jit(learner.encode)
    before, after = (np.asarray(encode(params, e)) for e in (episodes, episodes._replace(y=y)))
    first = np.flatnonzero((before[0] != after[0]).any(axis=-1))[0]
    assert first == label_token(config, point)


def test_which_runs_have_concepts():
    config = tiny(task=FAMILY)
    assert has_concepts(config) and not has_concepts(tiny())
    assert not has_concepts(config.replace(task_points=1))
    assert not has_concepts(config.replace(task_bases=1))


@dataclasses.dataclass(frozen=True)
class Offsets(LinearRegression):
    """A family of one's own: y is near -9, 0 or 9, so that a single label tells the concept."""

    concepts = property(lambda self: ("low", "middle", "high"))

    def sample_task(self, key, difficulty, data=None):
        return jax.random.randint(key, (), 0, 3)

    def concept(self, task):
        return task

    def label(self, task, x):
        return 9.0 * (task.astype(jnp.float32) - 1) + 0.1 * x[..., 0]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    FAMILIES["offsets"] = Offsets
    yield untrained(tmp_path_factory.mktemp("run") / "run", tiny(task=Offsets(dim=3, points=5)))
    del FAMILIES["offsets"]


def test_concepts_of_ones_own_family_are_decoded(run):
    found = ask("decodability", run, prompts=12)
    assert found.concepts == ["low", "middle", "high"] and found.example == 4
    np.testing.assert_array_equal(found.score, np.ones((1, 2, 3)))
    assert found.layer == 1 and [one.points.shape for one in found.maps] == [(36, 2)]
    # An untrained model predicts about 0; the mean squared label is 3.
    np.testing.assert_allclose(found.error, [[27, 0, 27]], atol=6)
    assert set(found.references) == {"least squares", "ridge"}
    with pytest.raises(ValueError, match="layer must be from 0 to 1, got 2"):
        ask("decodability", run, prompts=2, layer=2)
    with pytest.raises(ValueError, match="has no concepts to decode: its task, LinearRegression"):
        ask("patching", Run.create(run.path.parent / "linear", tiny()))


def test_patches_of_labels_reach_later_predictions_through_attention(run):
    first, last = (ask("patching", run, prompts=12, layer=layer) for layer in (0, 1))
    assert last.layer == 1 and last.error.shape == (3,)
    for change in (last.change, last.whole):  # no attention comes after the last layer
        np.testing.assert_array_equal(change, 0)
    assert np.abs(first.change).min() > 0 and np.abs(first.whole).min() > 0
    assert means_of(np.array([[1.0, 2], [4, 3]])) == (2, 3)


def test_patches_move_what_tells_concepts_apart_and_nothing_else():
    rng = np.random.default_rng(0)
    means, activations = rng.normal(size=(3, 6)), rng.normal(size=(5, 4, 6))
    along = concept_directions(means)
    patched = moved(activations, means[1], along)
    assert along.shape == (2, 6)
    np.testing.assert_allclose(along @ along.T, np.eye(2), atol=1e-12)
    # The differences between means lie in the plane of the directions.
    for other in (0, 2):
        difference = means[other] - means[1]
        np.testing.assert_allclose(along.T @ (along @ difference), difference, atol=1e-12)
    aim = np.broadcast_to(along @ means[1], (5, 4, 2))
    np.testing.assert_allclose(patched @ along.T, aim, atol=1e-12)
    rest = np.eye(6) - along.T @ along
    np.testing.assert_allclose(patched @ rest, activations @ rest)

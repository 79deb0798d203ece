"""Laws of every registered task family, and the documented properties of each."""

import dataclasses
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl.tasks import (
    FAMILIES,
    Curriculum,
    DecisionTree,
    LinearClassification,
    LinearRegression,
    ManyOutlierRegression,
    OrthogonalOutlierRegression,
    Parity,
    QuadraticRegression,
    RandomNetwork,
    ReLUNetwork,
    SineRegression,
    SparseLinearRegression,
    VectorRetrieval,
    WhitenedRegression,
    garg_curriculum,
    pool_task,
    sample_batch,
    sample_prompt,
)
from icl.tasks.base import Difficulty, FunctionFamily
from icl.tasks.draws import normal, uniform

from .helpers import sized

# Families of images are in test_images.py.
FAMILY_IDS = sorted(n for n, family in FAMILIES.items() if issubclass(family, FunctionFamily))
PARTLY_QUERIED = (ManyOutlierRegression, OrthogonalOutlierRegression, VectorRetrieval)
MANY = 4000


@pytest.fixture(params=FAMILY_IDS)
def family(request):
    return sized(request.param, dim=4, points=9)


def batch(family, seed=0, size=16, difficulty=None, **options):
    difficulty = difficulty or family.full
    return draw_batch(family, jax.random.key(seed), jnp.arange(size), difficulty, **options)


# Compiled once for each family and shared by most tests of this file.
@partial(jax.jit, static_argnums=0, static_argnames="pool_prompts")
def draw_batch(family, key, indices, difficulty, **options):
    return sample_batch(family, key, indices, difficulty, **options)


def labels_of(family, task, episodes):
    """The oracle's labels and the drawn labels of all queries."""
    queried = np.asarray(episodes.queries)
    oracle = jax.jit(jax.vmap(lambda x: family.label(task, x)))(episodes.x)
    return np.asarray(oracle)[queried], np.asarray(episodes.y)[queried]


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def test_equal_keys_draw_equal_bits_and_other_keys_other_bits(family):
    assert equal(batch(family, 0), batch(family, 0))
    assert not equal(batch(family, 0).x, batch(family, 1).x)


def test_a_compiled_batch_equals_prompts_sampled_one_by_one(family):
    together = batch(family, 5)
    alone = sample_prompt(family, jax.random.fold_in(jax.random.key(5), 3), family.full)
    one = jax.tree.map(lambda a: a[3], together)
    for a, b in zip(*map(jax.tree.leaves, (one, alone)), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_splitting_a_batch_does_not_change_its_bits(family):
    draw = lambda *rows: draw_batch(family, jax.random.key(0), jnp.arange(*rows), family.full)
    halves = [draw(0, 8), draw(8, 16)]
    assert equal(draw(16), jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *halves))


def test_shapes_and_finiteness(family):
    episodes = batch(family)
    labels = (16, 9, *family.label_kind.shape)
    assert episodes.x.shape == (16, 9, family.dim) and episodes.x.dtype == jnp.float32
    assert episodes.y.shape == labels and episodes.y.dtype == jnp.float32
    assert episodes.queries.shape == (16, 9) and episodes.queries.any()
    if episodes.label_tokens is not None:
        assert episodes.label_tokens.shape == (16, 9, 4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(episodes))


def test_moments(family):
    episodes = batch(family, size=MANY)
    queried = np.asarray(episodes.queries)
    x, y = np.asarray(episodes.x)[queried], np.asarray(episodes.y)[queried]
    # Standard errors: about 1 / sqrt(number of queries) for x, sqrt(3 / MANY) * scale for y.
    near = 6 / len(x) ** 0.5
    covariance = covariance_of(family)
    size = covariance.max()
    np.testing.assert_allclose(x.mean(axis=0), 0, atol=near * size**0.5)
    np.testing.assert_allclose(x.T @ x / len(x), covariance, atol=1.4 * near * size)
    # With phases from 0 to pi a sine has the mean E a * E[sin(x) cos(phase) + cos(x) sin(phase)].
    mean = 2.55 * np.sin(5) / 5 * 2 / np.pi if isinstance(family, SineRegression) else 0.0
    scale = getattr(family.label_kind, "scale", 1.0)  # signs have none
    assert np.abs(y.mean(axis=0) - mean).max() < 0.1 * scale**0.5
    squared = y**2 if family.label_kind.shape == () else (y**2).sum(axis=-1)
    np.testing.assert_allclose(squared.mean(), scale, rtol=0.1)


def covariance_of(family):
    match family:
        case SineRegression() | RandomNetwork():
            return np.eye(family.dim) * family.input_range**2 / 3
        case WhitenedRegression():
            return np.asarray(family.root() @ family.root().T)
    return np.eye(family.dim)


def test_difficulty_hides_coordinates_and_points_without_recompiling(family):
    batch(family)
    compiled = draw_batch._cache_size()
    for dim, points in ((1, 3), (min(3, family.dim), 9), (family.dim, 1)):
        episodes = jax.tree.map(np.asarray, batch(family, difficulty=Difficulty(dim, points)))
        np.testing.assert_array_equal(episodes.x[..., dim:], 0)
        assert (np.abs(episodes.x[..., :dim][episodes.queries]) > 0).all()
        assert not episodes.queries[:, points:].any()
        if not isinstance(family, PARTLY_QUERIED):
            assert episodes.queries[:, :points].all()
        assert np.isfinite(episodes.y).all()
    assert draw_batch._cache_size() == compiled


def test_a_pool_has_distinct_tasks_that_repeat_and_takes_no_memory(family):
    # With this key the first three parities differ.
    pool_key = jax.random.key(12)
    of_pool = jax.jit(lambda index: pool_task(family, pool_key, index))
    flat = lambda task: tuple(np.concatenate([np.ravel(a) for a in jax.tree.leaves(task)]))
    assert len({flat(of_pool(index)) for index in range(3)}) == 3
    pooled = batch(family, pool_key=pool_key, pool_size=1)
    oracle, labels = labels_of(family, of_pool(0), pooled)
    np.testing.assert_allclose(oracle, labels, atol=1e-6)
    oracle, labels = labels_of(family, of_pool(0), batch(family))
    assert np.abs(oracle - labels).max() > 0.1
    # A pool of 2^25 tasks takes no memory.
    many = draw_batch.lower(
        family, pool_key, jnp.arange(16), family.full, pool_key=pool_key, pool_size=2**25
    )
    memory = many.compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 2**20


@pytest.mark.parametrize("settings", [dict(dim=0), dict(points=0)])
def test_impossible_sizes_are_refused(family, settings):
    with pytest.raises(ValueError, match="must be a whole number from [12] to .*, got 0"):
        dataclasses.replace(family, **settings)


def test_linear_regression_noise_and_skew():
    family = LinearRegression(dim=6, points=8, noise=0.5, covariance_decay=2.0)
    np.testing.assert_allclose(np.trace(family.covariance()), 6, rtol=1e-5)
    eigenvalues = np.linalg.eigvalsh(family.covariance())[::-1]
    np.testing.assert_allclose(eigenvalues / eigenvalues[0], 1 / np.arange(1, 7) ** 2, rtol=1e-4)
    np.testing.assert_allclose(family.signal(2), np.trace(family.covariance()[:2, :2]), rtol=1e-5)
    x = np.asarray(batch(family, size=MANY).x)
    np.testing.assert_allclose(
        np.einsum("bpd,bpe->de", x, x) / (MANY * 8), family.covariance(), atol=0.12
    )
    key, task = jax.random.key(0), jnp.zeros(6)
    residuals = jax.vmap(lambda k: family.sample_episode(k, task, family.full).y)(
        jax.random.split(key, MANY)
    )
    np.testing.assert_allclose(residuals.std(), 0.5, rtol=0.02)
    with pytest.raises(ValueError, match="task.noise must be .* from 0 to"):
        LinearRegression(noise=-1.0)


def test_decision_tree_walks_as_documented():
    family = DecisionTree(dim=3, points=5, depth=2)
    tree = family.sample_task(jax.random.key(0), family.full)
    tree = tree._replace(coordinates=jnp.array([2, 0, 1]), leaves=jnp.arange(4.0))
    x = jnp.array([[-1, 9, -1], [1, 9, -1], [9, -1, 1], [9, 1, 1]])
    np.testing.assert_array_equal(family.label(tree, x), [0, 1, 2, 3])
    drawn = jax.vmap(lambda k: family.sample_task(k, Difficulty(2, 5)))(
        jax.random.split(jax.random.key(1), 200)
    )
    assert set(np.unique(drawn.coordinates)) == {0, 1}
    with pytest.raises(ValueError, match="depth"):
        DecisionTree(depth=0)


@pytest.mark.parametrize("shape", [(), (5,), (3, 7, 20)])
def test_draws_are_bit_equal_to_jax_random(shape):
    for implementation in ("threefry2x32", "rbg"):
        keys = [jax.random.key(3, impl=implementation) for _ in range(4)]
        np.testing.assert_array_equal(normal(keys[0], shape), jax.random.normal(keys[1], shape))
        theirs = jax.random.uniform(keys[3], shape, minval=-0.5, maxval=2)
        np.testing.assert_array_equal(uniform(keys[2], shape, -0.5, 2), theirs)


def draw_tasks(family, count=500, dim=None):
    difficulty = Difficulty(dim or family.dim, family.points)
    keys = jax.random.split(jax.random.key(1), count)
    return np.asarray(jax.vmap(lambda key: family.sample_task(key, difficulty))(keys))


def test_sparse_weights_are_among_the_coordinates_in_use():
    family = SparseLinearRegression(dim=6, points=4, nonzeros=3)
    for dim, expected in ((6, 3), (4, 3), (2, 2)):
        tasks = draw_tasks(family, dim=dim)
        np.testing.assert_array_equal((tasks != 0).sum(axis=1), expected)
        np.testing.assert_array_equal(tasks[:, dim:], 0)
        np.testing.assert_allclose((tasks[:, :dim] != 0).mean(axis=0), expected / dim, atol=0.12)
    with pytest.raises(ValueError, match="nonzeros"):
        SparseLinearRegression(dim=2, nonzeros=3)


def test_parity_is_a_product_of_its_coordinates():
    family = Parity(dim=5, points=8, relevant=2)
    tasks = draw_tasks(family)
    np.testing.assert_array_equal(tasks.sum(axis=1), 2)
    assert len({tuple(task) for task in tasks}) == 10
    x = jnp.array([[1, -1, 1, -1, 1.0], [-1, -1, 1, 1, 1]])
    task = jnp.array([True, False, False, True, False])
    np.testing.assert_array_equal(family.label(task, x), [-1, -1])
    with pytest.raises(ValueError, match="relevant"):
        Parity(dim=3, relevant=4)


def test_signs_are_scored_by_cross_entropy_and_misclassification():
    family = LinearClassification(dim=3, points=4)
    assert set(np.unique(batch(family).y)) == {-1.0, 1.0}
    y, log_odds = jnp.array([1.0, 1.0, -1.0]), jnp.array([2.0, 0.0, 1.0])
    probability = jax.nn.sigmoid(y * log_odds)
    np.testing.assert_allclose(
        family.label_kind.loss(log_odds, y), -jnp.log(probability), rtol=1e-6
    )
    np.testing.assert_array_equal(family.label_kind.error(log_odds, y), [0, 0.5, 1])


def test_quadratic_and_network_labels_as_documented():
    x = jnp.array([[1.0, 2.0], [-1.0, 0.5]])
    quadratic = QuadraticRegression(dim=2, points=2)
    np.testing.assert_allclose(
        quadratic.label(jnp.array([3.0, -1.0]), x), [-1 / 3**0.5, 2.75 / 3**0.5], rtol=1e-6
    )
    network = ReLUNetwork(dim=2, points=2, hidden=2)
    task = network.sample_task(jax.random.key(0), network.full)
    task = task._replace(hidden=jnp.array([[1.0, -1.0], [0.0, 1.0]]), out=jnp.array([2.0, 1.0]))
    np.testing.assert_allclose(network.label(task, x), [3.0, 1.5])
    with pytest.raises(ValueError, match="hidden"):
        ReLUNetwork(hidden=0)


def test_many_outliers_are_ones_and_are_not_queries():
    family = ManyOutlierRegression(dim=3, points=40, outliers=0.8)
    episodes = jax.tree.map(np.asarray, batch(family, size=50))
    np.testing.assert_allclose(episodes.queries.mean(), 0.2, atol=0.04)
    for array in (episodes.x, episodes.label_tokens, episodes.y[..., None]):
        np.testing.assert_array_equal(array[~episodes.queries], 1)
    np.testing.assert_array_equal(episodes.label_tokens[episodes.queries][:, 1:], 0)
    np.testing.assert_array_equal(
        episodes.label_tokens[episodes.queries][:, 0], episodes.y[episodes.queries]
    )
    with pytest.raises(ValueError, match="task.outliers must be .* from 0 to 0.999"):
        ManyOutlierRegression(outliers=1.0)


def test_orthogonal_outliers_are_orthogonal_to_the_task():
    family = OrthogonalOutlierRegression(dim=5, points=30, outliers=0.5)
    task = family.sample_task(jax.random.key(0), family.full)
    episode = family.sample_episode(jax.random.key(1), task, family.full)
    outliers = np.asarray(episode.x)[~np.asarray(episode.queries)]
    tokens = np.asarray(episode.label_tokens)[~np.asarray(episode.queries)]
    both = np.concatenate([outliers, tokens])
    np.testing.assert_allclose(both @ np.asarray(task), 0, atol=1e-4 * np.abs(both).max())
    assert np.linalg.matrix_rank(both, tol=1e-4 * np.abs(both).max()) == 2


def test_retrieval_asks_for_a_key_that_was_shown():
    family = VectorRetrieval(dim=4, points=6)
    for points in (6, 3):
        episodes = batch(family, size=200, difficulty=Difficulty(4, points))
        query = points - 1
        np.testing.assert_array_equal(np.flatnonzero(episodes.queries[0]), [query])
        same = (episodes.x[:, :query] == episodes.x[:, query, None]).all(axis=-1)
        np.testing.assert_array_equal(same.sum(axis=1), 1)
        asked = jnp.argmax(same, axis=1)
        assert set(np.unique(asked)) == set(range(query))
        np.testing.assert_array_equal(episodes.y[jnp.arange(200), asked], episodes.y[:, query])
        np.testing.assert_allclose((episodes.y**2).sum(axis=-1), 4, rtol=1e-5)
    with pytest.raises(ValueError, match="task.points must be .* from 2 to"):
        VectorRetrieval(points=1)


def test_renormalised_labels_are_divided_by_a_constant():
    family = LinearRegression(dim=4, points=9, noise=1.0, renormalize=True)
    plain = dataclasses.replace(family, renormalize=False)
    for dim in (2, 4):
        ours, theirs = (batch(f, size=MANY, difficulty=Difficulty(dim, 9)) for f in (family, plain))
        np.testing.assert_allclose(ours.y, theirs.y * (4 / (dim + 1)) ** 0.5, rtol=1e-5)
    # Labels of a prompt share w, so the standard error is near sqrt(2 / (4 MANY)).
    np.testing.assert_allclose(family.label_kind.error(0.0, ours.y).mean(), 1, rtol=0.05)
    np.testing.assert_allclose(plain.label_kind.error(0.0, theirs.y).mean(), 1.25, rtol=0.05)
    assert dataclasses.replace(family, noise=9.0, input_scale=9.0).label_kind.scale == 4
    sparse = SparseLinearRegression(dim=4, points=9, nonzeros=2, renormalize=True)
    np.testing.assert_allclose(sparse.label_factor(jnp.array([1, 2, 4])), [2, 2**0.5, 2**0.5])
    assert sparse.label_kind.scale == 4


def test_the_name_of_an_error_tells_what_its_scale_leaves_out():
    name = lambda **settings: LinearRegression(dim=4, points=9, **settings).label_kind.error_name
    plain = "squared error / mean squared label"
    assert name() == name(noise=0.7, renormalize=True) == plain
    assert name(noise=0.7) == f"{plain} without noise"
    assert name(noise=0.7, random_labels=2) == f"{plain} without noise and random ones"


@pytest.mark.parametrize("inputs", ["uniform", "exponential", "laplace"])
def test_linear_regression_with_other_input_distributions_and_scales(inputs):
    family = LinearRegression(dim=4, points=9, inputs=inputs, input_scale=0.5, task_scale=3.0)
    episodes = batch(family, size=MANY)
    np.testing.assert_allclose((episodes.y**2).mean(), family.label_kind.scale, rtol=0.1)
    np.testing.assert_allclose(draw_tasks(family).std(), 3, rtol=0.05)
    x = np.asarray(episodes.x)
    low, high = {"uniform": (-0.5, 0.5), "exponential": (0, 9), "laplace": (-9, 9)}[inputs]
    assert low <= x.min() and x.max() <= high
    np.testing.assert_allclose((x**2).mean(), family.label_size / 9, rtol=0.05)
    for wrong in (dict(inputs="cauchy"), dict(input_scale=0.0), dict(covariance_decay=1.0)):
        with pytest.raises(ValueError, match="inputs|input_scale|covariance_decay"):
            dataclasses.replace(family, **wrong)


def test_random_labels_come_first_and_do_not_depend_on_x():
    family = LinearRegression(dim=4, points=9, random_labels=3)
    episodes, plain = batch(family, size=500), batch(dataclasses.replace(family, random_labels=0))
    task = family.sample_task(jax.random.key(0), family.full)
    drawn = family.sample_episode(jax.random.key(1), task, family.full)
    error = np.abs(np.asarray(drawn.y - family.label(task, drawn.x)))
    assert error[:3].min() > 1e-3 and error[3:].max() < 1e-6
    np.testing.assert_allclose(np.asarray(episodes.y)[:, :3].std(), 1, rtol=0.1)
    assert plain.y.shape == (16, 9)
    with pytest.raises(ValueError, match="from 0 to 8"):
        LinearRegression(dim=4, points=9, random_labels=9)


def test_sines_have_independent_amplitude_and_phase():
    family = SineRegression(points=5, low_amplitude=1.0, high_amplitude=3.0, input_range=2.0)
    tasks = draw_tasks(family, count=MANY)
    assert 1 <= tasks[:, 0].min() and tasks[:, 0].max() <= 3
    assert 0 <= tasks[:, 1].min() and tasks[:, 1].max() <= np.pi
    assert abs(np.corrcoef(tasks[:, :2].T)[0, 1]) < 0.05 and (tasks[:, 2] == 1).all()
    faster = dataclasses.replace(family, low_frequency=2.0, high_frequency=6.0)
    frequencies = draw_tasks(faster, count=MANY)[:, 2]
    np.testing.assert_allclose([frequencies.mean(), frequencies.std()], [4, 4 / 12**0.5], rtol=0.03)
    y = np.asarray(batch(faster, size=MANY).y)
    np.testing.assert_allclose((y**2).mean(), faster.label_kind.scale, rtol=0.05)
    np.testing.assert_allclose(
        family.label(jnp.array([2.0, 0.5, 3.0]), jnp.array([[1.0], [-1.0]])),
        2 * np.sin([3.5, -2.5]),
        rtol=1e-6,
    )
    for wrong in (
        dict(dim=2),
        dict(low_amplitude=4.0),
        dict(low_frequency=2.0),
        dict(input_range=0.0),
    ):
        with pytest.raises(ValueError, match="dim must be 1|amplitude|frequency|input_range"):
            dataclasses.replace(family, **wrong)


def test_random_networks_compute_what_they_document():
    family = RandomNetwork(
        dim=2, points=6, widths=(3, 4), activations=("tanh", "swish"), output="sigmoid"
    )
    (w1, b1), (w2, b2), (w3, b3) = jax.tree.map(
        np.asarray, family.sample_task(jax.random.key(0), family.full)
    )
    x = np.asarray(batch(family).x[0])
    hidden = np.tanh(x @ w1 + b1) @ w2 + b2
    hidden = hidden / (1 + np.exp(-hidden))
    expected = (1 / (1 + np.exp(-(hidden @ w3 + b3))))[:, 0]
    found = family.label(((w1, b1), (w2, b2), (w3, b3)), jnp.asarray(x))
    assert np.ptp(expected / found) < 1e-5 * (expected / found).mean()  # one scale for all
    for wrong, words in (
        (dict(widths=(3,)), "one activation for each"),
        (dict(output="gelu"), "no activation 'gelu'; there are linear, relu"),
        (dict(widths=(3, 0)), "task.widths must be"),
        (dict(weight_std=0.0), "weight_std"),
    ):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(family, **wrong)


def test_the_last_points_are_queries_if_asked():
    family = LinearRegression(dim=2, points=7, queries=3)
    assert family.hidden_queries == 3 and LinearRegression().hidden_queries == 0
    for points in (7, 5):
        drawn = batch(family, difficulty=Difficulty(2, points))
        at = np.arange(7)
        query = (at >= points - 3) & (at < points)
        assert (np.asarray(drawn.queries) == query).all()
        assert (np.asarray(drawn.context) == (at < points - 3)).all()
    with pytest.raises(ValueError, match="task.queries must be a whole number from 1 to 6"):
        LinearRegression(points=7, queries=7)
    with pytest.raises(ValueError, match="has one query, the last: leave task.queries None"):
        VectorRetrieval(points=7, queries=2)
    with pytest.raises(ValueError, match="any inlier of this task may be a query"):
        ManyOutlierRegression(points=7, queries=2)


def test_a_pool_of_prompts_also_fixes_the_points():
    family = LinearRegression(dim=3, points=4)
    draw = partial(batch, family, pool_key=jax.random.key(9), pool_size=5, size=60)
    tasks = lambda episodes: len(np.unique(np.asarray(episodes.x).round(5), axis=0))
    assert tasks(draw()) == 60 and tasks(draw(pool_prompts=True)) == 5
    first, other = draw(pool_prompts=True), draw(pool_prompts=True, seed=1)
    known = {prompt.tobytes() for prompt in np.asarray(first.x)}
    assert known == {prompt.tobytes() for prompt in np.asarray(other.x)}


def test_gargs_schedule():
    family = LinearRegression(dim=20, points=41)
    at = jax.jit(lambda step: garg_curriculum().at(step, family))
    for step, dim, points in (
        (0, 5, 11),
        (1999, 5, 11),
        (2000, 6, 13),
        (30_000, 20, 41),
        (10**6, 20, 41),
    ):
        assert tuple(map(int, at(step))) == (dim, points, 0)
    assert Curriculum().at(0, family) == family.full
    with pytest.raises(ValueError, match="interval"):
        Curriculum(interval=0)

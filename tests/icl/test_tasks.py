"""Laws of every registered task family, and the documented properties of each."""

import dataclasses
import functools
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
MANY, BLOCK = 4000, 500  # prompts of a test of moments, and of a program


@pytest.fixture(params=FAMILY_IDS)
def family(request):
    return sized(request.param, dim=4, points=9)


# The only program of most families: prompts, their tasks, and what the oracle says of them.
@partial(jax.jit, static_argnums=0)
def draw_block(family, key, indices, difficulty):
    task = lambda i: family.sample_task(jax.random.split(jax.random.fold_in(key, i))[0], difficulty)
    tasks = jax.vmap(task)(indices)
    episodes = sample_batch(family, key, indices, difficulty)
    return tasks, episodes, jax.vmap(family.label)(tasks, episodes.x)


def drawn(family, seed=0, first=0, difficulty=None):
    """The prompts of a key from the one with index `first` on."""
    key, indices = jax.random.key(seed), np.arange(first, first + BLOCK, dtype=np.int32)
    return jax.device_get(draw_block(family, key, indices, difficulty or family.full))


@functools.cache
def many(family, **difficulty):
    """Tasks, prompts and the oracle's labels of many indices."""
    chosen = family.full._replace(**difficulty)
    blocks = [drawn(family, 0, first, chosen) for first in range(0, MANY, BLOCK)]
    return jax.tree.map(lambda *parts: np.concatenate(parts), *blocks)


@partial(jax.jit, static_argnums=0)
def draw_pool(family, key, indices, pool_key, pool_size):
    episodes = sample_batch(
        family, key, indices, family.full, pool_key=pool_key, pool_size=pool_size
    )
    tasks = jax.vmap(lambda index: pool_task(family, pool_key, index))(indices)
    first = jax.tree.map(lambda a: a[0], tasks)
    return tasks, episodes, family.label(first, episodes.x)


def labels_of(family, task, x):
    return np.asarray(jax.jit(family.label)(task, x))


def leaves(tree):
    return list(map(np.asarray, jax.tree.leaves(tree)))


def equal(a, b):
    return all((x == y).all() for x, y in zip(leaves(a), leaves(b), strict=True))


def test_a_prompt_depends_on_the_key_and_its_index_alone(family):
    first, later, other = drawn(family), drawn(family, first=3), drawn(family, seed=1)
    part = lambda drawn, rows: jax.tree.map(lambda a: a[rows], drawn)
    assert equal(part(first, slice(3, None)), part(later, slice(BLOCK - 3)))
    for ours, theirs in ((first, other), (first, later)):
        assert all((a != b).any() for a, b in zip(leaves(ours[0]), leaves(theirs[0])))
        assert not equal(ours[1].x, theirs[1].x)


# How vmap splits a batch, and what XLA makes of each size, is no matter of the family.
@pytest.mark.parametrize("name", ["linear_regression", "relu_network"])
def test_a_compiled_batch_equals_its_halves_and_prompts_sampled_one_by_one(name):
    family = sized(name, dim=4, points=9)
    draw = jax.jit(lambda indices: sample_batch(family, jax.random.key(5), indices, family.full))
    batch = draw(np.arange(16))
    halves = [draw(np.arange(*rows)) for rows in ((0, 8), (8, 16))]
    assert equal(batch, jax.tree.map(lambda a, b: np.concatenate([a, b]), *halves))
    if name == "linear_regression":
        alone = jax.jit(lambda key: sample_prompt(family, key, family.full))(
            jax.random.fold_in(jax.random.key(5), 3)
        )
        for a, b in zip(leaves(batch), leaves(alone), strict=True):
            np.testing.assert_allclose(a[3], b, rtol=1e-5, atol=1e-5)


def test_shapes_and_finiteness(family):
    _, episodes, _ = drawn(family)
    labels = (BLOCK, 9, *family.label_kind.shape)
    assert episodes.x.shape == (BLOCK, 9, family.dim) and episodes.x.dtype == jnp.float32
    assert episodes.y.shape == labels and episodes.y.dtype == jnp.float32
    assert episodes.queries.shape == (BLOCK, 9) and episodes.queries.any()
    if episodes.label_tokens is not None:
        assert episodes.label_tokens.shape == (BLOCK, 9, 4)
    assert all(np.isfinite(leaf).all() for leaf in jax.tree.leaves(episodes))


def test_labels_are_those_of_the_task(family):
    tasks, episodes, oracle = drawn(family)
    queried = episodes.queries
    np.testing.assert_allclose(oracle[queried], episodes.y[queried], atol=1e-6)
    assert np.abs(oracle - np.roll(oracle, 1, axis=0)).max() > 0.1


def test_moments(family):
    _, episodes, _ = many(family)
    queried = episodes.queries
    x, y = episodes.x[queried], episodes.y[queried]
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
            root = np.asarray(family.root())
            return root @ root.T
    return np.eye(family.dim)


def test_difficulty_hides_coordinates_and_points_without_recompiling(family):
    drawn(family)
    compiled = draw_block._cache_size()
    for dim, points in ((1, 3), (min(3, family.dim), 9), (family.dim, 1)):
        _, episodes, _ = drawn(family, difficulty=Difficulty(dim, points))
        np.testing.assert_array_equal(episodes.x[..., dim:], 0)
        assert (np.abs(episodes.x[..., :dim][episodes.queries]) > 0).all()
        assert not episodes.queries[:, points:].any()
        if not isinstance(family, PARTLY_QUERIED):
            assert episodes.queries[:, :points].all()
        assert np.isfinite(episodes.y).all()
    assert draw_block._cache_size() == compiled


@pytest.mark.parametrize("name", ["linear_regression", "parity"])
def test_a_pool_has_distinct_tasks_that_repeat_and_takes_no_memory(name):
    family = sized(name, dim=4, points=9)
    # With this pool key the first three parities differ.
    given = jax.random.key(0), np.arange(16), jax.random.key(12)
    draw = draw_pool.lower(family, *given, 1).compile()
    tasks, pooled, oracle = draw(*given, 1)
    task = lambda index: tuple(np.concatenate([np.ravel(a[index]) for a in leaves(tasks)]))
    assert len({task(index) for index in range(3)}) == 3
    of_first = lambda drawn, oracle: np.abs(np.asarray(oracle - drawn.y)[np.asarray(drawn.queries)])
    assert of_first(pooled, oracle).max() < 1e-6
    _, several, oracle = draw(*given, 2**25)
    assert of_first(several, oracle).max() > 0.1
    # A pool of 2^25 tasks takes no memory: its size is no matter of the program.
    memory = draw.memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 2**20


@pytest.mark.parametrize("settings", [dict(dim=0), dict(points=0)])
def test_impossible_sizes_are_refused(family, settings):
    with pytest.raises(ValueError, match="must be a whole number from [12] to .*, got 0"):
        dataclasses.replace(family, **settings)


def test_linear_regression_noise_and_skew():
    family = LinearRegression(dim=6, points=8, noise=0.5, covariance_decay=2.0)
    covariance, signal = jax.jit(lambda: (family.covariance(), family.signal(2)))()
    np.testing.assert_allclose(np.trace(covariance), 6, rtol=1e-5)
    eigenvalues = np.linalg.eigvalsh(covariance)[::-1]
    np.testing.assert_allclose(eigenvalues / eigenvalues[0], 1 / np.arange(1, 7) ** 2, rtol=1e-4)
    np.testing.assert_allclose(signal, np.trace(covariance[:2, :2]), rtol=1e-5)
    _, (x, y, *_), noiseless = many(family)
    np.testing.assert_allclose(np.einsum("bpd,bpe->de", x, x) / (MANY * 8), covariance, atol=0.12)
    np.testing.assert_allclose((y - noiseless).std(), 0.5, rtol=0.02)
    with pytest.raises(ValueError, match="task.noise must be .* from 0 to"):
        LinearRegression(noise=-1.0)


def test_decision_tree_walks_as_documented():
    family = DecisionTree(dim=3, points=5, depth=2)
    trees = drawn(family, difficulty=Difficulty(2, 5))[0]
    assert set(np.unique(trees.coordinates)) == {0, 1}
    tree = trees._replace(coordinates=np.array([2, 0, 1]), leaves=np.arange(4, dtype=np.float32))
    x = np.array([[-1, 9, -1], [1, 9, -1], [9, -1, 1], [9, 1, 1]])
    np.testing.assert_array_equal(labels_of(family, tree, x), [0, 1, 2, 3])
    with pytest.raises(ValueError, match="depth"):
        DecisionTree(depth=0)


def test_draws_are_bit_equal_to_jax_random():
    def both(key):
        one, two, three, four = (jax.random.clone(key) for _ in range(4))
        for shape in ((), (5,), (3, 7, 20)):
            one, two, three, four = (jax.random.fold_in(k, 1) for k in (one, two, three, four))
            yield normal(one, shape), jax.random.normal(two, shape)
            theirs = jax.random.uniform(three, shape, minval=-0.5, maxval=2)
            yield uniform(four, shape, -0.5, 2), theirs

    for implementation in ("threefry2x32", "rbg"):
        found = jax.jit(lambda key: list(both(key)))(jax.random.key(3, impl=implementation))
        assert len(found) == 6
        for ours, theirs in found:
            np.testing.assert_array_equal(ours, theirs)


def test_sparse_weights_are_among_the_coordinates_in_use():
    family = SparseLinearRegression(dim=6, points=4, nonzeros=3)
    for dim, expected in ((6, 3), (4, 3), (2, 2)):
        tasks = drawn(family, difficulty=Difficulty(dim, 4))[0]
        np.testing.assert_array_equal((tasks != 0).sum(axis=1), expected)
        np.testing.assert_array_equal(tasks[:, dim:], 0)
        np.testing.assert_allclose((tasks[:, :dim] != 0).mean(axis=0), expected / dim, atol=0.12)
    with pytest.raises(ValueError, match="nonzeros"):
        SparseLinearRegression(dim=2, nonzeros=3)


def test_parity_is_a_product_of_its_coordinates():
    family = Parity(dim=5, points=8, relevant=2)
    tasks = drawn(family)[0]
    np.testing.assert_array_equal(tasks.sum(axis=1), 2)
    assert len({tuple(task) for task in tasks}) == 10
    x = np.array([[1, -1, 1, -1, 1], [-1, -1, 1, 1, 1]], np.float32)
    task = np.array([True, False, False, True, False])
    np.testing.assert_array_equal(labels_of(family, task, x), [-1, -1])
    with pytest.raises(ValueError, match="relevant"):
        Parity(dim=3, relevant=4)


def test_signs_are_scored_by_cross_entropy_and_misclassification():
    family = LinearClassification(dim=3, points=4)
    assert set(np.unique(drawn(family)[1].y)) == {-1.0, 1.0}
    y, log_odds = np.array([1, 1, -1], np.float32), np.array([2, 0, 1], np.float32)
    kind = family.label_kind
    loss, error = jax.jit(lambda *both: (kind.loss(*both), kind.error(*both)))(log_odds, y)
    np.testing.assert_allclose(loss, np.log(1 + np.exp(-y * log_odds)), rtol=1e-6)
    np.testing.assert_array_equal(error, [0, 0.5, 1])


def test_quadratic_and_network_labels_as_documented():
    array = lambda *rows: np.array(rows, np.float32)
    x = array([1, 2], [-1, 0.5])
    quadratic = QuadraticRegression(dim=2, points=2)
    np.testing.assert_allclose(
        labels_of(quadratic, array(3, -1), x), [-1 / 3**0.5, 2.75 / 3**0.5], rtol=1e-6
    )
    network = ReLUNetwork(dim=2, points=2, hidden=2)
    task = jax.eval_shape(lambda: network.sample_task(jax.random.key(0), network.full))
    assert task.hidden.shape == (2, 2) and task.out.shape == (2,)
    task = task._replace(hidden=array([1, -1], [0, 1]), out=array(2, 1))
    np.testing.assert_allclose(labels_of(network, task, x), [3.0, 1.5])
    with pytest.raises(ValueError, match="hidden"):
        ReLUNetwork(hidden=0)


def test_many_outliers_are_ones_and_are_not_queries():
    family = ManyOutlierRegression(dim=3, points=40, outliers=0.8)
    _, episodes, _ = drawn(family)
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
    tasks, episodes, _ = drawn(family)
    for task, x, tokens, queries in zip(
        tasks[:3], episodes.x, episodes.label_tokens, episodes.queries
    ):
        both = np.concatenate([x[~queries], tokens[~queries]])
        np.testing.assert_allclose(both @ task, 0, atol=1e-4 * np.abs(both).max())
        assert np.linalg.matrix_rank(both, tol=1e-4 * np.abs(both).max()) == 2


def test_retrieval_asks_for_a_key_that_was_shown():
    family = VectorRetrieval(dim=4, points=6)
    for points in (6, 3):
        _, episodes, _ = drawn(family, difficulty=Difficulty(4, points))
        query = points - 1
        np.testing.assert_array_equal(np.flatnonzero(episodes.queries[0]), [query])
        same = (episodes.x[:, :query] == episodes.x[:, query, None]).all(axis=-1)
        np.testing.assert_array_equal(same.sum(axis=1), 1)
        asked = np.argmax(same, axis=1)
        assert set(np.unique(asked)) == set(range(query))
        np.testing.assert_array_equal(episodes.y[np.arange(BLOCK), asked], episodes.y[:, query])
        np.testing.assert_allclose((episodes.y**2).sum(axis=-1), 4, rtol=1e-5)
    with pytest.raises(ValueError, match="task.points must be .* from 2 to"):
        VectorRetrieval(points=1)


def test_renormalised_labels_are_divided_by_a_constant():
    family = LinearRegression(dim=4, points=9, noise=1.0, renormalize=True)
    plain = dataclasses.replace(family, renormalize=False)
    for dim in (2, 4):
        ours, theirs = (many(f, dim=dim)[1] for f in (family, plain))
        np.testing.assert_allclose(ours.y, theirs.y * (4 / (dim + 1)) ** 0.5, rtol=1e-5)
    # Labels of a prompt share w, so the standard error is near sqrt(2 / (4 MANY)).
    error = lambda family, drawn: np.mean(family.label_kind.error(0.0, drawn.y))
    np.testing.assert_allclose(error(family, ours), 1, rtol=0.05)
    np.testing.assert_allclose(error(plain, theirs), 1.25, rtol=0.05)
    assert dataclasses.replace(family, noise=9.0, input_scale=9.0).label_kind.scale == 4
    sparse = SparseLinearRegression(dim=4, points=9, nonzeros=2, renormalize=True)
    np.testing.assert_allclose(
        jax.jit(sparse.label_factor)(np.array([1, 2, 4])), [2, 2**0.5, 2**0.5]
    )
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
    tasks, (x, y, *_), _ = many(family)
    np.testing.assert_allclose((y**2).mean(), family.label_kind.scale, rtol=0.1)
    np.testing.assert_allclose(tasks.std(), 3, rtol=0.05)
    low, high = {"uniform": (-0.5, 0.5), "exponential": (0, 9), "laplace": (-9, 9)}[inputs]
    assert low <= x.min() and x.max() <= high
    np.testing.assert_allclose((x**2).mean(), family.label_size / 9, rtol=0.05)
    for wrong in (dict(inputs="cauchy"), dict(input_scale=0.0), dict(covariance_decay=1.0)):
        with pytest.raises(ValueError, match="inputs|input_scale|covariance_decay"):
            dataclasses.replace(family, **wrong)


def test_random_labels_come_first_and_do_not_depend_on_x():
    family = LinearRegression(dim=4, points=9, random_labels=3)
    _, episodes, oracle = drawn(family)
    error = np.abs(episodes.y - oracle)
    assert np.median(error[:, :3]) > 0.1 and error[:, 3:].max() < 1e-6
    y, x = episodes.y[:, :3], episodes.x[:, :3]
    np.testing.assert_allclose(y.std(), 1, rtol=0.1)
    assert abs(np.corrcoef(y.ravel(), oracle[:, :3].ravel())[0, 1]) < 0.1
    assert np.abs(np.einsum("bp,bpd->d", y, x)).max() / y.size < 0.1
    with pytest.raises(ValueError, match="from 0 to 8"):
        LinearRegression(dim=4, points=9, random_labels=9)


def test_sines_have_independent_amplitude_and_phase():
    family = SineRegression(points=5, low_amplitude=1.0, high_amplitude=3.0, input_range=2.0)
    tasks = many(family)[0]
    assert 1 <= tasks[:, 0].min() and tasks[:, 0].max() <= 3
    assert 0 <= tasks[:, 1].min() and tasks[:, 1].max() <= np.pi
    assert abs(np.corrcoef(tasks[:, :2].T)[0, 1]) < 0.05 and (tasks[:, 2] == 1).all()
    faster = dataclasses.replace(family, low_frequency=2.0, high_frequency=6.0)
    tasks, (_, y, *_), _ = many(faster)
    frequencies = tasks[:, 2]
    np.testing.assert_allclose([frequencies.mean(), frequencies.std()], [4, 4 / 12**0.5], rtol=0.03)
    np.testing.assert_allclose((y**2).mean(), faster.label_kind.scale, rtol=0.05)
    np.testing.assert_allclose(
        labels_of(family, np.array([2, 0.5, 3], np.float32), np.array([[1], [-1]], np.float32)),
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
    tasks, (x, *_), found = jax.tree.map(lambda a: a[0], drawn(family))
    (w1, b1), (w2, b2), (w3, b3) = tasks
    hidden = np.tanh(x @ w1 + b1) @ w2 + b2
    hidden = hidden / (1 + np.exp(-hidden))
    expected = (1 / (1 + np.exp(-(hidden @ w3 + b3))))[:, 0]
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
        _, episodes, _ = drawn(family, difficulty=Difficulty(2, points))
        at = np.arange(7)
        query = (at >= points - 3) & (at < points)
        assert (episodes.queries == query).all()
        assert (episodes.context == (at < points - 3)).all()
    with pytest.raises(ValueError, match="task.queries must be a whole number from 1 to 6"):
        LinearRegression(points=7, queries=7)
    with pytest.raises(ValueError, match="has one query, the last: leave task.queries None"):
        VectorRetrieval(points=7, queries=2)
    with pytest.raises(ValueError, match="any inlier of this task may be a query"):
        ManyOutlierRegression(points=7, queries=2)


def test_a_pool_of_prompts_also_fixes_the_points():
    family = LinearRegression(dim=3, points=4)
    pool = dict(pool_key=jax.random.key(9), pool_size=5)
    draw = jax.jit(
        lambda key, prompts: (
            sample_batch(family, key, jnp.arange(60), family.full, **pool, pool_prompts=prompts).x
        ),
        static_argnums=1,
    )
    of_tasks, first = (np.asarray(draw(jax.random.key(0), of)) for of in (False, True))
    other = np.asarray(draw(jax.random.key(1), True))
    different = lambda x: {prompt.tobytes() for prompt in x.round(5)}
    assert len(different(of_tasks)) == 60 and len(different(first)) == 5
    assert different(first) == different(other)


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

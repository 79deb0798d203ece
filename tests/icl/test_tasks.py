"""Laws that every registered task family keeps, and what each documents of its own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl.tasks import (
    FAMILIES,
    Curriculum,
    DecisionTree,
    LinearRegression,
    garg_curriculum,
    pool_task,
    sample_batch,
    sample_prompt,
)
from icl.tasks.base import Difficulty

FAMILY_IDS = sorted(FAMILIES)
MANY = 4000


@pytest.fixture(params=FAMILY_IDS)
def family(request):
    return FAMILIES[request.param](dim=4, points=9)


def batch(family, seed=0, size=16, difficulty=None, **options):
    difficulty = difficulty or family.full
    return sample_batch(family, jax.random.key(seed), jnp.arange(size), difficulty, **options)


def equal(a, b):
    return all(jax.tree.leaves(jax.tree.map(lambda x, y: bool((x == y).all()), a, b)))


def test_same_key_same_bits_and_other_key_other_bits(family):
    assert equal(batch(family, 0), batch(family, 0))
    assert not equal(batch(family, 0).x, batch(family, 1).x)


def test_jit_changes_nothing(family):
    jitted = jax.jit(lambda key: sample_prompt(family, key, family.full))
    plain = sample_prompt(family, jax.random.key(3), family.full)
    for a, b in zip(jitted(jax.random.key(3)), plain):
        np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_vmap_is_a_loop(family):
    together = batch(family, 5, size=6)
    for i in range(6):
        key = jax.random.fold_in(jax.random.key(5), i)
        alone = sample_prompt(family, key, family.full)
        for a, b in zip(jax.tree.map(lambda a, i=i: a[i], together), alone):
            np.testing.assert_allclose(a, b, rtol=1e-5, atol=1e-5)


def test_a_batch_is_the_same_bits_however_it_is_split(family):
    draw = jax.jit(lambda first: sample_batch(family, jax.random.key(0), first, family.full))
    whole = draw(jnp.arange(8))
    halves = [draw(jnp.arange(0, 4)), draw(jnp.arange(4, 8))]
    assert equal(whole, jax.tree.map(lambda a, b: jnp.concatenate([a, b]), *halves))


def test_shapes_and_finiteness(family):
    episodes = batch(family)
    assert episodes.x.shape == (16, 9, 4) and episodes.x.dtype == jnp.float32
    assert episodes.y.shape == (16, 9) and episodes.y.dtype == jnp.float32
    assert episodes.counts.shape == (16, 9) and episodes.counts.all()
    assert np.isfinite(episodes.x).all() and np.isfinite(episodes.y).all()


def test_the_oracle_recovers_the_labels(family):
    task_key, episode_key = jax.random.split(jax.random.key(0))
    task = family.sample_task(task_key, family.full)
    episode = family.sample_episode(episode_key, task, family.full)
    np.testing.assert_allclose(family.label(task, episode.x), episode.y, atol=1e-6)
    other = family.sample_task(jax.random.key(99), family.full)
    assert np.abs(family.label(other, episode.x) - episode.y).max() > 0.1


def test_moments(family):
    episodes = batch(family, size=MANY)
    x, y = np.asarray(episodes.x), np.asarray(episodes.y)
    # Standard errors: of x about 1 / sqrt(MANY * 9), of y about sqrt(3 / MANY) of its scale.
    np.testing.assert_allclose(x.mean(axis=(0, 1)), 0, atol=0.03)
    np.testing.assert_allclose(np.einsum("bpd,bpe->de", x, x) / (MANY * 9), np.eye(4), atol=0.04)
    assert abs(y.mean()) < 0.1 * family.error_scale**0.5
    np.testing.assert_allclose((y**2).mean(), family.error_scale, rtol=0.1)


def test_difficulty_hides_coordinates_and_points_without_recompiling(family):
    draw = jax.jit(lambda dim, points: batch(family, difficulty=Difficulty(dim, points)))
    for dim, points in ((1, 3), (3, 9), (4, 1)):
        episodes = draw(dim, points)
        np.testing.assert_array_equal(episodes.x[..., dim:], 0)
        assert (np.abs(episodes.x[..., :dim]) > 0).all()
        np.testing.assert_array_equal(episodes.counts.sum(axis=1), points)
        assert np.isfinite(episodes.y).all()
    assert draw._cache_size() == 1


def test_a_pool_holds_so_many_tasks(family):
    pool_key = jax.random.key(7)
    tasks = {
        tuple(
            np.concatenate([np.ravel(a) for a in jax.tree.leaves(pool_task(family, pool_key, i))])
        )
        for i in range(3)
    }
    assert len(tasks) == 3
    only = pool_task(family, pool_key, 0)
    episodes = batch(family, pool_key=pool_key, pool_size=1)
    labels = jax.vmap(lambda x: family.label(only, x))(episodes.x)
    np.testing.assert_allclose(labels, episodes.y, atol=1e-6)
    fresh = batch(family)
    assert np.abs(jax.vmap(lambda x: family.label(only, x))(fresh.x) - fresh.y).max() > 0.1


def test_an_enormous_pool_takes_no_memory(family):
    pool_key = jax.random.key(7)
    draw = jax.jit(lambda key: sample_batch(
        family, key, jnp.arange(32), family.full, pool_key, 2**25
    ))  # fmt: skip
    memory = draw.lower(jax.random.key(0)).compile().memory_analysis()
    assert memory.temp_size_in_bytes + memory.output_size_in_bytes < 2**20


@pytest.mark.parametrize("settings", [dict(dim=0), dict(points=0)])
def test_impossible_sizes_are_refused(family, settings):
    with pytest.raises(ValueError, match="at least 1"):
        dataclasses.replace(family, **settings)


def test_linear_regression_noise_and_skew():
    family = LinearRegression(dim=6, points=8, noise=0.5, covariance_decay=2.0)
    np.testing.assert_allclose(np.trace(family.covariance()), 6, rtol=1e-5)
    eigenvalues = np.linalg.eigvalsh(family.covariance())[::-1]
    np.testing.assert_allclose(eigenvalues / eigenvalues[0], 1 / np.arange(1, 7) ** 2, rtol=1e-4)
    x = np.asarray(batch(family, size=MANY).x)
    np.testing.assert_allclose(
        np.einsum("bpd,bpe->de", x, x) / (MANY * 8), family.covariance(), atol=0.12
    )
    key, task = jax.random.key(0), jnp.zeros(6)
    residuals = jax.vmap(lambda k: family.sample_episode(k, task, family.full).y)(
        jax.random.split(key, MANY)
    )
    np.testing.assert_allclose(residuals.std(), 0.5, rtol=0.02)
    with pytest.raises(ValueError, match="standard deviation"):
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
        assert tuple(map(int, at(step))) == (dim, points)
    assert Curriculum().at(0, family) == family.full
    with pytest.raises(ValueError, match="interval"):
        Curriculum(interval=0)

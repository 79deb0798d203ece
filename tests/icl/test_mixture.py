"""The mixture draws prompts of its families by their shares, with labels of equal size."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl.analysis.concepts import has_concepts
from icl.evaluation.comparators import comparators
from icl.evaluation.curves import predictions_of
from icl.tasks import (
    DecisionTree,
    LinearRegression,
    Mixture,
    QuadraticRegression,
    ReLUNetwork,
    sample_batch,
)
from icl.training.config import Config, config_from_dict, config_to_dict

from .helpers import TINY, tiny

MIXTURE = Mixture(
    dim=3,
    points=6,
    shares=(2.0, 1.0, 1.0),
    held_out=("decision_tree",),
    options=("decision_tree.depth=2", "relu_network.hidden=7"),
)


def test_prompts_are_of_the_families_by_their_shares_and_of_unit_labels():
    keys = jax.random.split(jax.random.key(0), 4000)
    of_key = jax.jit(jax.vmap(lambda key: MIXTURE.sample_task(key, MIXTURE.full)))
    tasks = of_key(keys)
    members = np.asarray(jax.vmap(MIXTURE.concept)(tasks))
    assert MIXTURE.concepts == MIXTURE.families
    assert has_concepts(Config(task=MIXTURE))
    np.testing.assert_allclose(np.bincount(members) / 4000, [0.5, 0.25, 0.25], atol=0.03)
    draw = jax.vmap(lambda key, task: MIXTURE.sample_episode(key, task, MIXTURE.full))
    episodes = jax.jit(draw)(jax.random.split(jax.random.key(1), 4000), tasks)
    x, y = np.asarray(episodes.x), np.asarray(episodes.y)
    weights = np.asarray(tasks.tasks[0]), np.asarray(tasks.tasks[1])
    network = jax.tree.map(np.asarray, tasks.tasks[2])
    hidden = np.maximum(np.einsum("bpd,bdh->bph", x, network.hidden), 0)
    expected = (
        np.einsum("bpd,bd->bp", x, weights[0]) / 3**0.5,
        np.einsum("bpd,bd->bp", x**2, weights[1]) / 3,
        np.einsum("bph,bh->bp", hidden, network.out) * (2 / 7) ** 0.5 / 3**0.5,
    )
    for member, labels in enumerate(expected):
        own = members == member
        np.testing.assert_allclose(y[own], labels[own], rtol=1e-3, atol=1e-4)
        np.testing.assert_allclose((y[own] ** 2).mean(), 1, rtol=0.15)


def test_one_family_alone_has_its_estimators_on_the_labels_of_the_mixture():
    alone = MIXTURE.alone("quadratic_regression")
    assert alone.members == (QuadraticRegression(dim=3, points=6),)
    assert MIXTURE.alone("decision_tree").options == ("decision_tree.depth=2",)
    assert MIXTURE.alone("decision_tree").members == (DecisionTree(dim=3, points=6, depth=2),)
    for family, name in ((alone, "least squares on squares"), (MIXTURE, None)):
        assert comparators(family)[1] == name
    ridge = comparators(MIXTURE.alone("linear_regression"))[0][1]
    episodes = sample_batch(
        MIXTURE.alone("linear_regression"), jax.random.key(0), jnp.arange(4), MIXTURE.full
    )
    [found], _ = predictions_of(ridge, episodes)
    x, y = np.asarray(episodes.x, np.float64), np.asarray(episodes.y, np.float64)
    # The penalty is that of the family's own labels, which a factor does not change.
    w = np.linalg.solve(x[0, :4].T @ x[0, :4] + np.eye(3), x[0, :4].T @ y[0, :4])
    np.testing.assert_allclose(found[0, 4], x[0, 4] @ w, rtol=1e-6)


def test_prompts_may_have_fewer_points_in_training_alone():
    family = dataclasses.replace(MIXTURE, queries=2, fewest_points=2)
    drawn = jax.tree.map(
        np.asarray, sample_batch(family, jax.random.key(0), jnp.arange(2000), family.full)
    )
    lengths = np.asarray(drawn.length)
    np.testing.assert_allclose(np.bincount(lengths)[2:] / 2000, [0.2] * 5, atol=0.04)
    np.testing.assert_array_equal(drawn.queries.sum(axis=1), 2)
    np.testing.assert_array_equal(drawn.context.sum(axis=1), lengths - 2)
    assert family.may_pad and not family.evaluation.may_pad
    with pytest.raises(ValueError, match="task.fewest_points None"):
        tiny(
            task=family, layout="masked",
            model=dataclasses.replace(TINY, bidirectional=True, position_encoding="none"),
        )  # fmt: skip


def test_mixtures_are_saved_and_loaded():
    config = tiny(task=MIXTURE)
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config
    assert Mixture(dim=2, points=4).members == (
        LinearRegression(dim=2, points=4),
        QuadraticRegression(dim=2, points=4),
        ReLUNetwork(dim=2, points=4),
    )


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(families=()), "at least one"),
        (
            dict(families=("linear",), options=(), shares=()),
            "no task family 'linear' for a mixture; there are",
        ),
        (dict(families=("mixture",), options=(), shares=()), "no task family 'mixture'"),
        (dict(shares=(1.0,)), "task.shares must be 3 numbers"),
        (dict(shares=(1.0, 0.0, 1.0)), "task.shares must be a number from"),
        (dict(held_out=("relu_network",), options=()), "name a family twice"),
        (dict(held_out=("linear_classification",), options=()), "its labels are Signs"),
        (dict(held_out=("sine",), options=()), "the family sine of the mixture: task.dim must"),
        (dict(held_out=("many_outlier_regression",), options=()), "not every point"),
        (dict(held_out=("projected_images",), options=()), "it reads data from files"),
        (dict(options=("decision_tree.leaves=2",)), "decision_tree has no setting leaves"),
        (dict(options=("decision_tree.depth",)), "write family.setting=value"),
        (dict(options=("parity.relevant=2",)), "of none of the families"),
        (dict(options=("decision_tree.depth=0",)), "task.depth must be"),
        (dict(fewest_points=7), "task.fewest_points must be a whole number from 1 to 6"),
    ],
)
def test_families_that_do_not_fit_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        dataclasses.replace(MIXTURE, **settings)

"""Predictions at given queries: a single pass against a pass for each prefix."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from icl.evaluation import draw_prompts
from icl.evaluation.queries import predict_queries, predict_queries_one_by_one
from icl.layers import MIXERS
from icl.models import LoopedTransformerConfig, TransformerConfig
from icl.tasks import Episode, LinearRegression, OrthogonalOutlierRegression, VectorRetrieval
from icl.training.learner import Learner

from .helpers import tiny


def learner_of(task, *, layers=1, heads=2, mixer="attention", layout="interleaved"):
    """A learner, parameters so large that every token matters, and prompts."""
    model = TransformerConfig(layers=layers, heads=heads, width=16, mixer=mixer)
    return drawn(Learner(tiny(task=task, model=model, layout=layout)))


def drawn(learner):
    normal = np.random.default_rng(0).normal

    def large(leaf):
        size = 5 / leaf.shape[0] ** 0.5
        return np.float32(size * normal(size=leaf.shape) if leaf.ndim > 1 else np.ones(leaf.shape))

    params = jax.tree.map(large, jax.eval_shape(learner.init, jax.random.key(0)))
    return learner, params, draw_prompts(learner.family, jax.random.key(1), 3)


def other_points(episodes):
    return np.random.default_rng(2).normal(size=episodes.x.shape).astype(np.float32)


def both(learner, params, episodes, queries):
    """Predictions by a single pass, and by a pass for each query."""
    functions = (predict_queries, predict_queries_one_by_one)
    ask = lambda *given: [function(learner, *given) for function in functions]
    return map(np.asarray, jax.jit(ask)(params, episodes, queries))


def largest_difference(a, b):
    return np.abs(a - b).max() / np.abs(b).max()


@pytest.mark.parametrize(
    ("dim", "points", "layers", "heads", "layout"),
    [
        (1, 1, 1, 1, "interleaved"),
        (3, 7, 2, 2, "interleaved"),
        (5, 4, 2, 1, "tagged"),
        (3, 5, 2, 1, "shifted"),
    ],
)
def test_a_single_pass_equals_a_pass_for_each_prefix(dim, points, layers, heads, layout):
    task = LinearRegression(dim=dim, points=points)
    learner, params, episodes = learner_of(task, layers=layers, heads=heads, layout=layout)
    queries = other_points(episodes)
    assert learner.model(params).takes_mask

    @jax.jit
    def two_ways(params, episodes, queries):
        def replaced(i):
            given = episodes._replace(x=episodes.x.at[:, i].set(queries[:, i]))
            return learner.predict(params, given)[:, i]

        separately = jax.lax.map(replaced, jnp.arange(points))
        return predict_queries(learner, params, episodes, queries), separately.T

    together, separately = map(np.asarray, two_ways(params, episodes, queries))
    assert together.shape == (3, points)
    assert largest_difference(together, separately) < 1e-5


@pytest.mark.parametrize("mixer", MIXERS)
def test_a_query_replaces_the_next_point_and_sees_only_earlier_points(mixer):
    # With two layers, a leak between queries could pass through a third token.
    task, layers = LinearRegression(dim=3, points=4), 2 if mixer == "attention" else 1
    learner, params, episodes = learner_of(task, layers=layers, mixer=mixer)

    @jax.jit
    def predictions_and_reach(x, y, queries):
        given = episodes._replace(x=x, y=y)
        asked, back = jax.vjp(lambda q: predict_queries(learner, params, given, q), queries)
        reach = jax.vmap(lambda i: back(jnp.zeros_like(asked).at[:, i].set(1.0))[0])(jnp.arange(4))
        return learner.predict(params, given), asked, jnp.abs(reach).sum(axis=(1, 3))

    x, y, queries = np.asarray(episodes.x), np.asarray(episodes.y), other_points(episodes)
    usual, same, _ = map(np.asarray, predictions_and_reach(x, y, x))
    assert largest_difference(same, usual) < 1e-5
    _, before, reach = map(np.asarray, predictions_and_reach(x, y, queries))
    assert largest_difference(before, usual) > 1e-2
    np.testing.assert_array_equal(reach > 1e-6, np.eye(4, dtype=bool))
    shift = np.float32(3 * (np.arange(4)[None] >= 2))
    _, after, _ = predictions_and_reach(x + shift[..., None], y + shift, queries)
    np.testing.assert_allclose(after[:, :3], before[:, :3], atol=1e-6)
    assert np.abs(after[:, 3:] - before[:, 3:]).min() > 0


@pytest.mark.parametrize("mixer", MIXERS)
def test_only_attention_takes_a_mask(mixer):
    task = LinearRegression(dim=3, points=5)
    model = TransformerConfig(layers=1, heads=2, width=16, mixer=mixer)
    learner = Learner(tiny(task=task, model=model))

    def masked(key):
        model = learner.model(learner.init(key))
        assert model.takes_mask == (mixer == "attention")
        return model(jnp.zeros((1, 10, 3)), mask=jnp.ones((10, 10), bool))

    if mixer == "attention":
        assert jax.eval_shape(masked, jax.random.key(0)).shape == (1, 10)
    else:
        with pytest.raises(ValueError, match="takes no mask"):
            jax.eval_shape(masked, jax.random.key(0))


@pytest.mark.parametrize(
    "task",
    [VectorRetrieval(dim=3, points=4), OrthogonalOutlierRegression(dim=3, points=4)],
    ids=["vector labels", "label tokens"],
)
def test_labels_may_be_vectors_or_have_label_tokens(task):
    learner, params, episodes = learner_of(task)
    together, one_by_one = both(learner, params, episodes, other_points(episodes))
    assert together.shape == episodes.y.shape
    assert largest_difference(together, one_by_one) < 1e-5


def test_a_looped_transformer_predicts_all_queries_in_one_pass():
    task = LinearRegression(dim=3, points=4)
    model = LoopedTransformerConfig(layers=1, heads=2, width=16, loops=3, window=2)
    learner, params, episodes = drawn(Learner(tiny(task=task, model=model)))
    assert learner.model(params).takes_mask
    together, one_by_one = both(learner, params, episodes, other_points(episodes))
    assert largest_difference(together, one_by_one) < 1e-5


def test_other_layouts_and_shapes_are_refused():
    task = LinearRegression(dim=3, points=5)
    used = jnp.ones((2, 5), bool)
    episodes = Episode(jnp.zeros((2, 5, 3)), jnp.zeros((2, 5)), used, used)
    with pytest.raises(ValueError, match="layout interleaved"):
        predict_queries(Learner(tiny(task=task, layout="concatenated")), {}, episodes, episodes.x)
    with pytest.raises(ValueError, match="must have the shape"):
        predict_queries(Learner(tiny(task=task)), {}, episodes, episodes.x[:, :3])

"""Models that see the whole prompt: self-attention, gradient descent, preconditioned attention."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icl
from icl.analysis.pool import evaluate_pool
from icl.models import GradientDescentConfig, PreconditionedConfig, SelfAttentionConfig
from icl.models.flops import training_flops
from icl.tasks import Curriculum, LinearRegression, ManyOutlierRegression, SineRegression
from icl.training import Learner

from .helpers import QUIET, episodes_of, query_predictions, tiny

MODELS = {
    "linear": SelfAttentionConfig(layers=2, init_scale=1.0),
    "softmax": SelfAttentionConfig(layers=2, heads=2, softmax="all", key_size=3, init_scale=1.0),
    "positions": SelfAttentionConfig(
        layers=2, shared=False, softmax="first", positions=4, init_scale=1.0
    ),
    "features": SelfAttentionConfig(features=6, init_scale=1.0),
    "descent": GradientDescentConfig(layers=2, plus_plus=True, shared=False),
    "descent on features": GradientDescentConfig(features=6),
    "preconditioned": PreconditionedConfig(layers=2, init_std=0.3),
}


@functools.cache
def learner_of(model):
    """Tests share it, and so what is compiled of it."""
    return Learner(tiny(model=model, layout="concatenated"))


@pytest.fixture(params=MODELS)
def learner(request):
    return learner_of(MODELS[request.param])


@functools.cache
def initial(learner):
    params = jax.jit(learner.init)(jax.random.key(1)).params
    # The initial gamma is 0, which would hide its effect.
    return params | ({"gamma": params["gamma"] + 0.05} if "gamma" in params else {})


def test_the_query_is_predicted_from_all_examples_without_its_label(learner):
    params, episodes = initial(learner), episodes_of(learner)
    before = query_predictions(learner, params, episodes)
    assert np.isfinite(before).all() and before.shape == (6,)
    for example in range(4):
        other = episodes._replace(y=np.asarray(episodes.y) + (np.arange(5) == example))
        assert (np.abs(query_predictions(learner, params, other) - before) > 1e-5).any()
    unseen = episodes._replace(y=np.asarray(episodes.y) + 9 * (np.arange(5) == 4))
    np.testing.assert_array_equal(query_predictions(learner, params, unseen), before)


def test_the_order_of_examples_matters_only_with_positions(learner):
    params, episodes = initial(learner), episodes_of(learner)
    turned = jax.tree.map(lambda a: np.asarray(a)[:, [3, 2, 1, 0, 4]], episodes)
    same = [query_predictions(learner, params, each) for each in (episodes, turned)]
    if getattr(learner.config.model, "positions", 0):
        assert np.abs(same[0] - same[1]).max() > 1e-4
    else:
        np.testing.assert_allclose(*same, atol=1e-5)


def test_every_parameter_has_a_gradient(learner):
    gradient = jax.jit(jax.grad(lambda *given: learner.loss_sum(*given)[0]))
    gradients = jax.device_get(gradient(initial(learner), episodes_of(learner)))
    if "gamma" in gradients:
        assert gradients["gamma"][-1] == 0  # the inputs are not used after the last step
        gradients["gamma"] = gradients["gamma"][:-1]
    if "values" in gradients:
        gradients["values"] = gradients["values"][:-1]
    assert all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in jax.tree.leaves(gradients))
    model = learner.config.model
    assert training_flops(model, 4, 5, 8) > 0 and model.activations(4) >= 4


def test_a_layer_matches_the_definition_of_attention():
    for softmax in ("none", "all"):
        learner = learner_of(dataclasses.replace(MODELS["softmax"], softmax=softmax, layers=1))
        params, episodes = initial(learner), episodes_of(learner)
        tokens = np.asarray(learner.encode(params, episodes), np.float64)
        weights = {name: np.asarray(w, np.float64) for name, w in params["layers"][0].items()}
        context, added = tokens[:, :-1], np.zeros_like(tokens)
        for head in range(2):
            query, key, value, output = (
                weights[name][head] for name in ("query", "key", "value", "output")
            )
            scores = (tokens @ query) @ (context @ key).swapaxes(1, 2)
            if softmax == "all":
                scores = np.exp(scores / 3**0.5)
                scores /= scores.sum(axis=-1, keepdims=True)
            added += scores @ context @ value @ output
        expected = -(tokens + added)[:, -1, -1]
        np.testing.assert_allclose(
            query_predictions(learner, params, episodes), expected, atol=1e-5
        )


def test_a_shared_layer_can_be_applied_more_often_and_damped():
    learner = learner_of(MODELS["linear"])
    model = learner.model(initial(learner))
    tokens = jax.vmap(learner.layout.encode)(episodes_of(learner))
    once = model.hidden(tokens, layers=1)
    np.testing.assert_allclose(model.hidden(once, layers=1), model.hidden(tokens), rtol=1e-5)
    np.testing.assert_allclose(
        model.hidden(tokens, layers=1, damping=0.5), (tokens + once) / 2, rtol=1e-5, atol=1e-6
    )
    assert model(tokens, layers=5).shape == (6, 5)
    np.testing.assert_array_equal(model.hidden(tokens, layers=0), tokens)
    clipped = learner_of(dataclasses.replace(MODELS["linear"], clip=0.1))
    limited = clipped.model(initial(clipped)).hidden(tokens)
    assert np.abs(limited).max() <= np.float32(0.1)
    own = learner_of(MODELS["positions"])
    with pytest.raises(ValueError, match="there are 2 layers, not 3"):
        own.model(initial(own))(tokens, layers=3)


@pytest.mark.parametrize("plus_plus", [False, True])
def test_gradient_descent_matches_steps_on_the_weights(plus_plus):
    """Compares with numerical gradient steps; those of GD++ fit residuals on transformed inputs."""
    model = GradientDescentConfig(layers=3, shared=False, plus_plus=plus_plus)
    learner = Learner(tiny(model=model, layout="concatenated"))
    params = {"learning_rate": jnp.array([0.3, 0.5, 0.2])}
    if plus_plus:
        params["gamma"] = jnp.array([0.05, 0.1, 0.3])
    episodes = episodes_of(learner)
    predictions = query_predictions(learner, params, episodes)
    for b in range(6):
        x, y = (np.asarray(a[b], np.float64) for a in (episodes.x, episodes.y))
        residual, total, w = y[:-1].copy(), 0.0, np.zeros(3)
        for step in range(3):
            examples = x[:-1]
            loss = lambda w: ((examples @ w - residual) ** 2).sum() / (2 * len(examples))  # noqa: B023
            eye = 1e-5 * np.eye(3)
            gradient = np.array([(loss(w + e) - loss(w - e)) / 2e-5 for e in eye])
            moved = w - float(params["learning_rate"][step]) * gradient
            if plus_plus:
                total += moved @ x[-1]
                residual -= examples @ moved
                x = x - float(params["gamma"][step]) * x @ examples.T @ examples
            else:
                w, total = moved, moved @ x[-1]
        np.testing.assert_allclose(predictions[b], total, atol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(model=SelfAttentionConfig()), "sees the whole prompt.*concatenated"),
        (dict(layout="separate", model=GradientDescentConfig()), r"takes tokens \(x, y\)"),
        (
            dict(layout="concatenated", task=LinearRegression(dim=3, points=1)),
            "points to at least",
        ),
        (
            dict(layout="concatenated", curriculum=Curriculum(points_start=2)),
            "may be padding",
        ),
        (dict(layout="concatenated", task=ManyOutlierRegression(dim=3, points=5)), "outliers"),
    ],
)
def test_layouts_and_tasks_that_show_the_label_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**(dict(model=SelfAttentionConfig()) | changes))


@pytest.mark.parametrize(
    ("kind", "settings", "message"),
    [
        (SelfAttentionConfig, dict(heads=0), "heads must be a whole number from 1"),
        (SelfAttentionConfig, dict(layers=2, softmax="first"), "shared=False"),
        (SelfAttentionConfig, dict(positions=3), "even"),
        (SelfAttentionConfig, dict(clip=0.0), "clip must be a number from 1"),
        (SelfAttentionConfig, dict(dtype="bfloat16"), "float32"),
        (GradientDescentConfig, dict(features=0), "features must be"),
        (GradientDescentConfig, dict(layers=0), "layers must be"),
        (PreconditionedConfig, dict(init_std=-1.0), "init_std"),
    ],
)
def test_impossible_models_are_refused(kind, settings, message):
    with pytest.raises(ValueError, match=message):
        kind(**settings)


def test_sines_are_learned_with_features(tmp_path):
    config = tiny(
        task=SineRegression(points=6, input_range=1.0), layout="concatenated",
        model=SelfAttentionConfig(features=8),
        training_steps=100, training_batch_size=32, training_log_every=50,
        training_checkpoint_every=50, optimizer_learning_rate=1e-2,
    )  # fmt: skip
    losses = [r["loss"] for r in icl.train(config, tmp_path / "run", logging=QUIET).metrics()]
    assert losses[-1] < 0.9 * losses[0]


def test_a_pool_of_prompts_is_memorised(tmp_path):
    config = tiny(
        task=LinearRegression(dim=3, points=5, inputs="uniform"), layout="concatenated",
        model=SelfAttentionConfig(features=32, init_scale=0.5), training_pool_size=2,
        training_pooled="prompts", training_steps=150, training_log_every=50,
        training_checkpoint_every=50, optimizer_learning_rate=1e-2,
    )  # fmt: skip
    losses = [r["loss"] for r in icl.train(config, tmp_path / "run", logging=QUIET).metrics()]
    assert losses[-1] < 0.05 * losses[0]
    with pytest.raises(ValueError, match="tasks or prompts"):
        config.replace(training_pooled="points")
    with pytest.raises(ValueError, match="needs its size"):
        config.replace(training_pool_size=None)
    with pytest.raises(ValueError, match="pool of prompts, not of tasks"):
        evaluate_pool(
            icl.training.Run.create(
                tmp_path / "noisy", config.replace(task_noise=0.5, model_features=None)
            )
        )

"""Ahn et al.: preconditioned descent by hand, its analysis, the report, and its optimiser."""

import contextlib
import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import icl
from icl.analysis import ask, layers
from icl.analysis.preconditioning import (
    best_rates,
    descent_losses,
    distance_to_identity,
    has_preconditioners,
    preconditioning,
)
from icl.evaluation.curves import draw_prompts
from icl.experiments import PRESETS, ahn
from icl.models import PreconditionedConfig, TransformerConfig
from icl.sweeps import Sweep, SweepResult
from icl.tasks import LinearRegression, WhitenedRegression
from icl.training import Config, Learner, LoggingConfig, OptimizerConfig
from icl.training.checkpoints import DamagedCheckpoint
from icl.training.config import TrainingConfig
from icl.training.optimizer import clip_each, learning_rate_schedule, make_optimizer
from icl.training.run import Run, RunError

ROTATED = WhitenedRegression(rotation_seed=0)


def tiny(**changes):
    config = Config(
        task=ROTATED,
        layout="concatenated",
        model=PreconditionedConfig(layers=2),
        optimizer=OptimizerConfig(learning_rate=0.02, clip_each=0.01, options={"b2": 0.9}),
        training=TrainingConfig(
            steps=40, batch_size=32, log_every=10, checkpoint_every=10, keep_checkpoints=5
        ),
    )
    return config.replace(**changes)


def inverse_covariance(task):
    root = np.asarray(task.root(-1), np.float64)
    return root @ root.T


def test_inputs_and_tasks_have_the_covariances_of_the_paper():
    episodes = draw_prompts(ROTATED, jax.random.key(1), 4000)
    x = np.asarray(episodes.x, np.float64).reshape(-1, 5)
    draw = jax.jit(jax.vmap(lambda key: ROTATED.sample_task(key, ROTATED.full)))
    tasks = draw(jax.random.split(jax.random.key(2), 20_000))
    rotation = np.asarray(ROTATED.rotation(), np.float64)
    np.testing.assert_allclose(rotation @ rotation.T, np.eye(5), atol=1e-5)
    for drawn, power in ((x, 1), (np.asarray(tasks, np.float64), -1)):
        whitened = drawn @ rotation * np.array(ROTATED.scales) ** -power
        np.testing.assert_allclose(whitened.T @ whitened / len(drawn), np.eye(5), atol=0.05)
    # Whatever the covariance, labels have variance d.
    assert abs(float((episodes.y[:, -1] ** 2).mean()) - 5) < 0.5


@pytest.mark.parametrize("transforms_inputs", [True, False])
def test_matrices_set_by_hand_are_steps_of_preconditioned_descent(transforms_inputs):
    config = tiny(model=PreconditionedConfig(layers=3, transforms_inputs=transforms_inputs))
    learner = Learner(config)
    rates = np.array([0.7, 1.1, 0.4])
    # Not symmetric, so that a transpose would be seen.
    matrices = inverse_covariance(ROTATED) + 0.3 * np.triu(np.ones((5, 5)), 1)
    params = jax.tree.map(jnp.zeros_like, learner.init(jax.random.key(0)).params)
    params["query"] = jnp.asarray(-rates[:, None, None] * matrices, jnp.float32)
    episodes = draw_prompts(ROTATED, jax.random.key(3), 16)
    predicted = jax.jit(learner.predict)(params, episodes)[:, -1]
    x, y = (np.asarray(a, np.float64) for a in (episodes.x, episodes.y))
    weights = np.zeros((16, 5))
    for rate in rates:
        residual = y[:, :-1] - np.einsum("bni,bi->bn", x[:, :-1], weights)
        gradient = np.einsum("bn,bni->bi", residual, x[:, :-1]) / 20
        weights += rate * gradient @ matrices.T
    expected = np.einsum("bi,bi->b", x[:, -1], weights)
    np.testing.assert_allclose(predicted, expected, rtol=1e-5, atol=1e-5)


def test_descent_is_that_of_the_model_with_these_matrices():
    learner = Learner(tiny(model_transforms_inputs=False))
    inverse = jnp.asarray(inverse_covariance(ROTATED), jnp.float32)
    episodes = draw_prompts(ROTATED, jax.random.key(4), 64)
    losses = descent_losses(episodes, inverse, jnp.array([0.5, 0.9]), 2)
    predict = jax.jit(learner.predict)
    for rate, by_step in zip((0.5, 0.9), losses):
        params = {"query": jnp.stack([-rate * inverse] * 2)}
        predicted = predict(params, episodes)[:, -1]
        loss = ((predicted - episodes.y[:, -1]) ** 2).mean()
        np.testing.assert_allclose(by_step[2], loss, rtol=1e-4)
        np.testing.assert_allclose(by_step[0], (episodes.y[:, -1] ** 2).mean(), rtol=1e-5)


def test_the_best_rate_of_one_step_is_the_known_one():
    # Of x ~ N(0, I) it is N / (N + d + 1), and the loss d (1 - rate).
    [rate] = best_rates(ahn.ISOTROPIC, jnp.eye(5), 1, prompts=5000)
    assert abs(rate - 20 / 26) < 0.03
    episodes = draw_prompts(ahn.ISOTROPIC, jax.random.key(5), 5000)
    loss = descent_losses(episodes, jnp.eye(5), jnp.array([20 / 26]), 1)[0, 1]
    assert abs(float(loss) - 5 * 6 / 26) < 0.15


def test_distance_to_the_identity():
    matrices = np.random.default_rng(0).normal(size=(3, 5, 5))
    np.testing.assert_allclose(distance_to_identity(np.stack([np.eye(5), -7 * np.eye(5)])), 0)
    assert (distance_to_identity(matrices) > 0.5).all()
    np.testing.assert_allclose(distance_to_identity(1e3 * matrices), distance_to_identity(matrices))
    np.testing.assert_allclose(distance_to_identity(np.diag([1.0, -1.0])), 1)
    assert np.isnan(distance_to_identity(np.zeros((5, 5))))


def made_up(run, steps=(10,), size=1e-2):
    """Checkpoints of random matrices, those of the queries near the identity in the end."""
    learner = Learner(run.config)
    inverse = jnp.asarray(inverse_covariance(run.config.task), jnp.float32)
    with contextlib.closing(run.checkpoints()) as checkpoints:
        for step in steps:
            params = jax.tree.map(
                lambda a: size * a / 1e-4, learner.init(jax.random.key(step)).params
            )
            params["query"] -= step / steps[-1] * 0.7 * inverse[None]
            checkpoints.save(step, {"params": params})


def test_a_run_shows_its_matrices_over_training(tmp_path):
    run = Run.create(tmp_path / "run", tiny())
    made_up(run, steps=(10, 20, 30, 40))
    newest, (params, *_) = run.variables()
    by_step = {step: variables.params for step, variables in run.variables_by_step()}
    assert list(by_step) == [40, 30, 20, 10] and newest == 40
    np.testing.assert_array_equal(by_step[40]["query"], params["query"])
    assert not np.array_equal(by_step[10]["query"], params["query"])

    found = preconditioning(run.path)
    root = np.asarray(ROTATED.root(), np.float64)
    whitened = root.T @ np.asarray(params["query"], np.float64) @ root
    np.testing.assert_allclose(found.query, whitened)
    np.testing.assert_allclose(found.query, -0.7 * np.eye(5)[None].repeat(2, 0), atol=0.05)
    assert (found.query_distance[-1] < 0.1).all()
    assert found.values.shape == (1, 5, 5)  # those of the last layer are read by none
    np.testing.assert_allclose(
        found.values_distance[-1],
        distance_to_identity(np.asarray(params["values"], np.float64)[:1]),
        rtol=1e-5,
    )
    saved = json.loads((run.path / "preconditioning.json").read_text())
    assert saved["steps"] == [10, 20, 30, 40]
    np.testing.assert_allclose(saved["query_distance"], found.query_distance)
    assert (run.path / "preconditioning.png").stat().st_size > 5_000
    assert "step 40" in str(found) and "-0.70" in str(found)

    for file in (run.path / "checkpoints" / "20").rglob("*"):
        if file.is_file():
            file.write_bytes(b"")
    with pytest.warns(DamagedCheckpoint, match="20 is damaged"):
        assert [step for step, _ in run.variables_by_step()] == [40, 30, 10]


def test_a_trained_layer_without_values_has_none_to_show(tmp_path):
    config = tiny(
        model=PreconditionedConfig(layers=1, transforms_inputs=False), training_steps=10,
        optimizer_schedule="halving", optimizer_halving_steps=4,
    )  # fmt: skip
    run = icl.train(config, tmp_path / "run", logging=LoggingConfig(progress=False))
    found = preconditioning(run)
    assert found.values.shape == (0, 5, 5) and found.values_distance.shape == (1, 0)
    assert (run.path / "preconditioning.png").stat().st_size > 5_000
    assert run.metrics()[-1]["learning_rate"] == pytest.approx(0.02 / 4)


def test_what_has_no_preconditioners_is_refused(tmp_path):
    other = tiny(task=LinearRegression(dim=5, points=21))
    assert has_preconditioners(tiny()) and not has_preconditioners(other)
    assert not has_preconditioners(tiny(model=TransformerConfig(layers=1, heads=1, width=8)))
    with pytest.raises(ValueError, match="no preconditioners.*preconditioned_attention"):
        preconditioning(Run.create(tmp_path / "other", other))
    with pytest.raises(RunError, match="no checkpoint yet"):
        preconditioning(Run.create(tmp_path / "new", tiny()))


def test_a_sweep_over_layers_ends_with_the_papers_figure(tmp_path):
    sweep = Sweep.create(tmp_path / "sweep", tiny(), {"layers": [1, 2]}, 2, "ahn/layers-xs")
    for member in sweep.members:
        made_up(member.run, size=1e-4)
    records = [
        {"member": member.path.name, "changes": member.changes}
        | {"examples": [20], "normalised_error": [0.5]}
        for member in sweep.members
    ]
    del records[-1]["examples"]  # as of one that diverged
    SweepResult(sweep.path, 10, records).save()

    text = str(ask(PRESETS["ahn/layers-xs"].report, sweep, prompts=1000))
    saved = json.loads((sweep.path / "layers.json").read_text())
    assert saved["layers"] == [1, 2] and "preconditioned" in text and "diverged" not in text
    plain, inverse = (saved["error"][name] for name in (layers.DESCENT, layers.PRECONDITIONED))
    assert 1.05 > saved["zero_error"] > plain[0] > plain[1] > inverse[1]
    # The learner's matrices are those of descent at the rate 0.7, near the best of one step.
    learner = saved["error"]["learner"]
    assert [len(errors) for errors in learner] == [2, 1]
    np.testing.assert_allclose(learner[0], inverse[0], rtol=0.1)
    assert [np.shape(d) for d in saved["distance"]["Q"]] == [(2, 1), (1, 2)]
    assert [np.shape(d) for d in saved["distance"]["P"]] == [(2, 0), (1, 1)]
    assert (sweep.path / "layers.png").stat().st_size > 5_000

    over = lambda over: Sweep(sweep.path, sweep.config, over, 1)
    assert layers.layers(over({"learning_rate": [0.1, 0.2]})) is None
    assert layers.layers(over({"layers": [1, 2], "learning_rate": [0.1]})) is None


def test_the_settings_are_those_of_the_public_code():
    by_layers, rotated = PRESETS["ahn/layers"], PRESETS["ahn/rotated"].config
    assert by_layers.over == {"model_layers": [1, 2, 3, 4]}
    assert (rotated.model.layers, rotated.training.steps) == (3, 100_000)
    for name in ("ahn/isotropic", "ahn/layers", "ahn/rotated"):
        config = PRESETS[name].config
        assert (config.task.dim, config.task.points, config.layout) == (5, 21, "concatenated")
        assert has_preconditioners(config) and config.optimizer.name == "adam"
    rate = learning_rate_schedule(by_layers.config.optimizer, by_layers.config.training.steps)
    np.testing.assert_allclose([rate(0), rate(3999), rate(4000), rate(19_999)],
                               [0.01, 0.01, 0.005, 0.01 / 16])  # fmt: skip


def test_the_learning_rate_is_halved_every_so_many_steps():
    config = OptimizerConfig(learning_rate=0.1, schedule="halving", halving_steps=20)
    rate = learning_rate_schedule(config, 100)
    np.testing.assert_allclose(
        [rate(n) for n in (0, 19, 20, 39, 40)], [0.1, 0.1, 0.05, 0.05, 0.025]
    )
    warm = learning_rate_schedule(dataclasses.replace(config, warmup_steps=10), 100)
    np.testing.assert_allclose([warm(n) for n in (0, 5, 10, 29, 30)], [0, 0.05, 0.1, 0.1, 0.05])


def test_each_matrix_of_the_gradient_is_clipped_by_itself():
    gradient = {
        "stacked": jnp.stack([jnp.full((2, 2), 3.0), jnp.full((2, 2), 1e-4), jnp.zeros((2, 2))]),
        "vector": jnp.array([3.0, 4.0]),
        "scalar": jnp.float32(-2),
    }
    limited, _ = clip_each(0.5).update(gradient, optax.EmptyState())
    np.testing.assert_allclose(limited["stacked"][0], np.full((2, 2), 0.25), rtol=1e-6)
    np.testing.assert_array_equal(limited["stacked"][1:], gradient["stacked"][1:])
    np.testing.assert_allclose(limited["vector"], [0.3, 0.4], rtol=1e-6)
    np.testing.assert_allclose(limited["scalar"], -0.5, rtol=1e-6)

    config = OptimizerConfig(name="sgd", learning_rate=1.0, schedule="constant", clip_each=0.5)
    optimizer = make_optimizer(config, 10)
    updates, _ = optimizer.update(gradient, optimizer.init(gradient), gradient)
    np.testing.assert_allclose(updates["vector"], [-0.3, -0.4], rtol=1e-6)
    # The global norm is clipped first.
    both = make_optimizer(dataclasses.replace(config, clip_norm=0.1), 10)
    updates, _ = both.update(gradient, both.init(gradient), gradient)
    np.testing.assert_allclose(optax.global_norm(updates), 0.1, rtol=1e-5)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(clip_each=0.0), "clip_each must be a number from 1"),
        (dict(clip_norm=-1.0), "clip_norm must be a number from 1"),
        (dict(schedule="halving"), "needs halving_steps"),
        (dict(schedule="halving", halving_steps=0), "halving_steps must be a whole number from 1"),
    ],
)
def test_impossible_optimisers_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        OptimizerConfig(**changes)


@pytest.mark.parametrize("scales", [(1.0, 1.0), (1.0, 1.0, 0.5, 0.0, 1.0)])
def test_impossible_covariances_are_refused(scales):
    with pytest.raises(
        ValueError, match="scales must be (5 positive numbers|a number from 1.*, got 0.0)"
    ):
        WhitenedRegression(scales=scales)

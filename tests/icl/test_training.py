"""The training program: chunks, microbatches, optimisers, settings, and errors that stop a run."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import icl
from icl.experiments import PRESETS, preset
from icl.models import TransformerConfig
from icl.tasks import (
    Curriculum,
    Episode,
    LinearClassification,
    LinearRegression,
    VectorRetrieval,
)
from icl.training import Learner, LoggingConfig, NonFiniteLoss, OptimizerConfig
from icl.training.config import config_from_dict, config_to_dict
from icl.training.optimizer import learning_rate_schedule, make_optimizer
from icl.training.progress import ProgressDisplay
from icl.training.step import batch_gradient, compile_chunk, microbatch_size, train_step

from .helpers import QUIET, assert_same_bits, start, tiny


def test_chunk_length_changes_no_bit():
    ends, chunks = [], {}
    for lengths in ([7, 3, 3], [3, 7, 3], [3, 3, 7]):
        learner, optimizer, state = start(tiny(training_pool_size=100))
        losses = []
        for length in lengths:
            if length not in chunks:
                chunks[length] = compile_chunk(learner, optimizer, state, length)
            state, metrics = chunks[length](state)
            losses.append(np.asarray(metrics.loss))
        ends.append((state, np.concatenate(losses)))
    for end in ends[1:]:
        assert_same_bits(ends[0], end)
    assert int(ends[0][0].step) == 13


def test_a_scanned_chunk_equals_single_steps():
    learner, optimizer, state = start(tiny())
    step = jax.jit(lambda state: train_step(learner, optimizer, state))
    single = state
    for _ in range(3):
        single, _ = step(single)
    scanned, _ = compile_chunk(learner, optimizer, state, 3)(state)
    for a, b in zip(jax.tree.leaves(scanned.params), jax.tree.leaves(single.params)):
        np.testing.assert_allclose(a, b, atol=1e-5)


@pytest.mark.parametrize(("layout", "sizes"), [("interleaved", (1, 4)), ("concatenated", (2,))])
def test_microbatches_add_up_to_the_batch(layout, sizes):
    config = tiny(layout=layout, training_microbatch_size=8)
    learner, _, state = start(config)
    whole = jax.jit(lambda s: batch_gradient(learner, s))(state)
    for size in sizes:
        learner = Learner(config.replace(training_microbatch_size=size))
        parts = jax.jit(lambda s, learner=learner: batch_gradient(learner, s))(state)
        for a, b in zip(jax.tree.leaves(whole), jax.tree.leaves(parts)):
            np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)


def test_the_default_microbatch_size_divides_the_batch():
    for batch_size in (1, 7, 48, 64):
        size = microbatch_size(Learner(tiny(training_batch_size=batch_size)))
        assert batch_size % size == 0
    large = preset("garg/linear-small").replace(training_microbatch_size=None)
    assert microbatch_size(Learner(large)) < 64
    assert microbatch_size(Learner(tiny(training_microbatch_size=2))) == 2


def test_the_loss_is_the_mean_over_scored_positions():
    config = tiny(curriculum=Curriculum(dim_start=2, points_start=3))
    learner, _, state = start(config)
    from icl.tasks import sample_batch

    key = jax.random.fold_in(state.data_key, 0)
    at_start = config.curriculum.at(0, config.task)
    draw = jax.jit(lambda key: sample_batch(learner.family, key, jnp.arange(8), at_start))
    episodes = draw(key)
    errors = (jax.jit(learner.predict)(state.params, episodes) - episodes.y) ** 2
    loss, *_ = jax.jit(lambda state: batch_gradient(learner, state))(state)
    np.testing.assert_allclose(loss, errors[:, :3].mean(), rtol=1e-5)


@pytest.mark.parametrize(
    ("task", "changes", "message"),
    [
        (LinearRegression(dim=3, points=5), dict(y=(8, 5, 3)), r"y .*shape \[B, points\].*8, 5, 3"),
        (LinearRegression(dim=3, points=5), dict(y=(8, 4)), r"y .*got \(8, 4\), where x has"),
        (LinearRegression(dim=3, points=5), dict(x=(8, 5, 4)), r"x .*\[B, points, 3\].*8, 5, 4"),
        (
            LinearRegression(dim=3, points=5),
            dict(x=(5, 3), y=(5,), queries=(5,)),
            r"x .*\[B, points",
        ),
        (LinearRegression(dim=3, points=5), dict(queries=(8,)), r"queries .*got \(8,\)"),
        (LinearRegression(dim=3, points=5), dict(label_tokens=(8, 5, 9)), "label_tokens .*8, 5, 9"),
        (VectorRetrieval(dim=3, points=5), dict(), r"y .*shape \[B, points, 3\].*got \(8, 5\)"),
    ],
)
def test_episodes_with_wrong_shapes_are_refused(task, changes, message):
    shapes = dict(x=(8, 5, 3), y=(8, 5), queries=(8, 5), context=(8, 5)) | changes
    episodes = Episode(**{name: np.ones(shape) for name, shape in shapes.items()})
    learner = Learner(tiny(task=task))
    for ask in (learner.predict, learner.loss_sum):
        with pytest.raises(ValueError, match=message):
            ask(None, episodes)


def test_progress_shows_the_loss_as_an_error_with_its_name(capsys):
    numbers = dict(loss=1.5, steps_per_second=2.0, tokens_per_second=9.0)
    for config, line, number in (
        (tiny(), "error: squared error / mean squared label, over", "error 0.5000"),
        (tiny(task_noise=0.5, curriculum=Curriculum(dim_start=2)),
         "squared label without noise at full difficulty, over", "error 0.5000"),
        (tiny(task=VectorRetrieval(dim=3, points=5)), "squared label, over", "error 1.5000"),
        (tiny(task=LinearClassification(dim=3, points=5), curriculum=Curriculum(dim_start=2)),
         "loss: cross-entropy, nats, over training batches", "loss 1.5000"),
    ):  # fmt: skip
        measure = config.training_measure
        with ProgressDisplay(20, 0, measure) as display:
            display.update(20, numbers | {measure.label: numbers["loss"] / measure.scale})
        text = capsys.readouterr().out
        assert line in text and f"{number}  2.0 steps/s" in text


def test_slow_training_is_told_in_seconds_a_step_and_long_waits_in_days(capsys):
    measure = tiny().training_measure
    with ProgressDisplay(500_000, 0, measure) as display:
        display.update(2, dict(error=1.0, steps_per_second=0.05, tokens_per_second=9.0))
    assert "20 s a step  9 tokens/s  116 days left" in capsys.readouterr().out


def test_training_learns(tmp_path):
    config = tiny(
        task=LinearRegression(dim=1, points=5),
        model=TransformerConfig(layers=2, heads=2, width=16),
        training_batch_size=64,
        training_steps=300,
        training_log_every=50,
        training_checkpoint_every=50,
        optimizer_learning_rate=1e-2,
    )
    run = icl.train(config, tmp_path / "run", logging=QUIET)
    losses = [record["loss"] for record in run.metrics()]
    # Predicting 0 costs 1 on average.
    assert losses[0] > 0.8 and losses[-1] < 0.6
    assert [record["step"] for record in run.metrics()] == [50, 100, 150, 200, 250, 300]
    assert "compile_seconds" in run.metrics()[0] and "compile_seconds" not in run.metrics()[1]
    assert run.checkpoints().steps() == [200, 250, 300]


def test_the_number_of_steps_need_not_be_a_multiple_of_log_every(tmp_path):
    run = icl.train(tiny(training_steps=12), tmp_path / "run", logging=QUIET)
    assert [record["step"] for record in run.metrics()] == [5, 10, 12]
    assert run.variables()[0] == 12


def test_a_curriculum_compiles_once(tmp_path):
    config = tiny(curriculum=Curriculum(dim_start=1, points_start=1, interval=2))
    run = icl.train(config, tmp_path / "run", logging=QUIET)
    assert sum("compile_seconds" in record for record in run.metrics()) == 1


@pytest.mark.parametrize("changes", [
    dict(optimizer_learning_rate=1e30, optimizer_warmup_steps=0),
    dict(optimizer_name="sgd", optimizer_learning_rate=1e8, optimizer_warmup_steps=0),
])  # fmt: skip
def test_a_loss_that_is_not_finite_stops_the_run(tmp_path, changes):
    with pytest.raises(NonFiniteLoss) as caught:
        icl.train(tiny(**changes), tmp_path / "run", logging=QUIET)
    message = str(caught.value)
    assert "no checkpoint was made" in message
    lower = {1e30: "3e+29", 1e8: "3e+07"}[changes["optimizer_learning_rate"]]
    command = f"icl train --resume {tmp_path / 'run'} --optimizer.learning-rate {lower}"
    for advice in (f"{command} --optimizer.clip-norm 1;", "warmup_steps"):
        assert advice in message
    assert icl.Run.open(tmp_path / "run").checkpoints().steps() == []


def test_a_loss_that_is_not_finite_is_reported_with_step_and_last_checkpoint(tmp_path):
    explode = optax.scale_by_schedule(lambda step: jnp.where(step < 16, -1e-3, 1e30))
    with pytest.raises(NonFiniteLoss, match="at step 1[78].*step 10.*resume.run, optimizer=..."):
        icl.train(tiny(), tmp_path / "run", optimizer=explode, logging=QUIET)
    assert icl.Run.open(tmp_path / "run").variables()[0] == 10


def test_any_optax_optimizer_trains(tmp_path):
    for name, options, step in (
        ("lion", {"b1": 0.8}, -0.5), ("sgd", {"momentum": 0.9}, -1.0), ("adamw", {}, -0.5)
    ):  # fmt: skip
        config = OptimizerConfig(
            name=name, options=options, learning_rate=0.5, schedule="constant", warmup_steps=0
        )
        given, weight = make_optimizer(config, 5), jnp.zeros(())
        first = jax.jit(lambda own, w: own.update(2 * w + 2, own.init(w), w)[0], static_argnums=0)
        np.testing.assert_allclose(first(given, weight), step, rtol=1e-4)
    run = icl.train(tiny(), tmp_path / "own", optimizer=optax.lamb(1e-3), logging=QUIET)
    assert run.config.optimizer.name == "custom"
    icl.evaluate(run, prompts=8, resamples=2)
    with pytest.raises(ValueError, match="pass it again"):
        icl.resume(run, logging=QUIET)
    icl.resume(run, optimizer=optax.lamb(1e-3), logging=QUIET)


def test_unknown_optimizers_and_options_are_refused():
    with pytest.raises(ValueError, match="did you mean .*adam"):
        make_optimizer(OptimizerConfig(name="adma"), 10)
    with pytest.raises(ValueError, match="takes no option beta; it takes b1"):
        make_optimizer(OptimizerConfig(options={"beta": 0.9}), 10)


def test_learning_rate_rises_and_falls():
    config = OptimizerConfig(learning_rate=0.1, warmup_steps=10)
    rate = learning_rate_schedule(config, 110)
    np.testing.assert_allclose([rate(0), rate(5), rate(10)], [0, 0.05, 0.1], atol=1e-7)
    np.testing.assert_allclose([rate(60), rate(110)], [0.05, 0], atol=1e-7)
    stable = learning_rate_schedule(dataclasses.replace(config, schedule="stable"), 110)
    np.testing.assert_allclose([stable(5), stable(10), stable(88)], [0.05, 0.1, 0.1], atol=1e-7)
    np.testing.assert_allclose([stable(99), stable(110)], [0.05, 0], atol=1e-7)
    constant = learning_rate_schedule(dataclasses.replace(config, schedule="constant"), 110)
    np.testing.assert_allclose([constant(10), constant(110)], 0.1)


def test_the_learning_rate_falls_with_the_root_of_the_step():
    config = OptimizerConfig(learning_rate=0.1, schedule="inverse_sqrt", warmup_steps=10)
    expected = [0, 0.05, 0.1, 0.1 * (10 / 11) ** 0.5, 0.05, 0.01]
    steps = (0, 5, 10, 11, 40, 1000)
    rate = learning_rate_schedule(config, 110)
    np.testing.assert_allclose([rate(step) for step in steps], expected, rtol=1e-5)
    traced = jax.jit(lambda peak, step: learning_rate_schedule(config, 110, peak)(step))
    found = [traced(jnp.float32(0.2), jnp.int32(step)) for step in steps]
    np.testing.assert_allclose(found, 2 * np.array(expected), rtol=1e-5)


@pytest.mark.parametrize("name", sorted(PRESETS))
def test_settings_survive_json(name):
    config = preset(name)
    assert config_from_dict(json.loads(json.dumps(config_to_dict(config)))) == config


def test_every_preset_builds_a_learner_and_an_optimizer():
    models = set()
    for name, entry in PRESETS.items():
        config, task = entry.config, entry.config.task
        make_optimizer(config.optimizer, config.training.steps)
        assert name.count("/") == 1 and "\n" not in entry.summary
        # All that a learner builds its model from; building a deep one takes seconds.
        built = repr((config.model, config.layout, task.input_kind, task.label_kind, task.points))
        if built not in models:
            models.add(built)
            assert Learner(config).tokens > 0
    with pytest.raises(KeyError, match="did you mean garg/linear"):
        preset("garg/liner")
    with pytest.raises(KeyError, match="icl list"):
        preset("zzz")


def test_replace_changes_settings_by_name_and_refuses_unknown_names():
    config = tiny(task_noise=0.5, model=TransformerConfig(layers=4), model_width=32)
    assert config.task.noise == 0.5
    assert (config.model.layers, config.model.width) == (4, 32)
    for wrong in ("noise", "task_nois", "training"):
        with pytest.raises((TypeError, ValueError)):
            config.replace(**{wrong: 1})
    with pytest.raises(TypeError, match="no setting 'task_nois'; did you mean task_noise"):
        config.replace(task_nois=1)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (dict(training_batch_size=0), "training.batch_size must be a whole number from 1"),
        (dict(training_pool_size=2**31), "training.pool_size must be a whole number from 1"),
        (dict(training_checkpoint_every=7), "multiple of log_every"),
        (dict(training_microbatch_size=3), "must divide batch_size"),
        (dict(optimizer_learning_rate=0.0), "optimizer.learning_rate must be a number from 1"),
        (dict(optimizer_clip_norm=0.0), "optimizer.clip_norm must be a number from 1"),
        (dict(optimizer_warmup_steps=-1), "optimizer.warmup_steps must be a whole number from 0"),
        (
            dict(optimizer_schedule="inverse_sqrt", optimizer_warmup_steps=0),
            "set optimizer.warmup_steps to at least 1",
        ),
    ],
)
def test_impossible_settings_are_refused(changes, message):
    with pytest.raises(ValueError, match=message):
        tiny(**changes)


def test_unreadable_settings_are_refused():
    data = config_to_dict(tiny())
    with pytest.raises(ValueError, match="cannot read"):
        config_from_dict(data | {"colour": 1})
    with pytest.raises(ValueError, match="no task family called 'astrology'; there are"):
        config_from_dict(data | {"task": {"family": "astrology"}})


def test_tensorboard_gets_the_metrics(tmp_path):
    pytest.importorskip("tensorboardX", reason="tensorboardX is optional")
    logging = LoggingConfig(progress=False, tensorboard=True)
    run = icl.train(tiny(), tmp_path / "run", logging=logging)
    assert list((run.path / "tensorboard").iterdir())


def test_a_metrics_sink_that_is_not_installed_is_refused_before_a_folder_is_made(
    tmp_path, monkeypatch
):
    import sys

    for name, logging in (
        ("tensorboardX", LoggingConfig(tensorboard=True)),
        ("wandb", LoggingConfig(wandb="project")),
    ):
        monkeypatch.setitem(sys.modules, name, None)
        with pytest.raises(ModuleNotFoundError, match=f"pip install {name}"):
            icl.train(tiny(), tmp_path / "run", logging=logging)
    assert not (tmp_path / "run").exists()

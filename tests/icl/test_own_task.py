"""A task and a model that are defined outside the library work in every command."""

import os
import re
import shutil
from functools import partial
from importlib import import_module

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.sharding import AbstractMesh, AxisType, PartitionSpec

import icl
from icl import cli
from icl.evaluation import Evaluation, draw_prompts
from icl.models import MODELS, GradientDescentConfig, MLPConfig
from icl.sweeps import SweepResult, train_sweep
from icl.tasks import FAMILIES, Curriculum
from icl.training import Learner, Run, RunError
from icl.training.config import config_from_dict, config_to_dict
from icl.training.data import load_data
from icl.training.optimizer import make_optimizer
from icl.training.parallel import DATA, MEMBERS, Shards
from icl.training.step import batch_gradient, init_state, microbatch_size, train_step

from . import children
from .helpers import QUIET, assert_same_bits, contents, start, tiny


@pytest.fixture(scope="module", autouse=True)
def own():
    """Registers the task and the models for the tests of this file alone."""
    registries = [(registry, dict(registry)) for registry in (FAMILIES, MODELS)]
    module = import_module("tests.icl.own_task")
    # A worker may come back to this file, and then the import registers nothing.
    icl.register_family("test_images")(module.ImageClasses)
    icl.register_model("test_averages")(module.AveragesConfig)
    icl.register_model("test_pooled")(module.PooledConfig)
    yield module
    for registry, before in registries:
        registry.clear()
        registry.update(before)


@pytest.fixture(scope="module")
def file(own, tmp_path_factory):
    return own.write_images(tmp_path_factory.mktemp("data") / "images.npz")


@pytest.fixture(scope="module")
def whole(file, tmp_path_factory, programs, own):
    return icl.train(own.config_of(file), tmp_path_factory.mktemp("runs") / "whole", logging=QUIET)


def train_on_eight(path, config):
    assert len(jax.devices()) == 8
    run = icl.train(config, path, logging=QUIET)
    assert all(np.isfinite(record["loss"]) for record in run.metrics())


def with_other_keys(leaf):
    is_key = jnp.issubdtype(leaf.dtype, jax.dtypes.prng_key)
    return jax.random.fold_in(leaf, 1) if is_key else leaf


def shapes(tree):
    return jax.tree.map(jnp.shape, tree)


def test_a_resumed_run_ends_bit_equal_to_an_uninterrupted_one(whole, tmp_path):
    # As of step 8; processes are killed in test_kill.py.
    shutil.copytree(whole.path, tmp_path / "run")
    for later in ("10", "12"):
        shutil.rmtree(tmp_path / "run" / "checkpoints" / later)
    assert Run.open(tmp_path / "run").checkpoint_steps() == [8]
    run = icl.resume(tmp_path / "run", logging=QUIET)
    step, variables = run.variables()
    assert step == 12
    assert_same_bits(variables, whole.variables()[1])
    first = Learner(whole.config).init(jax.random.key(0))
    assert jax.tree.leaves(variables.state) and jax.tree.leaves(variables.keys)
    changed = jax.tree.map(lambda a, b: bool((a != b).any()), variables.state, first.state)
    assert all(jax.tree.leaves(changed)), "every batch statistic has changed"


def test_data_are_an_argument_of_the_step_and_not_in_checkpoints(whole, own):
    learner, optimizer, state = start(whole.config)
    data = load_data(learner.family)
    step = jax.jit(lambda state, data: train_step(learner, optimizer, state, data=data))
    text = step.lower(state, data).as_text()
    kind = f"tensor<{own.CLASSES}x{own.EXEMPLARS}x{own.SIDE}x{own.SIDE}xui8>"
    assert re.search(rf"%arg\d+: {kind}", text)
    assert not any("constant" in line and kind in line for line in text.splitlines())
    held = [f.read_bytes() for f in (whole.path / "checkpoints").rglob("*") if f.is_file()]
    assert not any(data["images"].tobytes()[:64] in content for content in held)


def test_random_layers_have_different_keys_in_every_step_and_microbatch(file, own):
    losses = {}
    for size in (8, 4):
        config = own.config_of(file, training_microbatch_size=size, model_dropout=0.9)
        learner, _, state = start(config.replace(model_embedder="linear"))
        loss = jax.jit(
            lambda state, data, learner=learner: batch_gradient(learner, state, data=data)[0]
        )
        # Change the keys of random layers, but not the prompts.
        keys = jax.tree.map(with_other_keys, state.variables.keys)
        other = state._replace(variables=state.variables._replace(keys=keys))
        data = load_data(learner.family)
        losses[size] = [float(loss(one, data)) for one in (state, state, other)]
    for first, again, other in losses.values():
        assert first == again != other
    assert losses[8][0] != losses[4][0]


def test_microbatches_do_not_divide_the_batch_statistics(file, own):
    config = own.config_of(file, training_batch_size=2**18)
    learner = Learner(config)
    assert [microbatch_size(learner, devices) for devices in (1, 4)] == [2**18, 2**16]
    given = Learner(config.replace(training_microbatch_size=32))
    assert microbatch_size(given) == 32
    without = Learner(config.replace(model=MLPConfig(embedder="convolution")))
    assert microbatch_size(without) < 2**18


def test_a_step_of_a_resnet_is_divided_among_devices_and_done_for_a_population(file, own):
    config = own.config_of(file, model_embedder="resnet")
    learner = Learner(config)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    state = jax.eval_shape(lambda: init_state(learner, optimizer))
    step, data = partial(train_step, learner, optimizer), load_data(learner.family)
    mesh = AbstractMesh((1, 2), (MEMBERS, DATA), axis_types=(AxisType.Auto,) * 2)
    shared = jax.shard_map(
        lambda state, data: step(state, shards=Shards.of(mesh), data=data),
        mesh=mesh, in_specs=PartitionSpec(), out_specs=PartitionSpec(),
    )  # fmt: skip
    # Only traced, for the gradient takes long to compile.
    assert shapes(jax.eval_shape(shared, state, data)[0]) == shapes(state)
    each = jax.vmap(lambda state, data: step(state, data=data), in_axes=(0, None))
    two = jax.tree.map(lambda leaf: jax.ShapeDtypeStruct((2, *leaf.shape), leaf.dtype), state)
    assert shapes(jax.eval_shape(each, two, data)[0]) == shapes(two)


def test_a_run_refuses_data_that_changed(whole, file, tmp_path, own):
    run = shutil.copytree(whole.path, tmp_path / "run")
    record = run / "config.json"
    assert file in record.read_text() and "sha256" in record.read_text()
    before = contents(run)
    try:
        own.write_images(file, seed=1)
        for ask in (
            lambda: icl.resume(run, training_steps=14, logging=QUIET),
            lambda: icl.evaluate(run, prompts=4),
            lambda: Run.open(run).variables(),
        ):
            with pytest.raises(RunError, match="trained on other data: .*images.npz .sha256"):
                ask()
        os.remove(file)
        with pytest.raises(RunError, match="images.npz, cannot be read: No such file"):
            icl.evaluate(run, prompts=4)
    finally:
        own.write_images(file)
    assert contents(run) == before


def test_evaluation_compares_the_model_with_class_frequencies(whole, capsys, undrawn):
    assert cli.main(["eval", str(whole.path), "--prompts", "32", "--resamples", "20"]) == 0
    assert "fraction misclassified" in " ".join(capsys.readouterr().out.split())
    result = Evaluation.load(whole)
    others = ["1-nearest neighbour", "ridge", "SGD", "class frequencies"]
    assert list(result.curves) == ["model", *others]
    assert result.examples.tolist() == [0, 1, 2, 3]
    frequencies = result.curves["class frequencies"].mean
    assert frequencies[0] > 0.6 > frequencies[3] > 0.1, (
        "a prompt has two classes, and the examples show them"
    )


def test_a_run_predicts_for_the_prompts_of_a_user(whole, file, own):
    learner = Learner(whole.config)
    images = load_data(learner.family)["images"]
    x, y = images[:2, :3].swapaxes(0, 1), np.array([[3, 7]] * 3)
    found = whole.predict(x, y, images[:5, 0][None].repeat(3, axis=0))
    assert found.shape == (3, 5, own.CLASSES) and found.dtype == np.float32
    np.testing.assert_allclose(found.sum(axis=-1), 1, rtol=1e-5)
    np.testing.assert_array_equal(found[1], whole.predict(x[1], y[1], images[:5, 0]))
    none = whole.predict(x[0, :0], y[0, :0], images[:1, 0])
    assert none.shape == (1, own.CLASSES) and np.abs(none - found[0, 0]).max() > 1e-4
    for arguments, message in (
        ((x.astype(float), y, x), "x_context: images must be uint8"),
        ((x, y + 9, x), "y_context: .*integer from 0 to 9"),
        ((x, y[:, :1], x), "must agree"),
        ((x[..., :7], y, x), r"x_context must have the shape \[B, n, 8, 8\]"),
        ((x, y, x[0]), "all have a leading axis"),
        ((images[:4, :3].swapaxes(0, 1), np.zeros((3, 4), int), x), "at most 3 examples"),
    ):
        with pytest.raises(ValueError, match=message):
            whole.predict(*arguments)


def test_a_sweep_trains_batch_statistics_as_single_runs_do(whole, file, tmp_path, own):
    sweep = train_sweep(
        own.config_of(file), {}, seeds=2, sweep_dir=tmp_path / "sweep", progress=False
    )
    records = SweepResult.load(sweep).records
    assert all(np.isfinite(record["normalised_error"]).all() for record in records)
    ours, theirs = (run.variables()[1] for run in (sweep.members[0].run, whole))
    for a, b in zip(jax.tree.leaves(ours[:2]), jax.tree.leaves(theirs[:2]), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-3, atol=1e-4)


def test_an_own_task_trains_on_eight_devices(file, tmp_path, own):
    process = children.start(
        train_on_eight,
        tmp_path / "run",
        own.config_of(file, training_steps=4),
        out=tmp_path / "out",
        devices=8,
    )
    process.join()
    assert process.exitcode == 0, (tmp_path / "out.err").read_text()
    step, variables = Run.open(tmp_path / "run").variables()
    assert step == 4 and all(np.isfinite(a).all() for a in jax.tree.leaves(variables[:2]))


@pytest.mark.parametrize("layout", ["concatenated", "separate"])
def test_a_model_that_takes_lengths_sees_no_padding(layout, own):
    curriculum = Curriculum(points_start=3, points_increment=1)
    config = tiny(model=own.PooledConfig(), layout=layout, curriculum=curriculum)
    learner = Learner(config)
    variables, family = jax.jit(learner.init)(jax.random.key(0)), config.task
    full = draw_prompts(family, jax.random.key(1), 4)
    used = (np.arange(family.points) < 3)[None]
    part = full._replace(queries=full.queries & used, context=full.context & used)
    predict = jax.jit(learner.predict)
    hidden = part._replace(x=part.x.at[:, 3:].set(9.0), y=part.y.at[:, 2:].set(9.0))
    np.testing.assert_array_equal(predict(variables, part)[:, 2], predict(variables, hidden)[:, 2])
    assert (predict(variables, part)[:, 2] != predict(variables, full)[:, 2]).all()
    shorter = icl.Predictor(learner, variables)(part.x[:, :2], part.y[:, :2], part.x[:, 2:3])
    np.testing.assert_allclose(shorter[:, 0], predict(variables, part)[:, 2], rtol=1e-6)
    with pytest.raises(ValueError, match="no point may be padding"):
        tiny(model=GradientDescentConfig(), layout="concatenated", curriculum=curriculum)


@pytest.mark.parametrize(
    ("section", "registry", "key"), [("task", FAMILIES, "family"), ("model", MODELS, "kind")]
)
def test_the_error_for_an_unregistered_class_names_its_module(
    monkeypatch, file, section, registry, key, own
):
    data = config_to_dict(own.config_of(file))
    assert config_from_dict(data) == own.config_of(file)
    monkeypatch.delitem(registry, data[section][key])
    with pytest.raises(ValueError, match=r"module tests\.icl\.own_task.*--import"):
        config_from_dict(data)


def test_the_command_imports_modules(whole, capsys):
    assert cli.main(["--import", "tests.icl.own_task", "list", "garg/linear-xs"]) == 0
    assert cli.main(["--import", "tests.icl.no_such_task", "list"]) == 2
    assert "no module tests.icl.no_such_task" in capsys.readouterr().err


def test_wrong_registrations_are_refused():
    with pytest.raises(TypeError, match="must be a class that inherits from TaskFamily"):
        icl.register_family("other")(dict)
    with pytest.raises(ValueError, match="name 'sine' is taken by icl.tasks.sine"):
        icl.register_family("sine")(FAMILIES["test_images"])
    with pytest.raises(ValueError, match="must be a string that is not empty"):
        icl.register_model("")


def test_an_embedder_that_does_not_fit_the_inputs_is_refused(file, own):
    config = own.config_of(file)
    for name, message in (
        (None, "images cannot be read without an embedder: .*convolution"),
        ("table", "by the embedder table"),
        ("wavelet", "no embedder called"),
    ):
        with pytest.raises(ValueError, match=message):
            config.replace(model_embedder=name)

"""Optimisers by name: Muon, those of optax and those of users."""

import shutil

import jax
import jax.numpy as jnp
import numpy as np
import optax
import optax.contrib
import pytest

import icl
from icl.models import LoopedTransformerConfig, LSTMConfig
from icl.training import Learner, OptimizerConfig
from icl.training.muon import muon_and_adam
from icl.training.optimizer import OPTIMIZERS, UNUSABLE, make_optimizer, register_optimizer

from .helpers import QUIET, assert_same_bits, tiny

RATE = 0.01


def parameters(config):
    """Drawn for the shapes of a learner's parameters."""
    shapes = jax.eval_shape(Learner(config).init, jax.random.key(0)).params
    return drawn(shapes, 9)


def drawn(tree, seed):
    normal = np.random.default_rng(seed).normal
    return jax.tree.map(lambda leaf: normal(size=leaf.shape).astype(np.float32), tree)


def updates_of(optimizers, params, steps=3):
    """The last updates of each optimiser, in one program."""

    @jax.jit
    def last(params, *gradients):
        found = []
        for optimizer in optimizers:
            state = optimizer.init(params)
            for gradient in gradients:
                updates, state = optimizer.update(gradient, state, params)
            found.append(updates)
        return found

    return last(params, *(drawn(params, step) for step in range(steps)))


def test_muon_updates_each_matrix_of_a_layer_and_adam_the_rest():
    params = parameters(tiny(model_layers=2))
    optimizers = muon_and_adam(RATE, adam_ratio=0.5, beta=0.9), optax.nadam(0.5 * RATE, b2=0.95)
    ours, adam = updates_of(optimizers, params, steps=2)
    block = ours["blocks"][1]
    for name in ("up", "down"):
        kernel = block[name]["kernel"]
        widening = max(1, kernel.shape[1] / kernel.shape[0]) ** 0.5
        values = np.linalg.svd(kernel / widening)[1]
        assert 0.4 * RATE < values.min() and values.max() < 1.5 * RATE
    for part in np.split(block["mixer"]["qkv"]["kernel"], 3, axis=1):  # query, key and value
        values = np.linalg.svd(part)[1]
        assert 0.4 * RATE < values.min() and values.max() < 1.5 * RATE

    for name in ("read_in", "read_out", "positions", "norm"):
        jax.tree.map(np.testing.assert_array_equal, ours[name], adam[name])
    np.testing.assert_array_equal(ours["blocks"][0]["up"]["bias"], adam["blocks"][0]["up"]["bias"])


def test_a_fused_projection_is_updated_as_its_matrices_are_alone():
    params = {"layers": {0: {"qkv": {"kernel": jnp.ones((8, 24))}}}}
    parts = {"layers": {i: {"out": {"kernel": jnp.ones((8, 8))}} for i in range(3)}}
    gradient = jax.random.normal(jax.random.key(0), (8, 24))
    split = {"layers": {i: {"out": {"kernel": g}} for i, g in enumerate(jnp.split(gradient, 3, 1))}}
    optimizer = muon_and_adam(RATE, weight_decay=0.1)
    whole, _ = optimizer.update(
        {"layers": {0: {"qkv": {"kernel": gradient}}}}, optimizer.init(params), params
    )
    alone, _ = optimizer.update(split, optimizer.init(parts), parts)
    joined = jnp.concatenate([alone["layers"][i]["out"]["kernel"] for i in range(3)], axis=1)
    np.testing.assert_allclose(whole["layers"][0]["qkv"]["kernel"], joined, rtol=1e-5, atol=1e-7)


@pytest.mark.parametrize("model", [LoopedTransformerConfig, LSTMConfig])
def test_muon_takes_other_models(model):
    sizes = dict(width=16, layers=2)
    if model is LoopedTransformerConfig:
        sizes |= dict(heads=2, loops=2, window=1)
    params = parameters(tiny(model=model(**sizes)))
    optimizers = muon_and_adam(RATE), optax.nadam(0.3 * RATE, b2=0.95)
    updates, adam = map(jax.device_get, updates_of(optimizers, params, steps=1))
    assert jax.tree.map(np.shape, updates) == jax.tree.map(np.shape, params)
    different = jax.tree.map(lambda a, b: bool((a != b).any()), updates, adam)
    kernels = [path for path, differs in jax.tree.leaves_with_path(different) if differs]
    assert len(kernels) == {LoopedTransformerConfig: 8, LSTMConfig: 4}[model]


def test_a_matrix_for_each_head_is_updated_as_alone():
    shape = (2, 6, 6)
    gradient = jax.random.normal(jax.random.key(0), shape)
    params = {"layers": {0: {"query": jnp.ones(shape)}}}
    optimizer = muon_and_adam(RATE)
    both, _ = optimizer.update({"layers": {0: {"query": gradient}}}, optimizer.init(params), params)
    one = {"layers": {0: {"query": jnp.ones(shape[1:])}}}
    for head in range(2):
        given = {"layers": {0: {"query": gradient[head]}}}
        alone, _ = optimizer.update(given, optimizer.init(one), one)
        np.testing.assert_allclose(
            both["layers"][0]["query"][head], alone["layers"][0]["query"], rtol=1e-4, atol=1e-6
        )


def test_muon_without_a_matrix_of_a_layer_is_refused():
    with pytest.raises(ValueError, match='nnx.List.*choose another optimiser, such as "adam"'):
        muon_and_adam(RATE).init({"read_in": {"kernel": jnp.ones((3, 4))}})


def test_muon_runs_are_resumed_exactly_and_trained_as_populations(tmp_path, programs, undrawn):
    config = tiny(
        optimizer_name="muon",
        optimizer_options={"beta": 0.9},
        optimizer_schedule="constant",
        training_steps=10,
        training_checkpoint_every=5,
    )
    whole = icl.train(config, tmp_path / "whole", logging=QUIET)
    # As of step 5.
    shutil.copytree(whole.path, tmp_path / "parts")
    shutil.rmtree(tmp_path / "parts" / "checkpoints" / "10")
    parts = icl.resume(tmp_path / "parts", logging=QUIET)
    assert_same_bits(whole.variables()[1], parts.variables()[1])
    assert icl.Run.open(whole.path).config == config

    rates = [1e-3, config.optimizer.learning_rate]
    over = {"learning_rate": rates}
    sweep = icl.sweep(config, over, sweep_dir=tmp_path / "sweep", progress=False)
    for mine, alone in zip(
        jax.tree.leaves(sweep.members[1].run.variables()[1]),
        jax.tree.leaves(whole.variables()[1]),
        strict=True,
    ):
        np.testing.assert_allclose(mine, alone, rtol=1e-3, atol=1e-5)


def test_users_register_optimizers(tmp_path):
    @register_optimizer("test_twice")
    def twice(learning_rate, factor=2.0):
        rate = lambda step: factor * learning_rate(step)
        return optax.sgd(rate)

    try:
        config = tiny(optimizer_name="test_twice", training_steps=6)
        run = icl.train(config, tmp_path / "run", logging=QUIET)
        peak = config.optimizer.learning_rate
        same = config.replace(optimizer_name="sgd", optimizer_learning_rate=2 * peak)
        optimizers = [make_optimizer(one.optimizer, 6) for one in (config, same)]
        ours, theirs = updates_of(optimizers, {"kernel": np.ones((2, 3), np.float32)})
        np.testing.assert_array_equal(ours["kernel"], theirs["kernel"])
        assert np.abs(ours["kernel"]).min() > 0
        with pytest.raises(ValueError, match="is taken by .*twice; choose another"):
            register_optimizer("test_twice")(muon_and_adam)
        assert register_optimizer("test_twice")(twice) is twice
    finally:
        del OPTIMIZERS["test_twice"]
    with pytest.raises(ValueError, match="no optimiser called 'test_twice'.*icl --import MODULE"):
        icl.resume(run, training_steps=8, logging=QUIET)
    with pytest.raises(TypeError, match="must be called learning_rate"):
        register_optimizer("test_wrong")(lambda rate: optax.sgd(rate))
    for name, message in (("", "not empty"), (3, "not empty"), ("custom", "is reserved")):
        with pytest.raises(ValueError, match=message):
            register_optimizer(name)


@pytest.mark.parametrize("name", UNUSABLE)
def test_optimizers_that_cannot_train_a_run_say_why(name):
    with pytest.raises(ValueError, match=f"{name} cannot train a run: "):
        make_optimizer(OptimizerConfig(name=name), 10)
    assert hasattr(optax, name) or hasattr(optax.contrib, name)

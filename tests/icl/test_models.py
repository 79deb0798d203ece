"""Laws of all models; sizes of the transformer; loops."""

import dataclasses
import functools
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import icl
from icl.analysis.loops import errors_by_loop
from icl.evaluation.curves import learner_errors
from icl.models import (
    MODELS,
    SMALL,
    STANDARD,
    XS,
    AdaptedTransformerConfig,
    CellsConfig,
    ContrastiveAttentionConfig,
    FastWeightLSTMConfig,
    GradientDescentConfig,
    LoopedTransformerConfig,
    LSTMConfig,
    MAMLConfig,
    MLPConfig,
    Model,
    ModelConfig,
    PreconditionedConfig,
    RNNConfig,
    SelfAttentionConfig,
    TransformerConfig,
    parameter_count,
)
from icl.models.flops import flops_by_part, training_flops
from icl.training import Learner
from icl.training.config import config_from_dict, config_to_dict
from icl.training.step import batch_gradient, microbatch_size

from .helpers import QUIET, TINY, build, jitted, prompt, start, tiny

LOOPED = LoopedTransformerConfig(
    layers=1, heads=2, width=16, loops=7, window=3, loops_increment=2, loops_interval=10
)
SIZES = {
    "transformer": TINY,
    "looped_transformer": LOOPED,
    "lstm": LSTMConfig(layers=2, width=16),
    "rnn": RNNConfig(layers=2, width=16),
    "self_attention": SelfAttentionConfig(layers=2, heads=2),
    "contrastive_attention": ContrastiveAttentionConfig(layers=2, softmax="all"),
    "gradient_descent": GradientDescentConfig(layers=2, plus_plus=True),
    "preconditioned_attention": PreconditionedConfig(layers=2),
    "fast_weight_lstm": FastWeightLSTMConfig(layers=2, heads=2, width=16),
    "maml": MAMLConfig(width=16, loss="squared", learning_rate=0.003),
    "mlp": MLPConfig(width=16),
    "adapted_transformer": AdaptedTransformerConfig(layers=1, width=16, learn_rates=True),
    "cells": CellsConfig(layers=1, heads=2, width=16, columns=3),
}
# The transformer is tested below with every mixer; models of whole prompts in other files.
OTHERS = [name for name, size in SIZES.items() if name != "transformer" and size.causal]


def taken(name):
    """Settings of a task and a layout that the model of that name takes."""
    if SIZES[name].takes_masked:
        return dict(layout="masked", task_queries=2)
    return dict(layout="shifted" if name == "maml" else "concatenated")


@functools.cache
def build_any(config, outputs=None):
    """A model with weights of NumPy's, since initialising it compiles each of its operations."""
    make = lambda: config.build(5, 12, outputs=outputs, rngs=nnx.Rngs(params=jax.random.key(0)))
    if isinstance(config, MAMLConfig):  # its descent needs small weights
        return make()
    graph, state = nnx.split(nnx.eval_shape(make))
    rng = np.random.default_rng(0)

    def weights(leaf):
        drawn = rng.normal(size=leaf.shape)
        drawn = drawn / leaf.shape[-2] ** 0.5 if leaf.ndim > 1 else 0.5 + 0.1 * drawn
        return jnp.asarray(drawn, leaf.dtype)

    return nnx.merge(graph, jax.tree.map(weights, state))


def test_every_registered_model_has_a_tiny_size():
    assert {name: type(config) for name, config in SIZES.items()} == MODELS


@pytest.mark.parametrize("name", OTHERS)
def test_models_are_causal_and_reading_some_positions_does_not_change_them(name):
    model, tokens = jitted(build_any(SIZES[name])), np.array(prompt())
    later, one = np.arange(12)[:, None] >= 7, np.arange(12)[:, None] == 7
    several = [tokens, *(np.where(where, tokens + 10, tokens) for where in (later, one))]
    whole, changed, one_changed = (np.asarray(model(each)) for each in several)
    assert whole.shape == (3, 12) and whole.dtype == jnp.float32
    np.testing.assert_allclose(whole[:, :7], changed[:, :7], atol=1e-6)
    assert np.abs(whole[:, 7:] - changed[:, 7:]).max() > 1e-4
    seen = np.abs(whole[:, 8:] - one_changed[:, 8:]).max()
    assert seen == 0 if name == "mlp" else seen > 1e-5  # an MLP sees one token
    np.testing.assert_allclose(model(tokens, 0, None, 2), whole[:, ::2], rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("name", OTHERS)
def test_every_parameter_has_a_gradient_with_vector_outputs(name):
    model = build_any(SIZES[name], outputs=2)
    graph, state = nnx.split(model)
    assert all(isinstance(leaf, nnx.Param) for leaf in jax.tree.leaves(
        state, is_leaf=lambda leaf: isinstance(leaf, nnx.Variable)))  # fmt: skip

    def loss(state):
        outputs = nnx.merge(graph, state).training_outputs(prompt(), slice(1, None, 2), 0)
        assert outputs.shape[1:] == (3, 6, 2) and outputs.dtype == jnp.float32
        return (outputs**2).sum()

    gradients = list(map(np.asarray, jax.tree.leaves(jax.jit(jax.grad(loss))(state))))
    assert gradients and all(np.isfinite(g).all() and np.abs(g).max() > 0 for g in gradients)


@pytest.mark.parametrize("name", [name for name in OTHERS if name != "maml"])
def test_every_model_in_bfloat16_is_near_float32(name):
    wide = build_any(SIZES[name])
    narrow = build_any(dataclasses.replace(SIZES[name], dtype="bfloat16"))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(narrow)))
    a, b = (np.asarray(jitted(model)(prompt())) for model in (wide, narrow))
    assert b.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=0.03)
    assert (a != b).any()


@pytest.mark.parametrize("name", MODELS)
def test_settings_of_every_model_can_be_saved_loaded_and_replaced(name):
    config = tiny(model=SIZES[name], **taken(name))
    data = json.loads(json.dumps(config_to_dict(config)))
    assert data["model"]["kind"] == name and config_from_dict(data) == config
    assert config.replace(model_layers=4).model == dataclasses.replace(SIZES[name], layers=4)
    flat = config.flat()
    assert flat["model_layers"] == SIZES[name].layers and "model_kind" not in flat
    with pytest.raises(ValueError, match="layers must be a whole number from 1"):
        config.replace(model_layers=0)
    with pytest.raises(ValueError, match="no kind of model called 'oracle'; there are"):
        config_from_dict(data | {"model": {"kind": "oracle"}})


@pytest.mark.parametrize("name", MODELS)
def test_a_learner_draws_the_initial_parameters_of_the_built_model(name):
    model = dataclasses.replace(SIZES[name], layers=1)
    learner = Learner(tiny(model=model, **taken(name)))
    build = lambda key: model.build(learner.width, 5, rngs=nnx.Rngs(params=key))
    init = lambda key: nnx.to_pure_dict(nnx.state(build(key), nnx.Param))

    @jax.jit
    def equal(key):
        theirs, ours = init(jax.random.clone(key)), learner.init(key).params
        return jax.tree.map(lambda a, b: (a == b).all(), theirs, ours)

    assert jax.tree.all(equal(jax.random.key(3)))


def test_settings_without_a_kind_are_those_of_a_transformer():
    data = config_to_dict(tiny())
    del data["model"]["kind"]
    assert config_from_dict(data) == tiny()


def test_an_unregistered_model_is_refused():
    @dataclasses.dataclass(frozen=True)
    class Mine(TransformerConfig):
        pass

    with pytest.raises(ValueError, match="Mine is not registered"):
        config_to_dict(tiny(model=Mine()))
    with pytest.raises(TypeError, match="model must be a ModelConfig"):
        tiny(model="lstm")


@pytest.mark.parametrize("name", OTHERS)
def test_looped_and_recurrent_models_learn(name, tmp_path):
    fewer = dict(loops=3, window=2) if name == "looped_transformer" else {}
    config = tiny(
        model=dataclasses.replace(SIZES[name], layers=1, **fewer),
        layout="shifted" if name == "maml" else "interleaved",
        training_pool_size=1,
        training_batch_size=32,
        training_steps=80,
        training_log_every=20,
        training_checkpoint_every=80,
        optimizer_learning_rate=2e-2,
    )
    run = icl.train(config, tmp_path / "run", logging=QUIET)
    losses = [record["loss"] for record in run.metrics()]
    assert losses[-1] < 0.5 * losses[0]
    if name == "looped_transformer":
        errors = errors_by_loop(run, [3, 1, 20], prompts=32).errors
        assert errors.shape == (3,) and len(set(errors)) == 3
        assert (run.path / "loops.png").stat().st_size > 10_000
        learner = Learner(config)
        plain = learner_errors(learner, learner.predict, run.variables()[1], 32, 0)[1]
        np.testing.assert_allclose(errors[0], plain[:, -1].mean(), rtol=1e-3)
        with pytest.raises(ValueError, match="at least 1"):
            errors_by_loop(run, [0])
    else:
        with pytest.raises(ValueError, match="has no loops"):
            errors_by_loop(run, [1])


@pytest.mark.parametrize("name", ["transformer", *OTHERS])
def test_flops_count_the_parameters_in_matrix_products(name):
    model = nnx.eval_shape(lambda: build_any(SIZES[name]))
    kernels = [v.size for path, v in nnx.to_flat_state(nnx.state(model)) if "kernel" in path]
    parts = flops_by_part(SIZES[name], 5, 12, 2)
    assert training_flops(SIZES[name], 5, 12, 2) == sum(parts.values())
    products = sum(parts.values()) - parts.get("attention", 0) - parts.get("state", 0)
    # Three loops count 6 and four count 2; read-in runs once and read-out three times.
    if name == "looped_transformer":
        ends = 5 * 16 + 16
        expected = 24 * (26 * (sum(kernels) - ends) + 6 * (5 * 16 + 3 * 16))
    else:
        # MAML adds a gradient of twice a prediction, and a pass for it.
        expected = 24 * 6 * sum(kernels) * (4 if name == "maml" else 1)
    np.testing.assert_allclose(products, expected)


def unrolled(model, tokens, read, loops, window):
    """Yang et al.'s loops, unrolled; loops before the last `window` have no gradient."""

    def transform(model, x, z):
        h = z + x
        for block in model.blocks:
            h = block(h)
        return model.norm(h)

    embed = lambda model: model.read_in(tokens) + model.positions[: tokens.shape[1]][None]
    graph, state = nnx.split(model)
    still = nnx.merge(graph, jax.lax.stop_gradient(state))
    x, z, outputs = embed(model), jnp.zeros((*tokens.shape[:2], 16)), []
    for _ in range(loops - window):
        z = jax.lax.stop_gradient(transform(still, embed(still), z))
    for _ in range(window):
        z = transform(model, x, z)
        outputs.append(model.read_out(z)[:, read, 0])
    return jnp.stack(outputs)


def test_loops_and_their_gradient_match_the_unrolled_definition():
    graph, state = nnx.split(build_any(LOOPED))
    tokens, read = prompt(), slice(0, None, 2)
    weight = jax.random.normal(jax.random.key(2), (3, 3, 6))

    def ours(state, step):
        outputs = nnx.merge(graph, state).training_outputs(tokens, read, step)
        return (weight * outputs**2).sum(), outputs

    def theirs(state, loops):
        outputs = unrolled(nnx.merge(graph, state), tokens, read, loops, 3)
        return (weight * outputs**2).sum(), outputs

    ours = jax.jit(jax.value_and_grad(ours, has_aux=True))
    theirs = jax.jit(jax.value_and_grad(theirs, has_aux=True), static_argnums=1)
    for step, loops in ((0, 3), (10, 5)):
        ((_, a), gradient), ((_, b), expected) = ours(state, step), theirs(state, loops)
        np.testing.assert_allclose(a, b, rtol=1e-4, atol=1e-5)
        for mine, exact in zip(jax.tree.leaves(gradient), jax.tree.leaves(expected), strict=True):
            np.testing.assert_allclose(mine, exact, rtol=1e-3, atol=1e-3 * abs(exact).max())
    assert ours._cache_size() == 1

    @jax.jit
    def outside_training(state):
        model = nnx.merge(graph, state)
        last = [model(tokens, read, loops=n) for n in (5, 9)]
        return model.outputs_by_loop(tokens, read, 9), model(tokens, read), *last

    every, plain, five, nine = outside_training(state)
    np.testing.assert_allclose(every[2:5], b, rtol=1e-4, atol=1e-5)
    for outputs, loops in ((plain, 7), (five, 5), (nine, 9)):
        np.testing.assert_allclose(outputs, every[loops - 1], rtol=1e-4, atol=1e-5)
    with pytest.raises(ValueError, match="loops must be at least 1"):
        nnx.merge(graph, state)(tokens, loops=0)


def test_the_loss_is_the_mean_over_the_last_loops_of_a_step():
    from icl.tasks import sample_batch

    config = tiny(model=LOOPED)
    learner, _, state = start(config)

    @jax.jit
    def errors_by_loop(state):
        key = jax.random.fold_in(state.data_key, state.step)
        episodes = sample_batch(learner.family, key, jnp.arange(8), learner.family.full)
        tokens = learner.encode(state.params, episodes)
        outputs = learner.model(state.params).outputs_by_loop(tokens, learner.layout.read)
        total, (count, _) = learner.loss_sum(state.params, episodes)
        errors = ((outputs - episodes.y[None]) ** 2).mean(axis=(1, 2))
        return errors, total / count.astype(total.dtype)

    loss = jax.jit(lambda state: batch_gradient(learner, state)[0])
    for step, loops in ((9, 3), (10, 5), (1000, 7)):
        state = state._replace(step=jnp.int32(step))
        errors, at_the_end = errors_by_loop(state)
        np.testing.assert_allclose(loss(state), errors[loops - 3 : loops].mean(), rtol=1e-4)
        np.testing.assert_allclose(at_the_end, errors[-3:].mean(), rtol=1e-4)
    assert loss._cache_size() == 1


def test_loops_grow_as_in_the_public_code():
    config = LoopedTransformerConfig()
    at = {0: 15, 499: 15, 500: 17, 999: 17, 1000: 19, 3499: 27, 3500: 29, 4000: 30, 500_000: 30}
    assert {step: int(config.loops_at(step)) for step in at} == at
    later = dataclasses.replace(config, loops_start=20, loops_increment=5, loops_interval=10)
    assert [int(later.loops_at(step)) for step in (0, 10, 20, 30)] == [20, 25, 30, 30]
    assert config.loops_at(None) == 30
    for wrong in (dict(window=0), dict(window=31), dict(loops_start=10), dict(loops_interval=0)):
        with pytest.raises(ValueError, match="window|interval"):
            dataclasses.replace(config, **wrong)


def test_microbatches_shrink_with_the_window_of_loops():
    one, many = (
        microbatch_size(Learner(tiny(model=dataclasses.replace(LOOPED, window=window),
                                     training_batch_size=4096)))
        for window in (1, 4)
    )  # fmt: skip
    assert one == 4 * many


@pytest.mark.parametrize(
    ("config", "millions"), [(XS, 0.2), (SMALL, 1.2), (STANDARD, 9.5)], ids=["xs", "small", "std"]
)
def test_parameter_counts_are_gargs(config, millions):
    model = nnx.eval_shape(lambda: build(config, 20, 82))
    blocks = config.layers * (12 * config.width**2 + 13 * config.width)
    ends = 20 * config.width + 101 * config.width + 4 * config.width + 1
    assert parameter_count(model) == blocks + ends
    assert round(parameter_count(model) / 1e6, 1) == millions


def test_reading_some_positions_does_not_change_predictions():
    model, tokens = jitted(build()), prompt()
    whole = np.asarray(model(tokens))
    np.testing.assert_allclose(model(tokens, 0, None, 2), whole[:, ::2], rtol=1e-5, atol=1e-6)


def test_initial_weights_are_gpt2s():
    model = build(dataclasses.replace(TINY, width=128))
    block = model.blocks[0]
    np.testing.assert_allclose(block.up.kernel[...].std(), 0.02, rtol=0.05)
    np.testing.assert_allclose(block.down.kernel[...].std(), 0.02 / 2, rtol=0.05)
    np.testing.assert_allclose(block.mixer.out.kernel[...].std(), 0.02 / 2, rtol=0.05)
    assert float(jnp.abs(model.read_in.kernel[...]).max()) <= 5**-0.5


class Mean(Model):
    """Predicts from the mean of all tokens, or of the tokens so far."""

    def __init__(self, in_width, only_earlier, rngs):
        self.read_out = nnx.Linear(
            in_width, 1, kernel_init=nnx.initializers.zeros, use_bias=False, rngs=rngs
        )
        self.only_earlier = only_earlier

    def __call__(self, tokens, read=slice(None)):
        mean = tokens.mean(axis=1, keepdims=True)
        if self.only_earlier:
            counts = jnp.arange(1.0, tokens.shape[1] + 1)
            mean = tokens.cumsum(axis=1) / counts[None, :, None]
        return self.read_out(tokens + mean)[:, read, 0]


@dataclasses.dataclass(frozen=True)
class MeanConfig(ModelConfig):
    only_earlier: bool = False

    def build(self, in_width, tokens, *, outputs=None, rngs):
        return Mean(in_width, self.only_earlier, rngs)

    def activations(self, in_width):
        return in_width

    def flops_by_part(self, in_width, tokens, batch):
        return {}


def test_a_user_model_that_sees_later_tokens_must_declare_it(monkeypatch):
    from icl.layers import mixers

    with pytest.raises(ValueError, match=r"MeanConfig claims to be causal.*causal = False"):
        Learner(tiny(model=MeanConfig()))
    Learner(tiny(model=MeanConfig(only_earlier=True)))
    monkeypatch.setattr(MeanConfig, "causal", False)
    Learner(tiny(model=MeanConfig(), layout="concatenated"))

    class Whole(nnx.Module):
        def __init__(self, width, heads, **options):
            pass

        def __call__(self, x, read=slice(None)):
            return x[:, read] + x.mean(axis=1, keepdims=True)

    monkeypatch.setitem(mixers.MIXERS, "whole", Whole)
    whole = TransformerConfig(layers=1, heads=1, width=8, mixer="whole")
    with pytest.raises(ValueError, match="TransformerConfig claims to be causal"):
        jax.eval_shape(lambda: Learner(tiny(model=whole)).init(jax.random.key(0)))


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(layers=0), "layers must be a whole number from 1"),
        (dict(width=10, heads=4), "cannot be split"),
        (dict(mixer="flash"), "no mixer called 'flash'; there are"),
    ],
)
def test_impossible_models_are_refused(settings, message):
    with pytest.raises(ValueError, match=message):
        TransformerConfig(**settings)


def test_too_long_prompts_are_refused():
    with pytest.raises(ValueError, match="do not fit"):
        build(dataclasses.replace(TINY, max_tokens=8))
    with pytest.raises(ValueError, match="longer than the 12 positions"):
        build()(prompt(13))

"""Laws of all models; sizes of the transformer; loops; layer norm and linear against references."""

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

import icl
from icl.analysis.loops import errors_by_loop
from icl.evaluation.curves import learner_errors
from icl.layers import MIXERS, layer_norm, rms_norm
from icl.layers.linear import linear_dot_general
from icl.layers.mixers import rotated
from icl.models import (
    MODELS,
    SMALL,
    STANDARD,
    XS,
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
    SelfAttentionConfig,
    Transformer,
    TransformerConfig,
    parameter_count,
)
from icl.models.flops import flops_by_part, training_flops
from icl.training import Learner
from icl.training.config import config_from_dict, config_to_dict
from icl.training.step import batch_gradient, microbatch_size

from .helpers import QUIET, start, tiny

TINY = TransformerConfig(layers=2, heads=2, width=16)
LOOPED = LoopedTransformerConfig(
    layers=1, heads=2, width=16, loops=7, window=3, loops_increment=2, loops_interval=10
)
SIZES = {
    "transformer": TINY,
    "looped_transformer": LOOPED,
    "lstm": LSTMConfig(layers=2, width=16),
    "self_attention": SelfAttentionConfig(layers=2, heads=2),
    "contrastive_attention": ContrastiveAttentionConfig(layers=2, softmax="all"),
    "gradient_descent": GradientDescentConfig(layers=2, plus_plus=True),
    "preconditioned_attention": PreconditionedConfig(layers=2),
    "fast_weight_lstm": FastWeightLSTMConfig(layers=2, heads=2, width=16),
    "maml": MAMLConfig(width=16, loss="squared", learning_rate=0.003),
    "mlp": MLPConfig(width=16),
}
# The transformer is tested below with every mixer; models of whole prompts in other files.
OTHERS = [name for name, size in SIZES.items() if name != "transformer" and size.causal]


def build(config=TINY, in_width=5, tokens=12):
    return Transformer(in_width, tokens, config, rngs=nnx.Rngs(params=jax.random.key(0)))


def build_any(config, outputs=None):
    return config.build(5, 12, outputs=outputs, rngs=nnx.Rngs(params=jax.random.key(0)))


def prompt(length=12, in_width=5, batch=3):
    return jax.random.normal(jax.random.key(1), (batch, length, in_width))


def jitted(model):
    """The model as a compiled function of tokens and the limits of `read`."""
    graph, state = nnx.split(model)
    call = lambda state, tokens, read: nnx.merge(graph, state)(tokens, slice(*read))
    compiled = jax.jit(call, static_argnums=2)
    return lambda tokens, *read: compiled(state, tokens, read or (None,))


def test_every_registered_model_has_a_tiny_size():
    assert {name: type(config) for name, config in SIZES.items()} == MODELS


@pytest.mark.parametrize("name", OTHERS)
def test_models_are_causal_and_reading_some_positions_does_not_change_them(name):
    model, tokens = jitted(build_any(SIZES[name])), prompt()
    whole, changed = model(tokens), model(tokens.at[:, 7:].add(10.0))
    assert whole.shape == (3, 12) and whole.dtype == jnp.float32
    np.testing.assert_allclose(whole[:, :7], changed[:, :7], atol=1e-6)
    assert np.abs(whole[:, 7:] - changed[:, 7:]).max() > 1e-4
    later = np.abs(whole[:, 8:] - model(tokens.at[:, 7].add(10.0))[:, 8:]).max()
    assert later == 0 if name == "mlp" else later > 1e-5  # an MLP sees one token
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

    gradients = jax.tree.leaves(jax.jit(jax.grad(loss))(state))
    assert gradients and all(jnp.isfinite(g).all() and jnp.abs(g).max() > 0 for g in gradients)


@pytest.mark.parametrize("name", [name for name in OTHERS if name != "maml"])
def test_every_model_in_bfloat16_is_near_float32(name):
    wide = build_any(SIZES[name])
    narrow = build_any(dataclasses.replace(SIZES[name], dtype="bfloat16"))
    assert all(leaf.dtype == jnp.float32 for leaf in jax.tree.leaves(nnx.state(narrow)))
    a, b = jitted(wide)(prompt()), jitted(narrow)(prompt())
    assert b.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=0.03)
    assert (a != b).any()


@pytest.mark.parametrize("name", MODELS)
def test_settings_of_every_model_can_be_saved_loaded_and_replaced(name):
    config = tiny(model=SIZES[name], layout="concatenated")
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
    learner = Learner(tiny(model=SIZES[name], layout="concatenated"))
    init = lambda key: nnx.to_pure_dict(
        nnx.state(SIZES[name].build(4, 5, rngs=nnx.Rngs(params=key)), nnx.Param)
    )
    theirs, ours = (jax.jit(f)(jax.random.key(3)) for f in (init, learner.init))
    assert jax.tree.all(jax.tree.map(lambda a, b: bool((a == b).all()), theirs, ours.params))


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
    config = tiny(
        model=SIZES[name],
        layout="shifted" if name == "maml" else "interleaved",
        training_pool_size=1,
        training_batch_size=32,
        training_steps=80,
        training_log_every=20,
        training_checkpoint_every=20,
        optimizer_learning_rate=2e-2,
    )
    run = icl.train(config, tmp_path / "run", logging=QUIET)
    losses = [record["loss"] for record in run.metrics()]
    assert losses[-1] < 0.5 * losses[0]
    if name == "looped_transformer":
        errors = errors_by_loop(run, [7, 1, 20], prompts=256).errors
        assert errors.shape == (3,) and len(set(errors)) == 3
        assert (run.path / "loops.png").stat().st_size > 10_000
        learner = Learner(config)
        plain = learner_errors(learner, learner.predict, run.variables()[1], 256, 0)[1]
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


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_is_causal(mixer):
    model, tokens = jitted(build(dataclasses.replace(TINY, mixer=mixer))), prompt()
    changed = tokens.at[:, 7:].add(10.0)
    np.testing.assert_allclose(model(tokens)[:, :7], model(changed)[:, :7], atol=1e-6)
    assert np.abs(model(tokens)[:, 7:] - model(changed)[:, 7:]).max() > 1e-4


def test_reading_some_positions_does_not_change_predictions():
    model, tokens = build(), prompt()
    np.testing.assert_allclose(
        model(tokens, slice(0, None, 2)), model(tokens)[:, ::2], rtol=1e-5, atol=1e-6
    )


def test_initial_weights_are_gpt2s():
    model = build(dataclasses.replace(TINY, width=128, layers=8))
    block = model.blocks[0]
    np.testing.assert_allclose(block.up.kernel[...].std(), 0.02, rtol=0.05)
    np.testing.assert_allclose(block.down.kernel[...].std(), 0.02 / 4, rtol=0.05)
    np.testing.assert_allclose(block.mixer.out.kernel[...].std(), 0.02 / 4, rtol=0.05)
    assert float(jnp.abs(model.read_in.kernel[...]).max()) <= 5**-0.5


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_parameter_of_a_mixer_has_a_gradient(mixer):
    model = build(dataclasses.replace(TINY, mixer=mixer))
    gradients = jax.tree.leaves(nnx.grad(lambda model: (model(prompt()) ** 2).sum())(model))
    assert all(jnp.isfinite(g).all() for g in gradients)
    used = [g for g in gradients if g.shape[0] != 3 * TINY.width]
    assert all(jnp.abs(g).max() > 0 for g in used)


@pytest.mark.parametrize("mixer", MIXERS)
def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(mixer):
    config = dataclasses.replace(TINY, mixer=mixer)
    wide, narrow = build(config), build(dataclasses.replace(config, dtype="bfloat16"))
    leaves = jax.tree.leaves(nnx.state(narrow, nnx.Param))
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)
    a, b = wide(prompt()), narrow(prompt())
    assert b.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=0.02)
    assert (a != b).any()


VARIANTS = {
    "rotary": dict(position_encoding="rotary"),
    "no positions": dict(position_encoding="none"),
    "qk norm": dict(qk_norm=True),
    "rms norm": dict(norm="rms"),
    "zero outputs": dict(zero_outputs=True),
    "all": dict(position_encoding="rotary", qk_norm=True, norm="rms", zero_outputs=True),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_causal_and_all_parameters_have_a_gradient(variant):
    model = build(dataclasses.replace(TINY, **VARIANTS[variant]))
    state = nnx.state(model, nnx.Param)
    # Outputs of zero have a gradient, but hide that of the weights before them.
    nnx.update(model, jax.tree.map(lambda a: jnp.where(a == 0, 0.1, a), state))
    tokens = prompt()
    changed = tokens.at[:, 7:].add(10.0)
    np.testing.assert_allclose(model(tokens)[:, :7], model(changed)[:, :7], atol=1e-5)
    gradients = nnx.grad(lambda model: (model(tokens) ** 2).sum())(model)
    for path, gradient in nnx.to_flat_state(gradients):
        assert jnp.isfinite(gradient[...]).all()
        # The bias of keys moves all scores of a query alike.
        assert jnp.abs(gradient[...]).max() > 0 or "bias" in path, path


def test_rotary_scores_depend_on_the_difference_of_positions_alone():
    query, key = jax.random.normal(jax.random.key(0), (2, 1, 8))
    at = lambda x, position: rotated(x[None], jnp.array([position]))[0, 0]
    score = lambda a, b: float(at(query, a) @ at(key, b))
    np.testing.assert_allclose(score(3, 1), score(12, 10), rtol=1e-4)
    np.testing.assert_allclose(score(5, 5), query[0] @ key[0], rtol=1e-5)
    assert abs(score(3, 1) - score(3, 2)) > 1e-3
    pairs = np.asarray(query[0, :4]) + 1j * np.asarray(query[0, 4:])
    angles = 3 * 10_000.0 ** (-np.arange(4) / 4)
    turned = pairs * np.exp(1j * angles)
    np.testing.assert_allclose(at(query, 3), [*turned.real, *turned.imag], rtol=1e-4, atol=1e-5)


def test_normalised_queries_and_keys_do_not_depend_on_their_size():
    small = build(dataclasses.replace(TINY, qk_norm=True))
    tokens = prompt()
    before = small(tokens)
    for block in small.blocks:
        kernel, bias = block.mixer.qkv.kernel, block.mixer.qkv.bias
        scale = jnp.repeat(jnp.array([7.0, 7.0, 1.0]), TINY.width)
        kernel[...], bias[...] = kernel[...] * scale[None], bias[...] * scale
    np.testing.assert_allclose(small(tokens), before, rtol=1e-3, atol=1e-5)


def test_rotary_models_take_prompts_of_any_length_and_given_positions():
    rotary = build(dataclasses.replace(TINY, position_encoding="rotary", max_tokens=3))
    for block in rotary.blocks:
        block.mixer.qkv.kernel[...] = 30 * block.mixer.qkv.kernel[...]
    tokens = prompt(length=20)
    usual = rotary(tokens)
    np.testing.assert_allclose(rotary(tokens, positions=jnp.arange(20) + 5), usual, atol=1e-3)
    apart = rotary(tokens, positions=3 * jnp.arange(20))
    assert jnp.abs(apart - usual).max() > 1e-2


def test_options_that_a_mixer_lacks_are_refused():
    with pytest.raises(ValueError, match="mixer mesa has no option qk_norm: set model.qk_norm"):
        dataclasses.replace(TINY, mixer="mesa", qk_norm=True)
    with pytest.raises(ValueError, match='delta_rule has no option rotary: .* to "learned"'):
        dataclasses.replace(TINY, mixer="delta_rule", position_encoding="rotary")
    with pytest.raises(ValueError, match="heads of an even width; 2 heads of a width of 6"):
        build(dataclasses.replace(TINY, width=6, position_encoding="rotary"))


def test_a_mixer_is_chosen_by_name(monkeypatch):
    from icl.layers import mixers

    class Previous(nnx.Module):
        """Each token becomes the one before it."""

        def __init__(self, width, heads, **options):
            pass

        def __call__(self, x, read=slice(None)):
            return jnp.pad(x, ((0, 0), (1, 0), (0, 0)))[:, :-1][:, read]

    monkeypatch.setitem(mixers.MIXERS, "previous", Previous)
    model = build(dataclasses.replace(TINY, mixer="previous"))
    tokens = prompt()
    far = model(tokens.at[:, 0].add(5.0)) - model(tokens)
    assert np.abs(far[:, 2]).max() > 0
    np.testing.assert_array_equal(far[:, 3:], 0)  # two layers reach two tokens back


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


# Jitted so that examples of one shape share a compiled program.
@jax.jit
def norm_by_ours(x, scale, bias, weight):
    loss = lambda *a: (layer_norm(*a) * weight).sum()
    return jax.value_and_grad(loss, argnums=(0, 1, 2))(x, scale, bias)


@jax.jit
def norm_by_flax(x, scale, bias, weight):
    norm = nnx.LayerNorm(x.shape[-1], epsilon=1e-5, rngs=nnx.Rngs(0), use_fast_variance=False)
    norm.scale[...], norm.bias[...] = scale, bias
    return (norm(x) * weight).sum()


@jax.jit
def norm_by_definition(x, scale, bias, weight):
    def loss(x, scale, bias):
        centred = x - x.mean(-1, keepdims=True)
        deviation = jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
        return ((centred / deviation * scale[None, None] + bias[None, None]) * weight).sum()

    return jax.grad(loss, argnums=(0, 1, 2))(x, scale, bias)


@settings(max_examples=12)
@given(rows=st.sampled_from([1, 3, 8]), width=st.sampled_from([2, 5, 64]), seed=st.integers(0, 4))
def test_layer_norm_matches_flax(rows, width, seed):
    keys = jax.random.split(jax.random.key(seed), 4)
    x = 3 * jax.random.normal(keys[0], (2, rows, width)) + 1
    scale, bias, weight = (
        jax.random.normal(k, s) for k, s in zip(keys[1:], ((width,), (width,), x.shape))
    )
    ours, gradients = norm_by_ours(x, scale, bias, weight)
    np.testing.assert_allclose(ours, norm_by_flax(x, scale, bias, weight), rtol=1e-4, atol=1e-4)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in (x, scale, bias, weight)]
        expected = norm_by_definition(*wide)
    for mine, exact in zip(gradients, expected):
        np.testing.assert_allclose(mine, exact, rtol=2e-3, atol=2e-4)


def test_rms_norm_matches_its_definition():
    keys = jax.random.split(jax.random.key(0), 3)
    x, scale, weight = (jax.random.normal(k, s) for k, s in zip(keys, [(2, 3, 16), (16,)] * 2))
    weight = jnp.broadcast_to(weight, (2, 3, 16))

    def by_definition(x, scale):
        return x / jnp.sqrt((x**2).mean(-1, keepdims=True) + 1e-5) * scale[None, None]

    def value_and_gradient(norm, *given):
        loss = lambda x, scale: (norm(x, scale) * weight.astype(x.dtype)).sum()
        return jax.jit(jax.value_and_grad(loss, argnums=(0, 1)))(*given)

    ours = value_and_gradient(rms_norm, x, scale)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in (x, scale)]
        expected = value_and_gradient(by_definition, *wide)
    for mine, exact in zip(jax.tree.leaves(ours), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(mine, exact, rtol=1e-4, atol=1e-5)


def test_linear_matches_dot_general_and_refuses_the_rest():
    x = jax.random.normal(jax.random.key(0), (2, 3, 4))
    kernel = jax.random.normal(jax.random.key(1), (4, 5))
    dimensions = (((2,), (0,)), ((), ()))
    for argument in (0, 1):
        ours = jax.grad(lambda *a: (linear_dot_general(*a, dimensions) ** 2).sum(), argument)
        theirs = jax.grad(lambda *a: (jax.lax.dot_general(*a, dimensions) ** 2).sum(), argument)
        np.testing.assert_allclose(ours(x, kernel), theirs(x, kernel), rtol=1e-5, atol=1e-5)
    with pytest.raises(NotImplementedError, match="default precision"):
        linear_dot_general(x, kernel, dimensions, precision="highest")
    with pytest.raises(NotImplementedError, match="only"):
        linear_dot_general(x, kernel.T, (((2,), (1,)), ((), ())))
    with pytest.raises(NotImplementedError, match="preferred_element_type"):
        linear_dot_general(x, kernel, dimensions, preferred_element_type=jnp.float32)

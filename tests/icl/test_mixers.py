"""Laws of all token mixers; positions; norms and linear layers against references."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from icl.layers import MIXERS, Mixer, layer_norm, register_mixer, rms_norm
from icl.layers.linear import linear_dot_general
from icl.layers.mixers import rotated
from icl.models import parameter_count
from icl.models.transformer import sinusoids

from .helpers import TINY, build, jitted, prompt


@functools.cache
def program(config):
    """Outputs and gradients of the sum of their squares as a function of a state and tokens."""
    graph, _ = nnx.split(build(config))

    def loss(state, tokens):
        outputs = nnx.merge(graph, state)(tokens)
        return (outputs**2).sum(), outputs

    compiled = jax.jit(jax.grad(loss, has_aux=True))
    return lambda state, tokens: compiled(state, tokens)[::-1]


def check_causal(ask, state, tokens, outputs, atol):
    changed, _ = ask(state, np.concatenate([tokens[:, :7], tokens[:, 7:] + 10.0], axis=1))
    np.testing.assert_allclose(changed[:, :7], outputs[:, :7], atol=atol)
    assert np.abs(changed[:, 7:] - outputs[:, 7:]).max() > 1e-4


@pytest.mark.parametrize("mixer", MIXERS)
def test_every_mixer_is_causal_and_every_parameter_has_a_gradient(mixer):
    config, tokens = dataclasses.replace(TINY, mixer=mixer), np.asarray(prompt())
    ask, state = program(config), nnx.state(build(config))
    outputs, gradients = ask(state, tokens)
    check_causal(ask, state, tokens, outputs, atol=1e-6)
    gradients = list(map(np.asarray, jax.tree.leaves(gradients)))
    assert all(np.isfinite(g).all() for g in gradients)
    used = [g for g in gradients if g.shape[0] != 3 * TINY.width]
    assert all(np.abs(g).max() > 0 for g in used)


@pytest.mark.parametrize("mixer", MIXERS)
def test_bfloat16_computes_near_float32_and_keeps_float32_parameters(mixer):
    config = dataclasses.replace(TINY, mixer=mixer)
    wide, narrow = build(config), build(dataclasses.replace(config, dtype="bfloat16"))
    leaves = jax.tree.leaves(nnx.state(narrow, nnx.Param))
    assert all(leaf.dtype == jnp.float32 for leaf in leaves)
    a, _ = program(config)(nnx.state(wide), np.asarray(prompt()))
    b = jitted(narrow)(prompt())
    assert b.dtype == jnp.float32
    np.testing.assert_allclose(a, b, atol=0.02)
    assert (a != b).any()


def test_users_register_mixers(monkeypatch):
    monkeypatch.setattr("icl.layers.mixers.MIXERS", known := {})

    @register_mixer("mine")
    class Mine(Mixer):
        def mix(self, x, qkv):
            return qkv[:, :, 2]

    assert known == {"mine": Mine} and register_mixer("mine")(Mine) is Mine
    with pytest.raises(ValueError, match="'mine' is taken by .*Mine; choose another"):
        register_mixer("mine")(Mixer)
    with pytest.raises(ValueError, match="string that is not empty"):
        register_mixer("")
    with pytest.raises(TypeError, match="must be a class or a function that makes a mixer"):
        register_mixer("other")(3)


VARIANTS = {
    "rotary": dict(position_encoding="rotary"),
    "no positions": dict(position_encoding="none"),
    "sinusoidal": dict(position_encoding="sinusoidal", sinusoid_base=30.0),
    "qk norm": dict(qk_norm=True),
    "rms norm": dict(norm="rms"),
    "zero outputs": dict(zero_outputs=True),
    "all": dict(position_encoding="rotary", qk_norm=True, norm="rms", zero_outputs=True),
}


@pytest.mark.parametrize("variant", VARIANTS)
def test_variants_are_causal_and_all_parameters_have_a_gradient(variant):
    config, tokens = dataclasses.replace(TINY, **VARIANTS[variant]), np.asarray(prompt())
    # Outputs of zero have a gradient, but hide that of the weights before them.
    filled = lambda a: np.where(np.asarray(a) == 0, np.float32(0.1), a)
    ask, state = program(config), jax.tree.map(filled, nnx.state(build(config)))
    outputs, gradients = ask(state, tokens)
    check_causal(ask, state, tokens, outputs, atol=1e-5)
    for path, gradient in nnx.to_flat_state(gradients):
        gradient = np.asarray(gradient[...])
        assert np.isfinite(gradient).all()
        # The bias of keys moves all scores of a query alike.
        assert np.abs(gradient).max() > 0 or "bias" in path, path


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
    config, tokens = dataclasses.replace(TINY, qk_norm=True), np.asarray(prompt())
    small, ask = build(config), program(config)
    before, _ = ask(nnx.state(small), tokens)
    for block in small.blocks:
        kernel, bias = block.mixer.qkv.kernel, block.mixer.qkv.bias
        scale = jnp.repeat(jnp.array([7.0, 7.0, 1.0]), TINY.width)
        kernel[...], bias[...] = kernel[...] * scale[None], bias[...] * scale
    np.testing.assert_allclose(ask(nnx.state(small), tokens)[0], before, rtol=1e-3, atol=1e-5)


def test_rotary_models_take_prompts_of_any_length_and_given_positions():
    config = dataclasses.replace(TINY, layers=1, position_encoding="rotary", max_tokens=3)
    rotary = build(config)
    for block in rotary.blocks:
        block.mixer.qkv.kernel[...] = 30 * block.mixer.qkv.kernel[...]
    tokens = prompt(length=20)
    usual = jitted(rotary)(tokens)
    at = jax.jit(lambda positions: rotary(tokens, positions=positions))
    np.testing.assert_allclose(at(np.arange(20) + 5), usual, atol=1e-3)
    apart = at(3 * np.arange(20))
    assert jnp.abs(apart - usual).max() > 1e-2


def test_sinusoidal_positions_are_added_to_the_tokens():
    config = dataclasses.replace(TINY, position_encoding="sinusoidal", sinusoid_base=30.0)
    model, without = (
        build(dataclasses.replace(config, max_tokens=3, position_encoding=encoding))
        for encoding in ("sinusoidal", "none")
    )
    assert parameter_count(model) == parameter_count(without)
    tokens = prompt(length=20)
    angles = np.arange(20)[:, None] / 30.0 ** (np.arange(0, 16, 2) / 16)
    expected = np.concatenate([np.sin(angles), np.cos(angles)], axis=1)
    added = model.embed(tokens) - without.embed(tokens)
    np.testing.assert_allclose(added, np.broadcast_to(expected, added.shape), atol=1e-5)
    # The positions of `predict_queries` are in NumPy, and positions may repeat.
    at = np.array([3, 0, 19, 3])
    added = model.embed(tokens[:, :4], at) - without.embed(tokens[:, :4])
    np.testing.assert_allclose(added[0], expected[at], atol=1e-5)
    assert (sinusoids(jnp.arange(4), 16, 10_000.0) != sinusoids(jnp.arange(4), 16, 30.0)).any()


def test_impossible_sinusoids_are_refused():
    with pytest.raises(ValueError, match="width of 9 .* sines and cosines: set model.width"):
        dataclasses.replace(TINY, width=9, heads=1, position_encoding="sinusoidal")
    with pytest.raises(ValueError, match="sinusoid_base must be a number from 1 to"):
        dataclasses.replace(TINY, sinusoid_base=0.5)


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
    model = jitted(build(dataclasses.replace(TINY, mixer="previous")))
    tokens = prompt()
    far = model(tokens.at[:, 0].add(5.0)) - model(tokens)
    assert np.abs(far[:, 2]).max() > 0
    np.testing.assert_array_equal(far[:, 3:], 0)  # two layers reach two tokens back


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
@given(shape=st.sampled_from([(1, 2), (8, 5), (3, 64)]), seed=st.integers(0, 4))
def test_layer_norm_matches_flax(shape, seed):
    rows, width = shape
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
    squares = lambda dot: lambda *a: (dot(*a, dimensions) ** 2).sum()
    slopes = lambda dot: jax.grad(squares(dot), argnums=(0, 1))
    each = jax.jit(lambda *a: (slopes(linear_dot_general)(*a), slopes(jax.lax.dot_general)(*a)))
    for ours, theirs in zip(*each(x, kernel), strict=True):
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-5)
    with pytest.raises(NotImplementedError, match="default precision"):
        linear_dot_general(x, kernel, dimensions, precision="highest")
    with pytest.raises(NotImplementedError, match="only"):
        linear_dot_general(x, kernel.T, (((2,), (1,)), ((), ())))
    with pytest.raises(NotImplementedError, match="preferred_element_type"):
        linear_dot_general(x, kernel, dimensions, preferred_element_type=jnp.float32)

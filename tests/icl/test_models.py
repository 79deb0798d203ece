"""The transformer: sizes, causality, its layers against flax's own."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx
from hypothesis import given, settings
from hypothesis import strategies as st

from icl.layers import MIXERS, layer_norm
from icl.layers.linear import linear_dot_general
from icl.models import SMALL, STANDARD, XS, Transformer, TransformerConfig, parameter_count

TINY = TransformerConfig(layers=2, heads=2, width=16)


def build(config=TINY, in_width=5, tokens=12):
    return Transformer(in_width, tokens, config, rngs=nnx.Rngs(params=jax.random.key(0)))


def prompt(length=12, in_width=5, batch=3):
    return jax.random.normal(jax.random.key(1), (batch, length, in_width))


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
def test_predictions_do_not_see_the_future(mixer):
    model, tokens = build(dataclasses.replace(TINY, mixer=mixer)), prompt()
    changed = tokens.at[:, 7:].add(10.0)
    np.testing.assert_allclose(model(tokens)[:, :7], model(changed)[:, :7], atol=1e-6)
    assert np.abs(model(tokens)[:, 7:] - model(changed)[:, 7:]).max() > 1e-4


def test_reading_some_positions_changes_nothing_in_them():
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
def test_every_parameter_of_a_mixer_learns(mixer):
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


@pytest.mark.parametrize(
    ("settings", "message"),
    [
        (dict(layers=0), "at least 1"),
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


@settings(max_examples=12)
@given(rows=st.sampled_from([1, 3, 8]), width=st.sampled_from([2, 5, 64]), seed=st.integers(0, 4))
def test_layer_norm_matches_flax(rows, width, seed):
    keys = jax.random.split(jax.random.key(seed), 4)
    x = 3 * jax.random.normal(keys[0], (2, rows, width)) + 1
    scale, bias, weight = (
        jax.random.normal(k, s) for k, s in zip(keys[1:], ((width,), (width,), x.shape))
    )
    reference = nnx.LayerNorm(width, epsilon=1e-5, rngs=nnx.Rngs(0), use_fast_variance=False)

    def theirs(x, scale, bias):
        reference.scale[...], reference.bias[...] = scale, bias
        return (reference(x) * weight).sum()

    ours = lambda *a: (layer_norm(*a) * weight).sum()
    np.testing.assert_allclose(ours(x, scale, bias), theirs(x, scale, bias), rtol=1e-4, atol=1e-4)
    gradients = jax.grad(ours, argnums=(0, 1, 2))(x, scale, bias)
    with jax.enable_x64(True):
        wide = [jnp.asarray(np.asarray(a, np.float64)) for a in (x, scale, bias, weight)]

        def definition(x, scale, bias):
            centred = x - x.mean(-1, keepdims=True)
            deviation = jnp.sqrt((centred**2).mean(-1, keepdims=True) + 1e-5)
            return ((centred / deviation * scale + bias) * wide[3]).sum()

        expected = jax.grad(definition, argnums=(0, 1, 2))(*wide[:3])
    for mine, exact in zip(gradients, expected):
        np.testing.assert_allclose(mine, exact, rtol=2e-3, atol=2e-4)


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

"""Attention inside other people's layers: Flax nnx and linen, Equinox, plain functions."""

from functools import partial

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from icl.kernels import dot_product_attention, flax_attention_fn

from .implementations import ALL, draw_inputs

BATCHES = [(), (2,), (2, 3)]


def layer_inputs(batch):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(*batch, 6, 16)), jnp.float32)
    # As Flax makes them: float, broadcast over the heads. Each query sees itself at least.
    padding = linen.make_attention_mask(x[..., 0] < 9, x[..., 0] < 0.5)
    mask = linen.combine_masks(linen.make_causal_mask(x[..., 0]), padding)
    return x, jnp.where(jnp.eye(6, dtype=bool), 1.0, mask)


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("batch", BATCHES)
def test_nnx_layer(implementation, batch):
    x, mask = layer_inputs(batch)

    def layer(**options):
        return nnx.MultiHeadAttention(
            num_heads=2, in_features=16, decode=False, rngs=nnx.Rngs(0), **options
        )

    ours = layer(attention_fn=partial(flax_attention_fn, implementation=implementation))
    run = nnx.jit(lambda layer, x, mask: layer(x, mask=mask))
    expected = run(layer(), x, mask)
    np.testing.assert_allclose(run(ours, x, mask), expected, atol=1e-5)
    causal = nnx.jit(lambda layer, x: layer(x, is_causal=True))(ours, x)
    expected = run(layer(), x, jnp.tril(jnp.ones((6, 6))))
    np.testing.assert_allclose(causal, expected, atol=1e-5)


@pytest.mark.parametrize("implementation", ALL)
@pytest.mark.parametrize("batch", BATCHES)
def test_linen_layer(implementation, batch):
    x, mask = layer_inputs(batch)
    fused = partial(flax_attention_fn, implementation=implementation)
    theirs = linen.MultiHeadDotProductAttention(num_heads=2)
    parameters = jax.jit(theirs.init)(jax.random.key(0), x)
    ours = linen.MultiHeadDotProductAttention(num_heads=2, attention_fn=fused)
    apply = lambda layer, **options: jax.jit(partial(layer.apply, **options))(parameters, x)
    expected = apply(theirs, mask=mask)
    np.testing.assert_allclose(apply(ours, mask=mask), expected, atol=1e-5)
    # Linen passes only what a signature names: the mask must have arrived.
    assert not np.allclose(apply(ours), expected, atol=1e-3)
    causal = linen.MultiHeadDotProductAttention(
        num_heads=2, attention_fn=partial(fused, is_causal=True)
    )
    expected = apply(theirs, mask=jnp.tril(jnp.ones((6, 6))))
    np.testing.assert_allclose(apply(causal), expected, atol=1e-5)


class Attention(equinox.Module):
    """One example at a time, as Equinox has it."""

    projection: equinox.nn.Linear
    implementation: str

    def __call__(self, x):
        qkv = jax.vmap(self.projection)(x).reshape(len(x), 3, 2, 8)
        out = dot_product_attention(
            *jnp.moveaxis(qkv, 1, 0), is_causal=True, implementation=self.implementation
        )
        return out.reshape(len(x), 16)


@pytest.mark.parametrize("implementation", ALL)
def test_equinox_model_under_vmap(implementation):
    x, _ = layer_inputs((3,))
    projection = equinox.nn.Linear(16, 48, key=jax.random.key(0))

    @equinox.filter_jit
    @equinox.filter_value_and_grad
    def loss(model):
        return (jax.vmap(model)(x) ** 2).mean()

    value, gradient = loss(Attention(projection, implementation))
    expected, expected_gradient = loss(Attention(projection, "reference"))
    np.testing.assert_allclose(value, expected, rtol=1e-5)
    weight = lambda model: model.projection.weight
    np.testing.assert_allclose(weight(gradient), weight(expected_gradient), atol=1e-6)


@pytest.mark.parametrize("implementation", ALL)
def test_without_batch_axes(implementation):
    query, key, value, _ = draw_inputs(0, 1, 5, 7, 2, 1, 8)
    ours = dot_product_attention(query[0], key[0], value[0], implementation=implementation)
    expected = jax.nn.dot_product_attention(query, key, value)[0]
    np.testing.assert_allclose(ours, expected, atol=1e-6)


REFUSED = {
    "dropout": (dict(dropout_rate=0.1), "no dropout"),
    "sown weights": (dict(module=object()), "sow"),
    "einsum": (dict(qk_attn_weights_einsum=jnp.einsum), "does not know qk_attn_weights_einsum"),
    "something new": (dict(input_positions=jnp.arange(3)), "does not know input_positions"),
}


@pytest.mark.parametrize("case", REFUSED)
def test_what_it_cannot_do_is_refused(case):
    options, message = REFUSED[case]
    with pytest.raises(NotImplementedError, match=message):
        flax_attention_fn(*draw_inputs(0, 1, 3, 3, 1, 1, 4)[:3], **options)


def test_dropout_that_is_off_is_accepted():
    arrays = draw_inputs(0, 1, 3, 3, 1, 1, 4)[:3]
    ours = flax_attention_fn(
        *arrays, dropout_rate=0.1, deterministic=True, dtype=jnp.bfloat16, precision="highest"
    )
    assert ours.dtype == jnp.bfloat16


def test_layers_refuse_what_the_function_refuses():
    layer = nnx.MultiHeadAttention(
        num_heads=2, in_features=16, decode=False, rngs=nnx.Rngs(0), attention_fn=flax_attention_fn
    )
    with pytest.raises(NotImplementedError, match="sow"):
        layer(jnp.ones((2, 6, 16)), sow_weights=True)
    dropping = linen.MultiHeadDotProductAttention(
        num_heads=2, dropout_rate=0.1, deterministic=False, attention_fn=flax_attention_fn
    )
    with pytest.raises(NotImplementedError, match="no dropout"):
        keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
        dropping.init(keys, jnp.ones((2, 6, 16)))

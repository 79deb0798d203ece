"""Attention inside other people's layers: Flax nnx and linen, Equinox, plain functions."""

from functools import partial

import equinox
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import linen, nnx

from icl.kernels import dot_product_attention, flax_attention_fn

from .implementations import ALL, FUSED, draw_inputs

# One implementation without batch axes: the layers' arrays are the same for all of them.
CALLS = [("xla", ()), *((name, (2, 3)) for name in FUSED)]


def layer_inputs(batch):
    x = jnp.asarray(np.random.default_rng(0).normal(size=(*batch, 6, 16)), jnp.float32)
    # Masks as Flax makes them: float, broadcast over the heads. Each query sees at least itself.
    padding = linen.make_attention_mask(x[..., 0] < 9, x[..., 0] < 0.5)
    mask = linen.combine_masks(linen.make_causal_mask(x[..., 0]), padding)
    return x, jnp.where(jnp.eye(6, dtype=bool), 1.0, mask)


def nnx_attention(**options):
    return nnx.MultiHeadAttention(
        num_heads=2, in_features=16, decode=False, rngs=nnx.Rngs(0), **options
    )


@nnx.jit
def with_mask(layer, x, mask):
    return layer(x, mask=mask)


@pytest.mark.parametrize("implementation, batch", CALLS)
def test_nnx_layer(implementation, batch):
    x, mask = layer_inputs(batch)
    fused = flax_attention_fn(is_causal=False, implementation=implementation)
    ours = with_mask(nnx_attention(attention_fn=fused), x, mask)
    np.testing.assert_allclose(ours, with_mask(nnx_attention(), x, mask), atol=1e-5)


def test_nnx_layer_that_is_causal():
    """Causality from the call, and from the function, which the call cannot undo."""
    x, _ = layer_inputs((2, 3))
    fused = partial(flax_attention_fn, implementation="xla")
    expected = with_mask(nnx_attention(), x, jnp.tril(jnp.ones((2, 3, 1, 6, 6))))
    ours = nnx_attention(attention_fn=fused(is_causal=False))
    causal = nnx.jit(lambda layer, x: layer(x, is_causal=True))(ours, x)
    np.testing.assert_allclose(causal, expected, atol=1e-5)
    always = nnx_attention(attention_fn=fused(is_causal=True))
    causal = nnx.jit(lambda layer, x: layer(x, is_causal=False))(always, x)
    np.testing.assert_allclose(causal, expected, atol=1e-5)


def linen_attention(x):
    """A function that applies linen's layer with given options, and the layer."""
    theirs = linen.MultiHeadDotProductAttention(num_heads=2)
    parameters = jax.jit(theirs.init)(jax.random.key(0), x)
    return lambda layer, **options: jax.jit(partial(layer.apply, **options))(parameters, x), theirs


@pytest.mark.parametrize("implementation, batch", CALLS)
def test_linen_layer(implementation, batch):
    x, mask = layer_inputs(batch)
    apply, theirs = linen_attention(x)
    fused = flax_attention_fn(is_causal=False, implementation=implementation)
    ours = linen.MultiHeadDotProductAttention(num_heads=2, attention_fn=fused)
    np.testing.assert_allclose(apply(ours, mask=mask), apply(theirs, mask=mask), atol=1e-5)


def test_linen_layer_that_is_causal():
    x, mask = layer_inputs((2, 3))
    apply, theirs = linen_attention(x)
    fused = partial(flax_attention_fn, implementation="xla")
    ours = linen.MultiHeadDotProductAttention(num_heads=2, attention_fn=fused(is_causal=False))
    # Linen passes only what a signature names: the mask must have arrived.
    assert not np.allclose(apply(ours), apply(theirs, mask=mask), atol=1e-3)
    causal = linen.MultiHeadDotProductAttention(num_heads=2, attention_fn=fused(is_causal=True))
    expected = apply(theirs, mask=jnp.tril(jnp.ones((6, 6))))
    np.testing.assert_allclose(apply(causal), expected, atol=1e-5)


def nnx_steps(x, attention_fn):
    """The outputs of a layer in decode mode, and those of one call with the same weights."""
    layer = nnx.MultiHeadAttention(2, 16, decode=True, attention_fn=attention_fn, rngs=nnx.Rngs(0))
    layer.init_cache(x.shape)
    step = nnx.jit(lambda layer, token: layer(token))
    steps = [step(layer, x[:, t : t + 1]) for t in range(x.shape[1])]
    return steps, layer(x, mask=linen.make_causal_mask(x[..., 0]), decode=False)


def linen_steps(x, attention_fn):
    layer = linen.MultiHeadDotProductAttention(2, decode=True, attention_fn=attention_fn)
    variables, steps = layer.init(jax.random.key(0), x), []
    step = jax.jit(partial(layer.apply, mutable=["cache"]))
    for t in range(x.shape[1]):
        out, cache = step(variables, x[:, t : t + 1])
        variables |= cache
        steps.append(out)
    whole = linen.MultiHeadDotProductAttention(2)
    variables = {"params": variables["params"]}
    return steps, whole.apply(variables, x, mask=linen.make_causal_mask(x[..., 0]))


@pytest.mark.parametrize("decode", [nnx_steps, linen_steps])
def test_decoding_is_right_or_refused(decode):
    x, _ = layer_inputs((2,))
    fused = partial(flax_attention_fn, implementation="xla")
    steps, whole = decode(x, fused(is_causal=False))
    np.testing.assert_allclose(jnp.concatenate(steps, axis=1), whole, atol=1e-5)
    for options in (dict(is_causal=True), dict(is_causal=False, local_window_size=2)):
        with pytest.raises(ValueError, match="decode mode is causal by its own mask"):
            decode(x, fused(**options))


class Attention(equinox.Module):
    """Takes one example at a time, as Equinox layers do."""

    projection: equinox.nn.Linear
    implementation: str

    def __call__(self, x):
        qkv = jax.vmap(self.projection)(x).reshape(len(x), 3, 2, 8)
        out = dot_product_attention(
            *jnp.moveaxis(qkv, 1, 0), is_causal=True, implementation=self.implementation
        )
        return out.reshape(len(x), 16)


@pytest.mark.parametrize("implementation", ["xla", *FUSED])
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
        flax_attention_fn(is_causal=False)(*draw_inputs(0, 1, 3, 3, 1, 1, 4)[:3], **options)


def test_dropout_that_is_off_is_accepted():
    arrays = draw_inputs(0, 1, 3, 3, 1, 1, 4)[:3]
    ours = flax_attention_fn(is_causal=False)(
        *arrays, dropout_rate=0.1, deterministic=True, dtype=jnp.bfloat16, precision="highest"
    )
    assert ours.dtype == jnp.bfloat16


def nnx_layer(attention_fn):
    layer = nnx.MultiHeadAttention(2, 16, decode=False, rngs=nnx.Rngs(0), attention_fn=attention_fn)
    return lambda x, **options: layer(x, **options)


def linen_layer(attention_fn, **options):
    layer = linen.MultiHeadDotProductAttention(2, attention_fn=attention_fn, **options)
    keys = {"params": jax.random.key(0), "dropout": jax.random.key(1)}
    return lambda x: layer.init(keys, x)


def test_layers_refuse_what_the_function_refuses():
    x, fused = jnp.ones((2, 6, 16)), flax_attention_fn(is_causal=False)
    with pytest.raises(NotImplementedError, match="sow"):
        nnx_layer(fused)(x, sow_weights=True)
    with pytest.raises(NotImplementedError, match="no dropout"):
        linen_layer(fused, dropout_rate=0.1, deterministic=False)(x)


# Options that a layer passes too, and so would override.
PARTIALS = {
    "nothing": {},
    "causal": dict(is_causal=True),
    "mask": dict(mask=np.tri(6)),
    "dtype": dict(dtype=jnp.bfloat16),
    "causal and name": dict(is_causal=True, implementation="xla"),
}


@pytest.mark.parametrize("case", PARTIALS)
@pytest.mark.parametrize("layer", [nnx_layer, linen_layer])
def test_a_partial_is_refused_in_any_layer(layer, case):
    for fused in (
        partial(flax_attention_fn, **PARTIALS[case]),
        partial(partial(flax_attention_fn, scale=2.0), **PARTIALS[case]),
    ):
        with pytest.raises(TypeError, match=r"flax_attention_fn\(is_causal=True\).*no functools"):
            layer(fused)(jnp.ones((2, 6, 16)))


MISUSES = {
    "causality unsaid": ({}, TypeError, "attention_fn=flax_attention_fn"),
    "what the layer passes": (dict(is_causal=True, mask=np.tri(6)), TypeError, "not take mask"),
    "string": (dict(is_causal="no"), TypeError, "is_causal must be True or False, got 'no'"),
    "name": (dict(is_causal=True, implementation="flash"), ValueError, "called 'flash'"),
    "window": (dict(is_causal=True, local_window_size=2.0), TypeError, "local_window_size"),
    "scale": (dict(is_causal=True, scale=np.nan), ValueError, "finite"),
}


@pytest.mark.parametrize("case", MISUSES)
def test_misuses_are_refused_where_the_function_is_made(case):
    options, error, message = MISUSES[case]
    with pytest.raises(error, match=message):
        flax_attention_fn(**options)


def test_equal_options_make_equal_functions():
    make = partial(flax_attention_fn, is_causal=True, local_window_size=2)
    assert len({make(), make(implementation="xla"), make(implementation=["xla"])}) == 2

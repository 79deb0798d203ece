"""Layer and RMS normalisation, whose backward passes keep x and one or two numbers a row."""

import jax
import jax.numpy as jnp
from flax import nnx
from jax import lax

from ..kernels.numerics import accumulation_dtype

EPSILON = 1e-5


@jax.custom_vjp
def layer_norm(x: jax.Array, scale: jax.Array, bias: jax.Array) -> jax.Array:
    """`(x - mean) / sqrt(variance + 1e-5) * scale + bias` over the last axis (Ba et al. 2016).

    Statistics are computed in float32 (float64 for float64). The backward pass is written by hand:
    with automatic differentiation, XLA fuses the backward pass of each layer with the recomputation
    of all later layers.

    Args:
      x: `[..., W]`.
      scale: `[W]`.
      bias: `[W]`.

    Returns:
      `[..., W]` in the dtype of `x`.
    """
    return _forward(x, scale, bias)[0]


def _normalise(x, mean, inverse_deviation):
    return (x.astype(mean.dtype) - mean) * inverse_deviation


def _forward(x, scale, bias):
    wide = x.astype(accumulation_dtype(x.dtype))
    mean = wide.mean(axis=-1, keepdims=True)
    centred = wide - mean
    inverse_deviation = lax.rsqrt((centred**2).mean(axis=-1, keepdims=True) + EPSILON)
    rows = lambda vector: jnp.broadcast_to(vector, x.shape)
    result = (centred * inverse_deviation * rows(scale) + rows(bias)).astype(x.dtype)
    return result, (x, mean, inverse_deviation, scale, bias)


def _backward(saved, cotangent):
    x, mean, inverse_deviation, scale, bias = saved
    cotangent = cotangent.astype(mean.dtype)
    normalised = _normalise(x, mean, inverse_deviation)
    rows = tuple(range(x.ndim - 1))
    d_bias = cotangent.sum(axis=rows)
    d_scale = (cotangent * normalised).sum(axis=rows)
    d_normalised = cotangent * jnp.broadcast_to(scale, x.shape)
    d_x = inverse_deviation * (
        d_normalised
        - d_normalised.mean(axis=-1, keepdims=True)
        - normalised * (d_normalised * normalised).mean(axis=-1, keepdims=True)
    )
    return d_x.astype(x.dtype), d_scale.astype(scale.dtype), d_bias.astype(bias.dtype)


layer_norm.defvjp(_forward, _backward)


class LayerNorm(nnx.Module):
    """`layer_norm` with its scale (ones) and bias (zeros) as float32 parameters."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))
        self.bias = nnx.Param(jnp.zeros(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        return layer_norm(x, self.scale[...], self.bias[...])


@jax.custom_vjp
def rms_norm(x: jax.Array, scale: jax.Array) -> jax.Array:
    """`x / sqrt(mean(x^2) + 1e-5) * scale` over the last axis (Zhang and Sennrich 2019).

    Dtypes and the reason for the handwritten backward pass are those of `layer_norm`.

    Args:
      x: `[..., W]`.
      scale: `[W]`.

    Returns:
      `[..., W]` in the dtype of `x`.
    """
    return _rms_forward(x, scale)[0]


def _rms_forward(x, scale):
    wide = x.astype(accumulation_dtype(x.dtype))
    inverse = lax.rsqrt((wide**2).mean(axis=-1, keepdims=True) + EPSILON)
    result = (wide * inverse * jnp.broadcast_to(scale, x.shape)).astype(x.dtype)
    return result, (x, inverse, scale)


def _rms_backward(saved, cotangent):
    x, inverse, scale = saved
    cotangent = cotangent.astype(inverse.dtype)
    normalised = x.astype(inverse.dtype) * inverse
    d_scale = (cotangent * normalised).sum(axis=tuple(range(x.ndim - 1)))
    d_normalised = cotangent * jnp.broadcast_to(scale, x.shape)
    along = (d_normalised * normalised).mean(axis=-1, keepdims=True)
    d_x = inverse * (d_normalised - normalised * along)
    return d_x.astype(x.dtype), d_scale.astype(scale.dtype)


rms_norm.defvjp(_rms_forward, _rms_backward)


class RMSNorm(nnx.Module):
    """`rms_norm` with its scale (ones) as a float32 parameter."""

    def __init__(self, width: int):
        self.scale = nnx.Param(jnp.ones(width))

    def __call__(self, x: jax.Array) -> jax.Array:
        return rms_norm(x, self.scale[...])


class NoNorm(nnx.Module):
    """Leaves tokens as they are."""

    def __init__(self, width: int):
        pass

    def __call__(self, x: jax.Array) -> jax.Array:
        return x


NORMS = {"layer": LayerNorm, "rms": RMSNorm, "none": NoNorm}

"""The public attention function: arguments checked, implementation chosen."""

from collections.abc import Sequence

import jax
import jax.numpy as jnp

from . import reference, xla
from .masks import combine_masks

IMPLEMENTATIONS = {"reference": reference.attention, "xla": xla.attention}
DEFAULT = "xla"


def dot_product_attention(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    *,
    scale: float | None = None,
    is_causal: bool = False,
    query_seq_lengths: jax.Array | None = None,
    key_value_seq_lengths: jax.Array | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | Sequence[str] | None = None,
) -> jax.Array:
    """Scaled dot-product attention with the arguments of `jax.nn.dot_product_attention`.

    `softmax(scale * query @ key^T + bias) @ value` over the keys that the mask allows
    (Vaswani et al. 2017, section 3.2.1). Softmax and sums are in float32, or float64
    for float64 inputs. Unlike JAX's own, a query that may attend to no key gives 0, with
    zero gradients.

    Args:
      query: `[..., T, N, H]`; T queries, N heads, H features a head, any leading batch.
      key: `[..., S, K, H]`; S keys, K heads, with N a multiple of K.
      value: `[..., S, K, H]`.
      bias: added to the scores; broadcastable to `[..., N, T, S]`.
      mask: boolean, True where a query may attend; broadcastable to `[..., N, T, S]`.
      scale: factor of the scores; `1 / sqrt(H)` when None.
      is_causal: a query attends to keys at its own position and before.
      query_seq_lengths: int `[...]`; queries at or past it give 0.
      key_value_seq_lengths: int `[...]`; keys at or past it are hidden.
      local_window_size: `w` or `(left, right)`; query t attends to keys from `t - left`
        to `t + right`.
      implementation: "reference" (plain, every derivative), "xla" (saves only the
        probabilities, first-order reverse mode only), a sequence of names of which the
        first one known is taken, or None for the best one here.

    Returns:
      `[..., T, N, H]` in the dtype of `query`.

    Raises:
      ValueError: shapes that do not fit, or no implementation of that name.
      TypeError: inputs that are not floating point, or a mask that is not boolean.
    """
    query, key, value = jnp.asarray(query), jnp.asarray(key), jnp.asarray(value)
    _check_shapes(query, key, value)
    heads, key_heads = query.shape[-2], key.shape[-2]
    score_shape = (*query.shape[:-3], heads, query.shape[-3], key.shape[-3])
    for name, extra in (("bias", bias), ("mask", mask)):
        if extra is not None:
            _check_broadcast(name, jnp.shape(extra), score_shape)
    allowed = combine_masks(
        score_shape,
        mask,
        is_causal=is_causal,
        query_seq_lengths=query_seq_lengths,
        key_value_seq_lengths=key_value_seq_lengths,
        local_window_size=local_window_size,
    )
    if key_heads != heads:
        key = jnp.repeat(key, heads // key_heads, axis=-2)
        value = jnp.repeat(value, heads // key_heads, axis=-2)
    scale = query.shape[-1] ** -0.5 if scale is None else scale
    attend = IMPLEMENTATIONS[_choose(implementation)]
    return attend(query, key, value, bias, allowed, scale)


def _choose(implementation: str | Sequence[str] | None) -> str:
    if implementation is None:
        return DEFAULT
    names = [implementation] if isinstance(implementation, str) else list(implementation)
    for name in names:
        if name in IMPLEMENTATIONS:
            return name
    raise ValueError(
        f"no implementation of attention called {implementation!r}; "
        f"there are {sorted(IMPLEMENTATIONS)}, or None for the best one here"
    )


def _check_shapes(query: jax.Array, key: jax.Array, value: jax.Array) -> None:
    for name, array in (("query", query), ("key", key), ("value", value)):
        if array.ndim < 3:
            raise ValueError(f"{name} must be [..., length, heads, head_dim], got {array.shape}")
        if not jnp.issubdtype(array.dtype, jnp.floating):
            raise TypeError(f"{name} must be floating point, got {array.dtype}")
    if key.shape != value.shape:
        raise ValueError(f"key {key.shape} and value {value.shape} must have the same shape")
    if query.shape[:-3] != key.shape[:-3] or query.shape[-1] != key.shape[-1]:
        raise ValueError(
            f"query {query.shape} and key {key.shape} must agree in batch and head dimensions"
        )
    if key.shape[-2] == 0 or query.shape[-2] % key.shape[-2]:
        raise ValueError(
            f"{query.shape[-2]} query heads cannot share {key.shape[-2]} key heads evenly"
        )


def _check_broadcast(name: str, shape: tuple[int, ...], target: tuple[int, ...]) -> None:
    padded = (1,) * (len(target) - len(shape)) + tuple(shape)
    if len(padded) != len(target) or any(a not in (1, b) for a, b in zip(padded, target)):
        raise ValueError(f"{name} of shape {shape} cannot broadcast to [..., N, T, S] = {target}")

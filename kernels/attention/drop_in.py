"""The attention function in the form that Flax's layers call. Needs no Flax itself."""

from typing import Any

import jax
import jax.numpy as jnp

from .api import dot_product_attention


def flax_attention_fn(
    query: jax.Array,
    key: jax.Array,
    value: jax.Array,
    bias: jax.Array | None = None,
    mask: jax.Array | None = None,
    broadcast_dropout: bool = True,
    dropout_rng: Any = None,
    dropout_rate: float = 0.0,
    deterministic: bool = False,
    dtype: Any = None,
    precision: Any = None,
    module: Any = None,
    is_causal: bool = False,
    force_fp32_for_softmax: bool = True,
    qk_attn_weights_einsum: Any = None,
    attn_weights_value_einsum: Any = None,
    *,
    scale: float | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: Any = None,
    **unknown: Any,
) -> jax.Array:
    """`attention_fn` of `flax.nnx.MultiHeadAttention` and linen's `MultiHeadDotProductAttention`.

    Fix the last few arguments with `functools.partial`; linen never says that it is causal, so
    `partial(flax_attention_fn, is_causal=True)` and no mask is the fast way there. Linen passes
    only what it finds in this signature, which therefore names everything.

    Args:
      query, key, value: `[..., length, heads, head_dim]`, cast to `dtype` when that is given.
      bias, scale, is_causal, local_window_size, implementation: as in `dot_product_attention`.
      mask: True, or nonzero as Flax's float masks have it, where a query may attend;
        broadcastable to `[..., heads, T, S]`. A query that sees nothing gives 0, where Flax gives
        the mean of all values.
      deterministic, dropout_rate, dropout_rng, broadcast_dropout: dropout must be off.
      precision, force_fp32_for_softmax: accepted; sums and softmax are in float32 anyway.
      module: must be None: there are no weights to sow.

    Raises:
      NotImplementedError: dropout, sown weights, or anything else that it does not know.
      And as `dot_product_attention`.
    """
    if dropout_rate > 0 and not deterministic:
        raise NotImplementedError(
            "fused attention has no dropout: set dropout_rate=0 or deterministic=True, or use "
            "Flax's own attention_fn"
        )
    if module is not None:
        raise NotImplementedError(
            "fused attention never forms the weights, so sow_weights has nothing to sow; use "
            "Flax's own attention_fn for that"
        )
    unknown |= dict(
        qk_attn_weights_einsum=qk_attn_weights_einsum,
        attn_weights_value_einsum=attn_weights_value_einsum,
    )
    for name, given in unknown.items():
        if given is not None:
            raise NotImplementedError(f"fused attention does not know {name}; leave it out")
    if dtype is not None:
        query, key, value = (jnp.asarray(array, dtype) for array in (query, key, value))
    if mask is not None:
        mask = jnp.asarray(mask) != 0
    return dot_product_attention(
        query,
        key,
        value,
        bias,
        mask,
        scale=scale,
        is_causal=is_causal,
        local_window_size=local_window_size,
        implementation=implementation,
    )

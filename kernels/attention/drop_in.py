"""The attention function in the form that Flax's layers call. Needs no Flax itself."""

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import jax
import jax.numpy as jnp

from .. import dispatch
from ..arguments import as_flag, as_scale, as_window
from .api import IMPLEMENTATIONS, dot_product_attention


def flax_attention_fn(
    *arrays: Any,
    is_causal: bool | None = None,
    scale: float | None = None,
    local_window_size: int | tuple[int, int] | None = None,
    implementation: str | Sequence[str] | None = None,
    **unknown: Any,
) -> "FlaxAttention":
    """Makes the `attention_fn` of Flax's `MultiHeadAttention` and `MultiHeadDotProductAttention`.

    `nnx.MultiHeadAttention(..., attention_fn=flax_attention_fn(is_causal=True))`. Options given
    here are not overridden by the layer. Options of a `functools.partial` would be: nnx passes
    `is_causal=False` in every call. So a partial of this function, or this function itself as
    `attention_fn`, is an error.

    Args:
      is_causal: must be given. True: causal in every call, which needs no mask and is fastest.
        False: causal if the layer's mask is, or, in nnx, in `layer(x, is_causal=True)`.
      scale, local_window_size, implementation: as in `dot_product_attention`.

    Returns:
      A function that a layer calls. Equal options make equal functions, which share compiled
      programs.

    Raises:
      TypeError: no `is_causal`; arrays, or an argument that the layer passes; an option of the
        wrong type.
      ValueError: as `dot_product_attention`, for these options.
    """
    if arrays or is_causal is None:
        raise TypeError(
            "flax_attention_fn makes the function that a layer calls: give the layer "
            "attention_fn=flax_attention_fn(is_causal=True), or False to leave causality to the "
            "layer, with all other options there too, and no functools.partial: the layer's "
            "own arguments override those of a partial"
        )
    if unknown:
        raise TypeError(
            f"flax_attention_fn does not take {', '.join(unknown)}: give it to the layer, or to "
            "the function that flax_attention_fn returns"
        )
    names = dispatch.names_of("attention", IMPLEMENTATIONS, implementation)
    return FlaxAttention(
        is_causal=as_flag("is_causal", is_causal),
        scale=None if scale is None else as_scale(scale, 1),
        local_window_size=as_window(local_window_size),
        implementation=None if names is None else tuple(names),
    )


@dataclass(frozen=True)
class FlaxAttention:
    """The function that `flax_attention_fn` makes, with its options."""

    is_causal: bool
    scale: float | None
    local_window_size: tuple[int, int] | None
    implementation: Any

    def __call__(
        self,
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
        **unknown: Any,
    ) -> jax.Array:
        """The call of a layer. Linen passes only arguments named in this signature.

        Args:
          query, key, value: `[..., length, heads, head_dim]`, cast to `dtype` if that is given.
          bias: as in `dot_product_attention`.
          mask: True or, in a float mask, nonzero if a query may attend; broadcastable to
            `[..., heads, T, S]`. A query that sees nothing gives 0; Flax's own gives the mean of
            all values.
          is_causal: makes the call causal, as the argument of `flax_attention_fn` does.
          deterministic, dropout_rate, dropout_rng, broadcast_dropout: dropout must be off.
          precision, force_fp32_for_softmax: accepted; sums and softmax are in float32 anyway.
          module: must be None: there are no weights to sow.

        Raises:
          NotImplementedError: dropout, sown weights, or an unknown argument.
          ValueError: causality or a window with different numbers of queries and keys. In decode
            mode a layer's mask hides keys not written yet, but the position of the query is
            unknown. Otherwise as `dot_product_attention`.
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
        is_causal = as_flag("is_causal", is_causal) or self.is_causal
        counts_positions = is_causal or self.local_window_size is not None
        if counts_positions and query.shape[-3] != key.shape[-3]:
            raise ValueError(
                f"causality and windows need the positions of queries, and {query.shape[-3]} "
                f"queries of {key.shape[-3]} keys have none. A layer in decode mode is causal by "
                "its own mask: give it flax_attention_fn(is_causal=False), and no is_causal in "
                "the call"
            )
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
            scale=self.scale,
            is_causal=is_causal,
            local_window_size=self.local_window_size,
            implementation=self.implementation,
        )

"""Attention-only models, in which every token attends to all examples of the prompt.

These are the models of "Transformers learn in-context by gradient descent", von Oswald et al. 2023
(arXiv 2212.07677, section 2 and appendix A.1): no biases, no normalisation, no MLP between layers,
and in the linear form no softmax.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from ..kernels import attention_weights, dot_product_attention, linear_attention
from ..layers.taps import tap, tap_heads
from ..ranges import COUNT, POSITIVE, SIZE, check_ranges
from .base import HeadWeights, Model, ModelConfig
from .features import Features


@dataclasses.dataclass(frozen=True)
class SelfAttentionConfig(ModelConfig):
    """Settings of the model; computed in float32 with products at highest precision."""

    title: ClassVar[str] = "self-attention"
    causal: ClassVar[bool] = False

    layers: int = 1
    """Number of layers, or number of applications of a shared layer."""
    heads: int = 1
    """Number of heads in a layer."""
    key_size: int | None = None
    """Number of features of a query, key and value; None for the number of features of a token."""
    softmax: Literal["none", "first", "all"] = "none"
    """Layers with softmax attention; the others have linear attention."""
    shared: bool = True
    """Apply one layer repeatedly ("recurrent"); else each layer has its own weights."""
    query_in_context: bool = False
    """Use the query's token as a key and value too; else only the examples are."""
    clip: float | None = None
    """Largest absolute value of a token's entries after each layer; None for no clipping."""
    positions: int = 0
    """Number of sinusoidal features of the position, appended to each token."""
    features: int | None = None
    """Width of an embedding and a residual MLP before the layers; None for neither."""
    init_scale: float = 0.002
    """Initial variance of the weights times fan-in, divided among the layers."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            "model",
            self,
            heads=SIZE,
            key_size=SIZE,
            features=SIZE,
            positions=COUNT,
            clip=POSITIVE,
            init_scale=POSITIVE,
        )
        if self.softmax == "first" and self.shared and self.layers > 1:
            raise ValueError(
                "softmax first needs layers that differ: set shared=False, or softmax none or all"
            )
        if self.positions % 2:
            raise ValueError(
                f"model.positions must be even (pairs of sine and cosine); got {self.positions}"
            )
        if self.dtype != "float32":
            raise ValueError(f"a {self.title} model is computed in float32, not {self.dtype}")

    def width(self, in_width: int) -> int:
        """Number of features of a token between layers."""
        return (self.features or in_width) + self.positions

    def activations(self, in_width: int) -> int:
        width = self.width(in_width)
        hidden = 4 * self.features if self.features else 0
        return max(3 * self.heads * (self.key_size or width), hidden)

    def build(
        self, in_width: int, tokens: int, *, outputs: int | None = None, rngs: nnx.Rngs
    ) -> "SelfAttention":
        return SelfAttention(in_width, tokens, self, outputs=outputs, rngs=rngs)

    def layer(self, index: int, width: int, rngs: nnx.Rngs) -> "SelfAttentionLayer":
        """Layer number `index` of a model whose tokens have `width` features."""
        softmax = self.softmax == "all" or (self.softmax == "first" and index == 0)
        return SelfAttentionLayer(
            width, self.heads, self.key_size or width, softmax=softmax,
            init_scale=self.init_scale / self.layers, rngs=rngs,
        )  # fmt: skip

    def flops_by_part(self, in_width: int, tokens: int, batch: int) -> dict[str, float]:
        width, total = self.width(in_width), batch * tokens
        size = self.heads * (self.key_size or width)
        # Linear attention sums the context into a state; softmax attention compares all pairs.
        linear = 12.0 * self.heads * (self.key_size or width) ** 2 * total
        softmax = 12.0 * size * tokens * total
        soft_layers = {"none": 0, "first": 1, "all": self.layers}[self.softmax]
        flops = {
            "projections": 6.0 * 4 * self.layers * width * size * total,
            "attention": soft_layers * softmax + (self.layers - soft_layers) * linear,
        }
        if self.features:
            flops["features"] = 6.0 * (in_width + 8 * self.features) * self.features * total
        return flops


class SelfAttentionLayer(nnx.Module):
    """e_j + sum over heads of P V(context) weights(K(context), Q e_j).

    Args:
      width: number of features W of a token.
      heads: number of heads N.
      key_size: number of features H of a query, key and value.
      softmax: whether attention weights are a softmax of `q . k / sqrt(H)`; else they are `q . k`.
      init_scale: initial variance of the weights times fan-in; the distribution is a normal
        truncated at two standard deviations.
      rngs: `nnx.Rngs` with a `params` stream.
    """

    def __init__(
        self,
        width: int,
        heads: int,
        key_size: int,
        *,
        softmax: bool,
        init_scale: float,
        rngs: nnx.Rngs,
    ):
        init = nnx.initializers.variance_scaling(
            init_scale, "fan_in", "truncated_normal", batch_axis=0
        )
        weights = lambda *shape: nnx.Param(init(rngs.params(), shape))
        self.softmax = softmax
        self.query = weights(heads, width, key_size)
        self.key = weights(heads, width, key_size)
        self.value = weights(heads, width, key_size)
        self.output = weights(heads, key_size, width)

    def __call__(self, tokens: jax.Array, context: jax.Array) -> jax.Array:
        """The update `[B, T, W]` of tokens `[B, T, W]` that attend to a context `[B, S, W]`."""
        project = lambda x, weights: jnp.einsum("btw,nwh->btnh", x, weights[...])
        mixed = self.mix(
            project(tokens, self.query), project(context, self.key), project(context, self.value)
        )
        return jnp.einsum("btnh,nhw->btw", mixed, self.output[...])

    def mix(self, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        """Attention `[B, T, N, H]` of queries `[B, T, N, H]` to keys and values `[B, S, N, H]`."""
        if self.softmax:
            mixed = dot_product_attention(query, key, value)
            return tap_heads(mixed, lambda: value, lambda: attention_weights(query, key))
        mixed = linear_attention(query, key, value, is_causal=False, scale=1.0)
        return tap_heads(mixed, lambda: value, lambda: jnp.einsum("btnh,bsnh->bnts", query, key))


class SelfAttention(Model):
    """Predicts the query's label as minus the label entry of the query's token after all layers.

    Args:
      in_width: number of features of a token; the last feature is the label.
      tokens: number of tokens of a prompt; the last token is the query.
      config: settings of the model.
      outputs: must be None, for scalar labels.
      rngs: `nnx.Rngs` with a `params` stream.
    """

    def __init__(
        self,
        in_width: int,
        tokens: int,
        config: SelfAttentionConfig,
        *,
        outputs: int | None = None,
        rngs: nnx.Rngs,
    ):
        if outputs is not None:
            raise ValueError(f"a {config.title} model predicts only scalar labels")
        self.config = config
        width = config.width(in_width)
        self.label = width - config.positions - 1
        features = config.features
        self.features = Features(in_width, features, rngs=rngs) if features else None
        kept = 1 if config.shared else config.layers
        self.layers = nnx.List([config.layer(index, width, rngs) for index in range(kept)])

    def __call__(
        self,
        tokens: jax.Array,
        read: slice = slice(None),
        *,
        layers: int | None = None,
        damping: float = 1.0,
    ) -> jax.Array:
        """Predictions at each token that `read` selects; only the query's label is hidden.

        Args:
          tokens: `[B, T, in_width]`.
          read: the positions to return predictions for.
          layers: number of layers to apply; all if None. A shared layer can be applied more often
            than in training.
          damping: factor on the update of each layer.

        Returns:
          float32 `[B, number of positions read]`.

        Raises:
          ValueError: `layers` exceeds the number of layers, and they are not shared.
        """
        return -self.hidden(tokens, layers, damping)[:, read, self.label]

    def hidden(
        self, tokens: jax.Array, layers: int | None = None, damping: float = 1.0
    ) -> jax.Array:
        """The tokens `[B, T, width]` after `layers` layers; the input of the first layer if 0."""
        layers = self.config.layers if layers is None else layers
        if not self.config.shared and layers > len(self.layers):
            raise ValueError(f"there are {len(self.layers)} layers, not {layers}")
        limit = self.config.clip
        with jax.default_matmul_precision("highest"):
            x = tokens if self.features is None else self.features(tokens)
            if self.config.positions:
                at = sinusoids(tokens.shape[1], self.config.positions)
                x = jnp.concatenate([x, jnp.broadcast_to(at, (len(x), *at.shape))], axis=-1)
            x = tap("residual", x)
            for index in range(layers):
                layer = self.layers[0 if self.config.shared else index]
                context = x if self.config.query_in_context else x[:, :-1]
                x = x + tap("mixer", damping * layer(x, context))
                if limit is not None:
                    x = jnp.clip(x, -limit, limit)
                x = tap("residual", x)
        return x

    def heads(self) -> list[HeadWeights]:
        return [
            HeadWeights(layer.query[...], layer.key[...], layer.value[...], layer.output[...])
            for layer in self.layers
        ]

    def head_inputs(self, tokens: jax.Array) -> list[jax.Array]:
        applied = self.config.layers
        before = [applied - 1] if self.config.shared else range(applied)
        return [self.hidden(tokens, count) for count in before]


def sinusoids(length: int, size: int) -> jax.Array:
    """Sines and cosines of the position, `[length, size]` (Vaswani et al. 2017, section 3.5)."""
    rates = 10_000 ** (-jnp.arange(0, size, 2) / size)
    angles = jnp.arange(length, dtype=rates.dtype)[:, None] * rates[None]
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(length, size)

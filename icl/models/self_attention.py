"""Attention layers and nothing else, over prompts that every token sees whole but for the query.

The learners of "Transformers learn in-context by gradient descent", von Oswald et al. 2023
(arXiv 2212.07677, section 2 and appendix A.1): no biases, no normalisation, no MLP between
layers, and in their linear form no softmax.
"""

import dataclasses
from typing import ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from ..kernels import dot_product_attention, linear_attention
from ..ranges import COUNT, POSITIVE, SIZE, check_ranges
from .base import HeadWeights, Model, ModelConfig
from .features import Features


@dataclasses.dataclass(frozen=True)
class SelfAttentionConfig(ModelConfig):
    """Size of the model; computed in float32 with exact products."""

    title: ClassVar[str] = "self-attention"
    causal: ClassVar[bool] = False

    layers: int = 1
    """Layers, or how often one is applied where it is shared."""
    heads: int = 1
    """Heads a layer."""
    key_size: int | None = None
    """Features of a query, key and value; None for those of a token."""
    softmax: Literal["none", "first", "all"] = "none"
    """The layers whose weights go through a softmax; the others are linear attention."""
    shared: bool = True
    """One layer applied again and again ("recurrent"), or each with weights of its own."""
    query_in_context: bool = False
    """The query's token is a key and a value too."""
    clip: float | None = None
    """Largest size of a token's entries after each layer; None for no clipping."""
    positions: int = 0
    """Sinusoidal features of its position that a token is extended by."""
    features: int | None = None
    """Width of an embedding and of a residual MLP before the layers; None for neither."""
    init_scale: float = 0.002
    """Initial variance of the weights times their fan-in, over all layers together."""

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
                "a shared layer is the same throughout: shared=False for softmax first"
            )
        if self.positions % 2:
            raise ValueError(
                f"model.positions must be even, a sine and a cosine; got {self.positions}"
            )
        if self.dtype != "float32":
            raise ValueError(f"a {self.title} model is computed in float32, not {self.dtype}")

    def width(self, in_width: int) -> int:
        """Features of a token between layers."""
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
        # Linear attention makes a state of the context; a softmax compares all pairs of tokens.
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
      width: features W of a token.
      heads: N.
      key_size: features H of a query, key and value.
      softmax: whether the weights are a softmax of `q . k / sqrt(H)`, or `q . k` itself.
      init_scale: initial variance of the weights times their fan-in, normal cut off at two
        standard deviations.
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
        """What the layer adds to tokens `[B, T, W]` from a context `[B, S, W]`."""
        project = lambda x, weights: jnp.einsum("btw,nwh->btnh", x, weights[...])
        mixed = self.mix(
            project(tokens, self.query), project(context, self.key), project(context, self.value)
        )
        return jnp.einsum("btnh,nhw->btw", mixed, self.output[...])

    def mix(self, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        """`[B, T, N, H]` of queries `[B, T, N, H]`, and keys and values `[B, S, N, H]`."""
        if self.softmax:
            return dot_product_attention(query, key, value)
        return linear_attention(query, key, value, is_causal=False, scale=1.0)


class SelfAttention(Model):
    """Predicts the query's label as minus the last entry of its token after all layers.

    Args:
      in_width: features of a token; the last is the label's.
      tokens: length of the prompts; the last token is the query's.
      config: size of the model.
      outputs: must be None.
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
            raise ValueError(f"a {config.title} model predicts scalar labels alone")
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
        """Predictions at each token that `read` selects; only the query's has not seen its label.

        Args:
          tokens: `[B, T, in_width]`.
          read: the positions whose predictions are wanted.
          layers: how many layers to apply; all when None. A shared layer can be applied more often
            than in training.
          damping: factor of what each layer adds.

        Returns:
          float32 `[B, number of positions read]`.

        Raises:
          ValueError: more layers than there are, where they are not shared.
        """
        return -self.hidden(tokens, layers, damping)[:, read, self.label]

    def hidden(
        self, tokens: jax.Array, layers: int | None = None, damping: float = 1.0
    ) -> jax.Array:
        """The tokens `[B, T, width]` after so many layers; 0 for what enters the first."""
        layers = self.config.layers if layers is None else layers
        if not self.config.shared and layers > len(self.layers):
            raise ValueError(f"there are {len(self.layers)} layers, not {layers}")
        limit = self.config.clip
        with jax.default_matmul_precision("highest"):
            x = tokens if self.features is None else self.features(tokens)
            if self.config.positions:
                at = sinusoids(tokens.shape[1], self.config.positions)
                x = jnp.concatenate([x, jnp.broadcast_to(at, (len(x), *at.shape))], axis=-1)
            for index in range(layers):
                layer = self.layers[0 if self.config.shared else index]
                context = x if self.config.query_in_context else x[:, :-1]
                x = x + damping * layer(x, context)
                if limit is not None:
                    x = jnp.clip(x, -limit, limit)
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
    angles = jnp.arange(length)[:, None] * rates
    return jnp.stack([jnp.sin(angles), jnp.cos(angles)], axis=-1).reshape(length, size)

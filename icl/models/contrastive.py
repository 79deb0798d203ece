"""Softmax attention with the variants of its dual contrastive loss.

Ren & Liu 2023 (arXiv 2310.13220) interpret a softmax layer as gradient descent on a contrastive
loss of pairs W_V x_i and W phi(W_K x_i), without negatives (`icl.analysis.dual`). Three changes of
the loss become variants of the layer: a penalty on W, augmentations and negative samples.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from ..kernels import attention_weights, dot_product_attention
from ..layers.taps import tap_heads
from ..ranges import COUNT, FINITE, SIZE, check_ranges
from .base import HeadWeights
from .self_attention import SelfAttention, SelfAttentionConfig, SelfAttentionLayer

Augmentation = Literal["none", "plain", "residual"]


@dataclasses.dataclass(frozen=True)
class ContrastiveAttentionConfig(SelfAttentionConfig):
    """Settings of the model and its variants, which can be combined; by default plain attention."""

    title: ClassVar[str] = "contrastive attention"

    softmax: Literal["none", "first", "all"] = "all"
    """Must be all, since the variants change softmax attention."""
    regularization: float = 0.0
    """alpha: the contribution of the query's own value to its output is multiplied by 1 - alpha."""
    augment_values: Augmentation = "none"
    """g1: a GELU MLP applied to each value; replaces the value (plain) or is added (residual)."""
    augment_keys: Augmentation = "none"
    """g2: a GELU MLP applied to each key; replaces the key (plain) or is added (residual)."""
    augment_size: int | None = None
    """Number of hidden units of the augmenting MLPs; None for four times the key size."""
    negatives: int = 0
    """Number of negative samples of a demonstration: the demonstrations it attends to least."""
    negative_weight: float = 0.0
    """beta: weight of the mean value of the negatives, subtracted from a demonstration's value."""

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.softmax != "all":
            raise ValueError(
                f"model.softmax must be all for a {self.title} model, got {self.softmax}"
            )
        check_ranges(
            "model",
            self,
            regularization=FINITE,
            augment_size=SIZE,
            negatives=COUNT,
            negative_weight=FINITE,
        )
        if self.regularization and not self.query_in_context:
            raise ValueError(
                "regularization changes the weight of the query's own value, which the query does "
                "not attend to: set query_in_context=True"
            )
        for name in ("augment_values", "augment_keys"):
            if getattr(self, name) not in ("none", "plain", "residual"):
                raise ValueError(
                    f"{name} must be none, plain or residual, got {getattr(self, name)!r}"
                )
        if self.augment_size is not None and not self.augmented:
            raise ValueError(
                "augment_size has no effect: augment_values and augment_keys are both none"
            )
        if bool(self.negatives) != bool(self.negative_weight):
            raise ValueError(
                "negatives and negative_weight must be set together; got negatives "
                f"{self.negatives} and negative_weight {self.negative_weight}"
            )

    @property
    def augmented(self) -> int:
        """Number of augmenting MLPs in a layer."""
        return (self.augment_values != "none") + (self.augment_keys != "none")

    def hidden_size(self, width: int) -> int:
        """Number of hidden units of an augmenting MLP, for tokens with `width` features."""
        return self.augment_size or 4 * (self.key_size or width)

    def activations(self, in_width: int) -> int:
        hidden = self.heads * self.hidden_size(self.width(in_width)) if self.augmented else 0
        return max(super().activations(in_width), hidden)

    def build(
        self, in_width: int, tokens: int, *, outputs: int | None = None, rngs: nnx.Rngs
    ) -> "ContrastiveAttention":
        others = tokens - 2
        if self.negatives > others:
            raise ValueError(
                f"negatives must be at most {others}, the number of other demonstrations in a "
                f"prompt of {tokens} tokens; got {self.negatives}"
            )
        return ContrastiveAttention(in_width, tokens, self, outputs=outputs, rngs=rngs)

    def layer(self, index: int, width: int, rngs: nnx.Rngs) -> "ContrastiveAttentionLayer":
        return ContrastiveAttentionLayer(width, self, rngs=rngs)

    def flops_by_part(self, in_width: int, tokens: int, batch: int) -> dict[str, float]:
        flops = super().flops_by_part(in_width, tokens, batch)
        width = self.width(in_width)
        size = self.key_size or width
        applied = self.layers * self.heads * batch * tokens
        if self.augmented:
            flops["augmentation"] = 12.0 * self.augmented * size * self.hidden_size(width) * applied
        if self.negatives:
            # The scores that choose the negatives have no gradient.
            flops["negatives"] = 8.0 * size * tokens * applied
        return flops


class ContrastiveAttentionLayer(SelfAttentionLayer):
    """e_j + sum over heads of P u, with u the softmax(g2(K context) . Q e_j / sqrt(H)) of values.

    The value of a demonstration is g1(V x_i) minus `negative_weight` times the mean value of its
    negatives. The value of the query is g1(V x) times `1 - regularization`.

    Args:
      width: number of features W of a token.
      config: settings of the model and its variants.
      rngs: `nnx.Rngs` with a `params` stream.
    """

    def __init__(self, width: int, config: ContrastiveAttentionConfig, *, rngs: nnx.Rngs):
        size = config.key_size or width
        super().__init__(
            width, config.heads, size, softmax=True,
            init_scale=config.init_scale / config.layers, rngs=rngs,
        )  # fmt: skip
        self.config = config
        hidden = config.hidden_size(width)
        augment = lambda kind: Augment(size, hidden, kind, rngs=rngs) if kind != "none" else None
        self.augment_values = augment(config.augment_values)
        self.augment_keys = augment(config.augment_keys)

    def mix(self, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        if self.augment_values is not None:
            value = self.augment_values(value)
        if self.augment_keys is not None:
            key = self.augment_keys(key)
        demonstrations = query.shape[1] - 1
        varied = value
        if self.config.negatives:
            lost = self.config.negative_weight * self._negatives(
                query[:, :demonstrations], key[:, :demonstrations], value[:, :demonstrations]
            )
            varied = varied.at[:, :demonstrations].add(-lost)
        if self.config.regularization:
            # Softmax weights do not change; only the query's own value is scaled.
            varied = varied.at[:, demonstrations:].multiply(1 - self.config.regularization)
        mixed = dot_product_attention(query, key, varied)
        return tap_heads(mixed, lambda: varied, lambda: attention_weights(query, key))

    def _negatives(self, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        """Mean value of the negatives of each demonstration; all arrays are `[B, D, N, H]`."""
        scores = jnp.einsum("bqnh,bknh->bnqk", query, key)
        itself = jnp.eye(scores.shape[-1], dtype=bool)
        _, least = jax.lax.top_k(jnp.where(itself, -jnp.inf, -scores), self.config.negatives)
        chosen = jax.nn.one_hot(least, scores.shape[-1]).sum(axis=-2)
        return jnp.einsum("bnqk,bknh->bqnh", chosen, value) / self.config.negatives


class Augment(nnx.Module):
    """A GELU MLP with one hidden layer, with or without a residual connection.

    Args:
      size: number of features of input and output.
      hidden: number of hidden units.
      kind: "plain", or "residual" for x + MLP(x), with the MLP 0 initially.
      rngs: `nnx.Rngs` with a `params` stream.
    """

    def __init__(self, size: int, hidden: int, kind: Augmentation, *, rngs: nnx.Rngs):
        self.residual = kind == "residual"
        # A residual MLP starts at 0, so that training starts from plain attention.
        last: dict[str, Any] = dict(kernel_init=nnx.initializers.zeros) if self.residual else {}
        self.up = nnx.Linear(size, hidden, rngs=rngs)
        self.down = nnx.Linear(hidden, size, rngs=rngs, **last)

    def __call__(self, x: jax.Array) -> jax.Array:
        """Maps `[..., size]` to `[..., size]`."""
        mapped = self.down(jax.nn.gelu(self.up(x)))
        return x + mapped if self.residual else mapped


class ContrastiveAttention(SelfAttention):
    """`SelfAttention` whose layers are `ContrastiveAttentionLayer`s."""

    def heads(self) -> list[HeadWeights]:
        config = self.config
        if isinstance(config, ContrastiveAttentionConfig) and config.augmented:
            raise NotImplementedError(
                "keys and values augmented by an MLP are not linear in the tokens; views of heads "
                "need augment_values and augment_keys none"
            )
        return super().heads()

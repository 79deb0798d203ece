"""Gradient descent on the examples of a prompt, with learned rates.

Von Oswald et al. 2023 (arXiv 2212.07677) compare trained attention with three forms of it: plain
gradient descent (section 2), GD++, which also transforms the inputs (appendix A.10), and gradient
descent on a learned representation from learned initial weights (section 4).
"""

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from ..ranges import FINITE, SIZE, check_ranges
from .base import Model, ModelConfig
from .features import Features


@dataclasses.dataclass(frozen=True)
class GradientDescentConfig(ModelConfig):
    """Settings of gradient descent; computed in float32 with products at highest precision."""

    title: ClassVar[str] = "gradient descent"
    causal: ClassVar[bool] = False
    takes_points: ClassVar[bool] = True

    layers: int = 1
    """Number of steps of gradient descent."""
    plus_plus: bool = False
    """Use GD++: each step also replaces x by (I - gamma X X^T) x, with a learned gamma."""
    shared: bool = True
    """Share one learning rate and one gamma among all steps; else each step has its own."""
    learning_rate: float = 1.0
    """Initial learning rate, for a loss of half the mean squared error over the examples."""
    features: int | None = None
    """Width of a learned representation of x, with learned initial weights; None to use x, with
    initial weights 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("model", self, learning_rate=FINITE, features=SIZE)
        if self.dtype != "float32":
            raise ValueError(f"{self.title} is computed in float32, not {self.dtype}")

    def activations(self, in_width: int) -> int:
        return 4 * self.features if self.features else in_width

    def build(
        self, in_width: int, tokens: int, *, outputs: int | None = None, rngs: nnx.Rngs
    ) -> "GradientDescent":
        return GradientDescent(in_width, self, outputs=outputs, rngs=rngs)

    def flops_by_part(self, in_width: int, tokens: int, batch: int) -> dict[str, float]:
        total = batch * tokens
        dim = self.features or in_width - 1
        flops = {"steps": 12.0 * self.layers * dim * (1 + dim * self.plus_plus) * total}
        if self.features:
            flops["features"] = 6.0 * (in_width - 1 + 8 * dim) * dim * total
        return flops


class GradientDescent(Model):
    """Predicts with linear weights after gradient descent on all tokens but the last.

    Args:
      in_width: number of features of a token (x, y).
      config: settings of the model.
      outputs: must be None, for scalar labels.
      rngs: `nnx.Rngs` with a `params` stream.
    """

    def __init__(
        self,
        in_width: int,
        config: GradientDescentConfig,
        *,
        outputs: int | None = None,
        rngs: nnx.Rngs,
    ):
        if outputs is not None:
            raise ValueError(f"{config.title} predicts only scalar labels")
        self.config = config
        rates = 1 if config.shared else config.layers
        self.learning_rate = nnx.Param(jnp.full(rates, config.learning_rate))
        if config.plus_plus:
            self.gamma = nnx.Param(jnp.zeros(rates))
        features = config.features
        self.features = Features(in_width - 1, features, rngs=rngs) if features else None
        if features:
            self.weights = nnx.Param(jnp.zeros(features))

    def __call__(self, tokens: jax.Array, read: slice = slice(None)) -> jax.Array:
        x, y = tokens[..., :-1], tokens[:, :-1, -1]
        predictions = jnp.zeros(x.shape[:-1])
        with jax.default_matmul_precision("highest"):
            if self.features is not None:
                x = self.features(x)
                predictions = x @ self.weights[...]
            for step in range(self.config.layers):
                index = 0 if self.config.shared else step
                examples = x[:, :-1]
                rate = self.learning_rate[index] / examples.shape[1]
                # Step on half the squared error of w.x against the residuals.
                descent = rate * jnp.einsum("bn,bnd->bd", y - predictions[:, :-1], examples)
                predictions = predictions + jnp.einsum("bd,btd->bt", descent, x)
                if self.config.plus_plus:
                    gram = jnp.einsum("bnd,bne->bde", examples, examples)
                    x = x - self.gamma[index] * jnp.einsum("btd,bde->bte", x, gram)
        return predictions[:, read]

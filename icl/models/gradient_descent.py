"""Gradient descent on the examples of a prompt, as a learner that has only its rates to learn.

What von Oswald et al. 2023 (arXiv 2212.07677) hold trained attention against: plain gradient
descent (section 2), GD++ that also transforms the inputs (appendix A.10), and gradient descent
from a learned representation and initial weights (section 4), each with learned rates.
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
    """How many steps, and what is learned of them; computed in float32 with exact products."""

    title: ClassVar[str] = "gradient descent"
    causal: ClassVar[bool] = False
    takes_points: ClassVar[bool] = True

    layers: int = 1
    """Steps."""
    plus_plus: bool = False
    """Each step also takes x to (I - gamma X X^T) x: GD++."""
    shared: bool = True
    """One learning rate and gamma for all steps, or of each step its own."""
    learning_rate: float = 1.0
    """Initial learning rate, of the squared error halved and averaged over the examples."""
    features: int | None = None
    """Width of a learned representation of x, with initial weights on it; None for x and 0."""

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
    """Predicts with the linear weights after steps on the examples before the last token.

    Args:
      in_width: features of a token (x, y).
      config: steps and what is learned.
      outputs: must be None.
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
            raise ValueError(f"{config.title} predicts scalar labels alone")
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
                # Of |W x - y|^2 / 2, with what is predicted already taken off the labels.
                descent = rate * jnp.einsum("bn,bnd->bd", y - predictions[:, :-1], examples)
                predictions = predictions + jnp.einsum("bd,btd->bt", descent, x)
                if self.config.plus_plus:
                    gram = jnp.einsum("bnd,bne->bde", examples, examples)
                    x = x - self.gamma[index] * jnp.einsum("btd,bde->bte", x, gram)
        return predictions[:, read]

"""MAML as an in-context learner: a network that learns the examples of a prompt by SGD.

Finn, Abbeel and Levine 2017 (arXiv 1703.03400), with a learned rate for each array of weights (Li
et al. 2017, Meta-SGD). The initial weights and the rates are the parameters; they are trained
through the updates. As in Kirsch et al. 2022 (arXiv 2212.04458, table 2) the network predicts each
point, and then takes a step of SGD on it.
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from ..ranges import POSITIVE, SIZE, check_ranges
from .base import Model, ModelConfig


@dataclasses.dataclass(frozen=True)
class MAMLConfig(ModelConfig):
    """Settings of the network and its steps; computed in float32. It needs the layout shifted."""

    title: ClassVar[str] = "MAML"
    takes_shifted: ClassVar[bool] = True

    layers: int = 1
    """Number of hidden layers."""
    width: int = 64
    """Number of units of a hidden layer."""
    learning_rate: float = 0.1
    """Initial learning rate of each array of weights."""
    loss: Literal["cross-entropy", "squared"] = "cross-entropy"
    """Loss of the steps: cross-entropy for labels that are classes, else the squared error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges("model", self, width=SIZE, learning_rate=POSITIVE)
        if self.loss not in ("cross-entropy", "squared"):
            raise ValueError(f"model.loss must be cross-entropy or squared, got {self.loss!r}")
        if self.dtype != "float32":
            raise ValueError(f"{self.title} is computed in float32, not {self.dtype}")

    def sizes(self, in_width: int, outputs: int | None) -> list[int]:
        """Number of units of each layer, from the input on; a token ends with a label."""
        labels = outputs or 1
        if in_width <= labels:
            raise ValueError(f"{self.title} needs tokens (x, label): set layout to shifted")
        return [in_width - labels, *[self.width] * self.layers, labels]

    def activations(self, in_width: int) -> int:
        return 3 * (in_width * self.width + (self.layers - 1) * self.width**2)

    def state_size(self, in_width: int, tokens: int, outputs: int | None = None) -> int:
        sizes = self.sizes(in_width, outputs)
        return sum((before + 1) * after for before, after in zip(sizes, sizes[1:]))

    def build(
        self, in_width: int, tokens: int, *, outputs: int | None = None, rngs: nnx.Rngs
    ) -> "MAML":
        return MAML(in_width, self, outputs=outputs, rngs=rngs)

    def flops_by_part(self, in_width: int, tokens: int, batch: int) -> dict[str, float]:
        weights = in_width * self.width + (self.layers - 1) * self.width**2
        return {"steps": 3.0 * 8 * weights * batch * tokens}


class MAML(Model):
    """Maps prompts of tokens (x_i, label of x_{i-1}) to predictions.

    Args:
      in_width: number of features of a token.
      config: settings of the model.
      outputs: number of outputs at each token; None for a scalar.
      rngs: `nnx.Rngs` with a `params` stream.
    """

    def __init__(
        self, in_width: int, config: MAMLConfig, *, outputs: int | None = None, rngs: nnx.Rngs
    ):
        if outputs is None and config.loss == "cross-entropy":
            raise ValueError("labels of this task are no classes: set model.loss to squared")
        sizes = config.sizes(in_width, outputs)
        self.squared = config.loss == "squared"
        self.scalar, self.labels = outputs is None, sizes[-1]
        self.layers = nnx.List(
            nnx.Linear(before, after, kernel_init=nnx.initializers.he_normal(), rngs=rngs)
            for before, after in zip(sizes, sizes[1:])
        )
        self.log_rates = nnx.Param(jnp.full((len(self.layers), 2), jnp.log(config.learning_rate)))

    def __call__(self, tokens: jax.Array, read: slice = slice(None)) -> jax.Array:
        parts: Any = self.layers
        start = [(layer.kernel[...], layer.bias[...]) for layer in parts]
        rates = jnp.exp(self.log_rates[...])
        predictions = jax.vmap(lambda prompt: self._learn(start, rates, prompt))(tokens)[:, read]
        return predictions[..., 0] if self.scalar else predictions

    def _learn(self, start: Any, rates: jax.Array, prompt: jax.Array) -> jax.Array:
        """Predictions `[T, labels]` at the tokens of a prompt `[T, in_width]`."""
        x, label = prompt[:, : -self.labels], prompt[:, -self.labels :]
        # Added so that under shard_map the weights vary over devices as the prompt does.
        nothing = jnp.zeros_like(prompt[0, 0])
        start = jax.tree.map(lambda leaf: leaf + nothing, start)

        def loss(weights: Any, x: jax.Array, label: jax.Array) -> jax.Array:
            found = _network(weights, x)
            if self.squared:
                return ((found - label) ** 2).sum() / 2
            return -(label * jax.nn.log_softmax(found)).sum()

        @jax.checkpoint
        def step(weights: Any, example: tuple[jax.Array, ...]):
            before, label, x = example
            slopes = jax.grad(loss)(weights, before, label)
            weights = [
                (kernel - rate[0] * to_kernel, bias - rate[1] * to_bias)
                for (kernel, bias), (to_kernel, to_bias), rate in zip(weights, slopes, rates)
            ]
            return weights, _network(weights, x)

        first = _network(start, x[0])[None]
        rest = jax.lax.scan(step, start, (x[:-1], label[1:], x[1:]))[1]
        return jnp.concatenate([first, rest])


def _network(weights: Any, x: jax.Array) -> jax.Array:
    """Outputs `[labels]` of a network with ReLU units for an input `[features]`."""
    for kernel, bias in weights[:-1]:
        x = jax.nn.relu(x @ kernel + bias)
    kernel, bias = weights[-1]
    return x @ kernel + bias

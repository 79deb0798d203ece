"""Explicit meta-learning: a transformer whose weights adapt to the examples of each prompt.

MAML, MAML without second derivatives (Finn, Abbeel and Levine 2017, arXiv 1703.03400, sections 2.2
and 5.2) and Reptile (Nichol, Achiam and Schulman 2018, arXiv 1803.02999, section 3), with learned
rates if wanted (Li et al. 2017, Meta-SGD, arXiv 1707.03141). Labels reach the network by gradients
alone: its tokens are inputs. So the gradient of MAML is a second derivative of fused attention.
"""

import dataclasses
from functools import partial
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
import optax
from flax import nnx

from ..layers.taps import installed
from ..ranges import POSITIVE, SIZE, Range, check_ranges
from .base import Model, ModelConfig
from .transformer import Transformer, TransformerConfig, parameter_count

METHODS = ("maml", "first-order", "reptile")
STEPS = Range(1, 1000)


@dataclasses.dataclass(frozen=True)
class AdaptedTransformerConfig(ModelConfig):
    """Settings of the network and its steps; computed in float32. It needs the layout masked."""

    title: ClassVar[str] = "adapted transformer"
    causal: ClassVar[bool] = False
    takes_lengths: ClassVar[bool] = True
    takes_masked: ClassVar[bool] = True

    layers: int = 2
    """Number of blocks."""
    heads: int = 2
    """Number of attention heads in a block."""
    width: int = 32
    """Number of features of the residual stream."""
    norm: Literal["layer", "rms"] = "layer"
    """Layer normalisation or RMS normalisation (Zhang and Sennrich 2019)."""
    qk_norm: bool = False
    """Normalise the queries and keys of each attention head, with learned scales."""
    method: Literal["maml", "first-order", "reptile"] = "maml"
    """How the initial weights learn. MAML: by the gradient of the queries' loss after the steps;
    first-order: by this gradient without second derivatives; Reptile: by the initial minus the
    adapted weights, whatever the queries' loss."""
    inner_steps: int = 3
    """Number of steps of gradient descent on the examples of a prompt."""
    evaluation_steps: int | None = None
    """Number of steps in evaluation and predictions; None for inner_steps."""
    inner_rate: float = 0.02
    """Learning rate of the steps, the initial one if rates are learned."""
    learn_rates: bool = False
    """Learn a rate for each array of weights; not with Reptile."""
    loss: Literal["squared", "cross-entropy"] = "squared"
    """Loss of the steps: cross-entropy for labels that are classes, else the squared error."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            "model",
            self,
            heads=SIZE,
            width=SIZE,
            inner_steps=STEPS,
            evaluation_steps=STEPS,
            inner_rate=POSITIVE,
        )
        if self.method not in METHODS:
            raise ValueError(f"model.method must be {', '.join(METHODS)}, got {self.method!r}")
        if self.loss not in ("squared", "cross-entropy"):
            raise ValueError(f"model.loss must be squared or cross-entropy, got {self.loss!r}")
        if self.dtype != "float32":
            raise ValueError(f"the {self.title} is computed in float32, not {self.dtype}")
        if self.embed_labels:
            raise ValueError(
                f"the {self.title} takes labels as they are: set model.embed_labels to False"
            )
        if self.method == "reptile" and (self.learn_rates or self.embedder):
            raise ValueError(
                "reptile learns the weights that adapt and nothing else: set model.learn_rates to "
                "False and model.embedder to None"
            )
        self.network  # noqa: B018, its settings are checked

    @property
    def network(self) -> TransformerConfig:
        """Settings of the network that adapts."""
        return TransformerConfig(
            layers=self.layers,
            heads=self.heads,
            width=self.width,
            norm=self.norm,
            qk_norm=self.qk_norm,
            position_encoding="none",
            bidirectional=True,
        )

    def features(self, in_width: int, outputs: int | None) -> int:
        """Number of features of an input, in a token (input, label, whether it is a query)."""
        features = in_width - (outputs or 1) - 1
        if features < 1:
            raise ValueError(f"the {self.title} needs tokens that mark queries: layout masked")
        return features

    def activations(self, in_width: int) -> int:
        return 4 * self.width

    @property
    def passes(self) -> int:
        kept = 2 if self.method == "maml" else 0  # a step's forward and backward pass
        return 1 + kept * self.inner_steps

    def state_size(self, in_width: int, tokens: int, outputs: int | None = None) -> int:
        model = nnx.eval_shape(
            lambda: self.build(in_width, tokens, outputs=outputs, rngs=nnx.Rngs(0)).network
        )
        return parameter_count(model)

    def build(
        self, in_width: int, tokens: int, *, outputs: int | None = None, rngs: nnx.Rngs
    ) -> "AdaptedTransformer":
        return AdaptedTransformer(in_width, tokens, self, outputs=outputs, rngs=rngs)

    def flops_by_part(self, in_width: int, tokens: int, batch: int) -> dict[str, float]:
        # A gradient takes three times its function; with MAML a step is differentiated too.
        whole = self.network.flops_by_part(in_width, tokens, batch)
        factor = 3 if self.method == "maml" else 1
        steps = factor * self.inner_steps * sum(whole.values())
        return {"steps": steps, "queries": sum(whole.values())}


class AdaptedTransformer(Model):
    """Maps prompts of the layout masked to predictions, by a network that adapts to each prompt.

    From the initial weights `inner_steps` steps of gradient descent minimise the mean loss of the
    examples; the adapted network predicts. A token sees itself and the inputs of the examples, so
    that no prediction depends on other queries. Without examples the initial weights predict.

    With Reptile the gradient of the weights is not that of the loss: it is the sum over prompts of
    the initial minus the adapted weights, times the number of queries of the prompt. A trainer
    divides by the number of all queries, so the gradient is the mean over prompts if they have
    equal numbers of queries without weights of their own.

    Args:
      in_width: number of features of a token.
      tokens: number of tokens of a prompt, at most.
      config: settings of the model.
      outputs: number of outputs at each token; None for a scalar.
      rngs: `nnx.Rngs` with a `params` stream.
    """

    def __init__(
        self,
        in_width: int,
        tokens: int,
        config: AdaptedTransformerConfig,
        *,
        outputs: int | None = None,
        rngs: nnx.Rngs,
    ):
        if outputs is None and config.loss == "cross-entropy":
            raise ValueError("labels of this task are no classes: set model.loss to squared")
        self.config = config
        self.features = config.features(in_width, outputs)
        self.scalar = outputs is None
        self.network = Transformer(
            self.features, tokens, config.network, outputs=outputs, rngs=rngs
        )
        arrays = len(jax.tree.leaves(nnx.state(self.network)))
        rates = lambda: nnx.Param(jnp.full(arrays, jnp.log(config.inner_rate)))
        self.log_rates = nnx.data(rates() if config.learn_rates else None)

    def __call__(
        self, tokens: jax.Array, read: slice = slice(None), *, lengths: jax.Array | None = None
    ) -> jax.Array:
        """As `Model`; `lengths` is int `[B]`, the number of tokens in use, all if None."""
        config = self.config
        return self._predict(tokens, read, lengths, config.evaluation_steps or config.inner_steps)

    def training_outputs(
        self,
        tokens: jax.Array,
        read: slice = slice(None),
        step: jax.Array | int | None = None,
        **options: Any,
    ) -> jax.Array:
        lengths = options.get("lengths")
        return self._predict(tokens, read, lengths, self.config.inner_steps)[None]

    def _predict(
        self, tokens: jax.Array, read: slice, lengths: jax.Array | None, steps: int
    ) -> jax.Array:
        batch, count, _ = tokens.shape
        lengths = jnp.full(batch, count) if lengths is None else lengths
        x, y, asked = jnp.split(tokens, (self.features, tokens.shape[-1] - 1), axis=-1)
        query = asked[..., 0] > 0
        example = (jnp.arange(count)[None] < lengths[:, None]) & ~query
        graph, start = nnx.split(self.network)
        # Added so that under shard_map the weights vary over devices as the prompts do.
        nothing = jnp.zeros_like(tokens[0, 0, 0])
        start = jax.tree.map(lambda leaf: leaf + nothing, start)
        learn = partial(self._learn, graph, steps)
        if self.config.method == "reptile":
            learn = _reptile(learn)
        rates = self._rates(start)
        predict = jax.vmap(lambda *prompt: learn(start, rates, *prompt)[1])
        return predict(x, y if not self.scalar else y[..., 0], example, query)[:, read]

    def _rates(self, start: Any) -> Any:
        """The rate of each array of weights."""
        leaves, structure = jax.tree.flatten(start)
        if self.log_rates is None:
            return structure.unflatten([jnp.float32(self.config.inner_rate)] * len(leaves))
        return structure.unflatten(list(jnp.exp(self.log_rates[...])))

    def _learn(
        self,
        graph: Any,
        steps: int,
        start: Any,
        rates: Any,
        x: jax.Array,
        y: jax.Array,
        example: jax.Array,
        query: jax.Array,
    ) -> tuple[Any, jax.Array]:
        """The adapted weights, and predictions `[T, (outputs)]` at the tokens of a prompt."""
        seen = example[None] | jnp.eye(len(x), dtype=bool)

        def predict(weights: Any) -> jax.Array:
            # Activations of a step inside a gradient have no meaning outside.
            with installed(None):
                return nnx.merge(graph, weights)(x[None], mask=seen)[0]

        count = jnp.maximum(example.sum(), 1).astype(x.dtype)

        def loss(weights: Any) -> jax.Array:
            found = predict(weights)
            if self.config.loss == "cross-entropy":
                losses = optax.softmax_cross_entropy(found, y)
            else:
                losses = ((found - y) ** 2).reshape(len(x), -1).mean(axis=-1)
            return jnp.where(example, losses, 0).sum() / count

        def step(weights: Any, _: None) -> tuple[Any, None]:
            if self.config.method == "maml":
                slopes = jax.grad(loss)(weights)
            else:
                slopes = jax.grad(loss)(jax.lax.stop_gradient(weights))
            move = lambda leaf, rate, slope: leaf - rate * slope
            return jax.tree.map(move, weights, rates, slopes), None

        weights, _ = jax.lax.scan(step, start, length=steps)
        return weights, predict(weights)


def _reptile(learn: Any) -> Any:
    """`learn`, whose gradient by the initial weights is their way, times the number of queries."""

    @jax.custom_vjp
    def run(start: Any, *prompt: Any) -> Any:
        return learn(start, *prompt)

    def forward(start: Any, *prompt: Any) -> Any:
        adapted, predictions = learn(start, *prompt)
        queries = prompt[-1].sum().astype(jnp.float32)
        way = jax.tree.map(lambda leaf, other: queries * (leaf - other), start, adapted)
        return (adapted, predictions), way

    def backward(way: Any, _: Any) -> Any:
        return way, *[None] * 5

    run.defvjp(forward, backward)
    return run

"""Pure functions of a run's settings: initial variables, predictions and the loss."""

import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx

from ..layers.embedders import EMBEDDERS, Embedder
from ..layers.taps import Taps, installed
from ..models import Model, check_causal
from ..tasks import LAYOUTS, Classes, Episode
from ..tasks.labels import EmbeddedClasses
from .config import Config

Params = Any


class Variables(NamedTuple):
    """All variables of a model, each a nested dict of arrays."""

    params: Params  # float32, updated by the optimiser
    state: Any  # updated by the model in training, such as batch statistics; often {}
    keys: Any  # keys and counts of random layers, such as dropout; constant, often {}


class Network(nnx.Module):
    """An embedder of inputs and a table of label tokens, each if there is one, and a model."""

    def __init__(self, embedder: Embedder | None, model: Model, labels: nnx.Embed | None):
        self.model = model
        if embedder is not None:
            self.embedder = embedder
        if labels is not None:
            self.labels = labels

    def tokens_of(self, episodes: Episode) -> Episode:
        """A batch of episodes with embedded inputs and labels."""
        if embedder := getattr(self, "embedder", None):
            batch, points, *rest = episodes.x.shape
            features = embedder(episodes.x.reshape(batch * points, *rest))
            episodes = episodes._replace(x=features.reshape(batch, points, -1))
        if labels := getattr(self, "labels", None):
            episodes = episodes._replace(label_tokens=labels(episodes.y))
        return episodes


class Learner:
    """The model, task and layout of a config; all variables are passed as arguments.

    Args:
      config: the settings.

    Raises:
      ValueError: settings contradict each other, or a model claims to be causal and is not.
    """

    def __init__(self, config: Config):
        self.config = config
        self.family = config.task
        self.labels = config.task.label_kind
        self.layout = LAYOUTS[config.layout]
        self.tokens = self.layout.tokens(self.family.points)
        self._shown = self.labels  # the kind whose tokens the layout shows
        if config.model.embed_labels and isinstance(self.labels, Classes):
            self._shown = EmbeddedClasses(self.labels.number, config.model.embedding_width)
        abstract = nnx.eval_shape(lambda: self._network(jax.random.key(0)))
        self._graph, *self._abstract = _split(abstract)
        _, model = self._parts(abstract)
        make = lambda: self._model(_rngs(jax.random.key(0)))
        check_causal(config.model, model, make, self.width, self.tokens)

    @property
    def features(self) -> int:
        """Number of features of an input in the layout."""
        if self.config.model.embedder is not None:
            return self.config.model.embedding_width
        return math.prod(self.family.input_kind.shape)

    @property
    def width(self) -> int:
        """Number of features of a token."""
        return self.layout.width(self.features, self._shown)

    @property
    def has_state(self) -> bool:
        """Whether the model has state, such as batch statistics, that a batch updates."""
        return bool(jax.tree.leaves(nnx.to_pure_dict(self._abstract[1])))

    def _network(self, key: jax.Array) -> Network | Model:
        rngs = _rngs(key)
        name, embedder, labels = self.config.model.embedder, None, None
        if name is not None:
            embedder = EMBEDDERS[name](self.family.input_kind, self.features, rngs=rngs)
        model = self._model(rngs)
        if isinstance(self._shown, EmbeddedClasses):
            size = (self._shown.number, self._shown.features)
            labels = nnx.Embed(*size, embedding_init=nnx.initializers.normal(1.0), rngs=rngs)
        return model if embedder is None and labels is None else Network(embedder, model, labels)

    def _model(self, rngs: nnx.Rngs) -> Model:
        return self.config.model.build(
            self.width, self.tokens, outputs=self.labels.outputs, rngs=rngs
        )

    @property
    def name(self) -> str:
        """Name of the model in tables and figures."""
        return self.config.model.title

    def init(self, key: jax.Array) -> Variables:
        """Initial variables. The key is consumed."""
        _, *parts = _split(self._network(key))
        return Variables(*(jax.tree.map(jnp.asarray, nnx.to_pure_dict(part)) for part in parts))

    def model(self, variables: Variables | Params) -> Model:
        """The flax.nnx model with these variables, in evaluation mode, without its embedders."""
        return self._parts(self._merged(variables))[1]

    def _merged(self, variables: Variables | Params, training: bool = False) -> nnx.Module:
        if not isinstance(variables, Variables):
            variables = Variables(variables, {}, {})
        parts = jax.tree.map(lambda leaf: leaf, self._abstract)
        for part, values in zip(parts, variables):
            nnx.replace_by_pure_dict(part, values)
        merged = nnx.merge(self._graph, *parts)
        merged.train() if training else merged.eval()
        return merged

    @staticmethod
    def _parts(module: nnx.Module) -> tuple[Network | None, Model]:
        if isinstance(module, Network):
            return module, module.model
        assert isinstance(module, Model)
        return None, module

    def predict(self, variables: Variables | Params, episodes: Episode) -> jax.Array:
        """The predicted label of each point from the points before it.

        Args:
          variables: as from `init`; parameters alone if the model has no other variables.
          episodes: batch of episodes, leading axis B.

        Returns:
          float32 `[B, points, *prediction_shape]`, as defined by the family's label kind. Only
          predictions at points that `layout.scored` marks are made without seeing the label.

        Raises:
          ValueError: an array of the episodes does not have the shape that the task defines.
        """
        outputs = self._outputs(variables, episodes, self.layout.read)
        return self.labels.prediction(outputs)

    def predict_with(
        self, taps: Taps, variables: Variables | Params, episodes: Episode
    ) -> jax.Array:
        """`predict` with taps (`icl.layers.taps`) in the model, which runs at all tokens."""
        self._check_shapes(episodes)
        network, model = self._parts(self._merged(variables))
        tokens = self._encode(network, episodes)
        with installed(taps):
            outputs = model(tokens, slice(None), **self._counts(episodes))[:, self.layout.read]
        return self.labels.prediction(self._restricted(outputs, episodes))

    def query_outputs(self, variables: Variables | Params, episodes: Episode) -> jax.Array:
        """Outputs of the model at the last point, float32 `[B, outputs]`; errors as for `predict`.

        The last layer runs at that point alone. For `Classes` the outputs are logits.
        """
        return self._outputs(variables, episodes, self._last(episodes))[:, 0]

    def _outputs(self, variables: Variables | Params, episodes: Episode, read: slice) -> jax.Array:
        self._check_shapes(episodes)
        network, model = self._parts(self._merged(variables))
        outputs = model(self._encode(network, episodes), read, **self._counts(episodes))
        return self._restricted(outputs, episodes)

    def _last(self, episodes: Episode) -> slice:
        """The output position of the last point."""
        at = range(self.layout.tokens(episodes.queries.shape[1]))[self.layout.read][-1]
        return slice(at, at + 1)

    def encode(self, variables: Variables | Params, episodes: Episode) -> jax.Array:
        """The tokens of a batch of episodes, `[B, tokens, width]`; errors as for `predict`."""
        self._check_shapes(episodes)
        return self._encode(self._parts(self._merged(variables))[0], episodes)

    def _encode(self, network: Network | None, episodes: Episode) -> jax.Array:
        if network is not None:
            episodes = network.tokens_of(episodes)
        return jax.vmap(lambda episode: self.layout.encode(episode, self._shown))(episodes)

    def _counts(self, episodes: Episode) -> dict[str, jax.Array]:
        """The numbers of tokens and of examples of each prompt that the model asks for."""
        counts = {}
        if self.config.model.takes_lengths:
            counts["lengths"] = jax.vmap(self.layout.length)(episodes)
        if self.config.model.takes_examples:
            counts["examples"] = self._examples(episodes)
        return counts

    def _examples(self, episodes: Episode) -> jax.Array:
        """Number of examples that the last point of each prompt can see, int `[B]`."""
        return jax.vmap(self.layout.examples)(episodes)[:, -1].astype(jnp.int32)

    def _restricted(self, outputs: jax.Array, episodes: Episode) -> jax.Array:
        """Outputs `[B, positions, ...]` that allow only what the examples of a prompt allow."""
        shown = episodes.context & ~episodes.queries
        return jax.vmap(self.labels.restricted)(outputs, episodes.y, shown)

    def _check_shapes(self, episodes: Episode) -> None:
        prompts = jnp.shape(episodes.x)[:2]
        wanted = {"x": self.family.input_kind.shape, "y": self.labels.shape}
        wanted |= {"queries": (), "context": ()}
        if episodes.weights is not None:
            wanted["weights"] = ()
        if episodes.label_tokens is not None:
            wanted["label_tokens"] = (math.prod(self.family.input_kind.shape),)
        for name, rest in wanted.items():
            found = jnp.shape(getattr(episodes, name))
            if len(prompts) < 2 or found != (*prompts, *rest):
                raise ValueError(
                    f"{name} of the episodes must have the shape "
                    f"[{', '.join(['B', 'points', *map(str, rest)])}], with the B and points of x; "
                    f"got {found}, where x has {jnp.shape(episodes.x)}"
                )

    def loss_sum(
        self, variables: Variables | Params, episodes: Episode, step: jax.Array | int | None = None
    ) -> tuple[jax.Array, tuple[jax.Array, Any]]:
        """Sum of the training losses over the scored positions of a batch, each by its weight.

        Args:
          variables: as from `init`.
          episodes: batch of episodes, leading axis B.
          step: number of training steps made so far, if the model's outputs depend on it; None for
            the end of training.

        Returns:
          The sum; the weight of all scored positions, their number if they have no weights; and
          `Variables.state` after the batch.
        """
        self._check_shapes(episodes)
        module = self._merged(variables, training=True)
        network, model = self._parts(module)
        tokens, read = self._encode(network, episodes), self.layout.read
        y, scored = episodes.y, jax.vmap(self.layout.scored)(episodes)
        if self.family.only_last_is_query:
            y, scored, read = y[:, -1:], scored[:, -1:], self._last(episodes)
        outputs = model.training_outputs(tokens, read, step, **self._counts(episodes))
        loss = lambda outputs: self.labels.loss(self._restricted(outputs, episodes), y)
        # With one output, skip the mean.
        losses = loss(outputs[0]) if len(outputs) == 1 else jax.vmap(loss)(outputs).mean(axis=0)
        count = scored
        if episodes.weights is not None:
            count = jnp.where(scored, episodes.weights[:, -scored.shape[1] :], 0)
            losses = losses * count
        state = nnx.to_pure_dict(_split(module)[2])
        return jnp.where(scored, losses, 0).sum(), (count.sum(), state)


def _split(module: nnx.Module) -> tuple[nnx.GraphDef, nnx.State, nnx.State, nnx.State]:
    """The graph of a module, then its parameters, state and keys in the order of `Variables`."""
    graph, params, keys, state = nnx.split(module, nnx.Param, nnx.RngState, ...)
    return graph, params, state, keys


def _rngs(key: jax.Array) -> nnx.Rngs:
    """`nnx.Rngs(params=key, dropout=...)`, with which a model is built in a third of the time."""
    rngs: Any = nnx.Rngs()
    rngs.params = _Stream(key, tag="params")
    rngs.dropout = _Stream(jax.random.fold_in(key, 2**32 - 1), tag="dropout")
    return rngs


class _Stream(nnx.RngStream):
    """An `nnx.RngStream` whose counter is a NumPy number until a compiled program replaces it.

    Flax counts in JAX arrays, which takes most of the time of tracing a model.
    """

    def __init__(self, key: Any, *, tag: str):
        super().__init__(key, tag=tag)
        count: Any = np.zeros(jnp.shape(key), np.uint32)
        self.count.set_value(count)

    def __call__(self) -> jax.Array:
        count: Any = self.count.get_value()
        if not isinstance(count, np.ndarray) or count.ndim:
            return super().__call__()
        after: Any = np.asarray(count + 1, np.uint32)
        self.count.set_value(after)
        return jax.random.fold_in(self.key.get_value(), int(count))

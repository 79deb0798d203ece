"""A run's settings made into pure functions: initial parameters, predictions, loss."""

from typing import Any

import jax
import jax.numpy as jnp
from flax import nnx

from ..models import Model, check_causal
from ..tasks import LAYOUTS, Episode
from .config import Config

Params = Any


class Learner:
    """The model of a config, its task and its layout, without any state.

    Args:
      config: the settings.

    Raises:
      ValueError: settings that do not fit together, or a model that claims to be causal and is not.
    """

    def __init__(self, config: Config):
        self.config = config
        self.family = config.task
        self.layout = LAYOUTS[config.layout]
        self.tokens = self.layout.tokens(self.family.points)
        abstract = nnx.eval_shape(lambda: self._model(jax.random.key(0)))
        self._graph, self._abstract = nnx.split(abstract)
        check_causal(config.model, abstract, self.layout.width(self.family), self.tokens)

    def _model(self, key: jax.Array) -> Model:
        keys: Any = _ParamsKeys(key)
        return self.config.model.build(
            self.layout.width(self.family),
            self.tokens,
            outputs=self.family.outputs,
            rngs=keys,
        )

    @property
    def name(self) -> str:
        """What the model is called in tables and figures."""
        return self.config.model.title

    def init(self, key: jax.Array) -> Params:
        """Initial parameters, a nested dict of float32 arrays. The key is consumed."""
        return nnx.to_pure_dict(nnx.state(self._model(key), nnx.Param))

    def model(self, params: Params) -> Model:
        """The flax.nnx module with these parameters."""
        state = jax.tree.map(lambda leaf: leaf, self._abstract)
        nnx.replace_by_pure_dict(state, params)
        return nnx.merge(self._graph, state)

    def predict(self, params: Params, episodes: Episode) -> jax.Array:
        """The predicted label of each point from the points before it.

        Args:
          params: as from `init`.
          episodes: batch of episodes, leading axis B.

        Returns:
          float32 `[B, points]`, or `[B, points, outputs]` where labels are vectors. Only those
          that `layout.scored` marks are predictions made without sight of the label.

        Raises:
          ValueError: episodes whose arrays do not have the shapes of this task's.
        """
        tokens = self.encode(episodes)
        return self.model(params)(tokens, self.layout.read)

    def encode(self, episodes: Episode) -> jax.Array:
        """The tokens of a batch of episodes, `[B, tokens, width]`; errors as of `predict`."""
        dim, outputs = self.family.dim, self.family.outputs
        prompts = jnp.shape(episodes.x)[:2]
        wanted = {"x": (dim,), "y": () if outputs is None else (outputs,), "counts": ()}
        if episodes.label_tokens is not None:
            wanted["label_tokens"] = (dim,)
        for name, rest in wanted.items():
            found = jnp.shape(getattr(episodes, name))
            if len(prompts) < 2 or found != (*prompts, *rest):
                raise ValueError(
                    f"{name} of the episodes must have the shape "
                    f"[{', '.join(['B', 'points', *map(str, rest)])}], with the B and points of x; "
                    f"got {found}, where x has {jnp.shape(episodes.x)}"
                )
        return jax.vmap(self.layout.encode)(episodes)

    def loss_sum(
        self, params: Params, episodes: Episode, step: jax.Array | int | None = None
    ) -> tuple[jax.Array, jax.Array]:
        """Sum of the losses over the scored positions of a batch, and their number.

        Args:
          params: as from `init`.
          episodes: batch of episodes, leading axis B.
          step: training steps made so far, where the model's outputs depend on it; None for the
            end of training.
        """
        tokens = self.encode(episodes)
        outputs = self.model(params).training_outputs(tokens, self.layout.read, step)
        loss = lambda predictions: self.family.loss(predictions, episodes.y)
        # Of a single prediction the program is the plain one, without a mean of one.
        losses = loss(outputs[0]) if len(outputs) == 1 else jax.vmap(loss)(outputs).mean(axis=0)
        scored = jax.vmap(self.layout.scored)(episodes)
        return jnp.where(scored, losses, 0).sum(), scored.sum()


class _ParamsKeys:
    """The keys of `nnx.Rngs(params=key)`, counted in Python.

    Flax counts in arrays, which while tracing takes most of the time to make a model.
    """

    def __init__(self, key: jax.Array):
        self._key = key
        self._count = 0

    def params(self) -> jax.Array:
        self._count += 1
        return jax.random.fold_in(self._key, self._count - 1)

    __call__ = params

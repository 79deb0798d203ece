"""Fine-tuning of a learner's weights on the examples of each prompt, without a context.

The counterpart of learning in context in Brown et al. 2020 (arXiv 2005.14165, section 2): the
examples become training data, each a prompt of its own that asks for its label at once, and so does
the query.
"""

from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from ..evaluation.chunks import in_chunks
from ..tasks import Episode
from ..training.learner import Learner, Variables

RATES = (3e-4, 1e-3, 3e-3)  # of Adam
STEPS = (1, 3, 10, 30)
FEW = 8  # prompts of fewer examples are filled up to this number, so that they share a program


class Tuning(NamedTuple):
    """Learning rate and number of steps of Adam."""

    rate: float
    steps: int


class FineTuning:
    """Adam on a learner's weights, from its trained weights anew for each prompt.

    Args:
      learner: the learner.
      variables: its trained variables; parameters alone change.
    """

    def __init__(self, learner: Learner, variables: Variables):
        self._learner = learner
        self._variables = variables
        self._tuned = jax.jit(jax.vmap(self._of_prompt, in_axes=(None, None, 0, 0, 0, 0, 0)))

    def errors(self, prompts: "Shots", shots: int, rate: float) -> np.ndarray:
        """Errors `[prompts, STEPS]` at the queries, after each of those numbers of steps.

        Args:
          prompts: the prompts.
          shots: number of examples to train on, at least 1.
          rate: learning rate.
        """
        filled = max(shots, min(FEW, prompts.x.shape[1]))
        count = len(prompts.x)
        used = np.broadcast_to(np.arange(filled) < shots, (count, filled))
        tuned: Callable[..., Any] = lambda *arrays: self._tuned(
            self._variables, jnp.float32(rate), *arrays
        )
        predictions = in_chunks(
            tuned, prompts.x[:, :filled], prompts.y[:, :filled], used, prompts.x_query,
            prompts.y_query,
        )  # fmt: skip
        y = np.expand_dims(prompts.y_query, 1)
        return self._learner.labels.error(predictions.astype(np.float64), y).mean(axis=-1)

    def chosen(self, prompts: "Shots", shots: int) -> Tuning:
        """The rate and number of steps with the smallest mean error on prompts."""
        found = {rate: self.errors(prompts, shots, rate).mean(axis=0) for rate in RATES}
        _, rate, at = min(
            (means[i], rate, i) for rate, means in found.items() for i in range(len(STEPS))
        )
        return Tuning(rate, STEPS[at])

    def _of_prompt(
        self,
        variables: Variables,
        rate: jax.Array,
        x: jax.Array,
        y: jax.Array,
        used: jax.Array,
        x_query: jax.Array,
        y_query: jax.Array,
    ) -> jax.Array:
        """Predictions `[STEPS, queries, *prediction]` of one prompt."""
        optimizer = optax.adam(rate)
        weights = used.astype(jnp.float32)
        examples = alone(x, y)._replace(weights=(weights / weights.sum())[:, None])

        def loss(params: Any) -> jax.Array:
            return self._learner.loss_sum(variables._replace(params=params), examples)[0]

        def step(carry: Any, _: None) -> tuple[Any, jax.Array]:
            params, state = carry
            changes, state = optimizer.update(jax.grad(loss)(params), state, params)
            params = optax.apply_updates(params, changes)
            own = variables._replace(params=params)
            return (params, state), self._learner.predict(own, alone(x_query, y_query))[:, 0]

        start = variables.params, optimizer.init(variables.params)
        _, predictions = jax.lax.scan(step, start, length=STEPS[-1])
        return predictions[np.array(STEPS) - 1]


class Shots(NamedTuple):
    """Prompts of examples, and queries beside them, as NumPy arrays with leading axis `prompts`."""

    x: np.ndarray  # [prompts, examples, *input]
    y: np.ndarray  # [prompts, examples, *label]
    x_query: np.ndarray  # [prompts, queries, *input]
    y_query: np.ndarray  # [prompts, queries, *label]

    @classmethod
    def of(cls, episodes: Episode, queries: int) -> "Shots":
        """Shots whose queries are the last points of episodes."""
        x, y = np.asarray(episodes.x), np.asarray(episodes.y)
        return cls(x[:, :-queries], y[:, :-queries], x[:, -queries:], y[:, -queries:])

    def some(self, count: int) -> "Shots":
        """The first prompts."""
        return Shots(*(array[:count] for array in self))


def alone(x: jax.Array, y: jax.Array) -> Episode:
    """A batch of prompts of one point, its query, for points `[B, ...]`."""
    query = jnp.ones((len(x), 1), bool)
    return Episode(x[:, None], y[:, None], query, ~query)


def choose(tuning: FineTuning, prompts: Shots, shots: Sequence[int]) -> dict[int, Tuning]:
    """The best rate and number of steps for each number of examples above 0."""
    return {count: tuning.chosen(prompts, count) for count in shots if count}

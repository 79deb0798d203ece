"""Predictions for prompts of one's own: NumPy in, NumPy out."""

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..tasks import Episode, InputKind, LabelKind
from .learner import Learner, Params, Variables

CHUNK = 64  # prompts at once


class Predictor:
    """A learner with its variables, as a function of examples and queries.

    Args:
      learner: the model, its task and its layout.
      variables: as from `Learner.init`, or `Run.variables()[1]`.
    """

    def __init__(self, learner: Learner, variables: Variables | Params):
        self._learner = learner
        self._variables = variables
        self._programs: dict[int, tuple[int, Callable[..., jax.Array]]] = {}

    def __call__(self, x_context: Any, y_context: Any, x_query: Any) -> np.ndarray:
        """The predicted labels of queries, each from the examples of its prompt alone.

        A causal model is compiled at the first call only, whatever the number of prompts, examples
        and queries. A model that sees whole prompts is compiled for each number of examples.

        Args:
          x_context: inputs of the examples `[B, n, *input]`, or `[n, *input]` for one prompt; n is
            at most the number of points that the learner was trained with, less 1.
          y_context: labels of the examples `[B, n, *label]`, or `[n, *label]`.
          x_query: inputs to predict labels for, `[B, Q, *input]`, or `[Q, *input]`.

        Returns:
          float32 `[B, Q, *prediction]`, or `[Q, *prediction]`: values, log-odds of the sign 1, or
          probabilities of the classes, as the task's label kind says.

        Raises:
          ValueError: arrays of other shapes or kinds than the task's, more examples than the
            learner was trained with, or a number of examples that the model cannot take.
        """
        inputs, labels = self._learner.family.input_kind, self._learner.labels
        x_context = _checked("x_context", x_context, inputs)
        x_query = _checked("x_query", x_query, inputs)
        y_context = _checked("y_context", y_context, labels)
        kinds = ((x_context, inputs), (y_context, labels), (x_query, inputs))
        leading = {array.ndim - len(kind.shape) for array, kind in kinds}
        if len(leading) > 1:
            raise ValueError(
                "x_context, y_context and x_query must all have a leading axis of prompts, or none "
                f"of them; got shapes {x_context.shape}, {y_context.shape} and {x_query.shape}"
            )
        one = leading == {1}
        if one:
            x_context, y_context, x_query = x_context[None], y_context[None], x_query[None]
        prompts, examples = x_context.shape[:2]
        if y_context.shape[:2] != (prompts, examples) or len(x_query) != prompts:
            raise ValueError(
                f"prompts and examples must agree: x_context has {prompts} of {examples}, "
                f"y_context {y_context.shape[0]} of {y_context.shape[1]}, and x_query "
                f"{len(x_query)} prompts"
            )
        found = self._predicted(x_context, y_context, x_query)
        return found[0] if one else found

    def _predicted(self, x: np.ndarray, y: np.ndarray, asked: np.ndarray) -> np.ndarray:
        (prompts, examples), queries = x.shape[:2], asked.shape[1]
        points, program = self._program(examples)
        count = prompts * queries
        found = np.empty((count, *self._learner.labels.prediction_shape), np.float32)
        for first in range(0, count, CHUNK):
            # Rows beyond the last repeat it, so that every call has one shape.
            rows = np.minimum(np.arange(first, first + CHUNK), count - 1)
            prompt, query = np.divmod(rows, queries)
            inputs = np.zeros((CHUNK, points, *x.shape[2:]), x.dtype)
            inputs[:, :examples], inputs[:, examples] = x[prompt], asked[prompt, query]
            shown = np.zeros((CHUNK, points, *y.shape[2:]), y.dtype)
            shown[:, :examples] = y[prompt]
            values = program(self._variables, inputs, shown, np.int32(examples))
            found[first : first + CHUNK] = np.asarray(values)[: count - first]
        return found.reshape(prompts, queries, *found.shape[1:])

    def _program(self, examples: int) -> tuple[int, Callable[..., jax.Array]]:
        """Points of a prompt, and the compiled predictions for queries behind the examples."""
        points = self._learner.family.points
        if examples >= points:
            raise ValueError(
                f"the learner was trained on prompts of {points} points: it takes at most "
                f"{points - 1} examples and the query, got {examples} examples"
            )
        # Padding after the query would be seen by a model that is not causal.
        if not self._learner.config.model.causal:
            points = examples + 1
        if points not in self._programs:
            learner = self._learner_of(points)

            @jax.jit
            def program(variables, x, y, examples):
                position = jnp.broadcast_to(jnp.arange(points), x.shape[:2])
                episodes = Episode(x, y, position == examples, position < examples)
                return learner.predict(variables, episodes)[:, examples]

            self._programs[points] = points, program
        return self._programs[points]

    def _learner_of(self, points: int) -> Learner:
        learner = self._learner
        if points == learner.family.points:
            return learner
        try:
            task = dataclasses.replace(learner.family, points=points)
            other = Learner(dataclasses.replace(learner.config, task=task))
        except ValueError as error:
            raise ValueError(f"this model cannot take {points - 1} examples: {error}") from error
        shapes = lambda one: jax.tree.map(
            lambda leaf: leaf.shape, jax.eval_shape(one.init, jax.random.key(0))
        )
        if shapes(learner) != shapes(other):
            raise ValueError(
                f"this model takes exactly {learner.family.points - 1} examples, got {points - 1}"
            )
        return other


def _checked(name: str, array: Any, kind: InputKind | LabelKind) -> np.ndarray:
    """The array in the dtype of its kind; ValueError if it has another shape or other values."""
    array, shape = np.asarray(array), kind.shape
    leading = array.ndim - len(shape)
    if leading not in (1, 2) or array.shape[leading:] != shape:
        rest = "".join(f", {size}" for size in shape)
        raise ValueError(
            f"{name} must have the shape [B, n{rest}], or [n{rest}] for one prompt; got "
            f"{array.shape}"
        )
    try:
        kind.check(array)
    except ValueError as error:
        raise ValueError(f"{name}: {error}") from None
    return array.astype(kind.dtype)

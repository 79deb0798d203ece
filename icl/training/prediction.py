"""Predictions for a user's own prompts, with NumPy arrays in and out."""

import contextlib
import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..tasks import Episode, InputKind, LabelKind
from .learner import Learner, Params, Variables

CHUNK = 64  # number of prompts per call of the compiled program, at most
TOGETHER = 256  # number of queries of a prompt that are predicted in one pass, at most


class Predictor:
    """A trained learner as a function from examples and queries to predictions.

    Args:
      learner: the model, its task and its layout.
      variables: from `Learner.init` or `Run.variables()[1]`; parameters alone if there are no
        others.
    """

    def __init__(self, learner: Learner, variables: Variables | Params):
        self._learner = learner
        self._variables = variables
        self._programs: dict[int, Callable[..., jax.Array]] = {}

    def __call__(self, x_context: Any, y_context: Any, x_query: Any) -> np.ndarray:
        """Predicts the label of each query from the examples of its prompt.

        A causal model is compiled once, for any number of prompts, examples and queries. A model
        that takes numbers of examples predicts the queries of a prompt together, and is compiled
        once for any number of examples and queries, for each power of 2 of prompts. Any other model
        that is not causal is compiled once for each number of examples.

        Args:
          x_context: inputs of the examples `[B, n, *input]`, or `[n, *input]` for one prompt; n is
            at most `task.points - 1`, or `task.points - task.queries` if the model predicts the
            queries of a prompt together.
          y_context: labels of the examples `[B, n, *label]`, or `[n, *label]`.
          x_query: inputs to predict labels for, `[B, Q, *input]`, or `[Q, *input]`.

        Returns:
          float32 `[B, Q, *prediction]`, or `[Q, *prediction]`. The task's label kind defines a
          prediction: a value, the log-odds of the sign 1, or the probabilities of the classes.

        Raises:
          ValueError: an array has a shape or values that the task does not have, or the model
            cannot take this number of examples.
        """
        inputs, labels = self._learner.family.input_kind, self._learner.labels
        x_context = _checked("x_context", x_context, inputs)
        x_query = _checked("x_query", x_query, inputs)
        y_context = _checked("y_context", y_context, labels)
        kinds = ((x_context, inputs), (y_context, labels), (x_query, inputs))
        leading = {array.ndim - len(kind.shape) for array, kind in kinds}
        if len(leading) > 1:
            raise ValueError(
                "x_context, y_context and x_query must all have a leading axis of prompts, or all "
                f"have none; got shapes {x_context.shape}, {y_context.shape} and {x_query.shape}"
            )
        one = leading == {1}
        if one:
            x_context, y_context, x_query = x_context[None], y_context[None], x_query[None]
        prompts, examples = x_context.shape[:2]
        if y_context.shape[:2] != (prompts, examples) or len(x_query) != prompts:
            raise ValueError(
                f"prompts and examples must agree: x_context has {prompts} prompts of {examples} "
                f"examples, y_context {y_context.shape[0]} of {y_context.shape[1]}, and x_query "
                f"{len(x_query)} prompts"
            )
        together = self._learner.config.model.takes_examples
        predicted = self._predicted_together if together else self._predicted
        found = predicted(x_context, y_context, x_query)
        return found[0] if one else found

    def __getstate__(self) -> dict[str, Any]:
        """What a copy or a pickle holds: no compiled programs, which the copy compiles again."""
        kept = {name: value for name, value in self.__dict__.items() if name != "_together"}
        return kept | {"_programs": {}}

    @property
    def _most(self) -> int:
        """Largest number of examples of a prompt with several queries."""
        return self._learner.family.points - self._learner.family.hidden_queries

    def _predicted_together(self, x: np.ndarray, y: np.ndarray, asked: np.ndarray) -> np.ndarray:
        (prompts, examples), queries, most = x.shape[:2], asked.shape[1], self._most
        if examples > most:
            raise ValueError(
                f"the learner was trained on prompts of at most {most} examples, got {examples}"
            )
        at_once, program = self._together
        # Powers of 2, so that few sizes are compiled.
        chunk = min(CHUNK, 1 << (prompts - 1).bit_length()) if prompts else 1
        found = np.empty((prompts, queries, *self._learner.labels.prediction_shape), np.float32)
        missing = [(0, 0), (0, most - examples)]
        padded = [np.pad(a, missing + [(0, 0)] * (a.ndim - 2)) for a in (x, y)]
        for prompt in range(0, prompts, chunk):
            rows = np.minimum(np.arange(prompt, prompt + chunk), prompts - 1)
            for query in range(0, queries, at_once):
                chosen = np.minimum(np.arange(query, query + at_once), queries - 1)
                values = program(
                    self._variables,
                    *(a[rows] for a in padded),
                    asked[rows[:, None], chosen],
                    np.int32(examples),
                )
                part = found[prompt : prompt + chunk, query : query + at_once]
                part[...] = np.asarray(values)[: part.shape[0], : part.shape[1]]
        return found

    @functools.cached_property
    def _together(self) -> tuple[int, Callable[..., jax.Array]]:
        """Number of queries predicted in one pass, and the program that predicts them."""
        learner, most = self._learner, self._most
        with contextlib.suppress(ValueError):  # as a model with learned positions raises
            learner = self._learner_of(most + TOGETHER, queries=TOGETHER)
        at_once = learner.family.hidden_queries

        @jax.jit
        def program(variables, x, y, asked, examples):
            x = jnp.concatenate([x, asked], axis=1)
            y = jnp.pad(y, [(0, 0), (0, at_once)] + [(0, 0)] * (y.ndim - 2))
            position = jnp.broadcast_to(jnp.arange(x.shape[1]), x.shape[:2])
            episodes = Episode(x, y, position >= most, position < examples)
            return learner.predict(variables, episodes)[:, most:]

        return at_once, program

    def _predicted(self, x: np.ndarray, y: np.ndarray, asked: np.ndarray) -> np.ndarray:
        (prompts, examples), queries = x.shape[:2], asked.shape[1]
        points, program = self._program(examples)
        count = prompts * queries
        found = np.empty((count, *self._learner.labels.prediction_shape), np.float32)
        for first in range(0, count, CHUNK):
            # Repeat the last row to fill the chunk, so that all calls have equal shapes.
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
        """Number of points of a padded prompt, and the compiled program that predicts its query."""
        points = self._learner.family.points
        if examples >= points:
            raise ValueError(
                f"the learner was trained on prompts of {points} points: it takes at most "
                f"{points - 1} examples and the query, got {examples} examples"
            )
        # A model that is not causal would see padding after the query, so leave none.
        model = self._learner.config.model
        if not model.causal and not model.takes_lengths:
            points = examples + 1
        if points not in self._programs:
            learner = self._learner_of(points)

            @jax.jit
            def program(variables, x, y, examples):
                position = jnp.broadcast_to(jnp.arange(points), x.shape[:2])
                episodes = Episode(x, y, position == examples, position < examples)
                return learner.predict(variables, episodes)[:, examples]

            self._programs[points] = program
        return points, self._programs[points]

    def _learner_of(self, points: int, queries: int = 1) -> Learner:
        learner = self._learner
        if points == learner.family.points:
            return learner
        try:
            hidden = {"queries": queries} if learner.family.hidden_queries else {}
            task = dataclasses.replace(learner.family, points=points, **hidden)
            other = Learner(dataclasses.replace(learner.config, task=task))
        except ValueError as error:
            reason = str(error)
            if learner.family.only_last_is_query:  # its settings were fixed when it was trained
                reason = f"it takes exactly {learner.family.points - 1}"
            raise ValueError(f"this model cannot take {points - 1} examples: {reason}") from error
        shapes = lambda one: jax.tree.map(
            lambda leaf: leaf.shape, jax.eval_shape(one.init, jax.random.key(0))
        )
        if shapes(learner) != shapes(other):
            raise ValueError(
                f"this model takes exactly {learner.family.points - 1} examples, got {points - 1}"
            )
        return other


def _checked(name: str, array: Any, kind: InputKind | LabelKind) -> np.ndarray:
    """The array in the dtype of its kind; ValueError if its shape or values do not fit the kind."""
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

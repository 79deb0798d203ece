"""Predictions at given queries after every prefix of a prompt."""

from functools import partial
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..tasks import Episode, Interleaved
from ..training.learner import Learner, Variables


def predict_queries(
    learner: Learner, variables: Variables, episodes: Episode, queries: jax.Array
) -> jax.Array:
    """Predictions at queries[:, i] from the first i points of each prompt, for every i.

    Garg et al. 2022 (arXiv 2208.01066, section 4) query prompts at inputs other than the next point
    of the prompt; their public code runs the model once for each prefix. If the model takes a mask,
    this function needs only one pass: it appends the queries to the prompt. Query i has the
    position of point i, and sees the points before i and itself, but no other query. For other
    models it calls `predict_queries_one_by_one`.

    Args:
      learner: a learner with the layout interleaved, tagged, paired or shifted.
      variables: variables of the model, as from `learner.init`.
      episodes: batch of episodes with leading axis B.
      queries: inputs of the shape of `episodes.x`.

    Returns:
      float32 `[B, points, *prediction_shape]`. Differentiable; entry i depends on no query but
      queries[:, i].

    Raises:
      ValueError: the layout predicts only one query, or `queries` has another shape.
    """
    _check(learner, episodes, queries)
    model: Any = learner.model(variables)  # not every model takes positions and a mask
    if not getattr(model, "takes_mask", False):
        return predict_queries_one_by_one(learner, variables, episodes, queries)
    encode, read = partial(learner.encode, variables), learner.layout.read
    asked = encode(episodes._replace(x=queries))[:, read]
    tokens = jnp.concatenate([encode(episodes), asked], axis=1)
    positions, mask = _beside_the_prompt(learner.tokens, read)
    outputs = model(tokens, slice(learner.tokens, None), positions=positions, mask=mask)
    return learner.labels.prediction(outputs)


def predict_queries_one_by_one(
    learner: Learner, variables: Variables, episodes: Episode, queries: jax.Array
) -> jax.Array:
    """`predict_queries` for any causal model, with one pass of the model for each prefix.

    Arguments, result and errors are as for `predict_queries`. The gradient recomputes each pass, to
    save memory.
    """
    _check(learner, episodes, queries)

    @jax.checkpoint
    def one(index):
        query = jax.lax.dynamic_slice_in_dim(queries, index, 1, axis=1)
        x = jax.lax.dynamic_update_slice_in_dim(episodes.x, query, index, axis=1)
        predictions = learner.predict(variables, episodes._replace(x=x))
        return jax.lax.dynamic_index_in_dim(predictions, index, axis=1, keepdims=False)

    return jnp.moveaxis(jax.lax.map(one, jnp.arange(queries.shape[1])), 0, 1)


def _check(learner: Learner, episodes: Episode, queries: jax.Array) -> None:
    if not isinstance(learner.layout, Interleaved):
        raise ValueError(
            f"the layout {learner.config.layout} predicts only one point of a prompt; queries "
            "after every prefix need the layout interleaved, tagged, paired or shifted"
        )
    if queries.shape != episodes.x.shape:
        raise ValueError(
            f"queries must have the shape of the inputs of the prompts, {episodes.x.shape}; got "
            f"{queries.shape}"
        )


def _beside_the_prompt(tokens: int, read: slice) -> tuple[np.ndarray, np.ndarray]:
    """Positions `[T]` and mask `[T, T]` of a prompt followed by one token for each read one."""
    prompt = np.arange(tokens)
    positions = np.concatenate([prompt, prompt[read]])
    in_prompt = np.arange(len(positions)) < tokens
    earlier = in_prompt & (positions < positions[:, None])
    return positions, earlier | np.eye(len(positions), dtype=bool)

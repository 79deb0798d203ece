"""Predictions at queries of one's own after every prefix of a prompt."""

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
    """The prediction at queries[:, i] from the first i points of each prompt.

    Garg et al. 2022 (arXiv 2208.01066, section 4) ask for a query that is not the prompt's own
    next point, for which their public code runs the model once for each prefix. Where the model
    takes a mask this is one pass: the queries stand behind the prompt, each at the position of the
    point it replaces, and sees what that point would see, nothing of it and no other query. Else
    it is `predict_queries_one_by_one`.

    Args:
      learner: whose layout shows every prefix, that is an interleaved one.
      variables: as from `learner.init`.
      episodes: batch of episodes, leading axis B.
      queries: of the shape of `episodes.x`.

    Returns:
      float32 `[B, points, *prediction_shape]`. Differentiable; entry i depends on queries[:, i]
      alone among the queries.

    Raises:
      ValueError: a layout that predicts a single query, or queries of another shape.
    """
    _check(learner, episodes, queries)
    model: Any = learner.model(variables)  # only some take positions and a mask
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
    """`predict_queries` for any causal model: a pass for each prefix, one after the other.

    Arguments, result and errors are its. Gradients recompute each pass, for memory.
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
            f"the layout {learner.config.layout} predicts one point of a prompt; queries after "
            "every prefix need a learner with the layout interleaved"
        )
    if queries.shape != episodes.x.shape:
        raise ValueError(
            f"queries {queries.shape} must have the shape of the prompts' points, "
            f"{episodes.x.shape}"
        )


def _beside_the_prompt(tokens: int, read: slice) -> tuple[np.ndarray, np.ndarray]:
    """Positions `[T]` and mask `[T, T]` of a prompt's tokens and then one for each that is read."""
    prompt = np.arange(tokens)
    positions = np.concatenate([prompt, prompt[read]])
    in_prompt = np.arange(len(positions)) < tokens
    earlier = in_prompt & (positions < positions[:, None])
    return positions, earlier | np.eye(len(positions), dtype=bool)

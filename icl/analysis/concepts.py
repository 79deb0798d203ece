"""Prompts whose concepts are known, and how well a representation tells concepts apart.

Task decodability is a measure of Han et al. 2024 (arXiv 2412.12276, section 4).
"""

import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..tasks import LAYOUTS, Data, Episode, TaskFamily
from ..training.config import Config
from ..training.data import load_data
from ..training.learner import Learner
from ..training.run import Run
from .instrument import Instrument

NEIGHBOURS = 10
MOST_DRAWS = 1000  # tasks drawn for each prompt that is wanted


def has_concepts(config: Config) -> bool:
    """Whether tasks have concepts, the model a residual stream, and prompts an example."""
    shows_labels = LAYOUTS[config.layout].label_token(0) is not None
    if len(config.task.concepts) < 2 or config.task.points < 2 or not shows_labels:
        return False
    learner = Learner(config)
    variables = jax.eval_shape(learner.init, jax.random.key(0))
    return "residual" in Instrument.of(learner, variables).layers()


def check_concepts(run: Run) -> None:
    """Raises ValueError for a run that has no concepts to decode."""
    if not has_concepts(run.config):
        raise ValueError(
            f"{run.path} has no concepts to decode: its task, {run.config.task}, needs two or more "
            "names in `concepts`, and its model a residual stream"
        )


def last_example(family: TaskFamily) -> int:
    """The last point that is an example for a query, from 0."""
    return family.points - max(family.hidden_queries, 1) - 1


def label_token(config: Config, point: int) -> int:
    """The first token that shows the label of a point; points and tokens are numbered from 0."""
    token = LAYOUTS[config.layout].label_token(point)
    assert token is not None
    return token


def prompts_of_concepts(family: TaskFamily, key: jax.Array, prompts: int) -> Episode:
    """Draws equally many prompts of each concept, at full difficulty.

    Tasks are drawn until there are enough of each concept, so that tasks of a concept have the
    distribution of the family. They are of `family.evaluation`.

    Args:
      family: a family with concepts.
      key: it is consumed.
      prompts: number of prompts of each concept.

    Returns:
      Episodes `[concepts * prompts, ...]`, those of the first concept first.

    Raises:
      ValueError: too few of many tasks had some concept.
    """
    family, data = family.evaluation, load_data(family.evaluation)
    names = family.concepts
    task_key, episode_key = jax.random.split(key)
    batch, chosen = 2 * len(names) * prompts, [np.zeros(0, int)] * len(names)
    for number in range(MOST_DRAWS // 2):
        drawn = np.asarray(_concepts(family, batch, task_key, number, data))
        chosen = [
            np.append(known, number * batch + np.flatnonzero(drawn == concept))[:prompts]
            for concept, known in enumerate(chosen)
        ]
        if all(len(known) == prompts for known in chosen):
            indices = jnp.asarray(np.concatenate(chosen))
            return _episodes(family, task_key, episode_key, indices, data)
    rare = min(range(len(names)), key=lambda concept: len(chosen[concept]))
    raise ValueError(
        f"only {len(chosen[rare])} of {MOST_DRAWS // 2 * batch} tasks have the concept "
        f"{names[rare]!r}: ask for fewer prompts, or leave the concept out of the family"
    )


@functools.partial(jax.jit, static_argnums=(0, 1))
def _concepts(
    family: TaskFamily, count: int, key: jax.Array, number: int | jax.Array, data: Data
) -> jax.Array:
    """The concepts of the tasks of a batch, int `[count]`."""
    index = jnp.asarray(number) * count + jnp.arange(count)
    return jax.vmap(lambda i: family.concept(_task(family, key, i, data)))(index)


@functools.partial(jax.jit, static_argnums=0)
def _episodes(
    family: TaskFamily, task_key: jax.Array, key: jax.Array, indices: jax.Array, data: Data
) -> Episode:
    def episode(index: jax.Array) -> Episode:
        task = _task(family, task_key, index, data)
        return family.sample_episode(jax.random.fold_in(key, index), task, family.full, data)

    return jax.vmap(episode)(indices)


def _task(family: TaskFamily, key: jax.Array, index: jax.Array, data: Data) -> Any:
    return family.sample_task(jax.random.fold_in(key, index), family.full, data)


def decoded(
    representations: np.ndarray, labels: np.ndarray, neighbours: int = NEIGHBOURS
) -> np.ndarray:
    """Concepts by a majority of the nearest other representations, int `[N]`.

    Args:
      representations: `[N, features]`.
      labels: concept of each, int `[N]`.
      neighbours: number of neighbours, by Euclidean distance; at most N - 1 are used. A tie of
        concepts goes to the one whose neighbours are nearer.
    """
    vectors = np.asarray(representations, np.float64)
    vectors = vectors - vectors.mean(axis=0)
    squares = (vectors**2).sum(axis=1)
    distance = squares[:, None] + squares[None] - 2 * vectors @ vectors.T
    np.fill_diagonal(distance, np.inf)
    count = min(neighbours, len(vectors) - 1)
    nearest = np.argsort(distance, axis=1, kind="stable")[:, :count]
    # Nearer votes count a little more; all the extras together are below one vote.
    votes = 1 + np.arange(count, 0, -1) / (count + 1) ** 2
    one_hot = np.eye(labels.max() + 1)[labels[nearest]]
    return (one_hot * votes[None, :, None]).sum(axis=1).argmax(axis=1)


def decodability(
    representations: np.ndarray, labels: np.ndarray, neighbours: int = NEIGHBOURS
) -> np.ndarray:
    """Task decodability of each concept: the share of its representations that are decoded.

    Each representation is left out of its own neighbours. 1 if concepts are apart; 1 / concepts at
    random if all have equally many. Arguments are those of `decoded`; float64 `[concepts]`.
    """
    right = decoded(representations, labels, neighbours) == labels
    return np.array([right[labels == concept].mean() for concept in range(labels.max() + 1)])


def best_layer(scores: np.ndarray) -> int:
    """The first layer with the highest score; not the input of the first layer, if there is more.

    Args:
      scores: `[L]`; entry 0 is the input of the first layer.
    """
    return int(np.argmax(scores[1:])) + 1 if len(scores) > 1 else 0


def principal_plane(representations: np.ndarray) -> np.ndarray:
    """The two principal components of representations `[N, features]`: `[N, 2]`."""
    vectors = np.asarray(representations, np.float64)
    vectors = vectors - vectors.mean(axis=0)
    left, sizes, _ = np.linalg.svd(vectors, full_matrices=False)
    plane = left[:, :2] * sizes[:2]
    return np.pad(plane, ((0, 0), (0, 2 - plane.shape[1])))

"""Batches of episodes, with fresh tasks or tasks from a finite pool.

Prompt i of a batch depends only on the key of the batch and on i. Its bits therefore do not depend
on how the batch is split over gradient accumulation steps or devices.
"""

from typing import Any

import jax

from .base import Data, Difficulty, Episode, TaskFamily

MAX_POOL_SIZE = 2**31 - 1


def pool_task(
    family: TaskFamily, pool_key: jax.Array, index: jax.Array | int, data: Data = None
) -> Any:
    """Task `index` of a pool, drawn anew from its index, so that a pool takes no memory."""
    return family.sample_task(jax.random.fold_in(pool_key, index), family.full, data)


def sample_prompt(
    family: TaskFamily,
    key: jax.Array,
    difficulty: Difficulty,
    pool_key: jax.Array | None = None,
    pool_size: int | jax.Array | None = None,
    pool_prompts: bool = False,
    data: Data = None,
) -> Episode:
    """An episode of a fresh task, or of a uniform task of a pool. The key is consumed.

    With `pool_prompts` the pool holds whole prompts: each task of it has fixed points.
    """
    task_key, episode_key = jax.random.split(key)
    if pool_size is None or pool_key is None:
        task = family.sample_task(task_key, difficulty, data)
    else:
        index = jax.random.randint(task_key, (), 0, pool_size)
        task = pool_task(family, pool_key, index, data)
        if pool_prompts:
            # Differs from the key of every task of the pool.
            episode_key = jax.random.fold_in(jax.random.fold_in(pool_key, MAX_POOL_SIZE), index)
    return family.sample_episode(episode_key, task, difficulty, data)


def sample_batch(
    family: TaskFamily,
    key: jax.Array,
    indices: jax.Array,
    difficulty: Difficulty,
    pool_key: jax.Array | None = None,
    pool_size: int | jax.Array | None = None,
    pool_prompts: bool = False,
    data: Data = None,
) -> Episode:
    """Draws the prompts with the given indices of a batch.

    Args:
      family: distribution of the tasks.
      key: the key of the batch; it is consumed.
      indices: int `[B]`, indices of the prompts to draw.
      difficulty: number of coordinates and points in use.
      pool_key, pool_size: key that defines a pool of tasks, and its number of tasks, at most
        2^31 - 1; fresh tasks if None.
      pool_prompts: whether the pool holds whole prompts, that is tasks with fixed points.
      data: the result of `family.load_data`, on the device.

    Returns:
      An `Episode` with a leading axis B.
    """
    draw = lambda i: sample_prompt(
        family, jax.random.fold_in(key, i), difficulty, pool_key, pool_size, pool_prompts, data
    )
    return jax.vmap(draw)(indices)

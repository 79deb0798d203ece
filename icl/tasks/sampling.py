"""Batches of episodes, of fresh tasks or of a finite pool.

Prompt i of a batch depends on the batch's key and on i alone, so it is the same bits
however the batch is split over gradient accumulation steps or devices.
"""

from typing import Any

import jax

from .base import Data, Difficulty, Episode, TaskFamily

MAX_POOL_SIZE = 2**31 - 1


def pool_task(
    family: TaskFamily, pool_key: jax.Array, index: jax.Array | int, data: Data = None
) -> Any:
    """Task `index` of a pool: it is drawn again from its index, so a pool takes no memory."""
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
    """An episode of a fresh task, or of a uniform one of `pool_size`. The key is consumed.

    With `pool_prompts` the pool is one of whole prompts: a task comes with its points.
    """
    task_key, episode_key = jax.random.split(key)
    if pool_size is None or pool_key is None:
        task = family.sample_task(task_key, difficulty, data)
    else:
        index = jax.random.randint(task_key, (), 0, pool_size)
        task = pool_task(family, pool_key, index, data)
        if pool_prompts:
            # Another key than the task's own.
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
    """The prompts of a batch with the given indices.

    Args:
      family: where tasks come from.
      key: the batch's key; it is consumed.
      indices: int `[B]`, which prompts of the batch to draw.
      difficulty: coordinates and points in use.
      pool_key, pool_size: draw tasks from a pool of `pool_size`, at most 2^31 - 1, that
        `pool_key` defines; fresh tasks when None.
      pool_prompts: the pool is one of whole prompts, tasks with their points.
      data: what `family.load_data` returned, on the device.

    Returns:
      An `Episode` with a leading axis B.
    """
    draw = lambda i: sample_prompt(
        family, jax.random.fold_in(key, i), difficulty, pool_key, pool_size, pool_prompts, data
    )
    return jax.vmap(draw)(indices)

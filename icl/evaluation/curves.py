"""Errors of a run and of classical estimators at each number of in-context examples."""

import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from ..report import open_run
from ..tasks import Data, Episode, TaskFamily, sample_batch
from ..tasks.draws import stream
from ..training.data import load_data
from ..training.learner import Learner
from ..training.run import Run
from .chunks import CHUNK, in_chunks
from .comparators import (
    Comparator,
    comparators,
    last_alone,
    last_point,
    one_query_at_a_time,
)
from .result import Curve, Evaluation


def evaluate(
    run: Run | str | Path, *, prompts: int = 1280, resamples: int = 1000, seed: int = 0
) -> Evaluation:
    """Evaluates a run's newest checkpoint, and writes `eval.json` and `eval.png` in its folder.

    Prompts have fresh tasks at full difficulty, even if the run was trained on a pool or under a
    curriculum. Errors are relative to the labels as drawn, including noise. The default numbers of
    prompts and resamples are those of Garg et al.'s public code. Comparators that fit a model to
    every prompt and position are run on only some of them (`icl.evaluation.comparators`).

    Args:
      run: the run or its folder.
      prompts: number of prompts.
      resamples: number of bootstrap resamples for the interval from 5th to 95th percentile.
      seed: seed of prompts and resamples.

    Raises:
      RunError: the folder has no run, or the run has no checkpoint.
      ValueError: fewer than one prompt or resample.
    """
    run, learner = open_run(run, prompts=prompts, resamples=resamples)
    step, variables = run.variables()
    prompt_key, resample_key = _keys(seed)
    episodes = draw_prompts(learner.family, prompt_key, prompts)
    predict = jax.jit(learner.predict)
    own = Comparator((learner.name,), lambda e: predict(variables, e), double=False)
    others, reference = comparators(learner.family.evaluation)
    names, errors, costs = [], [], {}
    if queries := learner.family.hidden_queries:
        others = [one_query_at_a_time(other, queries) for other in others]
    if learner.family.only_last_is_query:
        own, *others = (last_alone(one) for one in (own, *others))
    for comparator in (own, *others):
        predictions, milliseconds = predictions_of(comparator, episodes)
        for name, prediction in zip(comparator.names, predictions, strict=True):
            names.append(name)
            errors.append(errors_of(learner, prediction, episodes))
            costs[name] = milliseconds / len(comparator.names)
    examples, stacked = by_examples(learner, np.stack(errors, axis=1), episodes)
    low, high = bootstrap(resample_key, stacked, resamples)
    mean = mean_of_finite(stacked)
    curves = {name: Curve(mean[i], low[i], high[i]) for i, name in enumerate(names)}
    result = Evaluation(
        examples, curves, reference, step, prompts, run.path, costs, learner.labels.error_name
    )
    return result.written()


def predictions_of(comparator: Comparator, episodes: Episode) -> tuple[np.ndarray, float]:
    """Predictions `[names, prompts, ...]`, NaN if not computed, and milliseconds a prompt."""
    asked = min(len(episodes.y), comparator.prompts or len(episodes.y))
    some = jax.tree.map(lambda a: a[:asked], episodes)
    one = len(comparator.names) == 1
    # Prompts are the leading axis, as `in_chunks` needs.
    predict = lambda e: (
        comparator.predict(e)[:, None] if one else jnp.moveaxis(comparator.predict(e), 0, 1)
    )
    with jax.enable_x64(comparator.double):
        dtype = np.float64 if comparator.double else np.float32
        if not comparator.on_host:
            predict = jax.jit(predict)
            in_chunks(predict, jax.tree.map(lambda a: a[:CHUNK], some), dtype=dtype)
        started = time.perf_counter()
        found = in_chunks(predict, some, dtype=dtype)
        seconds = time.perf_counter() - started
    found = np.moveaxis(np.asarray(found, np.float64), 1, 0)
    missing = [(0, 0), (0, len(episodes.y) - asked), *[(0, 0)] * (found.ndim - 2)]
    return np.pad(found, missing, constant_values=np.nan), 1e3 * seconds / asked


def errors_of(learner: Learner, predictions: np.ndarray, episodes: Episode) -> np.ndarray:
    """Errors `[prompts, ..., points]` of predictions `[prompts, ..., points, *prediction_shape]`.

    The error is NaN at points that are not scored. Predictions may be of the last point alone.
    """
    y, scored = np.asarray(episodes.y), _scored(learner, episodes)
    missing = y.shape[1] - predictions.shape[-1 - len(learner.labels.prediction_shape)]
    y, scored = y[:, missing:], scored[:, missing:]
    y = y.astype(np.float64) if np.issubdtype(y.dtype, np.floating) else y
    # Axes between prompts and points index several learners or estimators.
    several = predictions.ndim - 2 - len(learner.labels.prediction_shape)
    y, scored = (np.expand_dims(a, tuple(range(1, 1 + several))) for a in (y, scored))
    errors = learner.labels.error(predictions.astype(np.float64), y)
    errors = np.where(scored, errors, np.nan)
    return np.pad(errors, [(0, 0)] * (errors.ndim - 1) + [(missing, 0)], constant_values=np.nan)


def by_examples(
    learner: Learner, errors: np.ndarray, episodes: Episode
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of examples, int `[E]`, and errors `[..., E]` of errors `[..., points]`.

    Errors of a prompt's points with equal numbers of examples are averaged. The error is NaN if a
    prompt has no point with that number.
    """
    numbers = np.asarray(jax.vmap(learner.layout.examples)(episodes))
    scored = _scored(learner, episodes)
    examples = np.unique(numbers[scored])
    points = np.flatnonzero(scored.any(axis=0))
    if (numbers == numbers[:1]).all() and len(examples) == len(points):
        return examples, errors[..., points]
    axes = tuple(range(1, errors.ndim - 1))  # of several learners or estimators
    columns = [
        np.where(np.expand_dims(scored & (numbers == number), axes), errors, np.nan)
        for number in examples
    ]
    means = [mean_of_finite(np.moveaxis(column, -1, 0)) for column in columns]
    return examples, np.stack(means, axis=-1)


def mean_of_finite(errors: np.ndarray) -> np.ndarray:
    """Mean of the finite entries over the first axis; NaN if there are none."""
    finite = np.isfinite(errors)
    total, count = np.where(finite, errors, 0).sum(axis=0), finite.sum(axis=0)
    return np.where(count > 0, total / np.maximum(count, 1), np.nan)


def learner_errors(
    learner: Learner,
    predict: Callable[[Any, Episode], jax.Array],
    variables: Any,
    prompts: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Errors of one or more learners on the prompts of `evaluate`, without comparators.

    Args:
      learner: the learner with the task and layout to use.
      predict: maps variables and episodes to predictions `[B, ..., points, *prediction_shape]`.
      variables: the first argument of `predict`.
      prompts: number of prompts.
      seed: seed of the prompts.

    Returns:
      Numbers of in-context examples, int `[E]`, and errors `[prompts, ..., E]`, NaN at points that
      are not scored.
    """
    episodes = draw_prompts(learner.family, _keys(seed)[0], prompts)
    if learner.family.only_last_is_query:
        whole, axis = predict, -1 - len(learner.labels.prediction_shape)
        predict = lambda variables, e: last_point(whole(variables, e), axis)
    predictions = in_chunks(partial(jax.jit(predict), variables), episodes)
    return by_examples(learner, errors_of(learner, predictions, episodes), episodes)


def _keys(seed: int) -> jax.Array:
    """Keys of the prompts and of the resamples of an evaluation, `[2]`."""
    return jax.random.split(stream("evaluation", seed))


def _scored(learner: Learner, episodes: Episode) -> np.ndarray:
    """Whether a point is predicted without sight of its label, bool `[prompts, points]`."""
    return np.asarray(jax.vmap(learner.layout.scored)(episodes))


def draw_prompts(family: TaskFamily, key: jax.Array, prompts: int) -> Episode:
    """Draws prompts of fresh tasks at full difficulty, `[prompts, ...]`. The key is consumed.

    They are of `family.evaluation`.
    """
    return draw_of(family.evaluation, key, prompts)


def draw_of(
    family: TaskFamily,
    key: jax.Array,
    prompts: int,
    tasks_key: jax.Array | None = None,
    pool_size: int | None = None,
) -> Episode:
    """Draws prompts of a family at full difficulty, of fresh tasks or of a pool's.

    Args:
      family: the family.
      key: it is consumed.
      prompts: number of prompts.
      tasks_key, pool_size: key and number of tasks of the pool; None for fresh tasks.

    Returns:
      An `Episode` `[prompts, ...]`.
    """
    data = load_data(family)
    return _drawn(family, prompts, key, tasks_key, pool_size and jnp.int32(pool_size), data)


@partial(jax.jit, static_argnums=(0, 1))
def _drawn(
    family: TaskFamily,
    prompts: int,
    key: jax.Array,
    tasks_key: jax.Array | None,
    pool_size: jax.Array | None,
    data: Data,
) -> Episode:
    draw = lambda index: sample_batch(
        family, key, index, family.full, tasks_key, pool_size, data=data
    )
    index = jnp.arange(prompts)
    if data is None or prompts <= CHUNK:
        return draw(index)
    # In chunks, since tasks of images are large matrices; the last chunk may be larger than needed.
    chunks = -(-prompts // CHUNK)
    index = jnp.arange(chunks * CHUNK).reshape(chunks, CHUNK)
    parts = jax.lax.map(draw, index)
    return jax.tree.map(lambda a: a.reshape(-1, *a.shape[2:])[:prompts], parts)


def bootstrap(
    key: jax.Array, errors: np.ndarray, resamples: int, level: float = 0.9
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of the mean over prompts.

    Args:
      key: random key; it is consumed.
      errors: `[prompts, ...]`. All entries share the resamples. NaN entries are left out.
      resamples: number of resamples of the prompts, each with replacement.
      level: probability inside the interval.

    Returns:
      Lower and upper ends, each `[...]`.
    """
    finite = np.isfinite(errors)
    # Errors relative to their mean, so that float32 sums stay accurate at every scale.
    centre = mean_of_finite(errors)
    scale = np.where(centre > 0, centre, 1)
    relative = jnp.asarray(np.where(finite, errors, 0) / scale, jnp.float32)
    finite = jnp.asarray(finite, jnp.float32)
    means = np.asarray(_resampled(key, relative, finite, resamples), np.float64) * scale
    # A resample may have no finite errors; an entry with none in any resample is NaN.
    known = np.where(np.isfinite(means).any(axis=0), means, 0)
    tail = 50 * (1 - level)
    ends = (np.nanpercentile(known, q, axis=0) for q in (tail, 100 - tail))
    low, high = (np.where(np.isfinite(centre), end, np.nan) for end in ends)
    return low, high


@partial(jax.jit, static_argnums=3)
def _resampled(key: jax.Array, errors: jax.Array, finite: jax.Array, resamples: int) -> jax.Array:
    """Means over resampled prompts `[resamples, ...]` of the finite errors `[prompts, ...]`."""
    count = len(errors)

    def mean(key: jax.Array) -> jax.Array:
        drawn = jax.random.randint(key, (count,), 0, count)
        weights = jnp.zeros(count).at[drawn].add(1 / count)
        total = partial(jnp.tensordot, weights, axes=1, precision="highest")
        return total(errors) / total(finite)

    return jax.lax.map(mean, jax.random.split(key, resamples))

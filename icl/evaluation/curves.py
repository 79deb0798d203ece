"""Error at every number of in-context examples, of a run and of classical estimators."""

from collections.abc import Callable
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from ..tasks import Episode, LinearRegression, TaskFamily, sample_batch
from ..training.learner import Learner, Params
from ..training.run import Run
from . import baselines
from .figures import evaluation_figure
from .result import Curve, Evaluation

# Evaluation draws from another stream than training, whatever the two seeds.
EVALUATION_STREAM = 0x6576616C
CHUNK = 128


def estimators(family: TaskFamily) -> tuple[dict[str, baselines.Baseline], str | None]:
    """The comparators of a family by name, and the optimal one's, or None where none is."""
    optimal, penalty = None, 1.0
    if isinstance(family, LinearRegression):
        optimal = "ridge" if family.noise else "least squares"
        penalty = family.noise**2 or penalty
    chosen: dict[str, baselines.Baseline] = {
        "least squares": baselines.least_squares,
        "ridge": partial(baselines.ridge, penalty=penalty),
        "averaging": baselines.averaging,
        "3-nearest neighbours": baselines.nearest_neighbours,
        "zero": baselines.zero,
    }
    return chosen, optimal


def evaluate(
    run: Run | str | Path, *, prompts: int = 1280, resamples: int = 1000, seed: int = 0
) -> Evaluation:
    """Evaluates a run's newest checkpoint, and writes `eval.json` and `eval.png` in its folder.

    Prompts are of fresh tasks at full difficulty, also for a run trained on a pool or under a
    curriculum; errors are against the labels as drawn, noise included. The numbers of prompts
    and resamples are those of Garg et al.'s public code.

    Args:
      run: the run or its folder.
      prompts: number of prompts.
      resamples: bootstrap resamples for the 5th to 95th percentile.
      seed: seed of prompts and resamples.

    Raises:
      RunError: no run there, or it has no checkpoint.
      ValueError: fewer than one prompt or resample.
    """
    if prompts < 1 or resamples < 1:
        raise ValueError(f"prompts ({prompts}) and resamples ({resamples}) must be at least 1")
    run = run if isinstance(run, Run) else Run.open(run)
    learner = Learner(run.config)
    step, params = run.params()
    prompt_key, resample_key = _keys(seed)
    episodes = draw_prompts(learner.family, prompt_key, prompts)
    scored = _scored(learner, episodes)
    predict = jax.jit(learner.predict)
    predictions = {"transformer": _in_chunks(partial(predict, params), episodes, np.float32)}
    chosen, reference = estimators(learner.family)
    with jax.enable_x64(True):
        for name, estimator in chosen.items():
            apply = jax.jit(lambda e, estimator=estimator: estimator(e.x, e.y))
            predictions[name] = _in_chunks(apply, episodes, np.float64)
    labels = np.asarray(episodes.y, np.float64)
    stacked = np.stack(list(predictions.values()), axis=1).astype(np.float64)
    errors = (stacked - labels[:, None]) ** 2 / learner.family.error_scale
    errors = errors[..., scored]
    low, high = bootstrap(resample_key, errors, resamples)
    mean = errors.mean(axis=0)
    curves = {name: Curve(mean[i], low[i], high[i]) for i, name in enumerate(predictions)}
    result = Evaluation(np.flatnonzero(scored), curves, reference, step, prompts, run.path)
    result.save()
    evaluation_figure(result, run.path / "eval.png")
    return result


def learner_errors(
    learner: Learner,
    predict: Callable[[Params, Episode], jax.Array],
    params: Params,
    prompts: int,
    seed: int,
) -> tuple[np.ndarray, np.ndarray]:
    """Errors of learners alone on the prompts of `evaluate`, without any comparator.

    Args:
      learner: whose task and layout it is.
      predict: from parameters and episodes to predictions `[B, ..., points]`.
      params: what `predict` takes.
      prompts: number of prompts.
      seed: seed of the prompts.

    Returns:
      Numbers of in-context examples, int `[E]`, and normalised errors, `[prompts, ..., E]`.
    """
    episodes = draw_prompts(learner.family, _keys(seed)[0], prompts)
    scored = _scored(learner, episodes)
    predictions = _in_chunks(partial(jax.jit(predict), params), episodes, np.float32)
    labels = np.asarray(episodes.y, np.float64)
    labels = labels.reshape(len(labels), *[1] * (predictions.ndim - 2), -1)
    errors = (predictions.astype(np.float64) - labels) ** 2 / learner.family.error_scale
    return np.flatnonzero(scored), errors[..., scored]


def _keys(seed: int) -> jax.Array:
    """The keys of an evaluation's prompts and resamples, `[2]`."""
    return jax.random.split(jax.random.fold_in(jax.random.key(seed), EVALUATION_STREAM))


def _scored(learner: Learner, episodes: Episode) -> np.ndarray:
    """Which positions are predicted without sight of the label, bool `[points]`."""
    return np.asarray(jax.vmap(learner.layout.scored)(episodes)[0])


def draw_prompts(family: TaskFamily, key: jax.Array, prompts: int) -> Episode:
    """Prompts of fresh tasks at full difficulty, `[prompts, ...]`. The key is consumed."""
    draw = jax.jit(lambda key: sample_batch(family, key, jnp.arange(prompts), family.full))
    return draw(key)


def bootstrap(
    key: jax.Array, errors: np.ndarray, resamples: int, level: float = 0.9
) -> tuple[np.ndarray, np.ndarray]:
    """Percentile interval of the mean over prompts.

    Args:
      key: it is consumed.
      errors: `[prompts, ...]`; every entry sees the same resamples.
      resamples: number of resamples of the prompts, drawn with replacement.
      level: probability inside the interval.

    Returns:
      Lower and upper ends, each `[...]`.
    """
    count = len(errors)

    @jax.jit
    def resampled_mean(key, errors):
        drawn = jax.random.randint(key, (count,), 0, count)
        weights = jnp.zeros(count).at[drawn].add(1 / count)
        return jnp.tensordot(weights, errors, axes=1, precision="highest")

    # Relative to the mean, so that float32 sums of large and small errors keep their digits.
    centre = errors.mean(axis=0)
    scale = np.where(centre > 0, centre, 1)
    keys = jax.random.split(key, resamples)
    relative = jnp.asarray(errors / scale, jnp.float32)
    means = np.asarray(jax.lax.map(lambda k: resampled_mean(k, relative), keys), np.float64) * scale
    tail = 50 * (1 - level)
    return np.percentile(means, tail, axis=0), np.percentile(means, 100 - tail, axis=0)


def _in_chunks(function, episodes: Episode, dtype) -> np.ndarray:
    """Applies a function of episodes to so many prompts at a time, to bound memory."""
    cast = lambda a: a if a.dtype == bool else a.astype(dtype)
    arrays = jax.tree.map(lambda a: cast(np.asarray(a)), episodes)
    count = len(arrays.y)
    size = min(CHUNK, count)
    results = []
    for first in range(0, count, size):
        # The last chunk starts early rather than have a shape of its own to compile.
        start = min(first, count - size)
        rows = slice(start, start + size)
        part = Episode(*(jnp.asarray(array[rows]) for array in arrays))
        results.append(np.asarray(function(part))[first - start :])
    return np.concatenate(results)

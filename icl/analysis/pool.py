"""Whether a learner trained on a pool of tasks learned the pool or the distribution behind it.

Raventós, Paul, Chen & Ganguli 2023 (arXiv 2306.15063, sections 2 and 3): its predictions are
compared with two optimal ones: ridge regression for tasks w ~ N(0, I), and the discrete minimum
mean square error estimator (dMMSE) for tasks drawn uniformly from the pool.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from ..evaluation.baselines import ridge
from ..report import Result, at_least_one, open_run, show_number
from ..tasks import LinearRegression, TaskFamily, pool_task, sample_batch, sample_prompt
from ..tasks.draws import stream
from ..training.config import Config
from ..training.learner import Learner, Params
from ..training.population import group_by_program, shared_config
from ..training.run import Run
from ..training.step import pool_key

PROMPTS_AT_ONCE = 256
PREDICTORS = ("learner", "ridge", "dMMSE")
PAIRS = (("learner", "ridge"), ("learner", "dMMSE"), ("ridge", "dMMSE"))
TASKS = {"fresh": "fresh tasks", "pool": "the pool's tasks"}


def discrete_mmse(
    family: LinearRegression,
    x: jax.Array,
    y: jax.Array,
    tasks_key: jax.Array,
    pool_size: int | jax.Array,
    tasks_at_once: int | None = None,
) -> jax.Array:
    """The optimal prediction of y_i for tasks of a pool, from the i points before it.

    The prediction is w.x_i with w = sum_m w_m p_m / sum_m p_m and p_m = exp(-|y - X w_m|^2 /
    (2 noise^2)) over those points; for i = 0, w is the mean of the pool (Raventós et al. 2023,
    section 2.2). Tasks are recomputed from their indices, `tasks_at_once` at a time, so memory does
    not grow with the pool.

    Args:
      family: the family of the tasks; its noise is a standard deviation in units of y.
      x: inputs `[B, P, dim]`.
      y: labels `[B, P]`.
      tasks_key: the key of the pool, from `icl.training.step.pool_key`.
      pool_size: number of tasks in the pool; may be traced, so that one program serves all sizes.
      tasks_at_once: number of tasks recomputed at once; None for a number that suits the backend.

    Returns:
      Predictions `[B, P]`, float32.

    Raises:
      ValueError: the family is not linear regression with noise and without renormalised labels.
    """
    _check_family(family)
    size = tasks_at_once or (1024 if jax.default_backend() == "cpu" else 8192)
    dot = lambda a, b: jnp.matmul(a, b, precision=jax.lax.Precision.HIGHEST)
    points = (x.swapaxes(0, 1), y.swapaxes(0, 1))

    def add_tasks(chunk: jax.Array, sums: tuple[jax.Array, ...]) -> tuple[jax.Array, ...]:
        index = chunk * size + jnp.arange(size)
        tasks = jax.vmap(lambda i: pool_task(family, tasks_key, i))(index).T

        def add_point(log_weight: jax.Array, at: tuple[Any, Any]):
            (x, y), (highest, total, weighted) = at
            labels = dot(x, tasks)
            peak = jnp.maximum(highest, log_weight.max(axis=-1))
            weight = jnp.exp(log_weight - peak[:, None])
            old = jnp.exp(highest - peak)
            total = old * total + weight.sum(axis=-1)
            weighted = old * weighted + (weight * labels).sum(axis=-1)
            log_weight -= ((y[:, None] - labels) / family.noise) ** 2 / 2
            return log_weight, (peak, total, weighted)

        # Every chunk begins inside the pool, so that no maximum is over an empty set.
        prior = jnp.where(index < pool_size, 0.0, -jnp.inf)
        prior = jnp.broadcast_to(prior, (len(x), size))
        return jax.lax.scan(add_point, prior, (points, sums))[1]

    nothing = jnp.zeros(points[1].shape)
    chunks = (pool_size + size - 1) // size
    start = (nothing - jnp.inf, nothing, nothing)
    _, total, weighted = jax.lax.fori_loop(0, chunks, add_tasks, start)
    return (weighted / total).swapaxes(0, 1)


def has_pool(config: Config) -> bool:
    """Whether runs with these settings have a pool of tasks with known estimators."""
    pooled = config.training.pool_size is not None and config.training.pooled == "tasks"
    return pooled and _known(config.task) and not config.task.hidden_queries


def _known(family: TaskFamily) -> bool:
    if not isinstance(family, LinearRegression) or family.renormalize or family.random_labels:
        return False
    return family.noise > 0


def _check_family(family: TaskFamily) -> None:
    if not _known(family):
        raise ValueError(
            "the estimators of a pool are known for linear regression with noise above 0 and "
            f"labels that are neither renormalised nor random, not for {family}"
        )


@dataclasses.dataclass(frozen=True)
class PoolEvaluation(Result):
    """A learner trained on a pool, ridge regression and dMMSE, on fresh tasks and on the pool's.

    Attributes:
      examples: numbers of in-context examples, int `[E]`.
      error: by kind of tasks ("fresh" and "pool", the paper's latent and pretrain) and by name
        ("learner", "ridge", "dMMSE"): mean squared error against the labels as drawn, noise
        included, divided by dim, float64 `[E]`.
      difference: by kind of tasks and by a pair of names such as "learner, ridge": the mean squared
        difference of their predictions, divided by dim, `[E]` (the paper's delta, by position).
      pool_size: number of tasks in the pool.
      step: the training step of the parameters.
      prompts: number of prompts of each kind that were averaged.
      seed: the seed of the prompts.
      path: the run's folder.
    """

    examples: np.ndarray
    error: dict[str, dict[str, np.ndarray]]
    difference: dict[str, dict[str, np.ndarray]]
    pool_size: int
    step: int
    prompts: int
    seed: int
    path: Path

    file = "pool"

    def table(self) -> Table:
        """Errors and differences, averaged over the numbers of examples."""
        result = Table(
            title=f"a pool of {self.pool_size} tasks ({self.path}, step {self.step})",
            caption=(
                f"mean over {self.prompts} prompts and 0 to {self.examples[-1]} examples, divided "
                "by the dimension"
            ),
        )
        result.add_column("")
        for kind in TASKS.values():
            result.add_column(kind, justify="right", no_wrap=True)
        row = lambda parts, key: [show_number(parts[kind][key].mean()) for kind in TASKS]
        for name in PREDICTORS:
            result.add_row(f"squared error of {name}", *row(self.error, name))
        for pair in map(", ".join, PAIRS):
            result.add_row(f"squared difference of {pair}", *row(self.difference, pair))
        return result


def evaluate_pool(run: Run | str | Path, *, prompts: int = 2048, seed: int = 0) -> PoolEvaluation:
    """Compares a run's newest checkpoint with ridge and dMMSE; writes `pool.json`.

    The paper's public code draws 1,048,576 sequences of each kind every 1,000 steps, so that its
    evaluation costs 2.7 times its training. The default here gives errors to a few per cent.

    Args:
      run: the run or its folder, trained on a pool of linear regression tasks with noise.
      prompts: number of prompts of fresh tasks, and of prompts of the pool's tasks.
      seed: seed of the prompts.

    Raises:
      RunError: no run there, or it has no checkpoint.
      ValueError: fewer than one prompt, or a run without a pool or of another task.
    """
    run, _ = open_run(run, prompts=prompts)
    [result] = evaluate_pools([run], prompts=prompts, seed=seed)
    return result


def evaluate_pools(
    runs: Sequence[Run], *, prompts: int = 2048, seed: int = 0
) -> Iterator[PoolEvaluation]:
    """`evaluate_pool` of many runs in turn; runs that share a program are compiled once."""
    at_least_one(prompts=prompts)
    sizes = [_pool_size(run) for run in runs]
    configs = [run.config for run in runs]
    programs: dict[int, Any] = {}
    for group in group_by_program(configs):
        shared = shared_config(configs[group[0]])
        compare = jax.jit(_comparison(shared, prompts))
        programs |= dict.fromkeys(group, (compare, _scored(Learner(shared))))
    for index, (run, size) in enumerate(zip(runs, sizes)):
        step, params = run.variables()
        prompt_key = stream("pool", seed)
        compare, scored = programs[index]
        sums = compare(params, pool_key(run.config), jnp.int32(size), prompt_key)
        error, difference = jax.tree.map(partial(_mean, scored, prompts), sums)
        result = PoolEvaluation(
            np.flatnonzero(scored), error, difference, size, step, prompts, seed, run.path
        )
        yield result.written()


def _comparison(config: Config, prompts: int):
    """A function from parameters, pool and prompts' key to sums over prompts, each `[points]`."""
    learner = Learner(config)
    family = learner.family
    assert isinstance(family, LinearRegression)
    size = min(PROMPTS_AT_ONCE, prompts)

    def compare(params: Params, tasks_key: jax.Array, pool_size: jax.Array, prompt_key: jax.Array):
        fresh_key, key = jax.random.split(prompt_key)
        kinds = {"fresh": (fresh_key, None, None), "pool": (key, tasks_key, pool_size)}

        def sums_of(first: jax.Array):
            index = first + jnp.arange(size)
            drawn = [
                sample_batch(family, own_key, index, family.full, *own)
                for own_key, *own in kinds.values()
            ]
            # In one batch, since two eigendecompositions at once can deadlock on a CPU.
            episodes = jax.tree.map(lambda *parts: jnp.concatenate(parts), *drawn)
            x, y = episodes.x, episodes.y
            predictions = {
                "learner": learner.predict(params, episodes),
                "ridge": ridge(x, y, (family.noise / family.task_scale) ** 2),
                "dMMSE": discrete_mmse(family, x, y, tasks_key, pool_size),
            }
            # The last batch may have more prompts than are left.
            counted = (index < prompts).astype(jnp.float32)[None, :, None] / family.dim
            squares = lambda a, b: (counted * (a - b).reshape(2, size, -1) ** 2).sum(axis=1)
            errors = {name: squares(predictions[name], y) for name in PREDICTORS}
            pairs = {f"{a}, {b}": squares(predictions[a], predictions[b]) for a, b in PAIRS}
            by_kind = lambda sums, n: {name: both[n] for name, both in sums.items()}
            return {k: (by_kind(errors, n), by_kind(pairs, n)) for n, k in enumerate(kinds)}

        def add(sums, first):
            return jax.tree.map(jnp.add, sums, sums_of(first)), None

        zero = jnp.zeros(family.points)
        empty = dict.fromkeys(PREDICTORS, zero), dict.fromkeys(map(", ".join, PAIRS), zero)
        zeros = dict.fromkeys(kinds, empty)
        sums, _ = jax.lax.scan(add, zeros, jnp.arange(0, prompts, size))
        return tuple({kind: sums[kind][part] for kind in kinds} for part in range(2))

    return compare


def _scored(learner: Learner) -> np.ndarray:
    """Positions whose prediction does not see their label, bool `[points]`."""
    family = learner.family
    return np.asarray(learner.layout.scored(sample_prompt(family, jax.random.key(0), family.full)))


def _pool_size(run: Run) -> int:
    """Number of tasks in a run's pool; ValueError if it has no pool with known estimators."""
    _check_family(run.config.task)
    size = run.config.training.pool_size
    if size is None:
        raise ValueError(f"{run.path} was trained on fresh tasks; it has no pool")
    if run.config.training.pooled != "tasks":
        raise ValueError(f"{run.path} was trained on a pool of prompts, not of tasks")
    return size


def _mean(scored: np.ndarray, prompts: int, sums: jax.Array) -> np.ndarray:
    return np.asarray(sums, np.float64)[scored] / prompts

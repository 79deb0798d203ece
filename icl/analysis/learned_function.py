"""The function that a learner infers from a prompt (Garg et al. 2022, arXiv 2208.01066, figure 3).

Its predictions along a line through the origin, and the cosine of its gradient with w.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from ..evaluation import baselines
from ..evaluation.chunks import in_chunks
from ..evaluation.queries import predict_queries
from ..report import (
    OWN,
    WIDTH,
    Result,
    comparator_look,
    legend_of_panel,
    look,
    open_run,
    show_number,
    spread,
)
from ..tasks import Episode, FunctionFamily, LinearRegression, SparseLinearRegression
from ..tasks.draws import stream
from ..training.config import Config
from ..training.run import Run
from .descent import predicts_every_prefix

NORMS = np.linspace(-2, 2, 17)  # of queries, in units of sqrt(dim), the size of a training input
MAX_COLUMNS = 5  # of the table


@dataclasses.dataclass(frozen=True)
class LearnedFunction(Result):
    """A learner's predictions along a line, and the direction of its gradient.

    Attributes:
      norms: signed lengths s of the queries s v, float `[S]`; each prompt has one v, uniform on the
        unit sphere.
      example: by "truth", "learner" and "least squares", the labels of one prompt's queries after
        all of its examples, `[S]`.
      error: by "learner" and "least squares", the mean squared error at each norm divided by the
        mean squared label at that norm, `[E, S]`; NaN at s = 0.
      cosine: by "w" and "projected w", the mean cosine of the gradient of the prediction at the
        prompt's next input with w, and with w's projection on the span of the examples, `[E]`;
        NaN if it is undefined.
      step: the training step of the parameters.
      prompts: number of prompts that were averaged.
      path: the run's folder.

    E is the number of points: 0, 1, 2, ... examples.
    """

    norms: np.ndarray
    example: dict[str, np.ndarray]
    error: dict[str, np.ndarray]
    cosine: dict[str, np.ndarray]
    step: int
    prompts: int
    path: Path

    file = "function"

    def table(self) -> Table:
        """Error at several norms and cosines of the gradient, by number of examples."""
        count = len(self.cosine["w"])
        shown = spread(count, MAX_COLUMNS)
        result = Table(
            title=f"the learned function after k examples ({self.path}, step {self.step})",
            caption=(
                "squared error / mean squared label along a random direction, at lengths in units "
                f"of a training input's; cosines of the gradient; {self.prompts} prompts"
            ),
        )
        result.add_column("k", no_wrap=True)
        for k in shown:
            result.add_column(str(k), justify="right", no_wrap=True)
        unit = self.norms.max() / NORMS.max()
        for length in (0.5, 1.0, 1.5, 2.0):
            at = np.isclose(np.abs(self.norms), length * unit)
            for who, error in self.error.items():
                numbers = (show_number(v) for v in error[:, at].mean(axis=1)[shown])
                style = None if who == "learner" else "dim"
                result.add_row(f"error at {length}, {who}", *numbers, style=style)
        for which, cosine in self.cosine.items():
            numbers = ("" if np.isnan(v) else f"{v:.3f}" for v in cosine[shown])
            result.add_row(f"cosine with {which}", *numbers)
        return result

    def figure(self, plt: Any) -> Any:
        """Predictions along a line in one prompt; the gradient's cosines by number of examples."""
        # The truth is wide, so that it shows behind curves that agree with it.
        styles: dict[str, dict[str, Any]] = {
            "truth": dict(color="0.8", linewidth=4),
            "learner": OWN,
            "least squares": comparator_look(0) | dict(zorder=3),
        }
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.5), layout="constrained")
        for who, values in self.example.items():
            left.plot(self.norms, values, label=who, **styles[who])
        left.set(xlabel="signed length of the query", ylabel="prediction")
        left.set_title(f"one prompt, {len(self.cosine['w']) - 1} examples")
        for index, (which, values) in enumerate(self.cosine.items()):
            right.plot(np.arange(len(values)), values, label=f"with {which}", **look(index))
        right.set(ylim=(-0.05, 1.05), xlabel="in-context examples", ylabel="cosine of the gradient")
        right.locator_params(axis="x", integer=True)
        right.set_title(f"gradient of {self.path.name}")
        legend_of_panel(left, right)
        return figure


def is_linear(config: Config) -> bool:
    """Whether runs with these settings learn linear functions of normal inputs."""
    task = config.task
    if not isinstance(task, LinearRegression) or not predicts_every_prefix(config):
        return False
    known = type(task) in (LinearRegression, SparseLinearRegression) and not task.random_labels
    return known and (task.inputs, task.input_scale) == ("normal", 1.0)


def learned_function(
    run: Run | str | Path, *, prompts: int = 1280, seed: int = 0
) -> LearnedFunction:
    """Measures the function that a run's newest checkpoint infers from linear prompts.

    Writes `function.json` and `function.png` in its folder.

    Args:
      run: the run or its folder.
      prompts: number of prompts.
      seed: seed of the prompts and directions.

    Returns:
      A `LearnedFunction`.

    Raises:
      RunError: no run there, or it has no checkpoint.
      ValueError: fewer than one prompt, a family other than (sparse) linear regression, or the
        concatenated layout.
    """
    run, learner = open_run(run, prompts=prompts)
    family = run.config.task
    if type(family) not in (LinearRegression, SparseLinearRegression):
        raise ValueError(
            f"the learned function is compared with a linear function; {type(family).__name__} has "
            "none"
        )
    assert isinstance(family, LinearRegression)
    step, params = run.variables()
    drawn = draw_lines(family, stream("function", seed), prompts)
    tasks, episodes, directions = jax.tree.map(np.asarray, drawn)
    norms = NORMS * family.dim**0.5
    # Slopes w.v along v.
    slopes = (tasks.astype(np.float64) * directions[:, 0]).sum(axis=-1)
    slopes *= float(family.label_factor(family.dim))

    ask = jax.jit(lambda params, *given: predict_queries(learner, params, *given))
    along = lambda s: in_chunks(lambda e, v: ask(params, e, s * v), episodes, directions)
    ours = np.stack([along(s) for s in norms.astype(np.float32)], axis=-1).astype(np.float64)
    with jax.enable_x64(True):
        fit = jax.jit(baselines.least_squares)
        slope = in_chunks(fit, episodes.x, episodes.y, directions, dtype=np.float64)
    predictions = {"learner": ours, "least squares": slope[..., None] * norms}

    truth = (slopes[:, None] * norms)[:, None]
    size = norms**2 * family.label_kind.scale / family.dim
    size = np.where(norms == 0, np.nan, size)
    error = {who: ((p - truth) ** 2).mean(axis=0) / size for who, p in predictions.items()}
    example = {"truth": truth[0, 0]} | {who: p[0, -1] for who, p in predictions.items()}

    predict = lambda e, q: predict_queries(learner, params, e, q)
    gradient = jax.jit(lambda e, q: query_gradients(predict, e, q))
    cosines = in_chunks(lambda w, e: gradient_cosines(gradient(e, e.x), w, e.x), tasks, episodes)
    cosine = {
        name: _mean(values.astype(np.float64))
        for name, values in zip(("w", "projected w"), cosines)
    }
    return LearnedFunction(norms, example, error, cosine, step, prompts, run.path).written()


def draw_lines(
    family: FunctionFamily, key: jax.Array, prompts: int
) -> tuple[jax.Array, Episode, jax.Array]:
    """Fresh tasks w `[prompts, dim]`, an episode of each, and a unit vector at every point of it.

    The unit vector is uniform on the sphere and equal at all points of a prompt:
    `[prompts, points, dim]`. The key is consumed.
    """

    def draw(key):
        task_key, episode_key, direction_key = jax.random.split(key, 3)
        task = family.sample_task(task_key, family.full)
        direction = jax.random.normal(direction_key, (family.dim,))
        direction = jnp.tile(direction / jnp.linalg.norm(direction), (family.points, 1))
        return task, family.sample_episode(episode_key, task, family.full), direction

    return jax.jit(lambda key: jax.vmap(draw)(jax.random.split(key, prompts)))(key)


def query_gradients(predict: Any, episodes: Episode, queries: jax.Array) -> jax.Array:
    """The gradient of each prediction with respect to its query, `[B, points, dim]`.

    `predict(episodes, queries)` is like `predict_queries`. A query changes only its own prediction,
    so one backward pass of the sum gives all gradients.
    """
    return jax.grad(lambda queries: predict(episodes, queries).sum())(queries)


@jax.jit
def gradient_cosines(
    gradients: jax.Array, w: jax.Array, x: jax.Array
) -> tuple[jax.Array, jax.Array]:
    """Cosines `[B, P]` of gradients with w, and with w's projection on the points before each.

    Args:
      gradients: `[B, P, D]`.
      w: `[B, D]`.
      x: points `[B, P, D]`.

    Returns:
      Both cosines, NaN if a vector is 0.
    """
    points, dim = x.shape[1:]
    with jax.default_matmul_precision("highest"):
        # The first i columns of Q span the first i points.
        basis = jnp.linalg.qr(jnp.swapaxes(x[:, :dim], 1, 2))[0]
        along = jnp.einsum("bdi,bd->bi", basis, w)
        parts = basis * along[:, None]
    spans = jnp.cumsum(jnp.swapaxes(parts, 1, 2), axis=1)
    spans = jnp.pad(spans, ((0, 0), (1, 0), (0, 0)))
    spans = jnp.pad(spans, ((0, 0), (0, max(points - dim - 1, 0)), (0, 0)), mode="edge")
    return _cosine(gradients, w[:, None]), _cosine(gradients, spans[:, :points])


def _cosine(a: jax.Array, b: jax.Array) -> jax.Array:
    return (a * b).sum(axis=-1) / (jnp.linalg.norm(a, axis=-1) * jnp.linalg.norm(b, axis=-1))


def _mean(cosines: np.ndarray) -> np.ndarray:
    """Mean over prompts without NaN; NaN if all are NaN."""
    there = ~np.isnan(cosines)
    count = there.sum(axis=0)
    return np.where(count, np.where(there, cosines, 0).sum(axis=0) / np.maximum(count, 1), np.nan)

"""The preconditioners that attention learns, and descent with known preconditioners.

Ahn et al. 2023, "Transformers learn to implement preconditioned gradient descent for in-context
learning" (arXiv 2306.00297, section 6). The loss of `PreconditionedAttention` on
`WhitenedRegression` has critical points at which query matrices are multiples of minus the inverse
covariance of the inputs, and value matrices are multiples of the identity (theorems 3 and 4).
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from ..evaluation.curves import draw_prompts
from ..models import PreconditionedConfig
from ..report import WIDTH, Result, legend_of_figure, look, open_run
from ..tasks import Episode, WhitenedRegression
from ..tasks.draws import stream
from ..training.config import Config
from ..training.learner import Params
from ..training.run import Run, RunError

RATES = np.geomspace(1e-3, 1e1, 400)  # neighbours are 2% apart


@dataclasses.dataclass(frozen=True)
class Preconditioning(Result):
    """Matrices of a run of L layers in d dimensions, and their distances to the identity.

    The value matrix of the last layer changes no prediction, so there are K = L - 1 value matrices,
    or K = 0 if the model does not transform its inputs.

    Attributes:
      query: (U D)^T Q (U D) of each layer at the last checkpoint, `[L, d, d]`.
      values: U^T P U of each layer, `[K, d, d]`.
      steps: training steps of the checkpoints, ascending, int `[S]`.
      query_distance: `distance_to_identity` of the query matrices at those steps, `[S, L]`.
      values_distance: `distance_to_identity` of the value matrices at those steps, `[S, K]`.
      path: the run's folder.
    """

    query: np.ndarray
    values: np.ndarray
    steps: np.ndarray
    query_distance: np.ndarray
    values_distance: np.ndarray
    path: Path

    file = "preconditioning"

    @property
    def step(self) -> int:
        """The training step of the matrices."""
        return int(self.steps[-1])

    def table(self) -> Table:
        """A row a layer."""
        result = Table(
            title=f"learned preconditioners ({self.path}, step {self.step})",
            caption=(
                "multiple: tr M / d; distance: |M - (tr M / d) I| / |M|, 0 for a multiple of the "
                "identity; Q as (U D)^T Q (U D), in whitened inputs"
            ),
        )
        for name in ("layer", "Q: multiple", "distance", "P: multiple", "distance"):
            result.add_column(name, justify="right")
        for layer, query in enumerate(self.query):
            cells = [_multiple(query), f"{self.query_distance[-1, layer]:.3f}", "–", "–"]
            if layer < len(self.values):
                cells[2:] = (
                    _multiple(self.values[layer]),
                    f"{self.values_distance[-1, layer]:.3f}",
                )
            result.add_row(str(layer + 1), *cells)
        return result

    def figure(self, plt: Any) -> Any:
        """Heat maps of each layer's matrices, queries above, and their distances by step.

        A row has one colour scale.
        """
        rows = {
            "$(UD)^T Q\\, UD$": (self.query, self.query_distance),
            "$U^T P\\, U$": (self.values, self.values_distance),
        }
        rows = {name: row for name, row in rows.items() if len(row[0])}
        layers = len(self.query)
        figure, axes = plt.subplots(
            len(rows), layers + 1, figsize=(WIDTH, 1.7 * len(rows) + 0.4), layout="constrained",
            squeeze=False, width_ratios=[1.0] * layers + [1.5],
        )  # fmt: skip
        for row, (name, (matrices, distances)) in zip(axes, rows.items()):
            limit = float(np.abs(matrices).max()) or 1.0  # one for all layers
            for axis in row[len(matrices) : -1]:
                axis.set_axis_off()
            for layer, (axis, matrix) in enumerate(zip(row, matrices)):
                drawn = axis.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
                axis.set(xticks=[], yticks=[], title=f"layer {layer + 1}")
                axis.grid(False)
            row[0].set_ylabel(name)
            figure.colorbar(drawn, ax=list(row[:-1]), shrink=0.8, aspect=15)
            for layer in range(len(matrices)):
                line = look(layer) | dict(label=f"layer {layer + 1}")
                row[-1].plot(self.steps, distances[:, layer], **line)
            row[-1].set(ylim=(0, 1.03), xlabel="training step", ylabel="distance\nto identity")
            row[-1].locator_params(axis="x", nbins=3)
        figure.suptitle(f"preconditioners of {self.path.name}, step {self.step}")
        legend_of_figure(figure)
        return figure


def has_preconditioners(config: Config) -> bool:
    """Whether runs with these settings learn preconditioners."""
    known = isinstance(config.model, PreconditionedConfig)
    return known and isinstance(config.task, WhitenedRegression)


def preconditioning(run: Run | str | Path) -> Preconditioning:
    """Reads the matrices of all checkpoints; writes `preconditioning.json` and `.png`.

    Args:
      run: the run or its folder.

    Returns:
      A `Preconditioning`, which rich prints as a table.

    Raises:
      RunError: no run there, or it has no checkpoint.
      ValueError: the run is not of preconditioned attention on whitened regression.
    """
    run, _ = open_run(run)
    if not has_preconditioners(run.config):
        raise ValueError(
            f"{run.path} has no preconditioners: only the model preconditioned_attention on the "
            "task whitened_regression has them"
        )
    assert isinstance(run.config.task, WhitenedRegression)
    found = {
        step: in_eigenbasis(run.config.task, read.params) for step, read in run.variables_by_step()
    }
    if not found:
        raise RunError(f"{run.path} has no checkpoint yet; train it first")
    steps = sorted(found)
    query, values = (np.stack(matrices) for matrices in zip(*(found[step] for step in steps)))
    return Preconditioning(
        query[-1], values[-1], np.array(steps),
        distance_to_identity(query), distance_to_identity(values), run.path,
    ).written()  # fmt: skip


def in_eigenbasis(task: WhitenedRegression, params: Params) -> tuple[np.ndarray, np.ndarray]:
    """(U D)^T Q (U D), `[L, d, d]`, and U^T P U of all layers but the last, `[K, d, d]`.

    Args:
      task: its inputs have the covariance U D^2 U^T.
      params: of a `PreconditionedAttention` of L layers.
    """
    rotation, root = (np.asarray(a, np.float64) for a in (task.rotation(), task.root()))
    query = np.asarray(params["query"], np.float64)
    values = np.asarray(params.get("values", query[:0]), np.float64)[: len(query) - 1]
    return root.T @ query @ root, rotation.T @ values @ rotation


def distance_to_identity(matrices: np.ndarray) -> np.ndarray:
    """|M - (tr M / d) I| / |M| in Frobenius norms for each matrix `[..., d, d]`; NaN for 0."""
    dim = matrices.shape[-1]
    mean = np.trace(matrices, axis1=-2, axis2=-1)[..., None, None] / dim
    size = np.linalg.norm(matrices, axis=(-2, -1))
    rest = np.linalg.norm(matrices - mean * np.eye(dim), axis=(-2, -1))
    return np.where(size > 0, rest / np.where(size > 0, size, 1), np.nan)


@partial(jax.jit, static_argnames="steps")
def descent_losses(
    episodes: Episode, preconditioner: jax.Array, rates: jax.Array, steps: int
) -> jax.Array:
    """Mean squared error at the query by rate and number of steps of descent, `[R, steps + 1]`.

    w <- w + rate A (1/N) sum_i (y_i - w.x_i) x_i from w = 0, over the N examples before the query.

    Args:
      episodes: batch of prompts in which all points count; the last point is the query.
      preconditioner: A, `[d, d]`.
      rates: `[R]`.
      steps: of descent.
    """
    x, y = episodes.x[:, :-1], episodes.y[:, :-1]
    with jax.default_matmul_precision("highest"):
        gram = jnp.einsum("bni,bnj->bij", x, x) / x.shape[1]
        moment = jnp.einsum("bni,bn->bi", x, y) / x.shape[1]

        def of_rate(rate: jax.Array) -> jax.Array:
            weights, losses = jnp.zeros_like(moment), []
            for step in range(steps + 1):
                predicted = jnp.einsum("bi,bi->b", weights, episodes.x[:, -1])
                losses.append(((predicted - episodes.y[:, -1]) ** 2).mean())
                if step < steps:
                    residual = moment - jnp.einsum("bij,bj->bi", gram, weights)
                    weights += rate * jnp.einsum("ij,bj->bi", preconditioner, residual)
            return jnp.stack(losses)

        return jax.lax.map(of_rate, rates)


def best_rates(
    task: WhitenedRegression, preconditioner: jax.Array, steps: int, prompts: int
) -> np.ndarray:
    """The best constant rate among `RATES` for 1 to `steps` steps of `descent_losses`, `[steps]`.

    The prompts differ from those of training and evaluation.
    """
    episodes = draw_prompts(task, stream("rates"), prompts)
    losses = descent_losses(episodes, preconditioner, jnp.asarray(RATES, jnp.float32), steps)
    losses = np.asarray(losses, np.float64)[:, 1:]
    return RATES[np.argmin(np.where(np.isfinite(losses), losses, np.inf), axis=0)]


def _multiple(matrix: np.ndarray) -> str:
    return f"{np.trace(matrix) / len(matrix):.3f}"

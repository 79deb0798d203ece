"""Transfer of a learner of functions of one number to functions of other kinds.

A public notebook on Kirsch et al. 2022 (arXiv 2212.04458) trains on random networks or on sines,
and asks the learner for sines and lines. Its model of sines had a mean squared error
of 0.075 on fresh sines (R^2 0.98) and of 0.446 on lines, whose variance is 0.144.
"""

import dataclasses
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from ..evaluation.chunks import in_chunks
from ..evaluation.curves import draw_prompts
from ..report import Result, look, open_run, panel_grid, show_number
from ..tasks import Episode, FunctionFamily, Lines, Scalar, fast_sines
from ..tasks.draws import stream
from ..training.config import Config
from ..training.run import Run

OWN = "training tasks"
DRAWN = 3  # functions in a panel


@dataclasses.dataclass(frozen=True)
class Kind:
    """Errors on one kind of functions, and some functions to draw.

    Attributes:
      squared_error: mean squared error at the queries.
      variance: variance of the queries' labels, over all prompts.
      x, y: points of some prompts, `[functions, points]`.
      predicted: predictions at the queries, `[functions, queries]`, the last points.
    """

    squared_error: float
    variance: float
    x: np.ndarray
    y: np.ndarray
    predicted: np.ndarray

    @property
    def r_squared(self) -> float:
        """1 - error / variance: 1 is perfect, 0 is as good as the mean of all labels."""
        return 1 - self.squared_error / self.variance


@dataclasses.dataclass(frozen=True)
class FunctionTransfer(Result):
    """Errors by kind of functions.

    Attributes:
      kinds: by name: the training tasks, sines (unless those are the training tasks) and lines.
      prompts: number of prompts of each kind.
      examples: number of examples of a prompt.
      step: the training step of the parameters.
      path: the run's folder.
    """

    kinds: dict[str, Kind]
    prompts: int
    examples: int
    step: int
    path: Path

    file = "function-transfer"

    def as_data(self) -> dict[str, Any]:
        more = {name: {"r_squared": kind.r_squared} for name, kind in self.kinds.items()}
        data = super().as_data()
        for name, values in more.items():
            data["kinds"][name] |= values
        return data

    def table(self) -> Table:
        """A row for each kind of functions."""
        result = Table(
            title=f"functions after {self.examples} examples ({self.path}, step {self.step})",
            caption=(
                f"mean over {self.prompts} prompts; R^2 = 1 - squared error / variance of labels, "
                "0 for predicting their mean"
            ),
        )
        for name in ("functions", "squared error", "variance of labels", "R^2"):
            result.add_column(name, justify="left" if name == "functions" else "right")
        for name, kind in self.kinds.items():
            numbers = (kind.squared_error, kind.variance)
            result.add_row(name, *map(show_number, numbers), f"{kind.r_squared:.4f}")
        return result

    def figure(self, plt: Any) -> Any:
        """A panel for each kind: functions, their examples, and predictions at the queries."""
        figure, panels = panel_grid(plt, len(self.kinds), 3, 2.2)
        for axes, (name, kind) in zip(panels, self.kinds.items()):
            for index, (x, y, predicted) in enumerate(zip(kind.x, kind.y, kind.predicted)):
                order, queries, colour = np.argsort(x), len(predicted), look(index)["color"]
                axes.plot(x[order], y[order], color=colour, linewidth=1, alpha=0.6)
                axes.plot(x[:-queries], y[:-queries], ".", color=colour, markersize=3)
                axes.plot(x[-queries:], predicted, "x", color=colour, markersize=5)
            axes.set(title=f"{name}: $R^2$ {kind.r_squared:.3f}", xlabel="x")
        panels[0].set_ylabel("y; dots: examples,\ncrosses: predictions")
        return figure


def has_queries(config: Config) -> bool:
    """Whether runs with these settings learn functions of one number, with several queries."""
    task: Any = config.task
    is_function = isinstance(task, FunctionFamily) and isinstance(task.label_kind, Scalar)
    return is_function and task.dim == 1 and task.hidden_queries > 0


def function_transfer(
    run: Run | str | Path, *, prompts: int = 1280, seed: int = 0
) -> FunctionTransfer:
    """Errors of a run's newest checkpoint on its tasks, sines and lines; writes JSON and a figure.

    Sines are y = a sin(f x + phase) with a from 0.1 to 5, f from 0 to 8, the phase from 0 to 3 and
    x from -1 to 1; lines are y = a x with a from 0.1 to 0.5 and x ~ N(0, 1). Prompts have as many
    examples and queries as in training.

    Raises:
      RunError: no run there, or it has no checkpoint.
      ValueError: fewer than one prompt, or a run of another task or layout.
    """
    run, learner = open_run(run, prompts=prompts)
    if not has_queries(run.config):
        raise ValueError(
            f"{run.path} does not learn functions of one number in the layout masked: its task is "
            f"{learner.family}, its layout {run.config.layout}"
        )
    family: Any = learner.family
    sizes = dict(points=family.points, queries=family.queries)
    families = {OWN: family, "sines": fast_sines(**sizes), "lines": Lines(**sizes)}
    if family == families["sines"]:
        del families["sines"]
    step, variables = run.variables()
    predict = jax.jit(learner.predict)
    kinds = {}
    for name, of_kind in families.items():
        episodes = draw_prompts(of_kind, stream("transfer", seed), prompts)
        predictions = in_chunks(lambda some: predict(variables, some), episodes)
        kinds[name] = _kind(predictions, episodes, family.queries)
    examples = family.points - family.queries
    return FunctionTransfer(kinds, prompts, examples, step, run.path).written()


def _kind(predictions: np.ndarray, episodes: Episode, queries: int) -> Kind:
    x, y = np.asarray(episodes.x)[..., 0], np.asarray(episodes.y)
    predicted, asked = predictions[:, -queries:], y[:, -queries:].astype(np.float64)
    error = float(((predicted - asked) ** 2).mean())
    return Kind(error, float(asked.var()), x[:DRAWN], y[:DRAWN], predicted[:DRAWN])

"""The result of an evaluation: curves of error, saved as JSON and shown as a table."""

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ..report import (
    CHANCE,
    MARK,
    OWN,
    WIDTH,
    Result,
    comparator_look,
    draw_line,
    draw_rows,
    in_lines,
    legend_of_figure,
    name_cut_lines,
    show_number,
    spread,
)
from ..report.figures import MOST_ERROR
from ..report.lines import FEW, highest_of

MAX_COLUMNS = 5  # fits 80 characters


@dataclasses.dataclass(frozen=True)
class Curve:
    """Mean error by number of in-context examples, with a 90% bootstrap interval.

    Each is a float64 array over `Evaluation.examples`, as the family's `error` defines it; NaN
    where an estimator made no prediction.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluation(Result):
    """Errors of a learner and of its comparators on the same fresh prompts.

    Attributes:
      examples: numbers of in-context examples, int `[E]`.
      curves: a `Curve` by name, the learner's first.
      reference: the name of the optimal estimator; None if no comparator is optimal.
      step: the training step of the parameters.
      prompts: number of prompts that were averaged.
      path: the run's folder.
      costs: milliseconds a prompt by name, measured on this machine without compilation.
      error_name: what an error is.
    """

    examples: np.ndarray
    curves: dict[str, Curve]
    reference: str | None
    step: int
    prompts: int
    path: Path
    costs: dict[str, float] = dataclasses.field(default_factory=dict)
    error_name: str = "squared error / mean squared label"

    file = "eval"
    saved_as = {"curves": "normalised_error", "costs": "milliseconds_a_prompt"}

    @property
    def learner(self) -> str:
        """The name of the learner's curve."""
        return next(iter(self.curves))

    def check(self) -> None:
        ends = {values.shape for curve in self.curves.values() for values in vars(curve).values()}
        if ends != {self.examples.shape} or self.examples.ndim != 1 or not self.examples.size:
            raise ValueError("each curve needs as many errors as there are numbers of examples")
        super().check()

    def table(self) -> Table:
        """Error by number of examples, a row an estimator, the learner first, and its cost."""
        shown = spread(len(self.examples), MAX_COLUMNS)
        result = Table(
            title=f"error after k examples ({self.path}, step {self.step})",
            caption=(
                f"{self.error_name}, mean over {self.prompts} fresh prompts; "
                "± half of the 90% bootstrap interval; ms: milliseconds a prompt"
            ),
        )
        result.add_column("k")
        for k in self.examples[shown]:
            result.add_column(str(k), justify="right", no_wrap=True)
        result.add_column("ms", justify="right", no_wrap=True)
        for name, curve in self.curves.items():
            style = "bold" if name == self.learner else None
            suffix = " (optimal)" if name == self.reference else ""
            cost = f"{self.costs[name]:.2g}" if name in self.costs else ""
            cells = (show_number(v) for v in curve.mean[shown])
            result.add_row(name + suffix, *cells, cost, style=style)
            if name == self.learner:
                half = (curve.high - curve.low)[shown] / 2
                result.add_row("", *(f"±{show_number(v)}" for v in half), style="dim")
        return result

    def figure(self, plt: Any) -> Any:
        """Error against the number of in-context examples (as Garg et al. 2022, figure 2).

        If prompts have only one query, a row for each estimator with its interval.
        """
        title = f"error of {self.path.name}, step {self.step}"
        if len(self.examples) == 1:
            height = 1.2 + 0.3 * len(self.curves)
            figure, axes = plt.subplots(layout="constrained", figsize=(WIDTH, height))
            intervals = {
                name + (" (optimal)" if name == self.reference else ""): (
                    curve.mean[0], curve.low[0], curve.high[0],
                )
                for name, curve in self.curves.items()
            }  # fmt: skip
            draw_rows(axes, intervals, [self.learner])
            axes.set_xlabel(in_lines(f"{self.error_name}, 90% interval", 60))
            title += f", after {self.examples[0]} examples"
        else:
            figure, axes = plt.subplots(layout="constrained")
            self._draw_curves(axes)
        axes.set_title(title)
        return figure

    def _draw_curves(self, axes: Any) -> None:
        others = [name for name in self.curves if name not in (self.learner, "zero")]
        for name, curve in self.curves.items():
            asked = np.isfinite(curve.mean)
            points = int(asked.sum())
            if name == self.learner:
                line = OWN | (MARK if points < FEW else {})
            else:
                line = CHANCE if name == "zero" else comparator_look(others.index(name), points)
            examples, *ends = (v[asked] for v in (self.examples, *vars(curve).values()))
            # The bands of few prompts would hide everything else.
            low, high = ends[1:] if asked.all() else (None, None)
            draw_line(axes, examples, ends[0], low, high, label=name, **line)
        axes.set_xlabel("in-context examples")
        axes.locator_params(axis="x", integer=True)
        axes.set_ylabel(in_lines(self.error_name))
        # The learner's curve is never cut; cross-entropies exceed the error of predicting 0.
        axes.set_ylim(-0.03, max(MOST_ERROR, 1.05 * highest_of(self.curves[self.learner].mean)))
        name_cut_lines(axes)
        legend_of_figure(axes.figure)

"""Error at the end of training, a bar for each member of a sweep (von Oswald et al. 2023)."""

import dataclasses
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from ..report import Result, comparator_look, in_lines, legend_of_figure
from ..sweeps.grid import SEED, short_name
from ..sweeps.results import SweepResult
from ..training.learner import Learner
from .alignment import has_descent
from .descent import mean_query_error, tuned_descent

if TYPE_CHECKING:
    from ..sweeps import Sweep


@dataclasses.dataclass(frozen=True)
class FinalLosses(Result):
    """Errors at the query on fresh prompts after training.

    Attributes:
      error_name: what an error is.
      error: one a seed, by what a member changes.
      one_step: error of one tuned step of gradient descent.
      path: the sweep's folder.
    """

    error_name: str
    error: dict[str, list[float]]
    one_step: float
    path: Path

    file = "losses"
    again = "icl sweep --resume {path}"
    saved_as = {"one_step": "one step of gradient descent"}

    def table(self) -> Table:
        """A row a member, averaged over seeds."""
        table = Table(title=f"error at the query ({self.path})", caption=self.error_name)
        table.add_column("")
        table.add_column("mean over seeds", justify="right")
        for label, values in self.error.items():
            table.add_row(label, f"{np.mean(values):.4f}")
        table.add_row("one step of gradient descent", f"{self.one_step:.4f}")
        return table

    def figure(self, plt: Any) -> Any:
        """A bar a member, a mark a seed."""
        figure, axes = plt.subplots(layout="constrained")
        means = [float(np.mean(values)) for values in self.error.values()]
        axes.bar(list(self.error), means, width=0.6)
        wide = max(map(len, self.error)) * len(self.error) > 70
        if wide:
            axes.tick_params(axis="x", rotation=25)
            plt.setp(axes.get_xticklabels(), ha="right", rotation_mode="anchor")
        for label, values in self.error.items():
            axes.plot([label] * len(values), values, "k_", markersize=14)
        axes.axhline(self.one_step, **comparator_look(0), label=self.saved_as["one_step"])
        axes.set_ylabel(in_lines(self.error_name))
        axes.set_title(f"error at the query, {self.path.name}")
        legend_of_figure(figure)
        return figure


def final_losses(sweep: "Sweep") -> FinalLosses | None:
    """Errors of a finished sweep beside one tuned step of gradient descent: losses.json and .png.

    Returns:
      None for a sweep whose members are not on linear regression from a single query.
    """
    found: dict[str, list[float]] = {}
    for member, record in zip(sweep.members, SweepResult.load(sweep).records):
        config = member.config
        if not has_descent(config) or config.task != sweep.config.task:
            return None
        if "examples" in record:
            label = ", ".join(_labels(sweep.over, member.changes))
            error = mean_query_error(Learner(config), member.run.variables()[1])
            found.setdefault(label, []).append(error)
    descent = tuned_descent(sweep.config)
    step = mean_query_error(descent.learner, descent.params)
    return FinalLosses(sweep.config.task.label_kind.error_name, found, step, sweep.path).written()


def _labels(over: Mapping[str, Any], changes: Mapping[str, Any]) -> list[str]:
    """The labels of one member's values in the sweep, without the seed."""
    labels = []
    for axis, values in over.items():
        if isinstance(values, Mapping):
            fits = lambda wanted: wanted.items() <= changes.items()
            labels.append(next(name for name, wanted in values.items() if fits(wanted)))
        elif axis != SEED:
            labels.append(f"{short_name(axis)} {changes[axis]}")
    return labels

"""Error by model size and dimension, in a sweep over both (Garg et al. 2022, figure 6)."""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from ..models import TransformerConfig
from ..report import Result, draw_line, legend_of_figure, look, name_cut_lines, show_number
from ..sweeps.results import SweepResult
from ..tasks import FunctionFamily

if TYPE_CHECKING:
    from ..sweeps import Sweep


@dataclasses.dataclass(frozen=True)
class Capacity(Result):
    """Errors after 2d examples by model and dimension d.

    Attributes:
      errors: one a seed, by model and dimension.
      path: the sweep's folder.
    """

    errors: dict[str, dict[int, list[float]]]
    path: Path

    file = "capacity"
    again = "icl sweep --resume {path}"
    saved_as = {"errors": "error_after_2d_examples"}

    @property
    def dimensions(self) -> list[int]:
        return sorted({dim for by_dim in self.errors.values() for dim in by_dim})

    def table(self) -> Table:
        """A row a model, averaged over seeds."""
        table = Table(title="error after 2d examples, mean over seeds")
        table.add_column("model")
        for dim in self.dimensions:
            table.add_column(f"d={dim}", justify="right")
        for label, by_dim in self.errors.items():
            means = (float(np.mean(by_dim.get(dim, [np.nan]))) for dim in self.dimensions)
            table.add_row(label, *map(show_number, means))
        return table

    def figure(self, plt: Any) -> Any:
        """A line a model, with the range over seeds."""
        figure, axes = plt.subplots(layout="constrained")
        for index, (label, by_dim) in enumerate(self.errors.items()):
            at = sorted(by_dim)
            ends = ([end(by_dim[d]) for d in at] for end in (np.mean, min, max))
            draw_line(axes, at, *ends, label=label, **look(index, points=len(at)))
        axes.set(xlabel="dimension d", xticks=self.dimensions, ylim=(-0.03, 1.1))
        axes.set_ylabel("squared error / d, after 2d examples")
        axes.set_title(f"error by model and dimension, {self.path.name}")
        name_cut_lines(axes)
        legend_of_figure(figure)
        return figure


def capacity(sweep: "Sweep") -> Capacity | None:
    """Figure 6 for a finished sweep over models and dimensions: capacity.json and capacity.png.

    Returns:
      The errors; None for a sweep whose members are not transformers that differ in dimension and
      have 2d + 1 points each.
    """
    errors: dict[str, dict[int, list[float]]] = {}
    for member, record in zip(sweep.members, SweepResult.load(sweep).records):
        task, model = member.config.task, member.config.model
        if not isinstance(task, FunctionFamily) or not isinstance(model, TransformerConfig):
            return None
        if task.points < 2 * task.dim + 1:
            return None
        if "examples" in record:
            last = record["normalised_error"][record["examples"].index(2 * task.dim)]
            label = f"{model.layers} layer{'s' * (model.layers > 1)}, width {model.width}"
            errors.setdefault(label, {}).setdefault(task.dim, []).append(last)
    result = Capacity(errors, sweep.path)
    return result.written() if len(result.dimensions) > 1 else None

"""How long the loss stays at chance before a learner starts to learn in context, in a sweep.

Kirsch et al. 2022 (arXiv 2212.04458, section 4): the length of the plateau falls as a power of
the batch size, and interventions such as biased labels shorten it.
"""

import dataclasses
import math
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax.numpy as jnp
import numpy as np
from rich.table import Table

from ..report import CHANCE, WIDTH, Result, legend_of_panel, log_axis, look, show_number
from ..sweeps.grid import SEED, label_of, short_name
from ..sweeps.results import SweepResult
from ..tasks import Classes
from ..training.run import Run

if TYPE_CHECKING:
    from ..sweeps import Sweep

SHARE = 0.95  # the plateau ends when the loss falls below this share of that of chance


@dataclasses.dataclass(frozen=True)
class Row:
    """Members of a sweep that differ in their seed alone.

    Attributes:
      label: their values.
      steps: the step at which each left the plateau; NaN if it did not.
      error: error at the last position on unseen tasks, one a seed.
      at: training steps of the losses, one list a seed.
      loss: training loss by step, divided by that of chance, one list a seed.
    """

    label: str
    steps: list[float]
    error: list[float]
    at: list[list[int]]
    loss: list[list[float]]


@dataclasses.dataclass(frozen=True)
class Plateaus(Result):
    """Lengths of plateaus by the settings of a sweep.

    Attributes:
      rows: one for each combination of settings.
      setting: name of the only numeric setting of the sweep; None if there is none.
      exponent: exponent of the power of the setting that fits the lengths best; NaN if unknown.
      path: the sweep's folder.
    """

    rows: list[Row]
    setting: str | None
    exponent: float
    path: Path

    file = "plateau"
    again = "icl sweep --resume {path}"

    def table(self) -> Table:
        """Steps to the end of the plateau and the error at the end of training, mean over seeds."""
        fitted = "" if np.isnan(self.exponent) else f"; steps ~ {self.setting}^{self.exponent:.2f}"
        result = Table(
            title="steps until the loss leaves the plateau",
            caption=f"below {SHARE:.0%} of the loss of chance{fitted}",
        )
        for name in (self.setting or "settings", "steps", "error at the end"):
            left = name == "settings"
            result.add_column(name.replace("_", " "), justify="left" if left else "right")
        for row in self.rows:
            known = [step for step in row.steps if not math.isnan(step)]
            shown = f"{np.mean(known):,.0f}" if known else f"over {row.at[0][-1]:,}"
            missing = len(row.steps) - len(known)
            shown += f" ({missing} of {len(row.steps)} stayed)" if known and missing else ""
            result.add_row(row.label, shown, show_number(float(np.mean(row.error))))
        return result

    def figure(self, plt: Any) -> Any:
        """Losses in training; and the length of the plateau against a numeric setting."""
        fitted = not np.isnan(self.exponent)
        figure, panels = plt.subplots(
            1, 1 + fitted, figsize=(WIDTH, 2.7), layout="constrained", squeeze=False,
            width_ratios=(1.4, 1)[: 1 + fitted],
        )  # fmt: skip
        left = panels[0, 0]
        for index, row in enumerate(self.rows):
            for seed, (at, loss) in enumerate(zip(row.at, row.loss)):
                left.plot(at, loss, label=None if seed else row.label, **look(index))
        left.axhline(SHARE, **CHANCE)
        left.set(xlabel="training step", ylabel="training loss / loss of chance")
        left.set_title(f"losses of {self.path.name}")
        setting = (self.setting or "").replace("_", " ")
        legend_of_panel(left, title=setting or None)
        if fitted:
            x = np.array([float(row.label) for row in self.rows])
            y = np.array([np.nanmean(row.steps) if _known(row) else np.nan for row in self.rows])
            axes = panels[0, 1]
            axes.plot(x, y, "o")
            fit = np.isfinite(y)
            middle = np.exp(np.log(y[fit]).mean()) / np.exp(np.log(x[fit]).mean()) ** self.exponent
            axes.plot(x[fit], middle * x[fit] ** self.exponent, color="C1")
            log_axis(axes, "x")
            log_axis(axes, "y")
            axes.set(xlabel=setting, ylabel="steps on the plateau")
            axes.set_title(f"line: power {self.exponent:.2f}")
        return figure


def plateau_end(run: Run) -> float:
    """The step at which a run's loss fell below `SHARE` of that of chance; NaN if it did not.

    The loss is the mean over the steps of a line of metrics, so the step is known up to
    `training.log_every`.
    """
    ends = (step for step, loss in relative_losses(run) if loss < SHARE)
    return next(ends, math.nan)


def relative_losses(run: Run) -> Iterator[tuple[int, float]]:
    """Steps of a run's metrics, and the losses divided by that of chance.

    That is the loss of equal probabilities for all classes in use at a step of the curriculum, in
    nats.
    """
    config = run.config
    lines, first = run.metrics(), 0
    difficulty = config.curriculum.at(jnp.arange(config.training.steps), config.task)
    classes = np.broadcast_to(difficulty.classes, config.training.steps)
    chance = np.log(np.where(classes > 0, classes, config.task.label_kind.outputs or 1))
    for line in lines:
        yield line["step"], line["loss"] / float(chance[first : line["step"]].mean())
        first = line["step"]


def plateau(sweep: "Sweep") -> Plateaus | None:
    """Lengths of the plateaus of a finished sweep: plateau.json and plateau.png.

    Returns:
      None for a sweep of a task whose labels are not classes.
    """
    if not isinstance(sweep.config.task.label_kind, Classes):
        return None
    found: dict[str, Row] = {}
    for member, record in zip(sweep.members, SweepResult.load(sweep).records):
        if "examples" not in record:
            continue
        label = label_of(sweep.over, member.changes)
        row = found.setdefault(label, Row(label, [], [], [], []))
        steps, losses = map(list, zip(*relative_losses(member.run)))
        row.steps.append(plateau_end(member.run))
        row.error.append(record["normalised_error"][-1])
        row.at.append(steps)
        row.loss.append(losses)
    rows = list(found.values())
    numeric = [
        short_name(name)
        for name, values in sweep.over.items()
        if name != SEED and not isinstance(values, dict) and _are_numbers(values)
    ]
    alone = numeric[0] if len(numeric) == 1 and len(sweep.over) == 1 else None
    exponent = _exponent(rows) if alone else math.nan
    return Plateaus(rows, alone, exponent, sweep.path).written()


def _are_numbers(values: list[Any]) -> bool:
    return all(isinstance(value, int | float) and value > 0 for value in values)


def _known(row: Row) -> bool:
    return bool(np.isfinite(row.steps).any())


def _exponent(rows: list[Row]) -> float:
    """Slope of the logarithm of the length against that of the setting; NaN below three values."""
    known = [row for row in rows if _known(row)]
    if len(known) < 3:
        return math.nan
    x = np.log([float(row.label) for row in known])
    return float(np.polyfit(x, np.log([np.nanmean(row.steps) for row in known]), 1)[0])

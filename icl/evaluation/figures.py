"""Figures of a run: error by number of examples, and the loss over training."""

import textwrap
from pathlib import Path
from typing import Any

import numpy as np

from ..training.run import Run, RunError
from .result import Evaluation

STYLE: dict[Any, Any] = {
    "figure.figsize": (6.4, 4.0),
    "figure.dpi": 150,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "font.size": 10,
}


def evaluation_figure(evaluation: Evaluation, path: Path) -> None:
    """Error against the number of in-context examples (as Garg et al. 2022, figure 2)."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(layout="constrained")
        for name, curve in evaluation.curves.items():
            own = name == evaluation.learner
            line: dict[str, Any] = dict(linewidth=1.3, linestyle="--")
            asked = np.isfinite(curve.mean)
            if own:
                line = dict(linewidth=2.5, zorder=3)
            if name == "zero":
                line |= dict(color="0.6", linestyle=":")
            if asked.sum() < 15:
                line |= dict(marker="o", markersize=4)
            examples, mean, low, high = (
                values[asked] for values in (evaluation.examples, curve.mean, curve.low, curve.high)
            )
            [drawn] = axes.plot(examples, mean, label=name, **line)
            # The bands of few prompts would hide everything else.
            if asked.all():
                axes.fill_between(examples, low, high, alpha=0.25, color=drawn.get_color())
        axes.set_xlabel("in-context examples")
        axes.set_ylabel(in_lines(evaluation.error_name))
        axes.set_ylim(-0.03, 1.35)
        axes.set_title(f"{evaluation.path.name}, step {evaluation.step}", fontsize=10)
        axes.legend(fontsize=8)
        figure.savefig(path)
        plt.close(figure)


def training_figure(run: Run, path: Path) -> None:
    """Training loss against the step, on the scale of the evaluation where the task allows.

    Raises:
      RunError: nothing was logged yet.
    """
    records = run.metrics()
    if not records:
        raise RunError(f"{run.path} has no metrics yet; train it first")
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(layout="constrained")
        measure = run.config.training_measure
        axes.plot([r["step"] for r in records], [r["loss"] / measure.scale for r in records])
        axes.set_xlabel("step")
        axes.set_ylabel(in_lines(f"{measure.name}, in training"))
        axes.set_yscale("log")
        axes.set_title(run.path.name, fontsize=10)
        figure.savefig(path)
        plt.close(figure)


def in_lines(name: str) -> str:
    """A name that may be long, in lines that fit beside an axis."""
    return textwrap.fill(name, 45)


def pyplot():
    """matplotlib.pyplot, drawing to files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt

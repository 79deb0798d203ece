"""Figures of a run: error by number of examples, and the loss over training.

Every figure of the library is saved as a PNG and, beside it, as a PDF for papers.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from ..training.run import Run, RunError
from .result import Evaluation, show_number

STYLE: dict[Any, Any] = {
    "figure.figsize": (6.4, 4.0),
    "figure.dpi": 150,
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "legend.frameon": False,
    "font.size": 10,
    "pdf.fonttype": 42,  # text stays text
}
MOST_ERROR = 1.35  # of a figure's axis, where predicting 0 has error 1


def evaluation_figure(evaluation: Evaluation, path: Path) -> None:
    """Error against the number of in-context examples (as Garg et al. 2022, figure 2).

    Where prompts end with the only query, a row for each estimator instead, with its interval.
    """
    plt = pyplot()
    title = f"{evaluation.path.name}, step {evaluation.step}"
    with plt.rc_context(STYLE):
        if len(evaluation.examples) == 1:
            height = 1.2 + 0.3 * len(evaluation.curves)
            figure, axes = plt.subplots(layout="constrained", figsize=(6.4, height))
            intervals = {
                name + (" (optimal)" if name == evaluation.reference else ""): (
                    curve.mean[0], curve.low[0], curve.high[0],
                )
                for name, curve in evaluation.curves.items()
            }  # fmt: skip
            draw_rows(axes, intervals, [evaluation.learner])
            axes.set_xlabel(in_lines(f"{evaluation.error_name}, 90% interval"))
            title += f", after {evaluation.examples[0]} examples"
        else:
            figure, axes = plt.subplots(layout="constrained")
            _draw_curves(axes, evaluation)
        axes.set_title(title, fontsize=10)
        save_figure(figure, path)


def _draw_curves(axes: Any, evaluation: Evaluation) -> None:
    for name, curve in evaluation.curves.items():
        line: dict[str, Any] = dict(linewidth=1.3, linestyle="--")
        asked = np.isfinite(curve.mean)
        if name == evaluation.learner:
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
    axes.set_ylim(-0.03, MOST_ERROR)
    axes.legend(fontsize=8)


def draw_rows(
    axes: Any, intervals: Mapping[str, tuple[float, float, float]], own: Sequence[str] = ()
) -> None:
    """A row a name, from the top: a dot, its interval and its number; an arrow for what is far out.

    Args:
      axes: of matplotlib.
      intervals: errors by name: mean, low and high, low and high equal where no interval is known.
      own: names that stand out.
    """
    known = [mean for mean, _, _ in intervals.values() if 0 < mean <= MOST_ERROR]
    limit = 1.15 * max(known) if known else MOST_ERROR
    for row, (name, (mean, low, high)) in enumerate(intervals.items()):
        colour = "C0" if name in own else "0.35"
        if mean <= limit:
            ends = [[max(mean - low, 0)], [max(high - mean, 0)]]
            axes.errorbar(mean, row, xerr=ends, fmt="o", color=colour, capsize=3, markersize=5)
        elif np.isfinite(mean):
            axes.plot(limit, row, ">", color=colour, markersize=5, clip_on=False)
        half = f" ± {show_number((high - low) / 2)}" if high > low else ""
        axes.annotate(
            f"{show_number(mean)}{half}", (1.02, row), xycoords=("axes fraction", "data"),
            va="center", fontsize=8, color=colour,
        )  # fmt: skip
    axes.set_yticks(range(len(intervals)), list(intervals))
    axes.set(xlim=(0, limit), ylim=(len(intervals) - 0.5, -0.5))
    axes.grid(visible=False, axis="y")


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
        save_figure(figure, path)


def save_figure(figure: Any, path: Path) -> None:
    """Saves a figure as `path`, a PNG, and as a PDF beside it, and closes it."""
    figure.savefig(path)
    # Without the date, so that equal figures are equal files.
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
    pyplot().close(figure)


def in_lines(name: str) -> str:
    """A name that may be long, in lines that fit beside an axis."""
    return textwrap.fill(name, 50)


def pyplot():
    """matplotlib.pyplot, drawing to files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt

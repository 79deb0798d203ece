"""How figures look, how they are saved, and parts that several figures have.

Every figure of the library is saved as a PNG and, beside it, as a PDF for papers.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .lines import COLOURS
from .tables import show_number

WIDTH = 6.4  # inches, of every figure: at this width no text is smaller than 7 points
STYLE: dict[Any, Any] = {
    "figure.figsize": (WIDTH, 3.4),
    "figure.dpi": 200,
    "axes.prop_cycle": f"cycler('color', {list(COLOURS)})",
    "axes.grid": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.alpha": 0.3,
    "axes.axisbelow": True,
    "legend.frameon": False,
    "legend.fontsize": 8,
    "legend.title_fontsize": 8,
    "legend.handlelength": 2.6,
    "legend.columnspacing": 1.4,
    "font.size": 9,
    "axes.titlesize": 9,
    "axes.labelsize": 9,
    "figure.titlesize": 9,
    "figure.labelsize": 9,
    "xtick.labelsize": 8,
    "ytick.labelsize": 8,
    "pdf.fonttype": 42,  # text stays text
}
MOST_ERROR = 1.35  # upper end of an axis of errors; predicting 0 has error 1


def draw_rows(
    axes: Any, intervals: Mapping[str, tuple[float, float, float]], own: Sequence[str] = ()
) -> None:
    """A row a name, from the top: a dot, its interval and its number; an arrow beyond the axis.

    Args:
      axes: axes of matplotlib.
      intervals: errors by name: mean, low and high; low equals high if no interval is known.
      own: names of highlighted rows.
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


def panel_grid(
    plt: Any, count: int, columns: int, row_height: float, xlabel: str = "", **options: Any
) -> tuple[Any, list[Any]]:
    """A figure of that many panels, in rows of at most `columns`, and its panels.

    The bottom panel of each column has tick labels, also if panels share their axes, and the label.

    Args:
      plt: matplotlib.pyplot.
      count: number of panels.
      columns: most panels in a row.
      row_height: inches.
      xlabel: label of the x axes; a label of the whole figure would be under its legend.
      **options: of `matplotlib.pyplot.subplots`.
    """
    columns = min(columns, count)
    rows = -(-count // columns)
    figure, grid = plt.subplots(
        rows, columns, figsize=(WIDTH, row_height * rows + 0.3), layout="constrained",
        squeeze=False, **options,
    )  # fmt: skip
    for axes in grid.flat[count:]:
        axes.set_visible(False)
    for axes in grid.flat[max(0, count - columns) : count]:
        axes.tick_params(labelbottom=True)
        axes.set_xlabel(xlabel)
    return figure, list(grid.flat[:count])


def save_figure(figure: Any, path: Path) -> None:
    """Saves a figure as `path`, a PNG, and as a PDF beside it, and closes it."""
    figure.savefig(path)
    # Without its date, so that equal figures give equal files.
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
    pyplot().close(figure)


def in_lines(name: str, characters: int = 40) -> str:
    """Breaks a long name into lines that fit beside an axis."""
    return textwrap.fill(name, characters)


def pyplot():
    """matplotlib.pyplot, set up to draw to files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt

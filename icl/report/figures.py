"""How figures look, how they are saved, and parts that several figures have.

Every figure of the library is saved as a PNG and, beside it, as a PDF for papers.
"""

import textwrap
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from .tables import show_number

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


def save_figure(figure: Any, path: Path) -> None:
    """Saves a figure as `path`, a PNG, and as a PDF beside it, and closes it."""
    figure.savefig(path)
    # Without its date, so that equal figures give equal files.
    figure.savefig(path.with_suffix(".pdf"), metadata={"CreationDate": None})
    pyplot().close(figure)


def in_lines(name: str) -> str:
    """Breaks a long name into lines that fit beside an axis."""
    return textwrap.fill(name, 50)


def pyplot():
    """matplotlib.pyplot, set up to draw to files."""
    import matplotlib

    matplotlib.use("Agg")
    import matplotlib.pyplot as plt

    return plt

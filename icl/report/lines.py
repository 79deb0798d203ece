"""Lines of figures: how they look, their intervals, their legends, and what an axis cuts off.

A legend is never inside an axes, where it would hide lines.
"""

import textwrap
from collections.abc import Iterable, Sequence
from typing import Any

import numpy as np

# Okabe and Ito's colours, which colour-blind readers can tell apart, without yellow.
COLOURS = ("#0072B2", "#D55E00", "#009E73", "#CC79A7", "#E69F00", "#56B4E9", "#000000")
DASHES: tuple[Any, ...] = ("-", (0, (5, 1.5)), (0, (4, 1.2, 1, 1.2)), (0, (1.2, 1.2)))
MARKERS = "osD^vPX*"
CHARACTERS_AN_INCH = 17  # of text of 8 points
FEW = 15  # lines of fewer points have markers

OWN: dict[str, Any] = dict(color="C0", linewidth=2.4, zorder=3)  # the learner, on top
CHANCE: dict[str, Any] = dict(color="0.5", linestyle=":", linewidth=1.3, zorder=1.5)
MARK: dict[str, Any] = dict(marker="o", markersize=3.5)


def look(index: int, points: int = FEW) -> dict[str, Any]:
    """How one of many lines looks: colours and dashes, and markers if it has few points."""
    marker = dict(marker=MARKERS[index % len(MARKERS)], markersize=3.5) if points < FEW else {}
    colour, dashes = f"C{index % len(COLOURS)}", DASHES[index % len(DASHES)]
    return dict(color=colour, linestyle=dashes, linewidth=1.3) | marker


def comparator_look(index: int, points: int = FEW) -> dict[str, Any]:
    """As `look`, without the learner's colour and without solid lines."""
    colour = f"C{1 + index % (len(COLOURS) - 1)}"
    dashes = DASHES[1 + index % (len(DASHES) - 1)]
    # The marker changes when colours and dashes begin again.
    shown = points < FEW or index >= len(COLOURS) - 1
    marker = dict(marker=MARKERS[(1 + index) % len(MARKERS)], markersize=3.5) if shown else {}
    every = dict(markevery=max(1, points // 8)) if marker and points >= FEW else {}
    return dict(color=colour, linestyle=dashes, linewidth=1.3) | marker | every


def draw_line(axes: Any, at: Any, mean: Any, low: Any = None, high: Any = None, **line: Any) -> Any:
    """Draws a line and, below all lines, its interval in a light tint; returns the line."""
    [drawn] = axes.plot(at, mean, **line)
    if low is not None:
        own = drawn.get_zorder() >= OWN["zorder"]
        axes.fill_between(
            at, low, high, color=drawn.get_color(), alpha=0.25 if own else 0.1, linewidth=0,
            zorder=1.2 if own else 1.1,
        )  # fmt: skip
    return drawn


def name_cut_lines(axes: Any) -> None:
    """Says in the label of each line that leaves the top of the axes how high it goes."""
    for line in _cut(axes):
        line.set_label(f"{line.get_label()} (up to {_rounded(highest_of(line.get_ydata()))})")


def title_cut_lines(axes: Any) -> None:
    """Says so in the title of a panel that shares its legend with others."""
    characters = int(_width(axes) * CHARACTERS_AN_INCH)
    told = [axes.get_title()] if axes.get_title() else []
    for line in _cut(axes):
        highest = _rounded(highest_of(line.get_ydata()))
        told.append(textwrap.fill(f"{line.get_label()} up to {highest}", characters))
    axes.set_title("\n".join(told), fontsize=8)


def _cut(axes: Any) -> list[Any]:
    """The lines with a label that leave the top of the axes."""
    top = axes.get_ylim()[1]
    labelled = (line for line in axes.lines if not line.get_label().startswith("_"))
    return [line for line in labelled if highest_of(line.get_ydata()) > top]


def highest_of(values: Any) -> float:
    """The largest value that is not NaN; minus infinity if there is none."""
    values = np.asarray(values, np.float64)
    return float(np.max(values[~np.isnan(values)], initial=-np.inf))


def _rounded(value: float) -> str:
    if value < 9.95:
        return f"{value:.2g}"
    return f"{value:,.0f}" if value < 1e5 else f"{value:.0e}"


def legend_of_figure(figure: Any, title: str | None = None) -> None:
    """One legend below all panels, for lines that are in several of them.

    Labels that are equal are shown once. The figure becomes higher by the height of the legend.
    """
    found = _labelled(figure.axes)
    width, height = figure.get_size_inches()
    labels, columns, lines = _arranged(list(found), width)
    figure.set_size_inches(width, height + _height(lines + (title is not None)))
    figure.legend(
        list(found.values()), labels, loc="outside lower center", ncols=columns, title=title
    )


def legend_of_panel(*panels: Any, title: str | None = None) -> None:
    """A legend below each panel of the last row of a figure.

    The figure becomes higher by the height of the highest legend.
    """
    from matplotlib.transforms import ScaledTranslation

    figure = panels[0].figure
    width, height = figure.get_size_inches()
    highest = 0.0
    for axes in panels:
        found = _labelled([axes])
        # The legend may use some of the gap between panels.
        labels, columns, lines = _arranged(list(found), 1.2 * _width(axes))
        label = axes.xaxis.label
        rows = label.get_text().count("\n") + bool(label.get_text())
        points = 23 + 1.25 * rows * label.get_size()  # of tick labels, and of the axis' label
        down = ScaledTranslation(0, -points / 72, figure.dpi_scale_trans)
        axes.legend(
            list(found.values()), labels, loc="upper center", ncols=columns, title=title,
            bbox_to_anchor=(0.5, 0), bbox_transform=axes.transAxes + down, borderaxespad=0,
        )  # fmt: skip
        highest = max(highest, _height(lines + (title is not None)))
    figure.set_size_inches(width, height + highest)


def _labelled(panels: Iterable[Any]) -> dict[str, Any]:
    """Artists by their labels."""
    found: dict[str, Any] = {}
    for axes in panels:
        for artist, label in zip(*axes.get_legend_handles_labels()):
            found.setdefault(label, artist)
    return found


def _arranged(labels: Sequence[str], inches: float) -> tuple[list[str], int, int]:
    """Labels in lines that fit, the number of columns, and the number of lines of text."""
    characters, handle = inches * CHARACTERS_AN_INCH, 10  # a handle is as wide as ten of them
    labels = [textwrap.fill(label, max(12, int(characters) - handle)) for label in labels]
    longest = max((len(line) for label in labels for line in label.split("\n")), default=1)
    columns = max(1, min(len(labels), int(characters / (longest + handle))))
    rows = -(-len(labels) // columns)
    columns = max(1, -(-len(labels) // max(1, rows)))  # columns of about equal length
    of_column = [labels[at * rows : (at + 1) * rows] for at in range(columns)]
    lines = max((sum(1 + name.count("\n") for name in own) for own in of_column), default=0)
    return labels, columns, lines


def _width(axes: Any) -> float:
    """Inches of an axes."""
    return axes.get_position().width * axes.figure.get_size_inches()[0]


def _height(lines: int) -> float:
    """Inches of a legend of that many lines of text."""
    return 0.1 + 0.155 * lines


def log_axis(axes: Any, which: str) -> None:
    """Makes the axis "x" or "y" logarithmic, with plain numbers that do not overlap.

    To be called when everything is drawn, since labels depend on the range.
    """
    from matplotlib import ticker

    axes.set(**{f"{which}scale": "log"})
    axis = {"x": axes.xaxis, "y": axes.yaxis}[which]
    low, high = sorted(axis.get_view_interval())
    decades = np.log10(high / low) if low > 0 else np.inf
    if decades < 1:
        axis.set_major_locator(ticker.MaxNLocator(4, steps=[1, 2, 2.5, 5, 10]))
    elif decades < 2.5:
        axis.set_major_locator(ticker.LogLocator(subs=(1, 2, 5), numticks=12))
    if decades < 4:
        axis.set_major_formatter(ticker.FuncFormatter(lambda value, _: f"{value:,g}"))
    axis.set_minor_formatter(ticker.NullFormatter())

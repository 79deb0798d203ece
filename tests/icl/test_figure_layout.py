"""Laws of all figures: legends hide nothing, text can be read in print, nothing overlaps."""

import itertools

import numpy as np
import pytest

from icl.analysis import pattern_figure
from icl.evaluation import figures
from icl.report import STYLE, pyplot
from icl.report.figures import WIDTH
from icl.sweeps import Sweep, SweepResult, results
from icl.training.run import Run

from .helpers import tiny
from .invented import INVENTED, RNG, STEPS, falling, invented

FIGURES = [name for name in INVENTED if name not in ("pool", "sweep")]


def check(figure):
    """Asserts the laws for a figure, as it is saved."""
    figure.draw_without_rendering()
    panels = [axes for axes in figure.axes if axes.get_visible()]
    legends = [box for box in (*figure.legends, *(axes.get_legend() for axes in panels)) if box]
    for legend, axes in itertools.product(map(_box, legends), panels):
        assert not _overlap(legend, _box(axes)), f"a legend covers {axes.get_title()!r}"
    texts = [text for text in _texts(figure, panels) if text.get_text().strip()]
    inside = [text for legend in legends for text in legend.get_texts()]
    small = [text.get_text() for text in (*texts, *inside) if text.get_fontsize() < 7]
    assert figure.get_size_inches()[0] <= WIDTH and not small
    boxes = {str(thing): _box(thing) for thing in (*legends, *texts)}
    whole = figure.bbox.padded(1)
    for name, box in boxes.items():
        assert whole.contains(*box.min) and whole.contains(*box.max), f"{name} is cut off"
    upright = [_box(text) for text in texts if text.get_rotation() % 90 == 0]
    for one, other in itertools.combinations([*map(_box, legends), *upright], 2):
        assert not _overlap(one, other), [name for name, b in boxes.items() if b in (one, other)]


def _texts(figure, panels):
    """All texts outside legends; ticks beyond the ends of an axis are not drawn."""
    for part in (figure, *figure.subfigs):
        yield from part.texts
    for axes in panels:
        yield from (axes.title, *axes.texts)
        for axis in (axes.xaxis, axes.yaxis) if axes.axison else ():
            low, high = sorted(axis.get_view_interval())
            yield axis.label
            for tick in axis.get_major_ticks():
                if low <= tick.get_loc() <= high and tick.label1.get_visible():
                    yield tick.label1


def _box(thing):
    return thing.get_window_extent()


def _overlap(one, other):
    """Whether two boxes overlap by more than a pixel."""
    wide = min(one.x1, other.x1) - max(one.x0, other.x0)
    return wide > 1 and min(one.y1, other.y1) - max(one.y0, other.y0) > 1


def drawn(draw):
    """Checks the figure that a function draws."""
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure = draw(plt)
        try:
            check(figure)
        finally:
            plt.close(figure)


@pytest.mark.parametrize("name", FIGURES)
def test_a_figure_reads_well_in_print(name, tmp_path):
    drawn(invented(name, tmp_path / "garg-linear-xs-linear-attention").figure)


@pytest.fixture
def saved(monkeypatch):
    """Figures that functions which save a figure themselves have drawn."""
    found = []
    for module in (figures, pattern_figure, results):
        monkeypatch.setattr(module, "save_figure", lambda figure, path: found.append(figure))
    losses = [{"step": int(step), "loss": 1 / step} for step in STEPS]
    monkeypatch.setattr(Run, "metrics", lambda self: losses)
    yield found
    assert len(found) == 1
    drawn(lambda plt: found[0])


def test_the_figure_of_a_training_reads_well(saved, tmp_path):
    figures.training_figure(Run.create(tmp_path / "run", tiny()), tmp_path / "training.png")


def test_the_figure_of_patterns_reads_well(saved, tmp_path):
    pattern_figure.draw_patterns([RNG.random((2, 8, 21, 21))] * 2, tmp_path / "patterns.png")


@pytest.mark.parametrize(
    "over",
    [
        {"name": ["adam", "muon", "schedule_free_adamw"]},
        {"name": ["adam", "muon"], "learning_rate": [1e-3, 3e-3, 1e-2]},
    ],
)
def test_the_figure_of_a_sweep_reads_well(over, saved, tmp_path):
    sweep = Sweep.create(tmp_path / "sweep", tiny(), over, 2)
    records = [
        {"member": member.path.name, "changes": member.changes, "examples": list(range(5)),
         "normalised_error": [7.0, *falling(4)]}
        for member in sweep.members
    ]  # fmt: skip
    found = SweepResult(sweep.path, 10, records)
    results.sweep_figure(sweep, found, tmp_path / "sweep.png")
    labels = [text.get_text() for axes in saved[0].axes for text in _legend_of(axes)]
    assert len(labels) == len(over["name"])
    if len(over) == 1:
        assert all("(up to 7)" in label for label in labels)


def _legend_of(axes):
    return axes.get_legend().get_texts() if axes.get_legend() else []


def test_a_legend_inside_an_axes_is_found(tmp_path):
    def draw(plt):
        figure, axes = plt.subplots(layout="constrained")
        axes.plot([0, 1], label="line")
        axes.legend()
        return figure

    with pytest.raises(AssertionError, match="a legend covers"):
        drawn(draw)


def test_labels_say_how_high_the_lines_go_that_an_axis_cuts(tmp_path):
    found = invented("eval", tmp_path / "run")
    highest = {name: np.nanmax(curve.mean) for name, curve in found.curves.items()}
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure = found.figure(plt)
    [legend] = figure.legends
    told = {text.get_text().replace("\n", " ") for text in legend.get_texts()}
    top = figure.axes[0].get_ylim()[1]
    assert told == {
        f"{name} (up to {value:.2g})" if value > top else name for name, value in highest.items()
    }
    assert sum("up to" in label for label in told) > 3
    plt.close(figure)

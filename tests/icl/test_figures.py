"""The content of figures, drawn from invented numbers."""

from pathlib import Path

import numpy as np
import pytest
from matplotlib.figure import Figure

import icl
from icl.analysis.alignment import MOST_CHECKPOINTS, _log_spaced
from icl.analysis.descent_shifts import DescentShifts, ShiftCurves
from icl.analysis.preconditioning import Preconditioning
from icl.evaluation.result import Curve, Evaluation
from icl.sweeps import Sweep, SweepResult
from icl.sweeps.results import sweep_figure

from .helpers import tiny


@pytest.fixture
def drawn(monkeypatch):
    """Figures by file name, collected instead of saved."""
    figures = {}
    save = lambda figure, path, **options: figures.update({Path(path).name: figure})
    monkeypatch.setattr(Figure, "savefig", save)
    return figures


def evaluation(tmp_path, **errors):
    curve = lambda mean, half: Curve(*(np.array([mean + end]) for end in (0, -half, half)))
    curves = {name: curve(*error) for name, error in errors.items()}
    return Evaluation(np.array([10]), curves, "ridge", 7, 100, tmp_path / "run")


def test_with_a_single_query_the_figure_has_a_row_for_each_estimator(drawn, tmp_path):
    found = evaluation(tmp_path, learner=(0.5, 0.02), ridge=(0.3, 0.01), far=(5e3, 2e3))
    found.draw()
    assert set(drawn) == {"eval.png", "eval.pdf"}
    [axes] = drawn["eval.png"].axes
    labels = [label.get_text() for label in axes.get_yticklabels()]
    assert labels == ["learner", "ridge (optimal)", "far"]
    dots = {
        float(y): float(x)
        for line in axes.lines if line.get_marker() in ("o", ">")
        for x, y in zip(line.get_xdata(), line.get_ydata())
    }  # fmt: skip
    assert dots == {0: 0.5, 1: 0.3, 2: axes.get_xlim()[1]}
    assert 0.5 < axes.get_xlim()[1] < 1
    told = [text.get_text() for text in axes.texts]
    assert told == ["0.500 ± 0.020", "0.300 ± 0.010", "5e+03 ± 2e+03"]
    assert "90% interval" in axes.get_xlabel() and "after 10 examples" in axes.get_title()


def test_with_single_queries_the_figure_of_a_sweep_has_a_row_for_each_model(drawn, tmp_path):
    sweep = Sweep.create(tmp_path / "sweep", tiny(layout="concatenated"), {"name": ["adam"]}, 2)
    records = [
        {"member": member.path.name, "changes": member.changes, "examples": [4],
         "normalised_error": [error]}
        for member, error in zip(sweep.members, (0.4, 0.6))
    ]  # fmt: skip
    sweep_figure(sweep, SweepResult(sweep.path, 10, records), tmp_path / "sweep.png")
    _, errors = drawn["sweep.pdf"].axes
    assert [label.get_text() for label in errors.get_yticklabels()] == ["name adam"]
    assert [text.get_text() for text in errors.texts] == ["0.500 ± 0.100"]


def test_the_scale_of_an_axis_depends_on_the_kind_of_shift(drawn, tmp_path):
    pair = lambda ours, theirs: {"learner": ours, "GD": theirs}
    sweeps = {
        "tasks times": ShiftCurves([1, 2, 3], pair([0.47, 0.47, 0.48], [0.46, 0.46, 0.46])),
        "inputs": ShiftCurves(["uniform", "normal"], pair([0.5, 170.0], [0.5, 168.0])),
        "times applied": ShiftCurves([1, 2, 3], pair([0.5, 0.3, 0.1], [0.5, 1e3, 1e8])),
    }
    DescentShifts(sweeps, 7, 100, tmp_path / "run").draw()
    tasks, inputs, applied = (
        axes for axes in drawn["descent-shifts.pdf"].axes if axes.get_visible()
    )
    assert tasks.get_yscale() == "linear" and tasks.get_ylim()[0] == 0
    assert {line.get_linestyle() for line in inputs.lines} == {"None"}
    assert [label.get_text() for label in inputs.get_xticklabels()] == ["uniform", "normal"]
    assert applied.get_yscale() == "log" and applied.get_ylim()[1] < 1e3


def test_matrices_in_a_row_share_a_colour_scale(drawn, tmp_path):
    query = -np.eye(3) * np.array([0.2, 1.0])[:, None, None]
    steps = np.array([1, 2])
    found = Preconditioning(
        query, 3 * query[1:], steps, np.ones((2, 2)), np.ones((2, 1)), tmp_path / "run"
    )
    found.draw()
    scales = [
        image.get_clim() for axes in drawn["preconditioning.pdf"].axes for image in axes.images
    ]
    assert scales == [(-1, 1), (-1, 1), (-3, 3)]


def test_checkpoints_are_chosen_densely_at_the_start_of_training():
    steps = [step for step, _ in _log_spaced([(100 * n, None) for n in range(1, 51)])]
    assert steps[:4] == [100, 200, 300, 400] and steps[-2:] == [4100, 5000]
    assert len(steps) <= MOST_CHECKPOINTS
    few = [(step, None) for step in (10, 20, 30)]
    assert _log_spaced(few) == few


def test_figures_are_saved_by_one_function_only():
    package = Path(icl.__file__).parent
    saving = [file.name for file in package.rglob("*.py") if "savefig(" in file.read_text()]
    assert saving == ["figures.py"]


def test_drawing_a_figure_again_gives_an_equal_file(tmp_path):
    found = evaluation(tmp_path, learner=(0.5, 0.02))
    found.path.mkdir()
    files = [found.figure_path, found.figure_path.with_suffix(".pdf")]
    drawn = []
    for _ in range(2):
        found.draw()
        drawn.append([file.read_bytes() for file in files])
    for ours, theirs, start in zip(*drawn, (b"\x89PNG", b"%PDF")):
        assert ours == theirs and ours.startswith(start)

"""Figure 6 of Garg et al.: what the report of a sweep over models and dimensions says."""

import json

import numpy as np

from icl.analysis.capacity import Capacity, capacity
from icl.experiments import PRESETS
from icl.sweeps import Sweep, SweepResult

from .helpers import tiny


def made_up(path, over):
    """A finished sweep whose errors after k examples are layers / (10 k)."""
    sweep = Sweep.create(path, tiny(), over, 2, "garg/capacity-xs")
    records = []
    for member in sweep.members:
        task = member.config.task
        examples = list(range(task.points))
        errors = [member.config.model.layers / (10 * max(k, 1)) for k in examples]
        records.append(
            {"member": member.path.name, "changes": member.changes, "examples": examples}
            | {"normalised_error": errors}
        )
    SweepResult(sweep.path, 10, records).save()
    return sweep


def test_the_error_is_that_after_twice_the_dimension(tmp_path):
    sizes = {f"d={d}": {"task_dim": d, "task_points": 2 * d + 1} for d in (2, 4)}
    sweep = made_up(tmp_path / "sweep", {"layers": [1, 3], "size": sizes})
    text = str(capacity(sweep))
    saved = json.loads((sweep.path / "capacity.json").read_text())["error_after_2d_examples"]
    assert list(saved) == ["1 layer, width 16", "3 layers, width 16"]
    np.testing.assert_allclose(saved["3 layers, width 16"]["2"], [0.3 / 4] * 2)
    np.testing.assert_allclose(saved["1 layer, width 16"]["4"], [0.1 / 8] * 2)
    assert "d=4" in text and "0.075" in text
    assert (sweep.path / "capacity.png").stat().st_size > 5_000
    assert str(Capacity.load(sweep)) == text


def test_sweeps_over_something_else_have_no_such_figure(tmp_path):
    assert capacity(made_up(tmp_path / "a", {"layers": [1, 2]})) is None
    assert (
        capacity(made_up(tmp_path / "b", {"size": {"d=4": {"task_dim": 4, "task_points": 5}}}))
        is None
    )


def test_the_grids_are_the_papers():
    paper = PRESETS["garg/capacity"]
    assert [label for label in paper.over["dimension"]] == [f"d={d}" for d in (10, 20, 30, 40, 50)]
    assert {s["task_points"] - 2 * s["task_dim"] for s in paper.over["dimension"].values()} == {1}
    assert [s["model_width"] for s in paper.over["model"].values()] == [64, 128, 256]

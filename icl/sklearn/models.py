"""The trained learner behind an estimator: read once a process, shared by all estimators."""

import dataclasses
import functools
import os
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from ..tasks import Classes, Scalar
from ..tasks.inputs import Rows
from ..training import Run, RunError, disk, load_exported

Target = Literal["class", "number"]
WEIGHTS = Path(__file__).with_name("weights")
SHIPPED: dict[Target, Path] = {
    "class": WEIGHTS / "classes.npz",
    "number": WEIGHTS / "numbers.npz",
}
PLURAL = {"class": "classes", "number": "numbers"}


@dataclasses.dataclass(frozen=True)
class TableModel:
    """A function that predicts labels of rows from labelled rows, and what it takes.

    Any function of this call can stand behind an estimator: `InContextClassifier(TableModel(...))`.
    """

    predict: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray] = dataclasses.field(
        repr=False
    )
    """From x_context float32 `[B, n, columns]`, y_context `[B, n]` and x_query `[B, Q, columns]` to
    probabilities `[B, Q, classes]`, or to numbers `[B, Q]`. Columns are standardised by
    `icl.tasks.rows.standardised`; NaN marks missing values and columns not in use. Labels are
    int32 classes, or float32 numbers with mean 0 and standard deviation 1."""
    rows: int
    """Largest number of examples n."""
    columns: int
    """Number of columns."""
    classes: int | None
    """Number of classes; None if labels are numbers."""

    @property
    def target(self) -> Target:
        """What the model predicts."""
        return "number" if self.classes is None else "class"


def table_model(
    run: "TableModel | Run | str | Path | None", target: Target | None = None
) -> TableModel:
    """The model of a run.

    A run folder or a file is read once a process, and again if it changed since.

    Args:
      run: a run of a family of tables, or its folder; a file of exported weights; None for the
        weights in this package; a `TableModel` is returned as it is.
      target: what the model must predict; None if either will do.

    Raises:
      RunError: there is no such run or file, it cannot be read, or its task is not one of tables.
      ValueError: the model predicts numbers where classes are wanted, or the reverse.
    """
    if isinstance(run, TableModel):
        model, source = run, "this model"
    else:
        path = run.path if isinstance(run, Run) else Path(run or SHIPPED[target or "class"])
        model, source = _read(path.absolute(), _stamp(path)), str(path)
    if target not in (None, model.target):
        other = {"class": "Classifier", "number": "Regressor"}[model.target]
        raise ValueError(
            f"{source} predicts {PLURAL[model.target]}, and {PLURAL[target]} are wanted: use "
            f"InContext{other}, or another run"
        )
    return model


def _stamp(path: Path) -> tuple[int, ...]:
    """Numbers that change if the run or file at a path changes."""
    files = (path, path / "config.json", path / "checkpoints")
    with disk.usable(path):
        return tuple(file.stat().st_mtime_ns for file in files if os.path.exists(file))


@functools.lru_cache(maxsize=8)
def _read(path: Path, stamp: tuple[int, ...]) -> TableModel:
    learned = load_exported(path) if path.is_file() else Run.open(path)
    task = learned.config.task
    inputs, labels = task.input_kind, task.label_kind
    if not isinstance(inputs, Rows) or not isinstance(labels, (Classes, Scalar)):
        raise RunError(
            f"{path} was trained on {type(task).__name__}, not on tables; give a run of a preset "
            "such as pfn/tables-xs"
        )
    classes = labels.number if isinstance(labels, Classes) else None
    rows = task.points - task.hidden_queries
    return TableModel(learned.predict, rows, inputs.columns, classes)

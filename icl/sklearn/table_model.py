"""The trained learner behind an estimator: read once a process, shared by all estimators."""

import dataclasses
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Literal

import numpy as np

from ..tasks import Classes, Scalar
from ..tasks.inputs import Rows
from ..training import Config, Run, RunError

Target = Literal["class", "number"]
WEIGHTS = Path(__file__).with_name("weights")
SHIPPED: dict[Target, Path] = {
    "class": WEIGHTS / "classes.npz",
    "number": WEIGHTS / "numbers.npz",
}


@dataclasses.dataclass(frozen=True)
class TableModel:
    """A function that predicts labels of rows from labelled rows, and what it takes.

    Any function of this call can stand behind an estimator: `InContextClassifier(TableModel(...))`.
    """

    predict: Callable[[np.ndarray, np.ndarray, np.ndarray], np.ndarray]
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


def table_model(run: "TableModel | Run | str | Path | None", target: Target) -> TableModel:
    """The model of a run.

    A run folder is read again if its settings or checkpoints changed since the last call.

    Args:
      run: a run of a family of tables, or its folder; None for the weights in this package; a
        `TableModel` is returned as it is.
      target: what the model must predict.

    Raises:
      RunError: there is no such run, it cannot be read, or was trained on another kind of task.
      ValueError: the run predicts numbers where classes are wanted, or the reverse.
    """
    if isinstance(run, TableModel):
        model, source = run, "the model"
    else:
        path = SHIPPED[target] if run is None else run.path if isinstance(run, Run) else Path(run)
        model, source = _read(path.absolute(), _stamp(path)), str(path)
    if target == "class" and model.classes is None:
        raise ValueError(f"{source} predicts numbers: use InContextRegressor")
    if target == "number" and model.classes is not None:
        raise ValueError(f"{source} predicts classes: use InContextClassifier")
    return model


def _stamp(path: Path) -> tuple[int, ...]:
    """Numbers that change if the run at a path changes."""
    files = (path, path / "config.json", path / "checkpoints")
    return tuple(file.stat().st_mtime_ns for file in files if file.exists())


@functools.lru_cache(maxsize=8)
def _read(path: Path, stamp: tuple[int, ...]) -> TableModel:
    run = Run.open(path)
    return _of(run.config, run.predict, path)


def _of(config: Config, predict: Callable[..., np.ndarray], source: Path) -> TableModel:
    task = config.task
    inputs, labels = task.input_kind, task.label_kind
    if not isinstance(inputs, Rows) or not isinstance(labels, (Classes, Scalar)):
        raise RunError(
            f"{source} was trained on {type(task).__name__}, not on tables; give a run of a preset "
            "such as pfn/tables-xs"
        )
    classes = labels.number if isinstance(labels, Classes) else None
    return TableModel(predict, task.points - task.hidden_queries, inputs.columns, classes)

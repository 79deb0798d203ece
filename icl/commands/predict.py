"""The command `icl predict`: labels of the rows of a CSV file, from the rows of another."""

import csv
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import tyro
from rich.table import Table
from sklearn.metrics import log_loss, r2_score, root_mean_squared_error

from ..data.csv_file import Column, CSVFile, as_number, read_csv
from ..evaluation.roc import mean_area
from ..output import say, show
from ..ranges import SEED, SIZE, check_range
from ..report.tables import show_number
from ..sklearn import InContextClassifier, InContextRegressor
from ..sklearn.models import TableModel, Target, table_model
from ..training.disk import RunError, usable, write_whole

FEW = 10  # most different whole numbers that are taken for classes
ROWS_SHOWN = 10
CLASSES_SHOWN = 4
NAME_SHOWN = 12  # characters of the name of a class; the file has whole names


def main(arguments: list[str]) -> int:
    """Predicts the rows of a file; returns the exit status."""
    tyro.cli(predict_file, args=arguments, prog="icl predict")
    return 0


def predict_file(
    run: tyro.conf.Positional[str | None] = None,
    *,
    train: str,
    test: str,
    target: str,
    out: str | None = None,
    overwrite: bool = False,
    kind: Literal["class", "number"] | None = None,
    ensemble: int = 8,
    seed: int = 0,
) -> None:
    """Predicts a column of a CSV file from a CSV file where it is known; nothing is trained.

    The first line of both files names the columns. Empty cells, ?, NA and nan are missing
    values. Columns with text are categories; one that the training file lacks is missing.

    Args:
      run: Folder of a run of a family of tables, or a file of exported weights; None for the
        weights in the package.
      train: File with the examples.
      test: File with the rows to predict.
      target: Name of the column to predict; the test file may have it, to be scored.
      out: File for the predictions, such as predictions.csv; None to show the first rows alone.
      overwrite: Replace the file of predictions if it exists.
      kind: Predict classes or numbers; None for what the run predicts, else for classes if the
        target is text or at most 10 different whole numbers.
      ensemble: Number of orders of the columns and classes whose predictions are averaged.
      seed: Seed of these orders.
    """
    check_range("--ensemble", ensemble, SIZE)
    check_range("--seed", seed, SEED)
    if out is not None and Path(out).exists() and not overwrite:
        raise RunError(f"{out} exists; choose another name, or replace it with --overwrite")
    tables = _read(train, test, target)
    options: dict[str, Any] = dict(run=run, ensemble=ensemble, random_state=seed)
    wanted = kind or _kind_of(run, tables)
    _say_limits(table_model(run, wanted), tables)
    found = (_classes if wanted == "class" else _numbers)(tables, options)
    show(_first_rows(found, tables.truth))
    if found.scores is not None:
        show(found.scores)
    if out is None:
        say(f"rows predicted: {len(tables.test)}; --out FILE writes all")
    else:
        with usable(out):
            Path(out).parent.mkdir(parents=True, exist_ok=True)
        write_whole(Path(out), _as_csv(found))
        say(f"rows predicted: {len(tables.test)}, in {out}")


class Tables(NamedTuple):
    """A training table and a test table as numbers."""

    target: str
    train: np.ndarray  # [n, columns]
    labels: list[str]  # [n]
    test: np.ndarray  # [Q, columns]
    truth: list[str | None] | None  # [Q]; None if the test file has no labels
    source: Path  # of the labels


class Found(NamedTuple):
    """What the command shows and writes."""

    predictions: list[str]  # [Q]
    probabilities: dict[str, np.ndarray]  # [Q], by class; empty for numbers
    scores: Table | None


def _read(train: str, test: str, target: str) -> Tables:
    """Both files as numbers; ValueError if they lack a column, or all labels."""
    known, asked = _opened(train), _opened(test)
    if target not in known.cells:
        raise ValueError(f"{known.path} has no column {target!r}; it has {', '.join(known.cells)}")
    columns = [name for name in known.cells if name != target]
    if not columns:
        raise ValueError(f"{known.path} has the column {target!r} alone, so nothing tells it")
    if lacking := [name for name in columns if name not in asked.cells]:
        raise ValueError(f"{asked.path} lacks columns of {known.path}: {', '.join(lacking)}")
    labels = known.cells[target]
    labelled = np.array([label is not None for label in labels])
    if not labelled.any():
        raise ValueError(f"{known.path} has no row whose {target!r} is known")
    if not labelled.all():
        say(f"rows of {known.path} without {target}, left out: {(~labelled).sum()}")
    read = [Column(name, known.cells[name]) for name in columns]
    if texts := [f"{c.name} ({len(c.levels)})" for c in read if c.levels is not None]:
        say(f"columns of text, taken as categories (their number): {', '.join(texts)}")
    as_matrix = lambda file: np.stack([column.numbers(file) for column in read], axis=1)
    return Tables(
        target,
        as_matrix(known)[labelled],
        [label for label in labels if label is not None],
        as_matrix(asked),
        asked.cells.get(target),
        known.path,
    )


def _opened(path: str) -> CSVFile:
    with usable(path):
        if not Path(path).exists():
            raise RunError(f"{path} does not exist; give the path of a CSV file")
        return read_csv(path)


def _kind_of(run: str | None, tables: Tables) -> Target:
    if run is not None:
        return table_model(run).target
    numbers = [as_number(label) for label in tables.labels]
    whole = all(number is not None and number == int(number) for number in numbers)
    return "class" if None in numbers or whole and len(set(numbers)) <= FEW else "number"


def _say_limits(model: TableModel, tables: Tables) -> None:
    """Says what is predicted, and which part of the table the model can be shown."""
    rows = len(tables.train)
    columns = int((np.fmin.reduce(tables.train) < np.fmax.reduce(tables.train)).sum())
    what = "a class" if model.target == "class" else "a number"
    say(f"{tables.target} is {what}; examples: {rows}, columns that vary: {columns}")
    for name, count, most in (
        ("rows", rows, model.rows),
        ("columns that vary", columns, model.columns),
    ):
        if count > most:
            say(f"each member of the ensemble is shown {most} of the {count} {name}")


def _classes(tables: Tables, options: dict[str, Any]) -> Found:
    labels = [_class_name(label) for label in tables.labels]
    if len(set(labels)) == 1:
        raise ValueError(
            f"the column {tables.target!r} of {tables.source} has one class, {labels[0]!r}; give "
            "rows of at least two"
        )
    model = InContextClassifier(**options).fit(tables.train, labels)
    probabilities = model.predict_proba(tables.test)
    names = model.classes_.tolist()
    predicted = [names[i] for i in probabilities.argmax(axis=1)]
    truth = None if tables.truth is None else [_class_name(label) for label in tables.truth]
    shares = np.array([labels.count(name) for name in names]) / len(labels)
    scores = None if truth is None else _class_scores(truth, names, probabilities, shares)
    return Found(predicted, dict(zip(names, probabilities.T)), scores)


def _numbers(tables: Tables, options: dict[str, Any]) -> Found:
    labels = np.array(_as_numbers(tables.labels, tables.target), np.float64)
    model = InContextRegressor(**options).fit(tables.train, labels)
    predicted = model.predict(tables.test)
    scores = None
    if tables.truth is not None:
        truth = np.array(_as_numbers(tables.truth, tables.target), np.float64)  # None becomes NaN
        scores = _number_scores(truth, predicted, labels.mean())
    return Found([f"{value:.9g}" for value in predicted.tolist()], {}, scores)


def _class_name(label: str | None) -> str | None:
    """A class as text; whole numbers are alike if their values are, as 1 and 1.0."""
    number = None if label is None else as_number(label)
    return label if number is None or number != int(number) else str(int(number))


def _as_numbers(labels: Sequence[str | None], target: str) -> list[float | None]:
    numbers = [None if label is None else as_number(label) for label in labels]
    for label, number in zip(labels, numbers):
        if label is not None and number is None:
            raise ValueError(f"{label!r} in the column {target!r} is no number: use --kind class")
    return numbers


def _class_scores(
    truth: list[str | None], names: list[str], probabilities: np.ndarray, shares: np.ndarray
) -> Table | None:
    """Scores of predictions and of the shares of the classes among the training rows."""
    known = np.array([label is not None for label in truth])
    seen = np.array([label in names for label in truth])
    if not known.any():
        return None
    table = _scores_table("class frequencies", known.sum())
    if known.sum() > seen.sum():
        say(
            f"test rows of a class that no training row has: {(known & ~seen).sum()}; accuracy "
            "counts them as wrong, the other scores leave them out"
        )
    number = np.array([names.index(label) if label in names else -1 for label in truth])
    both = probabilities, np.broadcast_to(shares, probabilities.shape)
    right = [(p.argmax(axis=1) == number)[known].mean() for p in both]
    table.add_row("accuracy", *map(show_number, right))
    if seen.any():
        y, both = number[seen], [p[seen] for p in both]
        table.add_row("ROC AUC", *(show_number(mean_area(p, y)) for p in both))
        losses = [log_loss(y, p, labels=range(len(names))) for p in both]
        table.add_row("log loss, nats", *map(show_number, losses))
    return table


def _number_scores(truth: np.ndarray, predicted: np.ndarray, mean: float) -> Table | None:
    """Scores of predictions and of the mean of the training labels."""
    known = ~np.isnan(truth)
    if not known.any():
        return None
    truth, both = truth[known], (predicted[known], np.full(known.sum(), mean))
    table = _scores_table("training mean", len(truth))
    if len(truth) > 1:
        table.add_row("R²", *(f"{r2_score(truth, p):.3f}" for p in both))
    table.add_row("RMSE", *(f"{root_mean_squared_error(truth, p):.4g}" for p in both))
    return table


def _scores_table(beside: str, rows: int) -> Table:
    table = Table(f"score on {rows} rows", box=None, pad_edge=False)
    for name in ("in context", beside):
        table.add_column(name, justify="right")
    return table


def _first_rows(found: Found, truth: Sequence[str | None] | None) -> Table:
    """The first predictions; test rows are counted from 1."""
    table = Table("row", "prediction", box=None, pad_edge=False)
    shown = dict(list(found.probabilities.items())[:CLASSES_SHOWN])
    for name in shown:
        table.add_column(f"P({_short(name)})", justify="right", no_wrap=True)
    if truth is not None:
        table.add_column("truth")
    for i, prediction in enumerate(found.predictions[:ROWS_SHOWN]):
        cells = [str(i + 1), _short(prediction), *(f"{p[i]:.3f}" for p in shown.values())]
        table.add_row(*cells, *([] if truth is None else [_short(truth[i] or "–")]))
    return table


def _short(name: str) -> str:
    """A name of a class, so short that a row of the table fits one line."""
    return name if len(name) <= NAME_SHOWN else f"{name[: NAME_SHOWN - 1]}…"


def _as_csv(found: Found) -> str:
    """All predictions, with the probability of each class."""
    text = io.StringIO()
    writer = csv.writer(text, lineterminator="\n")
    writer.writerow(["prediction", *(f"probability of {name}" for name in found.probabilities)])
    columns = [column.tolist() for column in found.probabilities.values()]
    writer.writerows(zip(found.predictions, *columns))
    return text.getvalue()

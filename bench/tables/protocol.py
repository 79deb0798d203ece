"""Splits of a table, scores of predicted probabilities, and the scores of a method.

A split is drawn from the table's name, the number of training rows and the split's number alone.
"""

import time
import zlib
from collections.abc import Callable, Collection, Iterable, Mapping
from typing import Any, NamedTuple

import numpy as np

from icl.evaluation.roc import mean_area

from .sets import DataSet, load

SIZES = (16, 32, 64, 128)  # numbers of training rows
SPLITS = 10
MOST_TEST_ROWS = 500
FLOOR = 1e-3  # of a probability: 500 test rows cannot tell smaller ones apart
METRICS = ("auc", "accuracy", "log_loss")
HIGHER_IS_BETTER = {"auc": True, "accuracy": True, "log_loss": False, "r2": True}

# By table and number of training rows: a list of each metric, a number for each split.
Scores = Mapping[str, Mapping[str, Mapping[str, list[float]]]]


class Split(NamedTuple):
    """Indices of the training rows `[n]` and of the test rows `[m]`, in random order."""

    train: np.ndarray
    test: np.ndarray


def seed_of(name: str, size: int, number: int) -> list[int]:
    """The seed of a split."""
    return [zlib.crc32(name.encode()), size, number]


def split(data: DataSet, size: int, number: int) -> Split:
    """Draws training and test rows.

    Each class has as large a share of the training rows as of the table, by the method of
    largest remainders, and at least two training rows if `size` allows that for all classes, or
    else one. A class always keeps a row for the test. At most `MOST_TEST_ROWS` of the other rows
    are test rows.

    Args:
      data: the table.
      size: number of training rows.
      number: the split's number.

    Raises:
      ValueError: the table has too few rows, or fewer training rows than classes.
    """
    counts = np.bincount(data.y, minlength=data.classes)
    if size < data.classes or size > (counts - 1).sum():
        raise ValueError(f"{data.name} has no split with {size} training rows")
    rng = np.random.default_rng(seed_of(data.name, size, number))
    least = 2 if size >= 2 * data.classes else 1
    taken = np.minimum(least, counts - 1)
    for _ in range(size - taken.sum()):
        wanting = np.where(taken < counts - 1, size * counts / counts.sum() - taken, -np.inf)
        taken[np.argmax(wanting)] += 1
    order = rng.permutation(len(data.y))
    train = np.concatenate(
        [order[data.y[order] == label][:count] for label, count in enumerate(taken)]
    )
    rest = order[~np.isin(order, train)]
    return Split(rng.permutation(train), rest[:MOST_TEST_ROWS])


def probabilities_of_all(predicted: np.ndarray, known: np.ndarray, classes: int) -> np.ndarray:
    """Probabilities of all classes of a table, none below `FLOOR`.

    Args:
      predicted: `[m, k]`.
      known: the classes `[k]` of the columns of `predicted`; those of the training rows.
      classes: number of classes of the table.

    Returns:
      `[m, classes]` with sum 1; a class that is absent from `known` has the floor before that.

    Raises:
      ValueError: `predicted` has another shape, or holds a number that is not finite.
    """
    known = np.asarray(known)
    if predicted.ndim != 2 or predicted.shape[1] != len(known):
        raise ValueError(f"predict_proba returned {predicted.shape} for {len(known)} classes")
    if not np.isfinite(predicted).all():
        raise ValueError("predict_proba returned a number that is not finite")
    full = np.zeros((len(predicted), classes))
    full[:, known] = predicted
    full = np.maximum(full, FLOOR)
    return full / full.sum(axis=1, keepdims=True)


def metrics(probabilities: np.ndarray, y: np.ndarray) -> dict[str, float]:
    """Scores of probabilities `[m, classes]` of labels int `[m]`.

    `auc` is `mean_area`, and 0.5 if all labels are of one class. Every class has training rows (see
    `split`), so none is absent for a method that keeps to them.
    """
    return {
        "auc": float(np.nan_to_num(mean_area(probabilities, y), nan=0.5)),
        "accuracy": float(np.mean(probabilities.argmax(axis=1) == y)),
        "log_loss": float(-np.mean(np.log(probabilities[np.arange(len(y)), y]))),
    }


def score(
    make_estimator: Callable[[], Any],
    sets: Iterable[str],
    sizes: Collection[int] = SIZES,
    splits: int = SPLITS,
    one_hot: bool = False,
) -> tuple[dict[str, dict[str, dict[str, list[float]]]], float]:
    """Fits an estimator to each split of each table.

    Args:
      make_estimator: returns an object with `fit`, `predict_proba` and `classes_`; it is called
        for each split, and may return the same object each time.
      sets: names of tables.
      sizes: numbers of training rows.
      splits: number of splits of each table and size.
      one_hot: whether a column of names becomes a column for each name; if not, it holds the
        places of the names.

    Returns:
      The scores, see `Scores`, and the seconds that fits and predictions took.
    """
    scores, seconds = {}, 0.0
    for name in sets:
        data = load(name)
        x = data.one_hot() if one_hot else data.x
        for size in sizes:
            found = {metric: [] for metric in METRICS}
            for number in range(splits):
                train, test = split(data, size, number)
                started = time.perf_counter()
                estimator = make_estimator()
                estimator.fit(x[train], data.y[train])
                predicted = np.asarray(estimator.predict_proba(x[test]), np.float64)
                seconds += time.perf_counter() - started
                full = probabilities_of_all(predicted, estimator.classes_, data.classes)
                for metric, value in metrics(full, data.y[test]).items():
                    found[metric].append(value)
            scores.setdefault(name, {})[str(size)] = found
    return scores, seconds

"""Members of an ensemble: each shows a table to the model in another way."""

from typing import Literal, NamedTuple

import numpy as np
from scipy.special import ndtri
from sklearn.feature_selection import f_classif, f_regression

from ..tasks.rows import standardised

Share = Literal["none", "half", "all"]  # of the members that an option holds for
LEAST_SPREAD = 1e-10  # of a column, relative to its largest value; less is rounding
FARTHEST = 1e9  # of a value, in spreads of its column


class Member(NamedTuple):
    """What one member of an ensemble is shown."""

    rows: np.ndarray  # int [n]: training rows
    columns: np.ndarray  # int [c]: columns, in the order shown
    classes: np.ndarray  # int [k]: the number that each class is shown as
    ranks: bool  # whether values are replaced by normal scores of their ranks


def draw_members(
    count: int,
    x: np.ndarray,
    y: np.ndarray,
    classes: int | None,
    *,
    most_rows: int,
    most_columns: int,
    most_classes: int,
    ranks: Share,
    best_columns: Share,
    random: np.random.RandomState,
) -> list[Member]:
    """Draws the members of an ensemble for a training table.

    An option of "half" holds for every second member, or for every second pair of members, so that
    both options occur in all combinations.

    Args:
      count: number of members.
      x: training rows `[rows, columns]`; NaN marks missing values, and columns not in use.
      y: their labels `[rows]`; int from 0 if they are classes.
      classes: number of classes; None if labels are numbers.
      most_rows: number of rows that the model takes.
      most_columns: number of columns that the model takes.
      most_classes: number of classes that the model has.
      ranks: the members that replace values by normal scores of their ranks.
      best_columns: the members that are shown the columns with the largest F statistic if there are
        more than the model takes; the others are shown random columns.
      random: the source of random numbers.
    """
    used = np.flatnonzero(~np.isnan(x).all(axis=0))
    best = used
    if len(used) > most_columns and best_columns != "none":
        best = used[_by_f_statistic(x[:, used], y, classes is not None)[:most_columns]]

    def draw(i: int) -> Member:
        columns = best if _holds(best_columns, i // 2) else used
        return Member(
            rows=_subsample(random, y, most_rows, classes is not None),
            columns=random.permutation(columns)[:most_columns],
            classes=random.permutation(most_classes)[: classes or 0],
            ranks=_holds(ranks, i),
        )

    return [draw(i) for i in range(count)]


def _holds(share: Share, i: int) -> bool:
    return {"none": False, "half": i % 2 == 1, "all": True}[share]


def _subsample(
    random: np.random.RandomState, y: np.ndarray, most: int, stratified: bool
) -> np.ndarray:
    """At most `most` row numbers; classes keep their shares, and each keeps at least a row."""
    order = random.permutation(len(y))
    if len(y) <= most or not stratified:
        return order[:most]
    share = np.empty(len(y))
    for label in np.unique(y):
        of_class = y[order] == label
        share[of_class] = np.arange(of_class.sum()) / of_class.sum()
    return order[np.argsort(share, kind="stable")[:most]]


def _by_f_statistic(x: np.ndarray, y: np.ndarray, classes: bool) -> np.ndarray:
    """Column numbers by their univariate F statistic, largest first; missing values are means."""
    known = ~np.isnan(x)
    mean = np.where(known, x, 0).sum(axis=0) / np.maximum(known.sum(axis=0), 1)
    filled = np.where(known, x, mean)
    varies = np.ptp(filled, axis=0) > 0
    statistic = np.zeros(x.shape[1])
    # Infinite if a column tells all, NaN if all labels are equal.
    with np.errstate(divide="ignore", invalid="ignore"):
        found, _ = (f_classif if classes else f_regression)(filled[:, varies], y)
    statistic[varies] = found
    return np.argsort(-np.nan_to_num(statistic, nan=0.0), kind="stable")


def shown(
    members: list[Member], train: np.ndarray, asked: np.ndarray, width: int
) -> tuple[np.ndarray, np.ndarray]:
    """The rows that a model is shown.

    Args:
      members: B members with n rows each.
      train: training rows `[rows, columns]`.
      asked: rows to predict labels of `[Q, columns]`.
      width: number of columns that the model takes; columns that are left over are NaN.

    Returns:
      Examples float32 `[B, n, width]` and queries float32 `[B, Q, width]`, standardised by the
      examples.
    """
    examples = len(members[0].rows)
    tables = np.full((len(members), examples + len(asked), width), np.nan)
    for table, member in zip(tables, members):
        pairs = zip(train[member.rows][:, member.columns].T, asked[:, member.columns].T)
        for i, (known, wanted) in enumerate(pairs):
            column = np.concatenate([known, wanted])
            # Scaled anew, since the rows of a member may span a small part of a column.
            shown_as = _normal_scores if member.ranks else scaled
            table[:, i] = shown_as(known, column)
    context = np.broadcast_to(np.arange(tables.shape[1]) < examples, tables.shape[:2])
    tables = standardised(np, tables, context).astype(np.float32)
    return tables[:, :examples], tables[:, examples:]


def scaled(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Columns between -1 and 1 over the known rows; NaN if they are constant there.

    The size of a column then says nothing, as 1e-12 or 1e300 would in float32.

    Args:
      known: `[n, ...]`; NaN marks missing values.
      values: `[m, ...]`, scaled as the known ones.
    """
    low, high = np.fmin.reduce(known, axis=0), np.fmax.reduce(known, axis=0)  # NaN if none is known
    # Halves, since the sum of two large numbers is infinite.
    half = high / 2 - low / 2
    used = half > LEAST_SPREAD * np.maximum(abs(low), abs(high))
    centre, spread = np.where(used, low / 2 + high / 2, 0.0), np.where(used, half, np.nan)
    with np.errstate(over="ignore"):
        return np.clip((values - centre) / spread, -FARTHEST, FARTHEST)


def _normal_scores(known: np.ndarray, values: np.ndarray) -> np.ndarray:
    """Values `[m]` as standard normal quantiles of their ranks among `known` `[n]`.

    Equal values share the middle of their ranks; a value between two known ones is interpolated,
    and a value beyond them has the score of the nearest. NaN stays NaN.
    """
    levels, counts = np.unique(known[~np.isnan(known)], return_counts=True)
    if not len(levels):
        return values
    middle = (np.cumsum(counts) - counts / 2) / counts.sum()
    return np.where(np.isnan(values), np.nan, np.interp(values, levels, ndtri(middle)))

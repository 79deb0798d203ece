"""Scores of the methods beside ours, fitted or taken from the results of an earlier run."""

from collections.abc import Callable, Collection, Mapping
from typing import Any

from .protocol import FLOOR, MOST_TEST_ROWS, Scores

# What scores depend on besides table, size, split and method; other results are refused.
PROTOCOL = {"most_test_rows": MOST_TEST_ROWS, "floor": FLOOR}
DIGITS = 5  # of scores in a file

# Scores an estimator, made anew by a function for each split; returns the seconds too.
Fit = Callable[[Callable[[], Any]], tuple[Scores, float]]


def fit_methods(
    methods: Mapping[str, Callable[[], Any]], fit: Fit, tell: Callable[[str], None] = print
) -> dict[str, Scores]:
    """Scores by method; `tell` is called with a line for each."""
    found = {}
    for name, make in methods.items():
        found[name], seconds = fit(make)
        tell(f"{name}: {seconds:.0f} s")
    return found


def taken_over(
    earlier: Mapping[str, Any],
    tables: Collection[str],
    sizes: Collection[int],
    splits: int,
    methods: Collection[str],
) -> dict[str, Scores]:
    """Scores by method out of the results of an earlier run.

    Args:
      earlier: one part of the results: `protocol`, `splits` and `scores` by method.
      tables: names of tables.
      sizes: numbers of training rows.
      splits: number of splits of each.
      methods: names of methods.

    Raises:
      ValueError: the earlier run had another protocol, or lacks a method, a table, a size or a
        split.
    """
    if earlier["protocol"] != PROTOCOL:
        raise ValueError(f"the earlier run had the protocol {earlier['protocol']}, not {PROTOCOL}")
    if splits > earlier["splits"]:
        raise ValueError(f"the earlier run had {earlier['splits']} splits, fewer than {splits}")
    found = {}
    for method in methods:
        try:
            scores = earlier["scores"][method]
            found[method] = {
                table: {str(size): _first(scores[table][str(size)], splits) for size in sizes}
                for table in tables
            }
        except KeyError as error:
            raise ValueError(
                f"the earlier run has no {error} for {method}: leave out --baselines-from to fit "
                "all methods"
            ) from error
    return found


def _first(values: Mapping[str, list[float]], splits: int) -> dict[str, list[float]]:
    return {metric: numbers[:splits] for metric, numbers in values.items()}


def rounded(scores: Scores) -> dict[str, Any]:
    """Scores with `DIGITS` decimals, for a file."""
    return {
        table: {
            size: {
                metric: [round(value, DIGITS) for value in values]
                for metric, values in found.items()
            }
            for size, found in sizes.items()
        }
        for table, sizes in scores.items()
    }

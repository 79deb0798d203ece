"""Compares a method with others over tables: ranks, differences, tests and intervals.

A table's score is the mean over its splits. Tests and intervals are over tables (Demšar 2006,
"Statistical Comparisons of Classifiers over Multiple Data Sets").
"""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
from scipy.stats import rankdata, wilcoxon

from .protocol import HIGHER_IS_BETTER, Scores

FLOORS = ("class frequencies", "mean")  # methods that are shown, and not ranked
RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Beside:
    """Ours less another method's scores, for a loss the reverse: above 0 ours is better.

    Attributes:
      mean: over tables.
      interval: a 95% bootstrap interval of the mean, over tables.
      p: of Wilcoxon's signed-rank test over tables, two-sided.
    """

    mean: float
    interval: tuple[float, float]
    p: float

    @property
    def verdict(self) -> str:
        """Ours is "better" or "worse", or at "par" if the interval includes 0."""
        low, high = self.interval
        return "par" if low <= 0 <= high else "better" if low > 0 else "worse"


@dataclass(frozen=True)
class Line:
    """A method under one metric at one number of training rows.

    Attributes:
      method: its name.
      mean: of the metric over tables.
      rank: mean rank over tables, 1 is best; None for methods in `FLOORS`.
      beside: ours beside this method; None for ours.
    """

    method: str
    mean: float
    rank: float | None
    beside: Beside | None = None


def table_means(scores: Scores, size: int, metric: str) -> np.ndarray:
    """The mean over splits for each table, `[tables]`, in the order of `scores`."""
    return np.array([np.mean(sizes[str(size)][metric]) for sizes in scores.values()])


def mean_ranks(values: Mapping[str, np.ndarray], higher: bool) -> dict[str, float]:
    """Mean ranks over tables; equal scores share the mean of their ranks.

    Args:
      values: scores `[tables]` by method.
      higher: whether higher scores are better.
    """
    stacked = np.stack(list(values.values()))
    # Rounded, so that sums in another order are equal scores.
    ranks = rankdata(np.round(-stacked if higher else stacked, 12), axis=0)
    return dict(zip(values, ranks.mean(axis=1).tolist()))


def bootstrap(differences: np.ndarray, resamples: int = RESAMPLES) -> tuple[float, float]:
    """A percentile interval of the mean of differences `[tables]`, tables drawn anew."""
    rng = np.random.default_rng(0)
    drawn = rng.integers(len(differences), size=(resamples, len(differences)))
    tail = 100 * (1 - LEVEL) / 2
    low, high = np.percentile(differences[drawn].mean(axis=1), [tail, 100 - tail])
    return float(low), float(high)


def p_value(differences: np.ndarray) -> float:
    """Wilcoxon's signed-rank test of differences `[tables]`; 1 if all are 0."""
    differences = np.round(differences, 12)
    if not differences.any():
        return 1.0
    found: Any = wilcoxon(differences)
    return float(found.pvalue)


def compare(
    ours: Scores, others: Mapping[str, Scores], size: int, metric: str, name: str = "ours"
) -> list[Line]:
    """Lines of ours and of the other methods, ours first.

    Args:
      ours: our scores.
      others: scores by method; tables that ours lacks are left out.
      size: number of training rows.
      metric: a name in `protocol.METRICS`.
      name: what ours is called.

    Raises:
      ValueError: a method lacks a table of ours.
    """
    values = {name: table_means(ours, size, metric)}
    for method, scores in others.items():
        if lacking := [table for table in ours if table not in scores]:
            raise ValueError(f"{method} has no scores of {', '.join(lacking)}")
        values[method] = table_means({table: scores[table] for table in ours}, size, metric)
    higher = HIGHER_IS_BETTER[metric]
    ranked = {method: v for method, v in values.items() if method not in FLOORS}
    ranks = mean_ranks(ranked, higher)
    lines = [Line(name, float(values[name].mean()), ranks[name])]
    for method in others:
        gain = (values[name] - values[method]) * (1 if higher else -1)
        beside = Beside(float(gain.mean()), bootstrap(gain), p_value(gain))
        lines.append(Line(method, float(values[method].mean()), ranks.get(method), beside))
    return lines


def as_text(
    ours: Scores,
    others: Mapping[str, Scores],
    sizes: list[int],
    metrics: tuple[str, ...] = tuple(HIGHER_IS_BETTER),
) -> str:
    """A plain table of `compare` for several sizes and metrics."""
    text = []
    for metric in metrics:
        for size in sizes:
            text.append(f"{metric} at {size} training rows, {len(ours)} tables")
            for line in compare(ours, others, size, metric):
                rank = "   –" if line.rank is None else f"{line.rank:4.2f}"
                beside = ""
                if found := line.beside:
                    low, high = found.interval
                    beside = f"  {found.mean:+.4f} ({low:+.4f} to {high:+.4f}) p {found.p:.3f}"
                    beside += f"  {found.verdict}"
                text.append(f"  {line.method:20} {line.mean:.4f}  rank {rank}{beside}")
    return "\n".join(text)

"""Compares a method with others over tables: ranks, differences, tests and intervals.

A table's score is the mean over its splits. Tests and intervals are over tables (Demšar 2006,
"Statistical Comparisons of Classifiers over Multiple Data Sets").
"""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
from scipy.stats import rankdata, wilcoxon

from .methods import FLOOR_METHOD
from .protocol import HIGHER_IS_BETTER, Scores

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True)
class Line:
    """A method at one number of training rows, under one metric.

    Attributes:
      method: its name.
      mean: of the metric over tables.
      rank: mean rank over tables, 1 is best; None for the class frequencies.
      better: ours minus this method, so that above 0 ours is better; None for ours.
      interval: a 95% bootstrap interval of `better` over tables; None for ours.
      p: of Wilcoxon's signed-rank test, two-sided, over tables; None for ours.
    """

    method: str
    mean: float
    rank: float | None
    better: float | None = None
    interval: tuple[float, float] | None = None
    p: float | None = None

    @property
    def verdict(self) -> str:
        """"better" or "worse" for ours, or "par" if the interval includes 0."""
        if self.interval is None:
            return ""
        low, high = self.interval
        return "par" if low <= 0 <= high else "better" if low > 0 else "worse"


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
    return float(wilcoxon(differences).pvalue) if differences.any() else 1.0


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
    ranked = {method: v for method, v in values.items() if method != FLOOR_METHOD}
    ranks = mean_ranks(ranked, higher)
    lines = [Line(name, float(values[name].mean()), ranks[name])]
    for method in others:
        gain = (values[name] - values[method]) * (1 if higher else -1)
        lines.append(
            Line(
                method, float(values[method].mean()), ranks.get(method), float(gain.mean()),
                bootstrap(gain), p_value(gain),
            )
        )  # fmt: skip
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
                if line.better is not None and line.interval and line.p is not None:
                    low, high = line.interval
                    beside = f"  {line.better:+.4f} ({low:+.4f} to {high:+.4f}) p {line.p:.3f}"
                    beside += f"  {line.verdict}"
                text.append(f"  {line.method:20} {line.mean:.4f}  rank {rank}{beside}")
    return "\n".join(text)

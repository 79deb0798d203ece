"""The report: means, ranks and differences of the methods, every table's scores, and a figure."""

import statistics
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from ..common.report import Report, Table, busy_notes
from .comparison import FLOORS, Line, compare, table_means
from .protocol import FLOOR, METRICS, MOST_TEST_ROWS

TITLES = {"auc": "ROC AUC", "accuracy": "accuracy", "log_loss": "log loss", "r2": "R²"}
DIFFERENCES = (
    "A difference is ours less the other method's, for a loss the reverse, so that ours is better "
    "above 0. Its 95% interval is a bootstrap over tables, p is of Wilcoxon's signed-rank test "
    "over tables, and ours is at par if the interval includes 0."
)


def report(results: Mapping[str, Any]) -> Report:
    """The report of one or both parts of the results."""
    found = Report(caption="means over tables by number of training rows")
    panels: list[tuple[Mapping[str, Any], str]] = []
    if part := results.get("classification"):
        _classification(part, found)
        panels += [(part, metric) for metric in METRICS]
    if part := results.get("regression"):
        _regression(part, found)
        panels += [(part, "r2")]
    found.picture = lambda path: draw(panels, path)
    return found


def _classification(part: Mapping[str, Any], found: Report) -> None:
    found.parts.append(
        f"Tables with classes: {len(part['ours'])}, {part['splits']} splits of each. A score is "
        f"the mean over splits, then over tables. There are at most {MOST_TEST_ROWS} test rows, "
        f"and no probability is below {FLOOR:g}. {_weights(part)} {DIFFERENCES}"
    )
    _add_failures(part, found)
    for metric in METRICS:
        found.parts += [
            f"{TITLES[metric]} / mean rank among all methods but the class frequencies:",
            _by_method(part, metric, _mean_and_rank),
            f"Differences in {TITLES[metric]}:",
            _by_method(part, metric, _difference, others=True),
        ]
    if "seconds" in part:
        taken = part["seconds"]
        found.parts.append(
            f"Ours predicts {part['queries']:,} rows from {part['examples']} in "
            f"{statistics.median(taken):.2f} s ({min(taken):.2f} to {max(taken):.2f}), and for "
            f"the first time, with compilation, in {part['first_seconds']:.1f} s."
        )
        found.parts += busy_notes({"the prediction": part["others_cpu"]})
    else:
        found.problems.append(f"tables, time of a prediction: {part['timing_failed']}")
    _every_table(part, ("auc", "log_loss"), ("rows", "columns", "classes"), found)


def _regression(part: Mapping[str, Any], found: Report) -> None:
    found.parts.append(
        f"Tables with numbers for labels: {len(part['ours'])}, {part['splits']} splits of each; "
        f"they are too few for a test. {_weights(part)}"
    )
    _add_failures(part, found)
    found.parts += [
        "R² / mean rank among all methods but the mean:",
        _by_method(part, "r2", _mean_and_rank),
    ]
    _every_table(part, ("r2",), ("rows", "columns"), found)


def _weights(part: Mapping[str, Any]) -> str:
    return f"Ours is the run {part['run']}." if part["run"] else "Ours has the package's weights."


def _add_failures(part: Mapping[str, Any], found: Report) -> None:
    found.problems += [f"tables, ours on {table}: {why}" for table, why in part["failed"].items()]


def _by_method(
    part: Mapping[str, Any], metric: str, cell: Callable[[Line], str], others: bool = False
) -> Table:
    """A row for each method, or for each other than ours, and a column for each size."""
    columns = [compare(part["ours"], part["scores"], size, metric) for size in part["sizes"]]
    by_method = list(zip(*columns, strict=True))[1 if others else 0 :]
    headings = ["method", *(f"{size} rows" for size in part["sizes"])]
    return Table(headings, [[lines[0].method, *map(cell, lines)] for lines in by_method])


def _mean_and_rank(line: Line) -> str:
    return f"{line.mean:.3f}" + ("" if line.rank is None else f" / {line.rank:.1f}")


def _difference(line: Line) -> str:
    assert line.beside is not None
    low, high = line.beside.interval
    return (
        f"{line.beside.mean:+.3f} ({low:+.3f} to {high:+.3f}), p {line.beside.p:.3f}, "
        f"{line.beside.verdict}"
    )


def _every_table(
    part: Mapping[str, Any], metrics: Sequence[str], shape: Sequence[str], found: Report
) -> None:
    """Adds the scores of all methods on every table, for each size."""
    methods = {"ours": part["ours"], **part["scores"]}
    for size in part["sizes"]:
        means = {
            method: [
                table_means({table: scores[table] for table in part["ours"]}, size, metric)
                for metric in metrics
            ]
            for method, scores in methods.items()
        }
        rows = []
        for at, table in enumerate(part["ours"]):
            cells = [
                " / ".join(f"{values[at]:.3f}" for values in means[method]) for method in methods
            ]
            rows.append([table, *map(str, part["shapes"][table]), *cells])
        titles = " / ".join(TITLES[metric] for metric in metrics)
        found.parts += [
            f"{titles} of every table at {size} training rows:",
            Table(["table", *shape, *methods], rows),
        ]


def draw(panels: Sequence[tuple[Mapping[str, Any], str]], path: Path) -> None:
    """Draws the mean of each metric over tables by number of training rows, a line a method."""
    from matplotlib.figure import Figure

    figure = Figure(figsize=(3.6 * len(panels), 3.8), layout="constrained")
    lines: dict[str, Any] = {}
    for (part, metric), panel in zip(panels, figure.subplots(1, len(panels), squeeze=False)[0]):
        methods = {"ours": part["ours"], **part["scores"]}
        for method, scores in methods.items():
            if method in FLOORS:
                continue
            scores = {table: scores[table] for table in part["ours"]}
            means = [table_means(scores, size, metric).mean() for size in part["sizes"]]
            style = {"color": lines[method].get_color()} if method in lines else {}
            if method == "ours":
                style = {"color": "black", "linewidth": 2.5}
            [lines[method]] = panel.plot(part["sizes"], means, ".-", label=method, **style)
        panel.set_xscale("log", base=2)
        panel.set_xticks(part["sizes"], [str(size) for size in part["sizes"]])
        panel.set(xlabel="training rows", title=TITLES[metric])
        panel.grid(alpha=0.3)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)

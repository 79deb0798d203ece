"""Predictions on real tables, beside scikit-learn's defaults and XGBoost.

Ours are `icl.sklearn.InContextClassifier` and, on tables of numbers, `InContextRegressor`, with
the weights that ship with the package or those of a run. Every method has equal training rows and
equal test rows. All methods are fitted, unless the results of an earlier run give their scores.
"""

import argparse
import json
import time
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import jax
import numpy as np

from icl.sklearn import InContextClassifier, InContextRegressor
from icl.training.parallel import use_cpu_cores

from ..common.driver import one_of, positive
from ..common.report import Report
from ..common.turns import take_turns
from ..common.worker import describe_error
from . import methods, page, regression
from .baselines import PROTOCOL, Fit, fit_methods, rounded, taken_over
from .protocol import SIZES, SPLITS, Scores, score
from .sets import DEVELOPMENT, REPORTED, load

PARTS = ("classification", "regression")
TIMED, TIMED_EXAMPLES, TIMED_QUERIES = "contraceptive", 128, 1000


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's arguments."""
    parser.add_argument("tables", nargs="*", type=one_of((*REPORTED, *DEVELOPMENT)),
                        metavar="TABLE", help="tables with classes; by default all that are "
                                              "reported")  # fmt: skip
    parser.add_argument("--development", action="store_true",
                        help="the tables that chose the prior, which are not reported")  # fmt: skip
    parser.add_argument("--only", choices=PARTS, help="one part")
    parser.add_argument("--sizes", nargs="+", type=positive, default=list(SIZES),
                        help="numbers of training rows")  # fmt: skip
    parser.add_argument("--splits", type=positive, default=SPLITS, help="splits of each table")
    parser.add_argument("--run", help="a run that predicts classes, in place of the package's "
                                      "weights")  # fmt: skip
    parser.add_argument("--regression-run", metavar="RUN", help="a run that predicts numbers")
    parser.add_argument("--baselines-from", type=Path, metavar="FILE",
                        help="results of an earlier run: only ours is fitted again")  # fmt: skip
    parser.set_defaults(rounds=5)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The results for the JSON file."""
    use_cpu_cores()
    earlier = _earlier(options.baselines_from)
    parts = [options.only] if options.only else PARTS
    results: dict[str, Any] = {"device": jax.devices()[0].device_kind}
    for part in parts:
        if earlier is not None and part not in earlier:
            raise ValueError(f"{options.baselines_from} has no part {part}: choose --only another")
        measured = _classification if part == "classification" else _regression
        results[part] = measured(options, earlier and earlier[part])
    return results


def _earlier(path: Path | None) -> dict[str, Any] | None:
    if path is None:
        return None
    try:
        return json.loads(path.read_text())
    except (OSError, json.JSONDecodeError) as error:
        raise ValueError(f"--baselines-from {path}: {error}") from error


def _classification(options: argparse.Namespace, earlier: Any) -> dict[str, Any]:
    """Scores of all methods on tables with classes, and the time of our prediction."""
    tables = options.tables or list(DEVELOPMENT if options.development else REPORTED)
    make = lambda: InContextClassifier(options.run)
    timed = load(TIMED)
    times = _times(make, timed.x, timed.y, options.rounds)  # before scores, which compile too
    fit = partial(score, sizes=options.sizes, splits=options.splits)
    part = _part(
        options,
        earlier,
        tables,
        methods.METHODS,
        fit_other=partial(fit, sets=tables, one_hot=True),
        fit_ours=lambda table: fit(make, [table]),
    )
    about = {name: load(name) for name in tables}
    part["shapes"] = {name: [*data.x.shape, data.classes] for name, data in about.items()}
    return part | times | {"run": options.run}


def _regression(options: argparse.Namespace, earlier: Any) -> dict[str, Any]:
    """Scores of all methods on tables with numbers for labels."""
    tables = list(regression.TABLES)
    make = lambda: InContextRegressor(options.regression_run)
    fit = partial(regression.score_regression, sizes=options.sizes, splits=options.splits)
    part = _part(
        options,
        earlier,
        tables,
        regression.METHODS,
        fit_other=partial(fit, tables=tables),
        fit_ours=lambda table: fit(make, [table]),
    )
    about = {name: regression.load(name)[0] for name in tables}
    part["shapes"] = {name: list(x.shape) for name, x in about.items()}
    return part | {"run": options.regression_run}


def _part(
    options: argparse.Namespace,
    earlier: Any,
    tables: Sequence[str],
    others: dict[str, Callable[[], Any]],
    fit_other: Fit,
    fit_ours: Callable[[str], tuple[Scores, float]],
) -> dict[str, Any]:
    """What both parts have: scores of the other methods and ours, and our failures by table."""
    if earlier is not None:  # refused before anything is fitted
        scores = taken_over(earlier, tables, options.sizes, options.splits, list(others))
    ours, failed = {}, {}
    for table in tables:
        try:
            ours |= fit_ours(table)[0]
        except Exception as error:  # of any kind: it is reported, and the other tables go on
            failed[table] = describe_error(error)
    if not ours:
        raise ValueError(f"ours failed on every table; on {tables[-1]}: {failed[tables[-1]]}")
    if earlier is None:
        scores = fit_methods(others, fit_other)
    return {
        "protocol": PROTOCOL,
        "sizes": list(options.sizes),
        "splits": options.splits,
        "scores": {method: rounded(found) for method, found in scores.items()},
        "ours": rounded(ours),
        "failed": failed,
    }


class _Process:
    """This process's CPU time, for `take_turns`."""

    @property
    def cpu_seconds(self) -> float:
        return time.process_time()


def _times(make: Callable[[], Any], x: np.ndarray, y: np.ndarray, rounds: int) -> dict[str, Any]:
    """Seconds of our prediction of `TIMED_QUERIES` rows: the first, and each after it."""
    order = np.random.default_rng(0).permutation(len(y))
    train, test = np.split(order[: TIMED_EXAMPLES + TIMED_QUERIES], [TIMED_EXAMPLES])
    ours = make()

    def turn() -> float:
        started = time.perf_counter()
        ours.fit(x[train], y[train]).predict_proba(x[test])
        return time.perf_counter() - started

    try:
        first = turn()
        taken, others = take_turns({"ours": turn}, [_Process()], rounds)
    except Exception as error:  # as in `_part`
        return {"timing_failed": describe_error(error)}
    return {
        "examples": TIMED_EXAMPLES,
        "queries": TIMED_QUERIES,
        "first_seconds": first,
        "seconds": taken["ours"],
        "others_cpu": others,
    }


def report(results: dict[str, Any]) -> Report:
    """Tables of scores, ranks and differences, and a figure."""
    return page.report(results)

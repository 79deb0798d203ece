"""The lasso of every prefix and penalty, compared with a loop over scikit-learn's lasso.

Garg et al. run such a loop, which fits anew for each prompt, prefix and penalty. It is timed on
some of the prompts, and the time is scaled to all. Before timing, predictions are compared at a
tight tolerance. If points are fewer than dimensions and the penalty is small, scikit-learn's
coordinate descent may stop before it reaches the tolerance; then the comparison uses `LassoLars`.
"""

import argparse
import time
import warnings
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from icl.evaluation import baselines, draw_prompts
from icl.evaluation.baselines.lasso import PENALTIES
from icl.tasks import LinearRegression

from ..common.driver import positive
from ..common.report import Report, Table, busy_notes
from ..common.turns import ratios, summary, take_turns
from ..common.worker import Started, Worker, failures_as_values

LASSO = "bench.tasks.lasso:start"
CHUNK = 128  # prompts solved at once
TIGHT = 1e-10  # tolerance of the comparison
LOOSE = 1e-4  # tolerance of the timed loop: scikit-learn's default, as in Garg et al.
MAX_ITERATIONS = 100_000
LARGEST_DIFFERENCE = 1e-4
SIZES = {"prompts": 1280, "loop_prompts": 16, "checked_prompts": 4, "dim": 20, "points": 41}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's arguments."""
    parser.set_defaults(rounds=5)
    helps = {"loop_prompts": "prompts of the timed loop", "checked_prompts": "prompts compared"}
    for name, default in SIZES.items():
        flag = f"--{name.replace('_', '-')}"
        parser.add_argument(flag, type=positive, default=default, help=helps.get(name))
    parser.add_argument("--noise", type=float, default=None, help="standard deviation")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The results for the JSON file."""
    sizes = {name: getattr(options, name) for name in SIZES} | {"noise": options.noise or 0.0}
    with Worker(LASSO, sizes) as worker:
        turns = {"ours": worker.asks("ours"), "loop": worker.asks("loop")}
        taken, others = take_turns(turns, [worker], options.rounds)
    return {
        **sizes,
        **worker.ready,
        "penalties": PENALTIES,
        "others_cpu": others,
        "seconds": {name: summary(seconds) for name, seconds in taken.items()},
        "loop_over_ours": ratios(taken["loop"], taken["ours"]),
    }


def start(sizes: dict[str, Any]) -> Started:
    """Compares predictions, and returns commands that time ours and the loop.

    Raises:
      ValueError: predictions differ, or scikit-learn is missing.
    """
    jax.config.update("jax_enable_x64", True)
    family = LinearRegression(**{name: sizes[name] for name in ("dim", "points", "noise")})
    episodes = draw_prompts(family, jax.random.key(0), sizes["prompts"])
    x, y = np.asarray(episodes.x, np.float64), np.asarray(episodes.y, np.float64)
    with failures_as_values():
        started = time.perf_counter()
        ours = _ours(x, y)
        first = time.perf_counter() - started
        checked = sizes["checked_prompts"]
        agreement = _compare(ours[:, :checked], x[:checked], y[:checked])
    largest = max(agreement["largest_difference"], agreement["largest_difference_from_lars"])
    if not largest <= LARGEST_DIFFERENCE:
        raise ValueError(f"predictions differ by {largest:.1e}: nothing is timed")

    def our_turn() -> dict[str, Any]:
        started = time.perf_counter()
        _ours(x, y)
        return {"seconds": time.perf_counter() - started}

    def loop_turn() -> dict[str, Any]:
        some, started = slice(sizes["loop_prompts"]), time.perf_counter()
        _loop(x[some], y[some], LOOSE)
        share = len(x[some]) / len(x)
        return {"seconds": (time.perf_counter() - started) / share}

    device = jax.devices()[0].device_kind
    ready = {"device": device, "compile_and_first_seconds": first, "agreement": agreement}
    return ready, {"ours": our_turn, "loop": loop_turn}


def _ours(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Our predictions `[A, B, P]`, by chunks of prompts; the last chunk is filled up."""
    parts = []
    for first in range(0, len(x), CHUNK):
        chunk = np.arange(first, first + CHUNK) % len(x)
        found = baselines.lasso_path(jnp.asarray(x[chunk]), jnp.asarray(y[chunk]), PENALTIES)
        parts.append(np.asarray(found))
    return np.concatenate(parts, axis=1)[:, : len(x)]


def _loop(x: np.ndarray, y: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's predictions `[A, B, P]`, and whether each fit reached the tolerance."""
    from sklearn.linear_model import Lasso

    predictions, reached = np.zeros((2, len(PENALTIES), *y.shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # warnings of fits that stopped early
        for a, alpha in enumerate(PENALTIES):
            model = Lasso(alpha, fit_intercept=False, tol=tolerance, max_iter=MAX_ITERATIONS)
            for b, k in np.ndindex(*y.shape):
                if k > 0:
                    model.fit(x[b, :k], y[b, :k])
                    predictions[a, b, k] = x[b, k] @ model.coef_
                reached[a, b, k] = k == 0 or np.max(model.n_iter_) < MAX_ITERATIONS
    return predictions, reached.astype(bool)


def _compare(ours: np.ndarray, x: np.ndarray, y: np.ndarray) -> dict[str, Any]:
    """Largest differences from the loop, and from `LassoLars` if a fit of it stopped early."""
    from sklearn.linear_model import LassoLars

    theirs, reached = _loop(x, y, TIGHT)
    by_path = []
    for a, b, k in np.argwhere(~reached):
        model = LassoLars(PENALTIES[a], fit_intercept=False).fit(x[b, :k], y[b, :k])
        by_path.append(abs(x[b, k] @ model.coef_ - ours[a, b, k]))
    return {
        "tolerance": TIGHT,
        "compared": int(reached.sum()),
        "largest_difference": float(np.abs(theirs - ours)[reached].max()),
        "stopped_short": int((~reached).sum()),
        "largest_difference_from_lars": float(max(by_path, default=0.0)),
    }


def report(results: dict[str, Any]) -> Report:
    """A table of times and the differences of predictions."""
    agreement, over = results["agreement"], results["loop_over_ours"]
    rows = [(name, f"{s['median']:.2f}", f"{s['min']:.2f} to {s['max']:.2f}")
            for name, s in results["seconds"].items()]  # fmt: skip
    rows.append(
        ("loop over ours", f"{over['median']:.0f}", f"{over['min']:.0f} to {over['max']:.0f}")
    )
    text = (
        f"{results['prompts']} prompts of {results['points']} points and {results['dim']} "
        f"dimensions. The loop was timed on {results['loop_prompts']} of them, on one core, at "
        f"tolerance {LOOSE:g}. At tolerance {agreement['tolerance']:g} predictions differ by at "
        f"most {agreement['largest_difference']:.1e} ({agreement['compared']} compared; "
        f"{agreement['largest_difference_from_lars']:.1e} from LassoLars for the "
        f"{agreement['stopped_short']} fits that stopped early)."
    )
    headings = ("all prompts", "seconds", "range")
    return Report([text, Table(headings, rows), *busy_notes({"lasso": results["others_cpu"]})])

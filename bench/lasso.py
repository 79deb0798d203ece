"""The lasso of every prefix and penalty, against scikit-learn's in a loop, as Garg et al. run it.

The loop fits anew for each prompt, prefix and penalty; it is timed on some of the prompts, and
scaled to all. Before that, predictions are compared at a tight tolerance. scikit-learn's coordinate
descent may stop short of it, with several points fewer than dimensions and a small penalty; there
its `LassoLars` stands in.
"""

import argparse
import time
import warnings
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from harness import missing, ratios, summary, take_turns, write_results
from machine import describe

from icl.evaluation import baselines, draw_prompts
from icl.evaluation.baselines.lasso import PENALTIES
from icl.tasks import LinearRegression

CHUNK = 128  # prompts solved at once
TIGHT = 1e-10  # tolerance of the comparison; Garg et al. leave scikit-learn's default, 1e-4
MAX_ITERATIONS = 100_000
LARGEST_DIFFERENCE = 1e-4


def main(argv: list[str] | None = None) -> int:
    """Prints and writes seconds for all prompts; 1 where predictions differ."""
    parser = argparse.ArgumentParser(prog="bench/lasso.py", description=__doc__)
    parser.add_argument("--prompts", type=int, default=1280)
    parser.add_argument("--loop-prompts", type=int, default=16, help="of these the loop gets")
    parser.add_argument("--checked-prompts", type=int, default=8, help="compared before timing")
    parser.add_argument("--dim", type=int, default=20)
    parser.add_argument("--points", type=int, default=41)
    parser.add_argument("--noise", type=float, default=0.0, help="standard deviation")
    parser.add_argument("--reps", type=int, default=5, help="turns each gets")
    parser.add_argument("--output", type=Path, help="JSON file in place of the one in results/")
    options = parser.parse_args(argv)
    if missing("sklearn"):
        print("scikit-learn is missing: pip install scikit-learn")
        return 1
    jax.config.update("jax_enable_x64", True)
    device = jax.devices()[0]
    family = LinearRegression(dim=options.dim, points=options.points, noise=options.noise)
    episodes = draw_prompts(family, jax.random.key(0), options.prompts)
    x, y = np.asarray(episodes.x, np.float64), np.asarray(episodes.y, np.float64)
    cases = {n: getattr(options, n) for n in ("prompts", "dim", "points", "noise", "loop_prompts")}
    results = {
        "machine": describe() | {"device": device.device_kind},
        "task": "linear regression",
        **cases,
        "penalties": PENALTIES,
        "chunk": CHUNK,
        "loop": f"timed on {options.loop_prompts} prompts, scaled by prompts to all; one core; "
        f"tolerance 1e-4, at most {MAX_ITERATIONS} iterations",
    }

    started = time.perf_counter()
    ours = _ours(x, y)
    first = time.perf_counter() - started
    results["agreement"] = agreement = _compare(ours, x, y, options.checked_prompts)
    largest, by_lars = agreement["largest_difference"], agreement["largest_difference_from_lars"]
    print(f"largest difference {largest:.1e} over {agreement['compared']} predictions; "
          f"{by_lars:.1e} where {agreement['stopped_short']} fits stopped short")  # fmt: skip
    if not max(largest, by_lars) <= LARGEST_DIFFERENCE:
        print(f"above {LARGEST_DIFFERENCE}: nothing is timed")
        return 1

    def our_turn() -> float:
        started = time.perf_counter()
        _ours(x, y)
        return time.perf_counter() - started

    def loop_turn() -> float:
        started = time.perf_counter()
        _loop(x[: options.loop_prompts], y[: options.loop_prompts], tolerance=1e-4)
        return (time.perf_counter() - started) * options.prompts / options.loop_prompts

    taken = take_turns({"ours": our_turn, "loop": loop_turn}, options.reps)
    over = ratios(taken["loop"], taken["ours"])
    results |= {
        "compile_and_first_seconds": first,
        "seconds": {name: summary(seconds) for name, seconds in taken.items()},
        "loop_over_ours": over,
    }
    for name, seconds in results["seconds"].items():
        print(f"{name}: {seconds['median']:.2f} s for {options.prompts} prompts")
    print(f"the loop takes {over['median']:.0f} times as long "
          f"({over['min']:.0f} to {over['max']:.0f})")  # fmt: skip
    print(f"written to {write_results('lasso', results, options.output)}")
    return 0


def _ours(x: np.ndarray, y: np.ndarray) -> np.ndarray:
    """Predictions `[A, B, P]`, a chunk of prompts at a time, the last one filled up."""
    parts = []
    for start in range(0, len(x), CHUNK):
        chunk = np.arange(start, start + CHUNK) % len(x)
        found = baselines.lasso_path(jnp.asarray(x[chunk]), jnp.asarray(y[chunk]), PENALTIES)
        parts.append(np.asarray(found))
    return np.concatenate(parts, axis=1)[:, : len(x)]


def _loop(x: np.ndarray, y: np.ndarray, tolerance: float) -> tuple[np.ndarray, np.ndarray]:
    """scikit-learn's predictions `[A, B, P]`, and whether their fits reached the tolerance."""
    from sklearn.linear_model import Lasso

    predictions, reached = np.zeros((2, len(PENALTIES), *y.shape))
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of fits that stopped short
        for a, alpha in enumerate(PENALTIES):
            model = Lasso(alpha, fit_intercept=False, tol=tolerance, max_iter=MAX_ITERATIONS)
            for b, k in np.ndindex(*y.shape):
                if k > 0:
                    model.fit(x[b, :k], y[b, :k])
                    predictions[a, b, k] = x[b, k] @ model.coef_
                reached[a, b, k] = k == 0 or np.max(model.n_iter_) < MAX_ITERATIONS
    return predictions, reached.astype(bool)


def _compare(ours: np.ndarray, x: np.ndarray, y: np.ndarray, prompts: int) -> dict[str, Any]:
    """Largest difference from the loop, or from scikit-learn's path where that stopped short."""
    from sklearn.linear_model import LassoLars

    x, y, ours = x[:prompts], y[:prompts], ours[:, :prompts]
    theirs, reached = _loop(x, y, TIGHT)
    by_path = []
    for a, b, k in np.argwhere(~reached):
        model = LassoLars(PENALTIES[a], fit_intercept=False).fit(x[b, :k], y[b, :k])
        by_path.append(abs(x[b, k] @ model.coef_ - ours[a, b, k]))
    return {
        "tolerance": TIGHT,
        "prompts": prompts,
        "compared": int(reached.sum()),
        "largest_difference": float(np.abs(theirs - ours)[reached].max()),
        "stopped_short": int((~reached).sum()),
        "largest_difference_from_lars": float(max(by_path, default=0.0)),
    }


if __name__ == "__main__":
    raise SystemExit(main())

"""The gap between attention and its dual model with random features, by their number.

Ren & Liu 2023 (arXiv 2310.13220), on untrained layers: 15 demonstrations of linear regression in 10
dimensions, as in the paper.
"""

import dataclasses
import functools
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from ..experiments.ren import DEMONSTRATIONS, TASK
from ..report import CHANCE, WIDTH, Result, at_least_one, legend_of_panel, log_axis, show_number
from ..tasks import LAYOUTS
from .dual import (
    GAP_LABEL,
    KERNEL,
    QUANTILES,
    DualProblem,
    draw_curves,
    dual_problem,
    feature_descent,
    kernel_descent,
)

FEATURES = (100, 1_000, 12_000, 100_000)
# |f(W_Q x') - h'| by number of features in one draw; 0 stands for the gap before the first step.
REFERENCE = {0: 0.592, 100: 0.417, 1_000: 0.111, 12_000: 0.060, 100_000: 0.006}
DRAWS = 200


@dataclasses.dataclass(frozen=True)
class FeatureGaps(Result):
    """|f(W_Q x') - h'| of untrained layers, by number of features or "kernel".

    Attributes:
      draws: number of draws of prompt, layer and features.
      seed: seed of the draws.
      start: the gap before the first step, with the exact features, at `quantiles`, `[3]`.
      curves: the gap before the first step and after each, at `quantiles`, `[3, N + 1]`.
      path: the folder.
      quantiles: over draws.
      reference: gaps of one draw by number of features, 0 for that before the first step.
    """

    draws: int
    seed: int
    start: np.ndarray
    curves: dict[str, np.ndarray]
    path: Path
    quantiles: tuple[float, ...] = QUANTILES
    reference: dict[int, float] = dataclasses.field(default_factory=lambda: REFERENCE)

    file = "random-features"
    again = "icl study ren/random-features --folder {path}"
    saved_as = {"start": "before_the_first_step", "curves": "gap_by_step"}

    def table(self) -> Table:
        """A row for each number of features: quantiles after all steps."""
        result = Table(
            title="|f(W_Q x') - h'| of the dual model and attention",
            caption=(
                f"{DEMONSTRATIONS} steps, {self.draws} draws of prompt, layer and features; "
                "reference: one draw"
            ),
        )
        for name in ("features", "5%", "median", "95%", "reference"):
            result.add_column(name, justify="right")
        reference = lambda count: show_number(REFERENCE.get(count, np.nan))
        result.add_row("before the first step", *map(show_number, self.start), reference(0))
        for which, curve in self.curves.items():
            if which != KERNEL:
                cells = map(show_number, curve[:, -1])
                result.add_row(f"{int(which):,}", *cells, reference(int(which)))
        result.add_row(
            "exact kernel", *map(show_number, self.curves[KERNEL][:, -1]), show_number(np.nan)
        )
        return result

    def figure(self, plt: Any) -> Any:
        """Left the gap after all steps by number of features, right the gap by step."""
        counts = sorted(int(which) for which in self.curves if which != KERNEL)
        ends = [self.curves[str(count)][:, -1] for count in counts]
        low, median, high = np.stack(ends, axis=1)
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(WIDTH, 2.5), layout="constrained", sharey=False
        )
        left.plot(counts, median, "o-", label="median")
        left.fill_between(counts, low, high, alpha=0.2, label="5% to 95%", linewidth=0)
        known = [count for count in counts if count in REFERENCE]
        references = [REFERENCE[count] for count in known]
        left.plot(known, references, "kx", label="reference, one draw", zorder=3)
        left.axhline(self.start[1], label="before the first step", **CHANCE)
        left.set(xlabel="random features", ylabel=GAP_LABEL, title="after all steps", xscale="log")
        log_axis(left, "y")
        draw_curves(right, self.curves)
        right.set(ylabel=GAP_LABEL, title="medians by step")
        legend_of_panel(left, right)
        return figure


def random_layer(key: jax.Array) -> tuple[DualProblem, jax.Array]:
    """An untrained softmax layer on a regression prompt: its dual, and h' `[11]`.

    Tokens (x, y) have x ~ U(-1, 1)^10 and w ~ N(0, I); the query (x, 0) is also a key. W_Q, W_K and
    W_V have entries N(0, 1/11); scores are divided by sqrt(11). The key is consumed.
    """
    task_key, episode_key, weight_key = jax.random.split(key, 3)
    task = TASK.sample_task(task_key, TASK.full)
    episode = TASK.sample_episode(episode_key, task, TASK.full)
    tokens = LAYOUTS["concatenated"].encode(episode)
    width = tokens.shape[1]
    weights = jax.random.normal(weight_key, (3, width, width)) / width**0.5
    with jax.default_matmul_precision("highest"):
        query, keys, values = jnp.einsum("tw,nwh->nth", tokens, weights)
        scores = keys @ query[-1] / width**0.5
        output = jax.nn.softmax(scores) @ values
    return dual_problem(query[-1], keys, values, DEMONSTRATIONS), output


@functools.partial(jax.jit, static_argnums=1)
def gaps(keys: jax.Array, count: int | None) -> jax.Array:
    """|f(W_Q x') - h'| of layers drawn from keys `[B]`, `[B, N + 1]`.

    Each layer draws `count` features of its own; None stands for the exact kernel.
    """

    def of_one(key: jax.Array) -> jax.Array:
        layer_key, feature_key = jax.random.split(key)
        problem, output = random_layer(layer_key)
        if count is None:
            found = kernel_descent(problem)
        else:
            size = len(problem.query)
            found = feature_descent(problem, jax.random.normal(feature_key, (count, size)))
        return jnp.linalg.norm(found.outputs - output[None], axis=-1)

    return jax.lax.map(of_one, keys)


def random_features(
    folder: Path, *, features: Sequence[int] = FEATURES, draws: int = DRAWS, seed: int = 0
) -> FeatureGaps:
    """The gap between attention and its dual by number of random features.

    Writes `random-features.json` and `random-features.png` in the folder, which must exist. Each
    draw has a new prompt, layer (`random_layer`) and features.

    Args:
      folder: folder for the files.
      features: numbers of features.
      draws: number of draws for each number of features.
      seed: seed of the draws.

    Raises:
      ValueError: fewer than one draw or feature.
    """
    at_least_one(draws=draws, features=min(features))
    keys = jax.random.split(jax.random.key(seed), draws)
    counts = {KERNEL: None} | {str(count): count for count in features}
    # All numbers of features get equal prompts and layers.
    again = lambda: jax.random.clone(keys)
    found = {which: np.asarray(gaps(again(), count)) for which, count in counts.items()}
    # With the exact features; random features start near it.
    start = np.quantile(found[KERNEL][:, 0], QUANTILES)
    curves = {which: np.quantile(gap, QUANTILES, axis=0) for which, gap in found.items()}
    return FeatureGaps(draws, seed, start, curves, folder).written()

"""Pretraining task diversity and the emergence of non-Bayesian in-context learning for regression.

Raventós, Paul, Chen & Ganguli 2023 (arXiv 2306.15063). Linear regression with noise, trained on a
pool of M tasks: up to a threshold in M the learner predicts as the optimal estimator for the pool
(dMMSE), beyond it as the optimal one for all tasks (ridge), which on the pool is worse.

`raventos/pool` follows section 2 and the public code: 8 dimensions, 16 points, noise of variance
0.25, tokens (0, x) and (y, 0), GPT-2 of 8 layers without biases at its ends, Adam with the
"triangle" learning rate, 500,000 batches of 256, the loss on all labels. The initial weights at
the two ends are this library's, uniform, in place of N(0, 0.02^2). `raventos/pool-small` is its
smaller model (section 3.3). `raventos/pool-xs` has 3 dimensions, 8 points and 1/500 of the prompts,
for two CPU cores. Its pools end at 32 tasks: ridge and dMMSE come nearer to each other as the pool
grows, and the learner's own error must stay below their distance.

A sweep of any of them over pool sizes, its own grid where none is given, ends with the paper's
figure 2: threshold.png, threshold.json and a table. With several seeds the threshold has an
interval; there is none where it would be in the learner's own error.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from scipy.special import stdtrit  # scipy comes with JAX

from ..evaluation.figures import STYLE, pyplot, save_figure
from ..evaluation.pool import PAIRS, PREDICTORS, TASKS, PoolEvaluation, evaluate_pools
from ..evaluation.result import show_number
from ..models import TransformerConfig
from ..sweeps.grid import SEED, short_name
from ..sweeps.results import SweepResult
from ..tasks import LinearRegression
from ..training.config import Config, OptimizerConfig, TrainingConfig
from ..training.run import Run, write_json
from .presets import register

if TYPE_CHECKING:
    from ..sweeps import Sweep

POOL_SIZE = "training_pool_size"
PROMPTS = 2048
COLOURS = {"learner": "C0", "ridge": "C1", "dMMSE": "C2"}


def threshold(sweep: "Sweep") -> Table | None:
    """Figure 2 of the paper for a finished sweep over pool sizes: threshold.png and .json.

    Each model is held against ridge and dMMSE as by `icl.evaluation.evaluate_pool`, where its
    folder does not have that yet. Settings that the sweep is over beside pool size and seed get a
    row of the figure for each combination.

    Returns:
      A row for each pool size, averaged over seeds; None for a sweep over fewer than two pool
      sizes, or with fresh tasks among them.
    """
    sizes = sweep.over.get(POOL_SIZE, [])
    if len(sizes) < 2 or None in sizes:
        return None
    trained = {r["member"] for r in SweepResult.load(sweep).records if "examples" in r}
    members = [member for member in sweep.members if member.path.name in trained]
    lines: dict[str, _Line] = {}
    for member, found in zip(members, _evaluations([member.run for member in members])):
        rest = {k: v for k, v in member.changes.items() if k not in (POOL_SIZE, SEED)}
        line = lines.setdefault(json.dumps(rest), _Line(rest))
        seed = member.config.training.seed
        line.found.setdefault(seed, {})[found.pool_size] = found
    data = {"prompts": PROMPTS, "lines": [line.as_data() for line in lines.values()]}
    write_json(sweep.path / "threshold.json", data)
    path = sweep.path / "threshold.png"
    _figure(list(lines.values()), sweep.path.name, path)
    return _table(list(lines.values()), path)


def _evaluations(runs: list[Run]) -> Iterable[PoolEvaluation]:
    """Those in the folders of finished runs, made where they are missing."""
    found: dict[Path, PoolEvaluation] = {}
    for run in runs:
        if (run.path / "pool.json").exists():
            result = PoolEvaluation.load(run)
            if (result.step, result.prompts) == (run.config.training.steps, PROMPTS):
                found[run.path] = result
    missing = [run for run in runs if run.path not in found]
    found |= {result.path: result for result in evaluate_pools(missing, prompts=PROMPTS)}
    return [found[run.path] for run in runs]


@dataclasses.dataclass
class _Line:
    """The evaluations of models that differ in pool size and seed alone, by seed and pool size."""

    changes: dict[str, Any]
    found: dict[int, dict[int, PoolEvaluation]] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        return ", ".join(f"{short_name(name)} {value}" for name, value in self.changes.items())

    @property
    def sizes(self) -> list[int]:
        return sorted(set().union(*self.found.values()))

    def values(self, part: str, kind: str, name: str) -> np.ndarray:
        """An error or a difference, averaged over positions, `[seeds, sizes]`; NaN where none."""
        mean = lambda one: np.nan if one is None else float(getattr(one, part)[kind][name].mean())
        return np.array([[mean(of.get(size)) for size in self.sizes] for of in self.found.values()])

    def mean(self, part: str, kind: str, name: str) -> np.ndarray:
        """The same, averaged over seeds, `[sizes]`."""
        return np.nanmean(self.values(part, kind, name), axis=0)

    def share_and_rest(self) -> tuple[np.ndarray, np.ndarray]:
        """How far a learner went from dMMSE to ridge, and what is left, each `[seeds, sizes]`.

        On fresh tasks its predictions are dMMSE + share (ridge - dMMSE) + rest, where the rest has
        no part along ridge - dMMSE. Share 0 is dMMSE, 1 ridge, and at 1/2 it is as far from both.
        The rest, as a mean square, is the learner's own error.
        """
        to_dmmse, to_ridge, between = self._distances()
        share = (to_dmmse - to_ridge + between) / (2 * between)
        return share, np.maximum(to_dmmse - share**2 * between, 0)

    def _distances(self) -> list[np.ndarray]:
        pairs = ("learner, dMMSE", "learner, ridge", "ridge, dMMSE")
        return [self.values("difference", "fresh", pair) for pair in pairs]

    def thresholds(self) -> list[float | None]:
        """For each seed the pool size from which on the learner is nearer to ridge than to dMMSE.

        On fresh tasks, by a line against the logarithm of the size. Only sizes where ridge is
        further from dMMSE than the learner's own error tell; None where these have no crossing.
        """
        share, rest = self.share_and_rest()
        sizes, crossings = np.log2(self.sizes), []
        for of_seed, seen in zip(share, self._seen(rest)):
            at = np.flatnonzero(seen)
            crossing = None
            for below, above in zip(at, at[1:]):
                if of_seed[below] <= 0.5 < of_seed[above]:
                    part = (0.5 - of_seed[below]) / (of_seed[above] - of_seed[below])
                    crossing = float(2 ** (sizes[below] + part * (sizes[above] - sizes[below])))
            crossings.append(crossing)
        return crossings

    def _seen(self, rest: np.ndarray) -> np.ndarray:
        return rest < self._distances()[2]

    def threshold(self) -> tuple[float, float, float] | None:
        """Geometric mean of the seeds' thresholds and a 90% interval of it; None without any.

        The interval is Student's for the logarithms, NaN for a single threshold.
        """
        seen = np.log2([one for one in self.thresholds() if one is not None])
        if not len(seen):
            return None
        middle, half = seen.mean(), np.nan
        if len(seen) > 1:
            half = stdtrit(len(seen) - 1, 0.95) * seen.std(ddof=1) / len(seen) ** 0.5
        return float(2**middle), float(2 ** (middle - half)), float(2 ** (middle + half))

    def verdict(self) -> str:
        """The threshold in words."""
        seen, found = self.threshold(), [one for one in self.thresholds() if one is not None]
        seeds = f"{len(found)} of {len(self.found)} seeds"
        if seen is None:
            return (
                "no threshold seen at the pool sizes where ridge and dMMSE are further apart than "
                "the learner's own error"
            )
        return (
            f"nearer to ridge than to dMMSE from {seen[0]:.3g} tasks on (90% interval "
            f"{seen[1]:.3g} to {seen[2]:.3g}; {seeds})"
            if len(found) > 1
            else f"nearer to ridge than to dMMSE from {seen[0]:.3g} tasks on ({seeds})"
        )

    def as_data(self) -> dict[str, Any]:
        by_kind = lambda part, names: {
            kind: {name: self.values(part, kind, name).T for name in names} for kind in TASKS
        }
        share, rest = self.share_and_rest()
        middle, *interval = self.threshold() or (None,)
        return {
            "changes": self.changes,
            "pool_size": self.sizes,
            "seeds": list(self.found),
            "threshold": middle,
            "threshold_interval": [end for end in interval if np.isfinite(end)],
            "threshold_by_seed": self.thresholds(),
            "share_of_ridge": share.T,
            "own_error": rest.T,
            "error": by_kind("error", PREDICTORS),
            "difference": by_kind("difference", [", ".join(pair) for pair in PAIRS]),
        }


def _figure(lines: list[_Line], title: str, path: Path) -> None:
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, rows = plt.subplots(
            len(lines), 3, figsize=(14, 4.0 * len(lines)), layout="constrained", squeeze=False
        )
        for line, (left, middle, right) in zip(lines, rows):
            sizes, (share, rest) = line.sizes, line.share_and_rest()
            between = line.values("difference", "fresh", "ridge, dMMSE")
            for name in ("dMMSE", "ridge"):
                values = line.values("difference", "fresh", f"learner, {name}")
                label = f"learner from {name}"
                _draw(left, sizes, values, label, color=COLOURS[name], marker="o")
            _draw(left, sizes, between, "ridge from dMMSE", color="0.6", linestyle=":")
            _draw(left, sizes, rest, "learner's own error", color="k", linewidth=1)
            left.set(yscale="log", ylabel="squared difference / d", title="on fresh tasks")

            for of_seed, seen in zip(share, line._seen(rest)):
                middle.plot(sizes, of_seed, color="C0", linewidth=1, alpha=0.6)
                middle.plot(np.extract(seen, sizes), of_seed[seen], "o", color="C0", markersize=5)
                hollow = dict(color="C0", markersize=5, markerfacecolor="w")
                middle.plot(np.extract(~seen, sizes), of_seed[~seen], "o", **hollow)
            for at, name in ((0, "dMMSE"), (1, "ridge")):
                middle.axhline(at, color=COLOURS[name], linewidth=1.3, label=name)
            middle.plot([], [], "o", color="C0", label="learner, each seed")
            middle.plot([], [], "o", label="own error is larger", **hollow)
            middle.set(ylim=(-0.3, 1.5), title="learner, from dMMSE (0) to ridge (1)")

            for kind, style in (("fresh", "-"), ("pool", "--")):
                for name in PREDICTORS:
                    own = dict(linewidth=2.5) if name == "learner" else dict(linewidth=1.3)
                    _draw(
                        right, sizes, line.values("error", kind, name),
                        f"{name}, {TASKS[kind]}", color=COLOURS[name], linestyle=style, **own,
                    )  # fmt: skip
            right.set(yscale="log", ylabel="squared error / d", title=line.label or "error")
            found = line.threshold()
            for axes in (left, middle, right):
                axes.set_xscale("log", base=2)
                axes.set_xlabel("tasks in the pool")
                axes.legend(fontsize=8)
                axes.set_xlim(0.85 * sizes[0], sizes[-1] / 0.85)
                if found is not None and axes is not right:
                    axes.axvline(found[0], color="0.4", linewidth=1, linestyle="--")
                    if np.isfinite(found[1]):
                        axes.axvspan(*found[1:], color="0.5", alpha=0.15, linewidth=0)
        figure.suptitle(title, fontsize=10)
        save_figure(figure, path)


def _draw(axes, sizes: list[int], values: np.ndarray, label: str, **line: Any) -> None:
    """The mean over seeds, with their range, of values `[seeds, sizes]`."""
    axes.plot(sizes, np.nanmean(values, axis=0), label=label, **line)
    low, high = np.nanmin(values, axis=0), np.nanmax(values, axis=0)
    axes.fill_between(sizes, low, high, alpha=0.2, color=line["color"], linewidth=0)


def _table(lines: list[_Line], path: Path) -> Table:
    told = [": ".join(filter(None, (line.label, line.verdict()))) for line in lines]
    result = Table(
        title="learner, ridge and dMMSE by the number of tasks in the pool",
        caption=(
            "squared differences of predictions and squared errors, divided by the dimension\n"
            + "\n".join([*told, f"figure: {path}"])
        ),
        box=None,
        padding=(0, 1),
    )
    result.add_column("\npool size", justify="right")
    columns = [("difference", "fresh", f"learner, {name}") for name in ("dMMSE", "ridge")]
    columns += [("error", kind, name) for kind in TASKS for name in PREDICTORS]
    for part, kind, name in columns:
        head = f"from\n{name.split()[-1]}" if part == "difference" else f"{kind}:\n{name}"
        result.add_column(head, justify="right", no_wrap=True)
    for line in lines:
        if len(lines) > 1:
            result.add_row(line.label, style="bold")
        means = [line.mean(*column) for column in columns]
        for index, size in enumerate(line.sizes):
            result.add_row(str(size), *(show_number(mean[index]) for mean in means))
    return result


def _triangle(steps: int, **options: Any) -> OptimizerConfig:
    """Adam whose learning rate rises for half of the steps, and falls for the other half."""
    return OptimizerConfig(name="adam", schedule="linear", warmup_steps=steps // 2, **options)


PAPER = Config(
    task=LinearRegression(dim=8, points=16, noise=0.5),
    layout="tagged",
    model=TransformerConfig(layers=8, heads=2, width=128, end_bias=False),
    optimizer=_triangle(500_000, learning_rate=1e-3),
    training=TrainingConfig(
        steps=500_000, batch_size=256, pool_size=2**20, checkpoint_every=10_000
    ),
)

register(
    "raventos/pool",
    "linear regression from a pool of tasks, d=8, 16 points, 8 layers (for a GPU)",
    PAPER,
    over={"pool_size": [2**n for n in range(21)]},
    report=threshold,
)
register(
    "raventos/pool-small",
    "linear regression from a pool of tasks, d=8, 16 points, 4 layers (for a GPU)",
    PAPER.replace(model_layers=4, model_width=64),
    over={"pool_size": [2**n for n in range(21)]},
    report=threshold,
)
register(
    "raventos/pool-xs",
    "linear regression from a pool of tasks, d=3, 8 points, 3 layers: minutes on a CPU",
    Config(
        task=LinearRegression(dim=3, points=8, noise=0.5),
        layout="tagged",
        model=TransformerConfig(layers=3, heads=2, width=64, end_bias=False),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, schedule="linear", warmup_steps=500, options={"b2": 0.95}
        ),
        training=TrainingConfig(steps=4_000, batch_size=64, pool_size=2**12),
    ),
    over={"pool_size": [2**n for n in range(2, 6)]},
    report=threshold,
)

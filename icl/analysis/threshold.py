"""The pool size from which on a learner predicts for all tasks and not for the pool alone.

Raventós, Paul, Chen & Ganguli 2023 (arXiv 2306.15063), figure 2: of a sweep over pool sizes. With
several seeds the threshold has an interval. There is no threshold at pool sizes at which ridge and
dMMSE are closer than the learner's own error.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table
from scipy.special import stdtrit  # scipy comes with JAX

from ..report import (
    CHANCE,
    MARK,
    OWN,
    WIDTH,
    Result,
    comparator_look,
    draw_line,
    legend_of_panel,
    log_axis,
    show_number,
)
from ..sweeps.grid import SEED, short_name
from ..sweeps.results import SweepResult
from ..training.run import Run
from .pool import PREDICTORS, TASKS, PoolEvaluation, evaluate_pools

if TYPE_CHECKING:
    from ..sweeps import Sweep

POOL_SIZE = "training_pool_size"
PROMPTS = 2048
LOOKS = {"learner": OWN, "ridge": comparator_look(0), "dMMSE": comparator_look(1)}


@dataclasses.dataclass(frozen=True)
class Line:
    """Models that differ in pool size and seed alone.

    Attributes:
      changes: what else the sweep sets for them.
      pool_size: tasks in the pool, ascending, `[sizes]`.
      seeds: `[seeds]`.
      error, difference: as of `PoolEvaluation`, averaged over positions, `[sizes, seeds]`; NaN for
        a model that was not evaluated.
    """

    changes: dict[str, Any]
    pool_size: list[int]
    seeds: list[int]
    error: dict[str, dict[str, np.ndarray]]
    difference: dict[str, dict[str, np.ndarray]]

    @classmethod
    def of(cls, changes: dict[str, Any], found: dict[int, dict[int, PoolEvaluation]]) -> "Line":
        """From evaluations by seed and pool size."""
        sizes = sorted(set().union(*found.values()))
        some = next(iter(next(iter(found.values())).values()))

        def means(part: str) -> dict[str, dict[str, np.ndarray]]:
            return {
                kind: {name: means_of(part, kind, name) for name in names}
                for kind, names in getattr(some, part).items()
            }

        def means_of(part: str, kind: str, name: str) -> np.ndarray:
            mean = lambda one: np.nan if one is None else getattr(one, part)[kind][name].mean()
            rows = [[float(mean(of.get(size))) for of in found.values()] for size in sizes]
            return np.array(rows)

        return cls(changes, sizes, list(found), means("error"), means("difference"))

    @property
    def label(self) -> str:
        return ", ".join(f"{short_name(name)} {value}" for name, value in self.changes.items())

    def values(self, part: str, kind: str, name: str) -> np.ndarray:
        """An error or a difference, averaged over positions, `[seeds, sizes]`; NaN for none."""
        return getattr(self, part)[kind][name].T

    def mean(self, part: str, kind: str, name: str) -> np.ndarray:
        """An error or a difference, averaged over positions and seeds, `[sizes]`."""
        return np.nanmean(self.values(part, kind, name), axis=0)

    def share_and_rest(self) -> tuple[np.ndarray, np.ndarray]:
        """How far a learner went from dMMSE to ridge, and what is left, each `[seeds, sizes]`.

        On fresh tasks its predictions are dMMSE + share (ridge - dMMSE) + rest, and the rest has
        no part along ridge - dMMSE. Share 0 is dMMSE, 1 is ridge, and 1/2 is as far from both. The
        rest, as a mean square, is the learner's own error.
        """
        to_dmmse, to_ridge, between = self._distances()
        share = (to_dmmse - to_ridge + between) / (2 * between)
        return share, np.maximum(to_dmmse - share**2 * between, 0)

    def _distances(self) -> list[np.ndarray]:
        pairs = ("learner, dMMSE", "learner, ridge", "ridge, dMMSE")
        return [self.values("difference", "fresh", pair) for pair in pairs]

    @property
    def seen(self) -> np.ndarray:
        """Whether the learner's own error is below the distance of ridge and dMMSE, as `values`."""
        return self.share_and_rest()[1] < self._distances()[2]

    def thresholds(self) -> list[float | None]:
        """For each seed the pool size above which the learner is nearer to ridge than to dMMSE.

        On fresh tasks, interpolated against the logarithm of the size, between sizes that are
        `seen`; None if the learner does not cross between two of them.
        """
        sizes, crossings = np.log2(self.pool_size), []
        for of_seed, seen in zip(self.share_and_rest()[0], self.seen):
            at = np.flatnonzero(seen)
            crossing = None
            for below, above in zip(at, at[1:]):
                if of_seed[below] <= 0.5 < of_seed[above]:
                    part = (0.5 - of_seed[below]) / (of_seed[above] - of_seed[below])
                    crossing = float(2 ** (sizes[below] + part * (sizes[above] - sizes[below])))
            crossings.append(crossing)
        return crossings

    def threshold(self) -> tuple[float, float, float] | None:
        """Geometric mean of the seeds' thresholds and its 90% interval; None if no seed has one.

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
        seeds = f"{len(found)} of {len(self.seeds)} seeds"
        if seen is None:
            return (
                "no threshold seen at the pool sizes at which ridge and dMMSE are further apart "
                "than the learner's own error"
            )
        return (
            f"nearer to ridge than to dMMSE from {seen[0]:.3g} tasks on (90% interval "
            f"{seen[1]:.3g} to {seen[2]:.3g}; {seeds})"
            if len(found) > 1
            else f"nearer to ridge than to dMMSE from {seen[0]:.3g} tasks on ({seeds})"
        )

    def derived(self) -> dict[str, Any]:
        """What the file has beside the attributes."""
        share, rest = self.share_and_rest()
        middle, *interval = self.threshold() or (None,)
        return {
            "threshold": middle,
            "threshold_interval": [end for end in interval if np.isfinite(end)],
            "threshold_by_seed": self.thresholds(),
            "share_of_ridge": share.T,
            "own_error": rest.T,
        }


@dataclasses.dataclass(frozen=True)
class Threshold(Result):
    """Learner, ridge and dMMSE by pool size.

    Attributes:
      prompts: number of prompts of either kind that were averaged.
      lines: one for each combination of what the sweep is over beside pool size and seed.
      path: the sweep's folder.
    """

    prompts: int
    lines: list[Line]
    path: Path

    file = "threshold"
    again = "icl sweep --resume {path}"

    def as_data(self) -> dict[str, Any]:
        data = super().as_data()
        for line, saved in zip(self.lines, data["lines"]):
            saved |= line.derived()
        return data

    def table(self) -> Table:
        """A row for each pool size, averaged over seeds."""
        verdicts = [": ".join(filter(None, (line.label, line.verdict()))) for line in self.lines]
        result = Table(
            title="learner, ridge and dMMSE by the number of tasks in the pool",
            caption=(
                "squared differences of predictions and squared errors, divided by the dimension\n"
                + "\n".join(verdicts)
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
        for line in self.lines:
            if len(self.lines) > 1:
                result.add_row(line.label, style="bold")
            means = [line.mean(*column) for column in columns]
            for index, size in enumerate(line.pool_size):
                result.add_row(str(size), *(show_number(mean[index]) for mean in means))
        return result

    def figure(self, plt: Any) -> Any:
        """A row a line: differences, the share of ridge, and errors, by pool size."""
        figure, rows = plt.subplots(
            len(self.lines), 3, figsize=(WIDTH, 2.4 * len(self.lines)), layout="constrained",
            squeeze=False,
        )  # fmt: skip
        for line, panels in zip(self.lines, rows):
            left, middle, right = panels
            sizes, (share, rest) = line.pool_size, line.share_and_rest()
            between = line.values("difference", "fresh", "ridge, dMMSE")
            for name in ("dMMSE", "ridge"):
                values = line.values("difference", "fresh", f"learner, {name}")
                _draw(left, sizes, values, f"learner from {name}", **LOOKS[name] | MARK)
            _draw(left, sizes, between, "ridge from dMMSE", **CHANCE)
            _draw(left, sizes, rest, "learner's own error", color="k", linewidth=1)
            left.set(ylabel="squared difference / d", title="differences\non fresh tasks")

            for of_seed, seen in zip(share, line.seen):
                middle.plot(sizes, of_seed, color="C0", linewidth=1, alpha=0.6)
                middle.plot(np.extract(seen, sizes), of_seed[seen], "o", color="C0", markersize=4)
                hollow = dict(color="C0", markersize=4, markerfacecolor="w")
                middle.plot(np.extract(~seen, sizes), of_seed[~seen], "o", **hollow)
            for at, name in ((0, "dMMSE"), (1, "ridge")):
                middle.axhline(at, label=name, **LOOKS[name])
            middle.plot([], [], "o", color="C0", markersize=4, label="learner, each seed")
            middle.plot([], [], "o", label="own error is larger", **hollow)
            middle.set(ylim=(-0.3, 1.5), title="learner, from\ndMMSE (0) to ridge (1)")

            for kind, style in (("fresh", "-"), ("pool", ":")):
                for name in PREDICTORS:
                    values = line.values("error", kind, name)
                    own = LOOKS[name] | dict(linestyle=style)
                    _draw(right, sizes, values, f"{name}, {TASKS[kind]}", **own)
            right.set(ylabel="squared error / d", title="\n".join(["error", line.label]).strip())
            found = line.threshold()
            for axes in panels:
                axes.set_xscale("log", base=2)
                axes.set_xlabel("tasks in the pool")
                axes.set_xlim(0.85 * sizes[0], sizes[-1] / 0.85)
                if axes is not middle:
                    log_axis(axes, "y")
                if found is not None and axes is not right:
                    axes.axvline(found[0], color="0.4", linewidth=1, linestyle="--")
                    if np.isfinite(found[1]):
                        axes.axvspan(*found[1:], color="0.5", alpha=0.15, linewidth=0)
        figure.suptitle(f"learner, ridge and dMMSE, {self.path.name}")
        legend_of_panel(*rows[-1])
        return figure


def threshold(sweep: "Sweep", *, prompts: int = PROMPTS) -> Threshold | None:
    """Figure 2 of the paper for a finished sweep over pool sizes: threshold.json and .png.

    Each model is compared with ridge and dMMSE by `icl.analysis.pool.evaluate_pool`, if its
    folder does not have that yet. Settings that the sweep is over beside pool size and seed get a
    row of the figure for each combination.

    Returns:
      None for a sweep over fewer than two pool sizes, or with fresh tasks among them.
    """
    sizes = sweep.over.get(POOL_SIZE, [])
    if len(sizes) < 2 or None in sizes:
        return None
    trained = {r["member"] for r in SweepResult.load(sweep).records if "examples" in r}
    members = [member for member in sweep.members if member.path.name in trained]
    found: dict[str, dict[int, dict[int, PoolEvaluation]]] = {}
    runs = [member.run for member in members]
    for member, one in zip(members, _evaluations(runs, prompts)):
        rest = {k: v for k, v in member.changes.items() if k not in (POOL_SIZE, SEED)}
        of_seed = found.setdefault(json.dumps(rest), {}).setdefault(member.config.training.seed, {})
        of_seed[one.pool_size] = one
    lines = [Line.of(json.loads(changes), by_seed) for changes, by_seed in found.items()]
    return Threshold(prompts, lines, sweep.path).written()


def _evaluations(runs: list[Run], prompts: int) -> Iterable[PoolEvaluation]:
    """Evaluations of finished runs: read from their folders, and made if they are missing."""
    found: dict[Path, PoolEvaluation] = {}
    for run in runs:
        if (run.path / "pool.json").exists():
            result = PoolEvaluation.load(run)
            if (result.step, result.prompts) == (run.config.training.steps, prompts):
                found[run.path] = result
    missing = [run for run in runs if run.path not in found]
    found |= {result.path: result for result in evaluate_pools(missing, prompts=prompts)}
    return [found[run.path] for run in runs]


def _draw(axes, sizes: list[int], values: np.ndarray, label: str, **line: Any) -> None:
    """The mean over seeds, with their range, of values `[seeds, sizes]`."""
    ends = (end(values, axis=0) for end in (np.nanmean, np.nanmin, np.nanmax))
    draw_line(axes, sizes, *ends, label=label, **line)

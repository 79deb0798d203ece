"""Pretraining task diversity and the emergence of non-Bayesian in-context learning for regression.

Raventós, Paul, Chen & Ganguli 2023 (arXiv 2306.15063). Linear regression with noise, trained on a
pool of M tasks: up to a threshold in M the learner predicts as the optimal estimator for the pool
(dMMSE), beyond it as the optimal one for all tasks (ridge), which on the pool is worse.

`raventos/pool` follows section 2 and the public code: 8 dimensions, 16 points, noise of variance
0.25, tokens (0, x) and (y, 0), GPT-2 of 8 layers without biases at its ends, Adam with the
"triangle" learning rate, 500,000 batches of 256, the loss on all labels. The initial weights at
the two ends are this library's, uniform, in place of N(0, 0.02^2). `raventos/pool-small` is its
smaller model (section 3.3). `raventos/pool-xs` has 3 dimensions, 8 points and 1/500 of the
prompts: it shows the same on two CPU cores, at smaller pools.

A sweep of any of them over pool sizes, its own grid where none is given, ends with the paper's
figure 2: threshold.png, threshold.json and a table.
"""

import dataclasses
import json
from collections.abc import Iterable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from ..evaluation.figures import STYLE, pyplot
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
        line.found.setdefault(found.pool_size, []).append(found)
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
    """The evaluations of models that differ in pool size and seed alone, by pool size."""

    changes: dict[str, Any]
    found: dict[int, list[PoolEvaluation]] = dataclasses.field(default_factory=dict)

    @property
    def label(self) -> str:
        return ", ".join(f"{short_name(name)} {value}" for name, value in self.changes.items())

    @property
    def sizes(self) -> list[int]:
        return sorted(self.found)

    def values(self, part: str, kind: str, name: str) -> list[list[float]]:
        """An error or a difference, averaged over positions: by pool size and seed."""
        return [
            [float(getattr(one, part)[kind][name].mean()) for one in self.found[size]]
            for size in self.sizes
        ]

    def mean(self, part: str, kind: str, name: str) -> np.ndarray:
        """The same, averaged over seeds."""
        return np.array([np.mean(seeds) for seeds in self.values(part, kind, name)])

    def threshold(self) -> float | None:
        """The pool size from which on the learner is nearer to ridge than to dMMSE.

        On fresh tasks, between two sizes by a line through the logarithms; None where there is no
        such size.
        """
        to = [self.mean("difference", "fresh", f"learner, {name}") for name in ("dMMSE", "ridge")]
        gap = np.log(to[0]) - np.log(to[1])
        for index in range(1, len(gap)):
            if gap[index - 1] <= 0 < gap[index]:
                share = -gap[index - 1] / (gap[index] - gap[index - 1])
                low, high = np.log2(self.sizes[index - 1 : index + 1])
                return float(2 ** (low + share * (high - low)))
        return None

    def as_data(self) -> dict[str, Any]:
        by_kind = lambda part, names: {
            kind: {name: self.values(part, kind, name) for name in names} for kind in TASKS
        }
        return {
            "changes": self.changes,
            "pool_size": self.sizes,
            "threshold": self.threshold(),
            "error": by_kind("error", PREDICTORS),
            "difference": by_kind("difference", [", ".join(pair) for pair in PAIRS]),
        }


def _figure(lines: list[_Line], title: str, path: Path) -> None:
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, rows = plt.subplots(
            len(lines), 2, figsize=(10.5, 4.0 * len(lines)), layout="constrained", squeeze=False
        )
        for line, (left, right) in zip(lines, rows):
            for name in ("dMMSE", "ridge"):
                values = line.values("difference", "fresh", f"learner, {name}")
                _draw(left, line.sizes, values, f"from {name}", color=COLOURS[name], marker="o")
            between = line.values("difference", "fresh", "ridge, dMMSE")
            _draw(left, line.sizes, between, "ridge from dMMSE", color="0.6", linestyle=":")
            crossing = line.threshold()
            if crossing is not None:
                left.axvline(crossing, color="0.4", linewidth=1, linestyle="--")
            left.set(yscale="log", ylabel="squared difference / d", title="learner, on fresh tasks")
            for kind, style in (("fresh", "-"), ("pool", "--")):
                for name in PREDICTORS:
                    own = dict(linewidth=2.5) if name == "learner" else dict(linewidth=1.3)
                    _draw(
                        right, line.sizes, line.values("error", kind, name),
                        f"{name}, {TASKS[kind]}", color=COLOURS[name], linestyle=style, **own,
                    )  # fmt: skip
            right.set(yscale="log", ylabel="squared error / d", title=line.label or "error")
            for axes in (left, right):
                axes.set_xscale("log", base=2)
                axes.set_xlabel("tasks in the pool")
                axes.legend(fontsize=8)
        figure.suptitle(title, fontsize=10)
        figure.savefig(path)
        plt.close(figure)


def _draw(axes, sizes: list[int], values: list[list[float]], label: str, **line: Any) -> None:
    """The mean over seeds, with their range."""
    axes.plot(sizes, [np.mean(seeds) for seeds in values], label=label, **line)
    low, high = ([end(seeds) for seeds in values] for end in (min, max))
    axes.fill_between(sizes, low, high, alpha=0.2, color=line["color"], linewidth=0)


def _table(lines: list[_Line], path: Path) -> Table:
    told = [
        f"{line.label or 'nearer to ridge than to dMMSE'}: from {line.threshold():.0f} tasks on"
        for line in lines
        if line.threshold() is not None
    ]
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
    "linear regression from a pool of tasks, d=3, 8 points, xs model: minutes on a CPU",
    Config(
        task=LinearRegression(dim=3, points=8, noise=0.5),
        layout="tagged",
        model=TransformerConfig(layers=3, heads=2, width=64, end_bias=False),
        optimizer=OptimizerConfig(
            learning_rate=2e-3, schedule="linear", warmup_steps=500, options={"b2": 0.95}
        ),
        training=TrainingConfig(steps=4_000, batch_size=64, pool_size=2**12),
    ),
    over={"pool_size": [2**n for n in range(0, 13, 2)]},
    report=threshold,
)

"""Capacity and dimension: Garg et al. 2022, figure 6 (section 6), as sweeps.

Models of three sizes learn linear regression in several dimensions d, from 2d + 1 points;
the figure is the error after 2d examples. `garg/capacity` is the paper's (xs, small and standard,
d = 10 to 50, three seeds with `--seeds 3`); `garg/capacity-xs` does the same with models of one to
three layers in 2 to 5 dimensions.
"""

import dataclasses
from collections.abc import Iterable
from typing import TYPE_CHECKING

import numpy as np
from rich.table import Table

from ..evaluation.figures import STYLE, pyplot, save_figure
from ..evaluation.result import show_number
from ..models import SMALL, STANDARD, XS, TransformerConfig
from ..sweeps.results import SweepResult
from ..tasks import Curriculum, FunctionFamily, LinearRegression, garg_curriculum
from ..training.config import Config, TrainingConfig
from ..training.run import write_json
from .garg import FAST_OPTIMIZER, PAPER_OPTIMIZER, PAPER_TRAINING
from .presets import register

if TYPE_CHECKING:
    from ..sweeps import Sweep

MODEL = ("model_layers", "model_heads", "model_width")
DIM, POINTS = "task_dim", "task_points"


def capacity(sweep: "Sweep") -> Table | None:
    """Figure 6 for a finished sweep over models and dimensions: capacity.png and .json.

    Returns:
      Error after 2d examples, a row a model; None for a sweep whose members are no transformers
      that differ in dimension and have 2d + 1 points each.
    """
    errors: dict[str, dict[int, list[float]]] = {}
    for member, record in zip(sweep.members, SweepResult.load(sweep).records):
        task, model = member.config.task, member.config.model
        if not isinstance(task, FunctionFamily) or not isinstance(model, TransformerConfig):
            return None
        if task.points < 2 * task.dim + 1:
            return None
        if "examples" in record:
            last = record["normalised_error"][record["examples"].index(2 * task.dim)]
            errors.setdefault(_label(model), {}).setdefault(task.dim, []).append(last)
    dims = sorted({dim for by_dim in errors.values() for dim in by_dim})
    if len(dims) < 2:
        return None
    write_json(sweep.path / "capacity.json", {"error_after_2d_examples": errors})
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(layout="constrained")
        for label, by_dim in errors.items():
            at = sorted(by_dim)
            [drawn] = axes.plot(at, [np.mean(by_dim[d]) for d in at], "o-", label=label)
            low, high = ([end(by_dim[d]) for d in at] for end in (min, max))
            axes.fill_between(at, low, high, alpha=0.2, color=drawn.get_color())
        axes.set(xlabel="dimension d", xticks=dims, ylim=(-0.03, 1.1))
        axes.set_ylabel("squared error / d, after 2d examples")
        axes.legend(fontsize=8)
        save_figure(figure, sweep.path / "capacity.png")
    table = Table(
        title="error after 2d examples, mean over seeds",
        caption=f"figure: {sweep.path / 'capacity.png'}",
    )
    table.add_column("model")
    for dim in dims:
        table.add_column(f"d={dim}", justify="right")
    for label, by_dim in errors.items():
        means = (float(np.mean(by_dim.get(dim, [np.nan]))) for dim in dims)
        table.add_row(label, *map(show_number, means))
    return table


def _label(model: TransformerConfig) -> str:
    return f"{model.layers} layers, width {model.width}"


def _models(models: Iterable[TransformerConfig]) -> dict[str, dict[str, int]]:
    return {
        _label(model): {name: getattr(model, name.partition("_")[2]) for name in MODEL}
        for model in models
    }


def _dimensions(dims: Iterable[int]) -> dict[str, dict[str, int]]:
    return {f"d={dim}": {DIM: dim, POINTS: 2 * dim + 1} for dim in dims}


register(
    "garg/capacity",
    "figure 6: three models in 10 to 50 dimensions (a sweep, for GPUs)",
    Config(
        task=LinearRegression(dim=20, points=41),
        model=dataclasses.replace(STANDARD, max_tokens=None),
        curriculum=garg_curriculum(),
        optimizer=PAPER_OPTIMIZER,
        training=PAPER_TRAINING,
    ),
    over={
        "model": _models([XS, SMALL, STANDARD]),
        "dimension": _dimensions([10, 20, 30, 40, 50]),
    },
    report=capacity,
)
register(
    "garg/capacity-xs",
    "figure 6 in small: models of one to three layers in 2 to 5 dimensions (a sweep, a CPU)",
    Config(
        task=LinearRegression(dim=3, points=7),
        model=dataclasses.replace(XS, max_tokens=None),
        curriculum=Curriculum(),
        optimizer=FAST_OPTIMIZER,
        training=TrainingConfig(steps=2_000),
    ),
    over={
        "model": _models([dataclasses.replace(XS, layers=layers) for layers in (1, 2, 3)]),
        "dimension": _dimensions([2, 3, 5]),
    },
    report=capacity,
)

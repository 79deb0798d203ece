"""Everything that can be asked of a finished run, by name, and of which runs.

`icl eval RUN` asks all that applies; add an `Analysis` to `ANALYSES` to have it asked too.
"""

import dataclasses
from collections.abc import Callable
from typing import Any

from rich.table import Table

from ..evaluation import errors_by_loop, evaluate_pool, evaluate_shifts, shifts_of
from ..evaluation.pool import has_pool
from ..evaluation.result import show_number
from ..models import LoopedTransformerConfig
from ..tasks import LinearRegression, SparseLinearRegression
from ..training.config import Config
from ..training.run import Run
from .alignment import alignment, has_descent
from .copying import copying, has_labels_apart
from .descent import query_only
from .descent_shifts import descent_shifts
from .dual import dual_of_run, has_dual
from .heads import has_heads, heads
from .learned_function import learned_function
from .preconditioning import has_preconditioners, preconditioning


@dataclasses.dataclass(frozen=True)
class Analysis:
    """A question to a run.

    Attributes:
      summary: what it tells, in a line.
      applies: whether runs of some settings can be asked.
      ask: from a run, a number of prompts and a seed to a table; it leaves its numbers and a figure
        in the run's folder.
      figure: the figure's name there; None where there is none.
    """

    summary: str
    applies: Callable[[Config], bool]
    ask: Callable[[Run, int, int], Table]
    figure: str | None = None


def applicable(config: Config) -> list[str]:
    """The names of the analyses that runs of these settings allow."""
    return [name for name, analysis in ANALYSES.items() if analysis.applies(config)]


def _asks(function: Callable[..., Any]) -> Callable[[Run, int, int], Table]:
    return lambda run, prompts, seed: function(run, prompts=prompts, seed=seed).table()


def _has_shifts(config: Config) -> bool:
    return not query_only(config) and bool(shifts_of(config.task))


def _is_linear(config: Config) -> bool:
    task = config.task
    if not isinstance(task, LinearRegression) or query_only(config):
        return False
    known = type(task) in (LinearRegression, SparseLinearRegression) and not task.random_labels
    return known and (task.inputs, task.input_scale) == ("normal", 1.0)


def _loops(run: Run, prompts: int, seed: int) -> Table:
    model = run.config.model
    assert isinstance(model, LoopedTransformerConfig)
    loops = sorted({1, 2, 4, *range(model.window, 3 * model.loops, 4)})
    errors = errors_by_loop(run, loops, prompts=prompts, seed=seed)
    table = Table(title=f"error after all examples by loops ({run.path})")
    table.add_column("loops")
    table.add_column(run.config.task.label_kind.error_name, justify="right")
    for count, error in zip(loops, errors):
        table.add_row(str(count), show_number(error))
    return table


ANALYSES: dict[str, Analysis] = {
    "shifts": Analysis(
        "errors on prompts unlike those of training (Garg et al.)",
        _has_shifts,
        _asks(evaluate_shifts),
        "shifts.png",
    ),
    "function": Analysis(
        "the function learned from a prompt and its gradient (Garg et al.)",
        _is_linear,
        _asks(learned_function),
        "function.png",
    ),
    "loops": Analysis(
        "error by the number of loops (Yang et al.)",
        lambda config: isinstance(config.model, LoopedTransformerConfig),
        _loops,
        "loops.png",
    ),
    "pool": Analysis(
        "difference from ridge and from dMMSE (Raventós et al.)",
        has_pool,
        lambda run, prompts, seed: evaluate_pool(run, seed=seed).table(),
    ),
    "alignment": Analysis(
        "agreement with gradient descent, over training (von Oswald et al.)",
        has_descent,
        lambda run, prompts, seed: alignment(run, seed=seed).table(),
        "alignment.png",
    ),
    "descent-shifts": Analysis(
        "the learner and gradient descent under shifts (von Oswald et al.)",
        has_descent,
        _asks(descent_shifts),
        "descent-shifts.png",
    ),
    "copying": Analysis(
        "what the first layer moves between tokens (von Oswald et al.)",
        has_labels_apart,
        lambda run, prompts, seed: copying(run, seed=seed).table(),
        "copying.png",
    ),
    "dual": Analysis(
        "the dual model's descent to a softmax layer's output (Ren and Liu)",
        has_dual,
        lambda run, prompts, seed: dual_of_run(run, seed=seed).table(),
        "dual.png",
    ),
    "preconditioning": Analysis(
        "the learned preconditioners and their distance to identity (Ahn et al.)",
        has_preconditioners,
        lambda run, prompts, seed: preconditioning(run).table(),
        "preconditioning.png",
    ),
    "heads": Analysis(
        "what attention heads compare and write",
        has_heads,
        lambda run, prompts, seed: heads(run, seed=seed).table(),
        "heads.png",
    ),
}

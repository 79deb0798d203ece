"""Error of a looped transformer by its number of loops (Yang et al. 2023, arXiv 2311.12424)."""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from ..evaluation.curves import learner_errors, mean_of_finite
from ..models import LoopedTransformer, LoopedTransformerConfig
from ..report import (
    CHANCE,
    MARK,
    OWN,
    Result,
    in_lines,
    legend_of_figure,
    log_axis,
    open_run,
    show_number,
)
from ..tasks import Episode
from ..training.config import Config
from ..training.learner import Params
from ..training.run import Run


@dataclasses.dataclass(frozen=True)
class ErrorsByLoop(Result):
    """Errors of a looped transformer after all examples, by its number of loops.

    Attributes:
      loops: numbers of loops, int `[N]`.
      errors: mean errors over prompts at the last point, in units of the family's `error`, `[N]`.
      trained: the number of loops in training.
      error_name: what an error is.
      step: the training step of the parameters.
      prompts: number of prompts that were averaged.
      path: the run's folder.
    """

    loops: np.ndarray
    errors: np.ndarray
    trained: int
    error_name: str
    step: int
    prompts: int
    path: Path

    file = "loops"

    def table(self) -> Table:
        """A row for each number of loops."""
        result = Table(
            title=f"error after all examples by loops ({self.path}, step {self.step})",
            caption=f"mean over {self.prompts} fresh prompts; trained with {self.trained} loops",
        )
        result.add_column("loops")
        result.add_column(self.error_name, justify="right")
        for count, error in zip(self.loops, self.errors):
            result.add_row(str(count), show_number(error))
        return result

    def figure(self, plt: Any) -> Any:
        """Errors against loops, and the number of loops in training."""
        order = np.argsort(self.loops)
        figure, axes = plt.subplots(layout="constrained")
        axes.plot(self.loops[order], self.errors[order], **OWN | MARK)
        label = f"trained with {self.trained} loops"
        axes.axvline(self.trained, label=label, **CHANCE)
        axes.set_xlabel("loops")
        axes.set_ylabel(in_lines(self.error_name))
        log_axis(axes, "y")
        axes.set_title(f"error of {self.path.name} after all examples, step {self.step}")
        legend_of_figure(figure)
        return figure


def has_loops(config: Config) -> bool:
    """Whether runs with these settings have a model with loops."""
    return isinstance(config.model, LoopedTransformerConfig)


def errors_by_loop(
    run: Run | str | Path,
    loops: Sequence[int] | None = None,
    *,
    prompts: int = 1280,
    seed: int = 0,
) -> ErrorsByLoop:
    """Normalised error at full context by the number of loops, also beyond that of training.

    Writes `loops.json` and `loops.png` in the run's folder.

    Args:
      run: a run of a looped transformer with a checkpoint, or its folder.
      loops: numbers of loops, each at least 1; None for some up to three times those of training.
      prompts: number of prompts.
      seed: seed of the prompts, which are those of `evaluate` with this number and seed.

    Raises:
      RunError: no run there, or it has no checkpoint.
      ValueError: the run's model has no loops, no number of loops is given, or a number of loops
        or prompts is below 1.
    """
    run, learner = open_run(run, prompts=prompts)
    model = run.config.model
    if not isinstance(model, LoopedTransformerConfig):
        raise ValueError(f"{run.path} is a run of {type(model).__name__}, which has no loops")
    if loops is None:
        loops = sorted({1, 2, 4, *range(model.window, 3 * model.loops, 4)})
    if not loops or min(loops) < 1:
        raise ValueError(f"loops must be numbers of at least 1, got {list(loops)}")
    wanted, most = np.array(loops) - 1, max(loops)

    def predict(params: Params, episodes: Episode) -> jax.Array:
        looped = learner.model(params)
        assert isinstance(looped, LoopedTransformer)
        tokens = learner.encode(params, episodes)
        # One pass gives all: each number of loops is a prefix of the largest.
        outputs = looped.outputs_by_loop(tokens, learner.layout.read, most)
        return outputs[wanted].swapaxes(0, 1)

    step, params = run.variables()
    _, errors = learner_errors(learner, predict, params, prompts, seed)
    return ErrorsByLoop(
        np.array(loops),
        mean_of_finite(errors[..., -1]),
        model.loops,
        run.config.task.label_kind.error_name,
        step,
        prompts,
        run.path,
    ).written()

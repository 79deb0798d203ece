"""Runs of one task side by side: error, number of parameters and size of the state.

Kirsch et al. 2022 (arXiv 2212.04458, section 4) find that the accuracy of learners in context
follows the size of their accessible state, and the number of parameters less.
"""

import dataclasses
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ..evaluation.curves import learner_errors, mean_of_finite
from ..models import parameter_count
from ..report import (
    WIDTH,
    Result,
    at_least_one,
    in_lines,
    legend_of_figure,
    look,
    open_run,
    show_number,
    spread,
)
from ..training.run import Run

MAX_COLUMNS = 3


@dataclasses.dataclass(frozen=True)
class Learned:
    """One run.

    Attributes:
      name: the name of its folder.
      model: the name of its model.
      parameters: number of learned parameters.
      state: number of numbers that carry examples to the last prediction; None if unknown.
      step: the training step of the parameters.
      error: by number of examples, float64 `[E]`.
    """

    name: str
    model: str
    parameters: int
    state: int | None
    step: int
    error: np.ndarray


@dataclasses.dataclass(frozen=True)
class Comparison(Result):
    """Runs of one task on the same prompts.

    Attributes:
      runs: in the order given.
      examples: numbers of in-context examples, int `[E]`.
      error_name: what an error is.
      prompts: number of prompts that were averaged.
      path: the folder of the files.
    """

    runs: list[Learned]
    examples: np.ndarray
    error_name: str
    prompts: int
    path: Path

    file = "comparison"
    again = "icl compare RUN ... --folder {path}"

    def table(self) -> Table:
        """A row for each run, and one for the name of its model."""
        shown = spread(len(self.examples), MAX_COLUMNS)
        result = Table(
            title="runs of one task",
            caption=f"{self.error_name} after k examples, mean over {self.prompts} fresh prompts",
        )
        result.add_column("run, model")
        for name in ("parameters", "state", *(f"k = {k}" for k in self.examples[shown])):
            result.add_column(name, justify="right")
        for run in self.runs:
            state = "–" if run.state is None else f"{run.state:,}"
            errors = map(show_number, run.error[shown])
            result.add_row(run.name, f"{run.parameters:,}", state, *errors)
            result.add_row(f"  {run.model}", style="dim")
        return result

    def figure(self, plt: Any) -> Any:
        """The last error against the size of the state and against the number of parameters."""
        figure, (left, right) = plt.subplots(
            1, 2, figsize=(WIDTH, 2.5), layout="constrained", sharey=True
        )
        models = list(dict.fromkeys(run.model for run in self.runs))
        for index, model in enumerate(models):
            own = [run for run in self.runs if run.model == model]
            last = [run.error[-1] for run in own]
            mark = look(index, points=1) | dict(linestyle="", markersize=6)
            # A state of 0 has a place on a logarithmic axis as 1.
            states = [np.nan if run.state is None else max(run.state, 1) for run in own]
            left.plot(states, last, label=model, **mark)
            right.plot([run.parameters for run in own], last, **mark)
        left.set(xscale="log", xlabel="numbers in the state (1 for none)")
        left.set_ylabel(in_lines(f"{self.error_name}, after {self.examples[-1]} examples", 28))
        right.set(xscale="log", xlabel="parameters")
        figure.suptitle("error by size of the state and of the model")
        legend_of_figure(figure)
        return figure


def compare(
    runs: Sequence[Run | str | Path], folder: str | Path, *, prompts: int = 1280, seed: int = 0
) -> Comparison:
    """Compares runs of one task on fresh prompts; writes `comparison.json` and a figure.

    Args:
      runs: the runs or their folders.
      folder: where the files are written; it is made if it does not exist.
      prompts: number of prompts.
      seed: seed of the prompts.

    Raises:
      RunError: a run does not exist, or has no checkpoint.
      ValueError: no run, fewer than one prompt, or runs of different tasks.
    """
    at_least_one(runs=len(runs), prompts=prompts)
    opened = [open_run(run) for run in runs]
    tasks = {repr(learner.family): run.path for run, learner in opened}
    if len(tasks) > 1:
        paths = " and ".join(map(str, list(tasks.values())[:2]))
        raise ValueError(f"runs of one task can be compared; {paths} have different ones")
    found, at = [], {}
    for run, learner in opened:
        step, variables = run.variables()
        examples, errors = learner_errors(learner, learner.predict, variables, prompts, seed)
        at[tuple(examples)] = run.path
        model = run.config.model
        if len(at) > 1:
            paths = " and ".join(map(str, at.values()))
            raise ValueError(f"{paths} predict after different numbers of examples")
        title = getattr(model, "mixer", "attention")
        name = model.title if title == "attention" else f"{model.title}, {title}"
        found.append(
            Learned(
                run.path.name,
                name.replace("_", " "),
                parameter_count(learner.model(variables)),
                model.state_size(learner.width, learner.tokens, learner.labels.outputs),
                step,
                mean_of_finite(errors),
            )
        )
    path = Path(folder)
    path.mkdir(parents=True, exist_ok=True)
    first = opened[0][1]
    [numbers] = at
    result = Comparison(found, np.array(numbers), first.labels.error_name, prompts, path)
    return result.written()

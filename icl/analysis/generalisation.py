"""Whether a classifier in context learned its training tasks, or learned to learn.

Kirsch, Harrison, Sohl-Dickstein and Metz 2022 (arXiv 2212.04458, sections 3 and 4): accuracy by
position on tasks seen in training, on unseen tasks, and on other sets of images. A learner that
memorised its tasks is accurate on them from the first image on; one that identifies tasks needs a
few images and fails on unseen tasks; one that learned to learn does as well on unseen tasks.
"""

import dataclasses
from collections.abc import Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np
from rich.table import Table

from ..evaluation.chunks import in_chunks
from ..evaluation.comparators import comparators
from ..evaluation.curves import (
    by_examples,
    draw_of,
    errors_of,
    mean_of_finite,
    predictions_of,
)
from ..evaluation.result import MAX_COLUMNS
from ..models import parameter_count
from ..report import (
    CHANCE,
    MARK,
    OWN,
    Result,
    at_least_one,
    comparator_look,
    in_lines,
    legend_of_figure,
    look,
    open_run,
    panel_grid,
    spread,
)
from ..report.lines import DASHES, FEW
from ..tasks import Episode, ProjectedImages
from ..tasks.draws import stream
from ..training.config import Config
from ..training.data import load_data
from ..training.learner import Learner
from ..training.population import group_by_program, shared_config
from ..training.run import Run
from ..training.step import pool_key

TRAINING, SEEN, UNSEEN = "seen tasks, training images", "seen tasks", "unseen tasks"


def is_images(config: Config) -> bool:
    """Whether runs with these settings classify images in context."""
    return isinstance(config.task, ProjectedImages)


def ends(accuracy: np.ndarray) -> tuple[float, float]:
    """Mean accuracies over the first and over the last tenth of positions `[E]`, at least one."""
    few = max(1, len(accuracy) // 10)
    return float(accuracy[:few].mean()), float(accuracy[-few:].mean())


@dataclasses.dataclass(frozen=True)
class Generalisation(Result):
    """Accuracy of a learner, and of learners that start anew, on several kinds of prompts.

    Attributes:
      examples: numbers of in-context examples, int `[E]`.
      accuracy: by kind of prompts and by name, the learner's first: float64 `[E]`; NaN where an
        estimator made no prediction. The kinds are `TRAINING` and `SEEN`, if the run has a pool of
        tasks, `UNSEEN`, and "on NAME" for another set of images, by the last part of its path. All
        but the first have images that training did not see, if the task holds some out.
      ways: number of classes in a prompt.
      parameters: number of learned parameters.
      state: number of numbers that carry examples to the last prediction; None if unknown.
      pool_size: number of tasks in the pool; None for fresh tasks.
      step: the training step of the parameters.
      prompts: number of prompts of each kind.
      seed: the seed of the prompts.
      path: the run's folder.
    """

    examples: np.ndarray
    accuracy: dict[str, dict[str, np.ndarray]]
    ways: int
    parameters: int
    state: int | None
    pool_size: int | None
    step: int
    prompts: int
    seed: int
    path: Path

    file = "generalisation"

    @property
    def learner(self) -> str:
        """The learner's name."""
        return next(iter(self.accuracy[UNSEEN]))

    def table(self) -> Table:
        """Accuracy by number of examples, a block of rows for each kind of prompts."""
        shown = spread(len(self.examples), MAX_COLUMNS)
        size = self.pool_size
        pool = "fresh tasks" if size is None else f"{size} task{'s' * (size > 1)}"
        state = "" if self.state is None else f", a state of {self.state:,} numbers"
        result = Table(
            title=f"accuracy after k examples ({self.path}, step {self.step})",
            caption=(
                f"percent, mean over {self.prompts} prompts of each kind; chance is "
                f"{100 / self.ways:.0f}; trained on {pool}; {self.parameters:,} parameters{state}"
            ),
        )
        result.add_column("k")
        for k in self.examples[shown]:
            result.add_column(str(k), justify="right", no_wrap=True)
        for kind, names in self.accuracy.items():
            result.add_row(kind, style="bold")
            for name, values in names.items():
                cells = ("–" if np.isnan(v) else f"{100 * v:.1f}" for v in values[shown])
                result.add_row(f"  {name}", *cells)
        return result

    def figure(self, plt: Any) -> Any:
        """The learner's curves by kind; and beside the others, a panel for each kind."""
        kinds = [kind for kind in self.accuracy if len(self.accuracy[kind]) > 1]
        figure, panels = panel_grid(
            plt, 1 + len(kinds), 2, 2.1, "in-context examples", sharex=True, sharey=True
        )
        first, *others = panels
        mark = MARK if len(self.examples) < FEW else {}
        for index, (kind, names) in enumerate(self.accuracy.items()):
            own = look(index, len(self.examples)) | dict(color="C0", linewidth=1.8)
            own |= dict(alpha=1 if index < len(DASHES) else 0.5)
            first.plot(self.examples, names[self.learner], label=f"{self.learner}, {kind}", **own)
        first.set_title(in_lines(f"{self.learner}, by kind of prompts", 34))
        for axes, kind in zip(others, kinds):
            for index, (name, values) in enumerate(self.accuracy[kind].items()):
                known = np.isfinite(values)
                own = name == self.learner
                line = OWN | mark if own else comparator_look(index - 1, int(known.sum()))
                axes.plot(self.examples[known], values[known], label=name, **line)
            axes.set_title(kind)
        for axes in panels:
            axes.axhline(1 / self.ways, label="chance", **CHANCE)
            axes.set(ylim=(0, 1))
            axes.locator_params(axis="x", integer=True)
        figure.supylabel("accuracy")
        legend_of_figure(figure)
        return figure


def generalisation(
    run: Run | str | Path,
    *,
    prompts: int = 1280,
    images: Sequence[str] = (),
    seed: int = 0,
) -> Generalisation:
    """Accuracy of a run's newest checkpoint by position; writes `generalisation.json` and a figure.

    Args:
      run: the run or its folder, of images in context.
      prompts: number of prompts of each kind.
      images: other sets of images, as the setting `images` of the task takes them.
      seed: seed of the prompts.

    Raises:
      RunError: no run there, or it has no checkpoint, or a file of images cannot be read.
      ValueError: fewer than one prompt, a run of another task, or images that do not fit the task.
    """
    run, learner = open_run(run, prompts=prompts)
    check_images(run.config, images)
    step, variables = run.variables()
    predict = partial(jax.jit(learner.predict), variables)
    accuracy: dict[str, dict[str, np.ndarray]] = {}
    examples = np.zeros(0)
    for kind, drawn in _kinds(run.config, images, training=True).items():
        episodes = _draw(drawn, run.config, prompts, seed)
        examples, own = _accuracy(learner, in_chunks(predict, episodes), episodes)
        accuracy[kind] = {learner.name: own}
        for comparator in [] if drawn.pooled else comparators(drawn.family)[0]:
            predictions = predictions_of(comparator, episodes)[0]
            for name, prediction in zip(comparator.names, predictions, strict=True):
                accuracy[kind][name] = _accuracy(learner, prediction, episodes)[1]
    result = Generalisation(
        examples,
        accuracy,
        learner.labels.prediction_shape[0],
        parameter_count(learner.model(variables)),
        run.config.model.state_size(learner.width, learner.tokens, learner.labels.outputs),
        run.config.training.pool_size,
        step,
        prompts,
        seed,
        run.path,
    )
    return result.written()


def check_images(config: Config, images: Sequence[str]) -> None:
    """Raises an error if a run cannot be asked for other sets of images; see `generalisation`."""
    if not is_images(config):
        raise ValueError(
            f"the run does not classify images: its task is {type(config.task).__name__}"
        )
    for kind in _kinds(config, images, training=False).values():
        load_data(kind.family)


def accuracies(
    runs: Sequence[Run], *, prompts: int, seed: int = 0
) -> Iterator[dict[str, np.ndarray]]:
    """Accuracy `[E]` of many runs' learners in turn, on `SEEN` and `UNSEEN` tasks.

    Runs that share a program are compiled once.

    Args:
      runs: runs of images in context.
      prompts, seed: as for `generalisation`.

    Raises:
      As `generalisation`.
    """
    at_least_one(prompts=prompts)
    configs = [run.config for run in runs]
    programs: dict[int, Any] = {}
    for group in group_by_program(configs):
        check_images(configs[group[0]], ())
        predict = jax.jit(Learner(shared_config(configs[group[0]])).predict)
        programs |= dict.fromkeys(group, predict)
    for index, run in enumerate(runs):
        run.check_data()
        learner = Learner(run.config)
        predict = partial(programs[index], run.variables()[1])
        found = {}
        for kind, drawn in _kinds(run.config, (), training=False).items():
            episodes = _draw(drawn, run.config, prompts, seed)
            found[kind] = _accuracy(learner, in_chunks(predict, episodes), episodes)[1]
        yield found


class _Kind(NamedTuple):
    family: ProjectedImages
    pooled: bool  # whether tasks are those of the run's pool


def _kinds(config: Config, images: Sequence[str], training: bool) -> dict[str, _Kind]:
    """The kinds of prompts that a run is asked, by name."""
    family: Any = config.task
    unseen = family.evaluation
    kinds = {}
    if config.training.pool_size is not None:
        if training and family.part != unseen.part:
            kinds[TRAINING] = _Kind(family, True)
        kinds[SEEN] = _Kind(dataclasses.replace(family, part=unseen.part), True)
    kinds[UNSEEN] = _Kind(unseen, False)
    for name in images:
        other = dataclasses.replace(unseen, images=(name,), part="all", held_out=0.0)
        short = f"on {Path(name).name}"
        kinds[short if short not in kinds else f"on {name}"] = _Kind(other, False)
    return kinds


def _draw(kind: _Kind, config: Config, prompts: int, seed: int) -> Episode:
    """Prompts of a kind, `[prompts, ...]`."""
    tasks_key = pool_key(config) if kind.pooled else None
    size = config.training.pool_size if kind.pooled else None
    return draw_of(kind.family, stream("general", seed), prompts, tasks_key, size)


def _accuracy(
    learner: Learner, predictions: np.ndarray, episodes: Episode
) -> tuple[np.ndarray, np.ndarray]:
    """Numbers of examples and mean accuracies, each `[E]`."""
    examples, errors = by_examples(learner, errors_of(learner, predictions, episodes), episodes)
    return examples, 1 - mean_of_finite(errors)

"""Zero-, one- and k-shot errors on the families of a mixture and on families held out.

Brown et al. 2020 (arXiv 2005.14165, section 2) call pretraining on a mixture the outer loop of a
meta-learner, and learning in context its inner loop. Here this implicit meta-learning is beside
explicit meta-learning (MAML, first-order MAML, Reptile), fine-tuning on the same examples, and the
best known estimator of each family.
"""

import dataclasses
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from ..evaluation.comparators import comparators
from ..evaluation.curves import bootstrap, draw_prompts, mean_of_finite, predictions_of
from ..evaluation.result import Curve
from ..models import AdaptedTransformerConfig
from ..report import (
    CHANCE,
    MARK,
    OWN,
    Result,
    comparator_look,
    draw_line,
    in_lines,
    legend_of_figure,
    open_run,
    panel_grid,
    show_number,
    spread,
    title_cut_lines,
)
from ..tasks import FAMILIES, Mixture
from ..tasks.draws import stream
from ..training.config import Config
from ..training.prediction import Predictor
from ..training.run import Run
from .fine_tuning import STEPS, FineTuning, Shots, Tuning, choose

QUERIES = 4  # of a prompt
TUNED_PROMPTS = 64  # for which weights are tuned
FITTED = 3  # numbers of examples to which a model is fitted by thousands of steps
RESAMPLES = 500
MAX_COLUMNS = 6  # of the table
LEAST = 0.001  # error in the figure
FINE_TUNED = "fine-tuned"
METHODS = {"maml": "MAML", "first-order": "first-order MAML", "reptile": "Reptile"}


@dataclasses.dataclass(frozen=True)
class Shown:
    """Errors on one family.

    Attributes:
      trained: whether prompts of the family were in training.
      curves: by learner; fine-tuning and the family's comparator are the last.
      comparator: the name of the comparator.
      optimal: whether it is the optimal estimator of the family.
    """

    trained: bool
    curves: dict[str, Curve]
    comparator: str
    optimal: bool


@dataclasses.dataclass(frozen=True)
class FewShot(Result):
    """Errors by family, learner and number of examples.

    Attributes:
      shots: numbers of examples, int `[K]`.
      families: by name, those of training first.
      tuned: by number of examples, learning rate and steps of fine-tuning, chosen on other prompts
        of the training mixture; empty if the run's learner itself adapts by gradients.
      runs: folders of the runs, by learner.
      error_name: what an error is.
      prompts: number of prompts of each family.
      step: the training step of the run's parameters.
      path: the run's folder.
    """

    shots: np.ndarray
    families: dict[str, Shown]
    tuned: dict[int, Tuning]
    runs: dict[str, str]
    error_name: str
    prompts: int
    step: int
    path: Path

    file = "few-shot"

    def as_data(self) -> dict[str, Any]:
        return super().as_data() | {
            "tuned": {str(shots): list(tuning) for shots, tuning in self.tuned.items()}
        }

    @classmethod
    def _read(cls, data: dict[str, Any]) -> dict[str, Any]:
        tuned = {int(shots): Tuning(*both) for shots, both in data["tuned"].items()}
        return super()._read(data | {"tuned": {}}) | {"tuned": tuned}

    def table(self) -> Table:
        """A row for each learner, by family; at most `MAX_COLUMNS` numbers of examples."""
        columns = spread(len(self.shots), MAX_COLUMNS)
        result = Table(
            title=f"error after k examples ({self.path}, step {self.step})",
            caption=(
                f"{self.error_name}, mean over {self.prompts} fresh prompts of each family, "
                f"{FINE_TUNED} over at most {TUNED_PROMPTS}; rate and steps of fine-tuning were "
                "chosen on other prompts of the training mixture"
            ),
        )
        result.add_column("learner")
        for count in self.shots[columns]:
            result.add_column(f"k = {count}", justify="right", no_wrap=True)
        for name, shown in self.families.items():
            held_out = "" if shown.trained else " (held out)"
            result.add_row(f"{name.replace('_', ' ')}{held_out}", style="bold")
            for learner, curve in shown.curves.items():
                optimal = " (optimal)" if learner == shown.comparator and shown.optimal else ""
                numbers = map(show_number, curve.mean[columns])
                result.add_row(f"  {learner}{optimal}", *numbers)
            result.add_section()
        return result

    def figure(self, plt: Any) -> Any:
        """A panel for each family: error by number of examples, for each learner."""
        figure, panels = panel_grid(plt, len(self.families), 3, 2.1, sharey=True)
        at = np.arange(len(self.shots))
        for axes, (name, shown) in zip(panels, self.families.items()):
            for index, (learner, curve) in enumerate(shown.curves.items()):
                label, style = self._style(learner, index, shown)
                asked = np.isfinite(curve.mean)
                ends = (np.maximum(e[asked], LEAST) for e in (curve.mean, curve.low, curve.high))
                draw_line(axes, at[asked], *ends, label=label, **style)
            axes.set(yscale="log", ylim=(LEAST, 3), xticks=at, xlabel="examples")
            axes.set_xticklabels(map(str, self.shots), fontsize=7)
            kind = "trained" if shown.trained else "held out"
            best = in_lines(f"best: {shown.comparator}", 28)
            axes.set_title(f"{name.replace('_', ' ')} ({kind})\n{best}")
            title_cut_lines(axes)
            if not shown.trained:
                axes.set_facecolor("#f4f1e8")
        figure.supylabel(f"error (below {LEAST}: {LEAST})")
        legend_of_figure(figure)
        return figure

    def _style(self, learner: str, index: int, shown: Shown) -> tuple[str, dict[str, Any]]:
        """The name in the legend, and the line."""
        if learner == shown.comparator:
            return "best estimator of the family", CHANCE | MARK | dict(color="0.2")
        if learner == FINE_TUNED:
            return learner, MARK | dict(color="0.5", linestyle="--", linewidth=1.3)
        return learner, OWN | MARK if index == 0 else comparator_look(index - 1, points=1)


def has_families(config: Config) -> bool:
    """Whether runs with these settings learn a mixture of families."""
    return isinstance(config.task, Mixture)


def few_shot(
    run: Run | str | Path,
    *,
    beside: Sequence[Run | str | Path] = (),
    held_out: Sequence[str] = (),
    prompts: int = 256,
    seed: int = 0,
) -> FewShot:
    """Errors of a run's newest checkpoint at 0, 1, 2, 4, ... examples; writes JSON and a figure.

    Every learner is asked for the same queries after the same examples; comparators are asked for
    one query of each prompt, and fitted ones on fewer prompts. The run's weights are also
    fine-tuned on the examples, unless its learner itself adapts by gradients. The comparator of a
    family is its optimal estimator, else the one with the smallest error after all examples.

    Args:
      run: the run or its folder, of a mixture.
      beside: other runs of that mixture, such as of MAML.
      held_out: names of further families that were not trained on; if empty, `task.held_out`, and
        if that is empty too, all registered families that fit.
      prompts: number of prompts of each family.
      seed: seed of the prompts.

    Raises:
      RunError: a run does not exist, or has no checkpoint.
      ValueError: fewer than one prompt, a run of another task, or a family that does not fit.
    """
    run, learner = open_run(run, prompts=prompts)
    mixture = _mixture_of(run)
    others = [open_run(other) for other in beside]
    for other, _ in others:
        theirs = _mixture_of(other)
        for name in ("families", "options", "dim"):
            if getattr(theirs, name) != getattr(mixture, name):
                raise ValueError(
                    f"{other.path} has other {name} than {run.path}: "
                    f"{getattr(theirs, name)} and {getattr(mixture, name)}"
                )
    step, variables = run.variables()
    predict: dict[str, Callable[[Shots, int], np.ndarray]] = {}
    runs: dict[str, str] = {}
    for one, own in [(run, learner), *others]:
        name = learner_name(one.config)
        for more in (f"{name}, {one.path.name}", f"{name}, {one.path}"):
            name = more if name in runs else name
        runs[name] = str(one.path)
        predictor = Predictor(own, variables if one is run else one.variables()[1])
        predict[name] = lambda shots, count, predictor=predictor: predictor(
            shots.x[:, :count], shots.y[:, :count], shots.x_query
        )
    mixtures = [mixture, *(_mixture_of(other) for other, _ in others)]
    counts = _counts(min(one.points - max(one.hidden_queries, 1) for one in mixtures))
    held_out = tuple(held_out) or mixture.held_out or _others(mixture)
    sizes: dict[str, Any] = dict(points=int(counts[-1]) + QUERIES, queries=None)
    key = stream("shots", seed)
    tuning, tuned = None, {}
    if not isinstance(run.config.model, AdaptedTransformerConfig):
        tuning = FineTuning(learner, variables)
        chosen_on = dataclasses.replace(mixture, fewest_points=None, **sizes)
        drawn = draw_prompts(chosen_on, jax.random.fold_in(key, 0), min(prompts, TUNED_PROMPTS))
        tuned = choose(tuning, Shots.of(drawn, QUERIES), counts.tolist())
    known = tuple(dict.fromkeys((*mixture.held_out, *held_out)))  # options may name the first
    named = dataclasses.replace(mixture, held_out=known)
    families = {}
    for index, name in enumerate((*mixture.families, *held_out)):
        family = named.alone(name, fewest_points=None, **sizes)
        episodes = draw_prompts(family, jax.random.fold_in(key, 1 + index), prompts)
        shots = Shots.of(episodes, QUERIES)
        y = shots.y_query
        error = lambda found, y=y: learner.labels.error(found.astype(np.float64), y).mean(axis=1)
        errors = {
            own: np.stack([error(ask(shots, count)) for count in counts], axis=1)
            for own, ask in predict.items()
        }
        if tuning is not None:
            zero = errors[learner_name(run.config)][:, 0]
            errors[FINE_TUNED] = _tuned_errors(tuning, tuned, shots, counts, zero)
        best, optimal, compared = _best_comparator(family, episodes, counts)
        errors[best] = compared
        curves = _curves(jax.random.fold_in(key, 100 + index), errors)
        families[name] = Shown(name in mixture.families, curves, best, optimal)
    name = learner.labels.error_name
    result = FewShot(counts, families, tuned, runs, name, prompts, step, run.path)
    return result.written()


def learner_name(config: Config) -> str:
    """What a learner does with examples, in a few words."""
    if isinstance(config.model, AdaptedTransformerConfig):
        return METHODS[config.model.method]
    return f"{config.model.title} in context"


def _mixture_of(run: Run) -> Mixture:
    task = run.config.task
    if not isinstance(task, Mixture):
        raise ValueError(f"{run.path} does not learn a mixture of families: its task is {task}")
    return task


def _counts(most: int) -> np.ndarray:
    """0, 1, 2, 4, ... and the largest number of examples."""
    powers = [2**n for n in range(most.bit_length()) if 2**n < most]
    return np.array([0, *powers, most] if most else [0])


def _others(mixture: Mixture) -> tuple[str, ...]:
    """All registered families that are not in a mixture and fit it."""
    fitting = []
    for name in FAMILIES:
        try:
            mixture.member(name)
        except ValueError:
            continue
        fitting.append(name)
    return tuple(name for name in fitting if name not in mixture.families)


def _tuned_errors(
    tuning: FineTuning, tuned: dict[int, Tuning], shots: Shots, counts: np.ndarray, zero: np.ndarray
) -> np.ndarray:
    """Errors `[prompts, K]`, NaN for prompts that are not tuned; `zero` are those of no example."""
    asked = min(len(zero), TUNED_PROMPTS)
    errors = np.full((len(zero), len(counts)), np.nan)
    errors[:asked, 0] = zero[:asked]
    for column, count in enumerate(counts[1:], 1):
        rate, steps = tuned[int(count)]
        found = tuning.errors(shots.some(asked), int(count), rate)
        errors[:asked, column] = found[:, STEPS.index(steps)]
    return errors


def _best_comparator(
    family: Mixture, episodes: Any, counts: np.ndarray
) -> tuple[str, bool, np.ndarray]:
    """Name, whether it is optimal, and errors `[prompts, K]` at the point after k examples."""
    fitted = counts[1:][spread(len(counts) - 1, FITTED)]
    known, reference = comparators(family, fitted.tolist())
    kind, y = family.label_kind, np.asarray(episodes.y)[:, counts].astype(np.float64)
    errors = {}
    for comparator in known:
        if reference is None or reference in comparator.names:
            predictions, _ = predictions_of(comparator, episodes)
            for name, found in zip(comparator.names, predictions):
                errors[name] = kind.error(found[:, counts], y)
    if not errors:
        return "none", False, np.full(y.shape[:2], np.nan)
    name = reference or min(errors, key=lambda one: mean_of_finite(errors[one])[-1])
    return name, name == reference, errors[name]


def _curves(key: jax.Array, errors: dict[str, np.ndarray]) -> dict[str, Curve]:
    """Means with intervals of errors `[prompts, K]`."""
    stacked = np.stack(list(errors.values()), axis=1)
    low, high = bootstrap(key, stacked, RESAMPLES)
    mean = mean_of_finite(stacked)
    return {name: Curve(mean[i], low[i], high[i]) for i, name in enumerate(errors)}

"""The phase change of a sweep: losses and induction heads over training, model by model.

Olsson et al. 2022, "In-context learning and induction heads", arguments 1 and 2: models of two
layers learn induction heads in a short part of training, in which their in-context score changes;
models of one layer do not, unless their keys are smeared.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from ..report import Result, legend_of_figure, look, panel_grid
from ..sweeps.checkpoints import variables_by_step
from ..sweeps.grid import label_of
from ..sweeps.results import SweepResult
from ..training.learner import Learner
from .head_scores import in_context_score
from .induction import PROMPTS, has_symbols, probe_of, scores_of
from .instrument import Instrument

if TYPE_CHECKING:
    from ..sweeps import Sweep


@dataclasses.dataclass(frozen=True)
class Course:
    """Scores over the training of one model, means over seeds.

    Attributes:
      steps: training steps, int `[S]`.
      loss: cross-entropy over all positions, in nats, `[S]`.
      in_context: loss late in a prompt minus loss early, in nats, `[S]`.
      prefix_matching: the largest prefix-matching score of a head of each layer, `[S, L]`.
      copying: the copying score of the head with the largest prefix-matching score, `[S]`.
    """

    steps: np.ndarray
    loss: np.ndarray
    in_context: np.ndarray
    prefix_matching: np.ndarray
    copying: np.ndarray


@dataclasses.dataclass(frozen=True)
class PhaseChange(Result):
    """Losses and induction heads over training, by model.

    Attributes:
      courses: by the values of the sweep's settings.
      seeds: number of seeds.
      prompts: number of prompts of the losses.
      path: the sweep's folder.
    """

    courses: dict[str, Course]
    seeds: int
    prompts: int
    path: Path

    file = "phase-change"
    again = "icl sweep --resume {path}"

    def table(self) -> Table:
        """A row a model, at the end of training."""
        result = Table(
            title=f"induction heads at the end of training ({self.path})",
            caption=(
                "in-context score: cross-entropy late in a prompt minus early, nats; jump: the "
                "first step with half of the final score; prefix: the largest prefix-matching "
                f"score of a head; {self.prompts} prompts, {self.seeds} "
                f"seed{'s' * (self.seeds > 1)}"
            ),
        )
        result.add_column("model")
        for name in ("loss", "in-context score", "jump", "prefix", "layer", "copying"):
            result.add_column(name, justify="right")
        for name, course in self.courses.items():
            best = int(course.prefix_matching[-1].argmax())
            half = np.flatnonzero(course.in_context <= course.in_context[-1] / 2)
            result.add_row(
                name,
                f"{course.loss[-1]:.3f}",
                f"{course.in_context[-1]:.3f}",
                str(course.steps[half[0]]) if len(half) else "–",
                f"{course.prefix_matching[-1, best]:.3f}",
                str(best + 1),
                f"{course.copying[-1]:.3f}",
            )
        return result

    def figure(self, plt: Any) -> Any:
        """Loss, in-context score and prefix matching over training, a line a model."""
        figure, panels = panel_grid(plt, 3, 3, 2.1)
        for index, (name, course) in enumerate(self.courses.items()):
            best = course.prefix_matching.max(axis=1)
            for axes, values in zip(panels, (course.loss, course.in_context, best)):
                axes.plot(course.steps, values, label=name.replace("_", " "), **look(index))
        panels[0].set(ylabel="cross-entropy, nats", title="loss")
        panels[1].set(ylabel="late - early, nats", title="in-context score")
        panels[2].set(ylabel="share of attention", title="prefix matching,\nbest head")
        panels[2].set_ylim(-0.03, 1.03)
        for axes in panels:
            axes.set_xlabel("training step")
        legend_of_figure(figure)
        return figure


def phase_change(sweep: "Sweep", *, prompts: int = PROMPTS, seed: int = 0) -> PhaseChange | None:
    """Scores all models of a finished sweep at every checkpoint: phase-change.json and its figure.

    Members whose loss became infinite are left out.

    Returns:
      None for a sweep with a member that is no transformer of sequences of symbols.
    """
    if not all(has_symbols(member.config) for member in sweep.members):
        return None
    trained = {r["member"] for r in SweepResult.load(sweep).records if "examples" in r}
    found: dict[str, list[Course]] = {}
    for index, members in enumerate(sweep.programs()):
        kept = [at for at, member in enumerate(members) if member.path.name in trained]
        if not kept:
            continue
        by_step = _by_step(sweep, index, Learner(members[0].config), kept, prompts, seed)
        for position, at in enumerate(kept):
            name = label_of(sweep.over, members[at].changes) or "all seeds"
            own = {step: scores[position] for step, scores in by_step.items()}
            found.setdefault(name, []).append(_course(own))
    if not found:
        return None
    courses = {name: _mean(several) for name, several in found.items()}
    return PhaseChange(courses, sweep.seeds, prompts, sweep.path).written()


def _by_step(
    sweep: "Sweep", index: int, learner: Learner, kept: list[int], prompts: int, seed: int
) -> dict[int, list[Any]]:
    """The scores of the members of a program that are kept, by step, ascending."""
    probe = probe_of(learner.family, seed)
    own, first, scores = None, None, {}
    for step, each in variables_by_step(sweep, index):
        first = first or Instrument.of(learner, each[kept[0]], step)
        own = first.prompts(prompts, seed) if own is None else own
        scores[step] = [scores_of(first.at(each[at], step), own, *probe) for at in kept]
    return dict(sorted(scores.items()))


def _course(by_step: dict[int, Any]) -> Course:
    scores = list(by_step.values())
    loss = np.stack([one.loss for one in scores])
    prefix = np.stack([one.prefix_matching for one in scores])
    heads = prefix.reshape(len(scores), -1).argmax(axis=1)
    copied = np.stack([one.copying for one in scores]).reshape(len(scores), -1)
    return Course(
        np.array(list(by_step)),
        loss.mean(axis=1),
        in_context_score(loss),
        prefix.max(axis=2),
        copied[np.arange(len(scores)), heads],
    )


def _mean(courses: list[Course]) -> Course:
    """The mean of models that differ in their seed alone."""
    fields = [field.name for field in dataclasses.fields(Course)]
    mean = lambda name: np.mean([getattr(one, name) for one in courses], axis=0)
    return Course(courses[0].steps, *map(mean, fields[1:]))

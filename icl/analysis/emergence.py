"""When learning in context and in weights emerge, by the settings of a sweep.

Chan et al. 2022 (arXiv 2205.05055, figures 3 to 6) train learners on sequences of different
burstiness, or of other properties, and draw both accuracies over training.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
from rich.table import Table

from ..report import CHANCE, WIDTH, Result, legend_of_figure, show_number
from ..report.lines import DASHES
from ..sweeps.checkpoints import variables_by_step
from ..sweeps.grid import SEED, short_name, values_of
from ..sweeps.results import SweepResult
from ..tasks import ClassSequences
from ..training.learner import Learner
from .modes import default_modes, measure_of, on_device_once

if TYPE_CHECKING:
    from ..sweeps import Member, Sweep

PROMPTS = 1000
IN_CONTEXT, IN_WEIGHTS = "in context", "in weights"
NUMBERS = ("accuracy", "closed", "chance")
STYLES = ("-", "--", ":", "-.")


@dataclasses.dataclass(frozen=True)
class Curves:
    """Accuracies of the members with some values, which differ in their seed alone.

    Attributes:
      values: the value of each setting of the sweep, as text.
      steps: training steps, int `[S]`.
      accuracy: by mode, mean over seeds, among all labels, float64 `[S]`.
      closed: likewise, among the labels in play.
      chance: by mode, accuracy of guesses among the labels in play.
      labels: number of labels.
    """

    values: list[str]
    steps: np.ndarray
    accuracy: dict[str, np.ndarray]
    closed: dict[str, np.ndarray]
    chance: dict[str, float]
    labels: int


@dataclasses.dataclass(frozen=True)
class Emergence(Result):
    """Learning in context and in weights over training, by the settings of a sweep.

    Attributes:
      settings: names of the settings that the sweep is over, without the seed.
      curves: one for each combination of values.
      modes: the mode of learning in context, and that of learning in weights.
      seeds: number of seeds.
      prompts: number of sequences of each mode.
      path: the sweep's folder.
    """

    settings: list[str]
    curves: list[Curves]
    modes: dict[str, str]
    seeds: int
    prompts: int
    path: Path

    file = "emergence"
    again = "icl sweep --resume {path}"

    def table(self) -> Table:
        """Accuracies at the end of training, and the best in training."""
        result = Table(
            title="accuracy of the query at the end of training",
            caption=(
                f"in context: {self.modes[IN_CONTEXT]}; in weights: {self.modes[IN_WEIGHTS]}; "
                f"closed: among the labels in play; best: at any checkpoint; {self.prompts} "
                f"sequences of each mode, {self.seeds} seed{'s' * (self.seeds > 1)}"
            ),
        )
        names = ("in context", "best", "closed", "(chance)", "in weights", "best", "(chance)")
        for name in (*self.settings, *names):
            result.add_column(name.replace("_", " "), justify="right")
        for curve in self.curves:
            context, weights = self.modes[IN_CONTEXT], self.modes[IN_WEIGHTS]
            own = curve.accuracy[context], curve.closed[context], curve.accuracy[weights]
            numbers = (
                own[0][-1], own[0].max(), own[1][-1], curve.chance[context],
                own[2][-1], own[2].max(), curve.chance[weights],
            )  # fmt: skip
            result.add_row(*curve.values, *map(show_number, numbers))
        return result

    def figure(self, plt: Any) -> Any:
        """Both accuracies against the training step, a line for each combination of values.

        Colours tell values of the first setting, and styles of lines values of the others.
        """
        figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 2.5), layout="constrained", sharey=True)
        firsts = list(dict.fromkeys(tuple(curve.values[:1]) for curve in self.curves))
        others = list(dict.fromkeys(tuple(curve.values[1:]) for curve in self.curves))
        colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(firsts)))
        for axes, (title, mode) in zip(panels, self.modes.items()):
            for curve in self.curves:
                named = zip(self.settings, curve.values)
                axes.plot(
                    curve.steps, curve.accuracy[mode],
                    color=colours[firsts.index(tuple(curve.values[:1]))],
                    linestyle=DASHES[others.index(tuple(curve.values[1:])) % len(DASHES)],
                    label=", ".join(f"{name} {value}" for name, value in named).replace("_", " ")
                    or "all seeds",
                )  # fmt: skip
            for labels in sorted({curve.labels for curve in self.curves}):
                axes.axhline(1 / labels, label="chance", **CHANCE)
            axes.set(title=f"{title}: {mode}", xlabel="training step", ylim=(-0.03, 1.03))
        panels[0].set_ylabel("accuracy of the query")
        legend_of_figure(figure)
        return figure


class _Series(NamedTuple):
    """The numbers of a member at its checkpoints."""

    steps: np.ndarray  # int [S], ascending
    numbers: dict[str, dict[str, np.ndarray]]  # by mode and name, float64 [S]


def emergence(sweep: "Sweep", *, prompts: int = PROMPTS, seed: int = 0) -> Emergence | None:
    """Both accuracies at every checkpoint of a finished sweep: emergence.json and emergence.png.

    Members whose loss became infinite are left out.

    Returns:
      None for a sweep of another task than class sequences, or whose members share no modes.
    """
    if not isinstance(sweep.config.task, ClassSequences):
        return None
    trained = {r["member"] for r in SweepResult.load(sweep).records if "examples" in r}
    found: dict[tuple[str, ...], list[_Series]] = {}
    labels: dict[tuple[str, ...], int] = {}
    modes: tuple[str, ...] = ()
    for index, members in enumerate(sweep.programs()):
        if not trained & {member.path.name for member in members}:
            continue
        learner = Learner(members[0].config)
        assert isinstance(learner.family, ClassSequences)
        own_modes = tuple(default_modes(learner.family)[:2])
        if len(own_modes) < 2 or (modes and modes != own_modes):
            return None
        modes = own_modes
        series = _series(sweep, index, members, learner, modes, prompts, seed)
        for member, own in zip(members, series):
            if member.path.name in trained:
                values = tuple(map(_text, values_of(sweep.over, member.changes).values()))
                found.setdefault(values, []).append(own)
                labels[values] = learner.family.label_kind.number
    curves = [_curve(list(values), own, labels[values]) for values, own in found.items()]
    settings = [short_name(name) for name in sweep.over if name != SEED]
    kinds: dict[str, str] = dict(zip((IN_CONTEXT, IN_WEIGHTS), modes))
    return Emergence(settings, curves, kinds, sweep.seeds, prompts, sweep.path).written()


def _text(value: Any) -> str:
    return f"{value:g}" if isinstance(value, float) else str(value)


def _series(
    sweep: "Sweep",
    index: int,
    members: list["Member"],
    learner: Learner,
    modes: tuple[str, ...],
    prompts: int,
    seed: int,
) -> list[_Series]:
    """The numbers of each member of a program, by step."""
    family = learner.family
    assert isinstance(family, ClassSequences)
    data = on_device_once(family)
    measures = {mode: measure_of(learner, family.mode(mode), prompts, seed, data) for mode in modes}
    by_step = {
        step: [{mode: measure(own) for mode, measure in measures.items()} for own in each]
        for step, each in variables_by_step(sweep, index)
    }
    steps = sorted(by_step)
    series = lambda member, mode, name: np.array([by_step[s][member][mode][name] for s in steps])
    return [
        _Series(
            np.array(steps),
            {mode: {name: series(member, mode, name) for name in NUMBERS} for mode in modes},
        )
        for member in range(len(members))
    ]


def _curve(values: list[str], members: list[_Series], labels: int) -> Curves:
    """The mean of members that differ in their seed alone."""
    mean = lambda name: {
        mode: np.mean([one.numbers[mode][name] for one in members], axis=0)
        for mode in members[0].numbers
    }
    chance = {mode: float(series[-1]) for mode, series in mean("chance").items()}
    return Curves(values, members[0].steps, mean("accuracy"), mean("closed"), chance, labels)

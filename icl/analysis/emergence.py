"""When learning in context and in weights emerge, by the settings of a sweep.

Chan et al. 2022 (arXiv 2205.05055, figures 3 to 6) train learners on sequences of different
burstiness, or of other properties, and draw both accuracies over training.
"""

import contextlib
import dataclasses
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import jax
import numpy as np
from rich.table import Table

from ..report import Result, show_number
from ..sweeps.grid import SEED, short_name
from ..tasks import ClassSequences
from ..training.checkpoints import Checkpoints
from ..training.learner import Learner, Variables
from ..training.population import init_population
from ..training.step import TrainState, variable_items, variables_from
from .modes import default_modes, measure_of, on_device_once

if TYPE_CHECKING:
    from ..sweeps import Member, Sweep

PROMPTS = 1000
IN_CONTEXT, IN_WEIGHTS = "in context", "in weights"
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
        figure, panels = plt.subplots(1, 2, figsize=(11, 4.0), layout="constrained", sharey=True)
        firsts = list(dict.fromkeys(curve.values[0] for curve in self.curves))
        others = list(dict.fromkeys(tuple(curve.values[1:]) for curve in self.curves))
        colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(firsts)))
        for axes, (title, mode) in zip(panels, self.modes.items()):
            for curve in self.curves:
                named = zip(self.settings, curve.values)
                axes.plot(
                    curve.steps, curve.accuracy[mode],
                    color=colours[firsts.index(curve.values[0])],
                    linestyle=STYLES[others.index(tuple(curve.values[1:])) % len(STYLES)],
                    label=", ".join(f"{name} {value}" for name, value in named).replace("_", " "),
                )  # fmt: skip
            axes.axhline(1 / self.curves[0].labels, color="0.6", linestyle=":", label="chance")
            axes.set(title=f"{title}: {mode}", xlabel="training step", ylim=(-0.03, 1.03))
        panels[0].set_ylabel("accuracy of the query")
        handles, labels = panels[1].get_legend_handles_labels()
        figure.legend(handles, labels, loc="outside right center", fontsize=8)
        return figure


def emergence(sweep: "Sweep", *, prompts: int = PROMPTS, seed: int = 0) -> Emergence | None:
    """Both accuracies at every checkpoint of a finished sweep: emergence.json and emergence.png.

    Returns:
      None for a sweep of another task than class sequences, or whose members share no modes.
    """
    if not isinstance(sweep.config.task, ClassSequences):
        return None
    found: dict[
        tuple[str, ...], list[tuple[np.ndarray, dict[str, dict[str, np.ndarray]], int]]
    ] = {}
    names: set[tuple[str, ...]] = set()
    for index, members in enumerate(sweep.programs()):
        learner = Learner(members[0].config)
        family = learner.family
        assert isinstance(family, ClassSequences)
        modes = default_modes(family)[:2]
        names.add(tuple(modes))
        if len(modes) < 2 or len(names) > 1:
            return None
        data = on_device_once(family)
        measures = {
            mode: measure_of(learner, family.mode(mode), prompts, seed, data) for mode in modes
        }
        steps, values = [], []
        for step, each in _checkpoints(sweep, index, members):
            steps.append(step)
            values.append([{m: measure(own) for m, measure in measures.items()} for own in each])
        order = np.argsort(steps)
        for position, member in enumerate(members):
            numbers = {
                mode: {
                    name: np.array([values[i][position][mode][name] for i in order])
                    for name in ("accuracy", "closed", "chance")
                }
                for mode in modes
            }
            found.setdefault(_values(sweep, member), []).append(
                (np.array(steps)[order], numbers, family.label_kind.number)
            )
    curves = []
    for texts, members in found.items():
        mean = lambda mode, name, own=members: np.mean([one[1][mode][name] for one in own], axis=0)
        modes = list(members[0][1])
        curves.append(
            Curves(
                list(texts),
                members[0][0],
                {mode: mean(mode, "accuracy") for mode in modes},
                {mode: mean(mode, "closed") for mode in modes},
                {mode: float(mean(mode, "chance")[-1]) for mode in modes},
                members[0][2],
            )
        )
    [modes] = names
    kinds: dict[str, str] = dict(zip((IN_CONTEXT, IN_WEIGHTS), modes))
    settings = [short_name(name) for name in _settings(sweep)]
    return Emergence(settings, curves, kinds, sweep.seeds, prompts, sweep.path).written()


def _settings(sweep: "Sweep") -> list[str]:
    """What the sweep is over, without the seed: full names of settings, and names of groups."""
    return [name for name in sweep.over if name != SEED] or [SEED]


def _values(sweep: "Sweep", member: "Member") -> tuple[str, ...]:
    """The value of a member for each of `_settings`, as text; the label for a group."""
    found = []
    for name in _settings(sweep):
        values = sweep.over.get(name)
        if isinstance(values, dict):
            fits = (k for k, own in values.items() if own.items() <= member.changes.items())
            found.append(next(fits))
        else:
            value = member.changes.get(name, "all")
            found.append(f"{value:g}" if isinstance(value, float) else str(value))
    return tuple(found)


def _checkpoints(
    sweep: "Sweep", index: int, members: list["Member"]
) -> Iterator[tuple[int, list[Variables]]]:
    """Each checkpoint of a program: its step, and the variables of each member."""
    abstract = jax.eval_shape(lambda: init_population([m.config for m in members]).items())
    variables = TrainState.from_items(abstract).variables
    folder = sweep.program_folder(index) / "checkpoints"
    keep = members[0].config.training.keep_checkpoints
    with contextlib.closing(Checkpoints(folder, keep, sweep.resume)) as checkpoints:
        for step, items in checkpoints.restore_all(variable_items(variables)):
            whole = variables_from(items)
            nth = lambda position, whole=whole: jax.tree.map(lambda a: a[position], whole)
            yield step, [nth(position) for position in range(len(members))]

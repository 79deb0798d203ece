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
from ..sweeps.grid import label_of
from ..tasks import ClassSequences
from ..training.checkpoints import Checkpoints
from ..training.learner import Learner, Variables
from ..training.population import init_population
from ..training.step import TrainState, variable_items, variables_from
from .modes import default_modes, measure_of

if TYPE_CHECKING:
    from ..sweeps import Member, Sweep

PROMPTS = 1000
IN_CONTEXT, IN_WEIGHTS = "in context", "in weights"


@dataclasses.dataclass(frozen=True)
class Curves:
    """Accuracies of the members with some values, which differ in their seed alone.

    Attributes:
      label: their values.
      steps: training steps, int `[S]`.
      accuracy: by mode, mean over seeds, among all labels, float64 `[S]`.
      closed: likewise, among the labels in play.
      chance: by mode, accuracy of guesses among the labels in play.
      labels: number of labels.
    """

    label: str
    steps: np.ndarray
    accuracy: dict[str, np.ndarray]
    closed: dict[str, np.ndarray]
    chance: dict[str, float]
    labels: int


@dataclasses.dataclass(frozen=True)
class Emergence(Result):
    """Learning in context and in weights over training, by the settings of a sweep.

    Attributes:
      curves: one for each combination of values.
      modes: the mode of learning in context, and that of learning in weights.
      seeds: number of seeds.
      prompts: number of sequences of each mode.
      path: the sweep's folder.
    """

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
        result.add_column("settings")
        for name in ("in context", "best", "closed", "(chance)", "in weights", "best", "(chance)"):
            result.add_column(name, justify="right")
        for curve in self.curves:
            context, weights = self.modes[IN_CONTEXT], self.modes[IN_WEIGHTS]
            own = curve.accuracy[context], curve.closed[context], curve.accuracy[weights]
            numbers = (
                own[0][-1], own[0].max(), own[1][-1], curve.chance[context],
                own[2][-1], own[2].max(), curve.chance[weights],
            )  # fmt: skip
            result.add_row(curve.label, *map(show_number, numbers))
        return result

    def figure(self, plt: Any) -> Any:
        """Both accuracies against the training step, a line for each combination of values."""
        figure, panels = plt.subplots(1, 2, figsize=(10, 4.0), layout="constrained", sharey=True)
        colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, len(self.curves)))
        for axes, (title, mode) in zip(panels, self.modes.items()):
            for curve, colour in zip(self.curves, colours):
                axes.plot(
                    curve.steps, curve.accuracy[mode], "o-", markersize=3, color=colour,
                    label=curve.label,
                )  # fmt: skip
            axes.axhline(1 / self.curves[0].labels, color="0.6", linestyle=":", label="chance")
            axes.set(title=f"{title}: {mode}", xlabel="training step", ylim=(-0.03, 1.03))
        panels[0].set_ylabel("accuracy of the query")
        panels[1].legend(fontsize=8)
        return figure


def emergence(sweep: "Sweep", *, prompts: int = PROMPTS, seed: int = 0) -> Emergence | None:
    """Both accuracies at every checkpoint of a finished sweep: emergence.json and emergence.png.

    Returns:
      None for a sweep of another task than class sequences, or whose members share no modes.
    """
    if not isinstance(sweep.config.task, ClassSequences):
        return None
    found: dict[str, list[tuple[np.ndarray, dict[str, dict[str, np.ndarray]], int]]] = {}
    names: set[tuple[str, ...]] = set()
    for index, members in enumerate(sweep.programs()):
        learner = Learner(members[0].config)
        family = learner.family
        assert isinstance(family, ClassSequences)
        modes = default_modes(family)[:2]
        names.add(tuple(modes))
        if len(modes) < 2 or len(names) > 1:
            return None
        measures = {mode: measure_of(learner, family.mode(mode), prompts, seed) for mode in modes}
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
            label = label_of(sweep.over, member.changes)
            found.setdefault(label, []).append(
                (np.array(steps)[order], numbers, family.label_kind.number)
            )
    curves = []
    for label, members in found.items():
        mean = lambda mode, name, own=members: np.mean([one[1][mode][name] for one in own], axis=0)
        modes = list(members[0][1])
        curves.append(
            Curves(
                label,
                members[0][0],
                {mode: mean(mode, "accuracy") for mode in modes},
                {mode: mean(mode, "closed") for mode in modes},
                {mode: float(mean(mode, "chance")[-1]) for mode in modes},
                members[0][2],
            )
        )
    [modes] = names
    kinds: dict[str, str] = dict(zip((IN_CONTEXT, IN_WEIGHTS), modes))
    return Emergence(curves, kinds, sweep.seeds, prompts, sweep.path).written()


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

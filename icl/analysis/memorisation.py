"""Memorising tasks or learning to learn, by model and number of training tasks, in a sweep.

Kirsch et al. 2022 (arXiv 2212.04458, figure 2): with few tasks a learner memorises them, with more
it identifies which of them it sees, and from some number on it learns tasks that it never saw.
"""

import dataclasses
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np
from rich.table import Table

from ..report import Result, panel_grid
from ..sweeps.grid import SEED, short_name
from ..sweeps.results import SweepResult
from .generalisation import SEEN, UNSEEN, accuracies, ends, is_images

if TYPE_CHECKING:
    from ..sweeps import Sweep

POOL_SIZE = "training_pool_size"
PROMPTS = 640
GAP = 0.1  # of accuracy; a smaller difference is none
PHASES = {
    "m": "memorises: accurate on seen tasks from the first image on, not on unseen ones",
    "i": "identifies: learns seen tasks from their images, and unseen ones less",
    "L": "learns to learn: as accurate on unseen tasks as on seen ones",
    "-": "has learned neither",
    "?": "diverged in training",
}


@dataclasses.dataclass(frozen=True)
class Memorisation(Result):
    """Accuracy on seen and unseen tasks by model and number of tasks.

    Early and late accuracies are over the first and the last tenth of the positions. All images
    are ones that training did not see, if the task holds some out.

    Attributes:
      models: what distinguishes the models of a row.
      pool_size: numbers of training tasks, ascending.
      accuracy: by kind ("seen tasks" and "unseen tasks") and by time ("early" and "late"), mean
        over seeds, float64 `[models, sizes]`; NaN for models that were not trained.
      seeds: number of seeds.
      prompts: number of prompts of each kind.
      path: the sweep's folder.
    """

    models: list[str]
    pool_size: list[int]
    accuracy: dict[str, dict[str, np.ndarray]]
    seeds: int
    prompts: int
    path: Path

    file = "memorisation"
    again = "icl sweep --resume {path}"

    @property
    def gap(self) -> np.ndarray:
        """Late accuracy on seen tasks minus that on unseen tasks, `[models, sizes]`."""
        return self.accuracy[SEEN]["late"] - self.accuracy[UNSEEN]["late"]

    def gain(self, kind: str) -> np.ndarray:
        """Late minus early accuracy, `[models, sizes]`: what was learned in context."""
        return self.accuracy[kind]["late"] - self.accuracy[kind]["early"]

    def phases(self) -> np.ndarray:
        """The key of `PHASES` for each model, `[models, sizes]`."""
        seen, unseen = self.gain(SEEN), self.gain(UNSEEN)
        choices = [
            np.isnan(self.gap),
            (self.gap < GAP) & (unseen >= GAP),
            seen >= GAP,
            self.gap >= GAP,
        ]
        return np.select(choices, ["?", "L", "i", "m"], "-")

    def as_data(self) -> dict[str, Any]:
        return super().as_data() | {"gap": self.gap.tolist(), "phase": self.phases().tolist()}

    def table(self) -> Table:
        """Late accuracies and their gap, a row for each model and number of tasks."""
        result = Table(
            title="accuracy at the end of prompts, by the number of training tasks",
            caption=(
                f"percent, {self.prompts} prompts of each kind and {self.seeds} seed"
                f"{'s' * (self.seeds > 1)}; gain: late minus early\n"
                + "\n".join(f"{key}  {words}" for key, words in PHASES.items())
            ),
            box=None,
            padding=(0, 1),
        )
        for name in ("model", "tasks", "seen", "gain", "unseen", "gain", "gap", "phase"):
            result.add_column(name, justify="left" if name == "model" else "right")
        columns = [
            self.accuracy[SEEN]["late"], self.gain(SEEN),
            self.accuracy[UNSEEN]["late"], self.gain(UNSEEN), self.gap,
        ]  # fmt: skip
        for row, model in enumerate(self.models):
            for index, size in enumerate(self.pool_size):
                cells = (f"{100 * column[row, index]:.0f}" for column in columns)
                name = model if index == 0 else ""
                result.add_row(name, f"{size:,}", *cells, self.phases()[row, index])
        return result

    def figure(self, plt: Any) -> Any:
        """Maps of what is known early, of what is learned in context, and of the gap."""
        maps = {
            "seen tasks: early": self.accuracy[SEEN]["early"],
            "seen tasks: late - early": self.gain(SEEN),
            "unseen tasks: late - early": self.gain(UNSEEN),
            "late: seen - unseen": self.gap,
        }
        height = 0.7 + 0.3 * len(self.models)
        figure, panels = panel_grid(
            plt, len(maps), 2, height, "training tasks", sharex=True, sharey=True
        )
        for axes, (title, values) in zip(panels, maps.items()):
            drawn = axes.imshow(values, vmin=0, vmax=1, cmap="viridis", aspect="auto")
            for (row, column), value in np.ndenumerate(values):
                colour = "k" if value > 0.6 else "w"
                axes.annotate(
                    f"{100 * value:.0f}", (column, row), ha="center", va="center", color=colour,
                    fontsize=7,
                )  # fmt: skip
            axes.set(title=title, xticks=range(len(self.pool_size)))
            axes.set_xticklabels([_power(size) for size in self.pool_size])
            axes.set_yticks(range(len(self.models)), self.models)
            axes.grid(visible=False)
        figure.colorbar(drawn, ax=panels, label="accuracy, or difference", pad=0.01)
        return figure


def memorisation(sweep: "Sweep", *, prompts: int = PROMPTS) -> Memorisation | None:
    """Figure 2 of the paper for a finished sweep over pool sizes: memorisation.json and .png.

    Settings that the sweep is over beside pool size and seed distinguish the models.

    Returns:
      None for a sweep over fewer than two pool sizes, with fresh tasks among them, or of a task
      that does not classify images.
    """
    sizes = sweep.over.get(POOL_SIZE, [])
    if len(sizes) < 2 or None in sizes or not is_images(sweep.config):
        return None
    trained = {r["member"] for r in SweepResult.load(sweep).records if "examples" in r}
    members = [member for member in sweep.members if member.path.name in trained]
    found: dict[tuple[str, int], list[dict[str, tuple[float, float]]]] = {}
    for member, one in zip(members, accuracies([m.run for m in members], prompts=prompts)):
        rest = {k: v for k, v in member.changes.items() if k not in (POOL_SIZE, SEED)}
        label = ", ".join(f"{short_name(name)} {value}" for name, value in rest.items())
        of_kind = {kind: ends(values) for kind, values in one.items()}
        found.setdefault((label, member.changes[POOL_SIZE]), []).append(of_kind)
    models, ordered = list(dict.fromkeys(label for label, _ in found)), sorted(sizes)

    def mean(kind: str, end: int) -> np.ndarray:
        cell = lambda key: np.mean([one[kind][end] for one in found.get(key, [])] or [np.nan])
        return np.array([[cell((model, size)) for size in ordered] for model in models])

    accuracy = {kind: {"early": mean(kind, 0), "late": mean(kind, 1)} for kind in (SEEN, UNSEEN)}
    seeds = max(map(len, found.values()))
    return Memorisation(models, ordered, accuracy, seeds, prompts, sweep.path).written()


def _power(size: int) -> str:
    """A number of tasks, as a power of two if it is one."""
    exponent = size.bit_length() - 1
    return f"$2^{{{exponent}}}$" if size == 2**exponent else str(size)

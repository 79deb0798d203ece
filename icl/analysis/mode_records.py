"""Results of evaluations by mode: lines of a file that several processes may add to."""

import contextlib
import dataclasses
import fcntl
import json
import os
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from rich.table import Table

from ..report import CHANCE, MARK, WIDTH, Result, legend_of_figure, look, show_number
from ..tasks import KINDS
from ..training import disk
from ..training.run import plain

LINES = "modes.jsonl"
SHARES = ("common", "rare", "fewshot", "support")


@dataclasses.dataclass(frozen=True)
class ModeRecord:
    """Means over the sequences of one mode at one step, all of the query's prediction.

    Attributes:
      step: training step of the parameters.
      mode: kind of the sequences.
      prompts: number of sequences.
      seed: seed of the sequences.
      accuracy: share of right labels among all labels.
      closed: share of right labels among the labels in play. In the modes without support, and in
        in_weights and copy_available, these are the labels of the query's group of classes; in
        other modes the labels of the context.
      chance: accuracy of uniform guesses among the labels in play.
      loss: cross-entropy, nats.
      own: share of the label that the query's class has in training, whatever the context says.
      shares: share of predictions that are labels of common or of rare classes, the labels of
        few-shot sequences (0 to ways - 1), or labels of the context ("support"); NaN if labels do
        not tell classes.
    """

    step: int
    mode: str
    prompts: int
    seed: int
    accuracy: float
    closed: float
    chance: float
    loss: float
    own: float
    shares: dict[str, float]


@dataclasses.dataclass(frozen=True)
class ModeCurves(Result):
    """Accuracies by mode and training step.

    Attributes:
      records: in the order of modes and steps, one for each of both.
      path: the run's folder.
    """

    records: list[ModeRecord]
    path: Path

    file = "modes"

    @property
    def modes(self) -> list[str]:
        """The modes, in the order of `KINDS`."""
        present = {record.mode for record in self.records}
        return [mode for mode in KINDS if mode in present]

    def of(self, mode: str) -> list[ModeRecord]:
        """The records of a mode, by step."""
        own = [record for record in self.records if record.mode == mode]
        return sorted(own, key=lambda record: record.step)

    def table(self) -> Table:
        """The last record of each mode."""
        sequences = " or ".join(
            f"{n:,}" for n in sorted({self.of(m)[-1].prompts for m in self.modes})
        )
        result = Table(
            title=f"predictions of the query by mode ({self.path})",
            caption=(
                f"{sequences} sequences of each mode; closed: among the labels in play, whose "
                "number gives chance; own: the label that the query's class has in training; then "
                "shares of predictions that are labels of common and rare classes, and of the "
                "context"
            ),
        )
        names = (
            "mode",
            "step",
            "accuracy",
            "closed",
            "chance",
            "own",
            "common",
            "rare",
            "context",
        )
        for name in names:
            result.add_column(name, justify="left" if name == "mode" else "right", no_wrap=True)
        for mode in self.modes:
            last = self.of(mode)[-1]
            shares = (last.shares[name] for name in ("common", "rare", "support"))
            numbers = (last.accuracy, last.closed, last.chance, last.own, *shares)
            result.add_row(mode, f"{last.step:,}", *map(show_number, numbers))
        return result

    def figure(self, plt: Any) -> Any:
        """Accuracy and accuracy among the labels in play against the training step."""
        figure, panels = plt.subplots(1, 2, figsize=(WIDTH, 2.6), layout="constrained", sharey=True)
        for index, mode in enumerate(self.modes):
            records, line = self.of(mode), look(index)
            steps = [record.step for record in records]
            for axes, name in zip(panels, ("accuracy", "closed")):
                values = [getattr(record, name) for record in records]
                axes.plot(steps, values, label=mode, **line, **MARK)
            panels[1].axhline(records[-1].chance, **CHANCE | dict(color=line["color"]))
        panels[0].set(ylabel="accuracy of the query", title="among all labels")
        panels[1].set(title="among the labels in play;\nhorizontal: chance")
        for axes in panels:
            axes.set(xlabel="training step", ylim=(-0.03, 1.03))
        figure.suptitle(f"accuracy by mode, {self.path.name}")
        legend_of_figure(figure)
        return figure

    @classmethod
    def in_folder(cls, path: Path) -> "ModeCurves":
        """All results so far of a run: the newest line for each mode and step."""
        newest: dict[tuple[str, int], ModeRecord] = {}
        for record in lines(path):
            newest[record.mode, record.step] = record
        return cls([newest[key] for key in sorted(newest)], path)


def append(run: Path, record: ModeRecord) -> None:
    """Adds a result of a run as a line of its file.

    Raises:
      DiskFull, CannotSave: the file cannot be written.
    """
    line = json.dumps(plain(dataclasses.asdict(record)), allow_nan=False) + "\n"
    saving = disk.saving(f"the mode {record.mode} of step {record.step}", run, f"icl eval {run}")
    with saving, _alone(run), open(run / LINES, "ab+") as file:
        # A line that a crash left incomplete must not swallow this one.
        if file.tell() and os.pread(file.fileno(), 1, file.tell() - 1) != b"\n":
            line = "\n" + line
        file.write(line.encode())


def written(run: Path) -> ModeCurves:
    """All results so far of a run, saved as modes.json and drawn, in one process at a time."""
    with disk.usable(run), _alone(run):
        return ModeCurves.in_folder(run).written()


@contextlib.contextmanager
def _alone(run: Path) -> Iterator[None]:
    """Waits until no other process changes the files of the modes of a run."""
    with open(run / ".modes.lock", "w") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


def lines(run: Path) -> Iterator[ModeRecord]:
    """The results of a run in the order of writing, without lines that cannot be read."""
    file = run / LINES
    text = disk.read_text(file) if file.exists() else ""
    for line in text.split("\n"):
        try:
            yield _record(json.loads(line))
        except (ValueError, TypeError, KeyError, RecursionError):
            continue


def _record(data: dict[str, Any]) -> ModeRecord:
    known = lambda value: np.nan if value is None else float(value)
    numbers = ("accuracy", "closed", "chance", "loss", "own")
    shares = {name: known(data["shares"][name]) for name in SHARES}
    own = {name: known(data[name]) for name in numbers}
    mode, step, prompts, seed = (data[name] for name in ("mode", "step", "prompts", "seed"))
    if mode not in KINDS or not all(type(one) is int for one in (step, prompts, seed)):
        raise ValueError(f"{data} is no record of a mode")
    return ModeRecord(step, mode, prompts, seed, shares=shares, **own)

"""Progress of a run: a bar on a terminal, otherwise a line at intervals."""

import time
from typing import Any

from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from .. import output
from ..tasks.labels import Measure

LINE_SECONDS = 10.0


class ProgressDisplay:
    """Shows steps, loss, speed and time left.

    Args:
      total: number of steps of the whole run.
      done: number of steps already made.
      measure: the name and the scale of the loss.
      enabled: whether anything is shown.
    """

    def __init__(self, total: int, done: int, measure: Measure, enabled: bool = True):
        self.console = output.console(quiet=not enabled)
        self.total = total
        self._measure = measure
        self._last_line = 0.0
        columns = (
            TextColumn("{task.description}"),
            BarColumn(),
            MofNCompleteColumn(),
            TextColumn("{task.fields[text]}"),
            TimeRemainingColumn(compact=True),
        )
        self._bar = Progress(
            *columns, console=self.console, disable=not (enabled and self.console.is_terminal)
        )
        self._task = self._bar.add_task("training", total=total, completed=done, text="")

    def __enter__(self) -> "ProgressDisplay":
        label, name, _ = self._measure
        self.say(f"{label}: {name}, over training batches")
        self._bar.start()
        return self

    def __exit__(self, *_) -> None:
        self._bar.stop()

    @property
    def gone(self) -> bool:
        """Whether the output was closed, as by `icl train ... | head -1`."""
        return getattr(self.console.file, "gone", False)

    def say(self, message: str) -> None:
        """Prints a message above the bar."""
        self._bar.console.print(message, soft_wrap=True)

    def update(self, step: int, record: dict[str, Any]) -> None:
        """Shows the loss of a metrics record, on the scale of the measure, and the speed."""
        rate = record["steps_per_second"]
        speed = f"{rate:.1f} steps/s" if rate >= 1 else f"{1 / rate:.3g} s a step"
        text = (
            f"{self._measure.label} {record[self._measure.label]:.4f}  {speed}  "
            f"{_short(record['tokens_per_second'])} tokens/s"
        )
        self._bar.update(self._task, completed=step, text=text)
        now = time.monotonic()
        due = now - self._last_line >= LINE_SECONDS or step == self.total
        if not self.console.is_terminal and due:
            self._last_line = now
            left = output.duration((self.total - step) / rate)
            self.say(f"step {step}/{self.total}  {text}  {left} left")


def _short(number: float) -> str:
    for unit in ("", "k", "M"):
        if number < 1000:
            return f"{number:.3g}{unit}"
        number /= 1000
    return f"{number:.3g}G"

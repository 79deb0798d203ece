"""What an evaluation found: curves of error, saved as JSON and shown as a table."""

import dataclasses
from pathlib import Path

import numpy as np
from rich.console import Console
from rich.table import Table

from ..training.disk import reading
from ..training.run import Run, RunError, write_json

MAX_COLUMNS = 5  # fits 80 characters


@dataclasses.dataclass(frozen=True)
class Curve:
    """Mean error by number of in-context examples, with a 90% bootstrap interval.

    Each a float64 array over `Evaluation.examples`, as the family's `error` defines it; NaN where
    an estimator was not asked.
    """

    mean: np.ndarray
    low: np.ndarray
    high: np.ndarray


@dataclasses.dataclass(frozen=True)
class Evaluation:
    """Errors of a learner and of its comparators on the same fresh prompts.

    Attributes:
      examples: numbers of in-context examples, int `[E]`.
      curves: a `Curve` by name, the learner's first.
      reference: the name of the optimal estimator; None where no comparator is.
      step: the training step of the parameters.
      prompts: how many prompts were averaged.
      path: the run's folder.
      costs: milliseconds a prompt by name, measured here without compiling.
      error_name: what an error is.
    """

    examples: np.ndarray
    curves: dict[str, Curve]
    reference: str | None
    step: int
    prompts: int
    path: Path
    costs: dict[str, float] = dataclasses.field(default_factory=dict)
    error_name: str = "squared error / mean squared label"

    @property
    def learner(self) -> str:
        """The name of the learner's curve."""
        return next(iter(self.curves))

    def save(self) -> None:
        """Writes `eval.json` in the run's folder."""
        data = {
            "step": self.step,
            "prompts": self.prompts,
            "reference": self.reference,
            "examples": self.examples,
            "error_name": self.error_name,
            "normalised_error": {name: vars(curve) for name, curve in self.curves.items()},
            "milliseconds_a_prompt": self.costs,
        }
        write_json(self.path / "eval.json", data)

    @classmethod
    def load(cls, run: Run) -> "Evaluation":
        """Reads the newest evaluation of a run.

        Raises:
          RunError: it has none, or it cannot be read.
        """
        file = run.path / "eval.json"
        if not file.exists():
            raise RunError(f"{run.path} was not evaluated yet; run: icl eval {run.path}")
        with reading(file, f"make it again with: icl eval {run.path}") as data:
            curves = {
                name: Curve(**{end: np.array(values, np.float64) for end, values in curve.items()})
                for name, curve in data["normalised_error"].items()
            }
            examples = np.array(data["examples"], np.int64)
            shapes = {values.shape for curve in curves.values() for values in vars(curve).values()}
            if shapes != {examples.shape} or examples.ndim != 1 or not examples.size:
                raise ValueError("its curves and its examples are not equally many")
            names = {"costs": "milliseconds_a_prompt", "error_name": "error_name"}
            newer = {name: data[saved] for name, saved in names.items() if saved in data}
            found = cls(
                examples, curves, data["reference"], int(data["step"]), int(data["prompts"]),
                run.path, **newer,
            )  # fmt: skip
            found.table()  # shows what else is no number
            return found

    def table(self) -> Table:
        """Error by number of examples, a row an estimator, the learner first, and its cost."""
        shown = spread(len(self.examples), MAX_COLUMNS)
        result = Table(
            title=f"error after k examples ({self.path}, step {self.step})",
            caption=(
                f"{self.error_name}, mean over {self.prompts} fresh prompts; "
                "± half of the 90% bootstrap interval; ms: milliseconds a prompt"
            ),
        )
        result.add_column("k")
        for k in self.examples[shown]:
            result.add_column(str(k), justify="right", no_wrap=True)
        result.add_column("ms", justify="right", no_wrap=True)
        for name, curve in self.curves.items():
            style = "bold" if name == self.learner else None
            suffix = " (optimal)" if name == self.reference else ""
            cost = f"{self.costs[name]:.2g}" if name in self.costs else ""
            cells = (show_number(v) for v in curve.mean[shown])
            result.add_row(name + suffix, *cells, cost, style=style)
            if name == self.learner:
                half = (curve.high - curve.low)[shown] / 2
                result.add_row("", *(f"±{show_number(v)}" for v in half), style="dim")
        return result

    def __str__(self) -> str:
        return as_text(self.table())


def as_text(table: Table) -> str:
    """A table as plain text, 100 characters wide."""
    console = Console(width=100, color_system=None, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def spread(count: int, most: int) -> np.ndarray:
    """At most so many of the positions 0 to `count - 1`, evenly, first and last among them."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def show_number(value: float) -> str:
    """Three decimals, a power of ten for what would show none or many, a dash for NaN."""
    if np.isnan(value):
        return "–"
    return "0" if value < 5e-7 else f"{value:.3f}" if 1e-3 <= value < 1e3 else f"{value:.0e}"

"""The command `icl plot`."""

import tyro

from ..evaluation import Evaluation, training_figure
from ..output import say
from ..training import Run
from . import Folder


def main(arguments: list[str]) -> int:
    """Draws the figures of a run again; returns the exit status."""
    tyro.cli(plot_run, args=arguments, prog="icl plot")
    return 0


def plot_run(run: tyro.conf.Positional[Folder]) -> None:
    """Draws training.png from a run's metrics and eval.png from its last evaluation.

    Args:
      run: Folder of the run.
    """
    opened = Run.open(run)
    training_figure(opened, opened.path / "training.png")
    say(str(opened.path / "training.png"))
    evaluation = Evaluation.load(opened)
    evaluation.draw()
    say(str(evaluation.figure_path))

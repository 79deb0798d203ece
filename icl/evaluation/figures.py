"""The figure of a run's training."""

from pathlib import Path

from ..report import STYLE, in_lines, log_axis, pyplot, save_figure
from ..training.run import Run, RunError


def training_figure(run: Run, path: Path) -> None:
    """Training loss against the step, on the scale of the evaluation if the task allows it.

    Raises:
      RunError: nothing was logged yet.
    """
    records = run.metrics()
    if not records:
        raise RunError(f"{run.path} has no metrics yet; train it first")
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, axes = plt.subplots(layout="constrained")
        measure = run.config.training_measure
        axes.plot([r["step"] for r in records], [r["loss"] / measure.scale for r in records])
        axes.set_xlabel("training step")
        axes.set_ylabel(in_lines(f"{measure.name}, in training"))
        log_axis(axes, "y")
        axes.set_title(f"training of {run.path.name}")
        save_figure(figure, path)

"""The start of every evaluation and analysis: counts are checked and the run is opened."""

from pathlib import Path

from ..training.learner import Learner
from ..training.run import Run


def open_run(run: Run | str | Path, **counts: int) -> tuple[Run, Learner]:
    """A run and its learner, after the counts that an analysis was given are checked.

    Args:
      run: the run or its folder.
      **counts: as `prompts=1280`; each must be at least 1.

    Raises:
      RunError: there is no run in that folder, or its data have changed.
      ValueError: a count is below 1.
    """
    at_least_one(**counts)
    run = run if isinstance(run, Run) else Run.open(run)
    run.check_data()
    return run, Learner(run.config)


def at_least_one(**counts: int) -> None:
    """Raises ValueError if one of the counts is below 1."""
    for name, count in counts.items():
        if count < 1:
            raise ValueError(f"{name} must be at least 1, got {count}")

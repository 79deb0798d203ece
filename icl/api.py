"""The functions at the top of the package."""

from pathlib import Path
from typing import Any

from .evaluation import evaluate
from .experiments import preset
from .training import Config, Run, resume
from .training import train as train_config
from .training.run import free_path

__all__ = ["evaluate", "preset", "resume", "train"]


def train(what: str | Config, run_dir: str | Path | None = None, **options: Any) -> Run:
    """Trains a preset, or settings of your own.

    Args:
      what: a preset's name, or a `Config`, as `icl.preset(name).replace(training_steps=500)`.
      run_dir: folder of the run; None for a new one below `runs`.
      **options: `optimizer` and `logging`, as in `icl.training.train`.

    Returns:
      The finished `Run`.

    Raises:
      KeyError: no preset of that name.
      RunError, NonFiniteLoss, Interrupted: as in `icl.training.train`.
    """
    if isinstance(what, Config):
        return train_config(what, run_dir, **options)
    return train_config(preset(what), run_dir or free_path(what), **options)

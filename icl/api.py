"""The functions at the top of the package."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import optax  # pyright: ignore[reportMissingTypeStubs]

from .evaluation import evaluate
from .experiments import PRESETS, preset, report
from .sweeps import Sweep, train_sweep
from .training import Config, LoggingConfig, Run, resume
from .training import train as train_config
from .training.run import free_path

__all__ = ["evaluate", "preset", "resume", "sweep", "train"]


def train(
    what: str | Config,
    run_dir: str | Path | None = None,
    *,
    optimizer: optax.GradientTransformation | None = None,
    logging: LoggingConfig | None = None,
) -> Run:
    """Trains a preset or settings of your own.

    Args:
      what: a preset's name, or a `Config` such as `icl.preset(name).replace(training_steps=500)`.
      run_dir: folder of the run; None for a new folder below `runs`.
      optimizer, logging: as in `icl.training.train`.

    Returns:
      The finished `Run`.

    Raises:
      KeyError: no preset has that name.
      RunError, NonFiniteLoss, Interrupted: as in `icl.training.train`.
    """
    if isinstance(what, Config):
        return train_config(what, run_dir, optimizer=optimizer, logging=logging)
    config = preset(what)
    path = free_path(what) if run_dir is None else run_dir
    return train_config(config, path, optimizer=optimizer, logging=logging)


def sweep(
    what: str | Config,
    over: Mapping[str, Any] | None = None,
    sweep_dir: str | Path | None = None,
    *,
    seeds: int = 1,
    progress: bool = True,
) -> Sweep:
    """Trains a preset or settings of your own for every combination of values and seeds.

    `icl.sweep("garg/linear-xs", {"learning_rate": [5e-3, 1e-2]}, seeds=4)`

    Args:
      what: a preset's name, or a `Config`.
      over: values by setting, as for `icl.sweeps.train_sweep`; None for the preset's grid.
      sweep_dir: folder of the sweep; None for a new folder below `runs`.
      seeds: number of models of each combination; their seeds start at the config's.
      progress: show a progress bar, or lines if the output is not a terminal.

    Returns:
      The finished `Sweep`; its folder has the files of the preset's report.

    Raises:
      KeyError: no preset has that name.
      ValueError, RunError, NonFiniteLoss, Interrupted: as in `icl.sweeps.train_sweep`.
    """
    if isinstance(what, Config):
        return train_sweep(what, over or {}, seeds=seeds, sweep_dir=sweep_dir, progress=progress)
    config = preset(what)
    path = free_path(f"{what}-sweep") if sweep_dir is None else sweep_dir
    chosen = (PRESETS[what].over or {}) if over is None else over
    finished = train_sweep(
        config, chosen, seeds=seeds, sweep_dir=path, progress=progress, preset=what
    )
    report(finished)
    return finished

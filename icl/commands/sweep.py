"""The command `icl sweep`."""

import dataclasses
from typing import Annotated, Any

import tyro

from .. import sweeps
from ..experiments import PRESETS, report
from ..output import say, show
from ..sweeps import Sweep, SweepResult, parse_over
from ..training import Config
from ..training.run import free_path
from . import Folder
from .presets import resumes, with_preset
from .results import show_result


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train:
    """Trains a model for every combination of values and seeds; one table and figure for all.

    Models that differ only in seed, learning rate or pool size train in one program.
    """

    config: Annotated[Config, tyro.conf.arg(name="")]
    over: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
    """NAME=VALUES, once for each setting: learning_rate=1e-4,1e-3 or pool=2^4..2^14; the
    preset's grid if none is given."""
    seeds: int = 1
    """Number of models of each combination; their seeds start at that of the settings."""
    sweep_dir: Folder | None = None
    """Folder of the sweep; None for a new folder below runs/."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resume:
    """Continues a sweep from its last checkpoints."""

    resume: Folder
    """Folder of the sweep."""
    microbatch_size: int | None = None
    """Number of prompts of a model whose gradient is computed at once from now on; None for
    that of its settings."""


def main(arguments: list[str]) -> int:
    """Trains a sweep, or continues one; returns the exit status."""
    if resumes(arguments):
        options = tyro.cli(Resume, args=arguments, prog="icl sweep")
        sweep = sweeps.resume_sweep(
            Sweep.open(options.resume), microbatch_size=options.microbatch_size
        )
    else:
        name, options = with_preset("sweep", Train, arguments)
        over: dict[str, Any] = {} if options.over else dict(PRESETS[name].over or {})
        for text in options.over:
            setting, values = parse_over(options.config, text)
            over[setting] = over.get(setting, []) + values
        sweep_dir = options.sweep_dir
        if sweep_dir is None:
            sweep_dir = free_path(f"{name}-sweep")
        say(f"sweep folder: {sweep_dir}")
        sweep = sweeps.train_sweep(
            options.config, over, seeds=options.seeds, sweep_dir=sweep_dir, preset=name
        )
    show(SweepResult.load(sweep).table())
    say(f"figure: {sweep.path / 'sweep.png'}; a model: icl eval {sweep.members[0].path}")
    found = report(sweep)
    if found is not None:
        show_result(found)
    return 0

"""The command `icl train`."""

import dataclasses
from typing import Annotated

import tyro

from .. import training
from ..output import say
from ..training import Config, LoggingConfig, processes
from ..training.history import ModelChanges, OptimizerChanges, TrainingChanges, check_changes
from ..training.run import free_path
from . import Folder
from .presets import resumes, with_preset


@dataclasses.dataclass(frozen=True, kw_only=True)
class Common:
    """Options of a new run and of one that goes on."""

    evaluate: bool = True
    """Evaluate at the end: a table, eval.json and eval.png."""
    logging: LoggingConfig = LoggingConfig()
    """Outputs of metrics."""
    distributed: str | None = None
    """Train together with other processes: auto under SLURM and similar, else HOST:PORT."""
    processes: int | None = None
    """Number of processes, with HOST:PORT."""
    process: int | None = None
    """Index of this process, from 0, with HOST:PORT."""

    def start(self, purpose: str) -> None:
        if self.distributed is not None:
            processes.start(self.distributed, self.processes, self.process, purpose=purpose)
        elif self.processes is not None or self.process is not None:
            raise ValueError("--processes and --process go with --distributed HOST:PORT")


@dataclasses.dataclass(frozen=True, kw_only=True)
class Train(Common):
    """Trains an in-context learner and evaluates it; everything is kept in a folder."""

    config: Annotated[Config, tyro.conf.arg(name="")]
    run_dir: Folder | None = None
    """Folder of the run; None for a new folder below runs/."""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Resume(Common):
    """Continues a run from its newest checkpoint, with its settings unless others are given.

    A setting that is given holds from there on; config.json has the step of the change.
    """

    resume: Folder
    """Folder of the run."""
    microbatch_size: int | None = None
    """Number of prompts whose gradient is computed at once, for now; None for the setting."""
    optimizer: OptimizerChanges = dataclasses.field(default_factory=OptimizerChanges)
    training: TrainingChanges = dataclasses.field(default_factory=TrainingChanges)
    model: ModelChanges = dataclasses.field(default_factory=ModelChanges)


def main(arguments: list[str]) -> int:
    """Trains a preset, or continues a run; returns the exit status."""
    if resumes(arguments):
        given = [a.partition("=")[0][2:] for a in arguments if a.startswith("--")]
        check_changes(name.replace(".", "_").replace("-", "_") for name in given)
        options = tyro.cli(Resume, args=arguments, prog="icl train")
        options.start("resume")
        changes = {
            f"{section}_{name}": value
            for section in ("optimizer", "training", "model")
            for name, value in getattr(options, section).items()
        }
        run = training.resume(
            options.resume,
            logging=options.logging,
            microbatch_size=options.microbatch_size,
            **changes,
        )
    else:
        name, options = with_preset("train", Train, arguments)
        options.start(repr(options.config))
        run_dir = free_path(name) if options.run_dir is None else options.run_dir
        if processes.is_lead():
            say(f"run folder: {run_dir}")
        run = training.train(options.config, run_dir, logging=options.logging)
    lead = processes.is_lead()
    processes.finish()
    if options.evaluate and lead:
        from .results import evaluate_and_show

        evaluate_and_show(run)
    return 0

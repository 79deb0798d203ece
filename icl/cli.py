"""The command `icl`: list, train, sweep, eval, plot. Everything it does, Python can do."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated, Any

import tyro
from rich.console import Console
from rich.table import Table

USAGE = """\
usage: icl list                          every preset, a line each
       icl train NAME [--option value]   train an in-context learner and evaluate it
       icl train --resume RUN            continue a run that was stopped
       icl train ... --distributed auto  together with other processes: docs/many-devices.md
       icl sweep NAME --over SETTING=VALUES [--seeds N]
                                         train many at once; a table and a figure for all;
                                         without --over what the preset is about
       icl sweep --resume SWEEP          continue a sweep that was stopped
       icl eval RUN [--prompts N]        evaluate a run beside classical estimators and under
                                         shifts; tables, JSON and figures in its folder
       icl plot RUN                      draw a run's figures again, and training.png
       icl train NAME --help             the options of a preset, with defaults and units
"""


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit status.

    0 done, 1 the run failed, 2 the command was wrong, 128 + n stopped by signal n.
    """
    arguments = sys.argv[1:] if argv is None else argv
    commands = {"list": _list, "train": _train, "sweep": _sweep, "eval": _eval, "plot": _plot}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments[0] not in commands:
        return _fail(f"no command {arguments[0]!r}\n\n{USAGE.rstrip()}", status=2)
    if arguments[0] in ("train", "sweep") and arguments[1:] in ([], ["-h"], ["--help"]):
        print(USAGE, end="")
        return 0 if arguments[1:] else 2
    from .training import DiskFull, Interrupted, LostProcess, NonFiniteLoss, OutOfMemory, RunError
    from .training.disk import full_disk

    try:
        return commands[arguments[0]](arguments[1:])
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        return _fail("stopped at once; what was saved before can be resumed", status=130)
    except (NonFiniteLoss, OutOfMemory, DiskFull, LostProcess) as error:
        return _fail(str(error))
    except (RunError, ValueError, ModuleNotFoundError) as error:
        return _fail(str(error), status=2)
    except OSError as error:
        if not full_disk(error):
            raise
        return _fail(f"{error}; make room, then do this again")


def _fail(message: str, status: int = 1) -> int:
    print(f"icl: {message}", file=sys.stderr)
    return status


def _list(arguments: list[str]) -> int:
    if arguments:
        return _fail("usage: icl list", status=2)
    from .experiments import PRESETS

    table = Table(box=None, pad_edge=False)
    table.add_column("preset", no_wrap=True)
    table.add_column("what it is")
    for preset in PRESETS.values():
        table.add_row(preset.name, preset.summary)
    Console().print(table)
    return 0


def _train(arguments: list[str]) -> int:
    from .training import Config, LoggingConfig, processes, resume, train
    from .training.run import free_path

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Common:
        evaluate: bool = True
        """Evaluate at the end: a table, eval.json and eval.png."""
        logging: LoggingConfig = LoggingConfig()
        """Where metrics go."""
        distributed: str | None = None
        """Train together with other processes: auto under SLURM and the like, else HOST:PORT."""
        processes: int | None = None
        """How many processes there are, with HOST:PORT."""
        process: int | None = None
        """Which of them this one is, from 0, with HOST:PORT."""

        def start(self) -> None:
            if self.distributed is not None:
                processes.start(self.distributed, self.processes, self.process)
            elif self.processes is not None or self.process is not None:
                raise ValueError("--processes and --process go with --distributed HOST:PORT")

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Train(Common):
        """Trains an in-context learner, evaluates it, and leaves a folder with all of it."""

        config: Annotated[Config, tyro.conf.arg(name="")]
        run_dir: Path | None = None
        """Folder of the run; None for a new one below runs/."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Resume(Common):
        """Continues a run from its newest checkpoint, with the settings it was made with."""

        resume: Path
        """Folder of the run."""
        microbatch_size: int | None = None
        """Prompts whose gradient is computed at once from now on; None for the run's own."""

    if _resumes(arguments):
        options = tyro.cli(Resume, args=arguments, prog="icl train")
        options.start()
        run = resume(
            options.resume, logging=options.logging, microbatch_size=options.microbatch_size
        )
    else:
        name, options = _with_preset("train", Train, arguments)
        options.start()
        run_dir = options.run_dir or free_path(name)
        if processes.is_lead():
            print(f"run folder: {run_dir}", flush=True)
        run = train(options.config, run_dir, logging=options.logging)
    lead = processes.is_lead()
    processes.finish()
    if options.evaluate and lead:
        _show(run)
    return 0


def _sweep(arguments: list[str]) -> int:
    from .experiments import PRESETS, report
    from .sweeps import Sweep, SweepResult, parse_over, resume_sweep, train_sweep
    from .training import Config
    from .training.run import free_path

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Train:
        """Trains a model for every combination of values and seeds; one table and figure for all.

        Models that differ in seed, learning rate or pool size alone train in one program.
        """

        config: Annotated[Config, tyro.conf.arg(name="")]
        over: tyro.conf.UseAppendAction[tuple[str, ...]] = ()
        """NAME=VALUES, once for each setting: learning_rate=1e-4,1e-3 or pool=2^4..2^14; what the
        preset says where none is given."""
        seeds: int = 1
        """Models of each combination, with the seed of the settings and those after it."""
        sweep_dir: Path | None = None
        """Folder of the sweep; None for a new one below runs/."""

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Resume:
        """Continues a sweep where it stopped."""

        resume: Path
        """Folder of the sweep."""
        microbatch_size: int | None = None
        """Prompts of a model whose gradient is computed at once from now on; None as before."""

    if _resumes(arguments):
        options = tyro.cli(Resume, args=arguments, prog="icl sweep")
        sweep = resume_sweep(Sweep.open(options.resume), microbatch_size=options.microbatch_size)
    else:
        name, options = _with_preset("sweep", Train, arguments)
        over: dict[str, Any] = {} if options.over else dict(PRESETS[name].over or {})
        for text in options.over:
            setting, values = parse_over(options.config, text)
            over[setting] = over.get(setting, []) + values
        sweep_dir = options.sweep_dir or free_path(f"{name}-sweep")
        print(f"sweep folder: {sweep_dir}", flush=True)
        sweep = train_sweep(
            options.config, over, seeds=options.seeds, sweep_dir=sweep_dir, preset=name
        )
    Console().print(SweepResult.load(sweep).table())
    print(f"figure: {sweep.path / 'sweep.png'}; a model: icl eval {sweep.members[0].path}")
    table = report(sweep)
    if table is not None:
        Console().print(table)
    return 0


def _resumes(arguments: list[str]) -> bool:
    return any(argument.split("=")[0] == "--resume" for argument in arguments)


def _with_preset(command: str, options: type, arguments: list[str]) -> tuple[str, Any]:
    """The name of a preset and the options after it, with the preset's settings as defaults."""
    from .experiments import preset

    name = arguments[0]
    if name.startswith("-"):
        raise ValueError(f"the preset's name comes first: icl {command} NAME [--option value]")
    try:
        config = preset(name)
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    return name, tyro.cli(
        tyro.conf.AvoidSubcommands[options],
        default=options(config=config),
        args=arguments[1:],
        prog=f"icl {command} {name}",
    )


def _show(run, **options) -> None:
    from .evaluation import evaluate, training_figure

    result = evaluate(run, **options)
    training_figure(run, run.path / "training.png")
    Console().print(result.table())
    print(f"figures: {run.path / 'eval.png'}, {run.path / 'training.png'}")


def _show_more(run, prompts: int, seed: int) -> None:
    """The evaluations that only some runs allow: shifts, the learned function, loops, pools."""
    from .analysis import learned_function
    from .evaluation import errors_by_loop, evaluate_pool, evaluate_shifts, shifts_of
    from .evaluation.result import show_number
    from .models import LoopedTransformerConfig
    from .tasks import LinearRegression, SparseLinearRegression

    config = run.config
    every_prefix = config.layout != "concatenated"
    if every_prefix and shifts_of(config.task):
        Console().print(evaluate_shifts(run, prompts=prompts, seed=seed).table())
        print(f"figure: {run.path / 'shifts.png'}")
    if every_prefix and type(config.task) in (LinearRegression, SparseLinearRegression):
        Console().print(learned_function(run, prompts=prompts, seed=seed).table())
        print(f"figure: {run.path / 'function.png'}")
    if isinstance(config.model, LoopedTransformerConfig):
        loops = sorted({1, 2, 4, *range(config.model.window, 3 * config.model.loops, 4)})
        errors = errors_by_loop(run, loops, prompts=prompts, seed=seed)
        told = ", ".join(f"{n}: {show_number(e)}" for n, e in zip(loops, errors))
        print(f"error after all examples by loops: {told}\nfigure: {run.path / 'loops.png'}")
    task = config.task
    known = type(task) is LinearRegression and task.noise and not task.renormalize
    if config.training.pool_size and known:
        Console().print(evaluate_pool(run, seed=seed).table())


def _eval(arguments: list[str]) -> int:
    from .training import Run

    def evaluate_run(
        run: tyro.conf.Positional[Path],
        prompts: int = 1280,
        resamples: int = 1000,
        seed: int = 0,
        shifts: bool = True,
    ) -> None:
        """Evaluates a run on fresh tasks beside classical estimators, and under shifts.

        Args:
          run: Folder of the run.
          prompts: Prompts to average over.
          resamples: Bootstrap resamples for the 90% intervals.
          seed: Seed of prompts and resamples.
          shifts: Also what only some runs allow: shifts of the prompts, the learned function,
            more loops, the tasks of a pool.
        """
        opened = Run.open(run)
        _show(opened, prompts=prompts, resamples=resamples, seed=seed)
        if shifts:
            _show_more(opened, prompts, seed)

    tyro.cli(evaluate_run, args=arguments, prog="icl eval")
    return 0


def _plot(arguments: list[str]) -> int:
    from .evaluation import Evaluation, evaluation_figure, training_figure
    from .training import Run

    def plot_run(run: tyro.conf.Positional[Path]) -> None:
        """Draws training.png from a run's metrics and eval.png from its last evaluation.

        Args:
          run: Folder of the run.
        """
        opened = Run.open(run)
        training_figure(opened, opened.path / "training.png")
        print(opened.path / "training.png")
        evaluation_figure(Evaluation.load(opened), opened.path / "eval.png")
        print(opened.path / "eval.png")

    tyro.cli(plot_run, args=arguments, prog="icl plot")
    return 0


if __name__ == "__main__":
    sys.exit(main())

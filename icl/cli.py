"""The command `icl`: train, sweep, eval, predict, ... Everything it does, Python can do."""

import contextlib
import dataclasses
import io
import signal
import sys
from importlib import import_module
from typing import Annotated, Any

from .signals import end_at_once

Folder = str  # because Path("") is the current folder
USAGE = """\
usage: icl list [PART]                   one line about every preset; with PART, about those with
                                         PART in their name
       icl train NAME [--option value]   train an in-context learner and evaluate it
       icl train --resume RUN [--option value]
                                         continue a run that was stopped; some settings such as
                                         --optimizer.learning-rate may change
       icl train ... --distributed auto  together with other processes: docs/many-devices.md
       icl sweep NAME --over SETTING=VALUES [--seeds N]
                                         train many at once; a table and a figure for all;
                                         without --over the preset's own grid
       icl sweep --resume SWEEP          continue a sweep that was stopped
       icl eval RUN [--prompts N]        evaluate a run beside classical estimators, and analyse
                                         it; tables, and JSON and figures in its folder
       icl eval RUN --mode fewshot_holdout [--follow]
                                         learning in context or in weights at a checkpoint, or at
                                         each as soon as it is written: docs/chan.md
       icl eval RUN --beside RUN ...     errors of learners of a mixture, by family and number
                                         of examples: docs/meta-learning.md
       icl compare RUN RUN ...           runs of one task: error, parameters, size of the state
       icl study NAME                    an analysis that needs no run
       icl export RUN FILE               write a run's weights to one small file
       icl predict [RUN] --train FILE --test FILE --target COLUMN
                                         predict a column of a CSV file, by examples in another:
                                         docs/tables.md
       icl plot RUN                      draw a run's figures again, and training.png
       icl train NAME --help             the options of a preset, with defaults and units
       icl --import MODULE COMMAND ...   first import a module that registers tasks or models
"""


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit status.

    0 is success, 1 a failed run, 2 a wrong command, 128 + n a stop by signal n (13: nobody reads
    the output any more).
    """
    if argv is None:
        end_at_once()  # before slow imports
        sys.unraisablehook = _unraisable
        if isinstance(sys.stdout, io.TextIOWrapper):  # it is None if it was closed from the start
            sys.stdout.reconfigure(errors="replace")
    try:
        return _run(sys.argv[1:] if argv is None else argv)
    except BrokenPipeError:
        from .output import discard

        discard(sys.stdout)
        return 128 + signal.SIGPIPE


def _unraisable(raised: Any) -> None:
    """Drops messages of TensorStore's threads after a failed restore, one for each array."""
    if str(raised.exc_value) != "Event loop is closed":
        sys.__unraisablehook__(raised)


def _run(arguments: list[str]) -> int:
    commands = {
        "list": _list, "train": _train, "sweep": _sweep, "eval": _eval,
        "compare": _compare, "study": _study, "plot": _plot,
        "export": _export, "predict": _predict,
    }  # fmt: skip
    while arguments[:1] == ["--import"]:
        if problem := _import(arguments[1:2]):
            return _fail(problem, status=2)
        arguments = arguments[2:]
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments[0] not in commands:
        return _fail(f"no command {arguments[0]!r}\n\n{USAGE.rstrip()}", status=2)
    if arguments[0] in ("train", "sweep") and arguments[1:] in ([], ["-h"], ["--help"]):
        print(USAGE, end="")
        return 0 if arguments[1:] else 2
    try:
        return commands[arguments[0]](arguments[1:])
    except KeyboardInterrupt:
        return _fail("stopped at once; what was saved before can be resumed", status=130)
    except Exception as error:
        return _failed(error)


def _import(names: list[str]) -> str | None:
    """Imports the module of that name, from the current folder too; the problem if it cannot."""
    if not names:
        return "--import needs the name of a module, as: icl --import my_tasks eval RUN"
    [name] = names
    if "" not in sys.path:
        sys.path.insert(0, "")
    try:
        import_module(name)
    except ModuleNotFoundError as error:
        if error.name is None or not f"{name}.".startswith(f"{error.name}."):
            raise
        return f"there is no module {name}; give a name as Python imports it, without .py"
    return None


def _failed(error: Exception) -> int:
    """The exit status of a command that failed, after its message; an unknown error is raised."""
    # Late, since a command such as `icl list` needs none of it.
    from .training import CannotSave, Interrupted, LostProcess, NonFiniteLoss, OutOfMemory, RunError
    from .training.disk import full_disk, refusal

    match error:
        case Interrupted():
            return _fail(str(error), status=128 + error.signum)
        case NonFiniteLoss() | OutOfMemory() | CannotSave() | LostProcess():
            return _fail(str(error))
        case RunError() | ValueError() | ModuleNotFoundError():
            return _fail(str(error), status=2)
        case BrokenPipeError():
            raise error
        case OSError():
            if full_disk(error):
                return _fail(f"{error}; make room, then do this again")
            return _fail(refusal(error.filename or "a file", error))
        case _:
            raise error


def _fail(message: str, status: int = 1) -> int:
    with contextlib.suppress(OSError):  # nobody can read it any more
        print(f"icl: {message}", file=sys.stderr)
    return status


def _list(arguments: list[str]) -> int:
    from rich.table import Table

    from .experiments import PRESETS
    from .output import TABLE_WIDTH, console, show

    lines = PRESETS.summaries()
    lines |= {name: f"{study.summary} (icl study)" for name, study in _studies().items()}
    if arguments in (["-h"], ["--help"]):
        print(USAGE, end="")
        return 0
    part = arguments[0] if arguments else ""
    chosen = {name: line for name, line in lines.items() if part in name}
    if len(arguments) > 1 or not chosen:
        return _fail("usage: icl list [PART]; PART is of a name of a preset or study", status=2)
    table = Table(box=None, pad_edge=False)
    table.add_column("preset", no_wrap=True)
    table.add_column("what it is", no_wrap=not part, overflow="ellipsis" if not part else "fold")
    for name, line in chosen.items():
        table.add_row(name, line)
    if not part and console().is_terminal:
        console().print(table)
    else:
        show(table, width=10_000 if not part else TABLE_WIDTH)
    return 0


def _train(arguments: list[str]) -> int:
    import tyro

    from .output import say
    from .training import Config, LoggingConfig, processes, resume, train
    from .training.history import (
        ModelChanges,
        OptimizerChanges,
        TrainingChanges,
        check_changes,
    )
    from .training.run import free_path

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Common:
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

    if _resumes(arguments):
        given = [a.partition("=")[0][2:] for a in arguments if a.startswith("--")]
        check_changes(name.replace(".", "_").replace("-", "_") for name in given)
        options = tyro.cli(Resume, args=arguments, prog="icl train")
        options.start("resume")
        changes = {
            f"{section}_{name}": value
            for section in ("optimizer", "training", "model")
            for name, value in getattr(options, section).items()
        }
        run = resume(
            options.resume,
            logging=options.logging,
            microbatch_size=options.microbatch_size,
            **changes,
        )
    else:
        name, options = _with_preset("train", Train, arguments)
        options.start(repr(options.config))
        run_dir = free_path(name) if options.run_dir is None else options.run_dir
        if processes.is_lead():
            say(f"run folder: {run_dir}")
        run = train(options.config, run_dir, logging=options.logging)
    lead = processes.is_lead()
    processes.finish()
    if options.evaluate and lead:
        _evaluate(run)
    return 0


def _sweep(arguments: list[str]) -> int:
    import tyro

    from .experiments import PRESETS, report
    from .output import say, show
    from .sweeps import Sweep, SweepResult, parse_over, resume_sweep, train_sweep
    from .training import Config
    from .training.run import free_path

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

    if _resumes(arguments):
        options = tyro.cli(Resume, args=arguments, prog="icl sweep")
        sweep = resume_sweep(Sweep.open(options.resume), microbatch_size=options.microbatch_size)
    else:
        name, options = _with_preset("sweep", Train, arguments)
        over: dict[str, Any] = {} if options.over else dict(PRESETS[name].over or {})
        for text in options.over:
            setting, values = parse_over(options.config, text)
            over[setting] = over.get(setting, []) + values
        sweep_dir = options.sweep_dir
        if sweep_dir is None:
            sweep_dir = free_path(f"{name}-sweep")
        say(f"sweep folder: {sweep_dir}")
        sweep = train_sweep(
            options.config, over, seeds=options.seeds, sweep_dir=sweep_dir, preset=name
        )
    show(SweepResult.load(sweep).table())
    say(f"figure: {sweep.path / 'sweep.png'}; a model: icl eval {sweep.members[0].path}")
    found = report(sweep)
    if found is not None:
        _show_result(found)
    return 0


def _resumes(arguments: list[str]) -> bool:
    return any(argument.split("=")[0] == "--resume" for argument in arguments)


def _with_preset(command: str, options: type, arguments: list[str]) -> tuple[str, Any]:
    """A preset's name and the options after it, whose defaults are the preset's settings."""
    import tyro

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


def _evaluate(run, **options) -> None:
    """Evaluates a run, draws its training, and shows both."""
    from .evaluation import evaluate, training_figure
    from .output import say, show

    result = evaluate(run, **options)
    training_figure(run, run.path / "training.png")
    show(result.table())
    say(f"figures: {result.figure_path}, {run.path / 'training.png'}")


def _show_result(result) -> None:
    """Shows the table of a result and says where its figure is."""
    from .output import say, show

    show(result.table())
    if result.figure_path.exists():
        say(f"figure: {result.figure_path}")


def _studies() -> dict[str, Any]:
    """The analyses that are asked of nothing, by name."""
    from .analysis import ANALYSES

    return {name: analysis for name, analysis in ANALYSES.items() if analysis.of == "nothing"}


def _chosen(run, names: tuple[str, ...]) -> list[str]:
    """The analyses of those names; "all" stands for those that the run allows."""
    from .analysis import ANALYSES, applicable

    allowed = applicable(run.config)
    known = [name for name, analysis in ANALYSES.items() if analysis.of == "run"]
    for name in names:
        if name not in ("all", "none", *known):
            raise ValueError(f"no analysis {name!r}; there are all, none, {', '.join(known)}")
        if name in known and name not in allowed:
            raise ValueError(
                f"{run.path} does not allow the analysis {name!r}; it allows "
                f"{', '.join(allowed) or 'none'}"
            )
    return allowed if "all" in names else [name for name in names if name != "none"]


def _eval(arguments: list[str]) -> int:
    import tyro

    from .analysis import ANALYSES, ask
    from .output import say
    from .ranges import SEED, SIZE, check_range
    from .training import Run

    def evaluate_run(
        run: tyro.conf.Positional[Folder],
        prompts: int | None = None,
        resamples: int = 1000,
        seed: int = 0,
        analyses: tuple[str, ...] = ("all",),
        against: Folder | None = None,
        images: tuple[str, ...] = (),
        beside: tuple[Folder, ...] = (),
        held_out: tuple[str, ...] = (),
        mode: tyro.conf.UseAppendAction[tuple[str, ...]] = (),
        follow: bool = False,
        step: int | None = None,
    ) -> None:
        """Evaluates a run on fresh tasks beside classical estimators, and analyses it.

        Args:
          run: Folder of the run.
          prompts: Number of prompts to average over; None for 1280 in the evaluation and for the
            own number of each analysis.
          resamples: Bootstrap resamples for the 90% intervals.
          seed: Seed of prompts and resamples.
          analyses: Names of analyses, as: shifts heads; all for those that the run allows, none for
            the evaluation alone.
          against: Folder of another run of this task with a single query; only the agreement of
            both runs' predictions is computed.
          images: Other sets of images for the analysis generalisation, by name or path.
          beside: Folders of other runs of this mixture of families, for the analysis few-shot.
          held_out: Names of task families that were not trained on, for the analysis few-shot;
            those of the settings if none is given, and if they name none, all that fit.
          mode: Kind of sequences to evaluate a run of class sequences on, once for each, such as
            fewshot_holdout, no_support_zipfian or flip (docs/chan.md). Only these evaluations are
            made; "all" stands for all that the run allows.
          follow: Evaluate these modes at each checkpoint as soon as it is written, until the last.
          step: Evaluate these modes at the checkpoint of this step; None for the newest.
        """
        if prompts is not None:
            check_range("--prompts", prompts, SIZE)
        check_range("--resamples", resamples, SIZE)
        check_range("--seed", seed, SEED)
        given = {} if prompts is None else {"prompts": prompts}
        opened = Run.open(run)
        if mode or follow or step is not None:
            others = dict(against=against, images=images, analyses=analyses != ("all",) or None)
            others |= {"beside": beside, "held-out": held_out}
            others["resamples"] = resamples != 1000 or None
            for name in (name for name, value in others.items() if value):
                raise ValueError(f"--mode, --follow and --step evaluate modes: leave --{name} out")
            _evaluate_modes(opened, mode, follow, step, seed=seed, **given)
            return
        if against is not None:
            others = {"images": images, "beside": beside, "held-out": held_out}
            for name in (name for name, value in others.items() if value):
                raise ValueError(f"--against computes the agreement alone: leave --{name} out")
            other = Run.open(against)
            _show_result(ask("alignment", opened, against=other, seed=seed, **given))
            return
        names = _chosen(opened, analyses)
        if images:
            from .analysis.generalisation import check_images

            check_images(opened.config, images)
        wanted = {"images": images, "beside": beside, "held_out": held_out}
        wanted = {option: value for option, value in wanted.items() if value}
        for option in wanted:
            if not any(ANALYSES[name].takes(option) for name in names):
                needed = "generalisation" if option == "images" else "few-shot"
                given_as = option.replace("_", "-")
                raise ValueError(
                    f"--{given_as} needs the analysis {needed}: add it to --analyses, if the run "
                    "allows it"
                )
        _evaluate(opened, resamples=resamples, seed=seed, **given)
        for name in names:
            own: dict[str, Any] = {
                option: value for option, value in given.items() if ANALYSES[name].takes(option)
            }
            if given and not own:
                say(f"{name} averages over no prompts: --prompts does not change it")
            if ANALYSES[name].takes("seed"):
                own["seed"] = seed
            for option, value in wanted.items():
                if ANALYSES[name].takes(option):
                    own[option] = value
            try:
                result = ask(name, opened, **own)
            except ValueError as error:
                print(f"no {name}: {error}", file=sys.stderr)
                continue
            _show_result(result)

    tyro.cli(evaluate_run, args=arguments, prog="icl eval")
    return 0


def _evaluate_modes(run, modes, follow: bool, step: int | None, **options) -> None:
    """Evaluates modes at one checkpoint, or at each as it is written."""
    from .analysis.modes import allowed_modes, evaluate_modes, follow_modes, has_modes
    from .output import say

    if follow and step is not None:
        raise ValueError("--follow evaluates every checkpoint: leave --step out")
    if "all" in modes and has_modes(run.config):
        modes = allowed_modes(run.config.task)
    if follow:
        _show_result(follow_modes(run, modes, say=say, **options))
    else:
        _show_result(evaluate_modes(run, modes, step=step, **options))


def _compare(arguments: list[str]) -> int:
    import tyro

    from .output import say
    from .ranges import SEED, SIZE, check_range
    from .training.run import free_path

    def compare_runs(
        runs: tyro.conf.Positional[tuple[Folder, ...]],
        folder: Folder | None = None,
        prompts: int = 1280,
        seed: int = 0,
    ) -> None:
        """Compares runs of one task on the same fresh prompts.

        Args:
          runs: Folders of the runs.
          folder: Folder for the files; None for a new folder below runs.
          prompts: Number of prompts to average over.
          seed: Seed of the prompts.
        """
        from .analysis.comparison import compare

        check_range("--prompts", prompts, SIZE)
        check_range("--seed", seed, SEED)
        target = free_path("comparison") if folder is None else folder
        _show_result(compare(runs, target, prompts=prompts, seed=seed))
        say(f"folder: {target}")

    if not arguments:
        return _fail("usage: icl compare RUN RUN ...", status=2)
    tyro.cli(compare_runs, args=arguments, prog="icl compare")
    return 0


def _study(arguments: list[str]) -> int:
    import tyro

    from .analysis import ask
    from .experiments.presets import named as entry_named
    from .output import say
    from .training.disk import usable
    from .training.run import free_path, named

    def run_study(name: tyro.conf.Positional[str], folder: Folder | None = None) -> None:
        """Computes what a paper shows without training; a table, JSON and figures.

        Args:
          name: Name of the study.
          folder: Folder for the files; None for a new folder below runs.
        """
        try:
            entry_named(name, _studies(), "study")
        except KeyError as error:
            raise ValueError(error.args[0]) from None
        target = free_path(name) if folder is None else named(folder)
        with usable(target):
            target.mkdir(parents=True, exist_ok=True)
        _show_result(ask(name, target))
        say(f"folder: {target}")

    if not arguments:
        return _fail(f"usage: icl study NAME; there are {', '.join(_studies())}", status=2)
    tyro.cli(run_study, args=arguments, prog="icl study")
    return 0


def _plot(arguments: list[str]) -> int:
    import tyro

    from .evaluation import Evaluation, training_figure
    from .output import say
    from .training import Run

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

    tyro.cli(plot_run, args=arguments, prog="icl plot")
    return 0


def _export(arguments: list[str]) -> int:
    from .export_command import main

    return main(arguments)


def _predict(arguments: list[str]) -> int:
    from .predict_command import main

    return main(arguments)


if __name__ == "__main__":
    sys.exit(main())

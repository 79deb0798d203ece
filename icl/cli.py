"""The command `icl`: list, train, eval and plot. Everything it does, Python can do."""

import dataclasses
import sys
from pathlib import Path
from typing import Annotated

import tyro
from rich.console import Console
from rich.table import Table

USAGE = """\
usage: icl list                          every preset, a line each
       icl train NAME [--option value]   train an in-context learner and evaluate it
       icl train --resume RUN            continue a run that was stopped
       icl eval RUN [--prompts N]        evaluate a run, and write eval.json and eval.png
       icl plot RUN                      draw a run's figures again, and training.png
       icl train NAME --help             the options of a preset, with defaults and units
"""


def main(argv: list[str] | None = None) -> int:
    """Runs a command; returns the exit status.

    0 done, 1 the run failed, 2 the command was wrong, 128 + n stopped by signal n.
    """
    arguments = sys.argv[1:] if argv is None else argv
    commands = {"list": _list, "train": _train, "eval": _eval, "plot": _plot}
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments[0] not in commands:
        return _fail(f"no command {arguments[0]!r}\n\n{USAGE.rstrip()}", status=2)
    from .training import Interrupted, NonFiniteLoss, RunError

    try:
        return commands[arguments[0]](arguments[1:])
    except Interrupted as stop:
        print(stop, file=sys.stderr)
        return 128 + stop.signum
    except KeyboardInterrupt:
        return _fail("stopped at once; what was saved before can be resumed", status=130)
    except NonFiniteLoss as error:
        return _fail(str(error))
    except (RunError, ValueError, ModuleNotFoundError) as error:
        return _fail(str(error), status=2)


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
    from .experiments import preset
    from .training import Config, LoggingConfig, resume, train
    from .training.run import free_path

    @dataclasses.dataclass(frozen=True, kw_only=True)
    class Common:
        evaluate: bool = True
        """Evaluate at the end: a table, eval.json and eval.png."""
        logging: LoggingConfig = LoggingConfig()
        """Where metrics go."""

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

    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0 if arguments else 2
    if any(argument.split("=")[0] == "--resume" for argument in arguments):
        options = tyro.cli(Resume, args=arguments, prog="icl train")
        run = resume(options.resume, logging=options.logging)
    else:
        name = arguments[0]
        if name.startswith("-"):
            return _fail("the preset's name comes first: icl train NAME [--option value]", 2)
        try:
            config = preset(name)
        except KeyError as error:
            return _fail(error.args[0], status=2)
        options = tyro.cli(
            tyro.conf.AvoidSubcommands[Train],
            default=Train(config=config),
            args=arguments[1:],
            prog=f"icl train {name}",
        )
        run_dir = options.run_dir or free_path(name)
        print(f"run folder: {run_dir}", flush=True)
        run = train(options.config, run_dir, logging=options.logging)
    if options.evaluate:
        _show(run)
    return 0


def _show(run, **options) -> None:
    from .evaluation import evaluate, training_figure

    result = evaluate(run, **options)
    training_figure(run, run.path / "training.png")
    Console().print(result.table())
    print(f"figures: {run.path / 'eval.png'}, {run.path / 'training.png'}")


def _eval(arguments: list[str]) -> int:
    from .training import Run

    def evaluate_run(
        run: tyro.conf.Positional[Path], prompts: int = 1280, resamples: int = 1000, seed: int = 0
    ) -> None:
        """Evaluates a run on fresh tasks beside classical estimators.

        Args:
          run: Folder of the run.
          prompts: Prompts to average over.
          resamples: Bootstrap resamples for the 90% intervals.
          seed: Seed of prompts and resamples.
        """
        _show(Run.open(run), prompts=prompts, resamples=resamples, seed=seed)

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

"""The command `icl`: train, sweep, eval, predict, ... Everything it does, Python can do."""

import contextlib
import io
import signal
import sys
from importlib import import_module
from typing import Any

from .signals import end_at_once

COMMANDS = ("list", "train", "sweep", "eval", "compare", "study", "export", "predict", "plot")
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
       icl --version                     the version of the package
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
    while arguments[:1] == ["--import"]:
        if problem := _import(arguments[1:2]):
            return _fail(problem, status=2)
        arguments = arguments[2:]
    if arguments[:1] == ["--version"]:
        from . import __version__

        print(f"fused-icl {__version__}")
        return 0
    if not arguments or arguments[0] in ("-h", "--help"):
        print(USAGE, end="")
        return 0
    if arguments[0] not in COMMANDS:
        return _fail(f"no command {arguments[0]!r}\n\n{USAGE.rstrip()}", status=2)
    if arguments[0] in ("train", "sweep") and arguments[1:] in ([], ["-h"], ["--help"]):
        print(USAGE, end="")
        return 0 if arguments[1:] else 2
    try:
        command = import_module(f".commands.{arguments[0]}", __package__)
        return command.main(arguments[1:])
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


if __name__ == "__main__":
    sys.exit(main())

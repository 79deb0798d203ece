"""The command `icl study`: analyses that are asked of nothing."""

import tyro

from ..analysis import ask, studies
from ..experiments.presets import named as entry_named
from ..output import say
from ..training.disk import usable
from ..training.run import free_path, named
from . import Folder
from .results import show_result


def main(arguments: list[str]) -> int:
    """Computes what a paper shows without training; returns the exit status."""
    if not arguments:
        raise ValueError(f"usage: icl study NAME; there are {', '.join(studies())}")
    tyro.cli(run_study, args=arguments, prog="icl study")
    return 0


def run_study(name: tyro.conf.Positional[str], folder: Folder | None = None) -> None:
    """Computes what a paper shows without training; a table, JSON and figures.

    Args:
      name: Name of the study.
      folder: Folder for the files; None for a new folder below runs.
    """
    try:
        entry_named(name, studies(), "study")
    except KeyError as error:
        raise ValueError(error.args[0]) from None
    target = free_path(name) if folder is None else named(folder)
    with usable(target):
        target.mkdir(parents=True, exist_ok=True)
    show_result(ask(name, target))
    say(f"folder: {target}")

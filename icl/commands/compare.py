"""The command `icl compare`."""

import tyro

from ..analysis.comparison import compare
from ..output import say
from ..ranges import SEED, SIZE, check_range
from ..training.run import free_path
from . import Folder
from .results import show_result


def main(arguments: list[str]) -> int:
    """Compares runs of one task; returns the exit status."""
    if not arguments:
        raise ValueError("usage: icl compare RUN RUN ...")
    tyro.cli(compare_runs, args=arguments, prog="icl compare")
    return 0


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
    check_range("--prompts", prompts, SIZE)
    check_range("--seed", seed, SEED)
    target = free_path("comparison") if folder is None else folder
    show_result(compare(runs, target, prompts=prompts, seed=seed))
    say(f"folder: {target}")

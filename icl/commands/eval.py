"""The command `icl eval`."""

import sys
from typing import Any

import tyro

from ..analysis import ANALYSES, applicable, ask
from ..output import say
from ..ranges import SEED, SIZE, check_range
from ..training import Run
from . import Folder
from .results import evaluate_and_show, show_result


def main(arguments: list[str]) -> int:
    """Evaluates and analyses a run; returns the exit status."""
    tyro.cli(evaluate_run, args=arguments, prog="icl eval")
    return 0


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
        evaluate_at_checkpoints(opened, mode, follow, step, seed=seed, **given)
        return
    if against is not None:
        others = {"images": images, "beside": beside, "held-out": held_out}
        for name in (name for name, value in others.items() if value):
            raise ValueError(f"--against computes the agreement alone: leave --{name} out")
        other = Run.open(against)
        show_result(ask("alignment", opened, against=other, seed=seed, **given))
        return
    names = chosen(opened, analyses)
    if images:
        from ..analysis.generalisation import check_images

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
    evaluate_and_show(opened, resamples=resamples, seed=seed, **given)
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
        show_result(result)


def chosen(run, names: tuple[str, ...]) -> list[str]:
    """The analyses of those names; "all" stands for those that the run allows."""
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


def evaluate_at_checkpoints(run, modes, follow: bool, step: int | None, **options) -> None:
    """Evaluates modes at one checkpoint, or at each as it is written."""
    from ..analysis.modes import allowed_modes, evaluate_modes, follow_modes, has_modes

    if follow and step is not None:
        raise ValueError("--follow evaluates every checkpoint: leave --step out")
    if "all" in modes and has_modes(run.config):
        modes = allowed_modes(run.config.task)
    if follow:
        show_result(follow_modes(run, modes, say=say, **options))
    else:
        show_result(evaluate_modes(run, modes, step=step, **options))

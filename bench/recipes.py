"""Steps, seconds and prompts that a training recipe needs to reach a target error.

A recipe is a set of changes to a family's settings: the optimiser, the model's details, the
curriculum. Models that differ in their seed alone are trained as a population, and their error on
fixed fresh prompts is measured along the way. Steps of all recipes of a family are then timed in
turns, one model on all devices, as `icl train` trains it.
"""

import argparse
import dataclasses
import json
import math
import statistics
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import jax
import numpy as np

from icl.evaluation.curves import learner_errors
from icl.experiments import preset
from icl.tasks import Curriculum, garg_curriculum
from icl.training import Config, OptimizerConfig
from icl.training.checkpoints import on_one_device
from icl.training.data import load_data
from icl.training.learner import Learner
from icl.training.parallel import make_mesh, place, use_cpu_cores
from icl.training.population import (
    compile_population,
    init_population,
    member_settings,
    shared_config,
)

from .common import machine
from .common.driver import one_of, positive
from .common.report import BENCH, Report, Table, busy_notes
from .common.turns import take_turns
from .common.worker import Started, Worker, failures_as_values
from .training.trainer import compile_trainer

# What the recipes change: Adam with a higher rate than Garg et al.'s and a shorter second moment.
ADAM = {
    "layout": "interleaved",
    "model_norm": "layer",
    "model_qk_norm": False,
    "optimizer": OptimizerConfig(
        name="adam", learning_rate=1e-3, schedule="cosine", warmup_steps=500, options={"b2": 0.95}
    ),
}
HEADINGS = [
    "recipe", "steps of the run", "error at its end", "seeds at the target", "steps", "seconds",
    "prompts", "steps / Adam's", "seconds / Adam's",
]  # fmt: skip
STEPS_A_TURN = 10
PROMPTS = 1280
POINTS = 25  # measurements of the error in a run


@dataclasses.dataclass(frozen=True)
class Family:
    """A task with a learner, and the error that counts as learned.

    Attributes:
      preset: name of a preset.
      examples: number of in-context examples after which the error is measured.
      target: the error to reach.
      steps: number of steps of the recipe "adam".
      adam: other settings of the recipe "adam", where they differ from those of the preset.
    """

    preset: str
    examples: int
    target: float
    steps: int
    adam: Mapping[str, Any] = dataclasses.field(default_factory=dict)


FAMILIES = {
    "linear": Family("garg/linear-xs", 10, 0.05, 10_000),
    "tree": Family("garg/tree-xs", 25, 0.56, 6_000),
    "relu": Family("garg/relu-xs", 20, 0.3, 6_000),
    "noisy": Family(
        "garg/noisy-xs", 15, 0.15, 6_000, {"curriculum": Curriculum(dim_start=2, interval=300)}
    ),
    "looped": Family(
        "looped/linear-xs", 10, 0.75, 6_000, {"curriculum": Curriculum(dim_start=1, interval=500)}
    ),
    "lstm": Family("lstm/linear-xs", 10, 0.2, 10_000),
    # The paper's task: hours on a CPU, so it is trained only if asked for.
    "evening": Family("garg/linear-evening", 20, 0.3, 25_600, {"curriculum": garg_curriculum()}),
}
BY_DEFAULT = [name for name in FAMILIES if name != "evening"]


@dataclasses.dataclass(frozen=True)
class Recipe:
    """Changes to a family's settings.

    Attributes:
      share: number of steps over that of the recipe "adam".
      changes: settings by the names of `Config.replace`.
    """

    share: float
    changes: Mapping[str, Any] = dataclasses.field(default_factory=dict)


MUON = {
    "optimizer_name": "muon",
    "optimizer_learning_rate": 0.01,
    "optimizer_options": {},
}
TAGGED = {"layout": "tagged"}
QK_NORM = {"model_qk_norm": True}
RMS = {"model_norm": "rms"}
FAST = MUON | TAGGED | QK_NORM | RMS
ROTARY, NO_POSITIONS = ({"model_position_encoding": name} for name in ("rotary", "none"))


def _instead(optimizer: str, learning_rate: float, **options: float) -> Mapping[str, Any]:
    """The fast recipe with another optimiser."""
    return FAST | {
        "optimizer_name": optimizer,
        "optimizer_learning_rate": learning_rate,
        "optimizer_options": options,
    }


# Parts of the fast recipe, and what was tried beside it.
TRIALS = {
    "all of fast": FAST,
    "adam alone": {},
    "muon alone": MUON,
    "tagged alone": TAGGED,
    "qk norm alone": QK_NORM,
    "rms norm alone": RMS,
    "adam for muon": _instead("adam", 1e-3, b2=0.95),
    "adam at 3e-3 for muon": _instead("adam", 3e-3, b2=0.95),
    "adan for muon": _instead("adan", 3e-3),
    "interleaved for tagged": FAST | {"layout": "interleaved"},
    "shifted for tagged": FAST | {"layout": "shifted"},
    "no qk norm": FAST | {"model_qk_norm": False},
    "layer norm for rms": FAST | {"model_norm": "layer"},
    "rotary positions": FAST | ROTARY,
    "no positions": FAST | NO_POSITIONS,
    "zero outputs": FAST | {"model_zero_outputs": True},
    "rate 0.02": FAST | {"optimizer_learning_rate": 0.02},
    "rate 0.005": FAST | {"optimizer_learning_rate": 0.005},
    "stable, then decay": FAST | {"optimizer_schedule": "stable"},
    "weight decay 0.1": FAST | {"optimizer_options": {"weight_decay": 0.1}},
    "batch 32": FAST | {"training_batch_size": 32},
    "batch 128": FAST | {"training_batch_size": 128},
    "curriculum over d": FAST | {"curriculum": Curriculum(dim_start=2, interval=100)},
    "curriculum over points": FAST | {"curriculum": Curriculum(points_start=5, interval=100)},
}
RECIPES = {"adam": Recipe(1.0), "fast": Recipe(0.25, FAST)}
RECIPES |= {name: Recipe(0.1, changes) for name, changes in TRIALS.items()}
MAIN, TRIED_ON = ("adam", "fast"), "linear"


def config_of(family: str, recipe: str) -> Config:
    """The settings of a family under a recipe."""
    about, chosen = FAMILIES[family], RECIPES[recipe]
    steps = max(2, round(chosen.share * about.steps))
    base = preset(about.preset)
    settings = {**ADAM, "training_steps": steps}
    settings |= about.adam if recipe == "adam" else chosen.changes
    settings["optimizer_warmup_steps"] = min(500, steps // 20)
    known = {*base.flat(), "curriculum", "optimizer"}  # an LSTM has no queries to normalise
    return base.replace(**{name: value for name, value in settings.items() if name in known})


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's arguments."""
    parser.add_argument("families", nargs="*", type=one_of(FAMILIES), metavar="FAMILY",
                        help=f"{', '.join(FAMILIES)}; by default all but the last")  # fmt: skip
    parser.add_argument("--recipes", nargs="+", type=one_of(RECIPES), metavar="RECIPE",
                        help=f"{', '.join(map(repr, RECIPES))}; by default {' and '.join(MAIN)}, "
                             f"and all for {TRIED_ON}")  # fmt: skip
    parser.add_argument("--seeds", type=positive, default=4, help="models of each recipe")
    parser.add_argument("--steps", type=positive, help="replaces every number of steps")
    parser.add_argument("--timing", action="store_true",
                        help="train nothing; time the steps of earlier runs again")  # fmt: skip
    parser.set_defaults(rounds=5)


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The results for the JSON file, with those that the file has of other recipes."""
    use_cpu_cores()
    device = jax.devices()[0].device_kind
    about = machine.describe()
    found, others = _earlier(options.out or BENCH, about | {"device": device})
    families = options.families or BY_DEFAULT
    for family in families:
        for recipe in options.recipes or (RECIPES if family == TRIED_ON else MAIN):
            if options.timing:
                continue
            config = config_of(family, recipe)
            if options.steps:
                config = config.replace(training_steps=options.steps, optimizer_warmup_steps=1)
            print(f"{family}: {recipe}", flush=True)
            run = train(config, options.seeds, FAMILIES[family].examples)
            found.setdefault(family, {})[recipe] = run | {"revision": about["revision"]}
    families = [family for family in families if family in found]
    if not families:
        raise ValueError("there are no earlier runs to time: leave out --timing to train them")
    for family in families:
        recipes = list(found[family])
        print(f"{family}: timing {len(recipes)} recipes", flush=True)
        with Worker("bench.recipes:start", family, recipes) as worker:
            turns = {recipe: worker.asks(recipe) for recipe in recipes}
            taken, others[family] = take_turns(turns, [worker], options.rounds)
        for recipe, seconds in taken.items():
            found[family][recipe]["seconds"] = statistics.median(seconds)
    return {"device": device, "runs": found, "others_cpu": others}


def start(family: str, recipes: list[str]) -> Started:
    """Commands that answer with the seconds of a step of a recipe."""
    with failures_as_values():
        use_cpu_cores()
        commands = {r: compile_trainer(config_of(family, r), STEPS_A_TURN)[0] for r in recipes}
        for command in commands.values():
            command()
    return {}, commands


def _earlier(folder: Path, about: dict[str, Any]) -> tuple[dict[str, Any], dict[str, Any]]:
    """`runs` and `others_cpu` in the results file of a folder; empty without a file."""
    path = folder / "results" / f"recipes-{machine.slug(about)}.json"
    results = json.loads(path.read_text()) if path.exists() else {}
    return results.get("runs", {}), results.get("others_cpu", {})


def train(config: Config, seeds: int, examples: int) -> dict[str, Any]:
    """Trains a population and measures its error along the way.

    Args:
      config: the settings; members have its seed and the next ones.
      seeds: number of members.
      examples: number of in-context examples after which the error is measured.

    Returns:
      `steps` [P], `errors` [seeds, P] (NaN after a loss that is not finite), and the `batch`.
    """
    first = config.training.seed
    configs = [config.replace(training_seed=first + seed) for seed in range(seeds)]
    learner, shared = Learner(config), shared_config(config)
    mesh = make_mesh(config.training.batch_size, seeds)
    start = init_population(configs), member_settings(configs)
    state, settings = place(start, mesh, population=True)
    data = place(load_data(config.task), mesh)
    predict = lambda variables, episodes: jax.lax.map(
        lambda own: learner.predict(own, episodes), variables
    ).swapaxes(0, 1)
    length = max(2, config.training.steps // POINTS)
    programs: dict[int, Callable] = {}
    steps, errors, step = [], [], 0
    while step < config.training.steps:
        count = min(length, config.training.steps - step)
        if count not in programs:
            programs[count] = compile_population(shared, settings, state, count, mesh, data)
        state, _ = programs[count](state)
        step += count
        known, found = learner_errors(
            learner, predict, on_one_device(state.variables), PROMPTS, first
        )
        at = int(np.flatnonzero(known == examples)[0])
        steps.append(step)
        errors.append(found.mean(axis=0)[:, at].tolist())
    return {
        "steps": steps,
        "errors": np.array(errors).T.tolist(),
        "batch": config.training.batch_size,
    }


def reached(run: Mapping[str, Any], target: float) -> list[int | None]:
    """The first measured step of each seed at which its error is at most the target."""
    found = []
    for errors in run["errors"]:
        hits = [step for step, error in zip(run["steps"], errors) if error <= target]
        found.append(hits[0] if hits else None)
    return found


def median_steps(run: Mapping[str, Any], target: float) -> float | None:
    """The median over seeds of `reached`; None if it lies beyond the end of the run."""
    steps = sorted(math.inf if step is None else step for step in reached(run, target))
    middle = statistics.median(steps)
    return middle if math.isfinite(middle) else None


def report(results: dict[str, Any]) -> Report:
    """A table for each family, and a figure of the errors."""
    found = Report(picture=lambda path: draw(results["runs"], path), caption="errors by step")
    for family, runs in results["runs"].items():
        about = FAMILIES[family]
        found.parts += [
            f"`{about.preset}`, until the error after {about.examples} examples is at most "
            f"{about.target}:",
            Table(
                HEADINGS, [_row(name, run, runs.get("adam"), about) for name, run in runs.items()]
            ),
        ]
    found.parts += busy_notes(results["others_cpu"])
    return found


def _row(name: str, run: Mapping[str, Any], adam: Mapping[str, Any] | None, about: Family) -> list:
    """The cells of a recipe under `HEADINGS`; numbers of steps are medians over the seeds."""
    steps = median_steps(run, about.target)
    hits = sum(step is not None for step in reached(run, about.target))
    last = [errors[-1] for errors in run["errors"]]
    error = f"{statistics.median(last):.3f} ({min(last):.3f} to {max(last):.3f})"
    length = f"{run['steps'][-1]:,}"
    if steps is None:
        return [name, length, error, f"{hits} of {len(last)}", "–", "–", "–", "–", "–"]
    seconds = steps * run["seconds"]
    cells = [f"{steps:,.0f}", f"{seconds:.0f}", f"{steps * run['batch']:,.0f}"]
    if adam is None:
        ratios = ["–", "–"]
    else:
        theirs = median_steps(adam, about.target)
        # If Adam did not get there, its whole run is a lower bound of what it needs.
        least = "" if theirs is not None else "< "
        theirs = theirs or adam["steps"][-1]
        pairs = (steps / theirs, seconds / (theirs * adam["seconds"]))
        ratios = [f"{least}{ratio:.2f}" for ratio in pairs]
    return [name, length, error, f"{hits} of {len(last)}", *cells, *ratios]


def draw(runs: Mapping[str, Any], path: Path) -> None:
    """Draws the errors of the main recipes by step, a panel for each family."""
    from matplotlib.figure import Figure

    columns = min(3, len(runs))
    rows = -(-len(runs) // columns)
    figure = Figure(figsize=(4.2 * columns, 3.2 * rows), layout="constrained")
    colours = dict(zip(MAIN, ("tab:gray", "tab:blue")))
    panels = figure.subplots(rows, columns, squeeze=False).flat
    lines = {}
    for (family, recipes), panel in zip(runs.items(), panels, strict=False):
        for recipe in [name for name in MAIN if name in recipes]:
            run = recipes[recipe]
            errors = np.array(run["errors"])
            [lines[recipe]] = panel.plot(
                run["steps"], np.median(errors, axis=0), color=colours[recipe], label=recipe
            )
            panel.fill_between(
                run["steps"], errors.min(axis=0), errors.max(axis=0), color=colours[recipe],
                alpha=0.15, linewidth=0,
            )  # fmt: skip
        about = FAMILIES[family]
        panel.axhline(about.target, color="black", linewidth=0.8, linestyle=":")
        panel.set(
            title=about.preset, xlabel="steps", yscale="log",
            ylabel=f"error after {about.examples} examples",
        )  # fmt: skip
    for panel in panels:
        panel.set_visible(False)
    figure.legend(lines.values(), lines.keys(), loc="outside lower center", ncols=4, frameon=False)
    figure.savefig(path, dpi=110)

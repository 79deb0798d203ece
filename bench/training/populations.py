"""Time of a model's step in a population, alone on all devices, and alone on one device.

A CPU's devices are its cores. Members of the population differ only in their seed.
"""

import argparse
from collections.abc import Callable
from typing import Any

import jax

from icl.training.parallel import make_mesh, place, use_cpu_cores
from icl.training.population import (
    compile_population,
    init_population,
    member_settings,
    shared_config,
)

from ..common.driver import positive
from ..common.report import Report, Table, busy_notes
from ..common.turns import ratios, summary, take_turns
from ..common.worker import Started, Worker, failures_as_values
from .cases import a_case, case_config
from .trainer import compile_trainer, seconds_of

POPULATIONS = "bench.training.populations:start"


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's arguments."""
    parser.set_defaults(rounds=5)
    parser.add_argument("case", nargs="?", type=a_case, default="xs@64", help="a size at a batch")
    parser.add_argument("--members", type=positive, default=8, help="models in the population")
    parser.add_argument("--steps", type=positive, default=20, help="training steps a turn")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The results for the JSON file."""
    with Worker(POPULATIONS, options.case, options.members, options.steps) as worker:
        turns = {name: worker.asks(name) for name in worker.ready["turns"]}
        taken, others = take_turns(turns, [worker], options.rounds)
    return {
        "device": worker.ready["device"],
        "devices": worker.ready["devices"],
        "case": options.case,
        "members": options.members,
        "others_cpu": others,
        "ms_a_step_of_a_model": {n: summary([1e3 * s for s in t]) for n, t in taken.items()},
        "over_population": {n: ratios(t, taken["population"]) for n, t in taken.items()},
    }


def start(case: str, members: int, steps: int) -> Started:
    """Commands that answer with the seconds of one model's step."""
    with failures_as_values():
        use_cpu_cores()
        devices = jax.devices()
        config = case_config(case)
        turns = {
            "population": _population(case, members, steps),
            "alone on all devices": compile_trainer(config, steps)[0],
            "alone on one device": compile_trainer(config, steps, devices=devices[:1])[0],
        }
        for turn in turns.values():
            turn()
    kind = devices[0].device_kind
    return {"device": kind, "devices": len(devices), "turns": list(turns)}, turns


def _population(case: str, members: int, steps: int) -> Callable[[], dict[str, Any]]:
    configs = [case_config(case).replace(training_seed=seed) for seed in range(members)]
    mesh = make_mesh(configs[0].training.batch_size, members)
    ready = (init_population(configs), member_settings(configs))
    state, numbers = place(ready, mesh, population=True)
    chunk = compile_population(shared_config(configs[0]), numbers, state, steps, mesh)

    def advance():
        nonlocal state
        state, metrics = chunk(state)
        return metrics

    return lambda: {"seconds": seconds_of(advance) / (members * steps)}


def report(results: dict[str, Any]) -> Report:
    """A table of the three times."""
    rows = []
    for name, ms in results["ms_a_step_of_a_model"].items():
        over = results["over_population"][name]
        spread = f"{over['min']:.2f} to {over['max']:.2f}"
        rows.append((name, f"{ms['median']:.2f}", f"{over['median']:.2f}", spread))
    title = f"{results['case']}, {results['members']} models"
    headings = (title, "ms a step of a model", "over population", "range")
    notes = busy_notes({"populations": results["others_cpu"]})
    return Report([Table(headings, rows), *notes])

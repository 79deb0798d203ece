"""A step of a model in a population, and alone on one device and on all, in turn.

A CPU's devices are its cores. Members differ in their seed alone.
"""

import argparse
import time
from collections.abc import Callable
from pathlib import Path

import jax
from harness import ratios, summary, take_turns, write_results
from machine import describe
from training_cases import case_config

from icl.training.learner import Learner
from icl.training.optimizer import make_optimizer
from icl.training.parallel import make_mesh, place, use_cpu_cores
from icl.training.population import (
    compile_population,
    init_population,
    numbers_of,
    shared_config,
)
from icl.training.step import compile_chunk, init_state


def main(argv: list[str] | None = None) -> None:
    """Prints and writes milliseconds a step of one model."""
    parser = argparse.ArgumentParser(prog="bench/populations.py", description=__doc__)
    parser.add_argument("case", nargs="?", default="xs@64", help="size@batch")
    parser.add_argument("--members", type=int, default=8, help="models of the population")
    parser.add_argument("--steps", type=int, default=20, help="training steps a turn")
    parser.add_argument("--reps", type=int, default=9, help="turns each gets")
    parser.add_argument("--output", type=Path, help="JSON file in place of the one in results/")
    options = parser.parse_args(argv)
    use_cpu_cores()
    devices = jax.devices()
    machine = describe() | {"device": devices[0].device_kind}
    results = {"machine": machine, "case": options.case, "members": options.members}
    turns = {
        "population": _population(options.case, options.members, options.steps),
        "alone on all devices": _alone(options.case, options.steps, devices),
        "alone on one device": _alone(options.case, options.steps, devices[:1]),
    }
    for turn in turns.values():
        turn()
    taken = take_turns(turns, options.reps)
    results |= {
        "devices": len(devices),
        "ms_a_step_of_a_model": {n: summary([1e3 * s for s in t]) for n, t in taken.items()},
        "over_population": {n: ratios(t, taken["population"]) for n, t in taken.items()},
    }
    for name in turns:
        ms, over = results["ms_a_step_of_a_model"][name], results["over_population"][name]
        print(f"{name}: {ms['median']:.2f} ms, {over['median']:.2f} times as long "
              f"({over['min']:.2f} to {over['max']:.2f})")  # fmt: skip
    print(f"written to {write_results('populations', results, options.output)}")


def _population(case: str, members: int, steps: int) -> Callable[[], float]:
    configs = [case_config(case).replace(training_seed=seed) for seed in range(members)]
    mesh = make_mesh(configs[0].training.batch_size, members)
    start = (init_population(configs), numbers_of(configs))
    state, numbers = place(start, mesh, population=True)
    chunk = compile_population(shared_config(configs[0]), numbers, state, steps, mesh)
    return _timed(lambda state: chunk(state, numbers), state, members * steps)


def _alone(case: str, steps: int, devices: list) -> Callable[[], float]:
    config = case_config(case)
    learner, mesh = Learner(config), make_mesh(config.training.batch_size, devices=devices)
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    state = place(init_state(learner, optimizer), mesh)
    return _timed(compile_chunk(learner, optimizer, state, steps, mesh), state, steps)


def _timed(chunk: Callable, state, steps: int) -> Callable[[], float]:
    """Seconds a step of one model."""

    def turn() -> float:
        nonlocal state
        started = time.perf_counter()
        state, metrics = chunk(state)
        jax.block_until_ready(metrics)
        return (time.perf_counter() - started) / steps

    return turn


if __name__ == "__main__":
    main()

"""Growth of our training step's time with batch, length of prompts and depth."""

import argparse
import math
from collections.abc import Sequence
from typing import Any

import jax

from icl.training import Config
from icl.training.parallel import use_cpu_cores

from ..common.driver import one_of
from ..common.report import Report, Table, busy_notes
from ..common.turns import ratios, summary, take_turns
from ..common.worker import Started, Worker, failures_as_values
from .cases import case_config, prompt_tokens, step_flops, steps_a_turn
from .trainer import compile_peak, compile_trainer

SCALING = "bench.training.scaling:start"
TURN_SECONDS = 0.5
BASE, BASE_ON_CPU = ("standard@64", "bfloat16"), ("xs@64", "float32")
# Values of each axis, by base.
VALUES = {
    "xs@64": {
        "batch": (4, 16, 64, 256, 1024),
        "points": (6, 11, 22, 44, 88),
        "layers": (1, 3, 6, 12),
    },
    "standard@64": {
        "batch": (4, 16, 64, 256, 1024, 4096),
        "points": (21, 41, 82, 164, 328),
        "layers": (3, 6, 12, 24),
    },
    "tiny@8": {"batch": (4, 8), "points": (3, 4), "layers": (1, 2)},
}
SETTINGS = {"batch": "training_batch_size", "points": "task_points", "layers": "model_layers"}


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's arguments."""
    parser.set_defaults(rounds=3)
    parser.add_argument("axes", nargs="*", type=one_of(SETTINGS), metavar="AXIS",
                        help=f"{', '.join(SETTINGS)}; by default all")  # fmt: skip
    parser.add_argument("--base", choices=VALUES, help="the case that grows; on a CPU xs@64")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The results for the JSON file."""
    results: dict[str, Any] = {"scaling": {}}
    for axis in options.axes or SETTINGS:
        print(f"timing our step as {axis} grows", flush=True)
        with Worker(SCALING, axis, options.base) as worker:
            results["device"] = worker.ready["device"]
            results["scaling"][axis] = _scale(worker, options.rounds)
    return results


def start(axis: str, base: str | None) -> Started:
    """A command for each value, which answers with the seconds of a step, and `peak`."""
    with failures_as_values():
        use_cpu_cores()
        usual, dtype = BASE_ON_CPU if jax.default_backend() == "cpu" else BASE
        base = base or usual
        configs = {value: _config(base, dtype, axis, value) for value in VALUES[base][axis]}
        commands: dict[str, Any] = {"peak": compile_peak(dtype)}
        peak = commands["peak"]()["rate"]
        for value, config in configs.items():
            steps = steps_a_turn(config, peak, TURN_SECONDS)
            commands[str(value)], _ = compile_trainer(config, steps)
            commands[str(value)]()
    return {
        "device": jax.devices()[0].device_kind,
        "base": f"{base}, {dtype}",
        "values": list(configs),
        "tokens": [c.training.batch_size * prompt_tokens(c) for c in configs.values()],
        "flops": [step_flops(config) for config in configs.values()],
    }, commands


def _config(base: str, dtype: str, axis: str, value: int) -> Config:
    # max_tokens None fits the positions to the prompts; long ones exceed the preset's number.
    changes = {"model_dtype": dtype, "model_max_tokens": None, SETTINGS[axis]: value}
    return case_config(base).replace(**changes)


def _scale(worker: Worker, rounds: int) -> dict[str, Any]:
    values = worker.ready["values"]
    turns = {name: worker.asks(name) for name in map(str, values)}
    turns["peak"] = worker.asks("peak", "rate")
    taken, others = take_turns(turns, [worker], rounds)
    rows = [
        {
            "value": value,
            "tokens": tokens,
            "flops": flops,
            "ms_a_step": summary([1e3 * seconds for seconds in taken[str(value)]]),
            "share_of_peak": ratios([flops / s for s in taken[str(value)]], taken["peak"]),
        }
        for value, tokens, flops in zip(values, worker.ready["tokens"], worker.ready["flops"])
    ]
    times, work = [row["ms_a_step"]["median"] for row in rows], [row["flops"] for row in rows]
    fits = {"exponent": exponent(values, times), "flops_exponent": exponent(values, work)}
    return {"base": worker.ready["base"], "rows": rows, "others_cpu": others, **fits}


def exponent(values: Sequence[float], times: Sequence[float]) -> float:
    """The least-squares slope of the logarithms of `times` over those of `values`."""
    x, y = ([math.log(number) for number in numbers] for numbers in (values, times))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y))
    return covariance / sum((a - mean_x) ** 2 for a in x)


def report(results: dict[str, Any]) -> Report:
    """A table and the exponents for each axis."""
    found = Report()
    for axis, scaled in results["scaling"].items():
        rows = []
        for row in scaled["rows"]:
            ms, share = row["ms_a_step"]["median"], row["share_of_peak"]["median"]
            speed = f"{1e3 * row['tokens'] / ms:,.0f}"
            rows.append((str(row["value"]), f"{ms:.2f}", speed, f"{share:.0%}"))
        found.parts += [
            Table((axis, "ms a step", "tokens/s", "of peak"), rows, left=0),
            f"From {scaled['base']}, time grows as {axis}^{scaled['exponent']:.2f}, "
            f"operations as {axis}^{scaled['flops_exponent']:.2f}.",
        ]
    found.parts += busy_notes({a: s["others_cpu"] for a, s in results["scaling"].items()})
    return found

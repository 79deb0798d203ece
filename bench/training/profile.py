"""Profile of a training step: times the trainer with one part left out at a time.

A part costs the difference to the whole step, which includes effects of fusion and cache.
Therefore parts need not add up, and the rest may be negative. Differences are taken between the
fastest rounds, because medians are too noisy for small differences.
"""

import argparse
import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import jax
import optax
from flax import nnx

from icl.layers import LayerNorm
from icl.layers.mixers import MIXERS, SoftmaxAttention
from icl.models.flops import flops_by_part
from icl.models.transformer import Block
from icl.training import Config
from icl.training.learner import Learner
from icl.training.parallel import use_cpu_cores

from ..common.driver import positive
from ..common.report import Report, Table, busy_notes
from ..common.turns import take_turns
from ..common.worker import Started, Worker, failures_as_values
from .cases import MACHINE, SIZES, a_case, case_config, model_shape, steps_a_turn
from .trainer import compile_draw, compile_trainer

PROFILE = "bench.training.profile:start"
CASES = ["xs@64", "small@64", "standard@64"]


def arguments(parser: argparse.ArgumentParser) -> None:
    """Adds this benchmark's arguments."""
    parser.set_defaults(rounds=3)
    parser.add_argument("cases", nargs="*", type=a_case, help=f"{', '.join(SIZES)}, or as xs@512")
    parser.add_argument("--steps", type=positive, help="steps a turn; by default about a second's")


def measure(options: argparse.Namespace) -> dict[str, Any]:
    """The results for the JSON file."""
    results: dict[str, Any] = {"cases": {}}
    with Worker(MACHINE) as ceiling:
        results["device"] = ceiling.ready["device"]
        for case in options.cases or CASES:
            print(f"{case}: timing the trainer with one part left out at a time", flush=True)
            steps = options.steps or steps_a_turn(
                case_config(case), ceiling.ready["peaks"]["float32"]
            )
            with Worker(PROFILE, case, steps) as worker:
                turns = {name: worker.asks(name) for name in worker.ready["variants"]}
                turns["peak"] = ceiling.asks("peak float32", "rate")
                taken, others = take_turns(turns, [worker, ceiling], options.rounds)
            rows = _rows(case, taken, max(taken.pop("peak")))
            results["cases"][case] = {"others_cpu": others, "rows": rows}
    return results


class NoMixer(nnx.Module):
    """The identity, without parameters."""

    def __init__(self, width: int, heads: int, **_: Any):
        pass

    def __call__(self, x: jax.Array, read: slice = slice(None)) -> jax.Array:
        return x[:, read]


class ProjectionsOnly(SoftmaxAttention):
    """Attention's linear layers, with the sum of query, key and value between them."""

    def mix(self, x: jax.Array, qkv: jax.Array, mask: jax.Array | None = None) -> jax.Array:
        return qkv[:, :, 0] + qkv[:, :, 1] + qkv[:, :, 2]


def _block_without_mlp(self: Block, x: jax.Array, read: slice = slice(None), mask=None):
    options = {} if mask is None else {"mask": mask}
    return x[:, read] + self.mixer(self.mixer_norm(x), read, **options)


@contextlib.contextmanager
def _mixer(name: str, mixer: type[nnx.Module], config: Config) -> Iterator[Config]:
    with mock.patch.dict(MIXERS, {name: mixer}):
        yield config.replace(model_mixer=name)


@contextlib.contextmanager
def _call(owner: type[nnx.Module], call: Callable, config: Config) -> Iterator[Config]:
    with mock.patch.object(owner, "__call__", call):
        yield config


# By variant, a context manager that leaves a part out and gives the config to use.
LEFT_OUT = {
    "no_attention": partial(_mixer, "projections", ProjectionsOnly),
    "no_mixer": partial(_mixer, "none", NoMixer),
    "no_mlp": partial(_call, Block, _block_without_mlp),
    "no_norms": partial(_call, LayerNorm, lambda self, x: x),
}


def start(case: str, steps: int) -> Started:
    """A command for each variant, which answers with the seconds of a step."""
    with failures_as_values():
        use_cpu_cores()
        config = case_config(case)
        trainer = lambda config, optimizer=None: compile_trainer(config, steps, optimizer)[0]
        commands = {
            "whole": trainer(config),
            "draw": compile_draw(Learner(config), steps),
            # The cheapest optimiser; without one XLA would not compute the gradient.
            "no_optimizer": trainer(config, optax.sgd(1e-6)),
        }
        for name, left_out in LEFT_OUT.items():
            with left_out(config) as changed:
                commands[name] = trainer(changed)
        for command in commands.values():
            command()
    return {"variants": list(commands)}, commands


def _rows(case: str, taken: dict[str, list[float]], peak: float) -> list[dict[str, Any]]:
    """Parts of a step: name, milliseconds, share, and milliseconds of their products at the peak.

    Args:
      case: the profiled case.
      taken: seconds of a step by variant, one number a round.
      peak: the machine's operations a second.
    """
    flops = flops_by_part(*model_shape(case_config(case)))
    fastest = {variant: min(seconds) for variant, seconds in taken.items()}
    whole = fastest["whole"]
    less = lambda with_it, without: fastest[with_it] - fastest[without]
    parts = {
        "attention without projections": (less("whole", "no_attention"), "attention"),
        "its projections": (less("no_attention", "no_mixer"), "projections"),
        "MLP": (less("whole", "no_mlp"), "mlp"),
        "layer norms": (less("whole", "no_norms"), ""),
        "drawing tasks": (fastest["draw"], ""),
        "optimiser": (less("whole", "no_optimizer"), ""),
    }
    parts["rest"] = (whole - sum(seconds for seconds, _ in parts.values()), "")
    parts["whole step"] = (whole, "")
    return [
        {
            "name": name,
            "ms": 1e3 * seconds,
            "share": seconds / whole,
            "ms_at_peak": 1e3 * flops[part] / peak if part else None,
        }
        for name, (seconds, part) in parts.items()
    ]


def report(results: dict[str, Any]) -> Report:
    """A table for each case."""
    found = Report()
    for case, profile in results["cases"].items():
        rows = []
        for row in profile["rows"]:
            at_peak = "" if row["ms_at_peak"] is None else f"{row['ms_at_peak']:.1f}"
            rows.append((row["name"], f"{row['ms']:.2f}", f"{row['share']:.1%}", at_peak))
        found.parts.append(Table((case, "ms", "share", "ms at peak"), rows))
    found.parts += busy_notes({c: p["others_cpu"] for c, p in results["cases"].items()})
    return found

"""Where a training step's time goes: the trainer again, each time with one thing left out.

The difference to the whole step is what that thing costs where it stands, fusion and cache
included; so the parts need not add up, and the rest may even be negative. Differences are of
the fastest reps: small ones would drown in the noise of medians.
"""

import contextlib
from collections.abc import Callable, Iterator
from functools import partial
from typing import Any
from unittest import mock

import jax
import optax
from contestants import Started, compile_draw, compile_trainer
from flax import nnx
from training_cases import case_config, model_shape

from icl.layers import LayerNorm
from icl.layers.mixers import MIXERS, CausalSelfAttention
from icl.models.flops import flops_by_part
from icl.models.transformer import Block
from icl.training import Config
from icl.training.learner import Learner
from icl.training.parallel import use_cpu_cores


class NoMixer(nnx.Module):
    """Leaves tokens as they are; no parameters."""

    def __init__(self, width: int, heads: int, **_: Any):
        pass

    def __call__(self, x: jax.Array, read: slice = slice(None)) -> jax.Array:
        return x[:, read]


class ProjectionsOnly(CausalSelfAttention):
    """Both linear layers of attention, with a sum in place of what is between them."""

    def mix(self, x: jax.Array, qkv: jax.Array) -> jax.Array:
        return qkv[:, :, 0] + qkv[:, :, 1] + qkv[:, :, 2]


def _block_without_mlp(self: Block, x: jax.Array, read: slice = slice(None)) -> jax.Array:
    return x[:, read] + self.mixer(self.mixer_norm(x), read)


@contextlib.contextmanager
def _mixer(name: str, mixer: type[nnx.Module], config: Config) -> Iterator[Config]:
    with mock.patch.dict(MIXERS, {name: mixer}):
        yield config.replace(model_mixer=name)


@contextlib.contextmanager
def _call(owner: type[nnx.Module], call: Callable, config: Config) -> Iterator[Config]:
    with mock.patch.object(owner, "__call__", call):
        yield config


# What is left out, by the variant that leaves it out: config -> context with the config to use.
LEFT_OUT = {
    "no_attention": partial(_mixer, "projections", ProjectionsOnly),
    "no_mixer": partial(_mixer, "none", NoMixer),
    "no_mlp": partial(_call, Block, _block_without_mlp),
    "no_norms": partial(_call, LayerNorm, lambda self, x: x),
}


def start_profile(case: str, steps: int) -> Started:
    """Every variant as a command that answers with seconds a step."""
    use_cpu_cores()
    config = case_config(case)
    learner = Learner(config)
    trainer = lambda config, optimizer=None: compile_trainer(config, steps, optimizer)[0]
    commands = {
        "whole": trainer(config),
        "draw": compile_draw(learner, steps),
        # A gradient that nobody uses would not be computed: the cheapest use of it.
        "no_optimizer": trainer(config, optax.sgd(1e-6)),
    }
    for name, left_out in LEFT_OUT.items():
        with left_out(config) as changed:
            commands[name] = trainer(changed)
    for command in commands.values():
        command()
    return {"variants": list(commands)}, commands


def profile_rows(case: str, taken: dict[str, list[float]], peak: float) -> list[dict[str, Any]]:
    """The profile as rows: what, its ms a step, its share, and the ms its products need at peak.

    Args:
      case: what was profiled.
      taken: seconds a step by variant, a number a rep.
      peak: the machine's operations a second.
    """
    flops = flops_by_part(*model_shape(case_config(case)))
    fastest = {variant: min(seconds) for variant, seconds in taken.items()}
    whole = fastest["whole"]

    def row(name: str, seconds: float, part: str = "") -> dict[str, Any]:
        at_peak = 1e3 * flops[part] / peak if part else None
        share = seconds / whole
        return dict(name=name, ms=1e3 * seconds, share=share, ms_at_peak=at_peak)

    less = lambda with_it, without: fastest[with_it] - fastest[without]
    drawing = ("drawing tasks", fastest["draw"])
    optimizer = ("optimiser", less("whole", "no_optimizer"))
    attention = less("whole", "no_attention")
    projections = less("no_attention", "no_mixer")
    mlp, norms = less("whole", "no_mlp"), less("whole", "no_norms")
    named = attention + projections + mlp + norms + drawing[1] + optimizer[1]
    return [
        row("attention without projections", attention, "attention"),
        row("its projections", projections, "projections"),
        row("MLP", mlp, "mlp"),
        row("layer norms", norms),
        row(*drawing),
        row(*optimizer),
        row("rest", whole - named),
    ]

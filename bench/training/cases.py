"""Cases (a size at a batch) and contestants of the training benchmarks."""

import argparse
import dataclasses
import math
from typing import Any, NamedTuple

from icl import models
from icl.experiments import preset
from icl.models.flops import training_flops
from icl.tasks import LAYOUTS, Curriculum, LinearRegression
from icl.training import Config


def _size(name: str, **settings) -> Config:
    # Full difficulty throughout, so that every contestant does the same work at every step.
    return preset(name).replace(curriculum=Curriculum(), **settings)


# The peers have Garg et al.'s tokens, layer norm and Adam, so ours has them at every size.
XS: dict[str, Any] = {"task": LinearRegression(dim=5, points=11), "model": models.XS}
SIZES = {
    "xs": _size("garg/linear-small", **XS),
    "small": _size("garg/linear-small"),
    "standard": _size("garg/linear"),
    "xs-linear-attention": _size("garg/linear-small", **XS, model_mixer="linear_attention"),
    "xs-delta-rule": _size("garg/linear-small", **XS, model_mixer="delta_rule"),
    "xs-mesa": _size("garg/linear-small", **XS, model_mixer="mesa"),
    # Too small to measure: for tests and for a first try on a new machine.
    "tiny": _size(
        "garg/linear-small",
        task=LinearRegression(dim=5, points=4),
        model=dataclasses.replace(XS["model"], layers=1, width=16, max_tokens=None),
    ),
}
NO_PEER = ("xs-linear-attention", "xs-delta-rule", "xs-mesa")  # mixers without a PyTorch trainer
CASES_BY_PLATFORM = {
    "cpu": ("xs@64", "small@64", "standard@64", *(f"{size}@64" for size in NO_PEER)),
    "gpu": (
        *(f"{size}@{batch}" for size in ("xs", "small", "standard") for batch in (64, 512, 4096)),
        *(f"{size}@4096" for size in NO_PEER),
    ),
}

TURN_SECONDS = 0.7
MOST_STEPS = 100  # of a turn; the length of the trainer's chunks
# Guesses that set the number of steps a turn: the share of the peak that a step reaches, and the
# seconds of a step without products.
LIKELY_SHARE = 0.4
LEAST_SECONDS = 3e-4

# Start functions for `Worker`; those of contestants take (case, name, steps, device).
MACHINE = "bench.training.trainer:start_machine"
START = {"jax": "bench.training.trainer:start", "torch": "bench.training.torch_peer:start"}


class Contestant(NamedTuple):
    """A contestant.

    Attributes:
      framework: `jax` for our trainer, `torch` for the peer.
      dtype: dtype of the computation; parameters are float32.
      variant: the mixer in place of ours, or `compile` for torch.compile; empty for neither.
    """

    framework: str
    dtype: str
    variant: str = ""


_FORMS = {
    "ours": ("jax", ""),
    "plain attention": ("jax", "plain_attention"),
    "torch": ("torch", ""),
    "torch.compile": ("torch", "compile"),
}
CONTESTANTS = {
    name + suffix: Contestant(framework, dtype, variant)
    for suffix, dtype in {"": "float32", " bf16": "bfloat16"}.items()
    for name, (framework, variant) in _FORMS.items()
}
AGAINST = "ours at "  # prefix of the name of another revision of ours


def contestant(name: str) -> Contestant:
    """The contestant of this name; another revision of ours is configured as ours."""
    return CONTESTANTS["ours" if name.startswith(AGAINST) else name]


def ours_beside(name: str) -> str:
    """The name of our contestant with the same dtype as the named one."""
    return "ours bf16" if contestant(name).dtype == "bfloat16" else "ours"


def dtypes(platform: str) -> tuple[str, ...]:
    """Dtypes of the computation that are timed on a platform."""
    return ("float32",) if platform == "cpu" else ("float32", "bfloat16")


def expand(names: list[str], platform: str) -> list[str]:
    """Replaces each size by the platform's cases of that size; no names mean all cases."""
    cases = CASES_BY_PLATFORM["cpu" if platform == "cpu" else "gpu"]
    expanded = []
    for name in names or cases:
        of_size = [case for case in cases if size_of(case) == name] or [f"{name}@64"]
        expanded += [name] if "@" in name else of_size
    return list(dict.fromkeys(expanded))


def size_of(case: str) -> str:
    """The key of `SIZES` of a case or a size."""
    return case.partition("@")[0]


def case_config(case: str, who: Contestant | None = None) -> Config:
    """The settings of a case such as `small@512`, for a contestant in JAX if one is given.

    Raises:
      ValueError: the size does not exist or the batch is not a positive integer.
    """
    size, _, batch = case.partition("@")
    if size not in SIZES:
        raise ValueError(f"no size {size!r}; there are {', '.join(SIZES)}")
    if batch and (not batch.isdecimal() or int(batch) < 1):
        raise ValueError(f"{case!r}: the number after the @ is the number of prompts in a batch")
    config = SIZES[size].replace(training_batch_size=int(batch)) if batch else SIZES[size]
    if who is None:
        return config
    config = config.replace(model_dtype=who.dtype)
    return config.replace(model_mixer=who.variant) if who.variant else config


def a_case(text: str) -> str:
    """An argparse type that accepts sizes and cases."""
    try:
        case_config(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def prompt_tokens(config: Config) -> int:
    """Number of tokens of a prompt."""
    return LAYOUTS[config.layout].tokens(config.task.points)


def model_shape(config: Config) -> tuple:
    """The arguments of the functions of `icl.models.flops`."""
    features = math.prod(config.task.input_kind.shape)
    width = LAYOUTS[config.layout].width(features, config.task.label_kind)
    return config.model, width, prompt_tokens(config), config.training.batch_size


def step_flops(config: Config) -> float:
    """Floating-point operations of the model in a training step."""
    return training_flops(*model_shape(config))


def steps_a_turn(config: Config, peak: float, seconds: float = TURN_SECONDS) -> int:
    """Number of training steps that take about `seconds` on a machine with this peak."""
    step = LEAST_SECONDS + step_flops(config) / (LIKELY_SHARE * peak)
    return min(MOST_STEPS, max(1, round(seconds / step)))

"""What the training benchmarks compare: sizes at batches, and who takes part."""

import argparse
import math
from typing import NamedTuple

from icl.experiments import preset
from icl.models.flops import training_flops
from icl.tasks import LAYOUTS, Curriculum
from icl.training import Config


def _size(name: str, **settings) -> Config:
    # Full difficulty throughout, so that every contestant does the same work at every step.
    return preset(name).replace(curriculum=Curriculum(), **settings)


SIZES = {
    "xs": _size("garg/linear-xs"),
    "small": _size("garg/linear-small"),
    "standard": _size("garg/linear"),
    "xs-linear-attention": _size("garg/linear-xs-linear-attention"),
    "xs-delta-rule": _size("garg/linear-xs-delta-rule"),
    "xs-mesa": _size("garg/linear-xs", model_mixer="mesa"),
    # Nothing to measure: the benchmarks' own tests, and a first try on a new machine.
    "tiny": _size(
        "garg/linear-xs", task_points=4, model_layers=1, model_width=16, model_max_tokens=None
    ),
}
NO_PEER = ("xs-linear-attention", "xs-delta-rule", "xs-mesa")  # no PyTorch trainer of the same kind
CASES_BY_PLATFORM = {
    "cpu": ("xs@64", "small@64", "standard@64", *(f"{size}@64" for size in NO_PEER)),
    "gpu": (
        *(f"{size}@{batch}" for size in ("xs", "small", "standard") for batch in (64, 512, 4096)),
        *(f"{size}@4096" for size in NO_PEER),
    ),
}

TURN_SECONDS = 0.7
MOST_STEPS = 100  # a turn; the trainer runs as many between two looks of the host
LIKELY_SHARE = 0.4  # of the peak, and the seconds of a step without any products: a guess
LEAST_SECONDS = 3e-4

# Where each kind of contestant starts; each takes (case, name, steps, device).
MACHINE = "bench.training.trainer:start_machine"
START = {"jax": "bench.training.trainer:start", "torch": "bench.training.torch_peer:start"}


class Contestant(NamedTuple):
    """Who is timed.

    Attributes:
      framework: `jax` for our trainer, `torch` for the peer.
      dtype: of the computation; parameters are float32.
      variant: how it differs from the plain form of its framework.
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
AGAINST = "ours at "  # the beginning of the name of another revision of ours


def contestant(name: str) -> Contestant:
    """By its name; another revision of ours is computed as ours."""
    return CONTESTANTS["ours" if name.startswith(AGAINST) else name]


def ours_beside(name: str) -> str:
    """The name of ours in the dtype of a contestant."""
    return "ours bf16" if contestant(name).dtype == "bfloat16" else "ours"


def dtypes(platform: str) -> tuple[str, ...]:
    """The dtypes of the computation that are timed."""
    return ("float32",) if platform == "cpu" else ("float32", "bfloat16")


def expand(names: list[str], platform: str) -> list[str]:
    """Sizes and cases as cases: a size stands for those of the platform's cases that have it."""
    cases = CASES_BY_PLATFORM["cpu" if platform == "cpu" else "gpu"]
    expanded = []
    for name in names or cases:
        of_size = [case for case in cases if size_of(case) == name] or [f"{name}@64"]
        expanded += [name] if "@" in name else of_size
    return list(dict.fromkeys(expanded))


def size_of(case: str) -> str:
    """The name in `SIZES`, of a case or of a size."""
    return case.partition("@")[0]


def case_config(case: str, who: Contestant | None = None) -> Config:
    """The settings of a case such as `small@512`, as a contestant in JAX runs them.

    Raises:
      ValueError: there is no such size, or the batch is no number above 0.
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
    """A size or a case, for argparse."""
    try:
        case_config(text)
    except ValueError as error:
        raise argparse.ArgumentTypeError(str(error)) from error
    return text


def prompt_tokens(config: Config) -> int:
    """Tokens of a prompt."""
    return LAYOUTS[config.layout].tokens(config.task.points)


def model_shape(config: Config) -> tuple:
    """What `icl.models.flops` counts the operations of."""
    features = math.prod(config.task.input_kind.shape)
    width = LAYOUTS[config.layout].width(features, config.task.label_kind)
    return config.model, width, prompt_tokens(config), config.training.batch_size


def step_flops(config: Config) -> float:
    """The model's floating-point operations in a training step."""
    return training_flops(*model_shape(config))


def steps_a_turn(config: Config, peak: float, seconds: float = TURN_SECONDS) -> int:
    """Training steps that take about the given time on a machine with this peak."""
    step = LEAST_SECONDS + step_flops(config) / (LIKELY_SHARE * peak)
    return min(MOST_STEPS, max(1, round(seconds / step)))

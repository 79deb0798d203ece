"""What bench/training.py compares: sizes at batches, and who takes part."""

from typing import NamedTuple

from icl.experiments import preset
from icl.models.flops import training_flops
from icl.tasks import LAYOUTS, Curriculum
from icl.training import Config

# Full difficulty throughout, so that every contestant does the same work at every step.
SIZES = {
    "xs": preset("garg/linear-xs").replace(curriculum=Curriculum()),
    "small": preset("garg/linear-small").replace(curriculum=Curriculum()),
    "standard": preset("garg/linear").replace(curriculum=Curriculum()),
}
CPU_CASES = ("xs@64", "xs@512", "small@64", "standard@64")
GPU_CASES = tuple(f"{size}@{batch}" for size in SIZES for batch in (64, 512, 4096))

MOST_STEPS = 100  # a turn; as many as the trainer runs between two looks of the host
LIKELY_SHARE = 0.4  # of the peak, and the seconds of a step without any products: a guess
LEAST_SECONDS = 3e-4


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


def rivals(name: str) -> dict[str, str]:
    """Those whose times are divided by this one's: ours' rivals of the same dtype."""
    suffix = name.removeprefix("ours")
    return {form: form + suffix for form in _FORMS if form != "ours"}


def default_cases(platform: str) -> tuple[str, ...]:
    """What is timed unless something else is named."""
    return CPU_CASES if platform == "cpu" else GPU_CASES


def dtypes(platform: str) -> tuple[str, ...]:
    """The dtypes of the computation that are timed."""
    return ("float32",) if platform == "cpu" else ("float32", "bfloat16")


def expand(names: list[str], platform: str) -> list[str]:
    """Sizes and cases as cases: a size stands for those of the platform's cases that have it."""
    expanded = []
    for name in names or default_cases(platform):
        of_size = [case for case in default_cases(platform) if case.startswith(f"{name}@")]
        expanded += [name] if "@" in name else of_size
    return list(dict.fromkeys(expanded))


def size_of(case: str) -> str:
    """The name in `SIZES`, of a case or of a size."""
    return case.partition("@")[0]


def case_config(case: str, contestant: Contestant | None = None) -> Config:
    """The settings of a case such as `small@512`, as a contestant in JAX runs them.

    Raises:
      ValueError: there is no such size, or the batch is no number above 0.
    """
    size, _, batch = case.partition("@")
    if size not in SIZES:
        raise ValueError(f"no size {size!r}; there are {', '.join(SIZES)}")
    if batch and not batch.isdecimal():
        raise ValueError(f"{case!r}: after the @ stands how many prompts a batch has")
    config = SIZES[size].replace(training_batch_size=int(batch)) if batch else SIZES[size]
    if contestant is None:
        return config
    config = config.replace(model_dtype=contestant.dtype)
    return config.replace(model_mixer=contestant.variant) if contestant.variant else config


def prompt_tokens(config: Config) -> int:
    """Tokens of a prompt."""
    return LAYOUTS[config.layout].tokens(config.task.points)


def model_shape(config: Config) -> tuple:
    """What `icl.models.flops` counts the operations of."""
    width = LAYOUTS[config.layout].width(config.task)
    return config.model, width, prompt_tokens(config), config.training.batch_size


def step_flops(config: Config) -> float:
    """The model's floating-point operations in a training step."""
    return training_flops(*model_shape(config))


def steps_a_turn(config: Config, peak: float, seconds: float) -> int:
    """Training steps that take about so many seconds on a machine with this peak."""
    step = LEAST_SECONDS + step_flops(config) / (LIKELY_SHARE * peak)
    return min(MOST_STEPS, max(1, round(seconds / step)))

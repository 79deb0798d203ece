"""How the time of our training step grows with the batch, the prompts' length and the depth."""

import math
from collections.abc import Sequence
from typing import Any

from contestants import Started, compile_peak, compile_trainer
from training_cases import case_config, prompt_tokens, step_flops, steps_a_turn

from icl.training import Config

TURN_SECONDS = 0.5
# On a CPU and elsewhere: what grows from, in which dtype, and the values along each axis.
BASES = {"cpu": ("xs@64", "float32")}
BASE_ELSEWHERE = ("standard@64", "bfloat16")
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
}
SETTINGS = {"batch": "training_batch_size", "points": "task_points", "layers": "model_layers"}


def start_scaling(axis: str) -> Started:
    """A command for each value, which answers with seconds a step, and `peak`."""
    import jax

    from icl.training.parallel import use_cpu_cores

    use_cpu_cores()
    base, dtype = BASES.get(jax.default_backend(), BASE_ELSEWHERE)
    configs = {value: _config(base, dtype, axis, value) for value in VALUES[base][axis]}
    commands: dict[str, Any] = {"peak": compile_peak(dtype)}
    peak = commands["peak"]()["rate"]
    for value, config in configs.items():
        steps = steps_a_turn(config, peak, TURN_SECONDS)
        commands[str(value)], _ = compile_trainer(config, steps)
        commands[str(value)]()
    return {
        "base": f"{base}, {dtype}",
        "values": list(configs),
        "tokens": [c.training.batch_size * prompt_tokens(c) for c in configs.values()],
        "flops": [step_flops(config) for config in configs.values()],
    }, commands


def _config(base: str, dtype: str, axis: str, value: int) -> Config:
    # As many positions as the prompts have tokens: long prompts would not fit those of the preset.
    changes = {"model_dtype": dtype, "model_max_tokens": None, SETTINGS[axis]: value}
    return case_config(base).replace(**changes)


def exponent(values: Sequence[float], times: Sequence[float]) -> float:
    """The slope of a line through the logarithms, by least squares."""
    x, y = ([math.log(number) for number in numbers] for numbers in (values, times))
    mean_x, mean_y = sum(x) / len(x), sum(y) / len(y)
    covariance = sum((a - mean_x) * (b - mean_y) for a, b in zip(x, y))
    return covariance / sum((a - mean_x) ** 2 for a in x)

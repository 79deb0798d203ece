"""Ranges of numeric settings, which configs check when they are made."""

import functools
import typing
from typing import Any, NamedTuple

import numpy as np


class Range(NamedTuple):
    """The smallest and the largest value; both are whole numbers if the setting is one."""

    low: float
    high: float


_FLOAT32 = np.finfo(np.float32)
SIZE = Range(1, 10**6)  # of a prompt, a batch or a layer
COUNT = Range(0, 10**6)
STEPS = Range(1, 2**31 - 1)  # int32 on the device
SEED = Range(0, 2**32 - 1)  # the seeds that JAX distinguishes
FINITE = Range(float(_FLOAT32.min), float(_FLOAT32.max))
POSITIVE = Range(float(_FLOAT32.tiny), FINITE.high)
NOT_NEGATIVE = Range(0.0, FINITE.high)


def check_ranges(section: str, settings: Any, **ranges: Range) -> None:
    """Checks that numeric settings are in their ranges, or None if their type allows it.

    Args:
      section: the section of the config, as `training`; messages name `training.steps`.
      settings: the object with the settings.
      **ranges: ranges by the name of the setting.

    Raises:
      ValueError: a setting is outside its range, or has another type.
    """
    optional = _optional(type(settings))
    for name, allowed in ranges.items():
        value = getattr(settings, name)
        if value is not None or name not in optional:
            check_range(f"{section}.{name}", value, allowed)


@functools.cache
def _optional(kind: type) -> frozenset[str]:
    """The names of settings that may be None."""
    hints = typing.get_type_hints(kind)
    return frozenset(name for name, hint in hints.items() if type(None) in typing.get_args(hint))


def check_range(name: str, value: Any, allowed: Range) -> None:
    """Raises ValueError if the value of that name is not in the range."""
    low, high = allowed
    whole = isinstance(low, int)
    kinds = (int, np.integer) if whole else (int, float, np.integer, np.floating)
    good = isinstance(value, kinds) and not isinstance(value, bool)
    if not good or not low <= value <= high:  # False for NaN
        kind, show = ("a whole number", "{}") if whole else ("a number", "{:.7g}")
        raise ValueError(
            f"{name} must be {kind} from {show.format(low)} to {show.format(high)}, got {value!r}"
        )

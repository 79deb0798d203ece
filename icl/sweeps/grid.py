"""The grid of a sweep: settings by name, their values, and the members."""

import itertools
import math
import re
import types
import typing
from collections.abc import Mapping, Sequence
from typing import Any

from ..training.config import Config, unknown_setting

MAX_MEMBERS = 10_000
SEED = "training_seed"
RANGE = re.compile(r"(?:(\d+)\^)?(-?\d+)\.\.(?:(\d+)\^)?(-?\d+)(?::(\d+))?")


def setting_name(config: Config, name: str) -> str:
    """The name, as `Config.replace` takes it, of a setting given in any of its short forms.

    `optimizer_learning_rate`, `optimizer.learning_rate` and `learning_rate` name one setting, and
    `pool` names `training_pool_size`, the only field whose name starts with it.

    Raises:
      ValueError: no setting has that name, or several have it.
    """
    known = [full for full in config.flat() if full not in ("task_family", "optimizer_options")]
    wanted = name.strip().replace(".", "_").replace("-", "_")
    field = lambda full: full.partition("_")[2]
    for matches in (
        [full for full in known if full == wanted],
        [full for full in known if field(full) == wanted],
        [full for full in known if field(full).startswith(wanted + "_")],
    ):
        if len(matches) == 1:
            return matches[0]
        if matches:
            raise ValueError(f"{name!r} may be {' or '.join(matches)}; write one of these")
    raise ValueError(unknown_setting(name, known))


def parse_over(config: Config, text: str) -> tuple[str, list[Any]]:
    """A setting and its values from `name=values`.

    Values are separated by commas; `1..4` are whole numbers, `2^4..2^14` powers, `2^4..2^14:2`
    every second power; `none` is None.

    Raises:
      ValueError: the text cannot be read, or the values do not suit the setting.
    """
    name, equals, values = text.partition("=")
    if not equals or not values.strip():
        raise ValueError(f"cannot read {text!r}; write name=value,value,... or name=2^4..2^14")
    full = setting_name(config, name)
    parts = [part.strip() for part in values.split(",")]
    return full, [value for part in parts for value in _values(part)]


def _values(text: str) -> list[Any]:
    if ".." in text:
        return _range(text)
    if power := re.fullmatch(r"(\d+)\^(-?\d+)", text):
        return [_power(int(power[1]), int(power[2]))]
    words = {"none": None, "true": True, "false": False}
    if text.lower() in words:
        return [words[text.lower()]]
    for kind in (int, float):
        try:
            return [kind(text)]
        except ValueError:
            pass
    return [text]


def _range(text: str) -> list[Any]:
    found = RANGE.fullmatch(text)
    if not found or found[1] != found[3]:
        raise ValueError(f"cannot read the range {text!r}; write 1..4, 2^4..2^14 or 2^4..2^14:2")
    base, first, last, stride = found[1], int(found[2]), int(found[4]), int(found[5] or 1)
    if last < first or stride < 1:
        raise ValueError(f"the range {text!r} is empty")
    if (last - first) // stride >= MAX_MEMBERS:
        raise _too_many()
    numbers = range(first, last + 1, stride)
    return [_power(int(base), n) for n in numbers] if base else list(numbers)


def _too_many() -> ValueError:
    return ValueError(f"a sweep of more than {MAX_MEMBERS} members; leave out some values")


def _power(base: int, exponent: int) -> int | float:
    if abs(exponent) * base.bit_length() > 1024 or (base == 0 > exponent):
        raise ValueError(f"{base}^{exponent} is beyond all that a setting can be")
    return base**exponent if exponent >= 0 else float(base) ** exponent


def check_values(config: Config, full: str, values: Sequence[Any]) -> list[Any]:
    """The values as the setting's type.

    Raises:
      ValueError: a value has another type or is given twice, or there is no value.
    """
    if not values:
        raise ValueError(f"no values for {full}")
    section, _, field = full.partition("_")
    owner = getattr(config, section) if field else config
    kind = typing.get_type_hints(type(owner))[field or section]
    cast = [_as_kind(full, value, kind) for value in values]
    if len(set(map(repr, cast))) < len(cast):
        raise ValueError(f"{full} has a value twice: {', '.join(map(str, cast))}")
    return cast


def _as_kind(full: str, value: Any, kind: Any) -> Any:
    union = typing.get_origin(kind) in (types.UnionType, typing.Union)
    allowed = typing.get_args(kind) if union else (kind,)
    if value is None and type(None) in allowed:
        return None
    if isinstance(value, int) and not isinstance(value, bool):
        if int in allowed:
            return value
        if float in allowed:
            return float(value)
    for option in allowed:
        if typing.get_origin(option) is typing.Literal:
            if value in typing.get_args(option):
                return value
        elif isinstance(option, type) and type(value) is option:
            return value
    words = " or ".join(word for option in allowed for word in _words(option))
    raise ValueError(f"{full} cannot be {value!r}; it is {words}")


def _words(kind: Any) -> list[str]:
    """The allowed values of a type, in words."""
    if typing.get_origin(kind) is typing.Literal:
        return list(map(str, typing.get_args(kind)))
    return ["None" if kind is type(None) else getattr(kind, "__name__", str(kind))]


Over = Mapping[str, Sequence[Any] | Mapping[str, Mapping[str, Any]]]


def check_over(config: Config, over: Over) -> dict[str, Any]:
    """The grid of a sweep, with full setting names and values of the settings' types.

    Args:
      config: settings that the members share.
      over: values by setting, in any form of its name, as `{"pool": [1, 2]}`; or a group of
        settings under a name of its own, with values by label, as
        `{"size": {"d=5": {"task_dim": 5, "task_points": 16}, "d=10": {...}}}`.

    Raises:
      ValueError: a setting that does not exist, a value that does not suit it, or one given twice.
    """
    result: dict[str, Any] = {}
    taken: set[str] = set()
    for name, values in over.items():
        if isinstance(values, Mapping):
            full, checked = name, _check_together(config, name, values)
            settings = list(next(iter(checked.values())))
        else:
            full = setting_name(config, name)
            checked = check_values(config, full, values)
            settings = [full]
        for setting in {full, *settings}:
            if setting in taken:
                raise ValueError(f"{setting} is given twice")
        taken |= {full, *settings}
        result[full] = checked
    return result


def _check_together(
    config: Config, name: str, values: Mapping[str, Mapping[str, Any]]
) -> dict[str, dict[str, Any]]:
    if not values:
        raise ValueError(f"no values for {name}")
    result: dict[str, dict[str, Any]] = {}
    for label, settings in values.items():
        own = result.setdefault(str(label), {})
        for key, value in settings.items():
            full = setting_name(config, key)
            if full in own:
                raise ValueError(f"{full} is given twice")
            [own[full]] = check_values(config, full, [value])
    first, *others = result.values()
    if not first or any(set(other) != set(first) for other in others):
        raise ValueError(f"the values of {name} must all set the same settings")
    if len({repr(sorted(settings.items())) for settings in result.values()}) < len(result):
        raise ValueError(f"{name} has a value twice")
    return result


def grid(config: Config, over: Over, seeds: int) -> list[tuple[dict[str, Any], Config]]:
    """The members of a sweep: the changes of each, and its settings; seeds vary fastest.

    Args:
      config: settings that the members share; its seed is the first.
      over: as for `check_over`; every combination of values is a member.
      seeds: number of members of each combination.

    Raises:
      ValueError: seeds are below 1 or also in `over`, there are too many members, or the settings
        of a member do not fit together.
    """
    if seeds < 1:
        raise ValueError(f"seeds must be at least 1, got {seeds}")
    # Each axis is a list of changes.
    axes = [
        list(values.values()) if isinstance(values, Mapping) else [{name: v} for v in values]
        for name, values in check_over(config, over).items()
    ]
    if seeds > 1:
        if any(SEED in axis[0] for axis in axes):
            raise ValueError(f"give either seeds or {SEED}, not both")
        if seeds > MAX_MEMBERS:
            raise _too_many()
        axes.append([{SEED: config.training.seed + n} for n in range(seeds)])
    if math.prod(map(len, axes)) > MAX_MEMBERS:
        raise _too_many()
    members = []
    for parts in itertools.product(*axes):
        changes = {name: value for part in parts for name, value in part.items()}
        try:
            members.append((changes, config.replace(**changes)))
        except ValueError as error:
            told = ", ".join(f"{name}={value}" for name, value in changes.items())
            raise ValueError(f"the member {told} is impossible: {error}") from error
    return members


def member_name(changes: Mapping[str, Any]) -> str:
    """The name of a member's folder, from its changes, as `learning_rate=0.001,seed=3`."""
    return ",".join(f"{short_name(name)}={value}" for name, value in changes.items()) or "only"


def short_name(full: str) -> str:
    """A setting's name without its section, as `learning_rate`."""
    return full.partition("_")[2] or full


def values_of(over: Mapping[str, Any], changes: Mapping[str, Any]) -> dict[str, Any]:
    """A member's value of each entry of a sweep but the seed: the label, for a group of settings.

    Args:
      over: of the sweep, as from `check_over`.
      changes: of the member.
    """
    found: dict[str, Any] = {}
    for name, values in over.items():
        if isinstance(values, Mapping):
            fits = (label for label, own in values.items() if own.items() <= changes.items())
            found[name] = next(fits)
        elif name != SEED:
            found[name] = changes[name]
    return found


def label_of(over: Mapping[str, Any], changes: Mapping[str, Any]) -> str:
    """What a member differs in: labels of groups of settings, then names and values of others.

    A single value has no name. Arguments as for `values_of`.
    """
    values = values_of(over, changes)
    groups = [str(values[name]) for name in values if isinstance(over[name], Mapping)]
    others = {name: values[name] for name in values if not isinstance(over[name], Mapping)}
    if not groups and len(others) == 1:
        return str(next(iter(others.values())))
    return ", ".join([*groups, *(f"{short_name(name)} {value}" for name, value in others.items())])

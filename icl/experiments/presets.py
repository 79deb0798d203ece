"""The registry of presets: a name, one line, and the settings."""

import dataclasses
import difflib

from ..training.config import Config


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named experiment."""

    name: str
    summary: str
    config: Config


PRESETS: dict[str, Preset] = {}


def register(name: str, summary: str, config: Config) -> None:
    """Adds a preset; its name is `paper/experiment`, with `-xs` for the size of a CPU."""
    if name in PRESETS:
        raise ValueError(f"there is a preset {name!r} already")
    PRESETS[name] = Preset(name, summary, config)


def preset(name: str) -> Config:
    """The settings of a preset.

    Raises:
      KeyError: no preset of that name; the message suggests the near ones.
    """
    if name in PRESETS:
        return PRESETS[name].config
    near = difflib.get_close_matches(name, PRESETS, n=3, cutoff=0.5)
    near = near or [known for known in PRESETS if name and name in known][:3]
    hint = f"did you mean {' or '.join(near)}?" if near else "`icl list` shows what there is"
    raise KeyError(f"no preset called {name!r}; {hint}")

"""The registry of presets: a name, one line, and the settings."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from typing import TYPE_CHECKING, Any

from rich.table import Table

from ..training.config import Config

if TYPE_CHECKING:
    from ..sweeps import Sweep

Report = Callable[["Sweep"], Table | None]


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named experiment.

    Attributes:
      name: `paper/experiment`.
      summary: one line.
      config: the settings.
      over: what a sweep of it is over where nothing else is asked for, as `icl.sweep` takes it.
      report: is called with its finished sweeps, and again when they are resumed: writes figures
        into the sweep's folder, and returns a table to print, or None where there is nothing to
        tell, as of a sweep over other settings.
    """

    name: str
    summary: str
    config: Config
    over: Mapping[str, Any] | None = None
    report: Report | None = None


PRESETS: dict[str, Preset] = {}


def register(
    name: str,
    summary: str,
    config: Config,
    over: Mapping[str, Sequence[Any] | Mapping[str, Mapping[str, Any]]] | None = None,
    report: Report | None = None,
) -> None:
    """Adds a preset; its name is `paper/experiment`, with `-xs` for the size of a CPU.

    Arguments are the attributes of `Preset`.
    """
    if name in PRESETS:
        raise ValueError(f"there is a preset {name!r} already")
    PRESETS[name] = Preset(name, summary, config, over, report)


def report(sweep: "Sweep") -> Table | None:
    """What the preset of a finished sweep tells of it; None where it has no report.

    Its figures are written again.
    """
    known = PRESETS.get(sweep.preset or "")
    return known.report(sweep) if known and known.report else None


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

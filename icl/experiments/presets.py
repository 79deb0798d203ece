"""The registries of presets and studies: a name, one line, and what there is to run."""

import dataclasses
import difflib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
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


@dataclasses.dataclass(frozen=True)
class Study:
    """What a paper shows without a training of one's own: `icl study NAME`.

    Attributes:
      name: `paper/study`.
      summary: one line.
      run: from a folder, where it leaves its numbers and figures, to a table.
    """

    name: str
    summary: str
    run: Callable[[Path], Table]


STUDIES: dict[str, Study] = {}


def register_study(name: str, summary: str, run: Callable[[Path], Table]) -> None:
    """Adds a study; arguments are the attributes of `Study`."""
    if name in STUDIES or name in PRESETS:
        raise ValueError(f"there is a preset or study {name!r} already")
    STUDIES[name] = Study(name, summary, run)


def study(name: str) -> Study:
    """The study of that name; KeyError as for `preset`."""
    return _named(name, STUDIES, "study")


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
    return _named(name, PRESETS, "preset").config


def _named(name: str, known: Mapping[str, Any], kind: str) -> Any:
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    near = near or [one for one in known if name and name in one][:3]
    hint = f"did you mean {' or '.join(near)}?" if near else "`icl list` shows what there is"
    raise KeyError(f"no {kind} called {name!r}; {hint}")

"""The registry of presets; the file of a preset is imported when the preset is looked up."""

import dataclasses
import difflib
from collections.abc import Iterator, Mapping, MutableMapping, Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any

from ..analysis import ANALYSES, ask
from .index import FILES

if TYPE_CHECKING:
    from ..report import Result
    from ..sweeps import Sweep
    from ..training.config import Config

SUMMARIES = {name: line for presets in FILES.values() for name, line in presets.items()}


@dataclasses.dataclass(frozen=True)
class Preset:
    """A named experiment.

    Attributes:
      name: `paper/experiment`, with the suffix `-xs` for sizes that suit a CPU.
      config: the settings.
      summary: one line.
      over: the default grid of a sweep, as `icl.sweep` takes it.
      report: name in `icl.analysis.ANALYSES` of the analysis of its finished sweeps.
    """

    name: str
    config: "Config"
    summary: str = ""
    over: Mapping[str, Any] | None = None
    report: str | None = None


class _Presets(MutableMapping[str, Preset]):
    """Presets by name, those of the library first; a look-up imports the file of the preset."""

    def __init__(self) -> None:
        self._registered: dict[str, Preset] = {}

    def __getitem__(self, name: str) -> Preset:
        if name not in self._registered and name in SUMMARIES:
            [file] = (file for file, presets in FILES.items() if name in presets)
            import_module(f".{file}", __package__)
        return self._registered[name]

    def __setitem__(self, name: str, preset: Preset) -> None:
        self._registered[name] = preset

    def __delitem__(self, name: str) -> None:
        del self._registered[name]

    def __contains__(self, name: object) -> bool:
        return name in SUMMARIES or name in self._registered

    def __iter__(self) -> Iterator[str]:
        return iter(dict.fromkeys([*SUMMARIES, *self._registered]))

    def __len__(self) -> int:
        return len(list(iter(self)))

    def summaries(self) -> dict[str, str]:
        """One line for each preset, without importing any file."""
        own = {name: preset.summary for name, preset in self._registered.items()}
        return {name: SUMMARIES.get(name) or own[name] for name in self}


PRESETS = _Presets()


def register(
    name: str,
    config: "Config",
    summary: str | None = None,
    *,
    over: Mapping[str, Sequence[Any] | Mapping[str, Mapping[str, Any]]] | None = None,
    report: str | None = None,
) -> None:
    """Adds a preset.

    Args:
      name, config, over, report: as of `Preset`.
      summary: one line; None for a preset of the library, whose summary is in `index.py`.

    Raises:
      ValueError: the name is taken, there is no summary, or `report` is not an analysis of sweeps.
    """
    if name in PRESETS and (name not in SUMMARIES or summary is not None):
        raise ValueError(f"there is a preset {name!r} already")
    summary = SUMMARIES.get(name) if summary is None else summary
    if summary is None:
        raise ValueError(f"the preset {name!r} needs a summary of one line")
    if report is not None and (report not in ANALYSES or ANALYSES[report].of != "sweep"):
        raise ValueError(
            f"icl.analysis.ANALYSES has no analysis {report!r} of a sweep; register your own "
            'with @icl.register_analysis(name, summary, of="sweep") first'
        )
    PRESETS[name] = Preset(name, config, summary, over, report)


def report(sweep: "Sweep") -> "Result | None":
    """Runs the report of a sweep's preset on the finished sweep; None if the preset has no report.

    Existing files of the report are overwritten.
    """
    known = PRESETS.get(sweep.preset or "")
    return ask(known.report, sweep) if known and known.report else None


def preset(name: str) -> "Config":
    """The settings of a preset.

    Raises:
      KeyError: no preset has that name; the message suggests similar names.
    """
    return named(name, PRESETS, "preset").config


def named(name: str, known: Mapping[str, Any], kind: str) -> Any:
    """The entry of a name; KeyError that suggests similar names if there is none."""
    if name in known:
        return known[name]
    near = difflib.get_close_matches(name, known, n=3, cutoff=0.5)
    near = near or [one for one in known if name and name in one][:3]
    hint = f"did you mean {' or '.join(near)}?" if near else "`icl list` shows what there is"
    raise KeyError(f"no {kind} called {name!r}; {hint}")

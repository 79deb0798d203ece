"""Writes results as JSON, tables, and the page RESULTS.md with pictures."""

import importlib
import json
import re
from collections.abc import Callable, Iterable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from . import machine

BENCH = Path(__file__).resolve().parents[1]
QUIET = 0.05  # largest share of the cores' time that other processes may take without a warning

# Modules that `driver.run` runs, by benchmark, in the order of the page.
REPORTS = {
    "training": "bench.training.benchmark",
    "kernels": "bench.kernels.benchmark",
    "sampling": "bench.tasks.sampling",
    "lasso": "bench.tasks.lasso",
    "populations": "bench.training.populations",
    "profile": "bench.training.profile",
    "scaling": "bench.training.scaling",
    "recipes": "bench.recipes",
    "tables": "bench.tables.benchmark",
}


@dataclass
class Table:
    """Rows of text; the first `left` columns are aligned left, the others right."""

    headings: Sequence[str]
    rows: Sequence[Sequence[str]]
    left: int = 1

    def __str__(self) -> str:
        """The table in Markdown with columns aligned for a terminal."""
        table = [list(self.headings), *map(list, self.rows)]
        widths = [max(3, *(len(cell) for cell in column)) for column in zip(*table, strict=True)]
        pad = lambda i, cell: cell.ljust(widths[i]) if i < self.left else cell.rjust(widths[i])
        line = lambda row: f"| {' | '.join(pad(i, cell) for i, cell in enumerate(row))} |"
        rule = ["-" * w if i < self.left else "-" * (w - 1) + ":" for i, w in enumerate(widths)]
        return "\n".join([line(table[0]), line(rule), *map(line, table[1:])])


@dataclass
class Bar:
    """A line of a picture: times over ours by contestant, and our share of the floor or peak."""

    label: str
    ratios: dict[str, float]
    share: float | None = None


@dataclass
class Report:
    """A benchmark's report.

    parts: paragraphs and tables.
    bars: lines of the picture.
    share: the quantity that `Bar.share` is a share of.
    problems: contestants that failed and goals that were not measured.
    picture: draws another picture into a file, in place of one with bars.
    caption: what a picture shows.
    """

    parts: list[str | Table] = field(default_factory=list)
    bars: list[Bar] = field(default_factory=list)
    share: str = ""
    problems: list[str] = field(default_factory=list)
    picture: Callable[[Path], None] | None = None
    caption: str = "ratios to ours"


def report_of(name: str, results: dict[str, Any]) -> Report:
    """The report of a benchmark's results."""
    return importlib.import_module(REPORTS[name]).report(results)


def busy_notes(shares: dict[str, float | None]) -> list[str]:
    """A list with one warning if other processes used the machine during a case, else empty."""
    busy = [f"{case} {share:.0%}" for case, share in shares.items() if (share or 0) > QUIET]
    text = "Other processes kept the machine busy meanwhile; measure again when it is idle: "
    return [text + ", ".join(busy) + "."] if busy else []


def write(name: str, results: dict[str, Any], folder: Path) -> Path:
    """Writes `results/<name>-<device>.json` in a folder; returns the path."""
    path = folder / "results" / f"{name}-{machine.slug(results['machine'])}.json"
    path.parent.mkdir(parents=True, exist_ok=True)
    text = json.dumps(results, indent=1)
    # Puts the numbers of all rounds on one line.
    text = re.sub(r"\[[^][{}\"]*\]", lambda found: " ".join(found[0].split()), text)
    path.write_text(text + "\n")
    return path


def write_page(folder: Path) -> Path:
    """Writes RESULTS.md and its pictures from all results in `folder/results`; returns its path."""
    by_device: dict[str, dict[str, dict[str, Any]]] = {}
    for name in REPORTS:
        for path in sorted((folder / "results").glob(f"{name}-*.json")):
            results = json.loads(path.read_text())
            by_device.setdefault(machine.title(results["machine"]), {})[name] = results
    lines = [
        "# Results",
        "Written by `python -m bench` from `results/`; README.md here says what is measured.",
    ]
    for device, benchmarks in sorted(by_device.items()):
        lines.append(f"## {device}")
        for name, results in benchmarks.items():
            about, found = results["machine"], report_of(name, results)
            lines += [f"### {name}", origin(about)]
            if found.bars or found.picture:
                picture = folder / "results" / f"{name}-{machine.slug(about)}.png"
                found.picture(picture) if found.picture else draw(found, picture)
                lines.append(f"![{name}, {found.caption}](results/{picture.name})")
            lines += [str(part) for part in found.parts]
            lines += [f"**Not measured:** {problem}" for problem in found.problems]
    path = folder / "RESULTS.md"
    path.write_text("\n\n".join(lines) + "\n")
    return path


def origin(about: dict[str, Any]) -> str:
    """The revision, the date and the versions."""
    versions = ", ".join(f"{name} {version}" for name, version in about["versions"].items())
    return f"Revision {about['revision']}, {about['date'][:10]}; {versions}."


def draw(report: Report, path: Path) -> None:
    """Draws the report's bars: each contestant's time over ours, and our share."""
    from matplotlib.figure import Figure

    bars, names = report.bars[::-1], _names(report.bars)
    rows = range(len(bars))
    shares = [bar.share for bar in bars]
    panels = 2 if any(shares) else 1
    figure = Figure(figsize=(4 + 4 * panels, 1.4 + 0.24 * len(bars)), layout="constrained")
    left, *right = figure.subplots(1, panels, sharey=True, squeeze=False)[0]
    markers = "osD^vPX*"
    for index, name in enumerate(names):
        at = [(bar.ratios[name], row) for row, bar in zip(rows, bars) if name in bar.ratios]
        left.plot(*zip(*at), markers[index % len(markers)], label=name, alpha=0.8)
    left.axvline(1, color="black", linewidth=1)
    left.set(xscale="log", xlabel="time over ours (right of 1: ours is faster)")
    ticks = [t for t in (0.1, 0.25, 0.5, 1, 2, 4, 8, 16, 32, 64, 128, 256) if _within(t, bars)]
    left.set_xticks(ticks, [f"{tick:g}" for tick in ticks])
    left.set_xticks([], minor=True)
    left.set_yticks(rows, [bar.label for bar in bars])
    if names:
        figure.legend(loc="outside upper center", ncols=min(4, len(names)), frameon=False)
    if right:
        right[0].barh(rows, [100 * (share or 0) for share in shares], color="tab:gray")
        right[0].set(xlabel=f"ours, % of {report.share}", xlim=(0, None))
    for panel in (left, *right):
        panel.grid(axis="x", alpha=0.3)
    figure.savefig(path, dpi=110)


def _names(bars: Iterable[Bar]) -> list[str]:
    return list(dict.fromkeys(name for bar in bars for name in bar.ratios))


def _within(tick: float, bars: Iterable[Bar]) -> bool:
    values = [1.0, *(ratio for bar in bars for ratio in bar.ratios.values())]
    return min(values) / 2 <= tick <= max(values) * 2

"""The command `icl list`."""

import difflib

from rich.table import Table

from ..analysis import studies
from ..experiments import PRESETS
from ..output import TABLE_WIDTH, console, show

USAGE = "usage: icl list [PART]: every preset and study, or those with PART in their name"


def main(arguments: list[str]) -> int:
    """Prints one line about each preset and study; returns the exit status."""
    if arguments in (["-h"], ["--help"]):
        print(USAGE)
        return 0
    lines = PRESETS.summaries()
    lines |= {name: f"{study.summary} (icl study)" for name, study in studies().items()}
    part = arguments[0] if arguments else ""
    chosen = {name: line for name, line in lines.items() if part in name}
    if len(arguments) > 1:
        raise ValueError(USAGE)
    if not chosen:
        near = difflib.get_close_matches(part, lines, n=3, cutoff=0.4)
        hint = f"; similar names are {', '.join(near)}" if near else ""
        raise ValueError(f"no preset or study has {part!r} in its name{hint}")
    table = Table(box=None, pad_edge=False)
    table.add_column("preset", no_wrap=True)
    table.add_column("what it is", no_wrap=not part, overflow="ellipsis" if not part else "fold")
    for name, line in chosen.items():
        table.add_row(name, line)
    if not part and console().is_terminal:
        console().print(table)
    else:
        show(table, width=10_000 if not part else TABLE_WIDTH)
    return 0

"""Numbers and tables as text."""

import numpy as np
from rich.console import Console
from rich.table import Table


def as_text(table: Table) -> str:
    """A table as plain text, 100 characters wide."""
    console = Console(width=100, color_system=None, markup=False, emoji=False)
    with console.capture() as capture:
        console.print(table)
    return capture.get()


def spread(count: int, most: int) -> np.ndarray:
    """At most `most` of the positions 0 to `count - 1`, evenly spaced, with the first and last."""
    return np.unique(np.linspace(0, count - 1, min(count, most)).round().astype(int))


def show_number(value: float) -> str:
    """A number with three decimals, as a power of ten if those suit it badly; a dash for NaN."""
    if np.isnan(value):
        return "–"
    return "0" if value < 5e-7 else f"{value:.3f}" if 1e-3 <= value < 1e3 else f"{value:.0e}"

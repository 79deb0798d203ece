"""What an evaluation or an analysis leaves behind: numbers in a file, a table, a figure."""

from .figures import STYLE, draw_rows, in_lines, pyplot, save_figure
from .opening import at_least_one, open_run
from .result import Result
from .tables import as_text, show_number, spread

__all__ = [
    "STYLE",
    "Result",
    "as_text",
    "at_least_one",
    "draw_rows",
    "in_lines",
    "open_run",
    "pyplot",
    "save_figure",
    "show_number",
    "spread",
]

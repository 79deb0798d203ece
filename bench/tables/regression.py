"""Tables of numbers to predict, the methods beside ours, and their scores."""

import time
from collections.abc import Callable, Collection
from functools import cache
from typing import Any

import numpy as np
from sklearn import datasets
from sklearn.dummy import DummyRegressor
from sklearn.ensemble import RandomForestRegressor
from sklearn.gaussian_process import GaussianProcessRegressor
from sklearn.gaussian_process.kernels import RBF, WhiteKernel
from sklearn.linear_model import Ridge
from sklearn.metrics import r2_score
from sklearn.neighbors import KNeighborsRegressor
from sklearn.preprocessing import StandardScaler

from .methods import SEED, filled, without_warnings_of_bounds
from .protocol import MOST_TEST_ROWS, SIZES, SPLITS, seed_of

ROWS = 600  # of a synthetic table
# Friedman's (1991) functions with the noise of Breiman (1996), "Bagging predictors", section 3.
SYNTHETIC: dict[str, Callable[[], tuple[np.ndarray, np.ndarray]]] = {
    "friedman 1": lambda: datasets.make_friedman1(ROWS, noise=1.0, random_state=1),
    "friedman 2": lambda: datasets.make_friedman2(ROWS, noise=125.0, random_state=2),
    "friedman 3": lambda: datasets.make_friedman3(ROWS, noise=0.1, random_state=3),
}
TABLES = ("diabetes", *SYNTHETIC)
METRIC = "r2"


class GaussianProcess(GaussianProcessRegressor):
    """`GaussianProcessRegressor` with a scale, an RBF kernel and noise, all fitted.

    Without noise, as in scikit-learn's default, it passes through all labels.
    """

    def fit(self, X: np.ndarray, y: np.ndarray) -> "GaussianProcess":
        self.kernel = 1.0 * RBF(np.sqrt(X.shape[1])) + WhiteKernel()
        with without_warnings_of_bounds():
            return super().fit(X, y)


METHODS: dict[str, Callable[[], Any]] = {
    "ridge": lambda: filled(StandardScaler(), Ridge()),
    "k-NN": lambda: filled(StandardScaler(), KNeighborsRegressor()),
    "random forest": lambda: filled(RandomForestRegressor(random_state=SEED)),
    "Gaussian process": lambda: filled(StandardScaler(), GaussianProcess(normalize_y=True)),
    "mean": lambda: DummyRegressor(),
}


@cache
def load(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Inputs float64 `[rows, columns]` and labels float64 `[rows]` of a table of `TABLES`."""
    if name == "diabetes":
        x, y = datasets.load_diabetes(return_X_y=True)
        return np.asarray(x, float), np.asarray(y, float)
    return SYNTHETIC[name]()


def score_regression(
    make_estimator: Callable[[], Any],
    tables: Collection[str] = TABLES,
    sizes: Collection[int] = SIZES,
    splits: int = SPLITS,
) -> tuple[dict[str, dict[str, dict[str, list[float]]]], float]:
    """R^2 over the test rows of each split.

    Args:
      make_estimator: returns an object with `fit` and `predict`; it is called for each split, and
        may return the same object each time.
      tables: names in `TABLES`.
      sizes: numbers of training rows.
      splits: number of splits of each table and size.

    Returns:
      The scores, see `protocol.Scores`, and the seconds that fits and predictions took.
    """
    scores, seconds = {}, 0.0
    for name in tables:
        x, y = load(name)
        for size in sizes:
            values = []
            for number in range(splits):
                order = np.random.default_rng(seed_of(name, size, number)).permutation(len(y))
                train, test = order[:size], order[size:][:MOST_TEST_ROWS]
                started = time.perf_counter()
                estimator = make_estimator()
                estimator.fit(x[train], y[train])
                predicted = estimator.predict(x[test])
                seconds += time.perf_counter() - started
                values.append(float(r2_score(y[test], predicted)))
            scores.setdefault(name, {})[str(size)] = {METRIC: values}
    return scores, seconds

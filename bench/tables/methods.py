"""The methods beside ours: scikit-learn's defaults and XGBoost's.

Missing values become the median of the training rows. Columns are standardised for the methods
that depend on the scale of a column: all but the trees and the class frequencies. Names are
one-hot (`protocol.score(one_hot=True)`). All run on one core.
"""

import contextlib
import warnings
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
from sklearn.base import BaseEstimator, ClassifierMixin
from sklearn.calibration import CalibratedClassifierCV
from sklearn.dummy import DummyClassifier
from sklearn.ensemble import RandomForestClassifier
from sklearn.exceptions import ConvergenceWarning
from sklearn.gaussian_process import GaussianProcessClassifier
from sklearn.gaussian_process.kernels import RBF
from sklearn.impute import SimpleImputer
from sklearn.linear_model import LogisticRegression
from sklearn.neighbors import KNeighborsClassifier
from sklearn.pipeline import make_pipeline
from sklearn.preprocessing import StandardScaler
from sklearn.svm import SVC

SEED = 0


def filled(*steps: BaseEstimator) -> Any:
    """A pipeline that puts the median of the training rows in place of missing values first."""
    return make_pipeline(SimpleImputer(strategy="median", keep_empty_features=True), *steps)


class CalibratedSVC(ClassifierMixin, BaseEstimator):
    """`SVC` with Platt's probabilities, as scikit-learn's `SVC(probability=True)` had them.

    The folds are five, or as many as the smallest class has rows, but at least two; the row of a
    class that has one is there twice.
    """

    def fit(self, x: np.ndarray, y: np.ndarray) -> "CalibratedSVC":
        """Fits inputs `[n, columns]` and labels `[n]`."""
        counts = np.unique(y, return_counts=True)[1]
        alone = np.isin(y, np.unique(y)[counts == 1])
        x, y = np.concatenate([x, x[alone]]), np.concatenate([y, y[alone]])
        folds = int(np.clip(counts.min(), 2, 5))
        self.model_ = CalibratedClassifierCV(
            SVC(),
            ensemble=False,  # pyright: ignore[reportArgumentType]
            cv=folds,
        ).fit(x, y)
        self.classes_ = self.model_.classes_
        return self

    def predict_proba(self, x: np.ndarray) -> np.ndarray:
        """Probabilities `[m, classes]`."""
        return self.model_.predict_proba(x)


@contextlib.contextmanager
def without_warnings_of_bounds() -> Iterator[None]:
    """Hides that a Gaussian process found a parameter of its kernel at the end of its range."""
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", ConvergenceWarning)
        yield


class GaussianProcess(GaussianProcessClassifier):
    """`GaussianProcessClassifier` with an RBF kernel that has a scale, both fitted.

    The length scale is fitted from the usual distance of two standardised rows. From 1, as in
    scikit-learn's default, it often ends where all predictions are equal: the accuracy on
    penbased at 128 rows is then 0.28 in place of 0.92.
    """

    def fit(self, X: np.ndarray, y: np.ndarray) -> "GaussianProcess":
        self.kernel = 1.0 * RBF(np.sqrt(X.shape[1]))
        with without_warnings_of_bounds():
            return super().fit(X, y)


def _xgboost() -> Any:
    from xgboost import XGBClassifier

    return filled(XGBClassifier(n_jobs=1, random_state=SEED, verbosity=0))


METHODS: dict[str, Callable[[], Any]] = {
    "logistic regression": lambda: filled(StandardScaler(), LogisticRegression()),
    "k-NN": lambda: filled(StandardScaler(), KNeighborsClassifier()),
    "random forest": lambda: filled(RandomForestClassifier(random_state=SEED)),
    "XGBoost": _xgboost,
    "SVM": lambda: filled(StandardScaler(), CalibratedSVC()),
    "Gaussian process": lambda: filled(StandardScaler(), GaussianProcess()),
    "class frequencies": lambda: DummyClassifier(strategy="prior"),
}

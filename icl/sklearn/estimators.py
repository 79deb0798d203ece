"""A classifier and a regressor that predict in context, by a trained learner of tables."""

from typing import Any, Literal, cast, get_args

import numpy as np
from scipy.special import softmax
from sklearn.base import BaseEstimator, ClassifierMixin, RegressorMixin
from sklearn.utils import check_random_state, gen_batches
from sklearn.utils.multiclass import check_classification_targets
from sklearn.utils.validation import check_is_fitted, validate_data

from ..ranges import SIZE, check_range
from ..tasks.labels import LEAST_PROBABILITY
from ..tasks.rows import deviations, standardised
from .members import Share, draw_members, scaled, shown
from .models import TableModel, table_model

ROWS_AT_ONCE = 4096  # bounds the memory of a prediction


class _InContext(BaseEstimator):
    """What classifier and regressor share: checks, scaling and the ensemble."""

    ranks: Share
    best_columns: Share

    def __init__(
        self,
        run: Any = None,
        *,
        ensemble: int = 8,
        ranks: Share = "half",
        best_columns: Share = "half",
        subsample: bool = True,
        random_state: Any = 0,
    ):
        self.run = run
        self.ensemble = ensemble
        self.ranks = ranks
        self.best_columns = best_columns
        self.subsample = subsample
        self.random_state = random_state

    def __sklearn_tags__(self):
        tags = super().__sklearn_tags__()
        tags.input_tags.allow_nan = True
        return tags

    def _check_parameters(self) -> None:
        check_range("ensemble", self.ensemble, SIZE)
        for name in ("ranks", "best_columns"):
            if getattr(self, name) not in get_args(Share):
                raise ValueError(
                    f"{name} must be one of {', '.join(get_args(Share))}; "
                    f"got {getattr(self, name)!r}"
                )

    def _store(
        self, x: np.ndarray, y: np.ndarray, model: TableModel, classes: int | None = None
    ) -> None:
        """Keeps the training rows and draws the members.

        Args:
          x: `[rows, columns]`.
          y: labels `[rows]`: int from 0 below the number of classes, or numbers.
          model: what the members are drawn for.
          classes: number of classes; None if labels are numbers.
        """
        if len(x) > model.rows and not self.subsample:
            raise ValueError(
                f"{len(x)} training rows are more than the {model.rows} that this model takes; "
                "give fewer, or set subsample=True to show each member of the ensemble some of them"
            )
        self._raw, self._x, self._y = x, scaled(x, x), y
        self._members = draw_members(
            self.ensemble,
            self._x,
            y,
            classes,
            most_rows=model.rows,
            most_columns=model.columns,
            most_classes=model.classes or 0,
            ranks=self.ranks,
            best_columns=self.best_columns,
            random=check_random_state(self.random_state),
        )

    def _predicted(self, x: np.ndarray, model: TableModel, labels: np.ndarray) -> np.ndarray:
        """Predictions of the members `[members, rows, ...]` for labels `[members, examples]`."""
        asked = scaled(self._raw, x)
        parts = []
        for part in gen_batches(len(asked), ROWS_AT_ONCE):
            context, queries = shown(self._members, self._x, asked[part], model.columns)
            parts.append(model.predict(context, labels, queries))
        return np.concatenate(parts, axis=1).astype(np.float64)

    def _checked(self, x: Any) -> np.ndarray:
        check_is_fitted(self)
        checked = validate_data(
            self, x, reset=False, dtype=np.float64, ensure_all_finite="allow-nan"
        )
        return cast("np.ndarray", checked)


class InContextClassifier(ClassifierMixin, _InContext):
    """Classifies rows of a table by a learner that is shown the training rows as its examples.

    `fit` trains nothing: it stores the rows. Each member of an ensemble is shown the table with its
    columns and its class numbers in another order, and their predictions are averaged. Values must
    be numbers; NaN is a missing value. `docs/tables.md` says what this is not good for.

    Args:
      run: a run of a family of tables that predicts classes, its folder, a file of exported
        weights, or a `TableModel`; None for the weights in this package.
      ensemble: number of members.
      ranks: the members that are shown normal scores of ranks in place of values: "none", "half" or
        "all".
      best_columns: the members that are shown the columns with the largest F statistic, each column
        alone, if there are more columns than the model takes: "none", "half" or "all". The others
        are shown random columns, each member its own.
      subsample: whether to show each member some of the training rows if there are more than the
        model takes. Classes keep their shares. If False, `fit` refuses such a table.
      average: whether to average "probabilities" or "logits"; logits give surer predictions.
      random_state: seed of the members, or a `RandomState`.

    Attributes:
      classes_: the class labels, in the order of the columns of `predict_proba`.
      n_features_in_: number of columns.
      feature_names_in_: names of the columns, if the training table has names.
    """

    def __init__(
        self,
        run: Any = None,
        *,
        ensemble: int = 8,
        ranks: Share = "half",
        best_columns: Share = "half",
        subsample: bool = True,
        average: Literal["probabilities", "logits"] = "logits",
        random_state: Any = 0,
    ):
        super().__init__(
            run,
            ensemble=ensemble,
            ranks=ranks,
            best_columns=best_columns,
            subsample=subsample,
            random_state=random_state,
        )
        self.average = average

    def fit(self, X: Any, y: Any) -> "InContextClassifier":
        """Stores the training table.

        Args:
          X: numbers `[rows, columns]`; NaN marks a missing value.
          y: class labels `[rows]`.

        Raises:
          ValueError: a parameter, X or y has values that are not allowed, there are more classes
            than the model has, or more rows than it takes and `subsample` is False.
          RunError: the run cannot be read, or was not trained on tables.
        """
        X, y = validate_data(self, X, y, dtype=np.float64, ensure_all_finite="allow-nan")
        check_classification_targets(y)
        self._check_parameters()
        if self.average not in ("probabilities", "logits"):
            raise ValueError(f"average must be probabilities or logits; got {self.average!r}")
        self.classes_, numbers = np.unique(y, return_inverse=True)
        model = table_model(self.run, "class")
        assert model.classes is not None
        if len(self.classes_) > model.classes:
            raise ValueError(
                f"y has {len(self.classes_)} classes, and this model takes {model.classes}; give "
                "fewer, or a run with more"
            )
        self._store(X, numbers, model, len(self.classes_))
        return self

    def predict_proba(self, X: Any) -> np.ndarray:
        """Probabilities float64 `[rows, classes]`, in the order of `classes_`.

        Args:
          X: numbers `[rows, columns]`; NaN marks a missing value.
        """
        X = self._checked(X)
        if len(self.classes_) == 1:
            return np.ones((len(X), 1))
        shown_as = np.stack([member.classes for member in self._members])
        labels = [member.classes[self._y[member.rows]] for member in self._members]
        model = table_model(self.run, "class")
        found = self._predicted(X, model, np.stack(labels).astype(np.int32))
        found = np.take_along_axis(found, shown_as[:, None, :], axis=2)
        if self.average == "logits":
            return softmax(np.log(np.maximum(found, LEAST_PROBABILITY)).mean(axis=0), axis=1)
        mean = found.mean(axis=0)
        return mean / mean.sum(axis=1, keepdims=True)

    def predict(self, X: Any) -> np.ndarray:
        """The most probable class label of each row `[rows]`; X as for `predict_proba`."""
        most = self.predict_proba(X).argmax(axis=1)
        return self.classes_[most]


class InContextRegressor(RegressorMixin, _InContext):
    """Predicts a number for rows of a table; everything else as `InContextClassifier`.

    Labels are shown to the model with mean 0 and standard deviation 1 over the training rows, and
    those beyond 4 deviations drawn in, as in training. The prediction is the mean of the members'
    predictions, in the scale of the labels.

    Args:
      run: a run of a family of tables that predicts numbers, its folder, a file of exported
        weights, or a `TableModel`; None for the weights in this package.
      ensemble: number of members.
      ranks: as for `InContextClassifier`.
      best_columns: as for `InContextClassifier`.
      subsample: whether to show each member random training rows if there are more than the model
        takes. If False, `fit` refuses such a table.
      random_state: seed of the members, or a `RandomState`.

    Attributes:
      n_features_in_: number of columns.
      feature_names_in_: names of the columns, if the training table has names.
    """

    def fit(self, X: Any, y: Any) -> "InContextRegressor":
        """Stores the training table.

        Args:
          X: numbers `[rows, columns]`; NaN marks a missing value.
          y: numbers `[rows]`.

        Raises:
          ValueError: a parameter, X or y has values that are not allowed, or there are more rows
            than the model takes and `subsample` is False.
          RunError: the run cannot be read, or was not trained on tables.
        """
        X, y = validate_data(
            self, X, y, dtype=np.float64, ensure_all_finite="allow-nan", y_numeric=True
        )
        self._check_parameters()
        self._store(X, np.asarray(y, np.float64), table_model(self.run, "number"))
        return self

    def predict(self, X: Any) -> np.ndarray:
        """Predicted numbers float64 `[rows]`.

        Args:
          X: numbers `[rows, columns]`; NaN marks a missing value.
        """
        X = self._checked(X)
        y = np.stack([self._y[member.rows] for member in self._members])
        mean, deviation = y.mean(axis=1, keepdims=True), y.std(axis=1, keepdims=True)
        z = (y - mean) / np.where(deviation > 0, deviation, 1)
        labels = np.nan_to_num(standardised(np, z[..., None], np.ones_like(z, bool))[..., 0])
        model = table_model(self.run, "number")
        found = self._predicted(X, model, labels.astype(np.float32))
        return (mean + deviation * deviations(np, found)).mean(axis=0)

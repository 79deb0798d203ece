"""Scikit-learn estimators that predict in context, with a trained learner of tables."""

from .estimators import InContextClassifier, InContextRegressor
from .models import TableModel, table_model

__all__ = ["InContextClassifier", "InContextRegressor", "TableModel", "table_model"]

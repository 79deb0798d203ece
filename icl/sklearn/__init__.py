"""Scikit-learn estimators that predict in context, with a trained learner of tables."""

try:
    from .estimators import InContextClassifier, InContextRegressor
    from .models import TableModel, table_model
except ModuleNotFoundError as error:
    if error.name and error.name.split(".")[0] == "icl":
        raise
    raise ModuleNotFoundError(
        f"icl.sklearn needs the package {error.name}: pip install 'fused-icl[train]'"
    ) from error

__all__ = ["InContextClassifier", "InContextRegressor", "TableModel", "table_model"]

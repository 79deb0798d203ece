"""Predictions on real tables, beside scikit-learn's defaults and XGBoost."""

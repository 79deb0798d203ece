"""Gradient-boosted trees, fitted on the host to every prefix of every prompt."""

from collections.abc import Sequence

import numpy as np


def boosting(
    x: np.ndarray,
    y: np.ndarray,
    *,
    trees: int = 50,
    depth: int = 4,
    learning_rate: float = 0.1,
    positions: Sequence[int] | None = None,
) -> np.ndarray:
    """Predictions of XGBoost's regressor, as in Garg et al. 2022 (appendix A.3).

    The defaults here are Garg et al.'s; other settings are XGBoost's defaults. The function cannot
    be jitted. It makes B * len(positions) fits, each of which takes milliseconds.

    Args:
      x: points `[B, P, D]`.
      y: labels `[B, P]`.
      trees: number of trees in a fit.
      depth: largest depth of a tree.
      learning_rate: factor on the predictions of each tree.
      positions: numbers of points of the prefixes to fit; None for all.

    Returns:
      `[B, P]`: entry i predicts y_i at x_i from the i points before it; 0 if i is 0, NaN if i is
      not in `positions`.

    Raises:
      ModuleNotFoundError: XGBoost is not installed.
      ValueError: a position that the prompts do not have.
    """
    try:
        from xgboost import XGBRegressor
    except ModuleNotFoundError as error:
        raise ModuleNotFoundError(
            "boosting needs XGBoost: pip install 'fused-icl[baselines]'", name="xgboost"
        ) from error
    x, y = np.asarray(x), np.asarray(y)
    points = x.shape[1]
    chosen = range(points) if positions is None else sorted(set(positions))
    if any(not 0 <= k < points for k in chosen):
        raise ValueError(f"positions {list(chosen)} must be within 0 to {points - 1}")
    predictions = np.full(y.shape, np.nan, y.dtype)
    for b in range(len(x)):
        for k in chosen:
            if k == 0:
                predictions[b, k] = 0
                continue
            # With so few points, threads cost more time than they save.
            model = XGBRegressor(
                n_estimators=trees, max_depth=depth, learning_rate=learning_rate, n_jobs=1
            )
            model.fit(x[b, :k], y[b, :k])
            predictions[b, k] = model.predict(x[b, k : k + 1])[0]
    return predictions

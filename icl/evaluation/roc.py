"""The area under ROC curves of predicted classes."""

import numpy as np
from scipy.stats import rankdata


def mean_area(scores: np.ndarray, y: np.ndarray) -> float:
    """The mean over classes of the area under the ROC curve of a class against all others.

    It comes from the ranks, as Mann and Whitney's statistic, and is that of scikit-learn's
    `roc_auc_score`, which spends most of its time on checks.

    Args:
      scores: `[m, classes]`; higher for a class that is more likely.
      y: int `[m]`.

    Returns:
      The mean over the classes that `y` has; NaN if it has one, so that there is nothing to rank.
    """
    present = np.unique(y)
    if len(present) < 2:
        return np.nan
    is_class = y[:, None] == present
    count = is_class.sum(axis=0)
    ranks = (rankdata(scores[:, present], axis=0) * is_class).sum(axis=0)
    areas = (ranks - count * (count + 1) / 2) / (count * (len(y) - count))
    return float(areas.mean())

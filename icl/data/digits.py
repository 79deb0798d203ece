"""Handwritten digits that come with scikit-learn: 1,797 grey images of 8 x 8 pixels."""

from typing import Any

import numpy as np

from .image_set import ImageSet, checked


def load_digits() -> ImageSet:
    """The digits (Alpaydin and Kaynak 1998), with grey levels from 0 to 16 scaled to 0 to 255."""
    from sklearn.datasets import load_digits as load

    found: Any = load()
    images = np.round(found["images"] * (255 / 16)).astype(np.uint8)
    return checked(images, found["target"], "scikit-learn's digits")

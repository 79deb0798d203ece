"""Random images: a set on which any learner can only memorise."""

import numpy as np

from .image_set import ImageSet, checked

CLASSES = 10
EACH = 2  # images of a class


def random_images(size: int, channels: int) -> ImageSet:
    """Twenty images of uniform noise, two of each of ten classes, always the same ones.

    They stand for the set "Random" of Kirsch et al. 2022 (arXiv 2212.04458), which a learner
    classifies without error once it has seen the images.
    """
    drawn = np.random.default_rng(0).integers(0, 256, (CLASSES * EACH, size, size, channels))
    return checked(drawn.astype(np.uint8), np.arange(CLASSES * EACH) % CLASSES, "random")

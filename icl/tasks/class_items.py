"""Items of classes: of files, or drawn on the device from Gaussian classes and strokes.

A class is a number. The bits of a built-in class depend only on its number, so that training and
evaluation see the same classes, and there is no end of them.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np

from . import glyphs
from .draws import normal_at, uniform_at

TRANSFORMS = 8  # flips and quarter turns of a square
_COLUMNS = 2**10  # columns of an item in the table of its class, as for `uniform_at`


def class_key() -> jax.Array:
    """The key that defines all built-in classes."""
    return jax.random.key(2205_05055, impl="threefry2x32")


def gaussians(
    key: jax.Array, classes: jax.Array, items: jax.Array | None, dim: int, spread: float
) -> jax.Array:
    """x = (mu_c + spread * eta) / sqrt(1 + spread^2), with mu_c and eta ~ N(0, I), `[P, dim]`.

    Reddy 2023 (arXiv 2312.03002, section 2) divides mu and eta by sqrt(dim) as well.

    Args:
      key: key of the items, which are row 0 of its table; see `normal_at`.
      classes: int `[P]`.
      items: numbers of the items in their classes, int `[P]`; None for new items.
      dim: number of coordinates, below 2^10.
      spread: standard deviation of items about the mean of their class, over that of means.
    """
    means = jax.vmap(lambda one: normal_at(class_key(), dim, row=one))(classes)
    noise = _numbers_of_items(key, classes, items, dim)
    return (means + spread * noise) / (1 + spread**2) ** 0.5


def drawings(
    key: jax.Array, classes: jax.Array, items: jax.Array | None, size: int, spread: float
) -> jax.Array:
    """Procedural glyphs, uint8 `[P, size, size]`; arguments as for `gaussians`."""
    noise = _numbers_of_items(key, classes, items, glyphs.JITTER)

    def one(number: jax.Array, jitter: jax.Array) -> jax.Array:
        points, drawn = glyphs.strokes(uniform_at(class_key(), glyphs.NUMBERS, row=number))
        return glyphs.draw(glyphs.jittered(points, jitter, spread), drawn, size)

    return jax.vmap(one)(classes, noise)


def _numbers_of_items(
    key: jax.Array, classes: jax.Array, items: jax.Array | None, count: int
) -> jax.Array:
    """Normal numbers `[P, count]` that distinguish items of a class."""
    if items is None:
        return normal_at(key, len(classes) * count).reshape(len(classes), count)
    at = lambda one, item: normal_at(class_key(), count, _COLUMNS * (item + 1), one)
    return jax.vmap(at)(classes, items)


def transformed(images: jax.Array, which: jax.Array) -> jax.Array:
    """Square images `[P, size, size]`, each under one of the 8 flips and turns, int `[P]`.

    Transform 4 f + k turns an image, mirrored left to right if f is 1, by k quarters of a circle
    against the clock, in the order of Chan et al.'s code.
    """
    flat = images.reshape(len(images), -1)
    # A gather: a chain of flips would be computed anew for each pixel of each of its branches.
    table = jnp.asarray(_sources(images.shape[1]))
    return jnp.take_along_axis(flat, table[which], axis=1).reshape(images.shape)


@functools.lru_cache(maxsize=8)
def _sources(size: int) -> np.ndarray:
    """Where each pixel of each transform comes from, int32 `[TRANSFORMS, size^2]`."""
    pixels = np.arange(size**2, dtype=np.int32).reshape(size, size)
    mirrored = (pixels, np.fliplr(pixels))
    return np.stack([np.rot90(one, turns).ravel() for one in mirrored for turns in range(4)])


def noisy(key: jax.Array, images: jax.Array, deviation: float) -> jax.Array:
    """Images of bytes as numbers from 0 to 1, with normal noise; float32.

    The noise is row 1 of the key's table; see `normal_at`.
    """
    noise = normal_at(key, images.size, row=1).reshape(images.shape)
    return images.astype(jnp.float32) / 255 + deviation * noise


def random_pixels(key: jax.Array, classes: jax.Array, size: int) -> jax.Array:
    """Images of black and white pixels, uint8 `[P, size, size]`, equal for equal classes.

    They are rows 2 and later of the key's table; see `uniform_at`.
    """
    first = (classes[:, None] == classes[None]).argmax(axis=1)
    numbers = jax.vmap(lambda row: uniform_at(key, size**2, row=2 + row))(first)
    return jnp.where(numbers < 0.5, 0, 255).astype(jnp.uint8).reshape(-1, size, size)

"""Procedural characters: a class is a key, and each drawing of the class is a jittered copy.

They stand for Omniglot (Lake et al. 2015) where no files are at hand: as there, a class is a few
pen strokes, and its drawings differ in the positions, slants and curvatures of these strokes.
"""

import jax
import jax.numpy as jnp
import numpy as np

STROKES = 3
CONTROLS = 3  # control points of a stroke, which is a quadratic Bézier curve
CORNERS = 7  # points of the polygon that approximates a stroke
PEN = 0.045  # half of the width of a stroke, as a share of the image's side
EDGE = 0.03  # width of the grey edge of a stroke
NUMBERS = STROKES * CONTROLS * 2 + STROKES  # uniform numbers that define a class
JITTER = STROKES * CONTROLS * 2 + 6  # normal numbers that define a drawing


def strokes(numbers: jax.Array) -> tuple[jax.Array, jax.Array]:
    """The strokes of a class.

    Args:
      numbers: uniform in [0, 1), `[NUMBERS]`.

    Returns:
      Control points `[STROKES, CONTROLS, 2]` in the unit square, and whether a stroke is drawn,
      bool `[STROKES]`; the first two always are.
    """
    points, drawn = numbers[:-STROKES], numbers[-STROKES:]
    points = 0.12 + 0.76 * points.reshape(STROKES, CONTROLS, 2)
    return points, (drawn < 0.6) | (jnp.arange(STROKES) < 2)


def jittered(points: jax.Array, numbers: jax.Array, spread: float) -> jax.Array:
    """Control points of one drawing: each is moved, and all are turned, scaled and shifted.

    Args:
      points: `[STROKES, CONTROLS, 2]`.
      numbers: standard normal, `[JITTER]`.
      spread: standard deviation of the moves, as a share of the image's side.
    """
    own, shared = numbers[:-6].reshape(points.shape), numbers[-6:]
    turn = jnp.eye(2) + 2 * spread * shared[:4].reshape(2, 2)
    moved = points + spread * own - 0.5
    turned = (moved[..., None, :] * turn[None, None]).sum(axis=-1)
    return turned + 0.5 + spread * shared[None, None, 4:]


def draw(points: jax.Array, drawn: jax.Array, size: int) -> jax.Array:
    """An image, uint8 `[size, size]`, with strokes of 255 on 0.

    Args:
      points: control points `[STROKES, CONTROLS, 2]`, x to the right and y down.
      drawn: whether a stroke is drawn, bool `[STROKES]`.
      size: height and width.
    """
    t = np.linspace(0, 1, CORNERS, dtype=np.float32)[:, None]
    weights = np.concatenate([(1 - t) ** 2, 2 * t * (1 - t), t**2], axis=1)
    corners = (jnp.asarray(weights)[None, :, :, None] * points[:, None]).sum(axis=2)
    start, end = corners[:, :-1].reshape(-1, 2), corners[:, 1:].reshape(-1, 2)
    along = end - start
    length = (along**2).sum(axis=1)
    pixel = (np.arange(size, dtype=np.float32) + 0.5) / size
    x, y = jnp.asarray(pixel)[None, None, :], jnp.asarray(pixel)[None, :, None]
    column = lambda vector: vector[:, None, None]
    from_x, from_y = x - column(start[:, 0]), y - column(start[:, 1])
    at = from_x * column(along[:, 0]) + from_y * column(along[:, 1])
    at = jnp.clip(at / column(jnp.maximum(length, 1e-8)), 0, 1)
    off_x, off_y = from_x - at * column(along[:, 0]), from_y - at * column(along[:, 1])
    shown = jnp.repeat(drawn, CORNERS - 1)
    squared = jnp.where(column(shown), off_x**2 + off_y**2, 4.0).min(axis=0)
    # A drawing finer than a pixel would have gaps.
    pen = max(PEN, 0.5 / size)
    ink = jnp.clip((pen + max(EDGE, 0.5 / size) - jnp.sqrt(squared)) / EDGE, 0, 1)
    return jnp.round(255 * ink).astype(jnp.uint8)

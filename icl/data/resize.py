"""Images of one size and one number of channels."""

import numpy as np

GREY = np.array([0.299, 0.587, 0.114])  # luma of red, green and blue (ITU-R BT.601)


def as_images(images: np.ndarray, size: int, channels: int) -> np.ndarray:
    """Resizes images and converts between grey and colour.

    Args:
      images: uint8 `[N, height, width, 1]`, or 3 channels for red, green and blue.
      size: height and width of the result. Pixels are averaged to make an image smaller, and
        interpolated to make it larger.
      channels: 1 for the luma of colours, 3 to repeat grey.

    Returns:
      uint8 `[N, size, size, channels]`.

    Raises:
      ValueError: images have neither 1 nor 3 channels, or another number of channels was asked for.
    """
    from PIL import Image

    if channels not in (1, 3) or images.shape[-1] not in (1, 3):
        raise ValueError(
            f"images have 1 channel (grey) or 3 (colour); there are {images.shape[-1]}, and "
            f"{channels} were asked for"
        )
    if channels == 1 and images.shape[-1] == 3:
        images = np.round(images @ GREY).astype(np.uint8)[..., None]
    if images.shape[1:3] != (size, size):
        smaller = size < max(images.shape[1:3])
        how = Image.Resampling.BOX if smaller else Image.Resampling.BILINEAR
        flat = images[..., 0] if images.shape[-1] == 1 else images
        resized = [np.asarray(Image.fromarray(one).resize((size, size), how)) for one in flat]
        images = np.stack(resized).reshape(len(images), size, size, -1)
    return np.repeat(images, channels, axis=-1) if images.shape[-1] < channels else images

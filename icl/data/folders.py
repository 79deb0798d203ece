"""Folders of image files, one folder for each class."""

from pathlib import Path

import numpy as np

from .image_set import ImageSet, checked
from .resize import as_images

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".gif", ".tif", ".tiff")


def load_folders(path: Path, size: int, channels: int) -> ImageSet:
    """The images in `path/CLASS/*.png` (or another of `ENDINGS`), classes in the order of names.

    Args:
      path: the folder.
      size: height and width that each image is resized to.
      channels: 1 to make images grey, 3 for colours.

    Raises:
      ValueError: the folder has no images in folders, or an image cannot be read.
    """
    from PIL import Image, UnidentifiedImageError

    images, labels = [], []
    classes = sorted(folder for folder in path.iterdir() if folder.is_dir())
    for label, folder in enumerate(classes):
        files = sorted(file for file in folder.iterdir() if file.suffix.lower() in ENDINGS)
        if not files:
            raise ValueError(f"{folder}: there are no images ({', '.join(ENDINGS)})")
        for file in files:
            try:
                with Image.open(file) as opened:
                    if opened.mode[:1] in "IF":  # more than a byte a pixel
                        raise ValueError(
                            f"{file}: the image has numbers of the mode {opened.mode}; save it "
                            "with 8 bits a channel"
                        )
                    image = np.asarray(opened.convert("L" if channels == 1 else "RGB"))
            except (UnidentifiedImageError, OSError, SyntaxError) as error:
                raise ValueError(f"{file}: the image cannot be read ({error})") from error
            image = image[None, ..., None] if image.ndim == 2 else image[None]
            images.append(as_images(image, size, channels)[0])
            labels.append(label)
    if not images:
        raise ValueError(
            f"{path}: the folder has neither MNIST's files (...images-idx3-ubyte) nor a folder of "
            "images for each class"
        )
    return checked(np.stack(images), np.array(labels), path)

"""Images in trees of folders, a folder for each class, unpacked or in zip files."""

import io
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from .image_set import ImageSet, checked
from .resize import as_images
from .trees import DAMAGE, ENDINGS, opened, roots


def load_trees(paths: Sequence[Path], size: int, channels: int) -> ImageSet:
    """The images of trees, read together: folders, zip files, or folders that hold zip files.

    A class is a folder, at any depth below the top, that holds image files (see `ENDINGS`). It is
    named by the folders on the way to it. Classes are in the order of their names, and the images
    of a class in that of the names of their files, whatever tree they come from. Hidden files and
    `__MACOSX` are left out.

    Omniglot (Lake, Salakhutdinov and Tenenbaum 2015) has `images_background/Greek/character01/`
    and the like. Where there are folders whose names begin with `images_background` or
    `images_evaluation`, only images in them count, and their classes are named by what is below,
    `Greek/character01`: one class, though two zip files have it. An image of a class that has the
    name of one already read is not taken twice.

    A folder that holds zip files with images means all of these, and Omniglot's folders beside
    them; its other folders are left out.

    Args:
      paths: the trees.
      size: height and width that each image is resized to.
      channels: 1 to make images grey, 3 for colours.

    Returns:
      Images uint8 `[N, size, size, channels]`.

    Raises:
      OSError: a zip file or a folder cannot be read.
      ValueError: a tree has no images in folders, or a folder no images; a zip file or an image is
        damaged; or two images of a class have one name and differ.
    """
    taken: dict[tuple[tuple[str, ...], str], tuple[np.ndarray, str]] = {}
    for root in [root for path in paths for root in roots(path)]:
        with opened(root) as (files, read):
            if not files:
                raise ValueError(f"{root}: {_nothing(root)}")
            for kind, name, path in files:
                where = f"{root}/{path}"
                if not name:
                    raise ValueError(f"{where[:-1]}: there are no images ({', '.join(ENDINGS)})")
                try:
                    raw = read(path)
                except DAMAGE as error:
                    raise ValueError(f"{where}: the file cannot be read ({error})") from error
                image = _decoded(raw, where, size, channels)
                first, other = taken.setdefault((kind, name), (image, where))
                # Two parts of a set that number their images alike must not lose the second's.
                if not np.array_equal(image, first):
                    raise ValueError(
                        f"{where} is another image than {other}, with the same name in the same "
                        f"class, {'/'.join(kind)}: rename one"
                    )
    kinds = sorted({kind for kind, _ in taken})
    number = {kind: label for label, kind in enumerate(kinds)}
    images = np.stack([taken[key][0] for key in sorted(taken)])
    labels = np.array([number[kind] for kind, _ in sorted(taken)])
    return checked(images, labels, ", ".join(map(str, paths)))


def _nothing(root: Path) -> str:
    """Says that a tree has no images."""
    if not root.is_dir():
        return f"the zip file has no images ({', '.join(ENDINGS)}) in folders, one for each class"
    return (
        "the folder has neither MNIST's files (...images-idx3-ubyte) nor a folder of images for "
        "each class, nor zip files of such folders"
    )


def _decoded(raw: bytes, where: str, size: int, channels: int) -> np.ndarray:
    """The pixels of a file, uint8 `[size, size, channels]`."""
    from PIL import Image

    try:
        found = Image.open(io.BytesIO(raw))
        image = np.asarray(found.convert("L" if channels == 1 else "RGB"))
    except (*DAMAGE, Image.DecompressionBombError) as error:
        raise ValueError(f"{where}: the image cannot be read ({error})") from error
    if found.mode[:1] in "IF":  # more than a byte a pixel
        raise ValueError(
            f"{where}: the image has numbers of the mode {found.mode}; save it with 8 bits a "
            "channel"
        )
    return as_images(image.reshape(1, *image.shape[:2], -1), size, channels)[0]

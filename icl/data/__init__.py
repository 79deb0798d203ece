"""Labelled images from files, and sets that need no file."""

from .bank import STRIDES, ImageBank, Part, load_bank
from .image_set import ImageSet
from .load import BUILT_IN, data_files, load_images

__all__ = [
    "BUILT_IN",
    "STRIDES",
    "ImageBank",
    "ImageSet",
    "Part",
    "data_files",
    "load_bank",
    "load_images",
]

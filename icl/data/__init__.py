"""Labelled images from files, and sets that need no file."""

from .image_set import ImageSet
from .load import BUILT_IN, data_files, load_images

__all__ = ["BUILT_IN", "ImageSet", "data_files", "load_images"]

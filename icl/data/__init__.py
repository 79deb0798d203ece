"""Labelled images from files, and sets that need no file."""

from .bank import STRIDES, ImageBank, Part, load_bank
from .classes import ORDER_SEED, ClassBank, load_classes
from .image_set import ImageSet
from .load import BUILT_IN, data_files, load_images, stamps

__all__ = [
    "BUILT_IN",
    "ORDER_SEED",
    "STRIDES",
    "ClassBank",
    "ImageBank",
    "ImageSet",
    "Part",
    "data_files",
    "load_bank",
    "load_classes",
    "load_images",
    "stamps",
]

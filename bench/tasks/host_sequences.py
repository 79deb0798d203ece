"""Class sequences in NumPy on the host, made as Chan et al.'s public code makes them.

A Python generator makes one sequence at a time. Each draw of classes is a call of
`np.random.choice` with the weights of all classes. The images of a class are a list of float
arrays, from which the items of a sequence are gathered class by class. Images stay float32; the
public code has float64 in between.
"""

import random
from collections.abc import Iterator

import jax
import jax.numpy as jnp
import numpy as np

from icl.tasks import ClassSequences
from icl.tasks.class_items import class_key, drawings
from icl.tasks.class_sequences import GLYPH_SPREAD
from icl.training.data import load_data

from .cases import OMNIGLOT

Images = dict[int, list[np.ndarray]]  # of each class, float32 [size, size, 1] from 0 to 1
Made = tuple[np.ndarray, np.ndarray]  # items and labels of a sequence


def load_images(family: ClassSequences) -> Images | None:
    """The images of all classes; None for symbols. Glyphs are drawn here, once for all."""
    if family.source[0] == "symbols":
        return None
    if family.is_built_in:
        each = jnp.arange(OMNIGLOT[1])
        draw = lambda one: drawings(
            class_key(), jnp.full_like(each, one), each, family.size, GLYPH_SPREAD
        )
        drawn = np.asarray(jax.lax.map(draw, jnp.arange(family.classes)))
        return {one: _as_floats(images) for one, images in enumerate(drawn)}
    bank = load_data(family)
    places = enumerate(zip(bank.first, bank.first + bank.count))
    return {one: _as_floats(bank.items[low:high]) for one, (low, high) in places}


def _as_floats(images: np.ndarray) -> list[np.ndarray]:
    return list(images[..., None].astype(np.float32) / 255)


class SequenceMaker:
    """Makes bursty sequences, or sequences without support, of training classes.

    Args:
      family: the settings; labels are ordered, and bursts of the Zipf distribution.
      images: those of all classes; None to give the numbers of classes and items in their place.
    """

    def __init__(self, family: ClassSequences, images: Images | None):
        self.family, self.images = family, images
        self.classes = list(range(family.rare + family.common))
        ranks = np.arange(len(self.classes), 0, -1, dtype=float)
        self.weights = ranks**-family.zipf_exponent / np.sum(ranks**-family.zipf_exponent)

    def sequences(self) -> Iterator[Made]:
        """Sequences of the family's kind, without end."""
        return self._bursty() if self.family.sequences == "bursty" else self._no_support()

    def _bursty(self) -> Iterator[Made]:
        family = self.family
        more = family.points - family.shots * family.ways - 1
        few_shots, rest = self._few_shots(), self._independent(more)
        others = self._independent(family.points)
        while True:
            if random.uniform(0, 1) >= family.p_bursty:
                yield next(others)
                continue
            x, y = (np.concatenate(both) for both in zip(next(rest), next(few_shots)))
            yield _with_context_shuffled(x, y)

    def _few_shots(self) -> Iterator[Made]:
        ways, shots = self.family.ways, self.family.shots
        while True:
            chosen = self._choose(ways, replace=self.family.repeated_ways).tolist()
            query = random.choice(range(ways))
            labels = np.array(chosen * shots + [chosen[query]], np.int32)
            classes = [self.classes[i] for i in labels]
            yield _with_context_shuffled(self._items(classes), labels)

    def _independent(self, count: int) -> Iterator[Made]:
        while True:
            chosen = self._choose(count)
            np.random.shuffle(chosen)
            yield self._items([self.classes[i] for i in chosen]), chosen.astype(np.int32)

    def _no_support(self) -> Iterator[Made]:
        while True:
            query = self._choose(1)
            left = np.delete(range(len(self.classes)), query)
            weights = np.delete(self.weights, query)
            weights /= np.sum(weights)
            context = np.random.choice(left, size=self.family.points - 1, p=weights)
            np.random.shuffle(context)
            chosen = np.concatenate([context, query])
            yield self._items([self.classes[i] for i in chosen]), chosen.astype(np.int32)

    def _choose(self, count: int, replace: bool = True) -> np.ndarray:
        return np.random.choice(range(len(self.classes)), count, replace=replace, p=self.weights)

    def _items(self, sequence: list[int]) -> np.ndarray:
        """Items without repetition within a class."""
        classes, images = np.array(sequence), self.images
        if images is None:
            found = np.zeros((len(classes), 2), np.int32)
            found[:, 0] = classes
        else:
            found = np.zeros((len(classes), *images[sequence[0]][0].shape), np.float32)
        for one in np.unique(classes):
            here = classes == one
            count = OMNIGLOT[1] if images is None else len(images[one])
            chosen = np.random.choice(count, size=np.sum(here), replace=False)
            if images is None:
                found[here, 1] = chosen
            else:
                found[here] = np.array(images[one])[chosen]
        return found


def _with_context_shuffled(x: np.ndarray, y: np.ndarray) -> Made:
    order = np.arange(len(y) - 1)
    np.random.shuffle(order)
    x[:-1], y[:-1] = x[order], y[order]
    return x, y

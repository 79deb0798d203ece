"""What the samplers draw: every family at its paper's size, and more cases of class sequences."""

import dataclasses
from collections.abc import Collection
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np

from icl.tasks import FAMILIES, ClassSequences, Data, Difficulty, Episode, TaskFamily
from icl.tasks.class_draws import Uniforms, items
from icl.tasks.sequence_kinds import Sequence

OMNIGLOT = (1623, 20)  # numbers of classes and of images of each
IMAGES = "class_sequences/images"


@dataclasses.dataclass(frozen=True)
class ClassIndices(ClassSequences):
    """Sequences whose inputs are the numbers of classes and of their items, `[points, 2]`."""

    source: tuple[str, ...] = ("symbols",)
    repeated_ways: bool = True

    def sample_episode(
        self, key: jax.Array, task: Sequence, difficulty: Difficulty, data: Data = None
    ) -> Episode:
        episode = super().sample_episode(key, task, difficulty, data)
        count = jnp.full(self.points, OMNIGLOT[1])
        chosen = items(Uniforms(key)(self.points), task.classes, count)
        return episode._replace(x=jnp.stack([task.classes, chosen], axis=1))


CASES: dict[str, TaskFamily] = {name: family() for name, family in FAMILIES.items()} | {
    "class_sequences/indices": ClassIndices(),
    "class_sequences/indices-zipf": ClassIndices(zipf_exponent=1.0),
    "class_sequences/no-support": ClassIndices(sequences="no_support_zipfian", zipf_exponent=1.0),
    IMAGES: ClassSequences(source=("omniglot",), size=105, repeated_ways=True),
}

File = tuple[str, int]  # the path of a file of images, and their height and width


def make_files(names: Collection[str], folder: Path, size: int) -> dict[str, File | None]:
    """The cases with the files that they need, made in a folder: random images in classes."""
    path = folder / "images.npz"
    if IMAGES in names:
        classes, each = OMNIGLOT
        pixels = np.random.default_rng(0).bytes(classes * each * size**2)
        images = np.frombuffer(pixels, np.uint8).reshape(-1, size, size)
        np.savez(path, images=images, labels=np.repeat(np.arange(classes), each))
    return {name: (str(path), size) if name == IMAGES else None for name in names}


def family_of(name: str, file: File | None) -> TaskFamily:
    """The family of a case, which reads the file if there is one."""
    family = CASES[name]
    if file:
        family = dataclasses.replace(family, source=(file[0],), size=file[1])
    return family

"""Labels of numbered classes: own, shared, several a class, or those of the files."""

import dataclasses
from typing import Literal

import jax
import jax.numpy as jnp

Labelling = Literal["ordered", "unfixed", "polysemous", "original"]


@dataclasses.dataclass(frozen=True)
class ClassLabels:
    """The labels that classes have in training, whatever a context says.

    Classes are numbered: first the rare, then the common, then the held-out ones.
    """

    rare: int
    """Number of rare classes."""
    common: int
    """Number of common classes."""
    holdout: int
    """Number of classes that training does not show."""
    labelling: Labelling = "ordered"
    """Ordered and unfixed: class c has the label c. Polysemous: a rare class has several labels.
    Original: the place of the class in the files."""
    polysemy: int = 1
    """Number of labels of a rare class if labels are polysemous."""
    labels: int | None = None
    """Number of labels, of which class c has the label c mod labels; None if none is shared."""

    @property
    def number(self) -> int:
        """Number of labels, at least 2."""
        if self.labels is not None:
            return self.labels
        classes = self.rare + self.common + self.holdout
        return max(2, classes + self.rare * (self._each - 1))

    @property
    def _each(self) -> int:
        return self.polysemy if self.labelling == "polysemous" else 1

    def of(
        self,
        classes: jax.Array,
        numbers: jax.Array | None = None,
        original: jax.Array | None = None,
    ) -> jax.Array:
        """The labels of classes, int32 of their shape.

        Args:
          classes: numbers of classes.
          numbers: uniform in [0, 1), which choose among the labels of a class; None for the first.
          original: int `[classes]`, the place of each class in the files, for original labels.
        """
        if self.labels is not None:
            return classes % self.labels
        if self.labelling == "original":
            assert original is not None
            return original[classes]
        if self._each == 1:
            return classes
        first = classes * self._each
        if numbers is not None:
            first = first + jnp.minimum((numbers * self._each).astype(jnp.int32), self._each - 1)
        return jnp.where(classes < self.rare, first, classes + self.rare * (self._each - 1))

    def classes(self, labels: jax.Array, original: jax.Array | None = None) -> jax.Array:
        """The classes of labels, if classes share none; arguments as for `of`."""
        if self.labelling == "original":
            assert original is not None
            return jnp.argsort(original)[labels]
        if self._each == 1:
            return labels
        others = labels - self.rare * (self._each - 1)
        return jnp.where(labels < self.rare * self._each, labels // self._each, others)

    def groups(self, labels: jax.Array, original: jax.Array | None = None) -> dict[str, jax.Array]:
        """1 for labels of rare and of common classes, else 0; NaN if classes share labels."""
        if self.labels is not None:
            return dict.fromkeys(("rare", "common"), jnp.full(labels.shape, jnp.nan))
        classes = self.classes(labels, original)
        rare, trained = classes < self.rare, classes < self.rare + self.common
        return {"rare": rare.astype(jnp.float32), "common": (trained & ~rare).astype(jnp.float32)}

"""The kinds of sequences of classes, and how the classes and labels of each are drawn.

Chan et al. 2022 (arXiv 2205.05055, section 2 and the public code), with the probes of Singh et al.
2023 (arXiv 2311.08360) and of Reddy 2023 (arXiv 2312.03002).
"""

from typing import TYPE_CHECKING, Any, Literal, NamedTuple

import jax
import jax.numpy as jnp

from .class_draws import Group, Uniforms, merged, order

if TYPE_CHECKING:
    from .class_sequences import ClassSequences

Kind = Literal[
    "bursty", "mixed",
    "fewshot_rare", "fewshot_common", "fewshot_zipfian", "fewshot_holdout",
    "no_support_rare", "no_support_common", "no_support_zipfian",
    "relabel", "flip", "copy_available", "in_context", "swap", "in_weights",
]  # fmt: skip
KINDS: dict[Kind, str] = {
    "bursty": "as in training: bursty with the probability p_bursty",
    "mixed": "few shots of rare classes with the probability p_fewshot, else common classes",
    "fewshot_rare": "few shots of rare classes, labelled 0, 1, ... anew in each sequence",
    "fewshot_common": "few shots of common classes, labelled anew",
    "fewshot_zipfian": "few shots of training classes, labelled anew",
    "fewshot_holdout": "few shots of classes that training never shows, labelled anew",
    "no_support_rare": "a rare class that the context does not show, with its own label",
    "no_support_common": "a common class that the context does not show",
    "no_support_zipfian": "a training class that the context does not show",
    "relabel": "bursts of training classes, labelled anew (Singh et al.)",
    "flip": "bursts of training classes that exchange their labels (Singh et al.)",
    "copy_available": "no support, but another item of the context has the label (Singh et al.)",
    "in_context": "few shots of held-out classes with labels of their own (Reddy's IC)",
    "swap": "few shots of training classes, all labels moved on by one (Reddy's IC-swap)",
    "in_weights": "independent training classes (Reddy's IW)",
}
REST = dict(zipfian="zipfian", common="rare", rare="common")  # around bursts of a group
FRESH = 2**28  # number of the first class that only training with fresh classes shows
FRESH_STARTS = 2**15  # squared: the number of places where fresh classes start


class Sequence(NamedTuple):
    """The classes and labels of the points; the last point is the query."""

    classes: jax.Array  # int32 [points]
    labels: jax.Array  # int32 [points]


def of_fewshot_length(kind: str) -> bool:
    """Whether sequences of a kind are few-shot sequences, without other items."""
    return kind.startswith("fewshot") or kind in ("mixed", "in_context", "swap")


def without_support(kind: str) -> bool:
    """Whether the labels in play are those of a group of classes, and not of the context."""
    return kind.startswith("no_support") or kind in ("in_weights", "copy_available")


class Sampler:
    """Draws the sequence of one prompt.

    Args:
      family: the settings.
      key: it is consumed.
      original: the place of each class in the files, int `[classes]`; None if unknown.
    """

    def __init__(self, family: "ClassSequences", key: jax.Array, original: jax.Array | None):
        self.family = family
        self.original = original
        self.uniform = Uniforms(key)

    def draw(self) -> Sequence:
        """A sequence of the family's kind."""
        kind = self.family.sequences
        first, _, group = kind.rpartition("_")
        if first == "fewshot":
            return self.few_shots(group, "unfixed")
        if first == "no_support":
            return self.no_support(group)
        return {
            "bursty": self.bursty,
            "mixed": self.mixed,
            "relabel": lambda: self.burst("zipfian", "unfixed"),
            "flip": lambda: self.burst("zipfian", "flipped"),
            "copy_available": self.copy_available,
            "in_context": lambda: self.few_shots("holdout", "ordered"),
            "swap": lambda: self.few_shots("zipfian", "swapped"),
            "in_weights": lambda: self.independent("zipfian", self.family.points),
        }[kind]()

    def bursty(self) -> Sequence:
        """A bursty sequence with the probability `p_bursty`, else one of `non_bursty`."""
        family, found, burst, below = self.family, None, None, 0.0
        if family.p_bursty < 1:
            found = {
                "zipfian": lambda: self.independent("zipfian", family.points),
                "common": lambda: self.independent("common", family.points),
                "common_no_support": lambda: self.no_support("common"),
            }[family.non_bursty]()
        which: Any = self.uniform.one() if len(family.bursts) > 1 else None
        for group, share in family.bursts.items():
            own = self.burst(group, "ordered" if group == "common" else family.labelling)
            # Later groups replace earlier ones where the number is above their shares.
            burst = own if burst is None else _choose(which >= below, own, burst)
            below += share
        if burst is not None:
            is_bursty = self.uniform.one() < family.p_bursty
            found = burst if found is None else _choose(is_bursty, burst, found)
        assert found is not None
        return self._fresh(found) if family.p_fresh else found

    def _fresh(self, found: Sequence) -> Sequence:
        """With the probability `p_fresh`, the sequence with classes that hardly ever come again."""
        high, low = (self.uniform(2) * FRESH_STARTS).astype(jnp.int32)
        shift = FRESH + FRESH_STARTS * high + low
        fresh = found._replace(classes=found.classes + shift)
        return _choose(self.uniform.one() < self.family.p_fresh, fresh, found)

    def burst(self, group: str, labelling: str) -> Sequence:
        """A few-shot sequence of a group whose context is mixed with items of another group."""
        few = self.few_shots(group, labelling, self.family.shots)
        more = self.family.points - len(few.classes)
        if not more:
            return few
        others = self.independent(REST[group], more)
        place = self.uniform(self.family.points - 1)
        return Sequence(*(
            jnp.append(merged(place, own[:-1], other, self.family.grouped), own[-1])
            for own, other in zip(few, others)
        ))  # fmt: skip

    def few_shots(self, group: str, labelling: str, shots: int | None = None) -> Sequence:
        """Items of each of `ways` classes in random order, and a query of one of them.

        Args:
          group: where the classes come from.
          labelling: one of `ClassSequences.labelling`; flipped, if each class gets the label of
            another; or swapped, if labels move on by one.
          shots: number of items of each class; None for `fewshot_shots`.
        """
        ways, shots = self.family.ways, shots or self.family.fewshot_shots
        chosen = self._ways(self.family.group(group))
        labels = self._ways_labels(chosen, labelling)
        query = jnp.minimum((self.uniform.one() * ways).astype(jnp.int32), ways - 1)
        if self.family.grouped:
            context = jnp.concatenate([order(self.uniform(ways)) for _ in range(shots)])
        else:
            context = order(self.uniform(shots * ways)) % ways
        way = jnp.append(context, query)
        return Sequence(chosen[way], labels[way])

    def _ways(self, group: Group) -> jax.Array:
        """The classes of a burst, int32 `[ways]`."""
        if self.family.repeated_ways:
            return group.draw(self.uniform(self.family.ways))
        each: list[jax.Array] = []
        for _ in range(self.family.ways):
            each.append(group.draw(self.uniform.one(), each))
        return jnp.stack(each)

    def _ways_labels(self, chosen: jax.Array, labelling: str) -> jax.Array:
        """The labels of the classes of a burst, int32 `[ways]`."""
        if labelling == "unfixed":
            return order(self.uniform(self.family.ways))
        labels = self._labels(chosen, labelling == "polysemous")
        if labelling == "flipped":
            return jnp.roll(labels, -1)
        return (labels + 1) % self.family.class_labels.number if labelling == "swapped" else labels

    def independent(self, group: str, count: int) -> Sequence:
        """Independent classes of a group."""
        classes = self.family.group(group).draw(self.uniform(count))
        return Sequence(classes, self._labels(classes, group != "common"))

    def no_support(self, group: str) -> Sequence:
        """A query of a group, after independent items of other classes of the group."""
        query = self.family.group(group).draw(self.uniform.one())
        context = self.family.group(group).draw(self.uniform(self.family.points - 1), [query])
        classes = jnp.append(context, query)
        return Sequence(classes, self._labels(classes, group != "common"))

    def copy_available(self) -> Sequence:
        """No support, with the query's label at one item of the context."""
        found = self.no_support("zipfian")
        context = self.family.points - 1
        at = jnp.minimum((self.uniform.one() * context).astype(jnp.int32), context - 1)
        here = jnp.arange(self.family.points) == at
        return found._replace(labels=jnp.where(here, found.labels[-1], found.labels))

    def mixed(self) -> Sequence:
        """Few shots of rare classes with the probability `p_fewshot`, else common classes."""
        common = self.independent("common", self.family.points)
        few = self.few_shots("rare", "unfixed")
        return _choose(self.uniform.one() < self.family.p_fewshot, few, common)

    def _labels(self, classes: jax.Array, any_of_them: bool) -> jax.Array:
        """Labels of classes `[n]`; any of several if asked, else the first."""
        several = any_of_them and self.family.labelling == "polysemous"
        numbers = self.uniform(len(classes)) if several else None
        return self.family.class_labels.of(classes, numbers, self.original)


def _choose(condition: Any, first: Sequence, second: Sequence) -> Sequence:
    return Sequence(*(jnp.where(condition, a, b) for a, b in zip(first, second)))

"""Sequences of labelled items whose classes are bursty and Zipfian (Chan et al. 2022).

"Data distributional properties drive emergent in-context learning in transformers", Chan et al.
2022 (arXiv 2205.05055, section 2 and appendix A), with the probes of Singh et al. 2023 (arXiv
2311.08360) and of Reddy 2023 (arXiv 2312.03002). A label can be known from the weights, if its
class was seen in training, or from the context, if the context shows the class.
"""

import dataclasses
import difflib
from collections.abc import Iterable
from pathlib import Path
from typing import Literal, get_args

import jax
import jax.numpy as jnp

from ..data import BUILT_IN as IMAGES_BUILT_IN
from ..data import ClassBank, data_files, load_classes
from ..ranges import NOT_NEGATIVE, SIZE, Range, check_ranges
from . import class_items
from .base import Difficulty, Episode, TaskFamily, on_device
from .class_draws import Group, Uniforms, items
from .class_labels import ClassLabels, Labelling
from .inputs import Images, InputKind, Symbols, Vectors
from .labels import Classes
from .sequence_kinds import KINDS, REST, Kind, Sampler, Sequence, of_fewshot_length

BUILT_IN = ("glyphs", "gaussians", "symbols")
NonBursty = Literal["zipfian", "common", "common_no_support"]
CHOICES: dict[str, Iterable[str]] = {
    "sequences": KINDS, "labelling": get_args(Labelling), "non_bursty": get_args(NonBursty),
}  # fmt: skip
SHARE = Range(0.0, 1.0)
CLASSES = Range(0, 2**22)  # float32 numbers tell twice as many
GAUSSIAN_SPREAD, GLYPH_SPREAD = 0.1, 0.03


@dataclasses.dataclass(frozen=True)
class ClassSequences(TaskFamily):
    """Sequences of items of rare, common and held-out classes, with labels.

    A bursty sequence has `shots` items of each of `ways` classes, the query is of one of them, and
    the rest is drawn from all training classes. Other sequences are drawn from all training classes
    alone. Classes are numbered: first the rare, then the common, then the held-out ones. The
    probability of class j of n rare and common ones is proportional to 1 / (n - j)^zipf_exponent.

    A task is the classes and labels of a sequence; an episode draws the items.
    """

    points: int = 9
    """Number of items in a sequence, the query included."""
    sequences: Kind = "bursty"
    """What the sequences are; evaluations use the others (icl eval --mode)."""
    source: tuple[str, ...] = ("glyphs",)
    """Where items come from: glyphs (drawn from pen strokes), gaussians (vectors around the mean of
    their class) or symbols (an integer a class); or paths of images or features in classes, such as
    Omniglot's zips or the folder that holds them."""
    size: int = 16
    """Height and width of images."""
    dim: int = 32
    """Number of coordinates of gaussians."""
    features: int | None = None
    """Number of features of an item, if the files hold vectors of features and not images."""
    spread: float | None = None
    """Spread of the items of a built-in class; None for 0.1 (gaussians: of their deviation over
    that of means) or 0.03 (glyphs: of the side of an image)."""
    exemplars: int | None = None
    """Number of different items of a class; None for all of the files, or for new items in each
    sequence. With 1, all items of a class are identical."""
    separated: bool = False
    """Make a class of each item of the files."""
    augmented: bool = False
    """Make eight classes of each, by flips and quarter turns."""
    noise: float = 0.0
    """Standard deviation of noise on each pixel, where black is 0 and white is 1."""
    random_rare: bool = False
    """Show each rare class by an image of random pixels, a new one in each sequence."""
    rare: int = 1603
    """Number of rare classes."""
    common: int = 10
    """Number of common classes."""
    holdout: int = 10
    """Number of classes that training does not show."""
    zipf_exponent: float = 0.0
    """Exponent of the Zipf distribution over rare and common classes; 0 for a uniform one."""
    zipf_groups: bool = False
    """Draw rare and common classes too by their Zipf probabilities, and not uniformly."""
    p_bursty: float = 0.9
    """Probability that a sequence is bursty."""
    p_bursty_common: float = 0.0
    """Share of bursty sequences whose bursts are of common classes and the rest of rare ones."""
    p_bursty_zipfian: float = 1.0
    """Share of bursty sequences whose classes are all drawn from the Zipf distribution. What both
    shares leave has bursts of rare classes, and the rest of common ones."""
    shots: int = 3
    """Number of items of each class of a burst."""
    ways: int = 2
    """Number of classes of a burst, and of few-shot sequences."""
    fewshot_shots: int = 4
    """Number of items of each class in few-shot sequences."""
    p_fewshot: float = 0.1
    """Probability of few-shot sequences under the kind mixed."""
    p_fresh: float = 0.0
    """Share of the sequences of the kind bursty whose classes hardly ever come again, with the
    labels of random classes; only of glyphs and gaussians (Reddy 2023)."""
    non_bursty: NonBursty = "zipfian"
    """The other sequences: of all training classes, of common ones, or of common ones with a query
    whose class the context does not show."""
    labelling: Labelling = "ordered"
    """Labels in bursts of rare or of all classes: the number of the class, a new one in each
    sequence (0 to ways - 1), one of several that only the class has, or the place of the class in
    the files. Other items have ordered labels, or original ones."""
    polysemy: int = 1
    """Number of labels of a rare class if labels are polysemous."""
    labels: int | None = None
    """Number of labels: class c has the label c mod labels. None for labels that classes do not
    share."""
    repeated_ways: bool = False
    """Draw the classes of a burst with replacement, as the public code does: both may be equal,
    and then few-shot accuracy cannot reach 1."""
    grouped: bool = False
    """Let each `ways` items of a burst show every class of it once."""
    interim: float = 0.0
    """Weight of the mean loss at the items before the query; that of the query has the rest."""

    def __post_init__(self) -> None:
        super().__post_init__()
        check_ranges(
            "task", self, size=SIZE, dim=Range(1, 1000), features=SIZE, spread=NOT_NEGATIVE,
            exemplars=SIZE, noise=NOT_NEGATIVE, rare=CLASSES, common=CLASSES, holdout=CLASSES,
            zipf_exponent=Range(0.0, 100.0), p_bursty=SHARE, p_bursty_common=SHARE,
            p_bursty_zipfian=SHARE, shots=SIZE, ways=SIZE, fewshot_shots=SIZE, p_fewshot=SHARE,
            p_fresh=SHARE, polysemy=SIZE, labels=SIZE._replace(low=2), interim=SHARE,
        )  # fmt: skip
        for name, allowed in CHOICES.items():
            if getattr(self, name) not in allowed:
                raise ValueError(f"task.{name} must be one of {', '.join(allowed)}")
        self._check_source()
        self._check_groups()
        length = self.length_of(self.sequences)
        if self.points != length:
            raise ValueError(
                f"{self.ways} classes of {self.fewshot_shots} items and the query are {length} "
                f"points: set task.points to that, not {self.points}"
            )
        needs = self.shots * self.ways + 1
        bursts = self.sequences in ("relabel", "flip") or (
            self.sequences == "bursty" and self.p_bursty > 0
        )
        if bursts and self.points < needs:
            raise ValueError(
                f"bursts of {self.ways} classes with {self.shots} items and the query need {needs} "
                f"points: raise task.points, which is {self.points}, or lower task.shots"
            )

    def _check_source(self) -> None:
        if not self.source or (len(self.source) > 1 and set(self.source) & set(BUILT_IN)):
            raise ValueError(
                f"task.source must be one of {', '.join(BUILT_IN)}, or paths; got {self.source}"
            )
        for name in self.source:
            near = difflib.get_close_matches(name, BUILT_IN, n=1, cutoff=0.7)
            if near and name not in BUILT_IN and not Path(name).exists():
                raise ValueError(f"no source {name!r}: did you mean {near[0]}?")
        for name in ("augmented", "noise", "random_rare"):
            if getattr(self, name) and not self.is_images:
                raise ValueError(f"only images can be changed: leave task.{name} out")
        if self.p_fresh and self.sequences != "bursty":
            raise ValueError("only bursty sequences have fresh classes: leave task.p_fresh 0")
        if self.p_fresh and not set(self.source) <= {"glyphs", "gaussians"}:
            raise ValueError("only glyphs and gaussians have fresh classes: leave task.p_fresh 0")
        if self.separated and (self.is_built_in or self.exemplars is not None):
            raise ValueError(
                "task.separated makes classes of all items of files: leave task.exemplars None, "
                "and set task.source to paths"
            )
        if self.is_built_in and self.features:
            raise ValueError("features are read from files: leave task.features None")
        if self.is_built_in and self.labelling == "original":
            raise ValueError("only classes of files have original labels: choose another labelling")

    def _check_groups(self) -> None:
        for group, least in self._least_classes().items():
            if self.group(group).count < least:
                raise ValueError(
                    f"{self.sequences} sequences need {least} {group} classes, and there are "
                    f"{self.group(group).count}: raise their number (task.rare, task.common, "
                    "task.holdout), or lower task.ways"
                )
        if self.p_bursty_common + self.p_bursty_zipfian > 1:
            raise ValueError("task.p_bursty_common and task.p_bursty_zipfian exceed 1 together")
        if self.labelling != "ordered" and self.labels is not None:
            raise ValueError("task.labels numbers ordered labels: leave task.labelling ordered")
        if self.sequences == "flip" and self.ways < 2:
            raise ValueError("a burst of one class has no labels to exchange: set task.ways to 2")
        if self.sequences == "swap" and self.labelling == "polysemous":
            raise ValueError(
                "the next label may be another label of the class: swap needs ordered labels"
            )
        if self.class_labels.number < self.ways:
            raise ValueError("there are fewer labels than classes in a burst: lower task.ways")

    def _least_classes(self) -> dict[str, int]:
        """The smallest number of classes of each group that the sequences are drawn from."""
        ways = 1 if self.repeated_ways else self.ways
        first, _, last = self.sequences.rpartition("_")
        if first == "fewshot":
            return {last: ways}
        if first == "no_support":
            return {last: 2}
        fixed = {"mixed": {"rare": ways, "common": 1}, "in_context": {"holdout": ways}}
        if self.sequences in fixed:
            return fixed[self.sequences]
        if self.sequences != "bursty":
            return {"zipfian": 2 if self.sequences == "copy_available" else ways}
        rest = self.points > self.shots * self.ways + 1
        found: dict[str, int] = {}
        for group in self.bursts:
            found[group] = max(ways, found.get(group, 0))
            found[REST[group]] = max(int(rest), found.get(REST[group], 0))
        if self.p_bursty < 1:
            other = self.non_bursty.partition("_")[0]
            found[other] = max(found.get(other, 0), 1 + (self.non_bursty == "common_no_support"))
        return found

    @property
    def bursts(self) -> dict[str, float]:
        """The groups that bursts are of, and the share of bursty sequences with them."""
        shares = dict(zipfian=self.p_bursty_zipfian, common=self.p_bursty_common)
        shares["rare"] = 1 - sum(shares.values())
        if not self.p_bursty:
            return {}
        # Rounding may leave a share of 1e-17.
        return {group: share for group, share in shares.items() if share > 1e-6}

    @property
    def only_last_is_query(self) -> bool:
        return not self.interim

    @property
    def every_point_is_query(self) -> bool:
        return not self.only_last_is_query

    @property
    def is_built_in(self) -> bool:
        """Whether items are drawn on the device, and not from files."""
        return self.source[0] in BUILT_IN

    @property
    def is_images(self) -> bool:
        """Whether items are images."""
        return self.source[0] not in ("gaussians", "symbols") and not self.features

    @property
    def input_kind(self) -> InputKind:
        if self.source[0] == "gaussians" or self.features:
            return Vectors(self.features or self.dim)
        if self.source[0] == "symbols":
            return Symbols(self.classes)
        return Images(self.size, self.size, floats=self.noise > 0)

    @property
    def classes(self) -> int:
        """Number of classes."""
        return self.rare + self.common + self.holdout

    @property
    def label_kind(self) -> Classes:
        return Classes(self.class_labels.number)

    @property
    def class_labels(self) -> ClassLabels:
        """The labels that classes have in training."""
        return ClassLabels(
            self.rare, self.common, self.holdout, self.labelling, self.polysemy, self.labels
        )

    @property
    def evaluation(self) -> "ClassSequences":
        """Few shots of held-out classes, or of training classes if none is held out."""
        if self.sequences not in ("bursty", "mixed"):
            return self
        if self.holdout < self.ways:
            return self.mode("fewshot_zipfian")
        return self.mode("fewshot_holdout" if self.labels is None else "in_context")

    def mode(self, kind: Kind | str) -> "ClassSequences":
        """This family with sequences of another kind, and the query's loss alone.

        Raises:
          ValueError: there is no such kind, or the settings do not allow it.
        """
        if kind not in KINDS:
            raise ValueError(f"no mode {kind!r}; there are {', '.join(KINDS)}")
        changes = dict(sequences=kind, points=self.length_of(kind), interim=0.0, p_fresh=0.0)
        return dataclasses.replace(self, **changes)

    def length_of(self, kind: str) -> int:
        """Number of points of sequences of a kind."""
        fixed = of_fewshot_length(kind)
        return self.fewshot_shots * self.ways + 1 if fixed else self.points

    @property
    def data_source(self) -> str | None:
        return None if self.is_built_in else ", ".join(self.source)

    @property
    def data_files(self) -> list[Path]:
        return [] if self.is_built_in else [f for name in self.source for f in data_files(name)]

    def load_data(self) -> ClassBank | None:
        """The items of the files, on the host; None for built-in classes.

        Raises:
          OSError: a file is missing or cannot be read.
          ValueError: a file is damaged, or there are too few classes or items.
        """
        if self.is_built_in:
            return None
        for name in self.source:
            if name not in IMAGES_BUILT_IN and not Path(name).exists():
                raise FileNotFoundError(
                    2,
                    "there is no such file or folder. Set task.source to Omniglot's zips, to the "
                    f"folder that holds them, to other images in classes, or to "
                    f"{', '.join(BUILT_IN)}, which need no file",
                    name,
                )
        bank = load_classes(
            self.source, size=self.size, features=self.features, exemplars=self.exemplars
        )
        if self.separated:
            bank = bank.separated()
        found = len(bank.first) * self._copies
        if self.labelling == "original" and found != self.classes:
            raise ValueError(
                f"original labels need all {found} classes of {self.data_source}: set task.rare, "
                f"task.common and task.holdout to numbers with that sum, not {self.classes}"
            )
        left = self._first_held_out(found)
        if self.labelling == "original" and left < self.rare + self.common:
            raise ValueError(
                "original labels of augmented classes need a number of held-out classes that is a "
                f"multiple of {self._copies}: change task.holdout, which is {self.holdout}"
            )
        if left < self.rare + self.common:
            raise ValueError(
                f"{self.data_source} has {found} classes, and the task uses {self.classes} (rare "
                f"{self.rare}, common {self.common}, holdout {self.holdout}): set task.rare to "
                f"{max(0, left - self.common)}"
            )
        return bank

    @property
    def _copies(self) -> int:
        """Number of classes that are made of one."""
        return class_items.TRANSFORMS if self.augmented else 1

    def _first_held_out(self, found: int | None) -> int:
        """Where held-out classes begin, a multiple of the copies: training shows none of these.

        Args:
          found: number of classes of the files, of which they are the last, however many others
            are in use; None for built-in classes.
        """
        if found is None:
            return -(-(self.rare + self.common) // self._copies) * self._copies
        return (found - self.holdout) // self._copies * self._copies

    def group(self, name: str) -> Group:
        """The group rare, common, holdout, or zipfian: rare and common classes together."""
        trained = self.rare + self.common
        of_groups = self.zipf_exponent if self.zipf_groups else 0.0
        groups = {
            "rare": (0, self.rare, of_groups, 0),
            "common": (self.rare, self.common, of_groups, self.rare),
            "zipfian": (0, trained, self.zipf_exponent, 0),
            "holdout": (trained, self.holdout, 0.0, 0),
        }
        return Group(*groups[name], total=trained)

    def sample_task(
        self, key: jax.Array, difficulty: Difficulty, data: ClassBank | None = None
    ) -> Sequence:
        return Sampler(self, key, self.original(data)).draw()

    def original(self, data: ClassBank | None) -> jax.Array | None:
        """The place of each class in the files, int `[classes]`, if labels are original."""
        if self.labelling != "original":
            return None
        places = on_device(data).original
        if not self.augmented:
            return places
        copies = class_items.TRANSFORMS * places[:, None] + jnp.arange(class_items.TRANSFORMS)[None]
        return copies.reshape(-1)

    def sample_episode(
        self,
        key: jax.Array,
        task: Sequence,
        difficulty: Difficulty,
        data: ClassBank | None = None,
    ) -> Episode:
        x = self._items(key, task.classes, data)
        if self.noise:
            x = class_items.noisy(key, x, self.noise)
        query = jnp.arange(self.points) == self.points - 1
        if not self.interim:
            return Episode(x, task.labels, query, ~query)
        share = self.interim / max(1, self.points - 1)
        weights = jnp.where(query, 1 - self.interim, share)
        return Episode(x, task.labels, jnp.ones_like(query), ~query, weights=weights)

    def _items(self, key: jax.Array, classes: jax.Array, data: ClassBank | None) -> jax.Array:
        """Items of classes `[points]`, without repetition within a class; row 0 of the key."""
        if self.source[0] == "symbols":
            return classes
        bank = None if self.is_built_in else on_device(data)
        trained, copies = self.rare + self.common, self._copies
        start = self._first_held_out(None if bank is None else len(bank.first) * copies)
        place = jnp.where(classes < trained, classes, classes + (start - trained))
        base, transform = place // copies, place % copies
        choose = lambda count: items(Uniforms(key)(self.points), classes, count)
        spread = self.spread
        if bank is not None:
            x = bank.items[bank.first[base] + choose(bank.count[base])]
        else:
            few = self.exemplars
            chosen = None if few is None else choose(jnp.full(self.points, few))
            if self.source[0] == "gaussians":
                return class_items.gaussians(
                    key, base, chosen, self.dim, GAUSSIAN_SPREAD if spread is None else spread
                )
            x = class_items.drawings(
                key, base, chosen, self.size, GLYPH_SPREAD if spread is None else spread
            )
        x = class_items.transformed(x, transform) if self.augmented else x
        if not self.random_rare:
            return x
        pixels = class_items.random_pixels(key, classes, self.size)
        return jnp.where((classes < self.rare)[:, None, None], pixels, x)

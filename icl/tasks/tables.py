"""Synthetic tables: the prior of prior-fitted networks (Müller et al. 2022, arXiv 2112.10510)."""

import dataclasses
from functools import partial
from typing import Literal, NamedTuple

import jax
import jax.numpy as jnp

from ..ranges import POSITIVE, SIZE, Range, check_range, check_ranges
from .base import Data, Difficulty, Episode, TaskFamily
from .draws import Draws, drawn_together, ranks
from .inputs import Rows
from .labels import LabelKind, Scalar, ShownClasses
from .rows import standardised
from .table_mechanisms import (
    LAYERS,
    Clusters,
    Layers,
    Sources,
    Trees,
    clustered,
    draw_clusters,
    draw_layers,
    draw_sources,
    draw_trees,
    sources,
    standard,
    tree_scores,
    units,
)

MECHANISMS = ("causal", "network", "linear", "trees", "clusters")
LEVELS = 10  # of a categorical column, at most
LEAST_SOURCES = 16
COLUMN_POWER = 1.5  # above 1, fewer columns are more probable
CLASS_DECAY = 0.6  # of the probability of one more class
ALL_IN_LEVELS = 0.1  # probability of a table whose columns are all categorical
SHARE = Range(0.0, 1.0)


class Table(NamedTuple):
    """A task: everything about a table except its rows."""

    mechanism: jax.Array  # int []
    columns: jax.Array  # int []: number in use
    classes: jax.Array  # int []: number in use
    sources: Sources
    layers: Layers
    trees: Trees
    clusters: Clusters
    slopes: jax.Array  # [H, K]: of the linear mechanism
    nodes: jax.Array  # int [columns + K]: units that are columns, then units that are scores
    ranked: jax.Array  # bool []: whether classes are ranges of one score, not the largest score
    cuts: jax.Array  # [classes - 1]: shares of rows below the ranges, ascending
    offsets: jax.Array  # [K]: of scores
    names: jax.Array  # int [classes]: number of each class, since numbers tell nothing
    noise: jax.Array  # []: standard deviation of the noise of scores
    mislabelled: jax.Array  # []: share of rows with a random class
    warp: jax.Array  # int [columns]: how a column is transformed
    levels: jax.Array  # int [columns]: number of levels of a categorical column, else 0
    codes: jax.Array  # [columns, LEVELS]: numbers that stand for the levels
    # bool []: whether labels depend on levels, and not on the numbers behind; never in causal
    # tables and clusters.
    early: jax.Array
    missing: jax.Array  # [columns]: share of missing values


@dataclasses.dataclass(frozen=True)
class Tables(TaskFamily):
    """Rows of a random table, whose last column, the target, is to be predicted.

    A task is a `Table`. Its rows are drawn, their columns standardised over the examples, and their
    classes numbered at random. A prompt shows first its examples, a random number of them, and then
    its queries: all other rows. Queries whose class no example has are left out. All tables count
    alike in the loss, whatever their numbers of queries.
    """

    points: int = 160
    """Number of rows of a prompt, examples and queries."""
    queries: int = 32
    """Number of queries of a prompt, at least."""
    fewest_examples: int = 8
    """Number of examples of a prompt, at least."""
    examples: tuple[int, ...] = ()
    """Numbers of examples to choose from; none for all from fewest_examples on."""
    columns: int = 10
    """Number of columns of a table, at most; each draws its number from 2 on."""
    target: Literal["class", "number"] = "class"
    """What is predicted."""
    classes: int = 10
    """Number of classes of a table, at most; each draws its number from 2 on."""
    mechanisms: tuple[str, ...] = ()
    """Mechanisms of tables: causal, network, linear, trees or, for classes, clusters; none for all
    of them."""
    shares: tuple[float, ...] = ()
    """Relative probabilities of the mechanisms; none for equal ones."""
    categorical: float = 0.5
    """Largest share of categorical columns, of which each table draws its own. If it is above 0, a
    tenth of the tables has categorical columns alone."""
    missing: float = 0.1
    """Share of tables with missing values."""

    def __post_init__(self) -> None:
        super().__post_init__()
        for name in ("examples", "mechanisms", "shares"):
            object.__setattr__(self, name, tuple(getattr(self, name)))  # a list if read from JSON
        check_ranges(
            "task", self, queries=Range(1, self.points - 2), columns=Range(2, SIZE.high),
            classes=Range(2, SIZE.high), categorical=SHARE, missing=SHARE,
        )  # fmt: skip
        most = Range(1, self.points - self.queries)
        check_range("task.fewest_examples", self.fewest_examples, most)
        for number in self.examples:
            check_range("task.examples", number, most)
        for name in self.mechanisms:
            if name not in MECHANISMS:
                raise ValueError(f"no mechanism {name!r}; there are {', '.join(MECHANISMS)}")
        if self.target not in ("class", "number"):
            raise ValueError(f"task.target must be class or number, got {self.target!r}")
        if self.target == "number" and "clusters" in self.mechanisms:
            raise ValueError(
                "rows of clusters have classes and no numbers: leave clusters out of "
                "task.mechanisms, or set task.target to class"
            )
        for share in self.shares:
            check_range("task.shares", share, POSITIVE)
        if self.shares and len(self.shares) != len(self.concepts):
            raise ValueError(
                f"task.shares must be {len(self.concepts)} numbers, one for each mechanism, or "
                f"none; got {self.shares}"
            )

    @property
    def hidden_queries(self) -> int:
        return self.queries

    @property
    def input_kind(self) -> Rows:
        return Rows(self.columns)

    @property
    def label_kind(self) -> LabelKind:
        if self.target == "class":
            return ShownClasses(self.classes)
        return Scalar(1.0, "variance of the examples' labels")

    @property
    def full(self) -> Difficulty:
        return Difficulty(self.columns, self.points, self.classes)

    @property
    def evaluation(self) -> "Tables":
        """Tables with few different numbers of examples: powers of 2."""
        most = self.points - self.queries
        powers = [2**n for n in range(most.bit_length()) if self.fewest_examples <= 2**n <= most]
        return dataclasses.replace(self, examples=self.examples or tuple(powers) or (most,))

    @property
    def concepts(self) -> tuple[str, ...]:
        if self.mechanisms:
            return self.mechanisms
        return tuple(one for one in MECHANISMS if self.target == "class" or one != "clusters")

    def concept(self, task: Table) -> jax.Array:
        return task.mechanism

    @property
    def _scores(self) -> int:
        return self.classes if self.target == "class" else 1

    @property
    def _sources(self) -> int:
        """Number of sources, enough for each column and score to be a unit of its own."""
        wanted = self.columns + self._scores
        return max(LEAST_SOURCES, self.columns, self._scores, -(-wanted // LAYERS))

    def sample_task(self, key: jax.Array, difficulty: Difficulty, data: Data = None) -> Table:
        return drawn_together(key, partial(self._table, difficulty))

    def _table(self, difficulty: Difficulty, draws: Draws) -> Table:
        columns, scores, size = self.columns, self._scores, self._sources
        shares = self.shares or [1.0] * len(self.concepts)
        mechanism = draws.choice(jnp.array(shares, jnp.float32))
        used = self._columns(draws, difficulty)
        # A causal table has its own number of sources, others have one for each column.
        causes = draws.integer(1, size // 2 + 1)
        origin = draw_sources(draws, size, jnp.where(self._is(mechanism, "causal"), causes, used))
        layers = draw_layers(draws, size)
        unit = jnp.arange(LAYERS * size)
        order = jnp.where(unit < layers.depth * size, draws.uniform(0, 1, LAYERS * size), 2)
        classes = self._classes(draws, difficulty)
        return Table(
            mechanism=mechanism,
            columns=used,
            classes=classes,
            sources=origin,
            layers=layers,
            trees=draw_trees(draws, used, scores),
            clusters=draw_clusters(draws, columns, self.classes),
            slopes=draws.normal(size, scores),
            nodes=(ranks(order)[None] == jnp.arange(columns + scores)[:, None]).argmax(axis=1),
            ranked=draws.chance(0.6),
            cuts=self._cuts(draws, classes),
            offsets=0.3 * draws.normal(scores),
            names=draws.permutation(self.classes),
            noise=jnp.exp(draws.uniform(-6.0, -0.5)),
            mislabelled=jnp.where(draws.chance(0.5), 0.4 * draws.uniform(0, 1) ** 3, 0),
            **self._looks(draws),
        )

    def _is(self, mechanism: jax.Array, name: str) -> jax.Array:
        """Whether a mechanism has that name, bool `[]`."""
        at = self.concepts.index(name) if name in self.concepts else -1
        return mechanism == at

    def _columns(self, draws: Draws, difficulty: Difficulty) -> jax.Array:
        """Draws the number of columns, from 2 on; larger ones are less probable."""
        more = jnp.maximum(jnp.asarray(difficulty.dim, jnp.int32) - 2, 0)
        share = draws.uniform(0, 1) ** COLUMN_POWER
        drawn = jnp.floor(share * (more + 1).astype(jnp.float32)).astype(jnp.int32)
        return 2 + jnp.minimum(drawn, more)

    def _classes(self, draws: Draws, difficulty: Difficulty) -> jax.Array:
        """Draws the number of classes, from 2 on; larger ones are less probable."""
        number = jnp.arange(self.classes + 1)
        allowed = (number >= 2) & (number <= jnp.maximum(difficulty.classes, 2))
        return draws.choice(jnp.where(allowed, CLASS_DECAY ** number.astype(jnp.float32), 0))

    def _cuts(self, draws: Draws, classes: jax.Array) -> jax.Array:
        """Draws shares of rows below each range of ranks but the first; 2 if not in use."""
        index = jnp.arange(1, self.classes)
        count = classes.astype(jnp.float32)
        shift = jnp.where(draws.chance(0.5), draws.uniform(-0.5, 0.5, self.classes - 1), 0)
        cuts = (index.astype(jnp.float32) + shift) / count
        return jnp.where(index < classes, cuts, 2.0)

    def _looks(self, draws: Draws) -> dict[str, jax.Array]:
        """Draws how columns look: transformed, in levels, with missing values."""
        columns = self.columns
        warp = draws.uniform(0, 1, columns)
        alone = draws.chance(ALL_IN_LEVELS if self.categorical else 0.0)
        share = jnp.where(alone, 1.0, draws.uniform(0, self.categorical))
        levels = 2 + jnp.floor((LEVELS - 1) * draws.uniform(0, 1, columns) ** 2)
        ordered = jnp.broadcast_to(jnp.arange(LEVELS)[None], (columns, LEVELS))
        shuffled = draws.permutation(LEVELS, columns)
        codes = jnp.where(draws.chance(0.6, columns, 1), ordered, shuffled)
        rates = 0.5 * draws.uniform(0, 1, columns) ** 2
        return dict(
            warp=(warp < 0.12).astype(jnp.int32) + (warp < 0.2).astype(jnp.int32),
            levels=jnp.where(draws.chance(share, columns), levels, 0).astype(jnp.int32),
            codes=codes.astype(jnp.float32),
            early=draws.chance(0.5),
            missing=jnp.where(draws.chance(self.missing), rates, 0),
        )

    def sample_episode(
        self, key: jax.Array, task: Table, difficulty: Difficulty, data: Data = None
    ) -> Episode:
        return drawn_together(key, partial(self._episode, task, difficulty))

    def _episode(self, task: Table, difficulty: Difficulty, draws: Draws) -> Episode:
        position = jnp.arange(self.points)
        context = position < self._examples(draws, difficulty)
        queries = (position < difficulty.points) & ~context
        x, y = self._rows(draws, task)
        unknown = draws.chance(task.missing[None], *x.shape)
        x = jnp.where(unknown | (jnp.arange(self.columns) >= task.columns)[None], jnp.nan, x)
        x = standardised(jnp, x, context)
        if self.target == "number":
            y = standardised(jnp, y[:, None], context)[:, 0]
            return _weighted(Episode(x, jnp.nan_to_num(y), queries, context))
        wrong = draws.chance(task.mislabelled, *y.shape)
        y = jnp.where(wrong, draws.integer(0, task.classes, *y.shape), y)
        shown = ShownClasses(self.classes).shown(y, context)
        return _weighted(Episode(x, task.names[y], queries & shown[y], context))

    def _examples(self, draws: Draws, difficulty: Difficulty) -> jax.Array:
        """Draws the number of examples; the last `queries` points in use are never examples."""
        most = jnp.maximum(difficulty.points - self.queries, 1)
        if self.examples:
            numbers = jnp.array(self.examples, jnp.int32)
            return jnp.minimum(numbers[draws.integer(0, len(self.examples))], most)
        fewest = jnp.minimum(self.fewest_examples, most)
        return fewest + draws.integer(0, most + 1 - fewest)

    def _rows(self, draws: Draws, task: Table) -> tuple[jax.Array, jax.Array]:
        """Draws columns `[points, columns]`, and numbers or classes `[points]`."""
        roots = sources(draws, task.sources, self.points)
        plain = roots[:, : self.columns]
        plain = jnp.where(task.early, standard(self._in_levels(task, plain)), plain)
        size = roots.shape[1]
        inputs = jnp.pad(plain, ((0, 0), (0, size - self.columns)))
        causal = self._is(task.mechanism, "causal")
        inputs = jnp.where(causal, roots, inputs) * task.sources.weight[None]
        layers = units(draws, task.layers, inputs)
        nodes = jnp.moveaxis(layers, 0, 1).reshape(self.points, -1)[:, task.nodes]
        x = jnp.where(causal, nodes[:, : self.columns], plain)
        scores = self._mechanism_scores(task, inputs, layers, nodes, plain)
        scores = standard(scores) + task.noise * draws.normal(*scores.shape)
        y, late = self._target(draws, task, scores), ~task.early | causal
        if self.target == "class":
            near, cause = clustered(draws, task.clusters, self.points, task.classes)
            grouped = self._is(task.mechanism, "clusters")
            x, y = jnp.where(grouped, near, x), jnp.where(grouped, cause, y)
            late |= grouped
        x = standard(x)
        in_levels = self._in_levels(task, x + 0.1 * draws.normal(*x.shape))
        x = jnp.where(task.levels[None] > 0, x, self._warped(task, x))
        return jnp.where(late & (task.levels[None] > 0), in_levels, x), y

    def _mechanism_scores(
        self,
        task: Table,
        inputs: jax.Array,
        layers: jax.Array,
        nodes: jax.Array,
        plain: jax.Array,
    ) -> jax.Array:
        """Scores `[points, K]` of the table's mechanism."""
        kinds = {
            "causal": nodes[:, self.columns :],
            "network": layers[task.layers.depth - 1][:, : self._scores],
            "linear": jnp.matmul(inputs, task.slopes),
            "trees": tree_scores(task.trees, plain),
        }
        found = jnp.zeros((self.points, self._scores))  # the classes of clusters need no scores
        for name, values in kinds.items():
            found = jnp.where(self._is(task.mechanism, name), values, found)
        return found

    def _target(self, draws: Draws, task: Table, scores: jax.Array) -> jax.Array:
        """Numbers or classes, `[points]`, from scores `[points, K]`."""
        if self.target == "number":
            return scores[:, 0]
        below = (scores[:, 0][:, None] > scores[:, 0][None]).mean(axis=1, dtype=jnp.float32)
        # Varied as shares of independent rows are, or labels of examples would tell the others.
        spread = jnp.sqrt(jnp.maximum(task.cuts * (1 - task.cuts), 0) / self.points)
        cuts = task.cuts + spread * draws.normal(self.classes - 1)
        ranges = (below[:, None] >= cuts[None]).sum(axis=1)
        allowed = jnp.arange(self.classes) < task.classes
        largest = jnp.where(allowed[None], scores + task.offsets[None], -jnp.inf).argmax(axis=1)
        return jnp.where(task.ranked, ranges, largest)

    def _in_levels(self, task: Table, x: jax.Array) -> jax.Array:
        """Columns `[points, columns]`, the categorical ones as numbers of their levels."""
        levels = task.levels[None]
        level = jnp.floor(jax.nn.sigmoid(1.7 * x) * levels.astype(x.dtype)).astype(jnp.int32)
        level = jnp.clip(level, 0, jnp.maximum(levels - 1, 0))
        code = task.codes[jnp.arange(self.columns)[None], level]
        return jnp.where(levels > 0, code, x)

    def _warped(self, task: Table, x: jax.Array) -> jax.Array:
        """Columns `[points, columns]`, of which some are skewed or have heavy tails."""
        kind = jnp.broadcast_to(task.warp, x.shape)
        return jax.lax.select_n(kind, x, jnp.abs(x) * x, jnp.exp(x))


def _weighted(episode: Episode) -> Episode:
    """The episode with weights of its queries, whose sum is 1."""
    count = jnp.maximum(episode.queries.sum(), 1).astype(jnp.float32)
    return episode._replace(weights=jnp.where(episode.queries, 1 / count, 0))

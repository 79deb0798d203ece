"""Sequences of classes: against a generator on the host, the laws of each kind, and their items."""

import dataclasses
import functools
import itertools
import typing

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from icl.models import TransformerConfig
from icl.tasks import KINDS, ClassSequences, Curriculum, sample_batch
from icl.tasks.class_draws import MOST_COMPARED, Group, items, merged, order
from icl.tasks.class_items import TRANSFORMS, class_key, gaussians, transformed
from icl.tasks.class_labels import ClassLabels
from icl.tasks.draws import normal_at, uniform_at
from icl.tasks.sequence_kinds import FRESH, Kind, Sequence
from icl.training import Config, Learner

MANY = 8000  # sequences drawn on the device
HOST = 1500  # sequences drawn on the host
SIGMAS = 5.5
BASE = ClassSequences(
    source=("symbols",), rare=6, common=4, holdout=5, zipf_exponent=1.0, p_bursty=0.7,
    points=8, shots=2, ways=2, fewshot_shots=3,
)  # fmt: skip
RNG = np.random.default_rng(0)


def of(task=BASE, **changes):
    return dataclasses.replace(task, **changes)


TRAINING = {
    "exponent 0": of(zipf_exponent=0.0),
    "exponent 1": BASE,
    "exponent 2": of(zipf_exponent=2.0, p_bursty=0.3),
    "bursts alone": of(p_bursty=1.0, points=5),
    "bursts of all groups": of(
        p_bursty=0.8, p_bursty_common=0.3, p_bursty_zipfian=0.2, zipf_groups=True,
        non_bursty="common", labelling="unfixed",
    ),
    "polysemous": of(
        p_bursty=0.4, p_bursty_zipfian=0.0, non_bursty="common_no_support",
        labelling="polysemous", polysemy=3,
    ),
    "common bursts among polysemous": of(
        p_bursty_zipfian=0.0, p_bursty_common=1.0, labelling="polysemous", polysemy=3,
    ),
    "grouped": of(p_bursty_zipfian=0.0, ways=3, points=9, grouped=True, labelling="unfixed"),
    "repeated": of(p_bursty_zipfian=0.0, ways=3, repeated_ways=True, labelling="unfixed"),
    "not bursty": of(p_bursty=0.0, points=4, labels=3),
}  # fmt: skip
PROBES = of(zipf_groups=True, p_fewshot=0.4)
VARIANTS = {
    "plain": PROBES,
    "polysemous": of(labelling="polysemous", polysemy=3, ways=3, points=9, grouped=True),
    "shared labels": of(labels=4, repeated_ways=True),
}
OWN_LABELS = ("no_support_rare", "copy_available", "flip", "relabel", "in_weights")
LAWS = [
    *(("plain", kind) for kind in KINDS),
    *(("polysemous", kind) for kind in (*OWN_LABELS, "bursty", "fewshot_holdout", "in_context")),
    *(("shared labels", kind) for kind in ("copy_available", "mixed", "in_context", "swap")),
]


@functools.cache
def drawn(task, count=MANY, seed=0):
    """Classes and labels of sequences, `[count, points]`."""
    keys = jax.random.split(jax.random.key(seed), count)
    found = jax.jit(jax.vmap(lambda key: task.sample_task(key, task.full)))(keys)
    assert found.classes.dtype == found.labels.dtype == jnp.int32
    return np.asarray(found.classes), np.asarray(found.labels)


@functools.partial(jax.jit, static_argnums=(0, 2))
def prompts(task, key, count, data=None):
    return sample_batch(task, key, jnp.arange(count), task.full, data=data)


class Host:
    """The sequences of a task, one after the other by NumPy, as Chan et al.'s code draws them."""

    def __init__(self, task, seed=0):
        self.task, self.rng = task, np.random.default_rng(seed)
        trained = task.rare + task.common
        zipf = np.array([1 / (trained - j) ** task.zipf_exponent for j in range(trained)])
        within = zipf if task.zipf_groups else np.ones(trained)
        groups = {
            "zipfian": (np.arange(trained), zipf),
            "rare": (np.arange(task.rare), within[: task.rare]),
            "common": (np.arange(task.rare, trained), within[task.rare :]),
            "holdout": (trained + np.arange(task.holdout), np.ones(task.holdout)),
        }
        self.groups = {name: (which, p / p.sum()) for name, (which, p) in groups.items()}

    def many(self, count):
        found = np.array([self.draw() for _ in range(count)])
        return found[:, 0], found[:, 1]

    def draw(self):
        task, kind = self.task, self.task.sequences
        name, _, group = kind.rpartition("_")
        if name == "fewshot":
            return self.few_shots(group, "unfixed", task.fewshot_shots)
        if name == "no_support" or kind == "copy_available":
            classes, labels = self.no_support(group if name == "no_support" else "zipfian")
            if kind == "copy_available":
                labels[self.rng.integers(task.points - 1)] = labels[-1]
            return classes, labels
        if kind in ("relabel", "flip"):
            return self.burst("zipfian", "unfixed" if kind == "relabel" else "flipped")
        if kind == "in_context":
            return self.few_shots("holdout", "ordered", task.fewshot_shots)
        if kind == "swap":
            return self.few_shots("zipfian", "swapped", task.fewshot_shots)
        if kind == "in_weights":
            return self.independent("zipfian")
        if kind == "mixed":
            if self.rng.random() < task.p_fewshot:
                return self.few_shots("rare", "unfixed", task.fewshot_shots)
            return self.independent("common")
        if self.rng.random() >= task.p_bursty:
            if task.non_bursty == "common_no_support":
                return self.no_support("common")
            return self.independent(task.non_bursty)
        common, zipfian = task.p_bursty_common, task.p_bursty_zipfian
        shares = [common, zipfian, 1 - common - zipfian]
        group = str(self.rng.choice(["common", "zipfian", "rare"], p=shares))
        return self.burst(group, "ordered" if group == "common" else task.labelling)

    def choose(self, group, count, replace=True, without=None):
        classes, p = self.groups[group]
        if without is not None:
            p = np.where(classes == without, 0, p)
            p = p / p.sum()
        return self.rng.choice(classes, count, replace, p)

    def own(self, classes):
        """Labels of classes, any of several of a rare one."""
        task = self.task
        if task.labels is not None:
            return classes % task.labels
        several = task.polysemy if task.labelling == "polysemous" else 1
        any_of_them = classes * several + self.rng.integers(several, size=len(classes))
        return np.where(classes < task.rare, any_of_them, classes + task.rare * (several - 1))

    def independent(self, group):
        classes = self.choose(group, self.task.points)
        return classes, self.own(classes)

    def no_support(self, group):
        query = self.choose(group, 1)
        classes = np.append(self.choose(group, self.task.points - 1, without=query[0]), query)
        return classes, self.own(classes)

    def few_shots(self, group, labelling, shots):
        ways = self.task.ways
        chosen = self.choose(group, ways, replace=self.task.repeated_ways)
        labels = self.rng.permutation(ways) if labelling == "unfixed" else self.own(chosen)
        if labelling == "flipped":
            labels = np.append(labels[1:], labels[0])
        if labelling == "swapped":
            labels = (labels + 1) % self.task.label_kind.number
        way = np.concatenate([self.rng.permutation(ways) for _ in range(shots)])
        if not self.task.grouped:
            self.rng.shuffle(way)
        way = np.append(way, self.rng.integers(ways))
        return chosen[way], labels[way]

    def burst(self, group, labelling):
        task, own = self.task, self.few_shots(group, labelling, self.task.shots)
        few = task.shots * task.ways
        rest = {"zipfian": "zipfian", "common": "rare", "rare": "common"}[group]
        others = self.choose(rest, task.points - 1 - few)
        places = self.rng.permutation(task.points - 1)
        places = np.sort(places[:few]) if task.grouped else places[:few]
        where = np.delete(np.arange(task.points - 1), places)
        found = np.zeros((2, task.points), np.int64)
        found[:, -1] = own[0][-1], own[1][-1]
        found[:, places] = own[0][:-1], own[1][:-1]
        found[:, where] = others, self.own(others)
        return found


def one_hot(values, number):
    return values[:, None] == np.arange(number)


def different(values):
    """How many different values a row has, `[N]`."""
    ordered = np.sort(values, axis=1)
    return 1 + (ordered[:, 1:] != ordered[:, :-1]).sum(axis=1)


def statistics(task, classes, labels):
    """Numbers of each sequence, `[N, number]`, by name."""
    context, query, shown, asked = classes[:, :-1], classes[:, -1], labels[:, :-1], labels[:, -1]
    number, points, same = task.label_kind.number, task.points, context == query[:, None]
    counts = lambda values, most: np.stack([(values == n).sum(axis=1) for n in range(most)], 1)
    right = shown == asked[:, None]
    return {
        "class of the query": one_hot(query, task.classes),
        "classes of the context": counts(context, task.classes),
        "how often the query's class is shown": one_hot(same.sum(axis=1), points),
        "number of classes": one_hot(different(context), points),
        "where the query's class is shown": same,
        "where the query's label is shown": right,
        "where rare classes are shown": context < task.rare,
        "neighbours of one class": context[:, 1:] == context[:, :-1],
        "label of the query": one_hot(asked, number),
        "labels of the context": counts(shown, number),
        "number of labels": one_hot(different(shown), points),
        "how often the query's label is shown": one_hot(right.sum(axis=1), points),
        "how often the query's class has its label": one_hot((same & right).sum(axis=1), points),
    }


def assert_alike(found, expected, what):
    """Means of columns `[N, n]` and `[M, n]` differ by what chance allows."""
    deviation = np.concatenate([found, expected]).astype(float).std(axis=0)
    allowed = SIGMAS * deviation * (1 / len(found) + 1 / len(expected)) ** 0.5
    difference = np.abs(found.mean(axis=0) - expected.mean(axis=0))
    assert (difference <= allowed + 1e-9).all(), (what, found.mean(axis=0), expected.mean(axis=0))


def assert_share(found, probability):
    """Shares of true values along the first axis are the probabilities, as far as chance allows."""
    probability = np.asarray(probability)
    allowed = SIGMAS * (probability * (1 - probability) / len(found)) ** 0.5
    np.testing.assert_array_less(np.abs(np.mean(found, axis=0) - probability), allowed + 1e-9)


def shares(task, group):
    """The probability of each class of a group, by its definition."""
    n = task.rare + task.common
    all_of_them = np.array([(n - j) ** -task.zipf_exponent for j in range(n)])
    part = {"zipfian": slice(0, n), "rare": slice(0, task.rare), "common": slice(task.rare, n)}
    chosen = all_of_them[part[group]]
    if group != "zipfian" and not task.zipf_groups:
        chosen = np.ones_like(chosen)
    return chosen / chosen.sum()


HOST_TASKS = TRAINING | {kind: PROBES.mode(kind) for kind in KINDS if kind != "bursty"}
HOST_TASKS |= {
    f"{kind}, polysemous": VARIANTS["polysemous"].mode(kind)
    for kind in ("no_support_rare", "in_weights")
}


@pytest.mark.parametrize("name", HOST_TASKS)
def test_sequences_are_those_of_a_generator_on_the_host(name):
    task = HOST_TASKS[name]
    found = statistics(task, *drawn(task))
    expected = statistics(task, *Host(task).many(HOST))
    for what, values in found.items():
        assert_alike(values, expected[what], what)


@pytest.mark.parametrize("exponent", [0.0, 1.0, 2.0])
def test_classes_have_their_zipf_probabilities(exponent):
    task = of(zipf_exponent=exponent)
    for kind, group in (("in_weights", "zipfian"), ("no_support_rare", "rare")):
        for in_groups in (False, True):
            # The query of any kind, and independent classes, have the probabilities themselves.
            own = of(task, zipf_groups=in_groups).mode(kind)
            classes, _ = drawn(own)
            expected = shares(own, group)
            assert_share(one_hot(classes[:, -1], len(expected)), expected)
            if kind == "in_weights":
                assert_share(one_hot(classes.reshape(-1), len(expected)), expected)
            assert exponent == 0 or expected[-1] > expected[0] or not in_groups


def test_shares_of_bursts_are_those_of_the_settings():
    task = TRAINING["bursts of all groups"]
    for common in (0.0, 1.0):
        classes, _ = drawn(of(task, p_bursty=1.0, p_bursty_common=common, p_bursty_zipfian=0.0))
        own = (classes >= task.rare) == common
        assert own[:, -1].all() and (own[:, :-1].sum(axis=1) == task.shots * task.ways).all()
    classes, _ = drawn(of(task, points=5, p_bursty=1.0))
    rare = classes < task.rare
    zipfian = shares(task, "zipfian")[: task.rare].sum()
    assert_share(rare[:, -1], 0.5 + 0.2 * zipfian)
    # A query whose class is not shown is none of a burst.
    classes, _ = drawn(BASE)
    alone = (classes[:, :-1] != classes[:, -1:]).all(axis=1)
    p = shares(BASE, "zipfian")
    assert_share(alone, 0.3 * (p * (1 - p) ** 7).sum())


def test_the_context_is_exchangeable():
    for task in (BASE, TRAINING["repeated"], PROBES.mode("fewshot_rare")):
        classes, labels = drawn(task)
        same = classes[:, :-1] == classes[:, -1:]
        assert_share(same, np.full(task.points - 1, same.mean()))
        pairs = classes[:, :-2] == classes[:, 1:-1]
        far = classes[:, 0] == classes[:, task.points - 2]
        assert_share(np.column_stack([pairs, far]), np.full(task.points - 1, pairs.mean()))
        assert_share(labels[:, :-1] == 1, np.full(task.points - 1, (labels[:, :-1] == 1).mean()))


def test_with_replacement_both_classes_of_a_burst_may_be_equal():
    task = of(holdout=10, repeated_ways=True).mode("fewshot_holdout")
    classes, labels = drawn(task)
    one = different(classes[:, :-1]) == 1
    assert_share(one, 0.1)
    # The best guess, a label that the query's class has, is right with probability 0.95.
    same = classes[:, :-1] == classes[:, -1:]
    guess = np.where(same, labels[:, :-1], 9).min(axis=1)
    assert_share(guess == labels[:, -1], 0.95)
    classes, _ = drawn(of(holdout=10).mode("fewshot_holdout"))
    assert (different(classes[:, :-1]) == 2).all()


def first_label(task, classes):
    """The first label of each class, and the number of its labels."""
    if task.labels is not None:
        return classes % task.labels, np.ones_like(classes)
    several = task.polysemy if task.labelling == "polysemous" else 1
    start = np.concatenate([[0], np.cumsum(np.where(np.arange(40) < task.rare, several, 1))])
    return start[classes], (start[1:] - start[:-1])[classes]


def has_own_label(task, classes, labels):
    first, number = first_label(task, classes)
    return (labels >= first) & (labels < first + number)


def check_few_shots(task, classes, labels, shots):
    """Each way has so many items in the context, and the query is one more item of a way."""
    code = classes * 1000 + labels
    each = np.sort(code[:, :-1], axis=1).reshape(len(code), -1, shots)
    assert (each == each[:, :, :1]).all()
    assert ((code[:, :-1] == code[:, -1:]).sum(axis=1) >= shots).all()
    if not task.repeated_ways:
        assert (different(classes[:, :-1]) == task.ways).all()
        assert ((classes[:, :-1] == classes[:, -1:]).sum(axis=1) == shots).all()
    if task.grouped:
        groups = np.sort(classes[:, :-1].reshape(len(classes), shots, task.ways), axis=2)
        assert (groups == groups[:, :1]).all()


def check_group(task, kind, classes):
    trained, last = task.rare + task.common, kind.rpartition("_")[2]
    low, high = {
        "rare": (0, task.rare),
        "common": (task.rare, trained),
        "holdout": (trained, task.classes),
        "context": (trained, task.classes),
    }.get(last, (0, trained))
    assert classes.min() == low and classes.max() == high - 1


@pytest.mark.parametrize("variant, kind", LAWS)
def test_laws_of_each_kind(variant, kind):
    task = VARIANTS[variant].mode(kind)
    classes, labels = drawn(task)
    assert classes.shape == labels.shape == (MANY, task.points)
    assert labels.min() >= 0 and labels.max() < task.label_kind.number
    context, query, shown, asked = classes[:, :-1], classes[:, -1:], labels[:, :-1], labels[:, -1:]
    own, first = has_own_label(task, classes, labels), first_label(task, classes)[0]
    pair = (context == query) & (shown == asked)
    check_group(task, kind, classes)
    if kind.startswith("fewshot"):
        check_few_shots(task, classes, labels, task.fewshot_shots)
        expected = np.repeat(np.arange(task.ways), task.fewshot_shots)
        assert (np.sort(shown, axis=1) == expected).all()
    elif kind == "mixed":
        few = (classes < task.rare).all(axis=1)
        assert_share(few, task.p_fewshot)
        check_few_shots(task, classes[few], labels[few], task.fewshot_shots)
        assert labels[few].max() == task.ways - 1
        assert (classes[~few] >= task.rare).all() and own[~few].all()
    elif kind.startswith("no_support"):
        assert (context != query).all() and own.all()
    elif kind == "copy_available":
        assert (context != query).all() and own[:, -1].all()
        moved = shown == asked
        # Classes that share labels may show it once more.
        assert (moved.sum(axis=1) == 1).all() if task.labels is None else moved.any(axis=1).all()
        assert (own[:, :-1] | moved).all() and ((~own).sum(axis=1) <= 1).all()
    elif kind == "in_context":
        check_few_shots(task, classes, labels, task.fewshot_shots)
        assert (labels == first).all()
    elif kind == "swap":
        check_few_shots(task, classes, labels, task.fewshot_shots)
        assert (labels == (first + 1) % task.label_kind.number).all()
    elif kind == "flip":
        assert (pair.sum(axis=1) >= task.shots).all()
        if not task.repeated_ways:
            # The items of other labels are the burst, whose classes and labels are the same set.
            assert ((~own).sum(axis=1) == task.shots * task.ways + 1).all() and not own[:, -1].any()
            sets = np.sort(np.where(own[:, :-1], -1, np.stack([first, labels])[:, :, :-1]), axis=2)
            assert (sets[0] == sets[1]).all()
    elif kind == "relabel":
        assert (asked < task.ways).all() and (pair.sum(axis=1) >= task.shots).all()
        assert ((shown < task.ways).sum(axis=1) >= task.shots * task.ways).all()
    else:
        assert kind in ("bursty", "in_weights") and own.all()
        if kind == "in_weights":
            assert_share(context == query, (shares(task, "zipfian") ** 2).sum())


def test_kinds_have_their_names_and_evaluation_is_of_classes_that_are_new():
    assert typing.get_args(Kind) == tuple(KINDS)
    assert BASE.evaluation == BASE.mode("fewshot_holdout")
    assert of(holdout=1).evaluation == of(holdout=1).mode("fewshot_zipfian")
    assert of(labels=4).evaluation == of(labels=4).mode("in_context")
    swap = BASE.mode("swap")
    assert swap.evaluation is swap and swap.points == 7
    changed = of(interim=0.5, source=("glyphs",), p_fresh=0.5).mode("no_support_rare")
    assert changed == of(source=("glyphs",), sequences="no_support_rare")
    with pytest.raises(ValueError, match="no mode 'fewshot_'; there are bursty, mixed, fewshot_r"):
        BASE.mode("fewshot_")


def test_a_burst_has_one_label_for_each_class():
    rare = of(TRAINING["bursts alone"], p_bursty_zipfian=0.0, polysemy=3)
    for task, number in (
        (of(rare, labelling="polysemous"), 3),
        (of(rare, labelling="unfixed"), 2),
        (of(zipf_exponent=2.0).mode("fewshot_zipfian"), 2),
    ):
        classes, labels = drawn(task)
        check_few_shots(task, classes, labels, (task.points - 1) // 2)
        # Each of the labels is as frequent as the others, whatever the class.
        which = labels[:, -1] - (first_label(task, classes[:, -1])[0] if number == 3 else 0)
        for one in np.unique(classes):
            assert_share(one_hot(which[classes[:, -1] == one], number), np.full(number, 1 / number))


def test_grouped_items_show_each_class_once():
    classes, _ = drawn(TRAINING["grouped"])
    burst = classes < BASE.rare
    bursty = (burst[:, :-1].sum(axis=1) == 6) & burst[:, -1]
    # Rare classes of other sequences, which are few, make no such bursts by chance alone.
    own = classes[:, :-1][bursty][burst[:, :-1][bursty]].reshape(-1, 2, 3)
    whole = (np.sort(own[:, 0], axis=1) == np.sort(own[:, 1], axis=1)).all(axis=1)
    whole &= different(own[:, 0]) == 3
    assert whole.mean() > 0.95 and bursty.mean() > 0.69
    all_bursty = of(TRAINING["grouped"], p_bursty=1.0)
    classes, _ = drawn(all_bursty)
    own = classes[:, :-1][classes[:, :-1] < BASE.rare].reshape(-1, 2, 3)
    assert len(own) == MANY and (different(own.reshape(MANY, -1)) == 3).all()
    assert (np.sort(own[:, 0], axis=1) == np.sort(own[:, 1], axis=1)).all()
    # The other items lie anywhere, and the orders of the two groups are independent.
    assert_share(classes[:, :-1] >= BASE.rare, np.full(8, 2 / 8))
    assert_share((own[:, 0] == own[:, 1]).all(axis=1), 1 / 6)


def test_fresh_classes_are_never_those_of_other_sequences():
    for augmented in (False, True):
        task = of(source=("glyphs",), p_fresh=0.4, p_bursty=1.0, labels=4, augmented=augmented)
        classes, labels = drawn(task)
        fresh = classes >= FRESH
        assert (fresh.all(axis=1) | ~fresh.any(axis=1)).all()
        assert_share(fresh[:, 0], 0.4)
        known = classes[~fresh]
        assert known.max() < task.rare + task.common
        largest = 3 * 10**7  # of the settings
        assert classes[fresh].min() // TRANSFORMS > largest // TRANSFORMS
        # Bursts stay bursts, with labels of trained classes.
        shown = (classes[:, :-1] == classes[:, -1:]) & (labels[:, :-1] == labels[:, -1:])
        assert (shown.sum(axis=1) >= task.shots).all() and set(labels[fresh]) == {0, 1, 2, 3}
        starts = classes[fresh[:, 0]].min(axis=1)
        assert len(np.unique(starts)) > 0.99 * len(starts)


SETTINGS = dict(
    rare=st.integers(0, 9), common=st.integers(0, 9), holdout=st.integers(1, 9),
    polysemy=st.integers(1, 5), labelling=st.sampled_from(("ordered", "polysemous", "original")),
)  # fmt: skip


@given(**SETTINGS, seed=st.integers(0, 1000))
def test_labels_of_classes_are_inverted(rare, common, holdout, polysemy, labelling, seed):
    rng, total = np.random.default_rng(seed), rare + common + holdout
    known = ClassLabels(rare, common, holdout, labelling, polysemy)
    classes = jnp.asarray(rng.integers(0, total, 200), jnp.int32)
    original = jnp.zeros(30, jnp.int32).at[:total].set(rng.permutation(total).astype(np.int32))
    original = original[:total] if labelling == "original" else None
    numbers = jnp.asarray(rng.random(200), jnp.float32).at[:2].set(jnp.float32([0, 1 - 2**-24]))
    for drawn_numbers in (None, numbers):
        labels = known.of(classes, drawn_numbers, original)
        assert ((0 <= labels) & (labels < known.number)).all()
        np.testing.assert_array_equal(known.classes(labels, original), classes)
        groups = known.groups(labels, original)
        np.testing.assert_array_equal(groups["rare"], classes < rare)
        np.testing.assert_array_equal(
            groups["common"], (rare <= classes) & (classes < rare + common)
        )
    several = polysemy if labelling == "polysemous" else 1
    assert known.number == max(2, rare * several + common + holdout)
    if labelling != "original":
        task = of(rare=rare, common=common, holdout=holdout, labelling=labelling, polysemy=polysemy,
                  sequences="in_context", ways=1, points=4)  # fmt: skip
        np.testing.assert_array_equal(known.of(classes), first_label(task, np.asarray(classes))[0])
    shared = ClassLabels(rare, common, holdout, labels=3)
    np.testing.assert_array_equal(shared.of(classes), np.asarray(classes) % 3)
    assert shared.number == 3 and np.isnan(shared.groups(classes)["rare"]).all()


# Items and orders.


@given(
    st.lists(st.integers(0, 4), min_size=9, max_size=9),
    st.lists(st.integers(1, 6), min_size=5, max_size=5),
    st.lists(st.floats(0, 1 - 2**-24, width=32), min_size=9, max_size=9),
)
@settings(max_examples=100)
def test_items_are_chosen_among_those_that_are_left(classes, counts, numbers):
    of_class = np.array(counts)[classes]
    chosen = np.asarray(jit_items(np.float32(numbers), np.int32(classes), np.int32(of_class)))
    used = {one: [] for one in classes}
    for number, one, item in zip(numbers, classes, chosen):
        every = range(counts[one])
        left = [n for n in every if n not in used[one]] or list(every)
        assert item == left[int(np.float32(number) * np.float32(len(left)))]
        used[one].append(item)


jit_items = jax.jit(items)


def test_pairs_of_items_are_uniform():
    classes, count = jnp.int32([7, 3, 7, 3, 7]), jnp.full(5, 4)
    numbers = jnp.asarray(RNG.random((MANY, 5)), jnp.float32)
    chosen = np.asarray(jax.jit(jax.vmap(lambda u: items(u, classes, count)))(numbers))
    own = chosen[:, [0, 2, 4]]
    assert (different(own) == 3).all() and (different(chosen[:, [1, 3]]) == 2).all()
    assert_share(chosen[:, :, None] == np.arange(4), np.full((5, 4), 1 / 4))
    three = np.array(list(itertools.permutations(range(4), 3)))
    which = lambda found: (found[:, None] == three[None]).all(axis=2)
    assert_share(which(own), np.full(24, 1 / 24))
    host = np.array([RNG.choice(4, 3, replace=False) for _ in range(HOST)])
    assert_alike(which(own), which(host), "three of four")
    between = chosen[:, 0] == chosen[:, 1]  # of different classes, which are independent
    assert_share(between, 1 / 4)


def test_orders_are_uniform_permutations():
    # Every order of the numbers gives another permutation.
    numbers = np.array(list(itertools.permutations([0, 0.2, 0.5, 0.9])), np.float32)
    found = np.asarray(jax.jit(jax.vmap(order))(numbers))
    assert len({tuple(row) for row in found}) == 24
    assert (np.sort(found, axis=1) == np.arange(4)).all()
    for count in (1, MOST_COMPARED, MOST_COMPARED + 1):
        numbers = RNG.random((5000, count), np.float32)
        numbers[:100] = RNG.integers(0, 3, (100, count)) / 4  # ties
        found = np.asarray(jax.jit(jax.vmap(order))(numbers))
        assert found.dtype == np.int32
        assert (np.sort(found, axis=1) == np.arange(count)).all()
        places = found[100:, :, None] == np.arange(count)
        assert_share(places, np.full((count, count), 1 / count))
        if count > 1:
            assert_share(found[100:, :-1] < found[100:, 1:], np.full(count - 1, 0.5))


@pytest.mark.parametrize("ordered", [False, True])
def test_merged_arrays_keep_their_entries(ordered):
    first, second = jnp.int32([1, 2, 3]), jnp.int32([-1, -2])
    numbers = RNG.random((MANY, 5), np.float32)
    found = np.asarray(jax.jit(jax.vmap(lambda u: merged(u, first, second, ordered)))(numbers))
    assert (np.sort(found, axis=1) == [-2, -1, 1, 2, 3]).all()
    own = found[found > 0].reshape(MANY, 3)
    assert (own == [1, 2, 3]).all() if ordered else len(np.unique(own, axis=0)) == 6
    places = np.array([np.isin(range(5), two) for two in itertools.combinations(range(5), 2)])
    assert_share(((found < 0)[:, None] == places).all(axis=2), np.full(10, 1 / 10))
    # Entries of the second array are in either order.
    others = found[found < 0].reshape(MANY, 2)
    assert_share(others[:, 0] == -1, 0.5)


@functools.cache
def jit_draw(group, number):
    return jax.jit(lambda numbers, taken: group.draw(numbers, [taken[i] for i in range(number)]))


GRID = (np.arange(2**15) + 0.5) / 2**15
GROUPS = [
    Group(0, 7),
    Group(3, 5, 1.0, 0, 5),
    Group(10, 6, 2.0, 4, 12),
    Group(2, 4, 0.5, 1, 5),
]


@given(st.sampled_from(GROUPS), st.integers(0, 3), st.permutations(range(7)))
@settings(max_examples=60)
def test_classes_that_are_taken_are_not_drawn_again(group, number, places):
    taken = [place for place in places if place < group.count][:number]
    which = np.array(taken, np.int32) + np.int32(group.first)
    found = np.asarray(jit_draw(group, number)(np.float32(GRID), which)) - group.first
    assert found.min() >= 0 and found.max() < group.count
    ranks = group.total - group.before - np.arange(group.count)
    expected = np.ones(group.count) if not group.exponent else ranks**-group.exponent
    expected[taken] = 0
    expected /= expected.sum()
    share = np.bincount(found, minlength=group.count) / len(GRID)
    assert (share[taken] == 0).all()
    np.testing.assert_allclose(share, expected, atol=3 / len(GRID))


def test_zipf_probabilities_of_the_paper_are_exact():
    for group in (Group(0, 1613, 1.0, 0, 1613), Group(1603, 10, 2.0, 1603, 1613)):
        numbers = (np.arange(2**20) + 0.5) / 2**20
        found = np.asarray(jit_draw(group, 0)(np.float32(numbers), np.zeros(0, np.int32)))
        share = np.bincount(found - group.first, minlength=group.count) / 2**20
        expected = 1.0 / np.arange(group.count, 0, -1) ** group.exponent
        np.testing.assert_allclose(share, expected / expected.sum(), atol=3 / 2**20)
    # The largest and the smallest number, with classes of tiny probability.
    steep = Group(0, 50, 20.0, 0, 50)
    ends = np.array([0, 1e-30, 0.5, 1 - 2**-24], np.float32)
    for taken in np.array([[0, 1], [49, 0], [49, 48]], np.int32):
        found = np.asarray(jit_draw(steep, 2)(ends, taken))
        assert not np.isin(found, taken).any() and ((found >= 0) & (found < 50)).all()


def test_transforms_are_flips_and_quarter_turns_against_the_clock():
    images = RNG.integers(0, 256, (TRANSFORMS, 5, 5), dtype=np.uint8)
    found = np.asarray(transformed(jnp.asarray(images), jnp.arange(TRANSFORMS)))
    for which, (image, result) in enumerate(zip(images, found)):
        mirror = np.fliplr(image) if which >= 4 else image
        np.testing.assert_array_equal(result, np.rot90(mirror, which % 4))


# Built-in classes.

FIVE = of(points=5, fewshot_shots=2)
GLYPHS = of(FIVE, source=("glyphs",), size=10)
GAUSSIANS = of(FIVE, source=("gaussians",), dim=4)


@functools.cache
def shower(task):
    draw = lambda key, classes, data: task.sample_episode(
        key, Sequence(classes, classes), task.full, data
    )
    return jax.jit(jax.vmap(draw, (0, 0, None)))


def shown(task, classes, seed=0, data=None):
    """Items of classes `[N, points]`, `[N, points, ...]`."""
    keys = jax.random.split(jax.random.key(seed), len(classes))
    episodes = shower(task)(keys, jnp.asarray(classes, jnp.int32), data)
    np.testing.assert_array_equal(episodes.y, classes)
    kind = task.input_kind
    assert episodes.x.shape == (*classes.shape, *kind.shape)
    return np.asarray(episodes.x)


ANY = RNG.integers(0, 15, (60, 5))


@pytest.mark.parametrize("task", [GLYPHS, GAUSSIANS], ids=["glyphs", "gaussians"])
def test_a_class_is_the_same_in_all_prompts_and_families(task):
    training = of(task, spread=0.0)
    x = shown(training, ANY)
    means = np.stack([x[ANY == one][0] for one in range(15)])
    np.testing.assert_array_equal(x, means[ANY])
    assert len(np.unique(means.reshape(15, -1), axis=0)) == 15
    for other in (training.mode("fewshot_holdout"), of(training, rare=1000, common=0)):
        np.testing.assert_array_equal(shown(other, ANY, seed=5), means[ANY])


@pytest.mark.parametrize("task", [GLYPHS, GAUSSIANS], ids=["glyphs", "gaussians"])
def test_a_class_has_its_number_of_items(task):
    same = np.full((40, 5), 3)
    make = lambda exemplars, seed=0: shown(of(task, exemplars=exemplars, spread=0.2), same, seed)
    different_ones = lambda x: np.unique(x.reshape(-1, x[0, 0].size), axis=0)
    one, three, again = different_ones(make(1)), make(3), make(3, seed=1)
    assert len(one) == 1 and len(different_ones(three)) == 3
    assert (different_ones(three) == one).all(axis=1).sum() == 1
    np.testing.assert_array_equal(different_ones(three), different_ones(again))
    # Without repetition, while there are others.
    assert all(len(different_ones(prompt[None, :3])) == 3 for prompt in three)
    assert len(different_ones(make(None))) == 200


def test_gaussians_have_mean_square_1_and_their_spread():
    classes = jnp.arange(4000) // 2
    for spread in (0.1, 1.0):
        x = np.asarray(gaussians(jax.random.key(1), classes, None, 16, spread))
        assert x.dtype == np.float32
        assert abs(x.mean()) < SIGMAS / 32_000**0.5 and abs((x**2).mean() - 1) < 0.05
        one, other = x[::2], x[1::2]
        scale = 1 + spread**2
        # Items of a class differ by their spread, twice its variance; a class has its mean.
        np.testing.assert_allclose(((one - other) ** 2).mean(), 2 * spread**2 / scale, rtol=0.05)
        np.testing.assert_allclose((one * other).mean(), 1 / scale, rtol=0.07)
        assert abs((one[1:] * other[:-1]).mean()) < SIGMAS / 32_000**0.5
    fixed = gaussians(jax.random.key(2), classes, jnp.arange(4000) % 2, 16, 1.0)
    again = gaussians(jax.random.key(3), classes, jnp.arange(4000) % 2, 16, 1.0)
    np.testing.assert_array_equal(fixed, again)
    np.testing.assert_allclose(np.square(fixed).mean(), 1, rtol=0.05)
    default = shown(GAUSSIANS, ANY)
    np.testing.assert_array_equal(default, shown(of(GAUSSIANS, spread=0.1), ANY))


def test_glyphs_have_ink_and_background():
    x = shown(GLYPHS, np.arange(800).reshape(160, 5))
    assert x.dtype == np.uint8
    flat = x.reshape(800, -1).astype(float) / 255
    assert (flat.min(axis=1) == 0).all() and (flat.max(axis=1) > 0.7).all()
    assert 0.02 < flat.mean(axis=1).min() and flat.mean(axis=1).max() < 0.6
    assert len(np.unique(flat, axis=0)) == 800
    # Drawings of a class are nearer to one another than to others'.
    drawings = shown(GLYPHS, np.tile(np.arange(80)[:, None], 5)).reshape(80, 5, -1) / 255
    own = drawings[:, :3].mean(axis=1)
    distance = ((drawings[:, 3:, None] - own[None, None]) ** 2).sum(axis=3)
    assert (distance.argmin(axis=2) == np.arange(80)[:, None]).mean() > 0.8


def test_augmented_classes_are_transforms_of_one_class():
    task = of(GLYPHS, spread=0.0, augmented=True, rare=40)
    x = shown(task, np.arange(40).reshape(8, 5)).reshape(40, 10, 10)
    plain = shown(of(GLYPHS, spread=0.0, rare=40), np.arange(6)[None])[0]
    for number, image in enumerate(x):
        base, which = divmod(number, TRANSFORMS)
        mirror = np.fliplr(plain[base]) if which >= 4 else plain[base]
        np.testing.assert_array_equal(image, np.rot90(mirror, which % 4))
    # Held-out classes begin with another glyph than the last trained class.
    few = of(task, rare=3, common=2, holdout=8)
    [held_out] = shown(few, np.arange(5, 11)[None])
    np.testing.assert_array_equal(held_out[0], plain[1])


def test_noise_has_its_deviation():
    task = of(GLYPHS, noise=0.3)
    x = shown(task, ANY)
    assert x.dtype == np.float32
    task.input_kind.check(x)
    with pytest.raises(ValueError, match="divide bytes by 255"):
        task.input_kind.check(np.zeros((3, 10, 10), np.uint8))
    noise = (x - shown(GLYPHS, ANY) / np.float32(255)) / 0.3
    count = noise.size
    assert abs(noise.mean()) < SIGMAS / count**0.5
    assert abs(noise.std() - 1) < SIGMAS / (2 * count) ** 0.5
    correlation = (noise[:, 0] * noise[:, 1]).mean(), (noise[0] * noise[1]).mean()
    assert max(map(abs, correlation)) < 0.2
    # It is independent of the numbers that the drawings are made of.
    keys = jax.random.split(jax.random.key(0), len(ANY))
    own = np.asarray(jax.vmap(lambda key: normal_at(key, 500))(keys)).reshape(noise.shape)
    assert abs((noise * own).mean()) < SIGMAS / count**0.5


def test_rare_classes_may_be_random_images():
    task = of(GLYPHS, random_rare=True)
    x, plain = shown(task, ANY), shown(GLYPHS, ANY)
    rare = ANY < task.rare
    np.testing.assert_array_equal(x[~rare], plain[~rare])
    assert set(np.unique(x[rare])) == {0, 255}
    images = {}
    for row, (classes, found) in enumerate(zip(ANY, x)):
        for one, image in zip(classes[classes < 6], found[classes < 6]):
            np.testing.assert_array_equal(image, images.setdefault((row, one), image))
    assert len({image.tobytes() for image in images.values()}) == len(images)
    share = np.mean(list(images.values())) / 255
    assert abs(share - 0.5) < SIGMAS * 0.5 / (100 * len(images)) ** 0.5


def test_symbols_are_the_classes():
    task = BASE.mode("fewshot_holdout")
    episodes = prompts(task, jax.random.key(0), 50)
    assert episodes.x.dtype == jnp.int32 and episodes.x.shape == (50, 7)
    task.input_kind.check(np.asarray(episodes.x))
    assert (episodes.x >= 10).all() and (episodes.y < 2).all()


# Files.

ITEMS = np.array([3, 4] * 5)  # of each of 10 classes


def marked(number, item):
    """An image that tells its class, its item and how it is turned."""
    image = np.zeros((4, 4), np.uint8)
    image[0, 1], image[1, 1] = 10 + number, 60 + item
    return image


TURNED = [np.rot90(np.fliplr(m) if f else m, k) for m in [marked(0, 0)] for f in (0, 1)
          for k in range(4)]  # fmt: skip


def read(images):
    """Classes, items and transforms of marked images."""
    inner, border = images[..., 1:3, 1:3], images.copy()
    border[..., 1:3, 1:3] = 0
    which = np.stack([(border > 0) == (image % 60 == 10) for image in TURNED])
    turned = which.all(axis=(-1, -2)).argmax(axis=0)
    return border.max(axis=(-1, -2)) - 10, inner.max(axis=(-1, -2)) - 60, turned


@pytest.fixture(scope="module")
def files(tmp_path_factory):
    """Paths of images and of features, 3 or 4 items of each of 10 classes."""
    path = tmp_path_factory.mktemp("classes")
    label = np.repeat(np.arange(10), ITEMS)
    item = np.concatenate([np.arange(n) for n in ITEMS])
    images = np.stack([marked(*both) for both in zip(label, item)])
    vectors = np.stack([label, item, label * item], axis=1).astype(np.float32)
    np.savez(path / "pictures.npz", images=images, labels=label)
    np.savez(path / "vectors.npz", x=vectors, y=label)
    return {name: str(path / f"{name}.npz") for name in ("pictures", "vectors")}


ORDER = np.random.default_rng(1337).choice(10, size=10, replace=False)


@pytest.mark.parametrize("rare", [2, 4])
@pytest.mark.parametrize("name", ["pictures", "vectors"])
def test_files_give_items_of_the_class(files, name, rare):
    features = dict(features=3) if name == "vectors" else {}
    task = of(FIVE, source=(files[name],), rare=rare, common=2, holdout=3, size=4, **features)
    data, classes = task.load_data(), RNG.integers(0, task.classes, (300, 5))
    x = shown(task, classes, data=data)
    number, item = read(x)[:2] if name == "pictures" else x.astype(int)[..., :2].transpose(2, 0, 1)
    # Held-out classes are the last, however many others are in use.
    places = np.where(classes < rare + 2, classes, 10 - task.classes + classes)
    np.testing.assert_array_equal(number, ORDER[places])
    assert (item < ITEMS[number]).all()
    for prompt, found in zip(number, item):
        for one in set(prompt):  # none is shown twice, while there are others
            own = found[prompt == one][: ITEMS[one]]
            assert len(set(own)) == len(own)
    seen = set(zip(number.ravel(), item.ravel()))
    assert len(seen) == ITEMS[ORDER[np.unique(places)]].sum()


def test_original_labels_are_places_in_the_files(files):
    task = of(
        FIVE, source=(files["pictures"],), rare=5, common=2, holdout=3, size=4,
        labelling="original", p_bursty=0.5,
    )  # fmt: skip
    turned = of(task, augmented=True, rare=40, common=16, holdout=24)
    for own in (task, turned, task.mode("in_context"), turned.mode("in_context")):
        data = own.load_data()
        episodes = prompts(own, jax.random.key(1), 300, data)
        number, _, which = read(np.asarray(episodes.x))
        np.testing.assert_array_equal(episodes.y, 8 * number + which if own.augmented else number)
        assert set(number.ravel()) == set(ORDER[:7] if own.sequences == "bursty" else ORDER[7:])
        known = own.class_labels.groups(episodes.y, own.original(data))
        trained = np.asarray(known["rare"]) + np.asarray(known["common"])
        assert (trained == (own.sequences == "bursty")).all()


def test_augmented_and_separated_classes_of_files(files):
    task = of(FIVE, source=(files["pictures"],), size=4)
    own = of(task, rare=40, common=8, holdout=16, augmented=True)
    classes = RNG.integers(0, 64, (200, 5))
    number, _, turned = read(shown(own, classes, data=own.load_data()))
    places = np.where(classes < 48, classes, 80 - 64 + classes)
    np.testing.assert_array_equal(number, ORDER[places // 8])
    np.testing.assert_array_equal(turned, places % 8)
    own = of(task, rare=10, common=2, holdout=3, separated=True)
    data, classes = own.load_data(), np.arange(15).reshape(3, 5)
    assert data is not None
    found = read(shown(own, classes, data=data))[:2]
    images = np.array([(one, n) for one in ORDER for n in range(ITEMS[one])])
    expected = np.concatenate([images[:12], images[-3:]]).reshape(3, 5, 2)
    np.testing.assert_array_equal(np.stack(found, axis=2), expected)
    before = np.cumsum(ITEMS) - ITEMS
    np.testing.assert_array_equal(data.original, [before[one] + n for one, n in images])
    own = of(task, rare=5, common=2, holdout=3, exemplars=1)
    _, item, _ = read(shown(own, RNG.integers(0, 10, (20, 5)), data=own.load_data()))
    assert (item == 0).all()


NONE = jnp.zeros(8, jnp.int32)


def test_files_that_do_not_fit_say_what_to_set(files):
    task = of(source=(files["pictures"],), rare=2, common=2, holdout=2, size=4)
    for changes, words in (
        (dict(rare=20), r"pictures.npz has 10 classes, and the task uses 24 .*set task.rare to 6"),
        (dict(rare=20, common=9), r"the task uses 31 \(rare 20, common 9, .*set task.rare to 0"),
        (dict(rare=90, augmented=True), "has 80 classes, .* set task.rare to 70"),
        (dict(rare=90, separated=True), "has 35 classes, .* set task.rare to 31"),
        (dict(labelling="original"), "original labels need all 10 classes .* with that sum, not 6"),
        (dict(exemplars=4), "has 3 items of class 0: set task.exemplars to that at most"),
        (dict(features=4), "has images: set task.features to None"),
        (dict(source=(files["vectors"],)), "has 3 features an input: set task.features to 3"),
    ):
        with pytest.raises(ValueError, match=words):
            of(task, **changes).load_data()
    assert task.load_data() is not None and BASE.load_data() is None
    assert task.data_source == files["pictures"] and BASE.data_source is None
    assert [str(path) for path in task.data_files] == [files["pictures"]] and not BASE.data_files
    with pytest.raises(ValueError, match="inputs are drawn from data: give the result of load_d"):
        task.sample_episode(jax.random.key(0), Sequence(NONE, NONE), task.full)
    with pytest.raises(FileNotFoundError):
        of(task, source=("missing.npz",)).load_data()


# Refusals.

FILE = dict(source=("a.npz",))


@pytest.mark.parametrize("changes, words", [
    (dict(size=0), "task.size must be a whole number from 1"),
    (dict(dim=1001), "task.dim must be a whole number from 1 to 1000"),
    (dict(spread=-0.1), "task.spread must be a number from 0"),
    (dict(exemplars=0), "task.exemplars must be a whole number from 1"),
    (dict(noise=-1.0), "task.noise must be"),
    (dict(rare=-1), "task.rare must be a whole number from 0"),
    (dict(common=2**22 + 1), "task.common must be a whole number from 0 to 4194304"),
    (dict(holdout=0.5), "task.holdout must be a whole number"),
    (dict(zipf_exponent=-1.0), "task.zipf_exponent must be a number from 0 to 100"),
    *((dict([(name, value)]), f"task.{name} must be a number from 0 to 1") for value in (-0.1, 1.1)
      for name in ("p_bursty", "p_bursty_common", "p_bursty_zipfian", "p_fewshot", "p_fresh",
                   "interim")),
    *((dict([(name, 0)]), f"task.{name} must be a whole number from 1") for name in
      ("points", "shots", "ways", "fewshot_shots", "polysemy")),
    (dict(labels=1), "task.labels must be a whole number from 2"),
    (dict(sequences="burst"), "task.sequences must be one of bursty, mixed, fewshot_rare"),
    (dict(labelling="fixed"), "task.labelling must be one of ordered, unfixed, polysemous, orig"),
    (dict(non_bursty="rare"), "task.non_bursty must be one of zipfian, common, common_no_support"),
    (dict(source=()), "task.source must be one of glyphs, gaussians, symbols, or paths; got"),
    (dict(source=("glyphs", "a.npz")), "task.source must be one of"),
    (dict(source=("gaussians",), augmented=True), "can be changed: leave task.augmented out"),
    (dict(noise=0.1), "only images can be changed: leave task.noise out"),
    (dict(random_rare=True), "only images can be changed: leave task.random_rare out"),
    (dict(FILE, features=4, augmented=True), "only images .* leave task.augmented out"),
    (dict(FILE, p_fresh=0.1), "fresh classes: leave task.p_fresh 0"),
    (dict(p_fresh=0.1), "fresh classes: leave task.p_fresh 0"),
    (dict(separated=True), "task.separated makes classes of all items of files: leave"),
    (dict(FILE, separated=True, exemplars=2), "leave task.exemplars None"),
    (dict(features=4), "features are read from files: leave task.features None"),
    (dict(labelling="original"), "only classes of files have original labels: choose another"),
    (dict(p_bursty_common=0.6, p_bursty_zipfian=0.5), "p_bursty_zipfian exceed 1 together"),
    (dict(labelling="unfixed", labels=4), "leave task.labelling ordered"),
    (dict(labelling="polysemous", labels=4), "leave task.labelling ordered"),
    (dict(sequences="swap", points=9, labelling="polysemous"), "swap needs ordered labels"),
    (dict(sequences="relabel", p_fresh=0.5), "only bursty sequences have fresh classes"),
    (dict(sequences="flip", ways=1), "no labels to exchange: set task.ways to 2"),
    (dict(ways=3, labels=2), "fewer labels than classes in a burst: lower task.ways"),
    (dict(sequences="fewshot_rare"), "2 classes of 3 items and the query are 7 points: set "
     "task.points to that, not 8"),
    (dict(points=4), "bursts of 2 classes with 2 items and the query need 5 points: raise "
     "task.points, which is 4, or lower task.shots"),
    (dict(sequences="flip", points=4), "bursts of 2 classes with 2 items"),
    (dict(sequences="relabel", points=4), "bursts of 2 classes with 2 items"),
])  # fmt: skip
def test_settings_that_contradict_each_other_are_refused(changes, words):
    with pytest.raises(ValueError, match=words):
        of(**changes)


NEEDS = [
    *((kind, {kind.rpartition("_")[2]: 3}) for kind in KINDS if kind.startswith("fewshot")),
    *((kind, {kind.rpartition("_")[2]: 2}) for kind in KINDS if kind.startswith("no_support")),
    ("mixed", dict(rare=3, common=1)), ("in_context", dict(holdout=3)), ("swap", dict(zipfian=3)),
    ("flip", dict(zipfian=3)), ("relabel", dict(zipfian=3)), ("copy_available", dict(zipfian=2)),
    ("bursty", dict(zipfian=3)),
    (dict(p_bursty_zipfian=0.0), dict(rare=3, common=1)),
    (dict(p_bursty_zipfian=0.0, points=7), dict(rare=3)),
    (dict(p_bursty_common=1.0, p_bursty_zipfian=0.0), dict(rare=1, common=3)),
    (dict(p_bursty=0.5, points=7, p_bursty_zipfian=0.0, non_bursty="common"),
     dict(rare=3, common=1)),
    (dict(p_bursty=0.5, non_bursty="common_no_support", p_bursty_zipfian=0.0, points=7),
     dict(rare=3, common=2)),
    (dict(p_bursty=0.0), dict(zipfian=1)),
]  # fmt: skip


@pytest.mark.parametrize("kind, needs", NEEDS)
def test_too_few_classes_are_refused(kind, needs):
    changes = {} if isinstance(kind, str) else kind
    task = of(ways=3, points=8, p_bursty=1.0)
    task = task.mode(kind) if isinstance(kind, str) else of(task, **changes)
    least = dict(rare=0, common=0, holdout=0) | {
        ("rare" if group == "zipfian" else group): number for group, number in needs.items()
    }
    assert of(task, labels=3, **least).sequences == task.sequences
    for group, number in needs.items():
        name = "rare" if group == "zipfian" else group
        words = f"sequences need {number} {group} classes, and there are {number - 1}: raise their"
        with pytest.raises(ValueError, match=words):
            of(task, labels=3, **(least | {name: number - 1}))
    if max(needs.values()) == 3:
        few = {name: min(number, 2) for name, number in least.items()}
        assert of(task, labels=3, repeated_ways=True, **few).sequences == task.sequences


# Queries, weights and losses.

LEARNED = of(GAUSSIANS, labels=4, points=6)


def test_the_query_is_last_and_its_loss_has_the_rest_of_the_weight():
    for interim in (0.0, 0.4):
        task = of(LEARNED, interim=interim)
        episodes = prompts(task, jax.random.key(0), 8)
        last = np.tile(np.arange(6) == 5, (8, 1))
        np.testing.assert_array_equal(episodes.context, ~last)
        np.testing.assert_array_equal(episodes.queries, last if not interim else np.ones((8, 6)))
        assert task.only_last_is_query == (not interim)
        config = lambda task=task: Config(task=task, curriculum=Curriculum(points_start=3))
        if interim:
            assert episodes.weights is not None
            np.testing.assert_allclose(episodes.weights.sum(axis=1), 1, rtol=1e-6)
            np.testing.assert_allclose(episodes.weights[:, -1], 1 - interim, atol=1e-7)
            np.testing.assert_allclose(episodes.weights[:, :-1], interim / 5, rtol=1e-6)
            assert config().task == task
            with pytest.raises(ValueError, match="concatenated predicts the query alone: set task"):
                Config(task=task, layout="concatenated")
        else:
            assert episodes.weights is None
            with pytest.raises(ValueError, match="set curriculum.points_start to None"):
                config()


@pytest.mark.parametrize("embedded", [False, True])
@pytest.mark.parametrize("layout", ["interleaved", "concatenated"])
def test_losses_are_those_of_the_predictions(layout, embedded):
    model = TransformerConfig(
        layers=1, heads=2, width=8, embed_labels=embedded, embedding_width=8 if embedded else 4
    )
    shares = (0.0, 0.4) if layout == "interleaved" else (0.0, 0.0)
    tasks = [of(LEARNED, interim=interim) for interim in shares]
    plain, weighted = (Learner(Config(task=task, layout=layout, model=model)) for task in tasks)
    rng = np.random.default_rng(0)
    variables = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape), leaf.dtype),
        jax.eval_shape(plain.init, jax.random.key(0)),
    )
    own, others = (prompts(task, jax.random.key(1), 8) for task in tasks)
    np.testing.assert_array_equal(own.x, others.x)
    found = lambda v: (plain.predict(v, own), plain.loss_sum(v, own), weighted.loss_sum(v, others))
    predicted, *sums = jax.jit(found)(variables)
    chosen = np.take_along_axis(np.asarray(predicted), np.asarray(own.y)[..., None], 2)[..., 0]
    losses = -np.log(chosen)
    assert losses.std() > 0.1
    for interim, (total, (count, _)) in zip(shares, sums):
        weights = np.append(np.full(5, interim / 5), 1 - interim)
        np.testing.assert_allclose(total, (weights * losses).sum(), rtol=1e-4)
        np.testing.assert_allclose(count, 8 * weights.sum(), rtol=1e-6)


# Tables of numbers.


@pytest.mark.parametrize("at, whole", [(uniform_at, jax.random.uniform),
                                       (normal_at, jax.random.normal)])  # fmt: skip
def test_rows_and_columns_are_windows_of_one_table(at, whole):
    key = lambda: jax.random.key(7, impl="threefry2x32")
    np.testing.assert_array_equal(at(key(), 20), whole(key(), (20,)))
    window = jax.jit(lambda first, row: at(key(), 6, first, row))
    table = np.stack([at(key(), 20, 0, row) for row in range(3)])
    assert len(np.unique(table)) == 60
    for first, row in ((0, 0), (3, 0), (5, 2), (14, 1)):
        np.testing.assert_array_equal(window(first, row), table[row][first : first + 6])
    np.testing.assert_array_equal(at(key(), 20, 5, 2)[:15], table[2][5:])
    assert not np.isin(at(key(), 20, 2**32 - 20, 2**31), table).any()


@pytest.mark.parametrize("at", [uniform_at, normal_at])
def test_other_generators_have_tables_too(at):
    key = jax.random.key(0, impl="rbg")
    rows = np.stack([at(key, 1000, 0, row) for row in range(3)])
    np.testing.assert_array_equal(rows[1], at(key, 1000, 0, 1))
    assert len(np.unique(rows)) > 2900 and not np.isin(at(key, 10, 5), rows[0]).any()
    half = 0.5 if at is uniform_at else 0.0
    assert_share((rows > half).reshape(-1), 0.5)
    task = of(GAUSSIANS, exemplars=2)
    episodes = prompts(task, jax.random.key(3, impl="rbg"), 30)
    assert np.isfinite(episodes.x).all() and (different(np.asarray(episodes.y)) > 1).any()
    # Classes are the same, whatever generator draws the prompts.
    still, five = of(GAUSSIANS, spread=0.0), jnp.arange(5)
    keys = jax.random.split(jax.random.key(4, impl="rbg"), 3)
    draw = lambda key: still.sample_episode(key, Sequence(five, five), still.full).x
    expected = jnp.stack([normal_at(class_key(), 4, row=row) for row in range(5)])
    np.testing.assert_array_equal(jax.jit(jax.vmap(draw))(keys)[1], expected)

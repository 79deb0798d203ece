"""Sequences of classes: against a generator on the host, the laws of each kind, refusals."""

import typing

import hypothesis.strategies as st
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given

from icl.tasks import KINDS
from icl.tasks.class_items import TRANSFORMS
from icl.tasks.class_labels import ClassLabels
from icl.tasks.sequence_kinds import FRESH, Kind

from .class_tasks import BASE, HOST, MANY, Host, assert_alike, assert_share, different, drawn, of

TRAINING = {
    "plain": BASE,
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
    "grouped": of(
        p_bursty=1.0, p_bursty_zipfian=0.0, ways=3, points=9, grouped=True, labelling="unfixed",
    ),
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


def one_hot(values, number):
    return values[:, None] == np.arange(number)


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
        # Whole classes have their probabilities whatever those within groups are.
        for in_groups in (False, True) if kind != "in_weights" or exponent == 2 else (False,):
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
    of_common = of(task, p_bursty=1.0, p_bursty_common=1.0, p_bursty_zipfian=0.0)
    for own_task, common in ((TRAINING["grouped"], False), (of_common, True)):
        own = (drawn(own_task)[0] >= task.rare) == common
        few = own_task.shots * own_task.ways
        assert own[:, -1].all() and (own[:, :-1].sum(axis=1) == few).all()
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
        (PROBES.mode("fewshot_zipfian"), 2),
    ):
        classes, labels = drawn(task)
        check_few_shots(task, classes, labels, (task.points - 1) // 2)
        # Each of the labels is as frequent as the others, whatever the class.
        which = labels[:, -1] - (first_label(task, classes[:, -1])[0] if number == 3 else 0)
        for one in np.unique(classes):
            assert_share(one_hot(which[classes[:, -1] == one], number), np.full(number, 1 / number))


def test_grouped_items_show_each_class_once():
    classes, _ = drawn(TRAINING["grouped"])
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
    order = rng.permutation(total).astype(np.int32)
    original = jnp.asarray(order) if labelling == "original" else None
    numbers = rng.random(200).astype(np.float32)
    numbers[:2] = 0, 1 - 2**-24
    expected = np.asarray(classes)
    for drawn_numbers in (None, jnp.asarray(numbers)):
        labels = known.of(classes, drawn_numbers, original)
        numbered = np.asarray(labels)
        assert ((0 <= numbered) & (numbered < known.number)).all()
        np.testing.assert_array_equal(known.classes(labels, original), expected)
        groups = known.groups(labels, original)
        np.testing.assert_array_equal(groups["rare"], expected < rare)
        np.testing.assert_array_equal(
            groups["common"], (rare <= expected) & (expected < rare + common)
        )
    several = polysemy if labelling == "polysemous" else 1
    assert known.number == max(2, rare * several + common + holdout)
    if labelling != "original":
        task = of(rare=rare, common=common, holdout=holdout, labelling=labelling, polysemy=polysemy,
                  sequences="in_context", ways=1, points=4)  # fmt: skip
        np.testing.assert_array_equal(known.of(classes), first_label(task, expected)[0])
    shared = ClassLabels(rare, common, holdout, labels=3)
    np.testing.assert_array_equal(shared.of(classes), expected % 3)
    assert shared.number == 3 and np.isnan(shared.groups(classes)["rare"]).all()


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

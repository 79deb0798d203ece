"""Items of classes: their draws, built-in classes, files, weights of queries, tables of numbers."""

import functools
import itertools

import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import given, settings

from icl.models import TransformerConfig
from icl.tasks import Curriculum
from icl.tasks.class_draws import MOST_COMPARED, Group, items, merged, order
from icl.tasks.class_items import TRANSFORMS, class_key, gaussians, transformed
from icl.tasks.draws import normal_at, uniform_at
from icl.tasks.sequence_kinds import Sequence
from icl.training import Config, Learner
from icl.training.prediction import Predictor

from .class_tasks import (
    BASE,
    HOST,
    MANY,
    SIGMAS,
    assert_alike,
    assert_share,
    different,
    of,
    prompts,
)

RNG = np.random.default_rng(0)


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


def test_a_learner_that_sees_whole_prompts_says_how_many_examples_it_takes():
    model = TransformerConfig(layers=1, heads=2, width=8, bidirectional=True)
    learner = Learner(Config(task=LEARNED, layout="concatenated", model=model))
    predict = Predictor(learner, learner.init(jax.random.key(0)))
    x, y = np.zeros((5, 4), np.float32), np.zeros(5, np.int32)
    assert predict(x, y, x[:2]).shape == (2, 4)
    with pytest.raises(ValueError, match="cannot take 3 examples: it takes exactly 5"):
        predict(x[:3], y[:3], x[:2])

"""Loading images, and the tasks made of them."""

import dataclasses
import gzip
import struct
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from PIL import Image

from icl.data import load_images
from icl.data.idx import IMAGES, LABELS
from icl.tasks import Curriculum, ProjectedImages, pool_task, sample_batch
from icl.tasks.base import Difficulty
from icl.training import RunError
from icl.training.data import fingerprint, load_data

from .helpers import assert_same_bits

RNG = np.random.default_rng(0)
PIXELS = RNG.integers(0, 256, (60, 6, 6), dtype=np.uint8)
KINDS = np.arange(60) % 3
FAMILY = ProjectedImages(points=12, size=4, ways=3)


def idx(array):
    """A file in MNIST's format."""
    header = bytes([0, 0, 8, array.ndim]) + struct.pack(f">{array.ndim}I", *array.shape)
    return header + array.astype(np.uint8).tobytes()


def write_idx(folder, part="train", compress=False, labels=KINDS, images=PIXELS):
    folder.mkdir(exist_ok=True)
    for kind, array in ((IMAGES, images), (LABELS, labels)):
        raw = idx(array)
        path = folder / f"{part}-{kind}{'.gz' * compress}"
        path.write_bytes(gzip.compress(raw) if compress else raw)
    return folder


def write_folders(folder):
    for index, (image, kind) in enumerate(zip(PIXELS, KINDS)):
        (folder / f"class {kind}").mkdir(parents=True, exist_ok=True)
        Image.fromarray(image).save(folder / f"class {kind}" / f"{index:03}.png")
    return folder


def by_class(images, labels):
    """The images in an order that all formats share."""
    return np.stack(sorted((label, *image.ravel()) for label, image in zip(labels, images)))


def test_every_format_gives_equal_images(tmp_path):
    np.savez(tmp_path / "named.npz", images=PIXELS, labels=KINDS)
    np.savez(
        tmp_path / "keras.npz", x_train=PIXELS[:40], y_train=KINDS[:40, None],
        x_test=PIXELS[40:], y_test=KINDS[40:, None],
    )  # fmt: skip
    np.savez(tmp_path / "k-imgs.npz", PIXELS)
    np.savez(tmp_path / "k-labels.npz", KINDS)
    np.save(tmp_path / "my-images.npy", PIXELS)
    np.save(tmp_path / "my-labels.npy", KINDS)
    plain, packed = write_idx(tmp_path / "plain"), write_idx(tmp_path / "packed", compress=True)
    files = ["named.npz", "keras.npz", "k-imgs.npz", "my-images.npy"]
    paths = [*(tmp_path / file for file in files), plain, packed, plain / f"train-{IMAGES}"]
    paths.append(write_folders(tmp_path / "folders"))
    expected = by_class(PIXELS, KINDS)
    for path in paths:
        found = load_images(str(path), 6)
        assert found.images.shape == (60, 6, 6, 1) and found.images.dtype == np.uint8, path
        np.testing.assert_array_equal(by_class(found.images, found.labels), expected)


def test_a_folder_of_idx_files_has_all_of_them_once(tmp_path):
    folder = write_idx(tmp_path / "mnist")
    write_idx(folder, "t10k")
    write_idx(folder, "t10k", compress=True)
    assert len(load_images(str(folder), 6).images) == 120
    # A label means one thing in all files, though one of them lacks a class.
    write_idx(folder, "few", labels=KINDS[KINDS > 0], images=PIXELS[KINDS > 0])
    assert np.bincount(load_images(str(folder), 6).labels).tolist() == [40, 60, 60]
    write_idx(folder, "z", images=np.zeros((60, 5, 5)))
    with pytest.raises(ValueError, match="z-images.* have another size than those of .*few-images"):
        load_images(str(folder), 6)


def test_built_in_sets():
    digits = load_images("digits", 8)
    assert digits.images.shape == (1797, 8, 8, 1) and digits.classes == 10
    assert digits.images.max() == 255
    noise = load_images("random", 5, 3)
    assert noise.images.shape == (20, 5, 5, 3) and (np.bincount(noise.labels) == 2).all()


def test_resizing_averages_and_colours_convert(tmp_path):
    colours = RNG.integers(0, 256, (9, 6, 6, 3), dtype=np.uint8)
    path = tmp_path / "colours.npz"
    np.savez(path, images=colours, labels=np.arange(9) % 3)
    small = load_images(str(path), 3, 3).images
    means = colours.reshape(9, 3, 2, 3, 2, 3).mean(axis=(2, 4))
    assert np.abs(small - means).max() <= 1
    grey = load_images(str(path), 6, 1).images[..., 0]
    assert np.abs(grey - colours @ [0.299, 0.587, 0.114]).max() <= 0.5
    np.savez(path, images=PIXELS, labels=KINDS)
    larger = load_images(str(path), 12, 3).images
    assert larger.shape == (60, 12, 12, 3) and (larger[..., 0] == larger[..., 2]).all()
    with pytest.raises(ValueError, match="1 channel .* or 3 .*and 2 were asked for"):
        load_images(str(path), 6, 2)
    deep = Image.fromarray(np.arange(36, dtype=np.uint16).reshape(6, 6) * 1000)
    (tmp_path / "deep" / "class").mkdir(parents=True)
    deep.save(tmp_path / "deep" / "class" / "0.png")
    with pytest.raises(ValueError, match="0.png: .* save it with 8 bits a channel"):
        load_images(str(tmp_path / "deep"), 6)


def damaged(tmp_path):
    """Files that are wrong in one way each, and what the error says."""
    images, labels = idx(PIXELS), idx(KINDS)
    packed = gzip.compress(images)
    for name, raw, more, words in (
        ("short", images[:-5], labels, "truncated: its header says 60 x 6 x 6 bytes, and 2155"),
        ("long", images + b"x", labels, "too long"),
        ("header", images[:10], labels, "ends inside its header"),
        ("magic", b"\x00\x00\x0d" + images[3:], labels, "begins with 00 00 0d 03"),
        (
            "swapped",
            labels,
            images,
            "with 3 axes begins with 00 00 08 03, this file .* 00 00 08 01",
        ),
        ("empty", b"", labels, "begins with nothing"),
        ("gzip", packed[:-20], labels, "gzip file is damaged or truncated"),
        ("bits", packed[:40] + b"\xff\xff" + packed[42:], labels, "gzip file is damaged"),
        ("fewer", images, idx(KINDS[:-1]), "60 images do not fit 59 labels"),
        ("none", idx(PIXELS[:0]), idx(KINDS[:0]), "there are no images"),
    ):
        folder = tmp_path / name
        folder.mkdir()
        (folder / f"train-{IMAGES}").write_bytes(raw)
        (folder / f"train-{LABELS}").write_bytes(more)
        yield folder, words
    for name, arrays, words in (
        ("float.npz", dict(images=PIXELS / 255, labels=KINDS), "images must be uint8"),
        ("nan.npz", dict(images=np.full((3, 4), np.nan), labels=KINDS[:3]), "NaN or infinite"),
        ("labels.npz", dict(images=PIXELS, labels=KINDS / 2), "labels must be whole numbers"),
        ("other.npz", dict(a=PIXELS, b=KINDS), "the arrays a, b are no images with labels"),
        ("alone.npz", dict(a=PIXELS), "a single array needs 'images' in the name"),
    ):
        np.savez(tmp_path / name, **arrays)
        yield tmp_path / name, words
    (tmp_path / "broken.npz").write_bytes(b"PK no archive")
    yield tmp_path / "broken.npz", "NumPy cannot read the file"
    (tmp_path / "notes.txt").write_text("hello")
    yield tmp_path / "notes.txt", "images are read from"
    (tmp_path / "nothing").mkdir()
    yield tmp_path / "nothing", "neither MNIST's files"
    folders = write_folders(tmp_path / "folders")
    (folders / "class 1" / "broken.png").write_bytes(b"no image")
    yield folders, "broken.png: the image cannot be read"
    (tmp_path / "hollow" / "class").mkdir(parents=True)
    yield tmp_path / "hollow", "hollow/class: there are no images"


def test_damaged_files_are_named_before_anything_trains(tmp_path):
    for path, words in damaged(tmp_path):
        family = dataclasses.replace(FAMILY, images=(str(path),))
        with pytest.raises(ValueError, match=words) as error:
            load_data(family)
        assert str(path) in str(error.value)
    missing = dataclasses.replace(FAMILY, images=(str(tmp_path / "mnist"),))
    with pytest.raises(RunError, match="mnist, cannot be read: there is no such file or folder"):
        load_data(missing)
    (write_idx(tmp_path / "half") / f"train-{LABELS}").unlink()
    with pytest.raises(RunError, match=f"train-{LABELS}, cannot be read"):
        load_data(dataclasses.replace(FAMILY, images=(str(tmp_path / "half"),)))


def test_data_that_do_not_fit_the_settings_say_what_to_set(tmp_path):
    vectors, few = tmp_path / "vectors.npz", tmp_path / "few.npz"
    np.savez(vectors, x=RNG.normal(size=(60, 5)), y=KINDS)
    np.savez(few, images=PIXELS[:3], labels=KINDS[:3])
    for changes, words in (
        (dict(images=(str(vectors),)), "has 5 features an input: set task.features to 5"),
        (dict(features=5), "digits has images: set task.features to None"),
        (dict(ways=11), "has 10 classes: set task.ways to that at most"),
        (dict(images=(str(few),), held_out=0.6), "1 images of class 0, which cannot be split"),
        (dict(images=("random",)), "random has 2 images of class 0, which cannot be split"),
    ):
        with pytest.raises(ValueError, match=words):
            load_data(dataclasses.replace(FAMILY, **changes))
    found = load_data(dataclasses.replace(FAMILY, images=(str(vectors),), features=5))
    assert found.images.shape == (48, 5) and found.images.dtype == np.float32
    for changes, words in (
        (dict(images=()), "at least one set"),
        (dict(shots=2), "3 classes of 2 images and the query are 7 points"),
        (dict(held_out=0.0, part="held-out"), "no images are held out"),
        (dict(projection="round"), "projection must be full or diagonal or none"),
        (dict(ways=1), "task.ways must be"),
        (dict(biased=1.5), "task.biased must be"),
        (dict(channels=2), "task.channels must be 1 or 3"),
    ):
        with pytest.raises(ValueError, match=words):
            dataclasses.replace(FAMILY, **changes)


def test_changed_files_are_read_again(tmp_path):
    path = tmp_path / "set.npz"
    family = dataclasses.replace(FAMILY, images=(str(path),), size=6)
    np.savez(path, images=PIXELS, labels=KINDS)
    first = fingerprint(family)
    np.savez(path, images=PIXELS[:57], labels=KINDS[:57])
    assert fingerprint(family) != first and first["source"] == str(path)
    folders = write_folders(tmp_path / "folders")
    family = dataclasses.replace(family, images=(str(folders),))
    first = fingerprint(family)
    Image.fromarray(PIXELS[0]).save(folders / "class 1" / "more.png")
    assert fingerprint(family) != first


@partial(jax.jit, static_argnums=(0, 3))
def drawn(family, key, data, size, difficulty, pool_key=None, pool_size=None):
    return sample_batch(family, key, jnp.arange(size), difficulty, pool_key, pool_size, data=data)


def draw(family, seed=0, size=64, difficulty=None, **pool):
    data = load_data(family)
    return drawn(family, jax.random.key(seed), data, size, difficulty or family.full, **pool)


@partial(jax.jit, static_argnums=0)
def sample_tasks(family, keys, data):
    return jax.vmap(lambda key: family.sample_task(key, family.full, data))(keys)


def task_of(family, key, index):
    """The task of a prompt that `draw` drew with the key."""
    own = jax.random.split(jax.random.fold_in(key, index))[:1]
    return jax.tree.map(lambda a: np.asarray(a)[0], sample_tasks(family, own, load_data(family)))


def source_images(family):
    """The normalised images in use, `[N, n]`, and their classes."""
    data = load_data(family)
    x = (data.images.reshape(len(data.images), -1) - data.mean[0]) / data.std[0]
    labels = np.repeat(np.arange(data.count.shape[1]), data.count[0])
    return x, labels


@pytest.mark.parametrize("shots", [None, 2])
def test_points_are_images_of_the_class_that_the_label_stands_for(shots):
    points = 12 if shots is None else 7
    family = ProjectedImages(
        points=points, size=4, ways=3, shots=shots, projection="diagonal", biased=0.3
    )
    images, labels = source_images(family)
    size = 64 if shots else 800
    all_x, all_y = map(np.asarray, draw(family, size=size)[:2])
    task = task_of(family, jax.random.key(0), 5)
    for x, y in zip(all_x[5] / task.projection, all_y[5]):
        distance = np.abs(images - x).max(axis=1)
        assert distance.min() < 1e-3 and labels[distance.argmin()] == task.classes[y]
    assert len(set(task.classes.tolist())) == 3
    # No image twice in a prompt.
    assert all(len(np.unique(x.round(3), axis=0)) == points for x in all_x[:64])
    if shots:
        counts = [np.bincount(y[:-1], minlength=3) for y in all_y]
        assert (np.array(counts) == shots).all()
        assert len({tuple(y) for y in all_y.tolist()}) > 10
    else:
        shares = np.bincount(all_y.ravel()) / (800 * points)
        np.testing.assert_allclose(shares, 1 / 3, atol=0.02)


def test_projections_keep_the_variance_and_differ_between_tasks():
    family = dataclasses.replace(FAMILY, size=8, ways=10)
    x = np.asarray(draw(family, size=256).x)
    assert 0.9 < (x**2).mean() < 1.1
    task = task_of(family, jax.random.key(0), 7)
    back = np.linalg.solve(task.projection.astype(np.float64), x[7].T).T
    distance = np.abs(source_images(family)[0][None] - back[:, None]).max(axis=2).min(axis=1)
    assert distance.max() < 0.05
    tasks = sample_tasks(family, jax.random.split(jax.random.key(3), 200), load_data(family))
    assert 0.9 < (np.asarray(tasks.projection) ** 2).sum(axis=2).mean() < 1.1
    counts = np.bincount(np.asarray(tasks.classes)[:, 0], minlength=10)
    assert counts.min() > 5  # each class has the first label at times


def test_biased_tasks_share_their_labels_and_evaluation_has_none():
    family = dataclasses.replace(FAMILY, biased=0.75)

    def share(family):
        keys = jax.random.split(jax.random.key(1), 400)
        classes = np.asarray(sample_tasks(family, keys, load_data(family)).classes)
        return (classes == np.arange(3)).all(axis=1).mean()

    assert 0.65 < share(family) < 0.85
    assert share(family.evaluation) < 0.05 and family.evaluation.part == "held-out"


def test_held_out_images_are_apart_and_split_each_class(tmp_path):
    parts = {part: dataclasses.replace(FAMILY, part=part) for part in ("train", "held-out", "all")}
    counts = {part: load_data(family).count for part, family in parts.items()}
    np.testing.assert_array_equal(counts["train"] + counts["held-out"], counts["all"])
    np.testing.assert_allclose(counts["held-out"] / counts["all"], 0.2, atol=0.01)
    path = tmp_path / "numbered.npz"
    numbered = np.arange(60 * 36, dtype=np.uint16).reshape(60, 6, 6).astype(np.uint8)
    numbered[:, 0, 0] = np.arange(60)
    np.savez(path, images=numbered, labels=KINDS)
    own = {
        part: set(load_data(dataclasses.replace(family, images=(str(path),), size=6)).images[:, 0])
        for part, family in parts.items()
    }
    assert own["train"] | own["held-out"] == own["all"] == set(range(60))
    assert not own["train"] & own["held-out"] and len(own["held-out"]) == 12


def test_a_task_draws_one_of_several_sets(tmp_path):
    path = tmp_path / "dark.npz"
    np.savez(path, images=np.zeros_like(PIXELS), labels=KINDS)
    family = dataclasses.replace(FAMILY, images=("digits", str(path)))
    data = load_data(family)
    assert data.first.shape == (2, 10) and data.number.tolist() == [10, 3]
    dark = (np.asarray(draw(family, size=400).x) == 0).all(axis=(1, 2))
    assert 0.4 < dark.mean() < 0.6  # all points of a prompt are of one set


def test_tasks_of_a_pool_take_no_memory_and_repeat():
    family = dataclasses.replace(FAMILY, size=8)
    data, pool_key = load_data(family), jax.random.key(4)
    of_pool = jax.jit(lambda data: pool_task(family, pool_key, 2**25 - 1, data))
    assert_same_bits(of_pool(data), of_pool(data))
    lower = drawn.lower(
        family, jax.random.key(0), data, 8, family.full, pool_key=pool_key, pool_size=2**25
    )
    assert lower.compile().memory_analysis().temp_size_in_bytes < 2**20


def test_a_curriculum_limits_classes_and_points_without_compiling_again():
    draw(FAMILY)
    compiled = drawn._cache_size()
    episodes = draw(FAMILY, difficulty=Difficulty(0, 5, 2))
    assert set(np.unique(episodes.y)) == {0, 1}
    np.testing.assert_array_equal(np.asarray(episodes.queries).sum(axis=1), 5)
    at = Curriculum(classes_start=2, interval=10).at(10, FAMILY)
    assert tuple(map(int, at)) == (0, 12, 3)
    draw(FAMILY, difficulty=at)
    assert drawn._cache_size() <= compiled + 1  # whole numbers, then traced ones
    with pytest.raises(ValueError, match="has no number of classes to vary"):
        Curriculum(classes_start=2).check_for(dataclasses.replace(FAMILY, points=7, shots=2))
    with pytest.raises(ValueError, match="classes_start must be a whole number from 1 to 3"):
        Curriculum(classes_start=4).check_for(FAMILY)


def test_equal_keys_draw_equal_bits_and_prompts_do_not_depend_on_the_batch():
    first, again, other = draw(FAMILY, 1), draw(FAMILY, 1), draw(FAMILY, 2)
    assert_same_bits(first, again)
    x = np.asarray(first.x)
    assert (x != np.asarray(other.x)).any()
    assert (np.asarray(draw(FAMILY, 1, size=8).x) == x[:8]).all()


def test_random_features_replace_pixels():
    family = dataclasses.replace(FAMILY, random_features=32, projection="none")
    episodes = draw(family, size=128)
    assert episodes.x.shape == (128, 12, 32) and episodes.x.dtype == jnp.float32
    assert 0.8 < (np.asarray(episodes.x) ** 2).mean() < 1.2
    raw = dataclasses.replace(FAMILY, projection="none")
    assert draw(raw).x.shape == (64, 12, 4, 4, 1) and draw(raw).x.dtype == jnp.uint8

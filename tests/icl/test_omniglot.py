"""Trees of images of any depth, in zip files and unpacked, and the classes made of them."""

import io
import os
import zipfile
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from icl.data import data_files, load_classes, load_images

OMNIGLOT = Path(os.environ.get("OMNIGLOT", "none"))  # the folder of the real zips
RNG = np.random.default_rng(0)
# Two drawings of each character, black on white, of which a character is in both sets.
DRAWINGS = {
    f"{kind}/{number:04}_{one:02}.png": RNG.random((6, 6)) > 0.2
    for number, kind in enumerate(("Greek/character01", "Greek/character02", "Angelic/character01"))
    for one in (1, 2)
}
FIRST = {f"images_background_small1/{name}": DRAWINGS[name] for name in list(DRAWINGS)[:4]}
SECOND = {f"images_evaluation/{name}": DRAWINGS[name] for name in list(DRAWINGS)[2:]}
IN_ORDER = np.stack([DRAWINGS[name] for name in sorted(DRAWINGS)])


def png(pixels):
    """A file of a drawing (1 bit a pixel) or of a grey image."""
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, "PNG")
    return stream.getvalue()


def write_zip(path, images):
    with zipfile.ZipFile(path, "w", zipfile.ZIP_DEFLATED) as archive:
        for name, pixels in images.items():
            archive.writestr(name, pixels if isinstance(pixels, bytes) else png(pixels))
    return path


def write_tree(folder, images):
    for name, pixels in images.items():
        (folder / name).parent.mkdir(parents=True, exist_ok=True)
        (folder / name).write_bytes(pixels if isinstance(pixels, bytes) else png(pixels))
    return folder


def write_all(tmp_path):
    """The drawings in each layout: the names to read."""
    (tmp_path / "zips").mkdir()
    zips = [
        write_zip(tmp_path / "zips" / "0.zip", SECOND),
        write_zip(tmp_path / "zips" / "1.zip", FIRST),
    ]
    write_zip(tmp_path / "zips" / "strokes_background.zip", {"strokes/Greek/1.txt": b"0 0"})
    write_tree(tmp_path / "zips", {"notes/left/out.png": DRAWINGS[next(iter(DRAWINGS))]})
    both = write_tree(tmp_path / "both", FIRST | SECOND | {"strokes/Greek/1.txt": b"0 0"})
    (tmp_path / "mixed").mkdir()
    write_zip(tmp_path / "mixed" / "a.ZIP", FIRST)
    write_tree(tmp_path / "mixed", SECOND)
    hidden = {"__MACOSX/Greek/character01/._1.png": b"", ".git/a/1.png": b"", "top.png": b""}
    whole = {"./" + name: pixels for name, pixels in DRAWINGS.items()}
    return [
        [tmp_path / "zips"], zips, zips[::-1], [zips[0], zips[1], zips[0]],
        [both], [both / "images_evaluation", both / "images_background_small1"],
        [tmp_path / "mixed"], [zips[0], both / "images_background_small1"],
        [write_zip(tmp_path / "whole.zip", whole | hidden)],
        [write_tree(tmp_path / "whole", DRAWINGS | hidden)],
    ]  # fmt: skip


def test_every_layout_gives_each_class_and_image_once_in_the_order_of_names(tmp_path):
    for paths in write_all(tmp_path):
        names = [str(path) for path in paths]
        bank = load_classes(names, size=6)
        order = np.random.default_rng(1337).choice(3, size=3, replace=False)
        np.testing.assert_array_equal(bank.original, order, err_msg=str(names))
        assert bank.first.tolist() == [0, 2, 4] and bank.count.tolist() == [2, 2, 2], names
        assert all(of.dtype == np.int32 for of in (bank.first, bank.count, bank.original))
        # White paper is 0, ink 255.
        expected = (~IN_ORDER).reshape(3, 2, 6, 6)[order].reshape(6, 6, 6)
        np.testing.assert_array_equal(bank.items, expected * np.uint8(255), err_msg=str(names))
        if len(names) == 1:
            found = load_images(names[0], 6)
            np.testing.assert_array_equal(found.images[..., 0], IN_ORDER * np.uint8(255))
            assert found.labels.tolist() == [0, 0, 1, 1, 2, 2]
    # Resizing averages ink; colours are allowed.
    images = load_images(str(tmp_path / "whole.zip"), 3, 3).images
    means = 255 * IN_ORDER.reshape(6, 3, 2, 3, 2).mean(axis=(2, 4))
    assert images.shape == (6, 3, 3, 3) and np.abs(images[..., 1] - means).max() <= 1


def test_a_class_may_lie_at_any_depth_and_hold_folders(tmp_path):
    grey = {name: np.full((2, 2), level, np.uint8) for name, level in (
        ("a/0.png", 1), ("a/b/c/0.png", 2), ("a/b/c/1.png", 3), ("images_background/0.png", 4),
    )}  # fmt: skip
    for path in (write_tree(tmp_path / "tree", grey), write_zip(tmp_path / "tree.zip", grey)):
        found = load_images(str(path), 2)
        assert found.images[:, 0, 0, 0].tolist() == [1, 2, 3, 4]
        assert found.labels.tolist() == [0, 1, 1, 2]


def broken(tmp_path):
    """Names that cannot be read, and what the error says."""
    drawing = png(IN_ORDER[0])
    good = write_zip(tmp_path / "good.zip", {"a/b/0.png": drawing, "a/c/0.png": drawing})
    raw = good.read_bytes()
    at = raw.index(b"a/b/0.png") + 20  # in the compressed bytes of the file
    for name, content, words in (
        ("cut", raw[:-30], r"cut.zip: the zip file is damaged or truncated"),
        ("text", b"hello", r"text.zip: the zip file is damaged or truncated"),
        ("empty", b"", r"empty.zip: the zip file is damaged or truncated"),
        ("bits", raw[:at] + b"\xff" + raw[at + 1 :], r"bits.zip/a/b/0.png: the file cannot be"),
    ):
        (tmp_path / f"{name}.zip").write_bytes(content)
        yield [tmp_path / f"{name}.zip"], words
    deep = np.arange(36, dtype=np.uint16).reshape(6, 6)
    for name, images, words in (
        ("image", {"a/0.png": drawing, "b/0.png": drawing[:50]}, "image.zip/b/0.png: the image ca"),
        (
            "header",
            {"a/0.png": drawing[:17] + b"\xff" + drawing[18:]},
            "header.zip/a/0.png: the image",
        ),
        ("deep", {"a/0.png": deep}, "deep.zip/a/0.png: .* save it with 8 bits a channel"),
        ("flat", {"0.png": drawing}, "flat.zip: the zip file has no images .* in folders"),
        ("other", {"a/0.txt": b""}, "other.zip: the zip file has no images"),
    ):
        yield [write_zip(tmp_path / f"{name}.zip", images)], words
    write_tree(tmp_path / "folder", {"cut.zip": raw[:-30], "a/0.png": drawing})
    yield [tmp_path / "folder"], "folder/cut.zip: the zip file is damaged"
    tree = write_tree(tmp_path / "tree", {"a/b/0.png": drawing})
    (tree / "a" / "hollow").mkdir()
    yield [tree], "tree/a/hollow: there are no images"
    other = write_zip(tmp_path / "differs.zip", {"a/b/0.png": png(IN_ORDER[1])})
    yield [good, other], "differs.zip/a/b/0.png is another image than .*good.zip/a/b/0.png.*rename"
    yield [], "at least one set"


def test_damaged_trees_name_the_file(tmp_path):
    for paths, words in broken(tmp_path):
        with pytest.raises(ValueError, match=words):
            load_classes([str(path) for path in paths], size=6)
    with pytest.raises(FileNotFoundError, match="no such file or folder.*missing.zip"):
        load_classes([str(tmp_path / "missing.zip")], size=6)


def test_files_to_watch_are_zips_and_every_folder(tmp_path):
    write_all(tmp_path)
    files = lambda name: {str(file.relative_to(tmp_path)) for file in data_files(str(name))}
    assert files(tmp_path / "whole.zip") == {"whole.zip"}
    assert files(tmp_path / "zips") >= {"zips", "zips/0.zip", "zips/1.zip"}
    folders = {"whole", "whole/Greek", "whole/Angelic"}
    folders |= {f"whole/{name.rsplit('/', 1)[0]}" for name in DRAWINGS}
    assert files(tmp_path / "whole") == folders
    stamps = lambda name: [os.stat(file).st_mtime_ns for file in data_files(str(name))]
    before = stamps(tmp_path / "whole")
    (tmp_path / "whole" / "Greek" / "character02" / "more.png").write_bytes(png(IN_ORDER[0]))
    assert stamps(tmp_path / "whole") != before


def test_sets_follow_one_another_and_trees_are_one_set(tmp_path):
    dark = tmp_path / "dark.npz"
    np.savez(dark, images=np.full((5, 6, 6), 9, np.uint8), labels=[4, 0, 4, 0, 0])
    zips = [write_zip(tmp_path / "a.zip", FIRST), write_zip(tmp_path / "b.zip", SECOND)]
    bank = load_classes([str(zips[0]), str(dark), str(zips[1])], size=6, seed=3)
    order = np.random.default_rng(3).choice(5, size=5, replace=False)
    np.testing.assert_array_equal(bank.original, order)
    np.testing.assert_array_equal(bank.count, np.array([2, 2, 2, 3, 2])[order])
    np.testing.assert_array_equal(np.cumsum(bank.count) - bank.count, bank.first)
    for first, count, original in zip(bank.first, bank.count, bank.original):
        own = bank.items[first : first + count]
        if original < 3:
            assert (own == 255 * ~IN_ORDER[2 * original :][:2]).all()
        else:
            assert (own == 9).all()  # its background is dark as it is


def test_exemplars_keep_the_first_of_each_class(tmp_path):
    name = str(write_zip(tmp_path / "all.zip", DRAWINGS))
    bank = load_classes([name], size=6, exemplars=1)
    assert bank.count.tolist() == [1, 1, 1] and bank.first.tolist() == [0, 1, 2]
    np.testing.assert_array_equal(bank.items, 255 * ~IN_ORDER[::2][bank.original])
    np.testing.assert_array_equal(load_classes([name], size=6, exemplars=2).count, 2)
    with pytest.raises(ValueError, match="all.zip has 2 items of class 0: set task.exemplars"):
        load_classes([name], size=6, exemplars=3)
    with pytest.raises(ValueError, match="task.exemplars must be at least 1"):
        load_classes([name], size=6, exemplars=0)


def test_features_in_place_of_images(tmp_path):
    path = str(tmp_path / "vectors.npz")
    vectors, labels = RNG.normal(size=(12, 5)).astype(np.float32), np.arange(12) % 4
    np.savez(path, x=vectors, y=labels)
    bank = load_classes([path], size=6, features=5, exemplars=2)
    assert bank.items.shape == (8, 5) and bank.items.dtype == np.float32
    for first, original in zip(bank.first, bank.original):
        np.testing.assert_array_equal(
            bank.items[first : first + 2], vectors[labels == original][:2]
        )
    for names, features, words in (
        ([path], None, "has 5 features an input: set task.features to 5"),
        ([path], 4, "has 5 features an input: set task.features to 5"),
        ([path, "digits"], 5, "digits has images: set task.features to None"),
    ):
        with pytest.raises(ValueError, match=words):
            load_classes(names, size=8, features=features)


@pytest.mark.skipif(not OMNIGLOT.is_dir(), reason="set OMNIGLOT to the folder of the small sets")
def test_the_small_sets_of_omniglot_have_242_characters():
    names = [str(OMNIGLOT / f"images_background_small{part}.zip") for part in (1, 2)]
    assert [load_images(name, 14).classes for name in names] == [136, 156]
    bank = load_classes(names, size=105)
    assert bank.items.shape == (4840, 105, 105) and set(np.unique(bank.items)) == {0, 255}
    assert bank.count.tolist() == [20] * 242 and sorted(bank.original) == list(range(242))
    assert 0.02 < (bank.items > 0).mean() < 0.15  # ink
    # Drawings of a character are alike: nearer to its mean than to others' far above chance.
    small = load_classes([str(OMNIGLOT)], size=14)
    np.testing.assert_array_equal(small.original, bank.original)
    flat = small.items.reshape(242, 20, -1).astype(np.float32)
    means, last = flat[:, :19].mean(axis=1), flat[:, 19]
    nearest = ((last[:, None] - means) ** 2).sum(axis=2).argmin(axis=1)
    assert (nearest == np.arange(242)).mean() > 0.2

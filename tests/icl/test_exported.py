"""Exported weights: a file predicts as its run does, and damaged files are refused."""

import contextlib
import json

import jax
import numpy as np
import pytest

import icl
from icl.cli import main
from icl.training import Learner, Run, RunError
from icl.training.step import variable_items

from .helpers import tiny, untrained
from .test_own_task import own  # noqa: F401


@pytest.fixture(scope="module")
def run(own, tmp_path_factory):  # noqa: F811
    """A run of data in a file, with batch statistics and dropout."""
    folder = tmp_path_factory.mktemp("exported")
    config = own.config_of(own.write_images(folder / "images.npz"))
    run = Run.create(folder / "run", config)
    variables = jax.jit(Learner(config).init)(jax.random.key(0))
    moved = jax.tree.map(lambda leaf: leaf + np.float32(0.5), variables.state)
    with contextlib.closing(run.checkpoints()) as checkpoints:
        checkpoints.save(7, variable_items(variables._replace(state=moved)))
    return run


@pytest.fixture(scope="module")
def file(run):
    return icl.export(run, run.path.parent / "new" / "run.npz")


def prompts():
    from .own_task import SIDE  # late, since the import registers a task

    rng = np.random.default_rng(0)
    x = rng.integers(0, 256, (2, 3, SIDE, SIDE), dtype=np.uint8)
    return x, rng.integers(0, 10, (2, 3)), x[:, :1]


def test_a_file_predicts_as_its_run_does(run, file, tmp_path):
    wanted = run.predict(*prompts())
    exported = icl.load_exported(file)
    assert exported.config == run.config and exported.step == 7
    assert exported.made_with["jax"] == jax.__version__
    np.testing.assert_array_equal(exported.predict(*prompts()), wanted)
    half = icl.export(run.path, tmp_path / "half.npz", precision="float16")
    assert half.stat().st_size < 0.75 * file.stat().st_size
    close = icl.load_exported(half).predict(*prompts())
    np.testing.assert_allclose(close, wanted, atol=2e-3)
    assert (close != wanted).any()


def rewritten(file, target, **changes):
    """A copy of a file with other arrays; None leaves an array out."""
    with np.load(file) as content:
        arrays = dict(content) | changes
    np.savez(target, **{name: array for name, array in arrays.items() if array is not None})


def about(file, **changes):
    with np.load(file) as content:
        return np.array(json.dumps(json.loads(str(content["about"])) | changes))


KERNEL = "params/model/read_out/kernel"


@pytest.mark.parametrize(
    ("damage", "message"),
    [
        (lambda file, bad: None, "does not exist; `icl export"),
        (lambda file, bad: bad.mkdir(), "is no exported run"),
        (lambda file, bad: bad.write_text("x,y\n1,2\n"), "is no exported run"),
        (lambda file, bad: bad.write_bytes(file.read_bytes()[:-300]), "is no exported run"),
        (lambda file, bad: rewritten(file, bad, about=None), "has no 'about'"),
        (lambda file, bad: rewritten(file, bad, about=about(file, format=2)), "has the format 2"),
        (lambda file, bad: rewritten(file, bad, about=about(file, config={})), "has no 'task'"),
        (lambda file, bad: rewritten(file, bad, **{KERNEL: None}), KERNEL),
        (lambda file, bad: rewritten(file, bad, **{KERNEL: np.zeros(3)}), "its settings say"),
    ],
)
def test_a_file_that_cannot_be_used_says_so(file, tmp_path, damage, message):
    bad = tmp_path / "bad.npz"
    damage(file, bad)
    with pytest.raises(RunError, match=message):
        icl.load_exported(bad)


def test_a_changed_byte_is_noticed(file, tmp_path):
    content = bytearray(file.read_bytes())
    content[len(content) // 2] ^= 1
    (tmp_path / "bad.npz").write_bytes(content)
    with pytest.raises(RunError, match="bring back a copy"):
        icl.load_exported(tmp_path / "bad.npz")


def test_the_command_writes_a_file_and_replaces_none(run, tmp_path, capsys):
    file = tmp_path / "mine.npz"
    assert main(["export", str(run.path), str(file), "--precision", "float16"]) == 0
    assert "mine.npz: 0.0" in capsys.readouterr().out
    before = file.read_bytes()
    assert main(["export", str(run.path), str(file)]) == 2
    assert "--overwrite" in capsys.readouterr().err and file.read_bytes() == before
    assert main(["export", str(run.path), str(file), "--overwrite"]) == 0
    assert len(file.read_bytes()) > len(before)
    assert main(["export", str(tmp_path / "nowhere"), str(tmp_path / "other.npz")]) == 2
    assert "does not exist" in capsys.readouterr().err


def test_numbers_too_large_for_the_precision_are_refused(tmp_path, monkeypatch):
    run = untrained(tmp_path / "run", tiny())
    step, variables = run.variables()
    large = jax.tree.map(lambda leaf: np.full(leaf.shape, 1e6, leaf.dtype), variables)
    monkeypatch.setattr(run, "variables", lambda: (step, large))
    with pytest.raises(ValueError, match="not finite in float16"):
        icl.export(run, tmp_path / "run.npz", precision="float16")
    assert not (tmp_path / "run.npz").exists()
    kernel = icl.load_exported(icl.export(run, tmp_path / "run.npz")).variables
    assert jax.tree.leaves(kernel)[0].max() == 1e6

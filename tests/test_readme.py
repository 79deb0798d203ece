"""What the README and the pages of docs/ say is true."""

import re
import sys
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import icl
from icl.analysis import ANALYSES
from icl.cli import main
from icl.experiments import PRESETS
from icl.models import MODELS
from icl.tasks import FAMILIES, sample_batch
from icl.training import Learner
from icl.training.config import config_from_dict, config_to_dict
from icl.training.data import load_data
from icl.training.optimizer import OPTIMIZERS, make_optimizer

from .icl.helpers import shrunk, untrained

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def block_with(text, words):
    """The block of Python code in a page that contains some words."""
    [block] = [b for b in re.findall(r"```python\n(.*?)```", text, re.DOTALL) if words in b]
    return block


def test_the_table_of_presets_is_the_registry():
    page = (ROOT / "docs" / "presets.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+/[\w-]+)` \| (.*) \|$", page, re.MULTILINE))
    assert rows == {preset.name: preset.summary for preset in PRESETS.values()}


def test_the_papers_it_names_have_their_presets():
    rows = re.findall(r"^\| .* \| (`[\w-]+/[\w-]+`.*?) \| `docs/", README, re.MULTILINE)
    named = set()
    for group in ";".join(rows).split(";"):
        names = re.findall(r"`([\w/-]+)`", group)
        paper = names[0].partition("/")[0]
        named |= {name if "/" in name else f"{paper}/{name}" for name in names}
    assert named <= {*PRESETS, *ANALYSES}
    assert {name.partition("/")[0] for name in PRESETS} == {n.partition("/")[0] for n in named}


def test_what_it_links_to_exists():
    paths = re.findall(r"\]\(([\w/.-]+)\)|^\| `([\w/.-]+)`", README, re.MULTILINE)
    paths += [(page, "") for page in re.findall(r"`(docs/[\w.-]+)`", README)]
    local = [a or b for a, b in paths if not (b and b in PRESETS)]
    assert "docs/images/linear-xs.png" in local and "kernels/" in local
    for path in local:
        assert (ROOT / path).exists(), path


def test_make_targets_it_names_exist():
    makefile = (ROOT / "Makefile").read_text()
    for text in (README, (ROOT / "CONTRIBUTING.md").read_text(), (ROOT / ".ci/run").read_text()):
        for target in re.findall(r"\bmake ([a-z-]+)", text):
            assert re.search(rf"^{target}:", makefile, re.MULTILINE), target


def test_the_python_it_shows_names_what_exists():
    for name in re.findall(r"\bicl\.(\w+)\(", README):
        assert hasattr(icl, name), name
    assert icl.preset("garg/linear-xs").replace(task_noise=0.5, training_steps=20_000)


def test_the_predictions_it_shows_have_the_shape_it_says():
    learner = Learner(icl.preset("garg/linear-xs").replace(model_layers=1))
    shapes = jax.eval_shape(learner.init, jax.random.key(0)).params
    zeros = jax.tree.map(lambda leaf: np.zeros(leaf.shape, leaf.dtype), shapes)
    names = {"run": SimpleNamespace(predict=icl.Predictor(learner, zeros))}
    exec(block_with(README, "run.predict("), names)
    assert names["y_query"].shape == (100, 3)


def test_the_look_inside_that_it_shows_draws_its_figure(tmp_path, monkeypatch):
    untrained(tmp_path / "runs" / "olsson-induction-xs", shrunk(icl.preset("olsson/induction-xs")))
    monkeypatch.chdir(tmp_path)
    names: dict[str, Any] = {}
    exec(block_with(README, "icl.Instrument("), names)
    assert names["rise"].shape == (64, 12) and np.abs(names["rise"]).max() > 0
    assert (tmp_path / "patterns.png").stat().st_size > 1000


@pytest.mark.parametrize("page", ["olsson", "han", "minegishi", "meta-learning", "tables"])
def test_the_commands_of_a_page_are_understood(page, monkeypatch, tmp_path):
    text = (ROOT / "docs" / f"{page}.md").read_text()
    asked = []

    def ask_for(config, *arguments, **given):
        asked.append(config)
        raise ValueError("asked")

    assert icl.train  # imported now, so that it does not keep what is replaced below
    monkeypatch.setattr("icl.training.train", ask_for)
    monkeypatch.setattr("icl.sweeps.train_sweep", ask_for)
    monkeypatch.chdir(tmp_path)
    commands = re.findall(r"icl ((?:train|sweep) [\w-]+/[\w-]+(?: --[^`#\n)]*)?)", text)
    assert len(commands) >= 2
    for command in commands:
        before = len(asked)
        assert main(command.split()) == 2, command
        assert len(asked) == before + 1, command
    # Runs have the names of their presets, and can be asked what the page asks them.
    runs = {preset.name.replace("/", "-"): preset for preset in PRESETS.values()}
    evaluations = re.findall(r"icl eval runs/([\w-]+)([^`#\n]*)", text)
    for name, options in evaluations:
        named = options.partition("--analyses")[2].split()
        assert all(ANALYSES[one].applies_to(runs[name].config) for one in named), options
        assert {path.partition("/")[2] for path in re.findall(r"runs/[\w-]+", options)} <= {*runs}
    for option in re.findall(r"`(--(?:task|model|training|optimizer)\S* [^` ]+)`", text):
        before = len(asked)
        assert main(["train", commands[0].split()[1], *option.split()]) == 2, option
        assert len(asked) == before + 1, option


def test_the_task_and_model_of_the_page_on_own_tasks_work(tmp_path, monkeypatch):
    page = (ROOT / "docs" / "own-task.md").read_text()
    (tmp_path / "my_task.py").write_text(block_with(page, "register_family"))
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    monkeypatch.chdir(tmp_path)
    # The check compiles the model; test_models.py tests it.
    monkeypatch.setattr("icl.training.learner.check_causal", lambda *arguments: None)
    try:
        assert main(["--import", "my_task", "list", "mine/images"]) == 0
        config = icl.preset("mine/images")
        assert config_from_dict(config_to_dict(config)) == config
        learner = Learner(config)
        data, key = load_data(learner.family), jax.random.key(0)
        draw = lambda key, data: sample_batch(
            learner.family, key, jnp.arange(4), learner.family.full, data=data
        )
        episodes = jax.eval_shape(draw, key, data)
        assert episodes.x.shape == (4, 20, 28, 28) and episodes.x.dtype == np.uint8
        variables = jax.eval_shape(learner.init, key)
        loss, _ = jax.eval_shape(learner.loss_sum, variables, episodes)
        assert loss.shape == ()
    finally:
        for registry, name in (
            (FAMILIES, "relabelled_images"),
            (MODELS, "gru"),
            (PRESETS, "mine/images"),
            (sys.modules, "my_task"),
        ):
            registry.pop(name, None)


def test_the_page_on_recipes_names_settings_and_optimizers_that_exist(monkeypatch, tmp_path):
    page = (ROOT / "docs" / "recipes.md").read_text()
    asked = []

    def train(config, *arguments, **options):
        asked.append(config)
        raise ValueError("asked")

    assert icl.train  # imported now, so that it does not keep what is replaced below
    monkeypatch.setattr("icl.training.train", train)
    [command] = re.findall(r"^    icl (train garg/linear --.*)$", page, re.MULTILINE)
    assert main([*command.split(), f"--run-dir={tmp_path / 'run'}"]) == 2
    recipe, here = PRESETS["garg/linear-xs"].config, asked[0]
    assert here.optimizer.name == recipe.optimizer.name and here.layout == recipe.layout
    assert here.model.qk_norm and here.model.norm == recipe.model.norm
    monkeypatch.setitem(vars(icl), "train", asked.append)
    try:
        exec(block_with(page, "register_optimizer"), {})
        make_optimizer(asked[1].optimizer, 10)
    finally:
        OPTIMIZERS.pop("my_sgd", None)

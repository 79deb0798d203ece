"""Every block of Python of the README and of the pages runs; what the pages define works."""

import re
from importlib import import_module
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

import icl
from icl.analysis import ANALYSES
from icl.cli import main
from icl.experiments import PRESETS
from icl.sweeps import SweepResult
from icl.sweeps.grid import grid
from icl.tasks import sample_batch
from icl.training import Learner, Run, processes
from icl.training.config import config_from_dict, config_to_dict
from icl.training.data import load_data
from icl.training.optimizer import make_optimizer
from icl.training.step import init_state

from .icl.helpers import shrunk, untrained
from .pages import BLOCKS, RUNS, TEXTS, there

__all__ = ["there"]  # a fixture


@pytest.fixture
def quick(there, monkeypatch):
    """Runs without training: they have the initial parameters of small models."""

    def train(what, run_dir=None, **options):
        config = what if isinstance(what, icl.Config) else icl.preset(what)
        make_optimizer(config.optimizer, 10)
        assert set(options) <= {"optimizer", "logging"}
        path = there / (run_dir or f"runs/{len(list(there.glob('runs/*')))}")
        return untrained(path, config.replace(model_layers=1, model_width=16, model_heads=2))

    def sweep(what, over, seeds=1):
        return grid(icl.preset(what), over, seeds)

    def evaluate(run):
        assert isinstance(run, Run)
        return "table"

    for name, function in dict(train=train, sweep=sweep, evaluate=evaluate).items():
        monkeypatch.setitem(vars(icl), name, function)
    monkeypatch.setattr(SweepResult, "load", lambda sweep: sweep)
    monkeypatch.setattr(processes, "start", lambda address: None)


def arrays():
    """What the blocks about kernels take as given."""
    draw = lambda *shape: jax.random.normal(jax.random.key(0), shape)
    query = key = value = draw(2, 4, 2, 8)
    return dict(
        query=query, key=key, value=value, qkv=draw(2, 4, 3, 2, 8), beta=jnp.full((2, 4, 2), 0.5),
        log_decay=jnp.full((2, 4, 2), -0.1), examples=jnp.array([2, 3]), nnx=nnx, rngs=nnx.Rngs(0),
    )  # fmt: skip


def check_readme(names):
    assert names["y_query"].shape == (100, 3) and names["out"].shape == (2, 4, 2, 8)
    assert names["probabilities"].shape == (505, 2)


def check_look_inside(names):
    assert names["rise"].shape == (64, 12) and np.abs(names["rise"]).max() > 0
    assert Path("patterns.png").stat().st_size > 1000


def check_recipes(names):
    assert names["config"].optimizer.name == "my_sgd" and isinstance(names["run"], Run)


def check_tables(names):
    assert names["probabilities"].shape == (505, 2) and names["accuracy"] > 0.85


def check_layers(names):
    assert names["chosen"] == [("attention", "xla")]


GIVEN = {"README.md": arrays, "kernels/README.md": arrays}
CHECKS = {
    "README.md": check_readme,
    "docs/look-inside.md": check_look_inside,
    "docs/recipes.md": check_recipes,
    "docs/tables.md": check_tables,
    "docs/own-layers.md": check_layers,
}


@pytest.mark.parametrize("page", [page for page, blocks in BLOCKS.items() if blocks])
def test_the_blocks_of_a_page_run(page, quick, there, capsys):
    """One after the other, with the names that earlier blocks define."""
    names: dict[str, Any] = {"__name__": "__page__", **GIVEN.get(page, dict)()}
    for block in BLOCKS[page]:
        for name in re.findall(r'"runs/([\w-]+)"', block):
            if name in RUNS and not (there / "runs" / name).exists():
                untrained(there / "runs" / name, shrunk(RUNS[name].config))
        if found := re.match(r"# (\w+)\.py\n", block):
            import_module(found[1])
            continue
        capsys.readouterr()
        exec(compile(block, page, "exec"), names)
        if "for key in" in block:
            losses = [float(line) for line in capsys.readouterr().out.split()]
            assert len(losses) == 20 and np.mean(losses[-5:]) < 0.8 * losses[0]
    CHECKS.get(page, lambda names: None)(names)


def test_no_python_of_a_page_escapes():
    """It is in a block that is marked as Python, and that the test above finds."""
    for page, text in TEXTS.items():
        fences = re.findall(r"^\s*(```.*)$", text, re.MULTILINE)
        assert {*fences} <= {"```", "```python", "```bash"}, page
        assert fences.count("```python") == len(BLOCKS[page]), page
        rest = re.sub(r"^```python\n.*?^```", "", text, flags=re.M | re.S)
        assert not re.search(r"^\s*(import|from) [\w.]+( import .*)?$", rest, re.MULTILINE), page


def test_the_blocks_of_how_to_pages_are_short():
    for page, blocks in BLOCKS.items():
        if page.startswith("docs/own-"):
            assert blocks and all(block.count("\n") <= 40 for block in blocks), page


@pytest.mark.parametrize(
    ("module", "preset"),
    [
        ("my_task", "mine/images"),
        ("my_model", "mine/gru"),
        ("my_mixer", "mine/alibi"),
        ("my_experiment", "mine/noise"),
    ],
)
def test_a_task_a_model_and_a_mixer_of_ones_own_fit_the_trainer(module, preset, there, monkeypatch):
    # The check compiles the model; test_models.py tests it.
    monkeypatch.setattr("icl.training.learner.check_causal", lambda *arguments: None)
    assert main(["--import", module, "list", preset]) == 0
    config = icl.preset(preset)
    assert config_from_dict(config_to_dict(config)) == config
    learner = Learner(config)
    data, key = load_data(learner.family), jax.random.key(0)
    draw = lambda key, data: sample_batch(
        learner.family, key, jnp.arange(4), learner.family.full, data=data
    )
    episodes = jax.eval_shape(draw, key, data)
    if module == "my_task":
        assert episodes.x.shape == (4, 20, 28, 28) and episodes.x.dtype == np.uint8
    variables = jax.eval_shape(learner.init, key)
    loss, _ = jax.eval_shape(learner.loss_sum, variables, episodes)
    assert loss.shape == ()
    optimizer = make_optimizer(config.optimizer, config.training.steps)
    state = jax.eval_shape(lambda: init_state(learner, optimizer))
    assert jax.tree.leaves(state.variables.params)


def test_a_mixer_of_ones_own_has_the_pattern_that_it_mixes_by(there):
    weights = dict(kernel_init=nnx.initializers.normal(1.0), out_init=nnx.initializers.zeros)
    mixer = import_module("my_mixer").Alibi(8, 2, **weights, rngs=nnx.Rngs(0))
    x = jax.random.normal(jax.random.key(0), (1, 5, 8))
    qkv = mixer.qkv(x).reshape(1, 5, 3, 2, 4)
    pattern = mixer.pattern(x, qkv)
    expected = jnp.einsum("bnts,bsnh->btnh", pattern, qkv[:, :, 2])
    np.testing.assert_allclose(mixer.mix(x, qkv), expected, atol=1e-5)
    assert not np.triu(pattern[0], 1).any()


def test_an_experiment_of_ones_own_has_a_grid(there):
    import_module("my_experiment")
    preset = PRESETS["mine/noise-map"]
    assert len(grid(preset.config, preset.over or {}, 2)) == 18
    assert ANALYSES[preset.report or ""].of == "sweep"


def test_an_analysis_of_ones_own_is_asked_by_the_command(there, monkeypatch, capsys):
    path = untrained(there / "run", shrunk(icl.preset("olsson/induction-xs"))).path
    monkeypatch.setattr("icl.commands.eval.evaluate_and_show", lambda run, **options: None)
    command = ["--import", "my_analysis", "eval", str(path), "--analyses", "ablation"]
    assert main([*command, "--prompts", "8"]) == 0
    assert "error without a head" in capsys.readouterr().out
    found = import_module("my_analysis").Ablation.load(path)
    assert found.rise.shape == (2, 2) and np.abs(found.rise).max() > 0 and found.prompts == 8
    assert (path / "ablation.png").exists()


def test_an_op_of_ones_own_keeps_the_laws_of_transforms(there):
    relu_attention = import_module("relu_attention").relu_attention
    q, k, v = jax.random.normal(jax.random.key(0), (3, 2, 3, 2, 4))
    queries = jnp.stack([q, -2 * q])

    def of(implementation):
        op = lambda *qkv: relu_attention(*qkv, implementation=implementation)
        mapped = lambda *qkv: (jax.vmap(op, (0, None, None))(*qkv) ** 2).sum()
        slope = lambda *qkv: (jax.grad(mapped, argnums=1)(*qkv) ** 2).sum()
        each = lambda *qkv: (op(qkv[0][0], *qkv[1:]), jax.grad(mapped, (0, 1, 2))(*qkv))
        return jax.jit(lambda *qkv: (each(*qkv), jax.grad(slope)(*qkv)))(queries, k, v)

    both = (jax.tree.leaves(of(implementation)) for implementation in ("pallas", "xla"))
    for ours, defined in zip(*both, strict=True):
        np.testing.assert_allclose(ours, defined, atol=1e-4 * float(jnp.abs(defined).max()))
    # By hand: what one query sees.
    weights = np.maximum(np.einsum("nh,snh->ns", q[0, 0], k[0]), 0) / (2 * 3)
    expected = np.einsum("ns,snh->nh", weights, v[0])
    np.testing.assert_allclose(relu_attention(q, k, v)[0, 0], expected, atol=1e-5)
    with pytest.raises(ValueError, match="'triton'; there are 'pallas', 'xla'"):
        relu_attention(q, k, v, implementation="triton")

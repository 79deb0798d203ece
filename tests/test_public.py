"""docs/public.md names what is exported, and a type checker knows it as a user sees it."""

import json
import re
import shutil
import subprocess
import sys
from importlib import import_module
from pathlib import Path

import pytest

from icl.cli import main

ROOT = Path(__file__).parent.parent
SECTIONS = dict(
    re.findall(r"^## (.+?)\n(.*?)(?=^## |\Z)", (ROOT / "docs/public.md").read_text(), re.M | re.S)
)


@pytest.mark.parametrize("name", ["icl", "icl.kernels", "icl.sklearn"])
def test_the_page_names_exactly_what_is_exported(name):
    cells = re.findall(r"^\| (`.*?) \|", SECTIONS[f"`{name}`"], re.MULTILINE)
    named = re.findall(r"`(\w+)`", " ".join(cells))
    assert sorted(named) == sorted(import_module(name).__all__)


def test_extension_points_are_exported_by_their_modules():
    rows = re.findall(r"^\| `([\w.]+)` \| (.*) \|$", SECTIONS["Extension points"], re.MULTILINE)
    assert len(rows) > 5
    for module, cell in rows:
        names = re.findall(r"`(\w+)`", cell)
        assert names and set(names) <= set(import_module(module).__all__), module


def test_the_page_names_every_command(capsys):
    main(["--help"])
    shown = re.findall(r"^(?:usage:|      ) icl (\w+)", capsys.readouterr().out, re.MULTILINE)
    assert set(re.findall(r"`icl (\w+)`", SECTIONS["The command line"])) == set(shown)


GOOD = """
import jax
import numpy as np

import icl
from icl.kernels import delta_rule, dot_product_attention, flax_attention_fn, linear_attention


def mix(query: jax.Array, beta: jax.Array) -> jax.Array:
    mixed: jax.Array = dot_product_attention(query, query, query, is_causal=True)
    mixed = linear_attention(mixed, query, query, is_causal=True)
    out, state = linear_attention(mixed, query, query, is_causal=False, return_state=True)
    attention = flax_attention_fn(is_causal=True)
    return attention(out, query, delta_rule(query, query, query, beta)) + state


def error(noise: float) -> np.ndarray:
    config: icl.Config = icl.preset("garg/linear-xs").replace(task_noise=noise)
    run: icl.Run = icl.train(config, "here")
    print(icl.evaluate(run), icl.sweep(config, {"task_noise": [0.0, noise]}, seeds=2).path)
    return run.predict([[1.0]], [1.0], [[2.0]])
"""
BAD = """
import jax

import icl
from icl.kernels import dot_product_attention


def wrong(query: jax.Array) -> None:
    dot_product_attention(query, query, query, causal=True)
    dot_product_attention(query, query, query, scale="small")
    icl.train("garg/linear-xs", steps=3)
    icl.trian("garg/linear-xs")
"""


def test_a_type_checker_knows_the_public_functions(tmp_path):
    pyright = shutil.which("pyright", path=Path(sys.executable).parent)
    if pyright is None or subprocess.run([pyright, "--version"], capture_output=True).returncode:
        pytest.skip("pyright is not here: its first start downloads it")
    (tmp_path / "good.py").write_text(GOOD)
    (tmp_path / "bad.py").write_text(BAD)
    settings = {"typeCheckingMode": "strict", "extraPaths": [str(ROOT)]}
    (tmp_path / "pyrightconfig.json").write_text(json.dumps(settings))
    command = [pyright, "--outputjson", "--pythonpath", sys.executable]
    checked = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True)
    found = json.loads(checked.stdout)["generalDiagnostics"]
    told = {(Path(one["file"]).name, one["range"]["start"]["line"]) for one in found}
    wanted = [i for i, line in enumerate(BAD.splitlines()) if line.startswith("    ")]
    assert sorted(told) == [("bad.py", line) for line in wanted], found

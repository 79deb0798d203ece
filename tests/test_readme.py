"""What the README and the pages of docs/ say is true."""

import re
from pathlib import Path

import icl
from icl.analysis import ANALYSES
from icl.experiments import PRESETS

ROOT = Path(__file__).parent.parent
README = (ROOT / "README.md").read_text()


def test_the_table_of_presets_is_the_registry():
    page = (ROOT / "docs" / "presets.md").read_text()
    rows = dict(re.findall(r"^\| `([\w-]+/[\w-]+)` \| (.*) \|$", page, re.MULTILINE))
    assert rows == {preset.name: preset.summary for preset in PRESETS.values()}


def test_the_table_of_analyses_is_the_catalogue():
    page = (ROOT / "docs" / "look-inside.md").read_text()
    rows = re.findall(r"^\| `([\w/-]+)` \| (run|sweep|nothing) \| (.*) \|$", page, re.MULTILINE)
    assert sorted(rows) == sorted((name, a.of, a.summary) for name, a in ANALYSES.items())


def test_the_papers_it_names_have_their_presets():
    rows = re.findall(r"^\| .* \| (`[\w-]+/[\w-]+`.*?) \| \[docs/", README, re.MULTILINE)
    named = set()
    for group in ";".join(rows).split(";"):
        names = re.findall(r"`([\w/-]+)`", group)
        paper = names[0].partition("/")[0]
        named |= {name if "/" in name else f"{paper}/{name}" for name in names}
    assert named <= {*PRESETS, *ANALYSES}
    assert {name.partition("/")[0] for name in PRESETS} == {n.partition("/")[0] for n in named}


def test_what_it_links_to_exists():
    contributing = (ROOT / "CONTRIBUTING.md").read_text()
    paths = re.findall(r"\]\(([\w/.-]+)\)", README)
    folders = re.findall(r"`([\w-]+/(?:[\w-]+/)*)`", contributing)
    assert "docs/images/linear-xs.png" in paths and "docs/index.md" in paths
    assert "kernels/" in folders and "icl/tasks/" in folders
    for path in (*paths, *folders):
        assert (ROOT / path).exists(), path


def test_the_python_it_shows_names_what_exists():
    for name in re.findall(r"\bicl\.(\w+)\(", README):
        assert hasattr(icl, name), name
    assert icl.preset("garg/linear-xs").replace(task_noise=0.5, training_steps=20_000)

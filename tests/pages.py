"""The README and the pages, their blocks of Python, and the modules among these."""

import re
import sys
from pathlib import Path

import numpy as np
import pytest

from icl.analysis import ANALYSES
from icl.experiments import PRESETS
from icl.layers import MIXERS
from icl.models import MODELS
from icl.tasks import FAMILIES
from icl.training.optimizer import OPTIMIZERS

ROOT = Path(__file__).parent.parent
OUTSIDE = ("README.md", "CONTRIBUTING.md", "kernels/README.md", "bench/README.md")
TEXTS = {
    name: (ROOT / name).read_text()
    for name in (*OUTSIDE, *(str(p.relative_to(ROOT)) for p in sorted(ROOT.glob("docs/**/*.md"))))
}
PYTHON = re.compile(r"^```python\n(.*?)^```", re.MULTILINE | re.DOTALL)
BLOCKS = {name: PYTHON.findall(text) for name, text in TEXTS.items()}
# Blocks that begin with the name of a file are that module.
MODULES = {
    found[1]: block
    for blocks in BLOCKS.values()
    for block in blocks
    if (found := re.match(r"# (\w+)\.py\n", block))
}
RUNS = {preset.name.replace("/", "-"): preset for preset in PRESETS.values()}


@pytest.fixture
def there(tmp_path, monkeypatch):
    """A folder with the modules of all pages; what they register is forgotten afterwards."""
    for name, block in MODULES.items():
        (tmp_path / f"{name}.py").write_text(block)
    images = np.random.default_rng(0).integers(0, 256, (10, 28, 28), dtype=np.uint8)
    np.save(tmp_path / "images.npy", images)
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    registries = FAMILIES, MODELS, MIXERS, OPTIMIZERS, ANALYSES, PRESETS._registered
    before = [dict(registry) for registry in registries]
    yield tmp_path
    for registry, known in zip(registries, before, strict=True):
        registry.clear()
        registry.update(known)
    for name in MODULES:
        sys.modules.pop(name, None)

"""Fixtures of several files."""

from pathlib import Path

import pytest
from matplotlib.figure import Figure

from icl.training import single
from icl.training.config import CUSTOM


@pytest.fixture(scope="module", autouse=True)
def quick_pdfs(request):
    """A PDF is a stub, since it takes a second of CPU time; test_figures.py draws real ones."""
    original = Figure.savefig

    def savefig(figure, path, **options):
        if Path(path).suffix == ".pdf":
            Path(path).write_bytes(b"%PDF")
        else:
            original(figure, path, **options)

    with pytest.MonkeyPatch.context() as patch:
        if not request.module.__name__.endswith("test_figures"):
            patch.setattr(Figure, "savefig", savefig)
        yield


@pytest.fixture
def undrawn(monkeypatch):
    """A figure is a stub, since to draw one takes half a second of CPU time."""
    stub = lambda figure, path, **options: Path(path).write_bytes(b"figure")
    monkeypatch.setattr(Figure, "savefig", stub)


@pytest.fixture(scope="module")
def programs():
    """Every chunk is compiled once, though many runs of a file's tests need it."""
    known, original = {}, single.compile_chunk

    def compile_chunk(learner, optimizer, state, length, *rest, **options):
        if learner.config.optimizer.name == CUSTOM:  # its numbers are not in the settings
            return original(learner, optimizer, state, length, *rest, **options)
        name = (repr(learner.config), length)
        if name not in known:
            known[name] = original(learner, optimizer, state, length, *rest, **options)
        return known[name]

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(single, "compile_chunk", compile_chunk)
        yield

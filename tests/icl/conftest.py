"""Fixtures of several files."""

import pytest

from icl.training import single
from icl.training.config import CUSTOM


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

"""Kernels promote no dtype and no rank implicitly, as callers may have told JAX to refuse it."""

import jax
import pytest


@pytest.fixture(autouse=True)
def strict_promotion():
    with jax.numpy_dtype_promotion("strict"), jax.numpy_rank_promotion("raise"):
        yield

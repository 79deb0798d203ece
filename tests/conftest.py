"""Settings of every test: deterministic hypothesis, shared compilations, strict JAX."""

import atexit
import gc
import importlib.metadata
import os
import shutil
import tempfile

import hypothesis
import pytest

# Before jax is imported, and inherited by the processes that tests start.
# A third of the time to compile, and programs of tests are too small to gain from more.
QUICK = (
    "--xla_backend_optimization_level=0 --xla_llvm_disable_expensive_passes=true "
    "--xla_cpu_parallel_codegen_split_count=1"
)
if importlib.metadata.version("jaxlib").startswith("0.10."):
    # Newer releases end with an error if they are given this flag.
    QUICK += " --xla_cpu_use_fusion_emitters=false"
CACHE = tempfile.mkdtemp(prefix="icl-tests-")
atexit.register(shutil.rmtree, CACHE, ignore_errors=True)
os.environ["JAX_COMPILATION_CACHE_DIR"] = CACHE
os.environ["JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS"] = "0.05"
os.environ["JAX_DEBUG_KEY_REUSE"] = "1"
# Places in the source, which nobody reads in a test's programs, cost a tenth of tracing.
os.environ["JAX_TRACEBACK_IN_LOCATIONS_LIMIT"] = "0"
# The same bits wherever the tests run; tests of several devices start processes of their own.
os.environ["JAX_NUM_CPU_DEVICES"] = "1"
if os.environ.get("ICL_TEST_DEVICE") != "gpu":
    os.environ["XLA_FLAGS"] = f"{os.environ.get('XLA_FLAGS', '')} {QUICK}"
    # Triton and Pallas kernels run step by step on the CPU.
    os.environ["ICL_KERNELS_INTERPRET"] = "1"

# Traces make many objects and few circles: collecting those at the usual pace costs a tenth, too.
gc.set_threshold(200_000, 20, 20)

hypothesis.settings.register_profile(
    "project", derandomize=True, database=None, deadline=None, max_examples=25
)
hypothesis.settings.load_profile("project")


@pytest.fixture(scope="session", autouse=True)
def strict_promotion():
    """JAX promotes no dtype and no rank, except in optimisers, where optax relies on it."""
    import jax
    import optax

    def update(optimizer):
        def standard(*arguments, **options):
            with jax.numpy_dtype_promotion("standard"), jax.numpy_rank_promotion("allow"):
                return optimizer[1](*arguments, **options)

        return standard

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(optax.GradientTransformation, "update", property(update))
        # For every thread, unlike the settings' context managers.
        jax.config.update("jax_numpy_dtype_promotion", "strict")
        jax.config.update("jax_numpy_rank_promotion", "raise")
        yield

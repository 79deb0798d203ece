"""Settings of every test: deterministic hypothesis, key reuse caught, warnings as errors."""

import hypothesis
import jax

jax.config.update("jax_debug_key_reuse", True)

hypothesis.settings.register_profile(
    "project", derandomize=True, database=None, deadline=None, max_examples=25
)
hypothesis.settings.load_profile("project")

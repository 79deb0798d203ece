"""What runs on a GPU compiles and is in the lowered program, on a machine without one."""

import importlib.util
import json
import os
import subprocess
import sys
from pathlib import Path

import pytest

BENCH = Path(__file__).parents[2] / "bench"
PLUGINS = ("jax_cuda12_plugin", "jax_cuda13_plugin")

pytestmark = pytest.mark.skipif(
    not all(importlib.util.find_spec(name) for name in ("triton", "jax_triton"))
    or not any(importlib.util.find_spec(name) for name in PLUGINS),
    reason="needs Triton, jax-triton and JAX's CUDA plugin: make check-gpu-code",
)

COMPILE = """
import json
from gpu_code.compile import resources
from gpu_code.launches import Case, launches
made = {each.name: each for each in launches(Case("WORKLOAD"), "cuda", 90)}
print(json.dumps(resources("sm_90", made["KERNEL"])))
"""

LOWER = """
import json
import jax, jax.numpy as jnp
from gpu_code.lowering import kernel_calls, lower
from icl.kernels import OP
loss = lambda q, k, v: OP(q, k, v, is_causal=True).astype(jnp.float32).sum()
x = jax.ShapeDtypeStruct((64, 82, 8, 32), jnp.bfloat16)
lowered = lower(jax.value_and_grad(loss, argnums=(0, 1, 2)), x, x, x)
products = lowered.as_text().count("dot_general")
print(json.dumps([[name for name, _ in kernel_calls(lowered)], products]))
"""


def run(program, tmp_path):
    # This process interprets kernels, and one that compiles them must not.
    drop = ("ICL_KERNELS_INTERPRET", "TRITON_INTERPRET")
    environment = {name: value for name, value in os.environ.items() if name not in drop}
    environment |= {"TRITON_CACHE_DIR": str(tmp_path), "JAX_PLATFORMS": "cpu"}
    done = subprocess.run(
        [sys.executable, "-c", program],
        cwd=BENCH, env=environment, capture_output=True, text=True,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout.splitlines()[-1])


BACKWARDS = {
    "short-causal": "row backward",
    "linear-short": "causal backward",
    "delta-short": "causal backward",
}


@pytest.mark.parametrize("workload", BACKWARDS)
def test_a_short_backward_keeps_everything_in_registers_and_uses_tensor_cores(workload, tmp_path):
    program = COMPILE.replace("WORKLOAD", workload).replace("KERNEL", BACKWARDS[workload])
    found = run(program, tmp_path)
    assert "error" not in found, found
    assert found["stack"] == 0 and 32 < found["registers"] <= 255
    assert found["products"] == "wgmma"
    assert 0 < found["shared"] <= 227 * 1024
    assert found["programs_a_multiprocessor"] >= 1


@pytest.mark.parametrize("op", ["dot_product_attention", "linear_attention"])
def test_the_gradient_lowered_for_cuda_is_the_two_kernels_and_no_other_product(op, tmp_path):
    kernels, products = run(LOWER.replace("OP", op), tmp_path)
    assert kernels == ["forward_kernel", "backward_kernel"]
    assert products == 0

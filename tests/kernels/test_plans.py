"""What launches depend on: the generation of a GPU."""

import jax
import jax.numpy as jnp
import pytest

from icl.kernels import targeting
from icl.kernels.attention import launch
from icl.kernels.attention.problem import Operands, Problem
from icl.kernels.plans import has_little_shared_memory, has_wgmma, warps_hold_operands


@pytest.mark.parametrize(
    "capability, wgmma, in_warps, little",
    [
        (80, False, True, False),
        (86, False, True, True),
        (89, False, True, True),
        (90, True, False, False),
        (100, False, False, False),
        (103, False, False, False),
        # Blackwells without tensor memory multiply as Ampere does.
        (120, False, True, True),
        (121, False, True, True),
        (130, False, True, True),
        (None, True, False, False),
    ],
)
def test_each_generation_has_its_own_products_and_memory(capability, wgmma, in_warps, little):
    with targeting("cuda", capability):
        assert (has_wgmma(), warps_hold_operands()) == (wgmma, in_warps)
        assert has_little_shared_memory() == little


@pytest.mark.parametrize("capability, form", [(80, "row"), (90, "row"), (120, "tiled")])
def test_a_row_that_needs_more_shared_memory_than_there_is_is_tiled(capability, form):
    operands = Operands(*3 * [jax.ShapeDtypeStruct((64, 256, 8, 64), jnp.bfloat16)])
    with targeting("cuda", capability):
        assert launch.plan(Problem(1.0), operands).form == form

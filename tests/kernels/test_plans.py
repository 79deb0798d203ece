"""What launches depend on: the generation of a GPU."""

import pytest

from icl.kernels import targeting
from icl.kernels.plans import has_wgmma, shared_kib, warps_hold_operands


@pytest.mark.parametrize(
    "capability, wgmma, in_warps, kib",
    [
        (80, False, True, 163),
        (86, False, True, 99),
        (89, False, True, 99),
        (90, True, False, 227),
        (100, False, False, 227),
        (103, False, False, 227),
        # Blackwells without tensor memory multiply as Ampere does.
        (120, False, True, 99),
        (121, False, True, 99),
        # A later GPU is not taken for more than the smallest of today's.
        (130, False, True, 99),
        (None, True, False, 227),
    ],
)
def test_each_generation_has_its_own_products_and_shared_memory(capability, wgmma, in_warps, kib):
    with targeting("cuda", capability):
        assert (has_wgmma(), warps_hold_operands(), shared_kib()) == (wgmma, in_warps, kib)

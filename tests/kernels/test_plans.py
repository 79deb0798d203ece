"""What launches depend on: the generation of a GPU."""

import pytest

from icl.kernels import targeting
from icl.kernels.plans import has_wgmma, warps_hold_operands


@pytest.mark.parametrize(
    "capability, wgmma, in_warps",
    [
        (80, False, True),
        (86, False, True),
        (89, False, True),
        (90, True, False),
        (100, False, False),
        (103, False, False),
        # Blackwells without tensor memory multiply as Ampere does.
        (120, False, True),
        (121, False, True),
        (130, False, True),
        (None, True, False),
    ],
)
def test_each_generation_has_its_own_products(capability, wgmma, in_warps):
    with targeting("cuda", capability):
        assert (has_wgmma(), warps_hold_operands()) == (wgmma, in_warps)

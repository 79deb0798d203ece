"""No 32-bit offset of a kernel can exceed 2^31 - 1, however large the call."""

import importlib.util

import pytest

from .test_gpu_code import said

pytestmark = pytest.mark.skipif(not importlib.util.find_spec("triton"), reason="needs Triton")

CODE = """
module {
  tt.func public @kernel(%arg0: !tt.ptr<f32>, %arg1: !tt.ptr<i32>) {
    %c8_i32 = arith.constant 8 : i32
    %c2_i32 = arith.constant 2 : i32
    %c100_i32 = arith.constant 100 : i32
    %cst = arith.constant dense<STRIDE> : tensor<64x1xi32>
    %0 = tt.get_program_id x : i32
    %1 = arith.remsi %0, %c8_i32 : i32
    %2 = arith.divsi %0, %c8_i32 : i32
    %3 = tt.make_range {end = 64 : i32, start = 0 : i32} : tensor<64xi32>
    %4 = tt.load %arg1 : !tt.ptr<i32>
    %5 = arith.minsi %4, %c100_i32 : i32
    %6 = scf.for %arg2 = %1 to %5 step %c8_i32 iter_args(%arg3 = %c2_i32) -> (i32)  : i32 {
      %11 = tt.splat %arg2 : i32 -> tensor<64xi32>
      %12 = arith.addi %11, %3 : tensor<64xi32>
      %13 = tt.expand_dims %12 {axis = 1 : i32} : tensor<64xi32> -> tensor<64x1xi32>
      %14 = arith.muli %13, %cst : tensor<64x1xi32>
      %15 = tt.addptr %arg0, %14 : tensor<64x1x!tt.ptr<f32>>, tensor<64x1xi32>
      %16 = arith.CARRY %arg3, %c8_i32 : i32
      scf.yield %16 : i32
    }
    %7:2 = scf.while (%arg4 = %cst, %arg5 = %c2_i32) : (tensor<64x1xi32>, i32) -> (i32, i32) {
      %17 = arith.cmpi slt, %arg5, %c100_i32 : i32
      scf.condition(%17) %arg4, %arg5 : tensor<64x1xi32>, i32
    } do {
    ^bb0(%arg4: tensor<64x1xi32>, %arg5: i32):
      %18 = arith.muli %arg5, %c2_i32 : i32
      scf.yield %arg4, %18 : tensor<64x1xi32>, i32
    }
    %8 = arith.muli %2, %7#1 : i32
    tt.return
  }
}
"""


@pytest.mark.parametrize(
    "stride, carry, programs, expected",
    [
        # Rows are up to 99 + 63, and the loop of size doubles it up to 198.
        (1_000_000, "minsi", 8 * 10_000, []),
        (13_256_071, "minsi", 8 * 10_000, []),
        (13_256_072, "minsi", 8 * 10_000, ["%14 = arith.muli", "2147483664"]),
        (1, "minsi", 8 * 10_845_878, []),
        (1, "minsi", 8 * 10_845_879 + 1, ["%8 = arith.muli"]),
        (1, "addi", 8, ["%16 = arith.addi"]),
    ],
)
def test_only_what_can_exceed_its_width_is_found(stride, carry, programs, expected):
    offsets = pytest.importorskip("bench.gpu_code.offsets")
    code = CODE.replace("STRIDE", str(stride)).replace("CARRY", carry)
    found = offsets.overflows(code, programs)
    assert len(found) == bool(expected), found
    assert all(part in found[0] for part in expected)


LARGE = """
import json
import sys
from bench.gpu_code.launches import launches_of
from bench.gpu_code.offsets import overflows, ttir
from bench.kernels.ops import ATTENTION, DELTA, LINEAR, Case
from icl.kernels.attention import triton_tiles as attention_tiles
from icl.kernels.attention.workloads import Workload as Attention
from icl.kernels.linear_attention import triton_tiles as linear_tiles
from icl.kernels.linear_attention.workloads import Workload as Linear

def found(op, workload, option=""):
    launches = launches_of(Case(op, workload, option), "cuda", 90)
    assert len(launches) >= 2
    return [
        [made.name, overflow]
        for made in launches
        for overflow in overflows(ttir(made), made.programs)
    ]

BIAS = (ATTENTION, Attention(2, 16384, 16, 64, True), "bias")
MASK = (ATTENTION, Attention(3, 46400, 2, 64, False), "mask")
STATES = (DELTA, Linear(2, 1_000_000, 16, 128), "everything")
now = [found(*case) for case in (
    BIAS, MASK, STATES,
    (ATTENTION, Attention(2, 16384, 16, 64, True), "batch bias"),
    (ATTENTION, Attention(1, 46400, 1, 64, True), "bias"),
    (ATTENTION, Attention(2**17, 512, 64, 64, True), "lengths"),
    (ATTENTION, Attention(2**26, 16, 16, 8, True), "lengths"),
    (ATTENTION, Attention(2**24, 100, 16, 8, True), "batch bias"),
    (ATTENTION, Attention(2, 2**13 + 3, 670, 128, True), "packed"),
    (ATTENTION, Attention(2, 2**14, 1000, 128, True), "grouped"),
    (DELTA, Linear(2, 2**20, 32, 32), "everything"),
    (LINEAR, Linear(2, 1_000_000, 16, 128), "everything"),
    (LINEAR, Linear(2, 524288, 16, 128, False), "everything"),
    (LINEAR, Linear(2**26, 64, 31, 32), "everything"),
    (LINEAR, Linear(2**26, 16, 31, 128, False), "everything"),
)]

# As it was once: products with a stride in 32 bits, of a row and a head.
def without_wide_products(function):
    assert ".to(tl.int64)" in function.src
    function._unsafe_update_src(function.src.replace(".to(tl.int64)", ""))

without_wide_products(attention_tiles._score_pointers)
without_wide_products(linear_tiles.state_pointers)
for name, module in list(sys.modules.items()):
    for each in vars(module).values() if name.startswith("icl.kernels") else ():
        if hasattr(each, "hash"):
            each.hash = None  # also of their callers
print(json.dumps([now, [found(*case) for case in (BIAS, MASK, STATES)]]))
"""


def test_offsets_of_large_calls_stay_within_their_widths(tmp_path):
    now, before = said(tmp_path, LARGE)
    assert now == [[]] * len(now)
    bias, mask, states = ([name for name, _ in case] for case in before)
    tiled = ["tiled forward", "tiled backward queries", "tiled backward keys"]
    assert bias == mask == tiled
    assert {*states} == {"delta forward", "delta backward"}

"""Instructions of a GPU, followed without one: against answers worked out by hand."""

import numpy as np
import pytest

from bench.gpu_code import emulator, sass
from bench.gpu_code.integers import decode

LANES = np.arange(32)[None]


def parsed(*lines):
    """Instructions 16 bytes apart, as a disassembler writes them."""
    return sass.parse("\n".join(f"        /*{16 * i:04x}*/  {x} ;" for i, x in enumerate(lines)))


def results(line, registers):
    """What an instruction writes, given the registers that it reads."""
    [each] = parsed(line)
    operation = decode(each)
    return dict(zip(operation.targets, operation(registers)))


HIGH = 2**32 - 1

KNOWN = [
    # Sums with carries; a difference has a carry unless it borrows.
    ("IADD3 R0, P0, R1, 0x1, RZ", dict(R1=HIGH), dict(R0=0, P0=True)),
    ("IADD3 R0, P0, R1, 0x1, RZ", dict(R1=7), dict(R0=8, P0=False)),
    ("IADD3 R0, P0, R1, -R2, RZ", dict(R1=5, R2=3), dict(R0=2, P0=True)),
    ("IADD3 R0, P0, R1, -R2, RZ", dict(R1=3, R2=5), dict(R0=HIGH - 1, P0=False)),
    ("IADD3 R0, P0, R1, -R2, RZ", dict(R1=5, R2=0), dict(R0=5, P0=True)),
    ("IADD3 R0, P0, P1, R1, R2, R3", dict(R1=HIGH, R2=HIGH, R3=HIGH),
     dict(R0=HIGH - 2, P0=True, P1=True)),
    ("IADD3.X R0, R1, R2, RZ, P0, !PT", dict(R1=1, R2=2, P0=True), dict(R0=4)),
    ("IADD3.X R0, R1, ~R2, RZ, P0, !PT", dict(R1=9, R2=2, P0=True), dict(R0=7)),
    ("VIADD R0, R1, 0xffffffff", dict(R1=5), dict(R0=4)),
    ("UIADD3 UR4, -UR5, 0x3, URZ", dict(UR5=4), dict(UR4=HIGH)),
    # Products, with an addend of 64 bits where they are that wide or their upper half is taken.
    ("IMAD R0, R1, 0x10, R2", dict(R1=2**30, R2=3), dict(R0=3)),
    ("IMAD.WIDE.U32 R0, R2, 0x10, R4", dict(R2=HIGH, R4=16, R5=1), dict(R0=0, R1=17)),
    ("IMAD.WIDE R0, R2, 0x10, R4", dict(R2=HIGH, R4=0, R5=1), dict(R0=2**32 - 16, R1=0)),
    ("IMAD.HI.U32 R0, R1, R2, RZ", dict(R1=HIGH, R2=HIGH), dict(R0=HIGH - 1)),
    ("IMAD.HI.U32 R0, R1, R2, R4", dict(R1=2**31, R2=2, R4=0, R5=7), dict(R0=8)),
    ("IMAD.MOV.U32 R0, RZ, RZ, R1", dict(R1=HIGH), dict(R0=HIGH)),
    ("IMAD.X R0, RZ, RZ, R1, P0", dict(R1=2, P0=True), dict(R0=3)),
    ("UIMAD UR4, UR5, -0x6, UR6", dict(UR5=2, UR6=20), dict(UR4=8)),
    # base + (index << 4) in 64 bits takes two instructions.
    ("LEA R0, P0, R1, R2, 0x4", dict(R1=2**29 + 1, R2=HIGH - 7), dict(R0=8, P0=True)),
    ("LEA R0, P0, -R1, R2, 0x4", dict(R1=1, R2=32), dict(R0=16, P0=True)),
    ("LEA R0, P0, -R1, R2, 0x4", dict(R1=1, R2=8), dict(R0=HIGH - 7, P0=False)),
    ("LEA R0, P0, -R1, R2, 0x4", dict(R1=0, R2=8), dict(R0=8, P0=True)),
    ("LEA R0, P0, -R1, R2, 0x4", dict(R1=2**28, R2=8), dict(R0=8, P0=True)),
    ("LEA.HI.X R0, R1, R2, R3, 0x4, P0", dict(R1=2**29 + 1, R2=5, R3=0, P0=True), dict(R0=8)),
    ("LEA.HI.X R0, R1, R2, R3, 0x4, P0", dict(R1=0, R2=5, R3=HIGH, P0=False),
     dict(R0=(5 - 16) & HIGH)),
    ("LEA.HI.SX32 R0, R1, R2, 0x1c", dict(R1=(-48) & HIGH, R2=5), dict(R0=2)),
    ("ULEA UR4, UR4, UR5, 0x18", dict(UR4=2, UR5=3), dict(UR4=3 + 2**25)),
    # Logic by a table of the three operands' bits.
    ("LOP3.LUT R0, R1, R2, RZ, 0xc0, !PT", dict(R1=12, R2=10), dict(R0=8)),
    ("LOP3.LUT R0, R1, R2, RZ, 0x3c, !PT", dict(R1=12, R2=10), dict(R0=6)),
    ("LOP3.LUT R0, R1, R2, R3, 0xf8, !PT", dict(R1=1, R2=12, R3=10), dict(R0=9)),
    ("LOP3.LUT R0, RZ, R1, RZ, 0x33, !PT", dict(R1=1), dict(R0=HIGH - 1)),
    ("LOP3.LUT P0, R0, R1, 0x4, RZ, 0xc0, !PT", dict(R1=3), dict(R0=0, P0=False)),
    ("PLOP3.LUT P0, PT, P1, P2, PT, 0x80, 0x8", dict(P1=True, P2=False), dict(P0=False, PT=False)),
    # Shifts of a pair of words.
    ("SHF.R.U32.HI R0, RZ, 0x4, R1", dict(R1=2**31), dict(R0=2**27)),
    ("SHF.R.S32.HI R0, RZ, 0x1f, R1", dict(R1=2**31), dict(R0=HIGH)),
    ("SHF.L.U32 R0, R1, 0x5, RZ", dict(R1=HIGH), dict(R0=HIGH - 31)),
    ("SHF.L.U64.HI R0, R1, 0x4, R2", dict(R1=2**31, R2=1), dict(R0=24)),
    ("SHF.R.U64 R0, R1, 0x4, R2", dict(R1=32, R2=3), dict(R0=2 + 3 * 2**28)),
    ("SHF.L.W.U32.HI R0, R1, 0x8, R1", dict(R1=0x12345678), dict(R0=0x34567812)),
    ("SHF.R.W.U32 R0, R1, 0x28, R2", dict(R1=0x12345678, R2=0xAB), dict(R0=0xAB123456)),
    ("SHF.L.U32 R0, R1, R2, RZ", dict(R1=1, R2=40), dict(R0=0)),
    ("SGXT R0, R1, 0x4", dict(R1=0x38), dict(R0=HIGH - 7)),
    ("SGXT.U32 R0, R1, 0x4", dict(R1=0x38), dict(R0=8)),
    # Comparisons; .EX compares upper words once lower ones have been.
    ("ISETP.GE.U32.AND P0, PT, R1, 0x5, PT", dict(R1=HIGH), dict(P0=True, PT=False)),
    ("ISETP.GE.AND P0, PT, R1, 0x5, PT", dict(R1=HIGH), dict(P0=False, PT=True)),
    ("ISETP.LT.OR P0, P1, R1, 0x5, P2", dict(R1=9, P2=True), dict(P0=True, P1=True)),
    ("ISETP.GE.U32.AND.EX P0, PT, R1, R2, PT, P1", dict(R1=4, R2=4, P1=False),
     dict(P0=False, PT=True)),
    ("ISETP.GE.AND.EX P0, PT, R1, R2, PT, P1", dict(R1=4, R2=HIGH, P1=False),
     dict(P0=True, PT=False)),
    ("ISETP.NE.U32.AND.EX P0, PT, R1, R2, PT, P1", dict(R1=4, R2=4, P1=True),
     dict(P0=True, PT=False)),
    ("SEL R0, R1, 0x7, !P0", dict(R1=3, P0=True), dict(R0=7)),
    ("VIMNMX R0, R1, R2, PT", dict(R1=HIGH, R2=3), dict(R0=HIGH)),
    ("VIMNMX.U32 R0, R1, R2, !PT", dict(R1=HIGH, R2=3), dict(R0=HIGH)),
    # Bytes, and predicates in a word.
    ("PRMT R0, R1, 0x5410, R2", dict(R1=0xAAAA1111, R2=0xBBBB2222), dict(R0=0x22221111)),
    ("PRMT R0, R1, 0x9910, RZ", dict(R1=0x00008180), dict(R0=0xFFFF8180)),
    ("P2R R0, PR, R1, 0x5", dict(R1=0x12, P0=True, P2=False), dict(R0=0x13)),
    ("R2P PR, R1, 0x6", dict(R1=4), dict(P1=False, P2=True)),
    # Moves, some of which look like arithmetic; spilled registers.
    ("CS2R R4, SRZ", dict(SRZ=0), dict(R4=0, R5=0)),
    ("LDC.64 R6, c[0x0][0x218]", {"c[0x0][0x218]": 0, "c[0x0][0x21c]": 2}, dict(R6=0, R7=2)),
    ("HFMA2.MMA R0, -RZ, RZ, 1.875, 5.9604644775390625e-08", {}, dict(R0=0x3F800001)),
    ("STL.64 [R1+0x8], R2", dict(R2=5, R3=6), {"stack 8": 5, "stack 12": 6}),
    ("STL.64 [R1], R2", dict(R2=None, R3=6), {"stack 0": None, "stack 4": 6}),
    ("LDL R2, [R1+0xc]", {"stack 12": 6}, dict(R2=6)),
]  # fmt: skip


@pytest.mark.parametrize("line, registers, expected", KNOWN, ids=lambda x: str(x)[:50])
def test_an_instruction_writes_what_a_gpu_writes(line, registers, expected):
    """Also if the same values are arrays, one or all of them."""
    assert results(line, registers) == expected
    lift = lambda value: None if value is None else np.full((2, 32), value)
    for names in (*([name] for name in registers), [*registers]):
        lifted = registers | {name: lift(registers[name]) for name in names}
        for target, value in results(line, lifted).items():
            assert np.all(value == expected[target]), (target, names)


@pytest.mark.parametrize(
    "line, targets",
    [
        ("LDG.E.128 R8, desc[UR4][R2.64]", ["R8", "R9", "R10", "R11"]),
        ("FADD R1, R2, R3", ["R1"]),
        ("SHFL.BFLY PT, R4, R5, 0x1, 0x1f", ["R4", "PT"]),
        ("IMAD.WIDE.U32 R4, P0, R2, R3, R6", ["R4", "R5", "P0"]),
        ("HMMA.16816.F32.BF16 R24, R16, R20, RZ", ["R24", "R25", "R26", "R27"]),
        ("LDSM.16.MT88.2 R4, [R8]", ["R4", "R5"]),
        ("FSETP.GEU.AND P0, PT, R1, R2, PT", ["P0", "PT"]),
        ("VIMNMX.S16x2 R1, R2, R3, PT", ["R1"]),
        ("IADD3 R1, R2, R9, RZ", ["R1"]),
        ("STG.E desc[UR4][R2.64], R8", []),
    ],
)
def test_what_depends_on_data_is_unknown(line, targets):
    found = results(line, dict(R2=1, R3=2, R5=3, R8=4, P0=True))
    assert found == dict.fromkeys(targets)


def trace(lines, programs=(0,), num_warps=1, contents=None):
    return [*emulator.run(parsed(*lines), programs, num_warps, contents)]


def issued(lines, **warps):
    """Names of the instructions that each warp issues, in order."""
    found = {}
    for each, those, _ in trace(lines, **warps):
        for warp in those.tolist():
            found.setdefault(warp, []).append(each.name)
    return [found[warp] for warp in sorted(found)]


def test_each_program_runs_its_own_number_of_iterations():
    lines = [
        "S2R R0, SR_CTAID.X", "IADD3 R1, RZ, RZ, RZ", "IADD3 R1, R1, 0x1, RZ",
        "ISETP.LE.AND P0, PT, R1, R0, PT", "@P0 BRA 0x20", "EXIT",
    ]  # fmt: skip
    found = issued(lines, programs=(0, 2), num_warps=2)
    assert [warp.count("BRA") for warp in found] == [1, 1, 3, 3]
    assert all(warp[-1] == "EXIT" for warp in found)


def test_a_loop_runs_as_long_as_any_lane_stays():
    lines = [
        "S2R R0, SR_TID.X", "IADD3 R1, RZ, RZ, RZ", "IADD3 R1, R1, 0x1, RZ",
        "ISETP.LT.AND P0, PT, R1, R0, PT", "@P0 BRA 0x20", "EXIT",
    ]  # fmt: skip
    assert [warp.count("BRA") for warp in issued(lines, num_warps=2)] == [31, 63]


def test_an_unknown_branch_takes_the_shorter_way():
    skip = ["LDG.E R0, desc[UR4][R2.64]", "ISETP.NE.AND P0, PT, R0, RZ, PT", "@P0 BRA 0x50"]
    long, end = ["FADD R1, R1, R1"] * 2, ["EXIT"]
    assert "FADD" not in issued(skip + long + end)[0]
    # The way back of a loop is longer than the way out.
    lines = ["LDG.E R0, desc[UR4][R2.64]", "ISETP.NE.AND P0, PT, R0, RZ, PT", "@P0 BRA 0x0", "EXIT"]
    assert issued(lines)[0] == ["LDG", "ISETP", "BRA", "EXIT"]


def test_integers_that_are_given_are_known_where_they_are_loaded():
    lines = [
        "S2R R0, SR_CTAID.X", "LDC.64 R2, c[0x0][0x218]", "IMAD.WIDE.U32 R2, R0, 0x4, R2",
        "LDG.E R4, desc[UR4][R2.64]", "IADD3 R1, RZ, RZ, RZ", "IADD3 R1, R1, 0x1, RZ",
        "ISETP.LT.AND P0, PT, R1, R4, PT", "@P0 BRA 0x50", "EXIT",
    ]  # fmt: skip
    loops = lambda contents: [
        warp.count("BRA") for warp in issued(lines, programs=(0, 1, 2), contents=contents)
    ]
    assert loops({1: [3, 1, 5]}) == [3, 1, 5]
    assert loops({0: [3, 1, 5]}) == loops(None) == [1, 1, 1]  # those of another pointer


def test_what_an_unknown_predicate_guards_agrees_with_its_branch():
    lines = [
        "LDG.E R0, desc[UR4][R2.64]", "ISETP.NE.AND P0, PT, R0, RZ, PT", "MOV R1, 0x40",
        "@{0}P0 MOV R1, 0x80", "@{1}P0 BRA 0x70", "FADD R4, R4, R4", "FADD R4, R4, R4",
        "STS [R1], R4", "EXIT",
    ]  # fmt: skip
    for signs, expected in ((("", ""), 0x80), (("!", "!"), 0x80), (("!", ""), 0x40)):
        found = {each.name: a for each, _, a in trace([line.format(*signs) for line in lines])}
        assert "FADD" not in found and np.all(found["STS"] == expected)


def test_a_warp_enters_a_block_that_some_lanes_enter():
    lines = ["S2R R0, SR_TID.X", "ISETP.GE.AND P0, PT, R0, {0}, PT", "@P0 BRA 0x40", "NOP", "EXIT"]
    lines[3] = "MUFU.EX2 R1, R1"
    fill = lambda bound: [line.format(bound) for line in lines]
    assert "MUFU" in issued(fill("0x8"))[0]
    assert "MUFU" not in issued(fill("0x0"))[0]
    assert ["MUFU" in warp for warp in issued(fill("0x28"), num_warps=3)] == [True, True, False]


def test_a_divergent_predicate_writes_in_its_lanes():
    lines = [
        "S2R R0, SR_TID.X", "ISETP.LT.AND P0, PT, R0, 0x4, PT", "MOV R1, 0x100",
        "@P0 MOV R1, R0", "STS [R1], RZ", "@P0 EXIT", "STS [R0], RZ", "EXIT",
    ]  # fmt: skip
    first, second = (a for each, _, a in trace(lines) if each.name == "STS")
    np.testing.assert_array_equal(first, np.where(LANES < 4, LANES, 0x100))
    # Lanes that have ended store nothing.
    np.testing.assert_array_equal(second, np.where(LANES < 4, -1, LANES))


def test_an_address_that_only_some_lanes_need_is_known():
    lines = [
        "S2R R0, SR_TID.X", "ISETP.LT.AND P0, PT, R0, 0x4, PT", "LDS R1, [R0.X4]",
        "@P0 LEA R1, R0, 0x100, 0x4", "@P0 STS [R1], R4", "EXIT",
    ]  # fmt: skip
    _, addresses = (a for _, _, a in trace(lines) if a is not None)
    np.testing.assert_array_equal(addresses, np.where(LANES < 4, 0x100 + 16 * LANES, -1))
    # So is one that none needs.
    lines[1] = "ISETP.LT.AND P0, PT, R0, 0x0, PT"
    _, addresses = (a for _, _, a in trace(lines) if a is not None)
    assert (addresses == -1).all()


def test_addresses_follow_from_pointers_programs_and_threads():
    lines = [
        "S2R R0, SR_TID.X", "S2R R4, SR_CTAID.X", "LDC.64 R2, c[0x0][0x218]",
        "IMAD R0, R4, 0x40, R0", "IMAD.WIDE.U32 R2, R0, 0x10, R2",
        "ISETP.LT.AND P0, PT, R0, 0x142, PT", "@P0 LDG.E.128 R8, desc[UR4][R2.64+0x20]",
        "LDGSTS.E.BYPASS.128 [R0+UR6], desc[UR4][R2.64+-0x10], P0", "UMOV UR7, 0x400",
        "STS [R0.X4+UR7+-0x10], R8", "EXIT",
    ]  # fmt: skip
    accesses = [a for _, _, a in trace(lines, programs=(5,), num_warps=2) if a is not None]
    threads = 5 * 64 + np.arange(64).reshape(2, 32)
    np.testing.assert_array_equal(accesses.pop(), 4 * threads + 0x3F0)
    for addresses, offset in zip(accesses, (0x20, -0x10), strict=True):
        expected = np.where(threads < 0x142, 2 * emulator.APART + 16 * threads + offset, -1)
        np.testing.assert_array_equal(addresses, expected)


def test_what_cannot_be_followed_is_said(monkeypatch):
    monkeypatch.setattr(emulator, "MOST_STEPS", 100)
    with pytest.raises(RuntimeError, match="does not end"):
        trace(["MOV R0, R1", "BRA 0x0"])
    with pytest.raises(RuntimeError, match="CALL"):
        trace(["CALL.REL.NOINC 0x40", "EXIT"])


def turns(line, addresses):
    [each] = parsed(line)
    addresses = np.broadcast_to(addresses, (1, 32))
    return sass.shared_turns(each, addresses).tolist()


@pytest.mark.parametrize(
    "line, addresses, expected",
    [
        ("LDS R0, [R1]", 4 * LANES, 1),
        ("LDS R0, [R1]", 0 * LANES, 1),  # all want one word
        ("LDS R0, [R1]", 8 * LANES, 2),
        ("LDS R0, [R1]", 128 * LANES, 32),
        ("LDS R0, [R1]", np.where(LANES < 3, 128 * LANES, -1), 3),
        ("LDS R0, [R1]", 0 * LANES - 1, 0),
        ("LDS.U16 R0, [R1]", 2 * LANES, 1),
        ("LDS.64 R0, [R1]", 8 * LANES, 2),
        ("STS.128 [R1], R0", 16 * LANES, 4),
        ("STS.128 [R1], R0", 128 * LANES, 32),
        ("LDSM.16.M88.4 R0, [R1]", 16 * LANES, 4),
        ("LDSM.16.M88.4 R0, [R1]", 64 * LANES, 16),
        ("LDSM.16.MT88.2 R0, [R1]", 128 * LANES, 16),
        ("STSM.16.M88 [R1], R0", 144 * LANES, 1),
    ],
)
def test_lanes_that_want_one_bank_take_turns(line, addresses, expected):
    assert turns(line, addresses) == [expected]


@pytest.mark.parametrize(
    "line, addresses, expected",
    [
        ("LDG.E R0, desc[UR4][R2.64]", 4 * LANES, 4),
        ("LDG.E R0, desc[UR4][R2.64]", 4 * LANES + 16, 5),
        ("LDG.E.128 R0, desc[UR4][R2.64]", 16 * LANES, 16),
        ("LDG.E.128 R0, desc[UR4][R2.64]", 128 * (LANES // 4) + 16 * (LANES % 4), 16),
        ("LDG.E R0, desc[UR4][R2.64]", 32 * LANES, 32),
        ("STG.E desc[UR4][R2.64], R0", np.where(LANES < 8, 4 * LANES, -1), 1),
    ],
)
def test_an_access_moves_whole_sectors(line, addresses, expected):
    [each] = parsed(line)
    [found] = sass.sectors(each, np.broadcast_to(addresses, (1, 32)))
    assert len(found) == expected

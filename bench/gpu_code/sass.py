"""Reads compiled kernels (SASS), and follows one warp of a program through its instructions.

Integers that come from the program's index, the thread's index, pointers and constants are known,
in all 32 lanes; whatever depends on data is not. So loops run as often as on a GPU, and the
addresses of a kernel's loads and stores are exact. Where the way depends on data, the shorter way
is taken: it is the one without NaN or infinity.
"""

import functools
import heapq
import re
import subprocess
import tempfile
from collections import defaultdict
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

import numpy as np
import triton

CUOBJDUMP = Path(triton.__file__).with_name("backends") / "nvidia" / "bin" / "cuobjdump"
LANES = np.arange(32)
MASK = 2**32 - 1
# Kernel parameters begin here in the constant bank of Hopper and older GPUs.
PARAMETERS = 0x210
MOST_STEPS = 2_000_000

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z]\S*)\s*(.*?)\s*;", re.M)
_REGISTER = re.compile(r"^([-~|!]*)(U?R\d+|U?RZ|U?P\d|U?PT)(?:\.(?!64)\w+)*(\.64)?\|?$")
_ADDRESS = re.compile(r"\[([^\[\]]*)\]$")
# Operations whose first operand is not a result.
_NO_RESULT = ("ST", "BAR", "BRA", "EXIT", "NOP", "WARP", "DEPBAR", "MEMBAR", "FENCE", "LDGDEPBAR",
              "BSSY", "BSYNC", "LDGSTS", "ERRBAR", "CCTL", "RED", "SYNCS")  # fmt: skip


class Instruction(NamedTuple):
    """Such as `@!P0 IADD3.X R1, R2, ...`: predicate "!P0", name "IADD3", modifiers ("X",)."""

    address: int
    predicate: str
    name: str
    modifiers: tuple[str, ...]
    operands: tuple[str, ...]

    @property
    def target(self) -> int:
        """Address to which a branch leads."""
        return int(self.operands[-1], 16)

    @property
    def width(self) -> int:
        """Bytes that each thread loads or stores."""
        widths = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}
        return next((widths[m] for m in self.modifiers if m in widths), 4)


def disassemble(cubin: bytes) -> list[Instruction]:
    """The instructions of a compiled kernel."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(CUOBJDUMP), "-sass", file.name]
        text = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    return parse(text)


def parse(text: str) -> list[Instruction]:
    """The instructions in a disassembler's text."""
    found = []
    for address, predicate, name, operands in _LINE.findall(text):
        name, *modifiers = name.split(".")
        split = tuple(re.split(r",\s*(?![^\[]*\])", operands)) if operands else ()
        found.append(Instruction(int(address, 16), predicate, name, tuple(modifiers), split))
    return found


class Warp:
    """One warp: `run` yields each instruction that it issues, with the addresses of its accesses.

    code: the instructions of the kernel.
    program, warp: the index of the program, and of the warp within it.
    """

    def __init__(self, code: list[Instruction], program: int, warp: int):
        self.code, self.at = code, {each.address: i for i, each in enumerate(code)}
        self.special = {
            "SR_TID.X": LANES + 32 * warp,
            "SR_CTAID.X": LANES * 0 + program,
            "SR_CgaCtaId": LANES * 0,
            "SR_LANEID": LANES,
            "SRZ": LANES * 0,
        }
        self.values: dict[str, np.ndarray] = {}

    def run(self) -> Iterator[tuple[Instruction, np.ndarray | None]]:
        """Yields `(instruction, addresses of the 32 lanes)`.

        Addresses are -1 in lanes that take no part, and None if unknown or if there are none.

        Raises:
          RuntimeError: the kernel does not end.
        """
        position = 0
        for _ in range(MOST_STEPS):
            each = self.code[position]
            position += 1
            if each.name == "NOP":
                continue
            if each.name == "BRA" and each.target == each.address:
                return
            yield each, self._addresses(each)
            condition = self.read(each.predicate) if each.predicate else LANES == LANES
            if each.name == "EXIT":
                if condition is not None and condition.all():
                    return
            elif each.name == "BRA":
                if self._takes(each, position, condition):
                    position = self.at[each.target]
            else:
                self._execute(each, condition)
        raise RuntimeError("the kernel does not end")

    def _takes(self, branch: Instruction, following: int, condition: np.ndarray | None) -> bool:
        for operand in branch.operands[:-1]:
            # A second condition, as in BRA.U UP0.
            other = self.read(operand)
            condition = None if condition is None or other is None else condition & other
        if condition is None:
            return self.left[self.at[branch.target]] < self.left[following]
        backward = branch.target < branch.address
        # Lanes that part meet again: a loop runs as long as any stays, a block if any enters it.
        return bool(condition.any() if backward else condition.all())

    @functools.cached_property
    def left(self) -> list[float]:
        """Fewest instructions from each one to the end."""
        before: dict[int, list[int]] = defaultdict(list)
        ends = []
        for i, each in enumerate(self.code):
            if each.name == "BRA":
                before[self.at[each.target]].append(i)
            if each.name == "EXIT":
                ends.append(i)
            conditional = each.predicate or len(each.operands) > 1
            if i + 1 < len(self.code) and (each.name not in ("BRA", "EXIT") or conditional):
                before[i + 1].append(i)
        least = [float("inf")] * len(self.code)
        queue = [(0, i) for i in ends]
        while queue:
            steps, i = heapq.heappop(queue)
            if steps < least[i]:
                least[i] = steps
                for j in before[i]:
                    heapq.heappush(queue, (steps + 1, j))
        return least

    def _addresses(self, each: Instruction) -> np.ndarray | None:
        if each.name not in ("LDG", "STG", "LDGSTS", "LDS", "STS", "LDSM", "STSM"):
            return None
        # LDGSTS has two addresses; that in global memory counts.
        place = each.operands[0 if each.name[:2] == "ST" else 1]
        inside = _ADDRESS.search(place)
        address = None if inside is None else self._sum(inside[1])
        if address is None:
            return None
        conditions = [each.predicate] if each.predicate else []
        if each.name == "LDGSTS":
            # Where the last operand is false, zeros are written and nothing is loaded.
            conditions += each.operands[2:3]
        for condition in conditions:
            active = self.read(condition)
            if active is not None:
                address = np.where(active, address, -1)
        return address

    def _sum(self, text: str) -> np.ndarray | None:
        """The sum in an address, such as "R8+UR18+0x10"."""
        total = LANES * 0
        for part in text.split("+"):
            part = part.removesuffix(".X4").removesuffix(".U32")
            number = _number(part)
            value = self.wide(part) if part.endswith(".64") else self.read(part)
            if number is None and value is None:
                return None
            total = total + (value if number is None else number)
        return total

    def read(self, operand: str) -> np.ndarray | None:
        """The value of an operand in each lane: an integer below 2^32, or a boolean."""
        number = _number(operand)
        if number is not None:
            return LANES * 0 + (number & MASK)
        if operand in self.special:
            return self.special[operand]
        if operand.startswith("c["):
            return self._constant(operand, 0)
        found = _REGISTER.match(operand)
        if found is None:
            return None
        sign, name = found[1], found[2]
        if name in ("PT", "UPT"):
            value = LANES == LANES
        else:
            value = LANES * 0 if name in ("RZ", "URZ") else self.values.get(name)
        if value is None or not sign:
            return value
        if sign == "!":
            return ~value
        if sign == "-":
            # Of 0 too: the sum then has a carry, as on a GPU.
            return (~value & MASK) + 1
        return ~value & MASK if sign == "~" else None

    def _constant(self, operand: str, word: int) -> np.ndarray | None:
        offset = int(operand.rstrip("]").rpartition("[")[2], 16) + 4 * word - PARAMETERS
        if offset < 0:
            return None
        # Each pointer is far from the others.
        return LANES * 0 + (offset // 8 + 1 if offset % 8 else 0)

    def wide(self, operand: str) -> np.ndarray | None:
        """The value of an operand of 64 bits."""
        operand = operand.removesuffix(".64").removesuffix(".reuse")
        if _number(operand) is not None or operand in ("RZ", "URZ"):
            return self.read(operand)
        if operand.startswith("c["):
            low, high = self._constant(operand, 0), self._constant(operand, 1)
        else:
            low, high = self.read(operand), self.read(_after(operand, 1))
        return None if low is None or high is None else low | high << 32

    def write(self, name: str, value: np.ndarray | None, condition: np.ndarray | None) -> None:
        """Sets a register or predicate in the lanes where the condition holds."""
        if name in ("RZ", "URZ", "PT", "UPT"):
            return
        old = self.values.get(name)
        if value is not None and condition is not None and condition.all():
            self.values[name] = value
        elif value is None or condition is None or old is None:
            self.values.pop(name, None)
        else:
            self.values[name] = np.where(condition, value, old)

    def _execute(self, each: Instruction, condition: np.ndarray | None) -> None:
        name = each.name
        if name.startswith(_NO_RESULT):
            return
        compute = _COMPUTE.get(name) or _COMPUTE.get(name.removeprefix("U"))
        results = compute(self, each) if compute else None
        if results is None:
            results = _unknown(each)
        for register, value in results:
            self.write(register, value, condition)


def _number(operand: str) -> int | None:
    try:
        return int(operand, 16 if "0x" in operand else 10)
    except ValueError:
        return None


def _after(register: str, step: int) -> str:
    """The register after this one: "R5" after "R4"."""
    found = re.match(r"([-~]*U?R)(\d+)", register)
    return register if found is None else f"{found[1]}{int(found[2]) + step}"


def _bare(operand: str) -> str:
    return operand.partition(".")[0]


Results = list[tuple[str, Any]]


def _unknown(each: Instruction) -> Results:
    """Unknown values for all registers that an instruction writes."""
    size = 1
    if each.name in ("LDG", "LDS", "LDC", "ULDC", "CS2R"):
        size = max(1, each.width // 4)
    elif each.name == "LDSM":
        size = groups(each)
    elif each.name == "HMMA":
        size = 4
    elif "WIDE" in each.modifiers:
        size = 2
    elif each.name == "HGMMA":
        size = int(each.modifiers[0].split("x")[1]) // 2
    results: Results = []
    for operand in each.operands:
        found = _REGISTER.match(operand)
        is_predicate = found is not None and "P" in found[2]
        if found is None or found[1] or ("SETP" in each.name and not is_predicate):
            break
        results += [(_after(found[2], i), None) for i in range(size)]
        if not is_predicate:
            break
    return results


def _sources(each: Instruction) -> tuple[list[str], list[str]]:
    """Results and sources of an instruction: a register, and the predicates around it."""
    operands = [*each.operands]
    results = []
    while operands and re.match(r"^U?P(\d|T)$", operands[0]):
        results.append(operands.pop(0))
    results.append(_bare(operands.pop(0)))
    while operands and re.match(r"^U?P\d$", operands[0]):
        results.append(operands.pop(0))
    return results, operands


def _all_known(*values: Any) -> bool:
    return all(value is not None for value in values)


def _move(warp: Warp, each: Instruction) -> Results | None:
    words = max(1, each.width // 4) if each.name in ("LDC", "ULDC", "CS2R") else 1
    if each.name == "CS2R" and "32" not in each.modifiers:
        words = 2
    target, source = _bare(each.operands[0]), each.operands[1]
    results: Results = []
    for i in range(words):
        value = warp._constant(source, i) if source.startswith("c[") else warp.read(source)
        results.append((_after(target, i), value))
    return results


def _uniform(warp: Warp, each: Instruction) -> Results | None:
    value = warp.read(each.operands[-1])
    return [(each.operands[0], None if value is None else LANES * 0 + value[0])]


def _add(warp: Warp, each: Instruction) -> Results | None:
    results, sources = _sources(each)
    if "64" in each.modifiers:
        values = [warp.wide(source) for source in sources[:3]]
        if not _all_known(*values):
            return None
        total = sum(values)
        return [(results[0], total & MASK), (_after(results[0], 1), total >> 32 & MASK)]
    values = [warp.read(source) for source in sources[:3]]
    if "X" in each.modifiers:
        values += [warp.read(source) for source in sources[3:]]
    if not _all_known(*values):
        return None
    total = sum(value.astype(np.int64) for value in values)
    found: Results = [(results[0], total & MASK)]
    if len(results) > 1:
        found.append((results[1], total >> 32 > 0))
    if len(results) > 2:
        found.append((results[2], total >> 32 > 1))
    return found


def _multiply(warp: Warp, each: Instruction) -> Results | None:
    results, sources = _sources(each)
    a, b = warp.read(sources[0]), warp.read(sources[1])
    is_wide, is_high = "WIDE" in each.modifiers, "HI" in each.modifiers
    addend = warp.wide(sources[2]) if is_wide or is_high else warp.read(sources[2])
    # What is unknown does not matter if multiplied by 0, as when a value is moved.
    for factor in (sources[0], sources[1]):
        if factor in ("RZ", "URZ"):
            a = b = LANES * 0
    if not _all_known(a, b, addend):
        return None
    if (is_wide or is_high) and "U32" not in each.modifiers:
        a, b = _signed(a), _signed(b)
    total = a * b + addend
    if "X" in each.modifiers:
        carry = warp.read(sources[3])
        if carry is None:
            return None
        total = total + carry
    if is_wide:
        return [(results[0], total & MASK), (_after(results[0], 1), total >> 32 & MASK)]
    return [(results[0], (total >> 32 if is_high else total) & MASK)]


def _signed(value: np.ndarray) -> np.ndarray:
    return value - (value >> 31 << 32)


def _shift_and_add(warp: Warp, each: Instruction) -> Results | None:
    results, sources = _sources(each)
    is_high, is_signed = "HI" in each.modifiers, "SX32" in each.modifiers
    values = [warp.read(source) for source in sources]
    if not _all_known(*values):
        return None
    if not is_high:
        total = ((values[0] << values[2]) & MASK) + values[1]
        return [(results[0], total & MASK), *((p, total >> 32 > 0) for p in results[1:])]
    if is_signed:
        whole, base, rest = _signed(values[0]), values[1], values[2:]
    else:
        whole, base, rest = values[0] | values[2] << 32, values[1], values[3:]
    total = ((whole << rest[0]) >> 32) + base
    if "X" in each.modifiers:
        total = total + rest[1]
    return [(results[0], total & MASK)]


def _logic(warp: Warp, each: Instruction) -> Results | None:
    results, sources = _sources(each)
    table = _number(sources[3])
    values = [warp.read(source) for source in sources[:3]]
    if table is None or not _all_known(*values):
        return None
    total = LANES * 0
    for row in range(8):
        if table >> row & 1:
            bits = [v if row >> (2 - i) & 1 else ~v & MASK for i, v in enumerate(values)]
            total = total | bits[0] & bits[1] & bits[2]
    return [(r, total != 0 if "P" in r else total) for r in results]


def _predicate_logic(warp: Warp, each: Instruction) -> Results | None:
    first, second, *sources = each.operands
    values = [warp.read(source) for source in sources[:3]]
    if not _all_known(*values):
        return None
    row = values[0] * 4 + values[1] * 2 + values[2] * 1
    tables = [int(source, 16) for source in sources[3:5]]
    return [(p, (t >> row & 1) > 0) for p, t in zip((first, second), tables)]


def _funnel(warp: Warp, each: Instruction) -> Results | None:
    target, *sources = each.operands
    low, amount, high = (warp.read(source) for source in sources)
    if not _all_known(low, amount, high):
        return None
    if any(m.startswith("S") for m in each.modifiers):
        high = _signed(high)
    total = high << 32 | low
    if "64" not in "".join(each.modifiers):
        amount = np.minimum(amount, 32)
    total = total << amount if "L" in each.modifiers else total >> amount
    return [(_bare(target), (total >> 32 if "HI" in each.modifiers else total) & MASK)]


def _extend(warp: Warp, each: Instruction) -> Results | None:
    value, bits = warp.read(each.operands[1]), _number(each.operands[2])
    if value is None or bits is None:
        return None
    value = value & (1 << bits) - 1
    if "U32" not in each.modifiers:
        value = (value - (value >> (bits - 1) << bits)) & MASK
    return [(_bare(each.operands[0]), value)]


def _select(warp: Warp, each: Instruction) -> Results | None:
    a, b, condition = (warp.read(operand) for operand in each.operands[1:4])
    known = _all_known(a, b, condition)
    return [(each.operands[0], np.where(condition, a, b))] if known else None


def _extreme(warp: Warp, each: Instruction) -> Results | None:
    *values, smaller = (warp.read(operand) for operand in each.operands[1:])
    if not _all_known(*values, smaller):
        return None
    if "U32" not in each.modifiers:
        values = [_signed(value) for value in values]
    low, high = np.minimum.reduce(values), np.maximum.reduce(values)
    return [(each.operands[0], np.where(smaller, low, high) & MASK)]


_COMPARISONS = {
    "LT": np.less, "LE": np.less_equal, "GT": np.greater, "GE": np.greater_equal,
    "EQ": np.equal, "NE": np.not_equal,
}  # fmt: skip


def _compare(warp: Warp, each: Instruction) -> Results | None:
    first, second, *sources = each.operands
    a, b, condition = (warp.read(source) for source in sources[:3])
    # The result of comparing lower words, for numbers of 64 bits.
    lower = warp.read(sources[3]) if "EX" in each.modifiers else None
    if not _all_known(a, b, condition) or ("EX" in each.modifiers and lower is None):
        return None
    a, b = a & MASK, b & MASK
    if "U32" not in each.modifiers:
        a, b = _signed(a), _signed(b)
    found = _COMPARISONS[each.modifiers[0]](a, b)
    if lower is not None:
        found = np.where(a == b, lower, found)
    join = np.logical_or if "OR" in each.modifiers else np.logical_and
    return [(first, join(found, condition)), (second, join(~found, condition))]


def _permute(warp: Warp, each: Instruction) -> Results | None:
    a, selector, b = (warp.read(operand) for operand in each.operands[1:4])
    if not _all_known(a, selector, b) or each.modifiers:
        return None
    both, total = a | b << 32, LANES * 0
    for i in range(4):
        choice = selector >> 4 * i & 15
        byte = both >> 8 * (choice & 7) & 255
        byte = np.where(choice & 8, (byte >> 7) * 255, byte)
        total = total | byte << 8 * i
    return [(_bare(each.operands[0]), total)]


def _pack_predicates(warp: Warp, each: Instruction) -> Results | None:
    register, _, base, mask = each.operands
    total, bits = warp.read(base), _number(mask)
    if total is None or bits is None or each.modifiers:
        return None
    for i in range(7):
        if bits >> i & 1:
            value = warp.read(f"P{i}")
            if value is None:
                return None
            total = total & ~(1 << i) | value.astype(np.int64) << i
    return [(register, total)]


def _unpack_predicates(warp: Warp, each: Instruction) -> Results | None:
    value, bits = warp.read(each.operands[1]), _number(each.operands[2])
    chosen = [i for i in range(7) if bits is None or bits >> i & 1]
    if ".B" in each.operands[1] or value is None:
        return [(f"P{i}", None) for i in chosen]
    return [(f"P{i}", (value >> i & 1) > 0) for i in chosen]


_COMPUTE = {
    "MOV": _move, "LDC": _move, "S2R": _move, "S2UR": _move, "CS2R": _move, "R2UR": _uniform,
    "IADD3": _add, "VIADD": _add, "IADD": _add, "IMAD": _multiply, "LEA": _shift_and_add,
    "LOP3": _logic, "PLOP3": _predicate_logic, "SHF": _funnel, "SGXT": _extend, "SEL": _select,
    "VIMNMX": _extreme, "IMNMX": _extreme, "VIMNMX3": _extreme, "ISETP": _compare,
    "PRMT": _permute, "P2R": _pack_predicates, "R2P": _unpack_predicates,
}  # fmt: skip


def groups(each: Instruction) -> int:
    """Number of turns in which shared memory serves a warp without bank conflicts."""
    if each.name in ("LDSM", "STSM"):
        return int(each.modifiers[-1]) if each.modifiers[-1].isdigit() else 1
    return max(1, each.width // 4)


def shared_wavefronts(each: Instruction, addresses: np.ndarray | None) -> int:
    """Turns that shared memory takes for an access, bank conflicts included."""
    turns = groups(each)
    if addresses is None:
        return turns
    total = 0
    # A matrix access takes the address of a row of 16 bytes from each of eight lanes.
    size, lanes = (16, 8) if each.name in ("LDSM", "STSM") else (each.width, 32 // turns)
    for i in range(turns):
        some = addresses[i * lanes : (i + 1) * lanes]
        words = {(a // 4 + w) for a in some[some >= 0].tolist() for w in range(max(1, size // 4))}
        banks = defaultdict(int)
        for word in words:
            banks[word % 32] += 1
        total += max(banks.values(), default=0)
    return total


def sectors_of(each: Instruction, addresses: np.ndarray) -> set[int]:
    """The 32-byte sectors of global memory that an access touches."""
    some = addresses[addresses >= 0]
    last = (some + each.width - 1) // 32
    return set((some // 32).tolist()) | set(last.tolist())

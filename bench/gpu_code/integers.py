"""What the integer instructions of SASS compute; `operands.py` says what values are."""

import operator
import re
import struct
from collections.abc import Callable, Sequence
from typing import NamedTuple

from .operands import (
    MASK,
    Reader,
    Registers,
    Value,
    after,
    choose,
    inverse,
    is_predicate,
    number,
    reader,
    readers,
    signed,
    wide_reader,
)
from .sass import Instruction, turns

# Instructions without a result in registers.
_NO_RESULT = re.compile(
    "ST[GS]|BAR|BRA|EXIT|NOP|WARP|DEPBAR|MEMBAR|FENCE|LDGDEPBAR|BSSY|BSYNC|LDGSTS|ERRBAR|CCTL|RED$|SYNCS"
)


class Operation(NamedTuple):
    """An instruction's effect: `targets` become `compute(*values of sources)`.

    An unknown source, or compute None, makes all targets unknown. In a move each target becomes the
    value of its source.
    """

    targets: tuple[str, ...]
    sources: tuple[Reader, ...] = ()
    compute: Callable[..., Sequence[Value]] | None = None
    is_move: bool = False

    def __call__(self, registers: Registers) -> Sequence[Value]:
        """The values of the targets."""
        if self.is_move:
            return [read(registers) for read in self.sources]
        if self.compute is not None:
            values = [read(registers) for read in self.sources]
            if all(value is not None for value in values):
                return self.compute(*values)
        return (None,) * len(self.targets)


def decode(each: Instruction) -> Operation:
    """The effect of an instruction."""
    if _NO_RESULT.match(each.name):
        return Operation(())
    name = each.name if each.name in _DECODERS else each.name.removeprefix("U")
    decoder, known = _DECODERS.get(name, (None, ""))
    if decoder and {*each.modifiers} <= {*known.split()}:
        found = decoder(each)
        if found is not None:
            return found
    return Operation(tuple(_results_of(each)))


def _pair(register: str) -> tuple[str, str]:
    return register, after(register, 1)


def _halves(value: Value) -> tuple[Value, Value]:
    return value & MASK, value >> 32 & MASK


def _split(each: Instruction) -> tuple[list[str], list[str]]:
    """Results and sources: a register, and the predicates beside it."""
    operands, before = [*each.operands], []
    while len(operands) > 1 and is_predicate(operands[0]):
        before.append(operands.pop(0))
    results = [operands.pop(0)]
    while operands and is_predicate(operands[0]):
        results.append(operands.pop(0))
    return results + before, operands


def _results_of(each: Instruction) -> list[str]:
    """All registers and predicates that an instruction without a decoder writes."""
    if not each.operands:
        return []
    if "SETP" in each.name or each.name in ("PLOP3", "UPLOP3", "R2P"):
        if each.name == "R2P":
            return [f"P{i}" for i in range(7)]
        return [operand for operand in each.operands[:2] if is_predicate(operand)]
    results, _ = _split(each)
    if each.name == "HGMMA":
        size = int(each.modifiers[0].split("x")[1]) // 2
    elif each.is_matrix:
        size = turns(each)
    elif each.name == "HMMA":
        size = 4
    else:
        size = 2 if "WIDE" in each.modifiers or each.name == "CS2R" else max(1, each.width // 4)
    first = results[0].partition(".")[0]
    return [after(first, i) for i in range(size)] + results[1:]


def _move(each: Instruction) -> Operation | None:
    target, source = each.operands[0], each.operands[-1]
    if each.width == 4 and each.name != "CS2R":
        return Operation((target,), (reader(source),), is_move=True)
    words = (source, "RZ" if each.name == "CS2R" else after(source, 1))
    return Operation(_pair(target), readers(words), is_move=True)


def _spill(each: Instruction) -> Operation | None:
    """Moves words to the stack or back; the stack's words count as registers."""
    is_store = each.name == "STL"
    register, place = each.operands[:: -1 if is_store else 1]
    if not re.match(r"^\[R1(\+0x\w+)?\]$", place):
        return None
    start = number(place[4:-1]) or 0
    places = [f"stack {start + 4 * i}" for i in range(max(1, each.width // 4))]
    registers = [after(register, i) for i in range(len(places))]
    targets, sources = (places, registers) if is_store else (registers, places)
    return Operation(tuple(targets), readers(sources), is_move=True)


def _uniform(each: Instruction) -> Operation:
    first = lambda value: (value if isinstance(value, int) else value[:, :1],)
    return Operation((each.operands[0],), (reader(each.operands[-1]),), first)


def _add(each: Instruction) -> Operation:
    results, sources = _split(each)
    if "64" in each.modifiers:
        reads = tuple(map(wide_reader, sources[:3]))
        return Operation(_pair(results[0]), reads, lambda *values: _halves(sum(values)))
    # The rest are carries, without .X all false.
    reads = readers(sources if "X" in each.modifiers else sources[:3])

    def add(*values):
        total = sum(value + 0 for value in values)
        return (total & MASK, total >> 32 > 0, total >> 32 > 1)[: len(results)]

    return Operation(tuple(results), reads, add)


def _multiply(each: Instruction) -> Operation | None:
    results, sources = _split(each)
    if len(results) > 1:
        return None
    is_wide, is_high = "WIDE" in each.modifiers, "HI" in each.modifiers
    is_signed = (is_wide or is_high) and "U32" not in each.modifiers
    addend = (wide_reader if is_wide or is_high else reader)(sources[2])
    if sources[0].startswith(("RZ", "URZ")) or sources[1].startswith(("RZ", "URZ")):
        # What is unknown does not matter if multiplied by 0, as when a value is moved.
        factors = (lambda registers: 0,) * 2
    else:
        factors = (reader(sources[0]), reader(sources[1]))
    carry = (reader(sources[3]),) if "X" in each.modifiers else ()

    def multiply(a, b, addend, carry=0):
        if is_signed:
            a, b = signed(a), signed(b)
        product = a * b
        if isinstance(product, int):
            product = (product + 2**63) % 2**64 - 2**63  # as in an array
        total = product + addend + carry
        if is_wide:
            return _halves(total)
        return ((total >> 32 if is_high else total) & MASK,)

    targets = _pair(results[0]) if is_wide else (results[0],)
    return Operation(targets, (*factors, addend, *carry), multiply)


def _shift_and_add(each: Instruction) -> Operation | None:
    results, sources = _split(each)
    is_high, is_signed = "HI" in each.modifiers, "SX32" in each.modifiers
    is_carrying = "X" in each.modifiers
    is_negated = sources[0].startswith("-")
    if is_high and (len(results) > 1 or is_negated):
        return None
    sources[0] = sources[0].lstrip("-")

    def low(value, addend, amount, carry=0):
        shifted = value << amount & MASK
        # Minus 0 has a carry.
        shifted = (~shifted & MASK) + 1 if is_negated else shifted
        total = shifted + addend + carry
        return (total & MASK, total >> 32 > 0)[: len(results)]

    def high(value, addend, upper, amount, carry=0):
        return ((((value | signed(upper) << 32) << amount) >> 32) + addend + carry & MASK,)

    def high_signed(value, addend, amount, carry=0):
        return (((signed(value) << amount) >> 32) + addend + carry & MASK,)

    taken = 3 + (is_high and not is_signed) + is_carrying
    compute = (high_signed if is_signed else high) if is_high else low
    return Operation(tuple(results), readers(sources[:taken]), compute)


def _logic(each: Instruction) -> Operation | None:
    results, sources = _split(each)
    table = number(sources[3])
    if table is None:
        return None

    def combine(*values):
        total = 0
        for row in range(8):
            if table >> row & 1:
                a, b, c = (v if row >> (2 - i) & 1 else ~v & MASK for i, v in enumerate(values))
                total = total | a & b & c
        return (total, total != 0)[: len(results)]

    return Operation(tuple(results), readers(sources[:3]), combine)


def _predicate_logic(each: Instruction) -> Operation:
    first, second, *sources = each.operands
    tables = [int(source, 16) for source in sources[3:5]]

    def combine(a, b, c):
        row = a * 4 + b * 2 + c * 1
        return [(table >> row & 1) > 0 for table in tables]

    return Operation((first, second), readers(sources[:3]), combine)


def _funnel(each: Instruction) -> Operation:
    """Shifts the pair of a high and a low word; the result is one of its words."""
    target, low, amount, high = each.operands
    is_left, is_high = "L" in each.modifiers, "HI" in each.modifiers
    is_signed = any(m in ("S32", "S64") for m in each.modifiers)
    most = 63 if "64" in "".join(each.modifiers) else 32

    def shift(low, amount, high):
        if "W" in each.modifiers:
            amount = amount & (63 if most == 63 else 31)
        amount = choose(amount > most, most, amount)
        upper = signed(high) if is_signed else high
        if is_left:
            whole = (signed(high) << 32 | low) << amount
            return ((whole >> 32 if is_high else low << amount) & MASK,)
        if is_high:
            return (upper >> amount & MASK,)
        # The bits that come from above, in two steps, since none may be shifted by 64.
        return ((low >> amount | upper << 1 << (31 - choose(amount > 31, 31, amount))
                 if most == 32 else (upper << 32 | low) >> amount) & MASK,)  # fmt: skip

    return Operation((target,), (reader(low), reader(amount), reader(high)), shift)


def _extend(each: Instruction) -> Operation | None:
    bits = number(each.operands[2])
    if bits is None:
        return None

    def extend(value):
        value = value & (1 << bits) - 1
        if "U32" not in each.modifiers:
            value = value - (value >> (bits - 1) << bits) & MASK
        return (value,)

    return Operation((each.operands[0],), (reader(each.operands[1]),), extend)


def _select(each: Instruction) -> Operation:
    target, *sources = each.operands
    select = lambda yes, no, condition: (choose(condition, yes, no),)
    return Operation((target,), readers(sources), select)


def _extreme(each: Instruction) -> Operation:
    target, *sources = each.operands

    def extreme(*values):
        *values, is_least = values
        if "U32" not in each.modifiers:
            values = [signed(value) for value in values]
        low = high = values[0]
        for value in values[1:]:
            low, high = choose(value < low, value, low), choose(value > high, value, high)
        return (choose(is_least, low, high) & MASK,)

    return Operation((target,), readers(sources), extreme)


_COMPARISONS = {
    "LT": operator.lt, "LE": operator.le, "GT": operator.gt, "GE": operator.ge,
    "EQ": operator.eq, "NE": operator.ne,
}  # fmt: skip
_JOINS = {"AND": operator.and_, "OR": operator.or_, "XOR": operator.xor}


def _compare(each: Instruction) -> Operation:
    first, second, *sources = each.operands
    is_second = "EX" in each.modifiers
    [compare] = [_COMPARISONS[m] for m in each.modifiers if m in _COMPARISONS]
    [join] = [_JOINS[m] for m in each.modifiers if m in _JOINS]

    def found(a, b, condition, lower=None):
        a, b = a & MASK, b & MASK
        if "U32" not in each.modifiers:
            a, b = signed(a), signed(b)
        result = compare(a, b)
        if is_second:
            # The upper words of numbers of 64 bits, after the lower ones were compared.
            result = choose(a == b, lower, result)
        return join(result, condition), join(inverse(result), condition)

    reads = readers(sources[: 4 if is_second else 3])
    return Operation((first, second), reads, found)


def _permute(each: Instruction) -> Operation:
    target, *sources = each.operands

    def permute(a, selector, b):
        total = 0
        for i in range(4):
            choice = selector >> 4 * i & 15
            place = choice & 7
            word = choose(place > 3, b, a)
            byte = word >> 8 * (place & 3) & 255
            # The sign of a byte instead of the byte.
            byte = choose(choice > 7, (byte >> 7) * 255, byte)
            total = total | byte << 8 * i
        return (total,)

    return Operation((target,), readers(sources), permute)


def _pack_predicates(each: Instruction) -> Operation | None:
    target, _, base, mask = each.operands
    chosen = _predicates_in(mask)
    if chosen is None:
        return None

    def pack(total, *bits):
        for i, bit in zip(chosen, bits):
            total = total & ~(1 << i) | (bit * 1) << i
        return (total,)

    return Operation((target,), readers((base, *(f"P{i}" for i in chosen))), pack)


def _unpack_predicates(each: Instruction) -> Operation | None:
    _, source, mask = each.operands
    chosen = _predicates_in(mask)
    if chosen is None:
        return None
    unpack = lambda value: [(value >> i & 1) > 0 for i in chosen]
    return Operation(tuple(f"P{i}" for i in chosen), (reader(source),), unpack)


def _predicates_in(mask: str) -> list[int] | None:
    bits = number(mask)
    return None if bits is None else [i for i in range(7) if bits >> i & 1]


def _halves_of_constant(each: Instruction) -> Operation | None:
    """-0 * 0 plus two constants, by which compilers set a register."""
    target, a, b, *constants = each.operands
    if (a, b) != ("-RZ", "RZ") or len(constants) != 2:
        return None
    try:
        high, low = (struct.unpack("<H", struct.pack("<e", float(c)))[0] for c in constants)
    except ValueError:
        return None
    return Operation((target,), (), lambda: (high << 16 | low,))


# Decoders, and the modifiers that they understand.
_COMPARE = "LT LE GT GE EQ NE AND OR XOR U32 EX"
_DECODERS: dict[str, tuple[Callable[[Instruction], Operation | None], str]] = {
    "MOV": (_move, ""), "LDC": (_move, "64"), "S2R": (_move, ""), "S2UR": (_move, ""),
    "CS2R": (_move, "32"), "LDL": (_spill, "64 128 LU"), "STL": (_spill, "64 128"),
    "R2UR": (_uniform, ""),
    "IADD3": (_add, "X 64"), "VIADD": (_add, ""), "IADD": (_add, "X"),
    "IMAD": (_multiply, "WIDE U32 HI X MOV SHL IADD"), "LEA": (_shift_and_add, "HI X SX32"),
    "LOP3": (_logic, "LUT"), "PLOP3": (_predicate_logic, "LUT"),
    "SHF": (_funnel, "L R HI W U32 S32 U64 S64"), "SGXT": (_extend, "U32"),
    "SEL": (_select, ""), "VIMNMX": (_extreme, "U32"), "VIMNMX3": (_extreme, "U32"),
    "IMNMX": (_extreme, "U32"), "ISETP": (_compare, _COMPARE), "PRMT": (_permute, ""),
    "P2R": (_pack_predicates, ""), "R2P": (_unpack_predicates, ""),
    "HFMA2": (_halves_of_constant, "MMA"),
}  # fmt: skip

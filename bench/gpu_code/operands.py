"""How the emulator reads operands of SASS, and holds the values of registers.

A value is the content of a 32-bit register or of a predicate in all lanes of some warps: a Python
int or bool if it is the same everywhere, or an int64 or boolean array `[warps or 1, 32 or 1]`; None
if it is unknown. Register contents are from 0 to 2^32 - 1.
"""

import re
from collections.abc import Callable, Iterable
from typing import Any

import numpy as np

MASK = 2**32 - 1

Value = Any
Registers = dict[str, Value]
Reader = Callable[[Registers], Value]

_REGISTER = re.compile(r"^([-~|!]*)(U?RZ|U?R\d+|U?PT|U?P\d)((?:\.\w+)*)\|?$")


def number(operand: str) -> int | None:
    """An operand that is a number."""
    try:
        return int(operand, 0)
    except ValueError:
        return None


def reader(operand: str) -> Reader:
    """Reads an operand of 32 bits or a predicate."""
    constant = number(operand)
    if constant is not None:
        constant &= MASK
        return lambda registers: constant
    found = _REGISTER.match(operand)
    # The rest are special registers, constants, and parts of registers, which nothing writes.
    sign, name = (found[1], found[2]) if found and found[3] in ("", ".reuse") else ("", operand)
    if name in ("PT", "UPT"):
        return lambda registers: not sign
    get = (lambda registers: 0) if name in ("RZ", "URZ") else lambda registers: registers.get(name)
    if not sign:
        return get
    if sign not in _SIGNS:
        return lambda registers: None

    def changed(registers, change=_SIGNS[sign]):
        value = get(registers)
        return None if value is None else change(value)

    return changed


_SIGNS = {
    "!": lambda value: inverse(value),
    "~": lambda value: ~value & MASK,
    # 2^32 for 0: the sum then has a carry, as on a GPU.
    "-": lambda value: (~value & MASK) + 1,
}


def wide_reader(operand: str) -> Reader:
    """Reads an operand of 64 bits, a signed number."""
    operand = operand.replace(".reuse", "").replace(".64", "")
    constant = number(operand)
    if constant is not None or operand in ("RZ", "URZ"):
        return lambda registers: constant or 0
    if operand.startswith(("-", "~", "|")):
        return lambda registers: None
    reads = [reader(operand), reader(after(operand, 1))]

    def read(registers):
        low, high = (read(registers) for read in reads)
        return None if low is None or high is None else low | signed(high) << 32

    return read


def inverse(value: Value) -> Value:
    """The opposite of a predicate."""
    return not value if isinstance(value, bool) else ~value


def signed(value: Value) -> Value:
    """A register's content as a signed number."""
    return value - (value >> 31 << 32)


def after(operand: str, step: int) -> str:
    """The word after this one: "R5" after "R4", "c[0x0][0x214]" after "c[0x0][0x210]"."""
    if operand.startswith("c["):
        return re.sub(r"\w+(?=\]$)", lambda found: f"{int(found[0], 16) + 4 * step:#x}", operand)
    return re.sub(r"(?<=R)\d+", lambda found: str(int(found[0]) + step), operand)


def choose(condition: Value, yes: Value, no: Value) -> Value:
    """One value where a condition holds, another elsewhere."""
    if isinstance(condition, bool):
        return yes if condition else no
    return np.where(condition, yes, no)


def is_predicate(operand: str) -> bool:
    """Whether this is the name of a predicate."""
    return re.match(r"^U?P(\d|T)$", operand) is not None


def readers(operands: Iterable[str]) -> tuple[Reader, ...]:
    """Readers of operands of 32 bits."""
    return tuple(map(reader, operands))

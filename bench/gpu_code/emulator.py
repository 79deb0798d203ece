"""Follows all warps of some programs through a kernel's instructions.

Integers that come from the program's index, the thread's index, pointers and constants are known in
each lane, and so are the contents of arrays that are given; whatever depends on other data is not.
So loops run as often as on a GPU, and the addresses of loads and stores are exact. Where the way
depends on data, the shorter way is taken: it is the one without NaN or infinity. A predicate that
decides it has the value for it from the beginning. Warps that go the same way are followed
together.
"""

import heapq
import re
from collections import defaultdict
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import NamedTuple

import numpy as np

from .integers import Operation, decode
from .operands import MASK, Registers, Value, inverse, number, reader, wide_reader
from .sass import Instruction

# Where a kernel's parameters begin in the constant bank of Hopper.
PARAMETERS = 0x210
MOST_PARAMETERS = 64
APART = 2**40  # bytes between two pointers, of which the first is the same number
MOST_STEPS = 2_000_000
GLOBAL, SHARED = ("LDG", "STG", "LDGSTS"), ("LDS", "STS", "LDSM", "STSM")

_ACTIVE = "lanes that have not ended"
_ADDRESS = re.compile(r"\[([^\[\]]*)\]$")
# Ways that are not followed.
_CALLS = ("CALL", "RET", "BRX", "BRXU", "JMP", "JMX")


class Issued(NamedTuple):
    """An instruction that some warps issue together.

    warps: their indices.
    addresses: `[warps, 32]` in bytes, those of an access to global or shared memory, -1 in lanes
      that take no part; None if they are unknown or if there are none.
    """

    instruction: Instruction
    warps: np.ndarray
    addresses: np.ndarray | None


class _Step(NamedTuple):
    """A decoded instruction.

    assumed: values of the predicates that it writes, if they depend on data and decide a branch.
    """

    instruction: Instruction
    conditions: tuple[Callable[[Registers], Value], ...]
    operation: Operation
    addresses: Callable[[Registers], Value] | None
    assumed: dict[str, bool]


def run(
    code: Sequence[Instruction],
    programs: Sequence[int],
    num_warps: int,
    contents: Mapping[int, Sequence[int]] | None = None,
) -> Iterator[Issued]:
    """Yields what the warps issue; warp `i` is warp `i % num_warps` of program `i // num_warps`.

    The kernel's parameters are pointers: APART, 2 * APART and so on.

    Args:
      code: the kernel.
      programs: the indices of the programs.
      num_warps: number of warps of a program.
      contents: the int32 numbers of arrays that are known, by the number of the parameter from 0.

    Raises:
      RuntimeError: the kernel does not end, or calls a function.
    """
    at = {each.address: i for i, each in enumerate(code)}
    least = _least_steps(code, at)
    steps = [_decoded(each) for each in code]
    steps = [s._replace(assumed=_assumed(steps, i, at, least)) for i, s in enumerate(steps)]
    warps = np.arange(len(programs) * num_warps)
    lanes = np.arange(32)[None]
    registers: Registers = {
        "SR_TID.X": 32 * (warps % num_warps)[:, None] + lanes,
        "SR_CTAID.X": np.asarray(programs)[warps // num_warps][:, None],
        "SR_CgaCtaId": 0,
        "SR_LANEID": lanes,
        "SRZ": 0,
        _ACTIVE: True,
    }
    for i in range(MOST_PARAMETERS):
        for word, value in enumerate((0, (i + 1) * (APART >> 32))):
            registers[f"c[0x0][{PARAMETERS + 8 * i + 4 * word:#x}]"] = value
    waiting = [(0, warps, registers)]
    for _ in range(MOST_STEPS):
        if not waiting:
            return
        position, warps, registers = waiting.pop()
        each, conditions, operation, place, assumed = steps[position]
        condition, active = _all(conditions, registers), registers[_ACTIVE]
        # An endless loop follows the end of a kernel.
        if each.name in _CALLS or each.name == "BRA" and each.target == each.address:
            raise RuntimeError(f"the kernel goes on at {each.name}, which is not followed")
        if each.name != "NOP":
            addresses = None
            if place is not None:
                addresses = _taking_part(place(registers), condition, active, len(warps))
            yield Issued(each, warps, addresses)
        if each.name == "EXIT" and condition is True:
            continue
        if each.name not in ("BRA", "EXIT"):
            if condition is not False and operation.targets:
                if each.name == "LDG" and contents and addresses is not None:
                    operation = _load(operation, each, addresses, contents)
                _write(registers, operation, condition, assumed)
            waiting.append((position + 1, warps, registers))
            continue
        target = at[each.target] if each.name == "BRA" else None
        # The end is the shortest way.
        is_shorter = target is None or least[target] < least[position + 1]
        goes = _goes(each, condition, active, len(warps), is_shorter)
        if each.name == "EXIT" and isinstance(condition, np.ndarray):
            registers[_ACTIVE] = active & ~condition
        for way, those in ((target, goes), (position + 1, ~goes)):
            if way is not None and those.all():
                waiting.append((way, warps, registers))
            elif way is not None and those.any():
                waiting.append((way, warps[those], _part(registers, those)))
    raise RuntimeError("the kernel does not end")


def _load(
    operation: Operation,
    each: Instruction,
    addresses: np.ndarray,
    contents: Mapping[int, Sequence[int]],
) -> Operation:
    """A load whose result is known, if it reads arrays that are known."""
    taking = addresses >= 0
    parameters = set((addresses[taking] // APART - 1).tolist())
    if each.width != 4 or len(parameters) != 1 or not parameters <= set(contents):
        return operation
    numbers = np.asarray(contents[parameters.pop()])
    places = np.where(taking, addresses % APART // 4, 0)
    values = numbers[np.minimum(places, len(numbers) - 1)] & MASK
    return operation._replace(sources=(), compute=lambda: (values,), is_move=False)


def _decoded(each: Instruction) -> _Step:
    conditions, place = _conditions(each), None
    if each.name in GLOBAL + SHARED:
        # LDGSTS has two addresses; that in global memory counts.
        place = _address(each.operands[0 if each.name.startswith("ST") else 1])
    if each.name == "LDGSTS":
        # Where the last operand is false, zeros are written and nothing is loaded.
        conditions += each.operands[2:3]
    return _Step(each, tuple(map(reader, conditions)), decode(each), place, {})


def _conditions(each: Instruction) -> list[str]:
    """The predicates that must hold."""
    conditions = [each.predicate] if each.predicate else []
    if each.name == "BRA":
        # A second condition, as in BRA.U UP0; BRA.DIV is taken by lanes that have parted.
        conditions += ["!PT"] if "DIV" in each.modifiers else each.operands[:-1]
    return conditions


def _assumed(
    steps: Sequence[_Step], position: int, at: dict[int, int], least: Sequence[float]
) -> dict[str, bool]:
    """Predicates that an instruction writes and a branch needs, with values for the shorter way."""
    found = {}
    for name in steps[position].operation.targets:
        if not name.startswith(("P", "UP")):
            continue
        for i in range(position + 1, len(steps)):
            each = steps[i].instruction
            is_branch = each.name == "BRA"
            needed = [c for c in _conditions(each) if c.lstrip("!") == name] if is_branch else []
            if needed:
                is_shorter = least[at[each.target]] < least[i + 1]
                found[name] = is_shorter != needed[0].startswith("!")
            is_end = (is_branch or each.name == "EXIT") and not _conditions(each)
            is_written = name in steps[i].operation.targets and not each.predicate
            if name in found or is_end or is_written:
                break
    return found


def _address(operand: str) -> Callable[[Registers], Value]:
    """Reads the sum in an address, such as "desc[UR4][R8.64+0x10]" or "[R8.X4+UR5+-0x20]"."""
    found, offset, reads = _ADDRESS.search(operand), 0, []
    for part in found[1].split("+") if found else ():
        constant = number(part)
        if constant is not None:
            offset += constant
            continue
        register, *modifiers = part.split(".")
        scale = next((int(m[1:]) for m in modifiers if m.startswith("X")), 1)
        read = wide_reader(register) if "64" in modifiers else reader(register)
        reads.append((read, scale))

    def total(registers):
        values = [read(registers) for read, _ in reads]
        if any(value is None for value in values):
            return None
        return sum((value * scale for value, (_, scale) in zip(values, reads)), offset)

    return total


def _all(conditions: Sequence[Callable[[Registers], Value]], registers: Registers) -> Value:
    """Where all conditions hold; None if one is unknown."""
    held = True
    for condition in conditions:
        value = condition(registers)
        if value is None:
            return None
        held = held & value
    return held


def _taking_part(addresses: Value, condition: Value, active: Value, warps: int) -> Value:
    """Addresses in all lanes, -1 in those that take no part."""
    taking = active if condition is None else active & condition
    if addresses is None:
        # What no lane accesses is known.
        return None if np.any(taking) else np.full((warps, 32), -1)
    if taking is not True:
        addresses = np.where(taking, addresses, -1)
    return np.broadcast_to(addresses, (warps, 32))


def _write(
    registers: Registers, operation: Operation, condition: Value, assumed: dict[str, bool]
) -> None:
    """Sets the operation's targets in the lanes where the condition holds."""
    for name, value in zip(operation.targets, operation(registers)):
        if value is None and condition is True:
            value = assumed.get(name)
        if condition is not True and value is not None:
            old = registers.get(name)
            if condition is None:
                value = None
            elif old is not None:
                value = np.where(condition, value, old)
            # Nothing reads the other lanes of what was unknown, except under the same condition.
        registers[name] = value


def _goes(
    each: Instruction, condition: Value, active: Value, warps: int, is_shorter: bool
) -> np.ndarray:
    """Which warps take a branch, or end."""
    if condition is None:
        goes = is_shorter
    elif isinstance(condition, bool):
        goes = condition
    else:
        # Lanes that part meet again: a loop runs as long as any stays, a block if any enters it.
        is_backward = each.name == "BRA" and each.target < each.address
        some, all_ = condition & active, condition | inverse(active)
        goes = some.any(axis=1) if is_backward else all_.all(axis=1)
    return np.broadcast_to(goes, warps)


def _part(registers: Registers, chosen: np.ndarray) -> Registers:
    """The registers of some of the warps."""
    is_own = lambda value: isinstance(value, np.ndarray) and len(value) == len(chosen)
    return {n: value[chosen] if is_own(value) else value for n, value in registers.items()}


def _least_steps(code: Sequence[Instruction], at: dict[int, int]) -> list[float]:
    """Fewest instructions from each one to the end."""
    before: dict[int, list[int]] = defaultdict(list)
    ends = []
    for i, each in enumerate(code):
        if each.name == "BRA":
            before[at[each.target]].append(i)
        if each.name == "EXIT":
            ends.append(i)
        is_conditional = each.predicate or (each.name == "BRA" and len(each.operands) > 1)
        if each.name not in ("BRA", "EXIT") or is_conditional:
            before[i + 1].append(i)
    least = [float("inf")] * (len(code) + 1)
    queue = [(0, i) for i in ends]
    while queue:
        steps, i = heapq.heappop(queue)
        if steps < least[i]:
            least[i] = steps
            for j in before[i]:
                heapq.heappush(queue, (steps + 1, j))
    return least

"""Finds 32-bit arithmetic of a kernel that can exceed 2^31 - 1, without running the kernel.

Each integer of the compiler's intermediate code (TTIR) has an interval, from the number of programs
and the sizes for which the kernel is compiled. Lengths that a kernel loads count as 0 or more.
"""

import math
import re
from collections.abc import Callable
from typing import Any, NamedTuple

from triton._C.libtriton import ir
from triton.compiler.compiler import make_backend

from .compile import ARCHITECTURES, source_of
from .launches import Launch

_OPERATION = re.compile(r"^(?:(%[\w:, %]+?) = )?\"?([\w.]+)\"?(.*)$")
_VALUE = re.compile(r"%[\w#.]+")
_WIDTH = re.compile(r"(?:^|x|\s)i(\d+)>?$")
# Iterations until a number that a loop carries counts as any number.
_MOST_ITERATIONS = 40


class Interval(NamedTuple):
    """All integers from low to high."""

    low: int
    high: int

    def __or__(self, other: "Interval") -> "Interval":
        return Interval(min(self.low, other.low), max(self.high, other.high))


ANY = Interval(-(2**31), 2**31 - 1)
Values = dict[str, Interval | None]  # None for what is no integer, or the bits of another number


def ttir(made: Launch, arch: str = "sm_90") -> str:
    """The intermediate code of a launch, with all functions inlined."""
    target = ARCHITECTURES[arch].target
    backend: Any = make_backend(target)
    options = backend.parse_options(dict(num_warps=made.num_warps, num_stages=made.num_stages))
    context = ir.context()
    ir.load_dialects(context)
    backend.load_dialects(context)
    module = source_of(made).make_ir(
        target, options, backend.get_codegen_implementation(options), backend.get_module_map(),
        context,
    )  # fmt: skip
    return backend.make_ttir(module, {}, options, target.arch).str_nodebug()


def overflows(text: str, programs: int) -> list[str]:
    """The operations that can exceed 2^31 - 1 with so many programs, and their intervals."""
    reader = _Reader(text.splitlines(), programs)
    reader.read()
    return [f"{line} is from {i.low} to {i.high}" for line, i in reader.found.items()]


class _Reader:
    """Follows the code line by line; loops until their intervals grow no more."""

    def __init__(self, lines: list[str], programs: int):
        self.lines = [line.strip() for line in lines]
        self.programs, self.values, self.found = programs, {}, {}
        self.at = 0

    def read(self) -> tuple[str, list[Interval | None]]:
        """Reads up to the end of a region; returns its last operation and that one's operands."""
        last, results = "", []
        while self.at < len(self.lines):
            line = self.lines[self.at]
            self.at += 1
            if line.startswith("}"):
                break
            found = _OPERATION.match(line)
            if found is None or line.startswith(("#", "^")):
                continue
            names, name, rest = found.groups()
            if name in ("scf.yield", "scf.condition", "tt.reduce.return", "tt.scan.return"):
                last, results = rest, self._get(rest.partition(" : ")[0])
            elif name == "scf.for":
                self._for(names, rest)
            elif name == "scf.while":
                self._while(names, rest)
            elif name == "scf.if":
                self._if(names)
            elif name in ("tt.reduce", "tt.scan"):
                self._reduce(names, rest)
            elif name.startswith(("module", "tt.func")):
                self.read()
            elif names:
                self.values[names] = self._result(line, name, rest)
        return last, results

    def _get(self, text: str) -> list[Interval | None]:
        return [self.values.get(name) for name in _VALUE.findall(text)]

    def _set(self, names: str | None, values: list[Interval | None]) -> None:
        """Sets `%a`, or `%a#0` and so on of `%a:2`."""
        if names is None:
            return
        name, _, number = names.partition(":")
        each = [f"{name}#{i}" for i in range(len(values))] if number else [name]
        self.values |= dict(zip(each, values))

    def _loop(
        self, carried: list[str], start: list[Interval | None], body: Callable[[], list]
    ) -> list[Interval | None]:
        """Intervals of what a loop carries, before any iteration and after all."""
        begin, values = self.at, start
        for i in range(_MOST_ITERATIONS):
            self.at = begin
            self.values |= dict(zip(carried, values))
            grown = [_hull(a, b) for a, b in zip(values, body())]
            if grown == values:
                break
            if i == _MOST_ITERATIONS - 2:
                grown = [None if g is None else (g if g == v else Interval(-(2**63), 2**63 - 1))
                         for g, v in zip(grown, values)]  # fmt: skip
            values = grown
        return values

    def _for(self, names: str | None, rest: str) -> None:
        found = re.match(r" (%\w+) = (%\w+) to (%\w+) step (%\w+)(.*)", rest)
        assert found is not None, rest
        variable, *bounds = found.groups()[:4]
        first, end, step = (self.values[bound] or ANY for bound in bounds)
        self.values[variable] = Interval(first.low, max(first.low, end.high - 1))
        if found[5].rstrip(" {").endswith("i32"):
            self._check(f"{variable} of a loop", Interval(first.low, end.high - 1 + step.high))
        carried = re.findall(r"(%\w+) = (%[\w#]+)", found[5])
        start = [self.values.get(value) for _, value in carried]
        self._set(names, self._loop([n for n, _ in carried], start, lambda: self.read()[1]))

    def _while(self, names: str | None, rest: str) -> None:
        carried = re.findall(r"(%\w+) = (%[\w#]+)", rest)
        passed: list[Interval | None] = []

        def body():
            nonlocal passed
            condition, (_, *passed) = self.read()
            # The second region has arguments of its own.
            arguments = re.findall(r"(%\w+): ", self.lines[self.at])
            inside = [self._where(condition, i, value) for i, value in enumerate(passed)]
            self.values |= dict(zip(arguments, inside))
            return self.read()[1]

        self._loop([n for n, _ in carried], [self.values.get(v) for _, v in carried], body)
        self._set(names, passed)

    def _where(self, condition: str, index: int, value: Interval | None) -> Interval | None:
        """A carried number where the loop goes on, if it goes on below a bound."""
        held, *carried = _VALUE.findall(condition)
        for line in self.lines:
            found = re.match(rf"{held} = arith.cmpi slt, (%\w+), (%\w+) :", line)
            if found and found[1] == carried[index] and value is not None:
                bound = self.values[found[2]] or ANY
                return Interval(value.low, max(value.low, min(value.high, bound.high - 1)))
        return value

    def _if(self, names: str | None) -> None:
        _, results = self.read()
        if "else" in self.lines[self.at - 1]:
            _, others = self.read()
            results = [_hull(a, b) for a, b in zip(results, others)]
        self._set(names, results)

    def _reduce(self, names: str | None, rest: str) -> None:
        """Least and largest numbers stay in the interval; sums are checked as of two numbers."""
        operands = self._get(rest.partition(")")[0])
        arguments = re.findall(r"(%\w+): ", self.lines[self.at])
        begin = self.at
        self.values |= dict(zip(arguments, operands * 2))
        self.read()
        body = " ".join(self.lines[begin : self.at])
        is_extreme = "addi" not in body and "muli" not in body
        self._set(names, [o if o is None or is_extreme else ANY for o in operands])

    def _result(self, line: str, name: str, rest: str) -> Interval | None:
        if name == "tt.load":
            rest = re.sub(r"!tt.ptr<(\w+)>", r"\1", rest)
        width = _WIDTH.search(rest.rpartition(" -> ")[2].rpartition(" to ")[2])
        if width is None:
            return None
        bits = int(width[1])
        everything = (
            Interval(0, 1) if bits == 1 else Interval(-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        )
        if name == "arith.constant":
            return _constant(rest) or everything
        if name == "tt.get_program_id":
            return Interval(0, self.programs - 1)
        if name == "tt.make_range":
            sides = dict(re.findall(r"(end|start) = (\d+)", rest))
            return Interval(int(sides["start"]), int(sides["end"]) - 1)
        if name == "tt.load":
            return Interval(0, everything.high)
        operands = self._get(rest.rpartition(" : ")[0])
        if any(value is None for value in operands) or name.endswith(("bitcast", "fptosi")):
            return None
        compute = _RESULTS.get(name)
        if compute is None:
            return everything
        found = compute(*operands)
        if name in _CHECKED and bits == 32:
            self._check(line, found)
        return (
            found if everything.low <= found.low and found.high <= everything.high else everything
        )

    def _check(self, line: str, found: Interval) -> None:
        if found.low < -(2**31) or found.high >= 2**31:
            self.found[line] = found


def _constant(text: str) -> Interval | None:
    found = re.search(r"(?:dense<)?(-?\d+|true|false)>? :", text)
    if found is None:
        return None
    value = int(found[1]) if found[1] not in ("true", "false") else int(found[1] == "true")
    return Interval(value, value)


def _hull(a: Interval | None, b: Interval | None) -> Interval | None:
    return None if a is None or b is None else a | b


def _corners(function: Callable[[int, int], int]) -> Callable[[Interval, Interval], Interval]:
    """The interval of a function that is monotonic in either argument."""

    def interval(a: Interval, b: Interval) -> Interval:
        found = [function(x, y) for x in a for y in b]
        return Interval(min(found), max(found))

    return interval


def _quotient(a: Interval, b: Interval) -> Interval:
    if b.low <= 0:
        return Interval(-max(map(abs, a)), max(map(abs, a)))
    return _corners(lambda x, y: math.trunc(x / y) if abs(x) < 2**50 else x // y)(a, b)


def _remainder(a: Interval, b: Interval) -> Interval:
    most = max(map(abs, b)) - 1
    return Interval(max(-most, min(a.low, 0)), max(0, min(most, a.high)))


def _bits(a: Interval, b: Interval) -> Interval:
    """Of a logical operation."""
    if min(a.low, b.low) < 0:
        return Interval(-(2**63), 2**63 - 1)
    return Interval(0, 2 ** max(a.high, b.high).bit_length() - 1)


_same = lambda a, *_: a
_CHECKED = ("arith.addi", "arith.subi", "arith.muli", "arith.shli", "arith.trunci")
_RESULTS: dict[str, Callable[..., Any]] = {
    "arith.addi": _corners(lambda a, b: a + b),
    "arith.subi": _corners(lambda a, b: a - b),
    "arith.muli": _corners(lambda a, b: a * b),
    "arith.shli": _corners(lambda a, b: a << min(max(b, 0), 63)),
    "arith.shrsi": _corners(lambda a, b: a >> max(b, 0)),
    "arith.minsi": _corners(min),
    "arith.maxsi": _corners(max),
    "arith.divsi": _quotient,
    "arith.divui": _quotient,
    "arith.remsi": _remainder,
    "arith.remui": _remainder,
    "arith.andi": _bits,
    "arith.ori": _bits,
    "arith.xori": _bits,
    "arith.select": lambda condition, a, b: a | b,
} | dict.fromkeys(
    "arith.extsi arith.extui arith.trunci tt.splat tt.unsplat tt.expand_dims tt.broadcast "
    "tt.reshape tt.trans ttg.convert_layout".split(),
    _same,
)

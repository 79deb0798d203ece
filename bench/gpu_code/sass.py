"""Reads compiled kernels (SASS): their instructions, and what their accesses cost.

`emulator.py` runs them.
"""

import re
import subprocess
import tempfile
from pathlib import Path
from typing import NamedTuple

import numpy as np

SECTOR = 32  # bytes that global memory moves at once

_LINE = re.compile(r"^\s+/\*([0-9a-f]{4,})\*/\s+(?:@(!?U?P\w+)\s+)?([A-Z]\S*)\s*(.*?)\s*;", re.M)
_WIDTHS = {"128": 16, "64": 8, "U16": 2, "S16": 2, "U8": 1, "S8": 1}


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
        return next((_WIDTHS[m] for m in self.modifiers if m in _WIDTHS), 4)

    @property
    def is_matrix(self) -> bool:
        """Whether this is an access to 8 x 8 matrices in shared memory."""
        return self.name in ("LDSM", "STSM")


def disassemble(cubin: bytes) -> list[Instruction]:
    """The instructions of a compiled kernel."""
    return parse(cuobjdump("-sass", cubin))


def cuobjdump(option: str, cubin: bytes) -> str:
    """What Triton's copy of cuobjdump prints."""
    import triton

    program = Path(triton.__file__).with_name("backends") / "nvidia" / "bin" / "cuobjdump"
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(program), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout


def parse(text: str) -> list[Instruction]:
    """The instructions in a disassembler's text."""
    found = []
    for address, predicate, name, operands in _LINE.findall(text):
        name, *modifiers = name.split(".")
        split = tuple(re.split(r",\s*(?![^\[]*\])", operands)) if operands else ()
        found.append(Instruction(int(address, 16), predicate, name, tuple(modifiers), split))
    return found


def turns(each: Instruction) -> int:
    """Number of turns in which shared memory serves a warp without bank conflicts."""
    if each.is_matrix:
        return int(each.modifiers[-1]) if each.modifiers[-1].isdigit() else 1
    return max(1, each.width // 4)


def shared_turns(each: Instruction, addresses: np.ndarray) -> np.ndarray:
    """Turns that shared memory takes for an access of each warp, bank conflicts included.

    Args:
      addresses: `[warps, 32]`, -1 for a lane that takes no part.

    Returns:
      `[warps]`. In each of an instruction's turns, a bank gives all lanes one word, and takes
      longer if they want several.
    """
    warps, number = len(addresses), turns(each)
    # A matrix access takes the address of a row of 16 bytes from each of eight lanes.
    size, lanes = (16, 8) if each.is_matrix else (each.width, 32 // number)
    groups = addresses[:, : number * lanes].reshape(warps * number, lanes, 1)
    words = groups // 4 + np.arange(max(1, size // 4))
    words = np.where(groups < 0, -1, words).reshape(warps * number, -1)
    words.sort(axis=1)
    is_new = np.diff(words, axis=1, prepend=-1) > 0
    row, column = np.nonzero(is_new)
    banks = np.zeros((warps * number, 32), int)
    np.add.at(banks, (row, words[row, column] % 32), 1)
    return banks.max(axis=1).reshape(warps, number).sum(axis=1)


def sectors(each: Instruction, addresses: np.ndarray) -> list[np.ndarray]:
    """The sectors of global memory that an access of each warp touches, of `[warps, 32]`."""
    # Accesses are aligned to their width, so a lane's lies within a sector.
    return [np.unique(some[some >= 0] // SECTOR) for some in addresses]

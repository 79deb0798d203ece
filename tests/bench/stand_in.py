"""Stand-ins for the frameworks' processes: definitions in NumPy, with or without faults."""

import numpy as np

from bench.kernels.ops import DTYPES
from bench.kernels.sides import Side, checked_rows, not_installed


class StandIn(Side):
    """A side whose contestants compute the definition.

    Args:
      faults: by contestant, "wrong", "unable" or "tired", which fails when it is timed.
    """

    def __init__(self, *arguments, faults=()):
        super().__init__(*arguments)
        self.faults = dict(faults)

    def draw(self, name, count):
        case, rng = self.cases[name], np.random.default_rng(self.seed)
        shapes = case.shapes()
        return [case.draw({n: rng.normal(size=s) for n, s in shapes.items()}) for _ in range(count)]

    def make(self, name, direction, contestant):
        fault = self.faults.get(contestant)
        if fault == "unable":
            raise NotImplementedError("not for odd lengths")

        def program(*arrays):
            rows = list(range(len(arrays[-1])))
            results = list(self.cases[name].expected(arrays, rows).values())
            results = results[:1] if direction == "forward" else results
            return [result * (1.01 if fault == "wrong" else 1) for result in results]

        program.is_tired = fault == "tired"
        return program

    def run(self, program, arguments):
        more = {"same_bits": True, "compile_seconds": 0.0}
        return program(*arguments), True, more

    def wide(self, array, name):
        return np.asarray(array)[checked_rows(self.cases[name])]

    def seconds(self, program, sets):
        if getattr(program, "is_tired", False):
            raise RuntimeError("out of memory")
        return {"seconds": 2e-3 if program else 1e-3, "method": "wall"}

    def check_alive(self):
        pass


def start_jax(workloads, seed, rows, **faults):
    side = StandIn(workloads, seed, rows, "cpu", faults=faults)
    commands = dict(side.commands("jax"))
    for name in ("copy", "product"):
        commands[f"time {name}"] = side.careful(lambda name: side.seconds(None, []), name)
    ready = {
        "platform": "cpu",
        "device": "cpu",
        "dtype": DTYPES["cpu"],
        "chosen": dict.fromkeys(workloads, "xla"),
        "shapes": {name: case.shape for name, case in side.cases.items()},
        "product_size": 64,
        "copy_bytes": 2**20,
    }
    return ready, commands


def start_wrong_jax(*arguments):
    return start_jax(*arguments, ours="wrong")


def start_torch(workloads, seed, rows, platform, **faults):
    faults = {name.replace("_", "-"): fault for name, fault in faults.items()}
    return {}, StandIn(workloads, seed, rows, platform, faults=faults).commands("torch")


def start_wrong_torch(*arguments):
    return start_torch(*arguments, torch_sdpa="wrong")


def start_unable_torch(*arguments):
    return start_torch(*arguments, torch_sdpa="unable")


def start_tired_torch(*arguments):
    return start_torch(*arguments, torch_sdpa="tired")


def start_missing_torch(*arguments):
    raise ValueError(not_installed("torch"))

"""Stand-ins for the processes of trainers, samplers and the machine's peak; they compute nothing.

They replace PyTorch's processes if PyTorch is not installed, and all in tests of failures.
"""

import importlib.util
import math
import time


def start_machine(size=None):
    peak = {"peak float32": lambda: {"rate": 1e9}}
    return {"device": "cpu", "platform": "cpu", "peaks": {"float32": 1e9}}, peak


def start_ours(case, name, steps, device):
    ready, commands = start_trainer(case, name, steps, device)
    return ready, commands | {"draw": lambda: {"seconds": 1e-4}}


def start_trainer(case, name, steps, device):
    resident = {"before": 1, "peak": 2}
    commands = {
        "step": lambda: {"seconds": 1e-3, "loss": 1.0},
        "memory": lambda: {"device": None, "resident": resident, "program": None},
    }
    return {"compile_seconds": 0.0, "warm_seconds": 0.0}, commands


def start_broken_trainer(case, name, steps, device):
    raise ValueError("ImportError: no kernel image")


def start_tired_trainer(case, name, steps, device):
    ready, commands = start_trainer(case, name, steps, device)
    return ready, commands | {"step": lambda: math.sqrt(-1)}


def start_hanging_trainer(case, name, steps, device):
    ready, commands = start_trainer(case, name, steps, device)
    return ready, commands | {"step": lambda: time.sleep(60)}


def start_where_icl_is():
    return {"icl": importlib.util.find_spec("icl").origin}, {}


def start_gate(size, names):
    return {"parameters": 1}, {}


def start_wrong_gate(size, names):
    raise ValueError(f"{size}: predictions differ")


def start_host(families, batch):
    return {}, {name: lambda: {"seconds": 1e-3} for name in families}


def start_sampler(families, batch):
    ready, commands = start_host(families, batch)
    return ready | {"device": "cpu"}, commands


def start_broken_host(families, batch):
    raise ValueError("ModuleNotFoundError: no PyTorch")

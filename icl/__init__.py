"""In-context learners, trained on tasks that are drawn on the device.

    import icl
    run = icl.train("garg/linear-xs")
    print(icl.evaluate(run))

`icl.kernels` needs jax and numpy alone; the rest needs the extra `train`, and is imported
when first used.
"""

from importlib import import_module
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from .api import evaluate, preset, resume, sweep, train
    from .training import Config, Run

_EXPORTS = {
    "Config": ".training",
    "Run": ".training",
    "evaluate": ".api",
    "preset": ".api",
    "resume": ".api",
    "sweep": ".api",
    "train": ".api",
}

__all__ = ["Config", "Run", "evaluate", "preset", "resume", "sweep", "train"]


def __getattr__(name: str):
    if name not in _EXPORTS:
        raise AttributeError(f"module 'icl' has no attribute {name!r}")
    try:
        module = import_module(_EXPORTS[name], __name__)
    except ModuleNotFoundError as error:
        if error.name and error.name.split(".")[0] == "icl":
            raise
        raise ModuleNotFoundError(
            f"icl.{name} needs the package {error.name}: pip install 'fused-icl[train]'"
        ) from error
    return getattr(module, name)

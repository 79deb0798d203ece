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
    from .analysis import register_analysis
    from .analysis.instrument import Instrument
    from .api import evaluate, preset, resume, sweep, train
    from .layers import register_mixer
    from .models import register_model
    from .tasks import register_family
    from .training import Config, Run, export, load_exported
    from .training.optimizer import register_optimizer
    from .training.prediction import Predictor

__version__ = "0.2.0"

_EXPORTS = {
    "Config": ".training",
    "Instrument": ".analysis.instrument",
    "Predictor": ".training.prediction",
    "Run": ".training",
    "evaluate": ".api",
    "export": ".training",
    "load_exported": ".training",
    "preset": ".api",
    "register_analysis": ".analysis",
    "register_family": ".tasks",
    "register_mixer": ".layers",
    "register_model": ".models",
    "register_optimizer": ".training.optimizer",
    "resume": ".api",
    "sweep": ".api",
    "train": ".api",
}

__all__ = [
    "Config",
    "Instrument",
    "Predictor",
    "Run",
    "evaluate",
    "export",
    "load_exported",
    "preset",
    "register_analysis",
    "register_family",
    "register_mixer",
    "register_model",
    "register_optimizer",
    "resume",
    "sweep",
    "train",
]


if not TYPE_CHECKING:  # a type checker is to find names that do not exist

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

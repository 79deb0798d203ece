"""Training: settings, the scanned step, the host loop, run folders."""

from .config import Config, OptimizerConfig, TrainingConfig
from .disk import CannotSave, DiskFull, RunError
from .exported import Exported, export, load_exported
from .learner import Learner
from .loop import Interrupted, NonFiniteLoss
from .memory import OutOfMemory
from .metrics import LoggingConfig
from .processes import LostProcess
from .run import Run
from .single import resume, train

__all__ = [
    "CannotSave",
    "Config",
    "DiskFull",
    "Exported",
    "Interrupted",
    "Learner",
    "LoggingConfig",
    "LostProcess",
    "NonFiniteLoss",
    "OptimizerConfig",
    "OutOfMemory",
    "Run",
    "RunError",
    "TrainingConfig",
    "export",
    "load_exported",
    "resume",
    "train",
]

"""Training: settings, the scanned step, the host loop, run folders."""

from .config import Config, OptimizerConfig, TrainingConfig
from .learner import Learner
from .loop import Interrupted, NonFiniteLoss, resume, train
from .metrics import LoggingConfig
from .run import Run, RunError

__all__ = [
    "Config",
    "Interrupted",
    "Learner",
    "LoggingConfig",
    "NonFiniteLoss",
    "OptimizerConfig",
    "Run",
    "RunError",
    "TrainingConfig",
    "resume",
    "train",
]

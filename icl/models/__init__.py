"""In-context learners."""

from .base import Model, ModelConfig
from .looped import LoopedTransformer, LoopedTransformerConfig
from .lstm import LSTM, LSTMConfig
from .transformer import SMALL, STANDARD, XS, Transformer, TransformerConfig, parameter_count

MODELS: dict[str, type[ModelConfig]] = {
    "transformer": TransformerConfig,
    "looped_transformer": LoopedTransformerConfig,
    "lstm": LSTMConfig,
}

__all__ = [
    "LSTM",
    "MODELS",
    "SMALL",
    "STANDARD",
    "XS",
    "LSTMConfig",
    "LoopedTransformer",
    "LoopedTransformerConfig",
    "Model",
    "ModelConfig",
    "Transformer",
    "TransformerConfig",
    "parameter_count",
]

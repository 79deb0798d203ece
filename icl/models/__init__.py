"""In-context learners."""

from collections.abc import Callable

from ..registry import Kind, register
from .adapted_transformer import AdaptedTransformer, AdaptedTransformerConfig
from .base import HeadWeights, Model, ModelConfig
from .causality import check_causal
from .cells import Cells, CellsConfig
from .contrastive import ContrastiveAttention, ContrastiveAttentionConfig
from .fast_weight_lstm import FastWeightLSTM, FastWeightLSTMConfig
from .gradient_descent import GradientDescent, GradientDescentConfig
from .looped import LoopedTransformer, LoopedTransformerConfig
from .maml import MAML, MAMLConfig
from .mlp import MLP, MLPConfig
from .preconditioned import PreconditionedAttention, PreconditionedConfig
from .recurrent import LSTM, RNN, LSTMConfig, RNNConfig
from .self_attention import SelfAttention, SelfAttentionConfig
from .transformer import SMALL, STANDARD, XS, Transformer, TransformerConfig, parameter_count

MODELS: dict[str, type[ModelConfig]] = {
    "transformer": TransformerConfig,
    "looped_transformer": LoopedTransformerConfig,
    "lstm": LSTMConfig,
    "rnn": RNNConfig,
    "self_attention": SelfAttentionConfig,
    "contrastive_attention": ContrastiveAttentionConfig,
    "gradient_descent": GradientDescentConfig,
    "preconditioned_attention": PreconditionedConfig,
    "fast_weight_lstm": FastWeightLSTMConfig,
    "maml": MAMLConfig,
    "mlp": MLPConfig,
    "adapted_transformer": AdaptedTransformerConfig,
    "cells": CellsConfig,
}


def register_model(name: str) -> Callable[[Kind], Kind]:
    """Class decorator that registers a `ModelConfig` under a name, for configs and commands.

        @register_model("mamba")
        @dataclasses.dataclass(frozen=True)
        class MambaConfig(ModelConfig): ...

    Raises:
      TypeError, ValueError: as `icl.registry.register`.
    """
    return register(MODELS, ModelConfig, name)


__all__ = [
    "LSTM",
    "MAML",
    "MLP",
    "MODELS",
    "RNN",
    "SMALL",
    "STANDARD",
    "XS",
    "AdaptedTransformer",
    "AdaptedTransformerConfig",
    "Cells",
    "CellsConfig",
    "ContrastiveAttention",
    "ContrastiveAttentionConfig",
    "FastWeightLSTM",
    "FastWeightLSTMConfig",
    "GradientDescent",
    "GradientDescentConfig",
    "HeadWeights",
    "LSTMConfig",
    "LoopedTransformer",
    "LoopedTransformerConfig",
    "MAMLConfig",
    "MLPConfig",
    "Model",
    "ModelConfig",
    "PreconditionedAttention",
    "PreconditionedConfig",
    "RNNConfig",
    "SelfAttention",
    "SelfAttentionConfig",
    "Transformer",
    "TransformerConfig",
    "check_causal",
    "parameter_count",
    "register_model",
]

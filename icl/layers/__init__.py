"""flax.nnx layers over `icl.kernels`."""

from .mixers import MIXERS, CausalSelfAttention, DeltaRule, LinearAttention
from .norm import LayerNorm, layer_norm

__all__ = [
    "MIXERS",
    "CausalSelfAttention",
    "DeltaRule",
    "LayerNorm",
    "LinearAttention",
    "layer_norm",
]

"""flax.nnx layers built on `icl.kernels`."""

from .mesa import mesa_attention
from .mixers import MIXERS, CausalSelfAttention, DeltaRule, LinearAttention, Mesa
from .norm import LayerNorm, layer_norm

__all__ = [
    "MIXERS",
    "CausalSelfAttention",
    "DeltaRule",
    "LayerNorm",
    "LinearAttention",
    "Mesa",
    "layer_norm",
    "mesa_attention",
]

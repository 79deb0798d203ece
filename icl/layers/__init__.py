"""flax.nnx layers over `icl.kernels`."""

from .mixers import MIXERS, CausalSelfAttention
from .norm import LayerNorm, layer_norm

__all__ = ["MIXERS", "CausalSelfAttention", "LayerNorm", "layer_norm"]

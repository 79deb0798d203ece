"""flax.nnx layers built on `icl.kernels`."""

from .mesa import mesa_attention
from .mixers import (
    MIXERS,
    DeltaRule,
    LinearAttention,
    Mesa,
    Mixer,
    SoftmaxAttention,
    register_mixer,
)
from .norm import NORMS, LayerNorm, RMSNorm, layer_norm, rms_norm

__all__ = [
    "MIXERS",
    "SoftmaxAttention",
    "DeltaRule",
    "LayerNorm",
    "LinearAttention",
    "Mesa",
    "Mixer",
    "NORMS",
    "RMSNorm",
    "layer_norm",
    "mesa_attention",
    "register_mixer",
    "rms_norm",
]

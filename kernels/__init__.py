"""Fused attention and linear attention for short contexts, small heads and large batches.

Imported as `icl.kernels`; needs jax and numpy only. See README.md beside this file.
"""

from .attention import (
    attention_weights,
    dot_product_attention,
    flax_attention_fn,
    packed_dot_product_attention,
)
from .dispatch import choices, targeting
from .linear_attention import delta_rule, linear_attention

__all__ = [
    "attention_weights",
    "choices",
    "delta_rule",
    "dot_product_attention",
    "flax_attention_fn",
    "linear_attention",
    "packed_dot_product_attention",
    "targeting",
]

"""Fused attention for short contexts, small heads and large batches.

Imported as `icl.kernels`; needs jax and numpy only. See README.md beside this file.
"""

from .attention import dot_product_attention

__all__ = ["dot_product_attention"]

from .api import attention_weights, dot_product_attention, packed_dot_product_attention
from .drop_in import flax_attention_fn

__all__ = [
    "attention_weights",
    "dot_product_attention",
    "flax_attention_fn",
    "packed_dot_product_attention",
]

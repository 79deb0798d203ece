from .api import dot_product_attention, packed_dot_product_attention
from .drop_in import flax_attention_fn

__all__ = ["dot_product_attention", "flax_attention_fn", "packed_dot_product_attention"]

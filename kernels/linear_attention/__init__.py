from .api import delta_rule, linear_attention

__all__ = ["delta_rule", "linear_attention"]

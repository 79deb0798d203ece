"""In-context learners."""

from .transformer import SMALL, STANDARD, XS, Transformer, TransformerConfig, parameter_count

__all__ = ["SMALL", "STANDARD", "XS", "Transformer", "TransformerConfig", "parameter_count"]

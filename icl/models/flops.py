"""How many floating-point operations the model takes, by its definition."""

from .base import ModelConfig


def flops_by_part(model: ModelConfig, in_width: int, tokens: int, batch: int) -> dict[str, float]:
    """The model's floating-point operations in a training step, by the part of the model.

    6 * parameters in the matrix products * tokens, for the product of the forward pass and
    the two of the backward one, and 12 * layers * width * T * tokens for attention's own
    products, where T is the tokens of a prompt and tokens = batch * T. Attention is counted in
    full, not halved for causality; other mixers are counted as attention is. A pass without
    gradient counts a third. This is the model's definition, the same for every program: one that
    leaves out operations nobody reads is not credited with fewer.

    Args:
      model: size of the model.
      in_width: features of a token.
      tokens: tokens of a prompt.
      batch: prompts a step.
    """
    return model.flops_by_part(in_width, tokens, batch)


def training_flops(model: ModelConfig, in_width: int, tokens: int, batch: int) -> float:
    """The model's floating-point operations in a training step, of all parts together."""
    return sum(flops_by_part(model, in_width, tokens, batch).values())

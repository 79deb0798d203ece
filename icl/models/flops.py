"""Number of floating-point operations of a model, by definition and not by program."""

from .base import ModelConfig


def flops_by_part(model: ModelConfig, in_width: int, tokens: int, batch: int) -> dict[str, float]:
    """Floating-point operations of a training step, for each part of the model.

    Matrix products with parameters count 6 * parameters * batch * T, with T tokens in a prompt: 2
    for the forward pass and 4 for the backward pass. Attention's own products count
    12 * layers * width * T * batch * T, not halved for causality; other mixers count as attention
    does. A pass without a gradient counts a third. The count is a property of the model: a program
    that skips operations is not credited with fewer.

    Args:
      model: settings of the model.
      in_width: number of features of a token.
      tokens: number of tokens of a prompt.
      batch: number of prompts in a step.
    """
    return model.flops_by_part(in_width, tokens, batch)


def training_flops(model: ModelConfig, in_width: int, tokens: int, batch: int) -> float:
    """Floating-point operations of a training step, summed over all parts of the model."""
    return sum(flops_by_part(model, in_width, tokens, batch).values())

"""Checks that a user's model with `causal = True` is causal; `Learner` calls it when it is made."""

import math
from collections.abc import Callable
from typing import Any

import jax
import numpy as np
from flax import nnx

from .base import Model, ModelConfig

CUTS = 8  # number of positions after which later tokens are replaced
LEAK = {"float32": 1e-3, "bfloat16": 2e-2}  # largest relative change; rounding is far below
_causal: set[Any] = set()  # configs and sizes already checked in this process


def check_causal(
    config: ModelConfig, model: Model, make: Callable[[], Model], in_width: int, tokens: int
) -> None:
    """Checks that predictions do not depend on later tokens, once for each config and size.

    The check compiles and runs a forward pass on a few prompts with random weights. Models made
    only of modules of this library and of flax are not checked here, since tests check them.

    Args:
      config: config of the model.
      model: the model with abstract variables, as from `nnx.eval_shape`.
      make: makes the model with its initial variables.
      in_width: number of features of a token.
      tokens: number of tokens of a prompt.

    Raises:
      ValueError: `config.causal` is True and a prediction changes with later tokens.
    """
    size = (type(config), repr(config), in_width, tokens)
    if not config.causal or size in _causal:
        return
    if not _is_of_this_library(config, model):
        leak, largest = _leak(make(), in_width, tokens, config.takes_lengths)
        if leak > LEAK[config.dtype] * largest:
            name = type(config).__name__
            raise ValueError(
                f"{name} claims to be causal, but its predictions change with later tokens, which "
                "include the labels to predict. Let each token see only itself and earlier tokens "
                "(in nnx.MultiHeadAttention: mask=nnx.make_causal_mask(...)); or declare "
                f"`causal = False` in {name}, and use the layout concatenated, separate or masked"
            )
    _causal.add(size)


def _is_of_this_library(config: ModelConfig, model: Model) -> bool:
    """Whether the config and all modules are defined in this package or in flax."""
    ours = {__name__.split(".")[0], "flax"}
    modules = (node for _, node in nnx.iter_graph(model) if isinstance(node, nnx.Module))
    return all(type(part).__module__.split(".")[0] in ours for part in (config, *modules))


def _leak(model: Model, in_width: int, tokens: int, takes_lengths: bool) -> tuple[float, float]:
    """Largest change of a prediction when later tokens change, and largest prediction."""
    rng = np.random.default_rng(0)

    # Random weights, since initial weights of 0 could hide a dependence on later tokens.
    def weights(leaf: jax.Array) -> np.ndarray:
        drawn = rng.normal(size=leaf.shape)
        drawn = drawn / math.prod(leaf.shape[:-1]) ** 0.5 if leaf.ndim > 1 else 1 + drawn / 10
        return drawn.astype(leaf.dtype)

    model.eval()
    graph, params, rest = nnx.split(model, nnx.Param, ...)
    params = jax.tree.map(weights, params)
    prompt, other = rng.normal(size=(2, tokens, in_width)).astype(np.float32)
    cuts = np.unique(np.linspace(0, tokens - 1, CUTS + 1).astype(int)[:-1])
    later = np.arange(tokens) > cuts[:, None]
    prompts = np.stack([prompt, *np.where(later[..., None], other, prompt)])
    # Compiled ahead of time, so that the check also runs inside a trace.
    lengths = np.full(len(prompts), tokens)
    options: dict[str, Any] = {"lengths": lengths} if takes_lengths else {}
    forward = jax.jit(
        lambda params, rest, prompts: nnx.merge(graph, params, rest)(prompts, **options)
    )
    compiled = forward.lower(params, rest, prompts).compile()
    predictions = np.asarray(compiled(params, rest, prompts))
    change = np.abs(predictions[1:] - predictions[:1]).reshape(*later.shape, -1)
    return float(change[~later].max()), float(np.abs(predictions).max())

"""What a model and its settings are to the trainer, whatever the architecture."""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal

import jax
from flax import nnx


class Model(nnx.Module):
    """Maps prompts to a prediction a token, causally."""

    def __call__(self, tokens: jax.Array, read: slice = slice(None)) -> jax.Array:
        """Predictions after each token that `read` selects.

        Args:
          tokens: `[B, T, in_width]`.
          read: the positions whose predictions are wanted.

        Returns:
          float32 `[B, number of positions read]`, with a last axis `outputs` where not None.
        """
        raise NotImplementedError

    def training_outputs(
        self, tokens: jax.Array, read: slice = slice(None), step: jax.Array | int | None = None
    ) -> jax.Array:
        """The predictions that are trained on, of which there may be several.

        Args:
          tokens: `[B, T, in_width]`.
          read: the positions whose predictions are wanted.
          step: training steps made so far, traced or not; None for the end of training.

        Returns:
          float32 `[L, ...]`, each as from a call; the training loss is the mean over L.
        """
        return self(tokens, read)[None]


@dataclasses.dataclass(frozen=True)
class ModelConfig(ABC):
    """Size of a model. Add a class of them to `icl.models.MODELS` to save and read it by name."""

    title: ClassVar[str] = "model"  # in tables and figures

    layers: int = 12
    """Number of layers."""
    width: int = 256
    """Features of a token between layers."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation; parameters, statistics and the loss stay float32."""

    def __post_init__(self) -> None:
        for name in ("layers", "width"):
            if getattr(self, name) < 1:
                raise ValueError(f"{name} must be at least 1, got {getattr(self, name)}")

    @property
    def passes(self) -> int:
        """Passes through the layers whose activations a gradient holds at once."""
        return 1

    @abstractmethod
    def build(
        self, in_width: int, tokens: int, *, outputs: int | None = None, rngs: nnx.Rngs
    ) -> Model:
        """The model with initial parameters.

        Args:
          in_width: features of a token.
          tokens: length of the prompts it is built for.
          outputs: numbers of a prediction; None for a scalar.
          rngs: `nnx.Rngs` with a `params` stream.

        Raises:
          ValueError: the size does not fit such prompts.
        """

    @abstractmethod
    def flops_by_part(self, in_width: int, tokens: int, batch: int) -> dict[str, float]:
        """Floating-point operations of a training step, as `icl.models.flops` explains."""


def uniform(fan_in: int) -> dict[str, Any]:
    """PyTorch's default for linear layers, which Garg et al. use at both ends."""
    bound = fan_in**-0.5
    init = lambda key, shape, dtype, out_sharding=None: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )
    return dict(kernel_init=init, bias_init=init)

"""What a model and its settings are to the trainer, whatever the architecture."""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import jax
from flax import nnx

from ..ranges import SIZE, Range, check_ranges


class HeadWeights(NamedTuple):
    """Weights of the N attention heads of a layer, for tokens as rows `[T, width]`.

    A query scores a key by `(x_q W_Q + b_Q) . (x_k W_K + b_K)`, which the layer may yet scale,
    bring to unit lengths or put through a softmax; `x_k W_V W_O` is what is then written.
    """

    query: jax.Array  # [N, width, H]
    key: jax.Array  # [N, width, H]
    value: jax.Array  # [N, width, V]
    output: jax.Array  # [N, V, width]
    query_bias: jax.Array | float = 0.0  # [N, H]
    key_bias: jax.Array | float = 0.0  # [N, H]


class Model(nnx.Module):
    """Maps prompts to a prediction a token; causally, if its config says so.

    A model may have variables beside parameters: batch statistics, and random layers such as
    dropout. It is in training mode (`train()`) for `training_outputs`, else in evaluation mode.
    """

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

    def heads(self) -> list[HeadWeights]:
        """The weights of each layer's attention heads; a layer that is applied again counts once.

        Raises:
          NotImplementedError: the model has no attention heads.
        """
        raise NotImplementedError(
            f"a {type(self).__name__} has no attention heads; transformers, looped transformers, "
            "self-attention and preconditioned attention have"
        )

    def head_inputs(self, tokens: jax.Array) -> list[jax.Array]:
        """What enters the heads of each layer of `heads`, `[B, T, width]`, of `[B, T, in_width]`.

        Of a layer that is applied again and again it is the last time. Errors are those of `heads`.
        """
        raise NotImplementedError(f"a {type(self).__name__} has no attention heads")


@dataclasses.dataclass(frozen=True)
class ModelConfig(ABC):
    """Size of a model. Register it (`icl.models.register_model`), so that runs can be read back."""

    title: ClassVar[str] = "model"  # in tables and figures
    # False if all tokens see the whole prompt but its query; a learner checks True.
    causal: ClassVar[bool] = True
    takes_points: ClassVar[bool] = False  # True if a token must be a whole point (x, y)

    layers: int = 12
    """Number of layers."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation; parameters, statistics and the loss stay float32."""
    embedder: str | None = None
    """What turns an input into features, by its name in icl.layers.EMBEDDERS; None for vectors
    as they are."""
    embedding_width: int = 64
    """Features of an embedded input."""

    def __post_init__(self) -> None:
        # Each layer is compiled apart.
        check_ranges("model", self, layers=Range(1, 1000), embedding_width=SIZE)

    @abstractmethod
    def activations(self, in_width: int) -> int:
        """Numbers a token in the largest of the layers' activations."""

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
          outputs: number of outputs at a token; None for one without an axis.
          rngs: `nnx.Rngs` with the streams `params` and `dropout`.

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

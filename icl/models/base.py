"""Interface between the trainer and all models and their settings."""

import dataclasses
from abc import ABC, abstractmethod
from typing import Any, ClassVar, Literal, NamedTuple

import jax
from flax import nnx

from ..ranges import SIZE, Range, check_ranges


class HeadWeights(NamedTuple):
    """Weights of the N attention heads of a layer, for tokens as rows `[T, width]`.

    The score of a query and a key is `(x_q W_Q + b_Q) . (x_k W_K + b_K)`. The layer may scale the
    score, normalise query and key, or apply a softmax. A head adds the values `x_k W_V W_O`,
    weighted by the scores.
    """

    query: jax.Array  # [N, width, H]
    key: jax.Array  # [N, width, H]
    value: jax.Array  # [N, width, V]
    output: jax.Array  # [N, V, width]
    query_bias: jax.Array | float = 0.0  # [N, H]
    key_bias: jax.Array | float = 0.0  # [N, H]


class Model(nnx.Module):
    """Maps prompts to one prediction a token; causally if `causal` of its config is True.

    A model may have variables other than parameters, such as batch statistics and the state of
    dropout. It is in training mode (`train()`) for `training_outputs`, else in evaluation mode.
    """

    def __call__(self, tokens: jax.Array, read: slice = slice(None)) -> jax.Array:
        """Predictions after each token that `read` selects.

        Args:
          tokens: `[B, T, in_width]`.
          read: the positions to return predictions for.

        Returns:
          float32 `[B, number of positions read]`, with a last axis `outputs` if it is not None.
        """
        raise NotImplementedError

    def training_outputs(
        self,
        tokens: jax.Array,
        read: slice = slice(None),
        step: jax.Array | int | None = None,
        **options: Any,
    ) -> jax.Array:
        """The L sets of predictions whose mean loss is minimised; L is 1 by default.

        Args:
          tokens: `[B, T, in_width]`.
          read: the positions to return predictions for.
          step: number of training steps made so far, traced or not; None for the end of training.
          **options: `lengths` and `examples`, if the config says that the model takes them.

        Returns:
          float32 `[L, ...]`, each of the shape that a call returns.
        """
        return self(tokens, read, **options)[None]

    def heads(self) -> list[HeadWeights]:
        """The weights of each layer's attention heads; a layer applied repeatedly is listed once.

        Raises:
          NotImplementedError: the model has no attention heads.
        """
        raise NotImplementedError(
            f"a {type(self).__name__} has no attention heads; transformers, looped transformers, "
            "self-attention and preconditioned attention have them"
        )

    def head_inputs(self, tokens: jax.Array) -> list[jax.Array]:
        """Inputs `[B, T, width]` to the attention heads of each layer of `heads`.

        The input of a layer applied repeatedly is that of its last application.

        Args:
          tokens: `[B, T, in_width]`.

        Raises:
          NotImplementedError: the model has no attention heads.
        """
        raise NotImplementedError(f"a {type(self).__name__} has no attention heads")


@dataclasses.dataclass(frozen=True)
class ModelConfig(ABC):
    """Settings of a model. Register (`icl.models.register_model`) a config to reopen its runs."""

    title: ClassVar[str] = "model"  # name in tables and figures
    # False if all tokens see the whole prompt except the query's label. A learner checks True.
    causal: ClassVar[bool] = True
    takes_points: ClassVar[bool] = False  # True if each token must be a whole point (x, y)
    takes_shifted: ClassVar[bool] = False  # True if each token must be (x, the label before)
    takes_masked: ClassVar[bool] = False  # True if each token must be (x, shown label, is query)
    # True if the model is called with `lengths`, int `[B]`: the number of tokens in use of each
    # prompt. A model that is not causal needs them to leave out padding.
    takes_lengths: ClassVar[bool] = False
    # True if the model is called with `examples`, int `[B]`: the number of examples of each prompt,
    # which are its first tokens and all that a token sees.
    takes_examples: ClassVar[bool] = False
    # True if inputs may be rows of a table without an embedder, with NaN for missing values.
    takes_rows: ClassVar[bool] = False

    layers: int = 12
    """Number of layers."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation; parameters, statistics and the loss stay float32."""
    embedder: str | None = None
    """Module that turns an input into features, by its name in icl.layers.EMBEDDERS; None to use
    vectors as features."""
    embedding_width: int = 64
    """Number of features of an embedded input or label."""
    embed_labels: bool = False
    """Show a class by a row of a learned table with embedding_width features, and not by a one-hot
    vector; for tasks with many classes."""

    def __post_init__(self) -> None:
        # Bounded because each layer adds to the compile time.
        check_ranges("model", self, layers=Range(1, 1000), embedding_width=SIZE)

    @abstractmethod
    def activations(self, in_width: int) -> int:
        """Number of values a token in the largest activation of a layer."""

    def state_size(self, in_width: int, tokens: int, outputs: int | None = None) -> int | None:
        """Number of numbers through which earlier tokens can act on the last prediction.

        This is the accessible state of Kirsch et al. 2022 (arXiv 2212.04458, section 4). None if
        the model does not tell; arguments as for `build`.
        """
        return None

    @property
    def passes(self) -> int:
        """Number of passes through the layers whose activations a gradient holds at once."""
        return 1

    @abstractmethod
    def build(
        self, in_width: int, tokens: int, *, outputs: int | None = None, rngs: nnx.Rngs
    ) -> Model:
        """The model with initial parameters.

        Args:
          in_width: number of features of a token.
          tokens: number of tokens of a prompt, at most.
          outputs: number of outputs at each token; None for a scalar without an axis.
          rngs: `nnx.Rngs` with the streams `params` and `dropout`.

        Raises:
          ValueError: the settings do not fit prompts of this size.
        """

    @abstractmethod
    def flops_by_part(self, in_width: int, tokens: int, batch: int) -> dict[str, float]:
        """Floating-point operations of a training step by part; see `icl.models.flops`."""


def uniform(fan_in: int) -> dict[str, Any]:
    """PyTorch's default initialisation of linear layers, used for read-in and read-out."""
    bound = fan_in**-0.5
    init = lambda key, shape, dtype, out_sharding=None: jax.random.uniform(
        key, shape, dtype, -bound, bound
    )
    return dict(kernel_init=init, bias_init=init)

"""A GPT-2-style pre-norm transformer (Radford et al. 2019) over continuous tokens.

Sizes, initial weights, read-in and read-out follow Garg et al. 2022 (appendix A.1).
"""

import dataclasses
from typing import Any, ClassVar, Literal

import jax
import jax.numpy as jnp
from flax import nnx

from ..layers.linear import linear_dot_general
from ..layers.mixers import MIXERS
from ..layers.norm import NORMS
from ..layers.taps import tap
from ..ranges import FINITE, POSITIVE, SIZE, Range, check_ranges
from .base import HeadWeights, Model, ModelConfig, uniform

RATIO = Range(1.0, FINITE.high)


@dataclasses.dataclass(frozen=True)
class TransformerConfig(ModelConfig):
    """Settings of the model. `XS`, `SMALL` and `STANDARD` are the sizes of Garg et al."""

    title: ClassVar[str] = "transformer"

    layers: int = 12
    """Number of blocks."""
    heads: int = 8
    """Number of attention heads in a block."""
    width: int = 256
    """Number of features of the residual stream."""
    max_tokens: int | None = None
    """Number of learned positions; None for the number of tokens in a prompt of the task.
    Without effect if position_encoding is not learned."""
    mixer: str = "attention"
    """Token mixer, by its name in icl.layers.MIXERS."""
    dtype: Literal["float32", "bfloat16"] = "float32"
    """Dtype of the computation; parameters, statistics and the loss stay float32."""
    end_bias: bool = True
    """Use biases in read-in and read-out; Raventós et al. 2023 use none."""
    position_encoding: Literal["learned", "sinusoidal", "rotary", "none"] = "learned"
    """How tokens know their positions: a learned vector, or fixed sines and cosines (Vaswani et al.
    2017), are added to each token, each attention head rotates queries and keys (Su et al. 2021),
    or not at all."""
    sinusoid_base: float = 10_000.0
    """Ratio of the longest to the shortest wavelength of sinusoidal positions, nearly; Chan et al.
    2022 use 30. Without effect if position_encoding is not sinusoidal."""
    qk_norm: bool = False
    """Normalise the queries and keys of each attention head, with learned scales."""
    norm: Literal["layer", "rms", "none"] = "layer"
    """Layer normalisation, RMS normalisation (Zhang and Sennrich 2019), or none (Reddy 2023)."""
    bidirectional: bool = False
    """Let each token see the whole prompt, in layouts that hide the labels of queries."""
    examples_only: bool = False
    """Let each token see the examples and no query (Müller et al. 2022), in the layout masked."""
    smeared_keys: bool = False
    """Let each attention head mix the key of a token with that of the token before (Olsson et al.
    2022)."""
    mlp: bool = True
    """Give each block an MLP; without, the model is attention-only (Elhage et al. 2021)."""
    readout_layers: int = 0
    """Number of hidden layers of the read-out, each a linear map and a ReLU (Reddy 2023)."""
    init_std: float = 0.02
    """Standard deviation of initial weights of blocks, and of learned positions; GPT-2's."""
    zero_outputs: bool = False
    """Start with blocks that add nothing: their output weights are 0."""

    def __post_init__(self) -> None:
        super().__post_init__()
        positions = Range(1, 2 * SIZE.high)  # two tokens a point
        check_ranges(
            "model", self, heads=SIZE, width=SIZE, max_tokens=positions, sinusoid_base=RATIO,
            readout_layers=Range(0, 1000), init_std=POSITIVE,
        )  # fmt: skip
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} cannot be split into {self.heads} heads")
        if self.position_encoding == "sinusoidal" and self.width % 2:
            raise ValueError(
                f"a width of {self.width} cannot be split into sines and cosines: set model.width "
                'to an even number, or model.position_encoding to "learned"'
            )
        if self.mixer not in MIXERS:
            raise ValueError(
                f"no mixer called {self.mixer!r}; there are {', '.join(MIXERS)}. A mixer of your "
                "own: import the module that registers it first; on the command line: "
                "icl --import MODULE ..."
            )
        for option in set(self.mixer_options) - set(getattr(MIXERS[self.mixer], "options", ())):
            setting = {
                "rotary": 'position_encoding to "learned"',
                "qk_norm": "qk_norm to False",
                "bidirectional": "bidirectional to False, and model.examples_only too",
                "smeared_keys": "smeared_keys to False",
            }
            raise ValueError(
                f"the mixer {self.mixer} has no option {option}: set model.{setting[option]}"
            )

    @property
    def causal(self) -> bool:
        return not (self.bidirectional or self.examples_only)

    @property
    def takes_examples(self) -> bool:
        return self.examples_only

    @property
    def takes_masked(self) -> bool:
        return self.examples_only

    @property
    def mixer_options(self) -> dict[str, bool]:
        """The options of the mixer that are in use."""
        options = dict(
            qk_norm=self.qk_norm,
            rotary=self.position_encoding == "rotary",
            bidirectional=not self.causal,
            smeared_keys=self.smeared_keys,
        )
        return {name: value for name, value in options.items() if value}

    def state_size(self, in_width: int, tokens: int, outputs: int | None = None) -> int | None:
        state = getattr(MIXERS[self.mixer], "state_size", None)
        return None if state is None else self.layers * state(self.width, self.heads, tokens)

    def build(
        self, in_width: int, tokens: int, *, outputs: int | None = None, rngs: nnx.Rngs
    ) -> "Transformer":
        return Transformer(in_width, tokens, self, outputs=outputs, rngs=rngs)

    def activations(self, in_width: int) -> int:
        return 4 * self.width

    def flops_by_part(self, in_width: int, tokens: int, batch: int) -> dict[str, float]:
        total = batch * tokens
        square = self.layers * self.width**2
        return {
            "ends": 6.0 * (in_width + 1 + self.readout_layers * self.width) * self.width * total,
            "projections": 6.0 * 4 * square * total,
            "mlp": 6.0 * 8 * square * total if self.mlp else 0.0,
            "attention": 12.0 * self.layers * self.width * tokens * total,
        }


XS = TransformerConfig(layers=3, heads=2, width=64, max_tokens=101)
SMALL = TransformerConfig(layers=6, heads=4, width=128, max_tokens=101)
STANDARD = TransformerConfig(layers=12, heads=8, width=256, max_tokens=101)


class Block(nnx.Module):
    """x + mixer(norm(x)), then x + mlp(norm(x)) with a GELU MLP of 4 * width hidden units.

    A block without an MLP is x + mixer(norm(x)).
    """

    def __init__(self, config: TransformerConfig, *, rngs: nnx.Rngs):
        dtype = jnp.dtype(config.dtype)
        # GPT-2 scales initial output weights by 1 / sqrt(number of residual additions).
        out_init = nnx.initializers.normal(config.init_std / (2 * config.layers) ** 0.5)
        if config.zero_outputs:
            out_init = nnx.initializers.zeros
        norm = NORMS[config.norm]
        kernel_init = nnx.initializers.normal(config.init_std)
        options: dict[str, Any] = dict(dtype=dtype, dot_general=linear_dot_general, rngs=rngs)
        self.mixer_norm = norm(config.width)
        self.mixer = MIXERS[config.mixer](
            config.width,
            config.heads,
            dtype=dtype,
            kernel_init=kernel_init,
            out_init=out_init,
            rngs=rngs,
            **config.mixer_options,
        )
        self.has_mlp = config.mlp
        if not config.mlp:
            return
        self.mlp_norm = norm(config.width)
        self.up = nnx.Linear(config.width, 4 * config.width, kernel_init=kernel_init, **options)
        self.down = nnx.Linear(4 * config.width, config.width, kernel_init=out_init, **options)

    def __call__(self, x: jax.Array, read: slice = slice(None), **seen: jax.Array) -> jax.Array:
        """`seen` holds the arguments `mask` and `positions` of the mixer, if it takes them."""
        x = x[:, read] + tap("mixer", self.mixer(self.mixer_norm(x), read, **seen))
        if not self.has_mlp:
            return x
        hidden = jax.nn.gelu(self.up(self.mlp_norm(x)), approximate=True)
        return x + tap("mlp", self.down(hidden))


class Transformer(Model):
    """Maps prompts to one prediction a token.

    Args:
      in_width: number of features of a token.
      tokens: number of tokens of a prompt, at most.
      config: settings of the model.
      outputs: number of outputs at each token; None for a scalar.
      rngs: `nnx.Rngs` with a `params` stream.
    """

    def __init__(
        self,
        in_width: int,
        tokens: int,
        config: TransformerConfig,
        *,
        outputs: int | None = None,
        rngs: nnx.Rngs,
    ):
        positions = config.max_tokens or tokens
        learned = config.position_encoding == "learned"
        if learned and positions < tokens:
            raise ValueError(
                f"prompts of {tokens} tokens do not fit {positions} learned positions; "
                "raise max_tokens, or leave it None"
            )
        self.dtype = jnp.dtype(config.dtype)
        ends: dict[str, Any] = dict(use_bias=config.end_bias, rngs=rngs)
        self.read_in = nnx.Linear(in_width, config.width, **ends, **uniform(in_width))
        self.rotary = config.position_encoding == "rotary"
        sinusoidal = config.position_encoding == "sinusoidal"
        self.sinusoid_base = config.sinusoid_base if sinusoidal else None
        table = lambda: (
            config.init_std * jax.random.normal(rngs.params(), (positions, config.width))
        )
        self.positions = nnx.data(nnx.Param(table()) if learned else None)
        self.blocks = nnx.List([Block(config, rngs=rngs) for _ in range(config.layers)])
        self.norm = NORMS[config.norm](config.width)
        hidden = lambda: nnx.Linear(config.width, config.width, rngs=rngs, **uniform(config.width))
        self.hidden = nnx.List([hidden() for _ in range(config.readout_layers)])
        self.scalar = outputs is None
        self.read_out = nnx.Linear(config.width, outputs or 1, **ends, **uniform(config.width))

    @property
    def takes_mask(self) -> bool:
        """Whether every mixer takes a mask of the tokens that each token sees."""
        return all(getattr(block.mixer, "takes_mask", False) for block in self.blocks)

    def __call__(
        self,
        tokens: jax.Array,
        read: slice = slice(None),
        *,
        positions: jax.Array | None = None,
        mask: jax.Array | None = None,
        examples: jax.Array | None = None,
    ) -> jax.Array:
        """Predictions after each token that `read` selects.

        Args:
          tokens: `[B, T, in_width]`.
          read: the positions to return predictions for; the layers after the last attention run
            only on these.
          positions: int `[T]`, the position of each token; 0, 1, 2, ... if None.
          mask: bool `[T, T]`, whether a token (row) sees another (column); if None, causal or
            bidirectional as the config says. Only if `takes_mask`.
          examples: int `[B]`, number of first tokens that each token sees, if the config says
            `examples_only`.

        Returns:
          float32 `[B, number of positions read]`, with a last axis `outputs` if it is not None.

        Raises:
          ValueError: more tokens than learned positions, or a mask for a mixer that takes none.
        """
        seen = self._seen(positions, mask)
        if examples is not None:
            seen["examples"] = examples
        return self.predict(self.transform(self.embed(tokens, positions), read, **seen))

    def _seen(self, positions: jax.Array | None, mask: jax.Array | None) -> dict[str, jax.Array]:
        """The arguments of `transform` for the mixers; custom mixers may take none."""
        positions = positions if self.rotary else None
        given = {"mask": mask, "positions": positions}
        return {name: value for name, value in given.items() if value is not None}

    def embed(self, tokens: jax.Array, positions: jax.Array | None = None) -> jax.Array:
        """The input of the first block, `[B, T, width]`; arguments and errors as for a call."""
        length = tokens.shape[1]
        if self.sinusoid_base is not None:
            x = self.read_in(tokens)
            at = jnp.arange(length) if positions is None else positions
            return (x + sinusoids(at, x.shape[-1], self.sinusoid_base)[None]).astype(self.dtype)
        if self.positions is None:
            return self.read_in(tokens).astype(self.dtype)
        if positions is None and length > self.positions.shape[0]:
            raise ValueError(
                f"a prompt of {length} tokens is longer than the {self.positions.shape[0]} "
                "positions this model has learned"
            )
        at = slice(length) if positions is None else positions
        return (self.read_in(tokens) + self.positions[at][None]).astype(self.dtype)

    def transform(self, x: jax.Array, read: slice = slice(None), **seen: jax.Array) -> jax.Array:
        """The normalised output of the last block at `read`, `[B, positions read, width]`.

        Args:
          x: the input of the first block, from `embed`.
          read: the positions to return.
          **seen: `mask`, `positions` and `examples` for the mixers.
        """
        last = len(self.blocks) - 1
        x = tap("residual", x)
        for index, block in enumerate(self.blocks):
            x = tap("residual", block(x, read if index == last else slice(None), **seen))
        return self.norm(x)

    def predict(self, x: jax.Array) -> jax.Array:
        """Predictions, float32 `[..., (outputs)]`, from the result of `transform`."""
        x = x.astype(jnp.float32)
        for layer in self.hidden:
            x = jax.nn.relu(layer(x))
        predictions = self.read_out(x)
        return predictions[..., 0] if self.scalar else predictions

    def heads(self) -> list[HeadWeights]:
        return [_head_weights(block.mixer) for block in self.blocks]

    def head_inputs(self, tokens: jax.Array) -> list[jax.Array]:
        return self._mixer_inputs(self.embed(tokens))

    def _mixer_inputs(self, x: jax.Array) -> list[jax.Array]:
        inputs = []
        for block in self.blocks:
            inputs.append(block.mixer_norm(x))
            x = block(x)
        return inputs


def sinusoids(positions: jax.Array, width: int, base: float) -> jax.Array:
    """Sines of the positions, then cosines (Vaswani et al. 2017, arXiv 1706.03762, section 3.5).

    Args:
      positions: int `[T]`.
      width: number W of features, even.
      base: frequency i of W / 2 is `base ** (-2 * i / W)`.

    Returns:
      float32 `[T, W]`.
    """
    frequencies = base ** (-jnp.arange(0, width, 2, dtype=jnp.float32) / width)
    angles = jnp.asarray(positions, jnp.float32)[:, None] * frequencies[None]
    return jnp.concatenate([jnp.sin(angles), jnp.cos(angles)], axis=1)


def _head_weights(mixer: Any) -> HeadWeights:
    """Head weights of a mixer with one projection `qkv` to query, key and value."""
    if not hasattr(mixer, "qkv"):
        raise NotImplementedError(
            f"the mixer {type(mixer).__name__} has no projection to query, key and value (qkv)"
        )
    width, heads = mixer.out.kernel.shape[1], mixer.heads
    query, key, value = mixer.qkv.kernel[...].reshape(width, 3, heads, -1).transpose(1, 2, 0, 3)
    output = mixer.out.kernel[...].reshape(heads, -1, width)
    query_bias, key_bias, _ = mixer.qkv.bias[...].reshape(3, heads, -1)
    return HeadWeights(query, key, value, output, query_bias, key_bias)


def parameter_count(model: nnx.Module) -> int:
    """Number of learned parameters."""
    return sum(leaf.size for leaf in jax.tree.leaves(nnx.state(model, nnx.Param)))

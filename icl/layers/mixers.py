"""Token mixers: the part of a transformer block that moves information between tokens.

A mixer is built as `Mixer(width, heads, dtype=..., kernel_init=..., out_init=..., rngs=...)`. It
maps `[B, T, width]` to `[B, positions read, width]`, for the positions that the slice `read`
selects, causally unless it is bidirectional. A mixer whose attribute `takes_mask` is True also
takes `mask`, bool `[T, T]` (query, key), in place of its own mask. `register_mixer` gives a mixer
of your own a name; a subclass of `Mixer` needs only `mix`.

The attribute `options` of a mixer names the optional arguments `qk_norm`, `rotary`,
`bidirectional` and `smeared_keys` with which it can be built. With `rotary` a mixer also takes
`positions`, int `[T]`; 0, 1, 2, ... if None. With `bidirectional` it also takes `examples`, int
`[B]`, the number of first tokens that each token sees; all if None.
`state_size(width, heads, tokens)` is the number of numbers that a mixer keeps of earlier tokens.
"""

from collections.abc import Callable
from typing import Any, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx

from ..kernels import (
    attention_weights,
    delta_rule,
    linear_attention,
    packed_dot_product_attention,
)
from ..registry import check_name, enter
from .linear import linear_dot_general
from .mesa import mesa_attention
from .taps import tap_heads

M = TypeVar("M", bound=Callable[..., Any])
Initializer = jax.nn.initializers.Initializer
MIN_REGULARIZATION = 1e-3  # keeps the Cholesky factor of many unit keys finite in float32


class Mixer(nnx.Module):
    """A mixer with a joint projection to query, key and value, and an output projection.

    A subclass defines `mix`, which must be causal; `pattern` too, if an analysis reads the weights.

    Args:
      width: number of features of a token.
      heads: number N of heads.
      dtype: dtype of the computation; parameters are float32.
      kernel_init: initial weights of the projection to query, key and value.
      out_init: initial weights of the output projection.
      rngs: `nnx.Rngs` with a `params` stream.

    Raises:
      ValueError: the width is not a multiple of the number of heads.
    """

    takes_mask = False
    options: tuple[str, ...] = ()

    @staticmethod
    def state_size(width: int, heads: int, tokens: int) -> int:
        """Size of the state; one matrix of each head unless overridden."""
        return width**2 // heads

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        dtype: Any = jnp.float32,
        kernel_init: Initializer,
        out_init: Initializer,
        rngs: nnx.Rngs,
    ):
        if width % heads:
            raise ValueError(f"a width of {width} cannot be split into {heads} heads")
        self.heads = heads
        options = dict(dtype=dtype, dot_general=linear_dot_general, rngs=rngs)
        self.qkv = nnx.Linear(width, 3 * width, kernel_init=kernel_init, **options)
        self.out = nnx.Linear(width, width, kernel_init=out_init, **options)

    def __call__(
        self, x: jax.Array, read: slice = slice(None), mask: jax.Array | None = None, **options: Any
    ) -> jax.Array:
        if mask is not None and not self.takes_mask:
            raise ValueError(f"{type(self).__name__} takes no mask")
        batch, length, width = x.shape
        qkv = self.qkv(x).reshape(batch, length, 3, self.heads, width // self.heads)
        if mask is not None:
            options["mask"] = mask
        mixed = self.mix(x, qkv, **options)
        mixed = tap_heads(mixed, lambda: qkv[:, :, 2], lambda: self.pattern(x, qkv, **options))
        return self.out(mixed[:, read].reshape(batch, -1, width))

    def mix(self, x: jax.Array, qkv: jax.Array, **options: Any) -> jax.Array:
        """Mixed values `[B, T, N, H]` of tokens `[B, T, width]` with qkv `[B, T, 3, N, H]`."""
        raise NotImplementedError

    def pattern(self, x: jax.Array, qkv: jax.Array, **options: Any) -> jax.Array:
        """The weights `[B, N, T, T]` with which queries (rows) sum the values of `mix`."""
        raise NotImplementedError


class _Recurrence(Mixer):
    """A mixer whose queries and keys have length 1, and which is linear in the values."""

    def mix(self, x: jax.Array, qkv: jax.Array, **options: Any) -> jax.Array:
        return self.recur(x, _unit(qkv[:, :, 0]), _unit(qkv[:, :, 1]), qkv[:, :, 2])

    def recur(self, x: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        """Mixed values `[B, T, N, V]` of query and key `[B, T, N, H]` and value `[B, T, N, V]`."""
        raise NotImplementedError

    def pattern(self, x: jax.Array, qkv: jax.Array, **options: Any) -> jax.Array:
        batch, length, _, heads, _ = qkv.shape
        identity = jnp.eye(length, dtype=qkv.dtype)[None, :, None]
        value = jnp.broadcast_to(identity, (batch, length, heads, length))
        mixed = self.recur(x, _unit(qkv[:, :, 0]), _unit(qkv[:, :, 1]), value)
        return jnp.moveaxis(mixed, 1, 2).astype(jnp.float32)


class SoftmaxAttention(Mixer):
    """Softmax attention (Vaswani et al. 2017), causal unless it is bidirectional.

    Args:
      qk_norm: normalise each query and key to root mean square 1, with learned scales (Dehghani et
        al. 2023, section 2).
      rotary: rotate queries and keys by their positions (Su et al. 2021, section 3.2.2).
      bidirectional: each token sees all tokens.
      smeared_keys: each head mixes the key of a token with that of the token before, in learned
        shares (Olsson et al. 2022, "In-context learning and induction heads", argument 2). Then the
        mixer takes no mask.
    """

    options = ("qk_norm", "rotary", "bidirectional", "smeared_keys")

    @staticmethod
    def state_size(width: int, heads: int, tokens: int) -> int:
        return 2 * width * tokens

    def __init__(
        self,
        width: int,
        heads: int,
        *,
        qk_norm: bool = False,
        rotary: bool = False,
        bidirectional: bool = False,
        smeared_keys: bool = False,
        **options: Any,
    ):
        super().__init__(width, heads, **options)
        if rotary and width // heads % 2:
            raise ValueError(
                f"rotary positions need heads of an even width; {heads} heads of a width of "
                f"{width} have {width // heads}"
            )
        scales = jnp.ones((2, heads, width // heads))
        self.qk_scale = nnx.data(nnx.Param(scales) if qk_norm else None)
        self.rotary = rotary
        self.bidirectional = bidirectional
        self.smear = nnx.data(nnx.Param(jnp.zeros(heads)) if smeared_keys else None)
        # The token before a token of a masked prompt need not be the one at its left.
        self.takes_mask = not smeared_keys

    def mix(
        self,
        x: jax.Array,
        qkv: jax.Array,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        examples: jax.Array | None = None,
    ) -> jax.Array:
        if self.rotary or self.qk_scale is not None or self.smear is not None:
            qkv = jnp.concatenate([self._scored(qkv[:, :, :2], positions), qkv[:, :, 2:]], axis=2)
        return packed_dot_product_attention(
            qkv, mask=mask, is_causal=self._is_causal(mask), key_value_seq_lengths=examples
        )

    def pattern(
        self,
        x: jax.Array,
        qkv: jax.Array,
        mask: jax.Array | None = None,
        positions: jax.Array | None = None,
        examples: jax.Array | None = None,
    ) -> jax.Array:
        query, key = jnp.moveaxis(self._scored(qkv[:, :, :2], positions), 2, 0)
        return attention_weights(
            query,
            key,
            mask=mask,
            is_causal=self._is_causal(mask),
            key_value_seq_lengths=examples,
        )

    def _is_causal(self, mask: jax.Array | None) -> bool:
        return mask is None and not self.bidirectional

    def _scored(self, qk: jax.Array, positions: jax.Array | None) -> jax.Array:
        """The queries and keys `[B, T, 2, N, H]` that form scores."""
        if self.smear is not None:
            qk = jnp.stack([qk[:, :, 0], _smeared(qk[:, :, 1], self.smear[...])], axis=2)
        if self.qk_scale is not None:
            scale = self.qk_scale[...] * qk.shape[-1] ** 0.5
            qk = _unit(qk) * scale.astype(qk.dtype)[None, None]
        if not self.rotary:
            return qk
        return rotated(qk, jnp.arange(qk.shape[1]) if positions is None else positions)


class LinearAttention(_Recurrence):
    """Linear attention whose state decays (Mamba-2, Dao and Gu 2024, section 7).

    Query and key are normalised to length 1. A sigmoid gate of each head and token is the factor on
    the state. Initially the factors range over heads from 1/2 to nearly 1, so that some heads see
    mostly the last tokens and others all tokens. Without decay and by Adam, `garg/linear-xs` had
    learned next to nothing after 5,000 steps, possibly because no head could single out the
    previous token.
    """

    def __init__(self, width: int, heads: int, **options: Any):
        super().__init__(width, heads, **options)
        gates = lambda key, shape, dtype, out_sharding=None: jnp.linspace(
            0, 4, shape[0], dtype=dtype
        )
        self.gate = _head_scalars(width, heads, options, bias_init=gates)

    def recur(self, x: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        log_decay = jax.nn.log_sigmoid(self.gate(x).astype(jnp.float32))
        return linear_attention(query, key, value, log_decay=log_decay, is_causal=True, scale=1.0)


class DeltaRule(_Recurrence):
    """Online gradient descent on a map from keys to values (DeltaNet, Yang et al. 2024, section 3).

    Query and key are normalised to length 1. The learning rate of each head and token is a sigmoid
    of a projection of the token.
    """

    def __init__(self, width: int, heads: int, **options: Any):
        super().__init__(width, heads, **options)
        self.beta = _head_scalars(width, heads, options)

    def recur(self, x: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        beta = jax.nn.sigmoid(self.beta(x).astype(jnp.float32))
        return delta_rule(query, key, value, beta, scale=1.0)


class Mesa(_Recurrence):
    """Ridge regression from keys to values (the mesa-layer, von Oswald et al. 2023).

    Query and key are normalised to length 1. Each head learns its regularization, initially 1.
    """

    @staticmethod
    def state_size(width: int, heads: int, tokens: int) -> int:
        return 2 * width**2 // heads

    def __init__(self, width: int, heads: int, **options: Any):
        super().__init__(width, heads, **options)
        self.log_regularization = nnx.Param(jnp.zeros(heads))

    def recur(self, x: jax.Array, query: jax.Array, key: jax.Array, value: jax.Array) -> jax.Array:
        grown = jnp.exp(self.log_regularization[...])
        regularization = MIN_REGULARIZATION + (1 - MIN_REGULARIZATION) * grown
        return mesa_attention(query, key, value, regularization)


def rotated(x: jax.Array, positions: jax.Array) -> jax.Array:
    """Rotates pairs of features by angles proportional to the position (Su et al. 2021).

    Feature i of the first half and feature i of the second half are a pair, with the angle
    `position * 10000 ** (-2 i / H)`. So the product of a query and a key depends on the difference
    of their positions alone.

    Args:
      x: `[B, T, ..., H]`, with H even.
      positions: `[T]`.
    """
    half = x.shape[-1] // 2
    rates = 10_000.0 ** (-jnp.arange(half, dtype=jnp.float32) / half)
    angles = jnp.outer(positions.astype(jnp.float32), rates)
    angles = angles.reshape(1, len(positions), *[1] * (x.ndim - 3), half)
    cos, sin = jnp.cos(angles), jnp.sin(angles)
    first, second = jnp.split(x.astype(jnp.float32), 2, axis=-1)
    both = [first * cos - second * sin, first * sin + second * cos]
    return jnp.concatenate(both, axis=-1).astype(x.dtype)


def _smeared(key: jax.Array, logits: jax.Array) -> jax.Array:
    """Keys `[B, T, N, H]`, each mixed with the key before; the first is kept."""
    before = jnp.concatenate([key[:, :1], key[:, :-1]], axis=1)
    own = jax.nn.sigmoid(logits).astype(key.dtype)[None, None, :, None]
    return own * key + (1 - own) * before


def _head_scalars(width: int, heads: int, options: dict[str, Any], **more: Any) -> nnx.Linear:
    """A projection to one number for each head, built with the options of a mixer."""
    shared = {name: options[name] for name in ("dtype", "kernel_init", "rngs") if name in options}
    return nnx.Linear(width, heads, dot_general=linear_dot_general, **shared, **more)


def _unit(x: jax.Array) -> jax.Array:
    """Normalises the features `[..., H]` of each head to length 1."""
    wide = x.astype(jnp.float32)
    return (wide * jax.lax.rsqrt((wide**2).sum(axis=-1, keepdims=True) + 1e-6)).astype(x.dtype)


MIXERS: dict[str, Callable[..., Any]] = {
    "attention": SoftmaxAttention,
    "linear_attention": LinearAttention,
    "delta_rule": DeltaRule,
    "mesa": Mesa,
}


def register_mixer(name: str) -> Callable[[M], M]:
    """A decorator that registers a token mixer, for `model.mixer`, config.json and commands.

    The mixer is built and called as the module's docstring says; a subclass of `Mixer` is. A run is
    resumed and evaluated in a process that has registered its mixer.

    Raises:
      TypeError: the decorated object cannot be called.
      ValueError: the name is empty, or already names another mixer.
    """
    check_name("mixer", name)

    def decorate(mixer: M) -> M:
        if not callable(mixer):
            raise TypeError(f"{mixer!r} must be a class or a function that makes a mixer")
        enter(MIXERS, name, mixer)
        return mixer

    return decorate

"""Alternating attention over the columns and the rows of a table.

Each number of a table has an embedding, which sees the other numbers of its row and then the other
numbers of its column: TabPFN v2 (Hollmann et al. 2025, "Accurate predictions on small data with a
tabular foundation model", Nature 637, section "Architecture") in the small form of nanoTabPFN
(Pfefferle et al. 2025, arXiv 2511.03634, section 3). In place of their post-norm, layers are
pre-norm.
"""

import dataclasses
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from flax import nnx

from ..kernels import dot_product_attention, packed_dot_product_attention
from ..layers.linear import linear_dot_general
from ..layers.norm import LayerNorm
from ..ranges import SIZE, Range, check_ranges
from .base import Model, ModelConfig, uniform

EVERY = slice(None)
PARTS = 3  # residual additions of a layer


@dataclasses.dataclass(frozen=True)
class CellsConfig(ModelConfig):
    """Settings of the model; the defaults are the sizes of nanoTabPFN. It needs the layout masked.

    Parameters do not depend on the number of columns.
    """

    title: ClassVar[str] = "cells"
    causal: ClassVar[bool] = False
    takes_masked: ClassVar[bool] = True
    takes_examples: ClassVar[bool] = True
    takes_rows: ClassVar[bool] = True

    layers: int = 3
    """Number of layers, each with attention over columns, attention over rows and an MLP."""
    heads: int = 4
    """Number of heads of each attention."""
    width: int = 96
    """Number of features of a cell."""
    mlp_ratio: int = 2
    """Number of hidden units of the MLP for each feature of a cell."""
    columns: int = 10
    """Number of columns of a table, that of the task."""
    group: int = 1
    """Number of columns in a cell; TabPFN v2 uses 2. With 1 the order of columns is without effect;
    with more the cost is lower."""

    def __post_init__(self) -> None:
        super().__post_init__()
        ratio = Range(1, 1000)
        sizes = dict(heads=SIZE, width=SIZE, mlp_ratio=ratio, columns=SIZE, group=SIZE)
        check_ranges("model", self, **sizes)
        if self.width % self.heads:
            raise ValueError(f"a width of {self.width} cannot be split into {self.heads} heads")
        if self.columns % self.group:
            raise ValueError(
                f"{self.columns} columns cannot be split into groups of {self.group}: set "
                "model.group to a divisor of model.columns"
            )
        if self.embedder is not None or self.embed_labels:
            raise ValueError(
                f"the model {self.title} embeds inputs and labels itself: set model.embedder to "
                "None and model.embed_labels to False"
            )

    @property
    def cells(self) -> int:
        """Number of cells of a row, with that of the label."""
        return self.columns // self.group + 1

    def activations(self, in_width: int) -> int:
        return self.cells * max(3, self.mlp_ratio) * self.width

    def state_size(self, in_width: int, tokens: int, outputs: int | None = None) -> int:
        # Keys and values of the rows; in the last layer those of the labels.
        return 2 * self.width * tokens * ((self.layers - 1) * self.cells + 1)

    def build(
        self, in_width: int, tokens: int, *, outputs: int | None = None, rngs: nnx.Rngs
    ) -> "Cells":
        return Cells(in_width, self, outputs=outputs, rngs=rngs)

    def flops_by_part(self, in_width: int, tokens: int, batch: int) -> dict[str, float]:
        rows, square, cells = batch * tokens, self.width**2, self.cells
        # By layer: the cells that others see, and the cells whose results are used. The labels
        # alone are read, so that they are all that the last layer computes.
        layers = [(cells, cells)] * (self.layers - 1) + [(cells, 1)]
        labels = in_width - self.columns - 1
        outputs = labels  # a label has as many features as the prediction has numbers
        used = sum(asked for _, asked in layers)
        projections = sum(2 * seen + 2 * asked + 4 * asked for seen, asked in layers)
        return {
            "ends": 6.0 * (2 * self.columns + labels + outputs) * self.width * rows,
            "projections": 6.0 * projections * square * rows,
            "mlp": 6.0 * 2 * self.mlp_ratio * used * square * rows,
            "column attention": 12.0 * self.width * used * cells * rows,
            "row attention": 12.0 * self.width * used * tokens * rows,
        }


class Attention(nnx.Module):
    """Softmax attention (Vaswani et al. 2017) of tokens to the first tokens of their sequence.

    Args:
      width: number of features of a token.
      heads: number of heads.
      out_init: initialiser of the output weights.
      dtype: dtype of the computation.
      rngs: `nnx.Rngs` with a `params` stream.
    """

    def __init__(self, width: int, heads: int, *, out_init: Any, dtype: Any, rngs: nnx.Rngs):
        options: dict[str, Any] = dict(dtype=dtype, dot_general=linear_dot_general, rngs=rngs)
        self.heads = heads
        self.qkv = nnx.Linear(width, 3 * width, **options)
        self.out = nnx.Linear(width, width, kernel_init=out_init, **options)

    def __call__(self, x: jax.Array, lengths: jax.Array, read: slice = EVERY) -> jax.Array:
        """The results `[B, tokens read, width]` of the tokens that `read` selects.

        Args:
          x: `[B, T, width]`.
          lengths: int `[B]`, the number of tokens that are seen; the first ones.
          read: the tokens whose results are returned.
        """
        count, length, width = x.shape
        split = lambda array, *parts: array.reshape(*array.shape[:2], *parts, self.heads, -1)
        if range(length)[read] == range(length):
            qkv = split(self.qkv(x), 3)
            mixed = packed_dot_product_attention(qkv, key_value_seq_lengths=lengths)
        else:
            query = split(self._project(x[:, read], 0, width))
            key_value = split(self._project(x, width, 3 * width), 2)
            key, value = key_value[:, :, 0], key_value[:, :, 1]
            mixed = dot_product_attention(query, key, value, key_value_seq_lengths=lengths)
        return self.out(mixed.reshape(count, -1, width))

    def _project(self, x: jax.Array, first: int, end: int) -> jax.Array:
        """The features `first` to `end` of `qkv`."""
        qkv: Any = self.qkv
        kernel, bias = (
            jnp.asarray(array[..., first:end], x.dtype) for array in (qkv.kernel, qkv.bias)
        )
        product = linear_dot_general(x, kernel, (((x.ndim - 1,), (0,)), ((), ())))
        return product + jnp.broadcast_to(bias, product.shape)


class Layer(nnx.Module):
    """x + columns(norm(x)), then x + rows(norm(x)), then x + mlp(norm(x)), with a GELU MLP.

    Args:
      config: settings of the model.
      rngs: `nnx.Rngs` with a `params` stream.
    """

    def __init__(self, config: CellsConfig, *, rngs: nnx.Rngs):
        dtype, width = jnp.dtype(config.dtype), config.width
        # GPT-2 scales initial output weights by 1 / sqrt(number of residual additions).
        out_init = nnx.initializers.variance_scaling(
            1 / (PARTS * config.layers), "fan_in", "truncated_normal"
        )
        own: dict[str, Any] = dict(out_init=out_init, dtype=dtype, rngs=rngs)
        self.column_norm = LayerNorm(width)
        self.columns = Attention(width, config.heads, **own)
        self.row_norm = LayerNorm(width)
        self.rows = Attention(width, config.heads, **own)
        options: dict[str, Any] = dict(dtype=dtype, dot_general=linear_dot_general, rngs=rngs)
        hidden = config.mlp_ratio * width
        self.mlp_norm = LayerNorm(width)
        self.up = nnx.Linear(width, hidden, **options)
        self.down = nnx.Linear(hidden, width, kernel_init=out_init, **options)

    def __call__(
        self,
        x: jax.Array,
        used: jax.Array,
        examples: jax.Array,
        cells: slice = EVERY,
        read: slice = EVERY,
    ) -> jax.Array:
        """The cells after the layer, `[B, rows read, cells asked for, width]`.

        Args:
          x: `[B, rows, cells, width]`.
          used: int `[B]`, the number of cells of a row in use; the first ones.
          examples: int `[B]`, the number of rows that are examples; the first ones.
          cells: the cells to compute.
          read: the rows to compute.
        """
        batch, rows, _, width = x.shape
        flat = self.column_norm(x).reshape(batch * rows, -1, width)
        seen = self.columns(flat, jnp.repeat(used, rows), cells)
        x = x[:, :, cells] + seen.reshape(batch, rows, -1, width)
        count = x.shape[2]
        flat = self.row_norm(x).swapaxes(1, 2).reshape(batch * count, rows, width)
        seen = self.rows(flat, jnp.repeat(examples, count), read)
        x = x[:, read] + seen.reshape(batch, count, -1, width).swapaxes(1, 2)
        hidden = jax.nn.gelu(self.up(self.mlp_norm(x)), approximate=True)
        return x + self.down(hidden)


class Cells(Model):
    """Maps tables to one prediction a row, made from the row and the examples alone.

    A token is a row: its numbers, of which NaN is a missing one, its label, and whether it is a
    query. A cell has `group` columns or the label, for which rows that are not examples have a
    learned vector. Columns that are NaN in all examples are not seen. Examples are in any order,
    and rows that are neither example nor query may hold anything.

    Args:
      in_width: number of features of a token.
      config: settings of the model.
      outputs: number of outputs at each token; None for a scalar.
      rngs: `nnx.Rngs` with a `params` stream.

    Raises:
      ValueError: the tokens are not those of tables with `config.columns` columns.
    """

    def __init__(
        self, in_width: int, config: CellsConfig, *, outputs: int | None = None, rngs: nnx.Rngs
    ):
        labels, width = outputs or 1, config.width
        found = in_width - labels - 1
        if found != config.columns:
            raise ValueError(
                f"the model {config.title} has {config.columns} columns, and a token of this task "
                f"has {found} numbers beside the label and the mark of queries: set model.columns "
                f"to the number of columns of the task, and the layout to masked"
            )
        self.columns, self.group, self.scalar = config.columns, config.group, outputs is None
        self.dtype = jnp.dtype(config.dtype)
        self.cell = nnx.Linear(2 * config.group, width, rngs=rngs)
        self.label = nnx.Linear(labels, width, rngs=rngs)
        # As long as a class has at first.
        query = labels**-0.5 * jax.random.normal(rngs.params(), (width,))
        self.query = nnx.Param(query)
        self.layers = nnx.List([Layer(config, rngs=rngs) for _ in range(config.layers)])
        self.norm = LayerNorm(width)
        self.read_out = nnx.Linear(width, labels, rngs=rngs, **uniform(width))

    def __call__(
        self, tokens: jax.Array, read: slice = EVERY, *, examples: jax.Array | None = None
    ) -> jax.Array:
        """Predictions at each row that `read` selects.

        Args:
          tokens: `[B, rows, columns + label features + 1]`.
          read: the rows to return predictions for.
          examples: int `[B]`, the number of examples, which are the first rows; by default the rows
            that are not marked as queries.

        Returns:
          float32 `[B, number of rows read]`, with a last axis `outputs` if it is not None.
        """
        if examples is None:
            examples = (tokens[..., -1] <= 0).sum(axis=1)
        x, used = self._embed(tokens, examples)
        for layer in list(self.layers)[:-1]:
            x = layer(x, used, examples)
        x = self.layers[-1](x, used, examples, slice(0, 1), read)[:, :, 0]
        predictions = self.read_out(self.norm(x).astype(jnp.float32))
        return predictions[..., 0] if self.scalar else predictions

    def _embed(self, tokens: jax.Array, examples: jax.Array) -> tuple[jax.Array, jax.Array]:
        """The cells `[B, rows, cells, width]`, and how many are in use, int `[B]`.

        The label is the first cell, and cells in use come before those that are not.
        """
        batch, rows, _ = tokens.shape
        x, y = tokens[..., : self.columns], tokens[..., self.columns : -1]
        is_example = (jnp.arange(rows)[None] < examples[:, None])[..., None]
        missing = ~jnp.isfinite(x)  # infinity is only in rows whose results have no meaning
        in_use = (is_example & ~missing).any(axis=1)
        missing |= ~in_use[:, None]
        order = jnp.argsort(~in_use, axis=1, stable=True)[:, None]
        both = jnp.stack([jnp.where(missing, 0, x), missing.astype(x.dtype)], axis=-1)
        both = jnp.take_along_axis(both, order[..., None], axis=2)
        cells = self.cell(both.reshape(batch, rows, -1, 2 * self.group))
        shown = self.label(jnp.where(is_example, y, 0))
        hidden = jnp.broadcast_to(self.query[...], shown.shape)
        label = jnp.where(is_example, shown, hidden)
        x = jnp.concatenate([label[:, :, None], cells], axis=2).astype(self.dtype)
        return x, 1 + -(-in_use.sum(axis=1) // self.group)

"""What the attention heads of a learner compare and what they write.

The views of a head are those of RobvanGastel/meta-in-context-learning: the scores `K^T Q` on a
prompt, the product `W_K^T W_Q` behind the scores, and the product `P W_V = W_O W_V` behind the
output, whose eigenvalues show whether a head copies (Elhage et al. 2021, "A mathematical framework
for transformer circuits").
"""

import dataclasses
import os
import zipfile
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from ..evaluation.curves import draw_prompts
from ..models.base import HeadWeights
from ..report import WIDTH, Result, open_run, spread
from ..tasks.draws import stream
from ..training.config import Config
from ..training.learner import Learner, Params
from ..training.run import Run, RunError

MAX_ROWS = 12  # of the figure


@dataclasses.dataclass(frozen=True)
class Heads(Result):
    """Weights and scores of all heads of a run; all matrices have leading axes `[L, N]`.

    L is the number of layers, N that of heads. Weights act on the input of the heads, which in a
    transformer is the output of a layer norm; the scale of the norm is not part of the weights.
    Scores of query (row) and key (column) are dot products with biases, before the scale, the
    normalisation of the linear, delta-rule and mesa mixers, and any softmax, decay or correction.
    For a layer that is applied repeatedly they are the scores of its last application.

    Attributes:
      query, key: `[L, N, width, H]`.
      value: `[L, N, width, V]`.
      output: `[L, N, V, width]`.
      scores: of the first prompt, `[L, N, T, T]`.
      mean_scores: over the prompts, `[L, N, T, T]`.
      positional: the variance of the mean scores, relative to the variance of the scores over
        prompts and pairs of tokens, `[L, N]`; 1 if scores depend on positions alone. If the model
        is causal, over pairs whose key is not after the query.
      step: the training step of the parameters.
      prompts: number of prompts.
      causal: whether the model is causal.
      path: the run's folder.
    """

    query: np.ndarray
    key: np.ndarray
    value: np.ndarray
    output: np.ndarray
    scores: np.ndarray
    mean_scores: np.ndarray
    positional: np.ndarray
    step: int
    prompts: int
    causal: bool
    path: Path

    file = "heads"

    @property
    def key_query(self) -> np.ndarray:
        """`W_K^T W_Q`, `[L, N, width, width]`: a score without biases is `x_key . M x_query`."""
        return self.key @ np.swapaxes(self.query, -1, -2)

    @property
    def output_value(self) -> np.ndarray:
        """`W_O W_V`, `[L, N, width, width]`: a token x adds `M x` and a bias to the output."""
        return np.swapaxes(self.value @ self.output, -1, -2)

    @property
    def eigenvalues(self) -> np.ndarray:
        """Eigenvalues of `W_O W_V` that can differ from 0, complex `[L, N, V]`."""
        # A B and B A have equal nonzero eigenvalues; the smaller product is used.
        return np.linalg.eigvals((self.output @ self.value).astype(np.float64)).astype(complex)

    @property
    def copying(self) -> np.ndarray:
        """Copying score, `[L, N]`: sum of eigenvalues / sum of their sizes; NaN if all are 0."""
        sizes = np.abs(self.eigenvalues).sum(axis=-1)
        total = np.real(self.eigenvalues.sum(axis=-1))
        return np.where(sizes > 0, total / np.where(sizes > 0, sizes, 1), np.nan)

    def save(self) -> None:
        """Writes `heads.npz` in the run's folder: the attributes, and the eigenvalues."""
        arrays = {name: getattr(self, name) for name, _ in self._saved()}
        file = self.path / "heads.npz"
        temporary = file.with_name("heads.npz.tmp")
        with open(temporary, "wb") as handle:
            np.savez(handle, eigenvalues=self.eigenvalues, **arrays)
        os.replace(temporary, file)

    @classmethod
    def load(cls, where: Any, file: str | None = None) -> "Heads":
        path = Path(getattr(where, "path", where))
        found, again = path / f"{file or cls.file}.npz", cls.again.format(path=path)
        if not found.exists():
            raise RunError(f"{path} has no {found.name}; make it with: {again}")
        try:
            with np.load(found) as saved:
                data = {name: saved[name] for name in saved.files if name != "eigenvalues"}
            single = {name: data[name].item() for name in ("step", "prompts", "causal")}
            return cls(**data | single, path=path)
        except (OSError, ValueError, TypeError, LookupError, zipfile.BadZipFile) as error:
            raise RunError(
                f"{found} cannot be read: {error}; make it again with: {again}"
            ) from error

    def table(self) -> Table:
        """A row a head."""
        result = Table(
            title=f"attention heads ({self.path}, step {self.step})",
            caption=(
                "copying: sum of the eigenvalues of W_O W_V / sum of their sizes; largest: the "
                "size of the largest; symmetric: share of W_K^T W_Q's squared norm, 0.5 at "
                "random; positional: share of the scores' variance that is common to all prompts"
            ),
        )
        for name in ("layer", "head", "copying", "largest", "|W_O W_V|", "|W_K^T W_Q|"):
            result.add_column(name, justify="right")
        for name in ("symmetric", "positional"):
            result.add_column(name, justify="right")
        columns = (
            self.copying,
            np.abs(self.eigenvalues).max(axis=-1),
            _norm(self.output_value),
            _norm(self.key_query),
            symmetric_share(self.key_query),
            self.positional,
        )
        for layer, head in np.ndindex(self.copying.shape):
            cells = (_show(float(column[layer, head])) for column in columns)
            result.add_row(str(layer + 1), str(head + 1), *cells)
        return result

    def figure(self, plt: Any) -> Any:
        """Four views of each head, a row each; at most `MAX_ROWS` heads, evenly spaced."""
        layers, count = self.copying.shape
        chosen = [divmod(int(i), count) for i in spread(layers * count, MAX_ROWS)]
        seen = self.scores
        if self.causal:
            seen = np.where(np.tri(seen.shape[-1], dtype=bool), seen, np.nan)
        views = {
            "$K^T Q$ of a prompt\n(row: query)": seen,
            "$W_K^T W_Q$": self.key_query,
            "$W_O W_V$": self.output_value,
        }
        size = (WIDTH, 1.75 * len(chosen) + 0.5)
        figure, rows = plt.subplots(
            len(chosen), 4, figsize=size, squeeze=False, layout="constrained"
        )
        for axes, (layer, head) in zip(rows, chosen):
            for axis, matrices in zip(axes, views.values()):
                matrix = matrices[layer, head]
                limit = float(np.nanmax(np.abs(matrix))) or 1.0
                axis.imshow(matrix, cmap="RdBu_r", vmin=-limit, vmax=limit)
                axis.set_xlabel(f"red {limit:.2g}, blue −{limit:.2g}", fontsize=7)
            _complex_plane(axes[3], self.eigenvalues[layer, head])
            axes[0].set_ylabel(f"layer {layer + 1}, head {head + 1}")
            for axis in axes:
                axis.tick_params(labelsize=7)
                axis.grid(False)
        for axis, title in zip(rows[0], [*views, "eigenvalues\nof $W_O W_V$"]):
            axis.set_title(title, fontsize=8)
        which = (
            "" if len(chosen) == layers * count else f", {len(chosen)} of {layers * count} heads"
        )
        figure.suptitle(f"heads of {self.path.name}, step {self.step}{which}; white: 0")
        return figure


def has_heads(config: Config) -> bool:
    """Whether the model of a run with these settings has attention heads."""
    learner = Learner(config)
    try:
        jax.eval_shape(lambda key: learner.model(learner.init(key)).heads(), jax.random.key(0))
    except NotImplementedError:
        return False
    return True


def heads(run: Run | str | Path, *, prompts: int = 64, seed: int = 0) -> Heads:
    """Analyses a run's newest checkpoint; writes `heads.npz` and `heads.png` in its folder.

    Args:
      run: the run or its folder.
      prompts: number of prompts, of fresh tasks.
      seed: seed of the prompts.

    Returns:
      A `Heads`, which rich prints as a table.

    Raises:
      RunError: no run there, or it has no checkpoint.
      ValueError: fewer than one prompt.
      NotImplementedError: the model has no attention heads.
    """
    run, learner = open_run(run, prompts=prompts)
    step, params = run.variables()
    episodes = draw_prompts(learner.family, stream("heads", seed), prompts)
    tokens = learner.encode(params, episodes)
    causal = run.config.model.causal
    layers = jax.jit(lambda params: learner.model(params).heads())(params)
    weights = lambda name: np.stack([np.asarray(getattr(l, name), np.float32) for l in layers])
    first, mean, positional = _scores_of_prompts(learner, params, tokens, causal)
    return Heads(
        weights("query"), weights("key"), weights("value"), weights("output"),
        first, mean, positional, step, prompts, causal, run.path,
    ).written()  # fmt: skip


def scores(weights: HeadWeights, inputs: jax.Array) -> jax.Array:
    """Scores `[B, N, T, T]` (query, key) of a layer's inputs `[B, T, width]`, as in `Heads`.

    Computed in float32 with exact products.
    """

    def project(kernel: jax.Array, bias: jax.Array | float) -> jax.Array:
        projected = jnp.einsum("btw,nwh->btnh", inputs.astype(jnp.float32), kernel)
        return projected + jnp.broadcast_to(bias, projected.shape)

    with jax.default_matmul_precision("highest"):
        query = project(weights.query, weights.query_bias)
        key = project(weights.key, weights.key_bias)
        return jnp.einsum("bqnh,bknh->bnqk", query, key)


def symmetric_share(matrices: np.ndarray) -> np.ndarray:
    """|(M + M^T) / 2|^2 / |M|^2 for each matrix `[..., W, W]`; NaN for the zero matrix."""
    symmetric = (matrices + np.swapaxes(matrices, -1, -2)) / 2
    size = _norm(matrices)
    share = (_norm(symmetric) / np.where(size > 0, size, 1)) ** 2
    return np.where(size > 0, share, np.nan)


def _scores_of_prompts(
    learner: Learner, params: Params, tokens: jax.Array, causal: bool
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Scores of the first prompt and their mean, `[L, N, T, T]`, and the positional share."""

    @jax.jit
    def of_one(params: Params, prompt: jax.Array) -> jax.Array:
        model = learner.model(params)
        inputs = model.head_inputs(prompt[None])
        return jnp.stack([scores(w, x)[0] for w, x in zip(model.heads(), inputs, strict=True)])

    # One prompt at a time, since the scores of many prompts need too much memory.
    first = np.asarray(of_one(params, tokens[0]), np.float64)
    total, squares = first, first**2
    for prompt in tokens[1:]:
        more = np.asarray(of_one(params, prompt), np.float64)
        total, squares = total + more, squares + more**2
    mean, square = total / len(tokens), squares / len(tokens)
    length = tokens.shape[1]
    seen = np.tri(length, k=0 if causal else length, dtype=bool)
    level = mean[..., seen].mean(axis=-1)
    variance = square[..., seen].mean(axis=-1) - level**2
    share = mean[..., seen].var(axis=-1) / np.where(variance > 0, variance, 1)
    positional = np.where(variance > 0, share, np.nan)
    return first.astype(np.float32), mean.astype(np.float32), positional


def _norm(matrices: np.ndarray) -> np.ndarray:
    return np.linalg.norm(matrices.astype(np.float64), axis=(-2, -1))


def _show(value: float) -> str:
    return "–" if np.isnan(value) else f"{value:.3f}" if abs(value) < 1e3 else f"{value:.0e}"


def _complex_plane(axis: Any, values: np.ndarray) -> None:
    limit = 1.1 * float(np.abs(values).max()) or 1.0
    axis.axhline(0, color="0.8", linewidth=0.8)
    axis.axvline(0, color="0.8", linewidth=0.8)
    axis.scatter(np.real(values), np.imag(values), s=10)
    axis.set(xlim=(-limit, limit), ylim=(-limit, limit), aspect="equal")
    axis.set_xlabel("real; upwards: imaginary", fontsize=7)

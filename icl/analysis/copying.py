"""Does the first layer copy each label to its input? Token gradients after a layer.

Von Oswald et al. 2023 (arXiv 2212.07677, section 5 and figure 8): tokens
(x_i, 0) and (0, y_i) are separate, gradient descent needs (x_i, y_i) in one token, and the first
layer of an induction head can put both into one.
"""

import dataclasses
from functools import partial
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from ..evaluation.curves import draw_prompts
from ..models import SelfAttention, SelfAttentionConfig
from ..report import MARK, WIDTH, Result, legend_of_panel, look, open_run, show_number, spread
from ..tasks.draws import stream
from ..training.config import Config
from ..training.learner import Learner, Params
from ..training.run import Run

LOSS_PROMPTS = 16_384  # of the error; the gradients take about a hundred times as long a prompt
GROUPS = ("itself", "the next token", "the others, each")


@dataclasses.dataclass(frozen=True)
class Copying(Result):
    """On which tokens the tokens of inputs x_j depend after the first layer, over training.

    Attributes:
      steps: training steps of the checkpoints, int `[S]`.
      norms: Frobenius norms of a token's gradient with respect to itself, to the next token (its
        label) and to each other token; means over prompts and inputs, `[S]` by group.
      matrix: the norm for each pair of tokens at the last checkpoint, `[T, T]`.
      error: mean error at the query over `LOSS_PROMPTS` prompts, as the family's `error`, `[S]`.
      error_name: what an error is.
      prompts: number of prompts that the norms are averaged over.
      path: the run's folder.
    """

    steps: np.ndarray
    norms: dict[str, np.ndarray]
    matrix: np.ndarray
    error: np.ndarray
    error_name: str
    prompts: int
    path: Path

    file = "copying"
    saved_as = {"norms": "gradient_norm", "matrix": "gradient_norm_of_pairs"}

    def table(self) -> Table:
        """A row for each of at most six checkpoints, with the first and the last."""
        result = Table(
            title=f"gradient of an input's token after the first layer ({self.path})",
            caption=(
                f"norm of the gradient with respect to tokens, mean over {self.prompts} prompts; "
                f"the next token is the label; error: {self.error_name}, at the query"
            ),
        )
        for column in ("step", *GROUPS, "error"):
            result.add_column(column, justify="right")
        for index in spread(len(self.steps), 6):
            norms = (show_number(float(self.norms[name][index])) for name in GROUPS)
            result.add_row(str(self.steps[index]), *norms, f"{self.error[index]:.4f}")
        return result

    def figure(self, plt: Any) -> Any:
        figure, (left, right) = plt.subplots(1, 2, figsize=(WIDTH, 2.6), layout="constrained")
        for index, (name, values) in enumerate(self.norms.items()):
            left.plot(self.steps, values, label=name, **look(index) | MARK)
        left.set(xlabel="training step", ylabel="norm of the gradient")
        left.set_title(f"means, {self.path.name}")
        legend_of_panel(left)
        image = right.imshow(self.matrix, cmap="magma")
        right.set(xlabel="with respect to token", ylabel="token after the first layer")
        right.set_title(f"at step {self.steps[-1]}")
        for axis in "xy":
            right.locator_params(axis=axis, integer=True)
        right.grid(False)
        figure.colorbar(image, ax=right, label="norm of the gradient")
        return figure


def has_labels_apart(config: Config) -> bool:
    """Whether runs with these settings have separate tokens of inputs and labels."""
    return config.layout == "separate" and isinstance(config.model, SelfAttentionConfig)


def copying(run: Run | str | Path, *, prompts: int = 64, seed: int = 0) -> Copying:
    """Measures at every checkpoint which tokens the first layer mixes.

    Writes `copying.json` and `copying.png` in the run's folder.

    Args:
      run: a run of self-attention in the separate layout, or its folder.
      prompts: number of prompts of fresh tasks.
      seed: seed of the prompts.

    Raises:
      RunError: no run there, or it has no checkpoint.
      ValueError: fewer than one prompt, or a run of another model or layout.
    """
    run, learner = open_run(run, prompts=prompts)
    if not has_labels_apart(run.config):
        raise ValueError(f"{run.path} is no run of self-attention in the separate layout")
    prompt_key, loss_key = jax.random.split(stream("copying", seed))
    episodes = draw_prompts(learner.family, prompt_key, prompts)
    many = draw_prompts(learner.family, loss_key, LOSS_PROMPTS)
    tokens = learner.encode(run.variables()[1], episodes)
    look = jax.jit(partial(_gradient_norms, learner))
    loss_of = jax.jit(learner.loss_sum)
    scale = learner.family.label_kind.training_measure.scale
    matrices, errors, steps = [], [], []
    for step, params in sorted(run.variables_by_step(), key=lambda one: one[0]):
        steps.append(step)
        matrices.append(np.asarray(look(params, tokens)))
        total, (count, _) = loss_of(params, many)
        errors.append(float(total / count.astype(total.dtype)) / scale)
    # Rows of inputs that are followed by their label.
    rows = np.arange(0, tokens.shape[1] - 1, 2)
    inputs = np.stack(matrices)[:, rows]
    own, following = inputs[:, range(len(rows)), rows], inputs[:, range(len(rows)), rows + 1]
    others = (inputs.sum(axis=-1) - own - following) / (inputs.shape[-1] - 2)
    norms: dict[str, np.ndarray] = {}
    norms.update(zip(GROUPS, (own.mean(axis=1), following.mean(axis=1), others.mean(axis=1))))
    return Copying(
        np.array(steps), norms, matrices[-1], np.array(errors),
        learner.labels.error_name, prompts, run.path,
    ).written()  # fmt: skip


def _gradient_norms(learner: Learner, params: Params, tokens: jax.Array) -> jax.Array:
    """Mean norm of the gradient of token i after the first layer by token j before it, `[T, T]`."""
    model = learner.model(params)
    assert isinstance(model, SelfAttention)

    def after(prompt: jax.Array) -> jax.Array:
        return model.hidden(prompt[None], layers=1)[0]

    def norms(prompt: jax.Array) -> jax.Array:
        return jnp.sqrt((jax.jacrev(after)(prompt) ** 2).sum(axis=(1, 3)))

    return jax.lax.map(norms, tokens).mean(axis=0)

"""Does the first layer copy each label to its input? Token gradients after a layer.

Von Oswald et al. 2023 (arXiv 2212.07677, section 5 and figure 8): from tokens (x_i, 0) and
(0, y_i) apart, gradient descent needs both in one, as an induction head's first layer makes it.
"""

import dataclasses
from functools import partial
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
from rich.table import Table

from ..evaluation.curves import draw_prompts
from ..evaluation.figures import STYLE, pyplot, save_figure
from ..evaluation.result import as_text, show_number
from ..models import SelfAttention, SelfAttentionConfig
from ..training.config import Config
from ..training.learner import Learner, Params
from ..training.run import Run, write_json

COPY_STREAM = 0x636F7079
LOSS_PROMPTS = 16_384  # one program; gradients take some hundred times as long
GROUPS = ("itself", "the next token", "the others, each")


@dataclasses.dataclass(frozen=True)
class Copying:
    """What tokens of inputs x_j depend on after the first layer, over training.

    Attributes:
      steps: training steps of the checkpoints, int `[S]`.
      norms: Frobenius norms of a token's gradient with respect to itself, to the next token (its
        label's) and to each other one, means over prompts and inputs, `[S]` by group.
      matrix: of the last checkpoint, the norm for each pair of tokens, `[T, T]`.
      error: mean error at the query over `LOSS_PROMPTS` prompts, as the family's `error`, `[S]`.
      prompts: how many prompts the norms are averaged over.
      path: the run's folder.
    """

    steps: np.ndarray
    norms: dict[str, np.ndarray]
    matrix: np.ndarray
    error: np.ndarray
    error_name: str
    prompts: int
    path: Path

    def save(self) -> None:
        """Writes `copying.json` in the run's folder."""
        data = {
            "steps": self.steps,
            "gradient_norm": self.norms,
            "gradient_norm_of_pairs": self.matrix,
            "error": self.error,
            "error_name": self.error_name,
            "prompts": self.prompts,
        }
        write_json(self.path / "copying.json", data)

    def table(self) -> Table:
        """A row a checkpoint: of the first, some between, and the last."""
        result = Table(
            title=f"what an input's token depends on after a layer ({self.path})",
            caption=(
                f"norm of its gradient with respect to tokens, mean over {self.prompts} prompts; "
                f"the next token is its label's; error: {self.error_name}, at the query"
            ),
        )
        for column in ("step", *GROUPS, "error"):
            result.add_column(column, justify="right")
        for index in np.unique(np.linspace(0, len(self.steps) - 1, 6).round().astype(int)):
            norms = (show_number(float(self.norms[name][index])) for name in GROUPS)
            result.add_row(str(self.steps[index]), *norms, f"{self.error[index]:.4f}")
        return result

    def __str__(self) -> str:
        return as_text(self.table())


def has_labels_apart(config: Config) -> bool:
    """Whether runs of these settings have tokens of inputs and labels apart."""
    return config.layout == "separate" and isinstance(config.model, SelfAttentionConfig)


def copying(run: Run | str | Path, *, prompts: int = 64, seed: int = 0) -> Copying:
    """Measures at every checkpoint what the first layer moves between tokens.

    Writes `copying.json` and `copying.png` in the run's folder.

    Args:
      run: a run of self-attention in the separate layout, or its folder.
      prompts: number of prompts of fresh tasks.
      seed: seed of the prompts.

    Raises:
      RunError: no run there, or it has no checkpoint.
      ValueError: fewer than one prompt, or a run of another model or layout.
    """
    if prompts < 1:
        raise ValueError(f"prompts must be at least 1, got {prompts}")
    run = run if isinstance(run, Run) else Run.open(run)
    if not has_labels_apart(run.config):
        raise ValueError(f"{run.path} is no run of self-attention in the separate layout")
    learner = Learner(run.config)
    key = jax.random.fold_in(jax.random.key(seed), COPY_STREAM)
    prompt_key, loss_key = jax.random.split(key)
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
        errors.append(float(total / count) / scale)
    # Rows of inputs that have a label after them.
    rows = np.arange(0, tokens.shape[1] - 1, 2)
    inputs = np.stack(matrices)[:, rows]
    own, following = inputs[:, range(len(rows)), rows], inputs[:, range(len(rows)), rows + 1]
    others = (inputs.sum(axis=-1) - own - following) / (inputs.shape[-1] - 2)
    norms: dict[str, np.ndarray] = {}
    norms.update(zip(GROUPS, (own.mean(axis=1), following.mean(axis=1), others.mean(axis=1))))
    result = Copying(
        np.array(steps), norms, matrices[-1], np.array(errors),
        learner.labels.error_name, prompts, run.path,
    )  # fmt: skip
    result.save()
    _figure(result, run.path / "copying.png")
    return result


def _gradient_norms(learner: Learner, params: Params, tokens: jax.Array) -> jax.Array:
    """Of token i after the first layer with respect to token j before it, mean: `[T, T]`."""
    model = learner.model(params)
    assert isinstance(model, SelfAttention)

    def after(prompt: jax.Array) -> jax.Array:
        return model.hidden(prompt[None], layers=1)[0]

    def norms(prompt: jax.Array) -> jax.Array:
        return jnp.sqrt((jax.jacrev(after)(prompt) ** 2).sum(axis=(1, 3)))

    return jax.lax.map(norms, tokens).mean(axis=0)


def _figure(result: Copying, path: Path) -> None:
    plt = pyplot()
    with plt.rc_context(STYLE):
        figure, (left, right) = plt.subplots(1, 2, figsize=(9, 3.6), layout="constrained")
        for name, values in result.norms.items():
            left.plot(result.steps, values, label=name, marker="o", markersize=3)
        left.set(xlabel="step", ylabel="norm of the gradient", title=result.path.name)
        left.legend(fontsize=8)
        image = right.imshow(result.matrix, cmap="magma")
        right.set(xlabel="with respect to token", ylabel="token after the first layer")
        right.grid(False)
        figure.colorbar(image, ax=right)
        save_figure(figure, path)

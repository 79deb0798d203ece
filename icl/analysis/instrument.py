"""A toolbox to look inside any run: capture activations, replace them, and score the result.

    inside = Instrument("runs/garg-linear-xs")
    prompts = inside.prompts(64)
    patterns = inside.capture(prompts, ["pattern"])["pattern"]
    change = inside.errors(prompts, [zero("heads", 0, head=1)]) - inside.errors(prompts)

The sites are those of `icl.layers.taps`: "residual", "mixer", "mlp", "heads" and "pattern". Layers,
heads and tokens are numbered from 0.
"""

import copy
import dataclasses
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any, Literal, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from ..evaluation.curves import draw_prompts, errors_of
from ..layers.taps import SITES, Taps
from ..report import open_run
from ..tasks import Episode
from ..tasks.draws import stream
from ..training.disk import RunError
from ..training.learner import Learner, Variables
from ..training.run import Run

# Axes of heads and of tokens of the activations at a site.
AXES: dict[str, tuple[int | None, int]] = {
    "residual": (None, 1),
    "mixer": (None, 1),
    "mlp": (None, 1),
    "heads": (2, 1),
    "pattern": (1, 2),
}
Tokens = int | slice | Sequence[int] | None


@dataclasses.dataclass(frozen=True)
class Edit:
    """A change of the activations of a layer; made by `zero`, `mean`, `patch` and `add`.

    Attributes:
      how: set to values, add values, or set to the mean over the prompts.
      site, layer: where.
      values: array or number, broadcast to the activations that change.
      head: a single head; None for all.
      tokens: the tokens whose activations change, or the queries of a pattern; None for all.
    """

    how: Literal["set", "add", "mean"]
    site: str
    layer: int
    values: Any
    head: int | None
    tokens: Tokens


def zero(site: str, layer: int, head: int | None = None, tokens: Tokens = None) -> Edit:
    """Ablates by zeros; arguments as for `patch`."""
    return Edit("set", site, layer, 0.0, head, tokens)


def mean(site: str, layer: int, head: int | None = None, tokens: Tokens = None) -> Edit:
    """Ablates by the mean over the prompts, for each token; arguments as for `patch`."""
    return Edit("mean", site, layer, 0.0, head, tokens)


def patch(
    site: str, layer: int, values: Any, head: int | None = None, tokens: Tokens = None
) -> Edit:
    """Replaces activations.

    Args:
      site: "residual", "mixer", "mlp", "heads" or "pattern".
      layer: number of the layer, from 0; at "residual" 0 is the input of the first layer.
      values: broadcast to the activations that change: `[B, tokens, width]`; at "heads"
        `[B, tokens, N, H]`, or `[B, tokens, H]` for one head; at "pattern" `[B, N, tokens, S]`, or
        `[B, tokens, S]` for one head.
      head: the head, only at "heads" and "pattern"; None for all.
      tokens: an index, a slice or indices of tokens; of queries at "pattern"; None for all.
    """
    return Edit("set", site, layer, values, head, tokens)


def add(site: str, layer: int, values: Any, head: int | None = None, tokens: Tokens = None) -> Edit:
    """Adds to activations, such as a direction that steers a model; arguments as for `patch`."""
    return Edit("add", site, layer, values, head, tokens)


class Instrument:
    """A trained learner whose activations can be read and replaced.

    Args:
      run: a run or its folder.
      step: the step of the checkpoint; None for the newest.

    Attributes:
      learner: the learner of the run.
      variables: its variables.
      step: the step of the variables.

    Raises:
      RunError: no run there, or no such checkpoint.
    """

    def __init__(self, run: Run | str | Path, step: int | None = None):
        run, self.learner = open_run(run)
        self.variables: Any
        if step is None:
            self.step, self.variables = run.variables()
        else:
            self.step, self.variables = step, run.variables_at(step)
        self._call, self._layers = _program(self.learner), {}

    @classmethod
    def of(cls, learner: Learner, variables: Variables | Any, step: int = 0) -> "Instrument":
        """An instrument of a learner and its variables at a step, which need not be in a run."""
        self = cls.__new__(cls)
        self.learner, self.variables, self.step = learner, variables, step
        self._call, self._layers = _program(learner), {}
        return self

    def at(self, variables: Variables | Any, step: int) -> "Instrument":
        """An instrument of this learner at another step, with the compiled programs of this one."""
        other = copy.copy(self)
        other.variables, other.step = variables, step
        return other

    def prompts(self, count: int, seed: int = 0) -> Episode:
        """Draws fresh prompts of the run's task, `[count, ...]`, as evaluation does."""
        return draw_prompts(self.learner.family, stream("instrument", seed), count)

    def layers(self) -> dict[str, int]:
        """The number of layers at each site of the model; sites that it lacks are left out."""
        if self._layers:
            return self._layers
        taps = Taps(SITES)
        few = jax.eval_shape(lambda: self.prompts(1))
        shaped = lambda variables, few: self.learner.predict_with(taps, variables, few)
        jax.eval_shape(shaped, self.variables, few)
        self._layers.update(taps.seen)
        return self._layers

    def capture(
        self, prompts: Episode, sites: Sequence[str] = SITES, edits: Sequence[Edit] = ()
    ) -> dict[str, list[np.ndarray]]:
        """The activations of prompts, all computed at once.

        The predictions do not change: patterns are computed by the reference beside the fused
        attention.

        Args:
          prompts: a batch of B episodes.
          sites: the sites to capture.
          edits: changes that are made on the way.

        Returns:
          By site, an array for each layer, after the edits; float32, with the axes that
          `icl.layers.taps` lists. A layer that is applied repeatedly counts each time.

        Raises:
          ValueError: the model has no such site, or an edit does not fit it.
        """
        there = self.layers()
        for site in sites:
            _check_site(site, there, self.learner)
        _, found = self._run(prompts, edits, tuple(sites))
        return {site: [np.asarray(a, np.float32) for a in found[site]] for site in sites}

    def predict(self, prompts: Episode, edits: Sequence[Edit] = ()) -> np.ndarray:
        """Predictions `[B, points, *prediction_shape]`, with the edits made on the way.

        Raises:
          ValueError: an edit does not fit the model.
        """
        return np.asarray(self._run(prompts, edits, ())[0])

    def errors(self, prompts: Episode, edits: Sequence[Edit] = ()) -> np.ndarray:
        """Errors `[B, points]` as evaluation defines them; NaN at points that are not predicted."""
        return errors_of(self.learner, self.predict(prompts, edits), prompts)

    def frozen_patterns(self, prompts: Episode) -> list[Edit]:
        """Edits that keep the attention patterns of these prompts as they are without edits.

        With these before an ablation, only the values that a head moves are ablated: the
        pattern-preserving ablation of Olsson et al. 2022.
        """
        patterns = self.capture(prompts, ["pattern"])["pattern"]
        return [patch("pattern", layer, pattern) for layer, pattern in enumerate(patterns)]

    def _run(self, prompts: Episode, edits: Sequence[Edit], keep: tuple[str, ...]) -> Any:
        if edits:
            there = self.layers()
            for edit in edits:
                _check_edit(edit, there, self.learner)
        places = tuple(_place(edit, self.learner.tokens) for edit in edits)
        values = [(jnp.asarray(e.values, jnp.float32), jnp.int32(e.head or 0)) for e in edits]
        return self._call(self.variables, prompts, values, places, keep)


def over_checkpoints(run: Run | str | Path, score: Callable[[Instrument], Any]) -> dict[int, Any]:
    """The score of each checkpoint of a run, by step, ascending.

    Args:
      run: a run or its folder; it keeps its newest `training.keep_checkpoints` checkpoints.
      score: any function of an `Instrument`; what it compiles is compiled once.

    Raises:
      RunError: no run there, or it has no checkpoint that can be read.
    """
    run, learner = open_run(run)
    first, scores = None, {}
    for step, variables in run.variables_by_step():
        first = first or Instrument.of(learner, variables, step)
        scores[step] = score(first.at(variables, step))
    if not scores:
        raise RunError(f"{run.path} has no checkpoint yet; train it first")
    return dict(sorted(scores.items()))


def _program(learner: Learner) -> Callable[..., Any]:
    """Predictions and activations; compiled once for each set of places to change and to keep."""

    @partial(jax.jit, static_argnums=(3, 4))
    def call(variables: Any, prompts: Episode, given: list[Any], places: Any, keep: Any):
        edits: Any = {}
        for place, (values, head) in zip(places, given):
            edit = partial(_edited, place=place, values=values, head=head)
            edits.setdefault((place.site, place.layer), []).append(edit)
        taps = Taps(keep, edits)
        predictions = learner.predict_with(taps, variables, prompts)
        return predictions, taps.found

    return call


class _Place(NamedTuple):
    """What a compiled program knows of an edit; heads of a layer share one program."""

    how: str
    site: str
    layer: int
    one_head: bool
    tokens: tuple[int, ...] | None


def _place(edit: Edit, tokens: int) -> _Place:
    chosen: Any = edit.tokens
    if isinstance(chosen, slice):
        chosen = range(tokens)[chosen]
    elif isinstance(chosen, (int, np.integer)):
        chosen = (chosen,)
    chosen = None if chosen is None else tuple(int(index) for index in chosen)
    return _Place(edit.how, edit.site, edit.layer, edit.head is not None, chosen)


def _edited(
    activation: jax.Array, *, place: _Place, values: jax.Array, head: jax.Array
) -> jax.Array:
    head_axis, token_axis = AXES[place.site]
    if place.one_head and head_axis is not None:
        # Without the axis of heads, tokens are on axis 1 at both sites.
        one = jax.lax.dynamic_index_in_dim(activation, head, head_axis, keepdims=False)
        one = _edited_tokens(one, place, 1, values)
        return jax.lax.dynamic_update_index_in_dim(activation, one, head, head_axis)
    return _edited_tokens(activation, place, token_axis, values)


def _edited_tokens(activation: jax.Array, place: _Place, axis: int, values: jax.Array) -> jax.Array:
    chosen_tokens = slice(None) if place.tokens is None else np.array(place.tokens, int)
    at = (slice(None),) * axis + (chosen_tokens,)
    chosen = activation[at]
    if place.how == "mean":
        new = jnp.broadcast_to(chosen.mean(axis=0, keepdims=True), chosen.shape)
    else:
        try:
            new = jnp.broadcast_to(values, chosen.shape).astype(activation.dtype)
        except ValueError:
            raise ValueError(
                f'values {values.shape} cannot be broadcast to the activations at "{place.site}" '
                f"that change, {chosen.shape}"
            ) from None
        new = chosen + new if place.how == "add" else new
    return activation.at[at].set(new)


def _check_site(site: str, there: dict[str, int], learner: Learner) -> None:
    if site not in SITES:
        raise ValueError(f'no site "{site}"; there are {", ".join(SITES)}')
    if site not in there:
        has = ", ".join(name for name in SITES if name in there) or "none"
        raise ValueError(f'a {learner.name} has no site "{site}"; it has: {has}')


def _check_edit(edit: Edit, there: dict[str, int], learner: Learner) -> None:
    _check_site(edit.site, there, learner)
    if not 0 <= edit.layer < there[edit.site]:
        last = there[edit.site] - 1
        raise ValueError(f'layers at "{edit.site}" are from 0 to {last}; got {edit.layer}')
    heads = getattr(learner.config.model, "heads", 1)
    if edit.head is not None and AXES[edit.site][0] is None:
        raise ValueError(f'"{edit.site}" has no heads; choose "heads" or "pattern"')
    if edit.head is not None and not 0 <= edit.head < heads:
        raise ValueError(f"heads are from 0 to {heads - 1}; got {edit.head}")
    chosen = _place(edit, learner.tokens).tokens or ()
    if any(not -learner.tokens <= token < learner.tokens for token in chosen):
        raise ValueError(f"tokens are from 0 to {learner.tokens - 1}; got {edit.tokens}")

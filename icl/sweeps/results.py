"""The results of a sweep: the error of every member, a table, and one figure for all."""

import dataclasses
import json
from pathlib import Path
from typing import Any

import jax
import numpy as np
from rich.table import Table

from ..evaluation.curves import learner_errors
from ..report import (
    MARK,
    STYLE,
    WIDTH,
    Result,
    draw_line,
    draw_rows,
    in_lines,
    legend_of_panel,
    log_axis,
    look,
    name_cut_lines,
    pyplot,
    save_figure,
    show_number,
    spread,
)
from ..report.figures import MOST_ERROR
from ..training.learner import Learner, Params
from .folder import Member, Sweep
from .grid import SEED, short_name

MAX_COLUMNS = 6  # settings and positions together, which fits 80 characters
MAX_ROWS = 40
MAX_LABELLED = 12  # lines that a legend can tell apart


def member_errors(
    members: list[Member], params: Params, prompts: int, seed: int
) -> list[dict[str, Any]]:
    """Evaluates the members of one program on the same fresh prompts.

    Args:
      members: they share shapes.
      params: their parameters, each leaf with a leading axis `[members]`.
      prompts: number of prompts that are averaged.
      seed: seed of the prompts.

    Returns:
      A record a member: its name, its changes, `examples` `[E]` and `normalised_error` `[E]`.
    """
    learner = Learner(members[0].config)
    predict = lambda params, episodes: jax.lax.map(
        lambda own: learner.predict(own, episodes), params
    ).swapaxes(0, 1)
    examples, errors = learner_errors(learner, predict, params, prompts, seed)
    return [
        {
            "member": member.path.name,
            "changes": member.changes,
            "examples": examples.tolist(),
            "normalised_error": errors[:, index].mean(axis=0).tolist(),
        }
        for index, member in enumerate(members)
    ]


@dataclasses.dataclass(frozen=True)
class SweepResult(Result):
    """The errors of a sweep's members, by their changes.

    Attributes:
      path: the sweep's folder.
      prompts: number of prompts that were averaged.
      error_name: what an error is.
      records: one a member, in the sweep's order: `member`, `changes`, `examples`,
        `normalised_error`. A member whose loss became infinite has `diverged_after`, the last step
        in its metrics, in place of the last two.
    """

    path: Path
    prompts: int
    records: list[dict[str, Any]]
    error_name: str = "squared error / mean squared label"

    file = "results"
    again = "icl sweep --resume {path}"
    saved_as = {"records": "members"}

    def combinations(self) -> list[tuple[dict[str, Any], list[dict[str, Any]]]]:
        """The members that differ only in their seed, grouped by their other changes."""
        groups: dict[str, tuple[dict[str, Any], list[dict[str, Any]]]] = {}
        for record in self.records:
            changes = {name: value for name, value in record["changes"].items() if name != SEED}
            groups.setdefault(json.dumps(changes), (changes, []))[1].append(record)
        return list(groups.values())

    def table(self) -> Table:
        """Error by number of examples, a row a combination, averaged over its seeds."""
        result = Table(
            title=f"error after k examples ({self.path})",
            caption=(
                f"{self.error_name}, mean over {self.prompts} fresh prompts and the seeds; "
                "± the standard deviation between seeds"
            ),
        )
        combinations = self.combinations()
        settings = list(combinations[0][0])
        trained = [record for record in self.records if "examples" in record]
        # If prompts differ in length, only the numbers of examples that all members have.
        common = [set(record["examples"]) for record in trained]
        examples = sorted(set.intersection(*common)) if common else []
        several = any(len(records) > 1 for _, records in combinations)
        most = MAX_COLUMNS - (1 if several else 0)  # a deviation beside each error is wide
        shown = spread(len(examples), max(2, most - len(settings)))
        for setting in settings:
            result.add_column(short_name(setting).replace("_", " "))
        result.add_column("seeds", justify="right", no_wrap=True)
        for index in shown:
            result.add_column(f"k = {examples[index]}", justify="right", no_wrap=True)
        for changes, records in combinations[:MAX_ROWS]:
            curves = [
                dict(zip(r["examples"], r["normalised_error"])) for r in records if "examples" in r
            ]
            count = f"{len(curves)}" + (f"/{len(records)}" if len(curves) < len(records) else "")
            cells = [
                _cell(np.array([curve[examples[index]] for curve in curves]))
                for index in shown
                if curves
            ]
            values = [str(changes[setting]) for setting in settings]
            result.add_row(*values, count, *(cells or ["diverged"]))
        if len(combinations) > MAX_ROWS:
            result.add_row(f"{len(combinations) - MAX_ROWS} more in results.json")
        return result


def sweep_figure(sweep: Sweep, result: SweepResult, path: Path) -> None:
    """Left the training loss of every member, right the error after training.

    The error is drawn against the numeric setting with the most values, with one line for each
    combination of the other settings and the range over seeds. Without a numeric setting it is
    drawn against the number of in-context examples, or as a row for each combination if prompts
    have only one query.
    """
    plt = pyplot()
    numeric = [
        name for name, values in sweep.over.items()
        if name != SEED and len(values) > 1 and all(_is_number(value) for value in values)
    ]  # fmt: skip
    with plt.rc_context(STYLE):
        figure, (losses, errors) = plt.subplots(1, 2, figsize=(WIDTH, 2.7), layout="constrained")
        combinations = result.combinations()
        colours = plt.get_cmap("viridis")(np.linspace(0, 0.9, max(2, len(combinations))))
        runs = {member.path.name: member.run for member in sweep.members}
        for (_, records), colour in zip(combinations, colours):
            for record in records:
                run = runs[record["member"]]
                lines, scale = run.metrics(), run.config.training_measure.scale
                losses.plot(
                    [r["step"] for r in lines], [r["loss"] / scale for r in lines], color=colour,
                    alpha=0.7, linewidth=1.2,
                )  # fmt: skip
        shown = dict.fromkeys(run.config.training_measure.name for run in runs.values())
        losses.set(xlabel="training step", title="training")
        losses.set_ylabel(in_lines(f"{' or '.join(shown)}, in training", 30))
        log_axis(losses, "y")
        single = all(len(r["examples"]) == 1 for r in result.records if "examples" in r)
        if numeric:
            longest = max(numeric, key=lambda name: len(sweep.over[name]))
            _against_setting(errors, result, longest, sweep.over[longest])
        elif single:
            _by_combination(errors, result.error_name, combinations)
        else:
            _against_examples(errors, combinations, colours)
        if numeric or not single:
            errors.set_ylabel(in_lines(result.error_name, 30))
        figure.suptitle(sweep.path.name)
        if 1 < len(errors.get_legend_handles_labels()[1]) <= MAX_LABELLED:
            legend_of_panel(errors)
        save_figure(figure, path)


def _against_setting(axes, result: SweepResult, setting: str, values: list[Any]) -> None:
    """Errors after all examples against the values of a setting."""
    lines: dict[str, list[tuple[Any, np.ndarray]]] = {}
    for changes, records in result.combinations():
        rest = {name: value for name, value in changes.items() if name != setting}
        last = [r["normalised_error"][-1] for r in records if "examples" in r]
        if last:
            lines.setdefault(_label(rest), []).append((changes[setting], np.array(last)))
    for index, (label, points) in enumerate(lines.items()):
        at = [value for value, _ in points]
        ends = ([end(last) for _, last in points] for end in (np.mean, np.min, np.max))
        draw_line(axes, at, *ends, label=label, **look(index) | MARK)
    if min(values) > 0 and max(values) >= 3 * min(values):
        axes.set_xscale("log", base=2 if all(isinstance(value, int) for value in values) else 10)
    axes.set(xlabel=short_name(setting).replace("_", " "), title="error after all examples")


def _by_combination(axes, error_name: str, combinations) -> None:
    """A row for each combination, for prompts with only one query."""
    intervals = {}
    for changes, records in combinations[:MAX_ROWS]:
        last = [record["normalised_error"][-1] for record in records if "examples" in record]
        if last:
            intervals[_label(changes)] = (float(np.mean(last)), min(last), max(last))
    draw_rows(axes, intervals)
    axes.set(xlabel=in_lines(error_name, 30), title="error, and the range over seeds")


def _against_examples(axes, combinations, colours) -> None:
    for index, ((changes, records), colour) in enumerate(zip(combinations, colours)):
        trained = [record for record in records if "examples" in record]
        if not trained:
            continue
        curves = np.array([record["normalised_error"] for record in trained])
        at = trained[0]["examples"]
        ends = (end(curves, axis=0) for end in (np.mean, np.min, np.max))
        draw_line(axes, at, *ends, label=_label(changes), **look(index) | dict(color=colour))
    axes.set(xlabel="in-context examples", ylim=(-0.03, MOST_ERROR), title="error")
    axes.locator_params(axis="x", integer=True)
    name_cut_lines(axes)


def _label(changes: dict[str, Any]) -> str:
    return (
        ", ".join(f"{short_name(name)} {value}" for name, value in changes.items()) or "all seeds"
    )


def _cell(values: np.ndarray) -> str:
    deviation = f" ±{show_number(values.std(ddof=1))}" if len(values) > 1 else ""
    return show_number(values.mean()) + deviation


def _is_number(value: Any) -> bool:
    return isinstance(value, int | float) and not isinstance(value, bool)

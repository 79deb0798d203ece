"""The catalogue of analyses: each is asked of a run, of a sweep, or of nothing.

`icl eval RUN` asks a run every analysis that applies to it, `icl sweep` asks the one that the
sweep's preset names, and `icl study NAME` asks one that needs no run. An analysis is imported when
it is asked. One of the library is a file in this folder and an entry here; any other is a function
with `@register_analysis`.
"""

import dataclasses
import inspect
from collections.abc import Callable
from importlib import import_module
from typing import TYPE_CHECKING, Any, Literal, TypeVar, get_args

from ..registry import check_name, enter

if TYPE_CHECKING:
    from ..report import Result
    from ..training.config import Config

F = TypeVar("F", bound=Callable[..., Any])
Of = Literal["run", "sweep", "nothing"]
RESERVED = ("all", "none")  # what `icl eval --analyses` takes beside names


@dataclasses.dataclass(frozen=True)
class Analysis:
    """A question to a run, to a sweep, or to nothing.

    Attributes:
      of: what it is asked of: a finished run, a finished sweep, or nothing.
      summary: what it tells, in one line.
      function: takes a `Run`, a `Sweep`, or the folder of a study, and options by keyword, among
        them `prompts` (their number) and `seed` if it draws any; returns a `Result`, whose files
        it leaves in that folder, or None for a sweep that it does not apply to. It is given as
        "module:function", with a module relative to `icl.analysis` if it starts with a dot.
      applies: from the `Config` of a run, whether the run can be asked; given likewise. Only of
        analyses of runs.
    """

    of: Of
    summary: str
    function: str | Callable[..., "Result | None"]
    applies: str | Callable[["Config"], bool] | None = None

    def takes(self, option: str) -> bool:
        """Whether the function has that option."""
        return option in inspect.signature(_resolved(self.function)).parameters

    def applies_to(self, config: "Config") -> bool:
        """Whether runs with these settings can be asked."""
        return self.of == "run" and (self.applies is None or _resolved(self.applies)(config))


def ask(name: str, what: Any, **options: Any) -> Any:
    """Asks one of `ANALYSES`, and leaves its numbers and figure in a folder.

    Args:
      name: of the analysis.
      what: a run or its folder, a sweep, or the folder for a study, as `Analysis.of` says.
      **options: of the analysis, such as `prompts` and `seed`.

    Returns:
      The analysis' `Result`; None if a sweep is not one that it applies to.

    Raises:
      KeyError: no analysis of that name.
      RunError: no run there, or it has no checkpoint.
      ValueError: the analysis does not apply to the run, or has no such option.
    """
    if name not in ANALYSES:
        raise KeyError(f"no analysis {name!r}; there are {', '.join(ANALYSES)}")
    analysis = ANALYSES[name]
    for option in options:
        if not analysis.takes(option):
            raise ValueError(f"the analysis {name} has no option {option}; leave it out")
    return _resolved(analysis.function)(what, **options)


def register_analysis(
    name: str,
    summary: str,
    *,
    of: Of = "run",
    applies: Callable[["Config"], bool] | None = None,
) -> Callable[[F], F]:
    """A decorator that registers an analysis of your own, for `icl eval`, `icl sweep`, `icl study`.

    The decorated function takes a run, a sweep or a folder, and returns a `Result`; see `Analysis`.
    It may be registered again by the module that registered it, as a reloaded notebook does.

    Args:
      name: the name in `ask`, in commands and in the `report` of a preset.
      summary: what it tells, in one line.
      of, applies: as of `Analysis`.

    Raises:
      TypeError: the decorated object is no function.
      ValueError: the name is empty, reserved or that of another analysis, `of` is not one of the
        three, or `applies` is given for an analysis that is not of runs.
    """
    check_name("analysis", name)
    if name in RESERVED:
        raise ValueError(f"the name {name!r} is reserved for `icl eval --analyses {name}`")
    if of not in get_args(Of):
        raise ValueError(f"an analysis is of one of {', '.join(get_args(Of))}, not of {of!r}")
    if applies is not None and of != "run":
        raise ValueError(f"applies tells which runs can be asked; leave it out if of={of!r}")

    def decorate(function: F) -> F:
        if not callable(function):
            raise TypeError(f"{function!r} must be a function that returns a Result")
        known = {name: _resolved(ANALYSES[name].function)} if name in ANALYSES else {}
        enter(known, name, function)
        ANALYSES[name] = Analysis(of, summary, function, applies)
        return function

    return decorate


def applicable(config: "Config") -> list[str]:
    """The names of the analyses that runs with these settings can be asked."""
    return [name for name, analysis in ANALYSES.items() if analysis.applies_to(config)]


def studies() -> dict[str, Analysis]:
    """The analyses that are asked of nothing, by name."""
    return {name: analysis for name, analysis in ANALYSES.items() if analysis.of == "nothing"}


def _resolved(what: Any) -> Any:
    if callable(what):
        return what
    module, _, name = what.partition(":")
    return getattr(import_module(module, __package__), name)


ANALYSES: dict[str, Analysis] = {
    "shifts": Analysis(
        "run",
        "errors on prompts unlike those of training (Garg et al.)",
        ".shifts:evaluate_shifts",
        ".shifts:has_shifts",
    ),
    "function": Analysis(
        "run",
        "the function learned from a prompt and its gradient (Garg et al.)",
        ".learned_function:learned_function",
        ".learned_function:is_linear",
    ),
    "loops": Analysis(
        "run",
        "error by the number of loops (Yang et al.)",
        ".loops:errors_by_loop",
        ".loops:has_loops",
    ),
    "pool": Analysis(
        "run",
        "difference from ridge and from dMMSE (Raventós et al.)",
        ".pool:evaluate_pool",
        ".pool:has_pool",
    ),
    "alignment": Analysis(
        "run",
        "agreement with gradient descent, over training (von Oswald et al.)",
        ".alignment:alignment",
        ".alignment:has_descent",
    ),
    "descent-shifts": Analysis(
        "run",
        "the learner and gradient descent under shifts (von Oswald et al.)",
        ".descent_shifts:descent_shifts",
        ".alignment:has_descent",
    ),
    "copying": Analysis(
        "run",
        "what the first layer moves between tokens (von Oswald et al.)",
        ".copying:copying",
        ".copying:has_labels_apart",
    ),
    "dual": Analysis(
        "run",
        "the dual model's descent to a softmax layer's output (Ren and Liu)",
        ".dual:dual_of_run",
        ".dual:has_dual",
    ),
    "preconditioning": Analysis(
        "run",
        "the learned preconditioners and their distance to identity (Ahn et al.)",
        ".preconditioning:preconditioning",
        ".preconditioning:has_preconditioners",
    ),
    "generalisation": Analysis(
        "run",
        "accuracy on seen and unseen tasks, and on other images (Kirsch et al.)",
        ".generalisation:generalisation",
        ".generalisation:is_images",
    ),
    "modes": Analysis(
        "run",
        "learning in context and in weights, over training (Chan et al.)",
        ".modes:modes_of_run",
        ".modes:has_modes",
    ),
    "decodability": Analysis(
        "run",
        "how well representations tell concepts apart, over training (Han et al.)",
        ".decodability:decodability_of_run",
        ".concepts:has_concepts",
    ),
    "patching": Analysis(
        "run",
        "change of the error if activations tell another concept (Han et al.)",
        ".patching:patching",
        ".concepts:has_concepts",
    ),
    "function-transfer": Analysis(
        "run",
        "errors on functions of other kinds (the notebook for Kirsch et al.)",
        ".function_transfer:function_transfer",
        ".function_transfer:has_queries",
    ),
    "few-shot": Analysis(
        "run",
        "errors at 0, 1, 2, ... examples on families trained and held out (Brown et al.)",
        ".few_shot:few_shot",
        ".few_shot:has_families",
    ),
    "circuits": Analysis(
        "run",
        "accuracy and the attention of circuits, over training (Minegishi et al.)",
        ".circuits:circuits",
        ".circuits:has_circuits",
    ),
    "induction": Analysis(
        "run",
        "induction heads over training, and what each is worth (Olsson et al.)",
        ".induction:induction",
        ".induction:has_symbols",
    ),
    "ngrams": Analysis(
        "run",
        "distance from uniform, unigram and bigram predictions, over training (Edelman et al.)",
        ".ngrams:ngrams",
        ".ngrams:is_markov",
    ),
    "heads": Analysis(
        "run",
        "what attention heads compare and write",
        ".heads:heads",
        ".heads:has_heads",
    ),
    "threshold": Analysis(
        "sweep",
        "the pool size above which the distribution is learned (Raventós et al.)",
        ".threshold:threshold",
    ),
    "capacity": Analysis(
        "sweep", "error by model size and dimension (Garg et al.)", ".capacity:capacity"
    ),
    "memorisation": Analysis(
        "sweep",
        "accuracy on seen and unseen tasks by model and number of tasks (Kirsch et al.)",
        ".memorisation:memorisation",
    ),
    "plateau": Analysis(
        "sweep", "steps until learning in context begins (Kirsch et al.)", ".plateau:plateau"
    ),
    "emergence": Analysis(
        "sweep",
        "learning in context and in weights, over training, by setting (Chan et al.)",
        ".emergence:emergence",
    ),
    "phase-change": Analysis(
        "sweep",
        "losses and induction heads over training, by model (Olsson et al.)",
        ".phase_change:phase_change",
    ),
    "tables": Analysis(
        "run",
        "losses on tables of the prior beside estimators fitted to each, and a page of tables",
        ".table_prior:table_prior",
        ".table_prior:learns_tables",
    ),
    "layers": Analysis(
        "sweep", "error by layers, beside as many steps of descent (Ahn et al.)", ".layers:layers"
    ),
    "losses": Analysis(
        "sweep", "a bar for each model's error (von Oswald et al.)", ".final_losses:final_losses"
    ),
    "variants": Analysis(
        "sweep", "variants of attention in training (Ren and Liu)", ".variants:variants"
    ),
    "oswald/descent": Analysis(
        "nothing",
        "losses of gradient descent and GD++ in context, and the construction that equals them",
        ".descent_study:descent_study",
    ),
    "ren/random-features": Analysis(
        "nothing",
        "the gap between a softmax layer and its dual model, by the number of random features",
        ".random_features:random_features",
    ),
}

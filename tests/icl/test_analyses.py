"""Laws of the catalogue: every analysis on every kind of preset that it applies to."""

import dataclasses
import inspect
import re
from pathlib import Path

import jax
import numpy as np
import pytest
from matplotlib.figure import Figure

import icl
from icl.analysis import ANALYSES, Analysis, ask, register_analysis, shifts
from icl.analysis.catalogue import _resolved
from icl.experiments import PRESETS
from icl.experiments.index import FILES
from icl.report import Result
from icl.tasks.draws import stream

from .helpers import shrunk, untrained

# One shift of the points, one of the labels and one of the queries, since each costs a program for
# each task; tests/icl/test_shifts.py draws all of them.
SOME_SHIFTS = ("scale_x=2", "noise", "orthogonal_query")


# Presets to ask, as few as run the code of an analysis: each costs seconds. More learners and tasks
# are asked in the file of each analysis.
ASKED = {
    "shifts": ("garg/linear-xs", "garg/classification-xs"),
    "function": ("garg/linear-xs",),
    "loops": ("kirsch/functions",),
    "pool": ("raventos/pool",),
    "alignment": ("ren/variants-xs",),
    "descent-shifts": ("ren/variants-xs",),
    "copying": ("oswald/copying",),
    "dual": ("ren/linear-xs",),
    "preconditioning": ("ahn/isotropic",),
    "generalisation": ("kirsch/digits-xs",),
    "modes": ("chan/lstm-xs",),
    "decodability": ("han/bases-xs",),
    "patching": ("han/bases-xs",),
    "function-transfer": ("kirsch/functions",),
    "few-shot": ("brown/mixture-xs",),
    "circuits": ("minegishi/circuits-xs",),
    "induction": ("olsson/induction-xs",),
    "ngrams": ("edelman/markov-xs",),
    "heads": ("ahn/isotropic", "kirsch/functions"),
    "tables": ("pfn/tables-xs",),
}


@pytest.fixture(scope="module")
def run_of(tmp_path_factory):
    """A preset's run at a tiny size, whose only checkpoint has the initial parameters."""
    runs = {}

    def make(name):
        if name not in runs:
            path = tmp_path_factory.mktemp("run") / "run"
            runs[name] = untrained(path, shrunk(PRESETS[name].config))
        return runs[name]

    return make


@pytest.mark.parametrize(
    ("name", "preset"), [(name, preset) for name, presets in ASKED.items() for preset in presets]
)
def test_an_analysis_uses_its_options_and_leaves_what_can_be_read(
    name, preset, run_of, monkeypatch
):
    assert ANALYSES[name].applies_to(PRESETS[preset].config)
    run, drawn = run_of(preset), []
    monkeypatch.setattr(Figure, "savefig", lambda figure, path, **options: drawn.append(path))
    monkeypatch.setattr(shifts, "SHIFTS", {one: shifts.SHIFTS[one] for one in SOME_SHIFTS})
    takes = ANALYSES[name].takes
    few = {"prompts": 3, "seed": 2, "resamples": 5}
    options = {option: value for option, value in few.items() if takes(option)}
    result = ask(name, run, **options)
    assert isinstance(result, Result) and result.path == run.path
    assert getattr(result, "prompts", 3) == 3
    again = type(result).load(run)
    assert str(again) == str(result) and len(str(result)) > 100
    for field in dataclasses.fields(result):
        ours, theirs = getattr(result, field.name), getattr(again, field.name)
        if isinstance(ours, np.ndarray):
            np.testing.assert_allclose(theirs, ours)
    has_figure = type(result).figure is not Result.figure
    assert drawn == [result.figure_path, result.figure_path.with_suffix(".pdf")][: 2 * has_figure]
    for option in ("prompts", "typo"):
        with pytest.raises(ValueError, match="at least 1" if takes(option) else "has no option"):
            ask(name, run, **{option: 0})


def test_every_analysis_is_whole_and_applies_to_some_preset():
    reports = {preset.report for preset in PRESETS.values()}
    for name, analysis in ANALYSES.items():
        parameters = inspect.signature(_resolved(analysis.function)).parameters
        assert analysis.summary and next(iter(parameters)) in ("run", "sweep", "folder")
        if analysis.of == "run":
            assert ASKED[name]
        elif analysis.of == "sweep":
            assert name in reports


def test_an_unknown_analysis_or_a_function_of_ones_own(monkeypatch):
    with pytest.raises(KeyError, match="no analysis 'haeds'; there are shifts"):
        ask("haeds", None)
    monkeypatch.setitem(ANALYSES, "mine", Analysis("nothing", "twice", lambda what: 2 * what))
    assert ask("mine", 4) == 8 and not ANALYSES["mine"].applies_to(PRESETS["park/parity"].config)


def test_users_register_analyses(monkeypatch):
    monkeypatch.setattr("icl.analysis.catalogue.ANALYSES", known := dict(ANALYSES))
    config = PRESETS["park/parity"].config
    decorate = register_analysis("mine", "twice", applies=lambda config: config.layout == "tagged")

    @decorate
    def twice(run, *, prompts=3):
        return 2 * run * prompts

    assert ask("mine", 4, prompts=1) == 8 and twice(1) == 6
    assert known["mine"].applies_to(config.replace(layout="tagged"))
    assert not known["mine"].applies_to(config.replace(layout="interleaved"))
    assert decorate(twice) is twice
    other = lambda run: run
    with pytest.raises(ValueError, match="'mine' is taken by .*twice; choose another"):
        decorate(other)
    with pytest.raises(ValueError, match="'heads' is taken by icl.analysis.heads.heads"):
        register_analysis("heads", "a line")(other)
    with pytest.raises(TypeError, match="must be a function that returns a Result"):
        register_analysis("number", "a line")(3)
    for wrong, message in (
        (dict(name=""), "string that is not empty"),
        (dict(name="all"), "reserved"),
        (dict(of="runs"), "one of run, sweep, nothing, not of 'runs'"),
        (dict(of="sweep", applies=callable), "leave it out if of='sweep'"),
    ):
        with pytest.raises(ValueError, match=message):
            register_analysis(**(dict(name="other", summary="a line") | wrong))
    assert set(known) - set(ANALYSES) == {"mine"}


def test_streams_of_different_purposes_differ():
    calls = []
    for file in Path(icl.__file__).parent.rglob("*.py"):
        calls += re.findall(r"\bstream\(\"(\w+)\"(, seed)?\)", file.read_text())
    assert len(calls) > 10 and len({(name[:4], seed) for name, seed in calls}) == len(calls)
    # The keys of published numbers: the constants are the ASCII codes of "eval" and "rate".
    for name, number in (("evaluation", 0x6576616C), ("rates", 0x72617465)):
        folded = jax.random.fold_in(jax.random.key(3), number)
        for ours, known in ((stream(name, 3), folded), (stream(name), jax.random.key(number))):
            np.testing.assert_array_equal(jax.random.key_data(ours), jax.random.key_data(known))


def test_the_index_has_the_presets_of_each_file():
    for presets in FILES.values():
        for name in presets:
            assert PRESETS[name].name == name and PRESETS[name].summary == presets[name]
    assert set(PRESETS._registered) >= {name for presets in FILES.values() for name in presets}

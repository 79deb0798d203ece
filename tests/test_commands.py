"""Every command that the README and the pages name is understood; their links and the site."""

import re
import shlex
import subprocess
import sys

import pytest

import icl
from bench.__main__ import COMMANDS as BENCHMARKS
from icl.analysis import ANALYSES
from icl.cli import main
from icl.experiments import PRESETS

from .pages import PYTHON, ROOT, RUNS, TEXTS, there

__all__ = ["there"]  # a fixture

VERBS = ("list", "train", "sweep", "eval", "compare", "study", "export", "predict", "plot")
LOADED = r"<(?:script|link|img|iframe)[^>]*(?:src|href)=\"?((?:https?:)?//[^\" >]*)"
OWN_RUNS = ("mine", "linear", "mine-alibi")
# What stands for a value in the commands of pages.
STANDS_FOR = {
    "NAME": "garg/linear-xs", "RUN": "runs/mine", "MODE": "flip", "PATH": "images", "DIR": "images",
    "COMMAND": "eval", "...": "", "$JOB_COMPLETION_INDEX": "0",
}  # fmt: skip
ENDS = "asked|does not exist|is not a sweep|no argument for"


def code(text):
    """Lines of code of a page, and code in its sentences, without comments."""
    text = PYTHON.sub("", text)
    blocks = re.findall(r"^```(?:bash)?\n(.*?)^```", text, re.M | re.S)
    plain = re.sub(r"^```.*?^```", "", text, flags=re.M | re.S)
    lines = [line for block in blocks for line in block.splitlines()]
    lines += re.findall(r"^    (?! )(\S.*)$", plain, re.M)
    lines += [" ".join(span.split()) for span in re.findall(r"(?<!`)`([^`]+)`(?!`)", plain)]
    return [re.sub(r"\s+#.*", "", line).strip() for line in lines]


def commands(text):
    """The arguments of each `icl` command of a page."""
    for line in dict.fromkeys(code(text)):
        if re.match(r"(srun )?icl .* ", line) or re.match(r"icl list$", line):
            words = shlex.split(line.partition("icl ")[2])
            values = ["oswald/descent" if words[0] == "study" and w == "NAME" else w for w in words]
            yield [v for w in values if (v := STANDS_FOR.get(w, w))]


def new_commands():
    """The commands of each page that no earlier page has."""
    seen = set()
    for page, text in TEXTS.items():
        ours = [c for c in commands(text) if tuple(c) not in seen]
        seen.update(map(tuple, ours))
        yield pytest.param(page, ours, id=page)


def flags(text):
    """Settings that a page names apart from a command, with their values if it gives them."""
    for line in code(text):
        yield from re.findall(r"^(--(?:task|model|training|optimizer|layout)\S*(?: \S+)*)", line)


@pytest.fixture
def asked(there, monkeypatch):
    """Settings that would be trained."""
    found = []

    def ask_for(*arguments, **given):
        found.append(arguments[0])
        raise ValueError("asked")

    assert icl.train  # imported now, so that it does not keep what is replaced below
    for place in ("training.train", "sweeps.train_sweep", "commands.study.ask"):
        monkeypatch.setattr(f"icl.{place}", ask_for)
    monkeypatch.setattr("icl.training.processes.start", lambda *arguments, **options: None)
    return found


@pytest.mark.parametrize(("page", "lines"), new_commands())
def test_the_commands_of_a_page_are_understood(page, lines, asked, capsys):
    for arguments in lines:
        before = len(asked)
        try:
            status = main(arguments)
        except SystemExit as stop:  # of the parser, whose --help ends with 0
            status = stop.code
        said = capsys.readouterr()
        line = f"icl {' '.join(arguments)}: {said.err}"
        if "list" in arguments or "--help" in arguments:
            assert status == 0, line
            continue
        assert status == 2 and re.search(ENDS, said.err), line
        [verb] = [w for w in arguments if w in VERBS][:1]
        if verb in ("train", "sweep", "study") and "--resume" not in arguments:
            assert len(asked) == before + 1, line
        # Runs have the names of their presets, and can be asked what the page asks them.
        if verb == "eval" and "--analyses" in arguments:
            named = arguments[arguments.index("--analyses") + 1 :]
            run = next(w for w in arguments if w.startswith("runs/")).partition("/")[2]
            assert all(ANALYSES[one].applies_to(RUNS[run].config) for one in named), line
        for run in (w.split("/")[1] for w in arguments if w.startswith("runs/")):
            known = run.removesuffix("-sweep")
            assert known in RUNS or known in OWN_RUNS, line
    verbs = {word for line in code(TEXTS[page]) for word in re.findall(r"^icl (\w+)$", line)}
    assert verbs <= {*VERBS}
    named = [name for name in re.findall(r"[\w-]+/[\w-]+", TEXTS[page]) if name in PRESETS]
    for setting in flags(TEXTS[page]):
        check_setting(setting, dict.fromkeys(named or ["garg/linear-xs"]), asked)


def check_setting(setting, presets, asked):
    """Asserts that one of the presets has the settings, and takes the values if there are any."""
    words = setting.split()
    names = [word[2:].replace("-", "_") for word in words if word.startswith("--")]
    names = [name.replace(".no_", ".").replace(".", "_") for name in names]
    having = [name for name in presets if {*names} <= {*icl.preset(name).flat()}]
    assert having, setting
    if len(names) < len(words):
        assert any(takes(name, words, asked) for name in having), setting


def takes(preset, words, asked):
    """Whether a preset can be trained with these options; some need settings of their own."""
    before = len(asked)
    try:
        return main(["train", preset, *words]) == 2 and len(asked) > before
    except SystemExit:
        return False


def test_the_command_of_the_recipe_has_the_settings_of_the_preset(asked):
    [recipe] = [c for c in commands(TEXTS["docs/recipes.md"]) if "garg/linear" in c]
    assert main(recipe) == 2
    preset, here = PRESETS["garg/linear-xs"].config, asked[0]
    assert here.optimizer.name == preset.optimizer.name and here.layout == preset.layout
    assert here.model.qk_norm and here.model.norm == preset.model.norm


def test_make_targets_and_benchmarks_exist():
    makefile = (ROOT / "Makefile").read_text()
    found = set()
    more = {"results": (ROOT / "bench" / "RESULTS.md").read_text()}
    more["ci"] = f"`{(ROOT / '.ci' / 'run').read_text().splitlines()[-1]}`"
    for page, text in (TEXTS | more).items():
        for line in code(text):
            for target in re.findall(r"^(?:time )?make ([a-z-]+)", line):
                assert re.search(rf"^{target}:", makefile, re.MULTILINE), (page, target)
                found.add(target)
            for name in re.findall(r"^python -m bench ([a-z][a-z-]*)", line):
                assert name in BENCHMARKS, (page, name)
                found.add(name)
    assert {"train", "docs", "lint", "recipes", "kernels"} <= found


def test_pages_link_to_each_other_by_links():
    """A page that is named in code or in brackets would not be checked by the site."""
    for page, text in TEXTS.items():
        if page != "README.md":
            named = re.findall(r"`docs/[\w-]+\.md`|\(docs/[\w-]+\.md\)", text)
            assert page == "CONTRIBUTING.md" or not named, (page, named)


def test_the_site_is_built_and_asks_for_nothing_from_elsewhere(tmp_path):
    """Strict: a wrong link, anchor or docstring, or a page that is in no menu, is an error."""
    command = [sys.executable, "-m", "mkdocs", "build", "--strict", "--site-dir", str(tmp_path)]
    built = subprocess.run(command, cwd=ROOT, capture_output=True, text=True)
    assert built.returncode == 0, built.stdout + built.stderr
    pages = {path.relative_to(tmp_path): path.read_text() for path in tmp_path.rglob("*.html")}
    assert len(pages) > 30
    for path, text in pages.items():
        loaded = re.findall(LOADED, text)
        assert not loaded, (path, loaded)
    api = pages[next(path for path in pages if path.name == "kernels.html")]
    assert "dot_product_attention" in api and "key_value_seq_lengths" in api

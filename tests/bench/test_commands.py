"""`python -m bench`, its page, and the commands in documents."""

import importlib
import json
import re
import shlex
import subprocess
import sys
from types import SimpleNamespace

import pytest

from bench import __main__ as commands
from bench.common import machine, report
from bench.common.driver import parser_of
from bench.common.report import Bar, Report, Table, write, write_page
from bench.common.turns import take_turns
from bench.common.worker import ROOT

PAGES = [ROOT / "README.md", ROOT / "Makefile", ROOT / "CONTRIBUTING.md", ROOT / "bench/README.md"]
PAGES += [*(ROOT / "docs").glob("*.md"), *(ROOT / "kernels").glob("*.md")]


def documented():
    """The arguments of every `python -m bench` in the documents and the Makefile."""
    for page in PAGES:
        text = re.sub(r"\\\n\s*", "", page.read_text())
        for line in re.findall(r"-m bench\b([^`\n#|]*)", text):
            yield page.name, re.sub(r"\$\(\w+\)", "", line)


def test_a_whole_run_reports_failures_last(tmp_path, in_process, monkeypatch, capfd):
    def run_here(command, cwd):
        assert command[:3] == [sys.executable, "-m", "bench"] and cwd == ROOT
        try:
            return SimpleNamespace(returncode=commands.main(command[3:]))
        except SystemExit as ended:
            return SimpleNamespace(returncode=ended.code)

    monkeypatch.setattr(commands, "subprocess", SimpleNamespace(run=run_here))
    monkeypatch.setattr(commands, "WHOLE", {
        "kernels": [*("oswald", "--directions", "forward", "--only", "reference"),
                    *("--rows", "1", "--rounds", "1")],
        "no-such-benchmark": [],
    })  # fmt: skip
    assert commands.main(["--quick", "--out", str(tmp_path)]) == 1
    printed = capfd.readouterr()
    assert "invalid choice: 'no-such-benchmark'" in printed.err
    assert printed.err.splitlines()[-1].startswith("NOT MEASURED: part of no-such-benchmark")
    assert printed.err.count("NOT MEASURED") == 1
    page = (tmp_path / "RESULTS.md").read_text()
    assert page in printed.out
    assert "### kernels" in page and "no-such-benchmark" not in page


def test_arguments_of_the_quick_and_the_whole_run_exist():
    for name, quick in commands.WHOLE.items():
        parser_of(name).parse_args(quick or [])
        parser_of(name).parse_args(["--against", "HEAD"] if name in commands.COMPARED else [])
    assert set(commands.COMMANDS) == set(report.REPORTS) | set(commands.MAINS)


def test_documented_commands_exist():
    found = list(documented())
    assert {"README.md", "Makefile", "performance.md"} <= {page for page, _ in found}
    named = set()
    for page, line in found:
        name, *arguments = shlex.split(line) or [""]
        named.add(name)
        if name in report.REPORTS:
            parser_of(name).parse_args(arguments)
        elif name in commands.MAINS:
            importlib.import_module(commands.MAINS[name]).parse(arguments)
        else:
            assert not name or name.startswith("-") or name == "NAME", (page, line)
    assert set(commands.COMMANDS) <= named, "a benchmark that no document names"


def test_help_names_every_benchmark():
    done = subprocess.run(
        [sys.executable, "-m", "bench", "--help"], cwd=ROOT, capture_output=True, text=True
    )
    assert done.returncode == 0 and all(name in done.stdout for name in commands.COMMANDS)


def test_the_page_has_a_section_for_each_device(tmp_path, monkeypatch):
    found = Report([Table(("case", "ms"), [("a", "1.0")])], [Bar("a", {"peer": 2.0}, 0.5)], "it")
    found.problems = ["b, peer: broken"]
    monkeypatch.setattr(report, "report_of", lambda name, results: found)
    about = {"cpu": "Some CPU", "cores": 2, "versions": {"jax": "1"}, "revision": "abc"}
    for device in ("cpu", "Some GPU"):
        results = {"machine": about | {"device": device, "date": "2026-01-02T03"}}
        write("lasso", results, tmp_path)
        write("training", results, tmp_path)
    text = write_page(tmp_path).read_text()
    assert re.findall("^##+ .*$", text, re.MULTILINE) == [
        "## Some CPU, 2 cores", "### training", "### lasso",
        "## Some GPU", "### training", "### lasso",
    ]  # fmt: skip
    assert text.count("| a    | 1.0 |") == 4 and text.count("**Not measured:** b, peer") == 4
    for picture in re.findall(r"\]\((.*)\)", text):
        assert (tmp_path / picture).exists()


def test_committed_results_are_in_the_page():
    page = (ROOT / "bench" / "RESULTS.md").read_text()
    files = sorted((ROOT / "bench" / "results").glob("*.json"))
    names = [name for name in report.REPORTS for path in files if path.name.startswith(f"{name}-")]
    assert {path.name for path in files} == {
        path.name for name in report.REPORTS for path in files if path.name.startswith(f"{name}-")
    } | {"gpu-code.json"}
    for name in names:
        assert f"### {name}" in page
    for path in files:
        results = json.loads(path.read_text())
        assert re.fullmatch("[0-9a-f]{12}", results["machine"]["revision"]), path.name
        if path.name != "gpu-code.json":
            found = report.report_of(path.name.partition("-")[0], results)
            assert not found.problems, path.name
            assert all(str(part) in page for part in found.parts), path.name


def test_turns_alternate_and_a_time_limit_cuts_rounds():
    called = []
    turns = {name: lambda name=name: called.append(name) or float(len(called)) for name in "ab"}
    taken, _ = take_turns(turns, [], 2)
    assert called == ["a", "b", "a", "b"] and taken == {"a": [1.0, 3.0], "b": [2.0, 4.0]}
    taken, _ = take_turns(turns, [], 50, seconds=0)
    assert len(taken["a"]) == 3


def test_a_checked_out_revision_has_icl_and_its_kernels(tmp_path):
    try:
        with machine.checked_out("HEAD") as folder:
            assert (folder / "icl" / "kernels" / "__init__.py").exists()
    except ValueError as error:
        pytest.skip(str(error))
    with pytest.raises(ValueError, match="no revision"), machine.checked_out("no-such"):
        pass

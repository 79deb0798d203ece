"""Runs what only a GPU can tell, step by step, and goes on in another call where it was cut."""

import argparse
import contextlib
import ctypes
import importlib
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from ..common import machine
from ..common.driver import conclude
from ..common.report import BENCH, report_of, write_page
from ..common.worker import ROOT
from .imports import WHEELS
from .record import CONTINUES, DONE, FAILED, LATE, Record, gpu
from .steps import DAY, ENDS, STEPS, STEPS_LEFT, Part, Setting, Steps

OUT = Path("build/gpu-day")
POLL_SECONDS = 0.1
GRACE_SECONDS = 5.0  # between the signal that asks a part to stop and the one that ends it
SHOWN = 8  # number of last lines of a failed part that are printed


def main(
    argv: list[str] | None = None, steps: Steps = STEPS, ends: Mapping[str, float] = ENDS
) -> int:
    """Runs what is left of a day; returns 0, or 1 if a part failed."""
    options = parse(argv)
    if options.publish:
        return publish(options.out, BENCH)
    record, out = Record(options.out), options.out.resolve()
    calls = [line["call"] for line in record.lines if "call" in line]
    if calls and calls[0]["rehearsal"] != options.rehearsal:
        return conclude([f"{out} is of a day or rehearsal, not both: choose another --out"])
    if options.revision:
        os.environ[machine.REVISION] = options.revision
    seed = calls[0]["seed"] if calls else random.randrange(2**24)
    setting = Setting(out, options.rehearsal, seed, options.wheels)
    about = machine.describe() | {"gpu": gpu(), "rehearsal": options.rehearsal, "seed": seed}
    record.add(call=about)
    for part in record.parts():
        if any(part == name or part.startswith(f"{name}/") for name in options.again):
            record.add(forgot=part)
    print(f"{about['gpu']}; revision {about['revision']}; results in {out}", flush=True)
    day = _Day(record, setting, options)
    # Ends the part that runs too.
    before = signal.signal(signal.SIGTERM, lambda *_: sys.exit(128 + signal.SIGTERM))
    try:
        for name, parts in steps.items():
            day.run_step(name, parts, 60 * ends[name] * options.day / DAY)
    finally:
        signal.signal(signal.SIGTERM, before)
        day.save()
    print(f"\n{record.summarize(day.not_run)}", flush=True)
    failed = [part for part in record.parts() if record.last(part).get("status") == FAILED]
    return conclude([f"{part}: {out}/logs/{part}.log says why" for part in failed])


def parse(argv: list[str] | None) -> argparse.Namespace:
    """The command line."""
    parser = argparse.ArgumentParser(prog="python -m bench gpu-day", description=__doc__)
    parser.add_argument("--out", type=Path, default=OUT, help=f"folder of results; {OUT}")
    parser.add_argument(
        "--minutes", type=float, default=float("inf"),
        help="time limit of this call; another call goes on",
    )  # fmt: skip
    parser.add_argument(
        "--day", type=float, default=DAY, help=f"time limit of all calls in minutes; {DAY:g}"
    )
    parser.add_argument("--only", nargs="+", choices=tuple(ENDS), default=[], help="these steps")
    parser.add_argument(
        "--again", nargs="+", metavar="PART", default=[],
        help="steps, or parts such as tests/attention, to run again although they ended",
    )  # fmt: skip
    parser.add_argument(
        "--archive", type=Path, help="also keep all results in this .tar.gz, after every part"
    )
    parser.add_argument("--revision", help="of this copy, if it has no git repository")
    parser.add_argument(
        "--wheels", type=Path, default=WHEELS, help=f"folder of carried wheels; {WHEELS}"
    )
    parser.add_argument("--rehearsal", action="store_true", help="tiny, on a CPU, in a minute")
    parser.add_argument(
        "--publish", action="store_true", help="run nothing; copy the results into the repository"
    )
    return parser.parse_args(argv)


class _Day:
    """A call: runs parts, and keeps the clock and the record.

    Attributes:
      not_run: steps and parts for which there was no time.
    """

    def __init__(self, record: Record, setting: Setting, options: argparse.Namespace):
        self.record, self.setting, self.options = record, setting, options
        # This process looks for packages where the parts do.
        sys.path.append(str(setting.site))
        self.not_run: list[str] = []
        self._started, self._before = time.monotonic(), record.clock
        self._end = self._before + 60 * options.minutes

    @property
    def clock(self) -> float:
        """Seconds of the day that were used."""
        return self._before + time.monotonic() - self._started

    def run_step(self, name: str, parts: Callable[[Setting], list[Part]], end: float) -> None:
        """Runs the parts of a step that are not settled, until second `end` of the day."""
        for part in parts(self.setting):
            title = f"{name}/{part.name}"
            limit = self._end if part.every_call else min(end, self._end)
            is_left_out = self.options.only and name not in self.options.only
            if (is_left_out or self.record.settled(title)) and not part.every_call:
                continue
            if self.clock >= limit:
                self.not_run.append(title)
                continue
            self.run_part(title, part, limit - self.clock)

    def run_part(self, title: str, part: Part, seconds: float) -> None:
        """Runs a part for at most some seconds, and records how it ended."""
        log = self.record.out / "logs" / f"{title}.log"
        log.parent.mkdir(parents=True, exist_ok=True)
        self.record.add(began=title, clock=round(self.clock, 1))
        print(f"{self.clock / 60:5.1f} min  {title} ...", flush=True)
        command = [word.replace("{seconds}", f"{seconds:.0f}") for word in part.command]
        paths = [str(ROOT), str(self.setting.site), *filter(None, [os.environ.get("PYTHONPATH")])]
        environment = {**os.environ, "PYTHONPATH": os.pathsep.join(paths), "PYTHONUNBUFFERED": "1"}
        started = time.monotonic()
        status = None
        try:
            with log.open("wb") as output:
                status = _run(
                    [sys.executable, *command], environment | dict(part.environment), output,
                    started + seconds, lambda: self.record.tick(self.clock),
                )  # fmt: skip
        finally:  # if this process is asked to stop, too
            self._record_end(title, log, status, round(time.monotonic() - started, 1))
        if part.every_call:  # it may have installed packages
            importlib.invalidate_caches()
            self.record.add(versions=machine.describe()["versions"])

    def _record_end(self, title: str, log: Path, status: int | None, taken: float) -> None:
        lines = [line.strip("= ") for line in log.read_text(errors="replace").splitlines()]
        lines = list(filter(None, lines)) or [""]
        ended = {0: DONE, STEPS_LEFT: CONTINUES, None: LATE}.get(status, FAILED)
        says = lines[-1][:200]
        self.record.add(ended=title, status=ended, code=status, seconds=taken, says=says)
        if ended == FAILED:
            print(*lines[-SHOWN:], sep="\n", flush=True)
        print(f"{self.clock / 60:5.1f} min  {title}: {ended} after {taken} s: {says}", flush=True)
        self.save()

    def save(self) -> None:
        """Writes everything that is made of the parts' results."""
        self.record.tick(self.clock)
        self.record.merge()
        self.record.summarize(self.not_run)
        if self.options.archive:
            self.record.pack(self.options.archive)


def _run(
    command: list[str], environment: dict[str, str], output: Any, deadline: float,
    tick: Callable[[], None],
) -> int | None:  # fmt: skip
    """Runs a command; returns its exit status, or None if it was ended at the deadline."""
    process = subprocess.Popen(
        command, cwd=ROOT, env=environment, stdin=subprocess.DEVNULL, stdout=output,
        stderr=subprocess.STDOUT, process_group=0, preexec_fn=_end_with_parent,
    )  # fmt: skip
    late = False
    try:
        while process.poll() is None:
            if not late and time.monotonic() > deadline:
                late = True
                os.killpg(process.pid, signal.SIGTERM)
            if time.monotonic() > deadline + GRACE_SECONDS:
                break
            tick()
            time.sleep(POLL_SECONDS)
    finally:
        with contextlib.suppress(ProcessLookupError, subprocess.TimeoutExpired):
            if process.poll() is None and not late:  # this process is asked to stop
                os.killpg(process.pid, signal.SIGTERM)
                process.wait(GRACE_SECONDS)
        # Also ends processes that the command left, which would disturb the next part.
        with contextlib.suppress(ProcessLookupError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
    return None if late else process.returncode


def _end_with_parent() -> None:
    """Lets the system end this process when the day's process is killed (Linux)."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(1, signal.SIGKILL)  # PR_SET_PDEATHSIG


def publish(out: Path, bench: Path) -> int:
    """Copies results and launch tables to where the repository keeps them, and writes the page.

    Args:
      out: the folder of a day.
      bench: the folder that has `results/` and RESULTS.md.

    Returns:
      0, or 1 if there is nothing to copy or if contestants failed, as the last lines say.
    """
    from icl.kernels.attention.launch import TABLES

    if any(line.get("call", {}).get("rehearsal") for line in Record(out).lines):
        return conclude([f"{out} is of a rehearsal, which measures nothing"])
    found, problems = sorted((out / "results").glob("*.json")), []
    for path in found:
        results = json.loads(path.read_text())
        problems += report_of(path.name.partition("-")[0], results).problems
        (bench / "results").mkdir(parents=True, exist_ok=True)
        shutil.copy(path, bench / "results" / path.name)
        print(f"copied {path.name}; revision {results['machine']['revision']}")
    for path in sorted((out / "launch_tables").glob("*.json")):
        TABLES.mkdir(exist_ok=True)
        shutil.copy(path, TABLES / path.name)
        print(f"copied {path.name} to {TABLES}")
    if not found:
        return conclude([f"{out}/results has no results"])
    print(f"written to {write_page(bench)}")
    return conclude(problems)

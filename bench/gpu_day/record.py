"""What a GPU day has done so far, on disk: a cut at any moment loses only the part that runs."""

import contextlib
import json
import subprocess
import tarfile
from pathlib import Path
from typing import Any

# Ends of a part: it succeeded or failed, its time was over, it can go on in another call, or the
# machine was cut off while it ran.
DONE, FAILED, LATE, CONTINUES, CUT = "done", "failed", "out of time", "continues", "cut off"
MOST_STARTS = 3  # of a part that was cut off each time, and so may be the reason
BENCHMARKS = {"kernels": ("workloads",), "training": ("gate", "cases")}


class Record:
    """The folder of a day: `day.jsonl`, `SUMMARY.md`, and `results/` as in bench/.

    Args:
      out: the folder; it is made.

    Attributes:
      lines: the lines of day.jsonl: calls, and starts and ends of parts.
    """

    def __init__(self, out: Path):
        self.out = out
        out.mkdir(parents=True, exist_ok=True)
        self._journal, self._clock = out / "day.jsonl", out / "clock"
        text = self._journal.read_text() if self._journal.exists() else ""
        self.lines: list[dict[str, Any]] = []
        for line in text.splitlines():
            with contextlib.suppress(ValueError):  # a cut can leave half a line
                self.lines.append(json.loads(line))
        if text and not text.endswith("\n"):
            self._append("")

    @property
    def clock(self) -> float:
        """Seconds of the day that calls have used."""
        try:
            return float(self._clock.read_text())
        except (OSError, ValueError):
            return 0.0

    def tick(self, clock: float) -> None:
        """Saves the seconds that were used."""
        replace(self._clock, f"{clock:.1f}\n")

    def add(self, **line: Any) -> None:
        """Appends a line to the journal."""
        self.lines.append(line)
        self._append(json.dumps(line))

    def _append(self, text: str) -> None:
        with self._journal.open("a") as file:
            file.write(text + "\n")

    def last(self, part: str) -> dict[str, Any]:
        """The last end of a part, with its `status`; `CUT` if it began again since, else empty."""
        found: dict[str, Any] = {}
        starts = 0
        for line in self.lines:
            if line.get("forgot") == part:
                found, starts = {}, 0
            elif line.get("began") == part:
                starts += 1
                found = {"status": CUT if starts < MOST_STARTS else FAILED}
                found["says"] = f"starts without an end: {starts}"
            elif line.get("ended") == part:
                found, starts = line, 0
        return found

    def parts(self) -> list[str]:
        """The parts that began and are not forgotten, in order."""
        began = dict.fromkeys(line["began"] for line in self.lines if "began" in line)
        return [part for part in began if self.last(part)]

    def settled(self, part: str) -> bool:
        """Whether a part needs no further run."""
        return self.last(part).get("status") in (DONE, FAILED)

    def summarize(self, not_run: list[str]) -> str:
        """Writes SUMMARY.md, with the parts that have not run; returns it."""
        [*_, call] = [line["call"] for line in self.lines if "call" in line]
        [*_, found] = [line for line in self.lines if "versions" in line] or [call]
        versions = ", ".join(f"{name} {v}" for name, v in found["versions"].items())
        lines = [
            "# GPU day",
            f"{call['gpu']}; revision {call['revision']}, {call['date'][:10]}; {versions}.",
            f"{self.clock / 60:.1f} minutes used.\n",
            "| part | ended | s | last words |",
            "|---|---|---|---|",
        ]
        for part in self.parts():
            last = self.last(part)
            says = last.get("says", "").replace("|", "/")
            lines.append(f"| {part} | {last['status']} | {last.get('seconds', '')} | {says} |")
        if not_run:
            lines.append(f"\nNot run: {', '.join(not_run)}.")
        text = "\n".join(lines) + "\n"
        replace(self.out / "SUMMARY.md", text)
        return text

    def merge(self) -> None:
        """Joins the results of the parts of each benchmark into one file, as bench/ has it.

        Parts of another revision than the newest part's are left out: a file has one revision.
        """
        for name, fields in BENCHMARKS.items():
            found = []
            for path in (self.out / "parts" / name).glob(f"*/results/{name}-*.json"):
                with contextlib.suppress(ValueError):  # a cut can leave half a file
                    found.append((path.name, json.loads(path.read_text())))
            found.sort(key=lambda item: item[1]["machine"]["date"])
            for file in {file for file, _ in found}:
                results = [result for other, result in found if other == file]
                revision = results[-1]["machine"]["revision"]
                results = [r for r in results if r["machine"]["revision"] == revision]
                merged = results[-1]
                for field in fields:
                    merged[field] = {k: v for result in results for k, v in result[field].items()}
                (self.out / "results").mkdir(exist_ok=True)
                replace(self.out / "results" / file, json.dumps(merged, indent=1) + "\n")

    def pack(self, archive: Path) -> None:
        """Writes everything but wheels and checkpoints into one file."""
        archive.parent.mkdir(parents=True, exist_ok=True)
        part = archive.with_name(archive.name + ".part")
        with tarfile.open(part, "w:gz") as files:
            for path in sorted(self.out.rglob("*")):
                inside = path.relative_to(self.out)
                left_out = inside.parts[0] == "site" or "checkpoints" in inside.parts
                if not left_out and path.is_file() and path not in (archive, part):
                    files.add(path, inside)
        part.replace(archive)


def replace(path: Path, text: str) -> None:
    """Writes a file at once, so that a cut leaves the old one."""
    part = path.with_name(path.name + ".part")
    part.write_text(text)
    part.replace(path)


def gpu() -> str:
    """Name, driver and memory of the GPU, or that there is none."""
    query = ["nvidia-smi", "--query-gpu=name,driver_version,memory.total", "--format=csv,noheader"]
    with contextlib.suppress(OSError, subprocess.SubprocessError):
        done = subprocess.run(query, capture_output=True, text=True, timeout=30, check=True)
        match [field.strip() for field in done.stdout.partition("\n")[0].split(",")]:
            case [name, driver, memory]:
                return f"{name}, driver {driver}, {memory}"
    return "no NVIDIA GPU"

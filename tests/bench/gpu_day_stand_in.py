"""A GPU day of stand-ins: `python -m tests.bench.gpu_day_stand_in` takes its arguments.

Each part appends a line to a file of its name; `second` then hangs if it starts for the first time.
"""

import sys

from bench.gpu_day.day import main
from bench.gpu_day.steps import Part

PART = """
import pathlib, subprocess, sys, time
path = pathlib.Path(sys.argv[1])
first = not path.exists()
with path.open("a") as file:
    file.write("started\\n")
if sys.argv[2] == "hang" and first:
    child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
    path.with_suffix(".child").write_text(str(child.pid))
    print("hangs", flush=True)
    time.sleep(600)
print("last words", flush=True)
sys.exit(int(sys.argv[2]) if sys.argv[2].isdecimal() else 0)
"""


def step(*parts):
    """A step of parts `(name, does)`: does is a status, or "hang"."""
    return lambda setting: [
        Part(name, ["-c", PART, str(setting.out / name), does]) for name, does in parts
    ]


STEPS = {
    "tests": step(("first", "0"), ("broken", "3")),
    "kernels": step(("second", "hang")),
    "training": step(("third", "0")),
}

if __name__ == "__main__":
    sys.exit(main(sys.argv[1:], STEPS))

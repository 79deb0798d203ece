"""Real processes that train together over gloo, stop together, are killed and resumed."""

import contextlib
import json
import os
import shutil
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import jax
import pytest

from icl.training import LostProcess, Run, processes
from icl.training.config import config_to_dict
from icl.training.door import Door, NobodyCame, knock

from .helpers import assert_same_bits, tiny

SECONDS = 240
# Ends when it is stopped; a constant rate, so that the length changes no bit.
ENDLESS = tiny(
    training_steps=10**6,
    training_log_every=10,
    training_checkpoint_every=50,
    optimizer_schedule="constant",
)
# Half the time to compile, and the same program for everyone here.
FLAGS = "--xla_backend_optimization_level=0"

PROGRAM = """
import json, os, sys
from icl.training import Interrupted, LoggingConfig, LostProcess, RunError, processes
from icl.training.config import config_from_dict
import icl
from jax._src import xla_bridge

address, process, config = sys.argv[1:]
config = config_from_dict(json.loads(config))
quiet = LoggingConfig(progress=False)

def say(**what):
    print(json.dumps(what), flush=True)

def start():
    assert not xla_bridge.backends_are_initialized()
    processes.start(address, 2, int(process), heartbeat_seconds=10)

"""

TRAIN = """
try:
    processes.start("auto")
except ValueError as error:
    say(auto=str(error))
start()
try:
    icl.train(config, "taken", logging=quiet)
except (RunError, LostProcess) as error:
    say(taken=str(error), kind=type(error).__name__)
try:
    icl.train(config, "run", logging=quiet)
except Interrupted as stop:
    say(step=stop.step, signum=stop.signum)
icl.resume("run", logging=quiet)
"""

# What the loop of a run does together, without what takes long to compile.
WAIT = """
import numpy as np
start()
with processes.together("icl train --resume run", Interrupted):
    for step in range(10**9):
        processes.lead_arrays(np.ones(3))
        processes.agree(0, step)
        say(waits=step)
"""

ALONE = """
icl.train(config, "run", logging=quiet)
icl.resume("copy", logging=quiet, training_steps=config.training.steps)
"""


@pytest.fixture
def launch():
    """Starts a process in a folder, its output in files beside; none outlives the test."""
    started = []

    def start(folder, program, config, address="", process=0, devices=1):
        folder.mkdir(exist_ok=True)
        environment = {
            "PYTHONPATH": os.pathsep.join(sys.path),
            "XLA_FLAGS": FLAGS,
            "JAX_NUM_CPU_DEVICES": str(devices),
            "JAX_DEBUG_KEY_REUSE": "0",
            "JAX_PERSISTENT_CACHE_MIN_COMPILE_TIME_SECS": "0",
        }
        arguments = [address, str(process), json.dumps(config_to_dict(config))]
        out, err = folder.with_suffix(".out"), folder.with_suffix(".err")
        with open(out, "w") as stdout, open(err, "w") as stderr:
            started.append(
                subprocess.Popen(
                    [sys.executable, "-c", PROGRAM + program, *arguments],
                    cwd=folder,
                    env=os.environ | environment,
                    stdout=stdout,
                    stderr=stderr,
                )
            )
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.wait()


def launch_pair(launch, folders, program):
    address = f"127.0.0.1:{free_port()}"
    return [launch(f, program, ENDLESS, address, i) for i, f in enumerate(folders)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def said(folder):
    """What the process of a folder said."""
    lines = folder.with_suffix(".out").read_text().splitlines()
    told = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    return {key: value for line in told for key, value in line.items()}


def wait_for(what, folders, processes):
    """Waits until `what` is true, while the processes live."""
    end = time.monotonic() + SECONDS
    while not what():
        for folder, process in zip(folders, processes):
            assert process.poll() is None, folder.with_suffix(".err").read_text()
        assert time.monotonic() < end
        time.sleep(0.05)


def last_step(path):
    if not (path / "config.json").exists():
        return 0
    return max((record["step"] for record in Run.open(path).metrics()), default=0)


def listening(pid):
    """The addresses that the sockets of a process listen at, as in /proc/net/tcp."""
    inodes = set()
    for link in Path(f"/proc/{pid}/fd").iterdir():
        with contextlib.suppress(OSError):
            inodes.add(os.readlink(link).removeprefix("socket:[").removesuffix("]"))
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            fields = line.split()
            if fields[3] == "0A" and fields[9] in inodes:
                yield fields[1].rpartition(":")[0]


def losses(run):
    return [(record["step"], record["loss"], record["grad_norm"]) for record in run.metrics()]


# One test, since each start of a process costs seconds.
def test_processes_train_as_one_and_stop_together(launch, tmp_path):
    folders = [tmp_path / "lead", tmp_path / "other"]  # of machines that share no disk
    (folders[0] / "taken").mkdir(parents=True)
    (folders[0] / "taken" / "thesis.tex").write_text("precious")
    path = folders[0] / "run"

    pair = launch_pair(launch, folders, TRAIN)
    wait_for(lambda: last_step(path) > 10, folders, pair)
    # A stranger with the number of one that is there is sent away, and hurts nobody.
    port = int(pair[0].args[-3].rpartition(":")[2])
    with pytest.raises(ValueError, match="has its process 1 already"):
        knock("127.0.0.1", port, 2, 1, "", SECONDS)
    for address in listening(pair[0].pid):
        assert address in ("0100007F", "0" * 16 + "FFFF00000100007F"), "not of this machine alone"
    wait_for(lambda: last_step(path) > 30, folders, pair)
    pair[1].send_signal(signal.SIGTERM)
    wait_for(lambda: "step" in said(folders[0]), folders, pair)
    lead = said(folders[0])
    wait_for(lambda: last_step(path) > lead["step"] + 60, folders, pair)
    pair[0].kill()
    lost(folders[1], pair[1])
    other = said(folders[1])
    run = Run.open(path)
    saved = run.variables()[0]

    # What the lead refuses the other hears.
    assert "--distributed HOST:PORT" in other["auto"]
    assert other["kind"] == "LostProcess"
    assert other["taken"].startswith("process 0 stopped: RunError: taken exists and is not a run")
    assert [p.name for p in (folders[0] / "taken").iterdir()] == ["thesis.tex"]
    # A signal to one of them stops both at the same step.
    assert lead["signum"] == other["signum"] == signal.SIGTERM
    assert 30 < lead["step"] == other["step"] < saved
    # One process with as many devices goes on where they were, and trains as they did.
    folder, config = tmp_path / "alone", ENDLESS.replace(training_steps=saved + 20)
    shutil.copytree(path, folder / "copy")
    assert launch(folder, ALONE, config, devices=2).wait(SECONDS) == 0
    whole, copy = Run.open(folder / "run"), Run.open(folder / "copy")
    assert losses(copy) == losses(whole)
    assert_same_bits(copy.variables()[1], whole.variables()[1])

    assert {p.name for p in folders[0].iterdir()} == {"taken", "run"}
    assert list(folders[1].iterdir()) == []


def test_the_lead_stops_when_another_is_killed(launch, tmp_path):
    folders = [tmp_path / "lead", tmp_path / "other"]
    pair = launch_pair(launch, folders, WAIT)
    wait_for(lambda: "waits" in said(folders[1]), folders, pair)
    pair[1].kill()
    lost(folders[0], pair[0])


def lost(folder, process):
    """The process ends because another one is gone, and says so."""
    status, errors = process.wait(SECONDS), folder.with_suffix(".err").read_text()
    assert status == 1, errors
    assert "a process of this run was lost after step" in errors
    assert "start all processes again, with: icl train --resume run" in errors


def test_wrong_starts_are_told(monkeypatch):
    jax.devices()
    port = free_port()
    for arguments, message in [
        (("auto", 2, 0), "auto neither"),
        (("127.0.0.1:1", None, 0), "needs --processes and --process"),
        (("127.0.0.1", 2, 0), "takes auto or HOST:PORT"),
        (("127.0.0.1:x", 2, 0), "takes auto or HOST:PORT"),
        (("127.0.0.1:1", 2, 2), "process 2 of 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            processes.start(*arguments)
    for process in (0, 1):
        with pytest.raises(RuntimeError, match="start them first of all"):
            processes.start(f"127.0.0.1:{port}", 2, process)
    monkeypatch.setattr(processes, "_jax_was_used", lambda: False)
    with pytest.raises(LostProcess, match=f"did not answer at 127.0.0.1:{port} within 0 s"):
        processes.start(f"127.0.0.1:{port}", 2, 1, start_seconds=0)
    with pytest.raises(LostProcess, match="process 1 did not come within 0 s"):
        processes.start(f"127.0.0.1:{port}", 2, 0, start_seconds=0)
    with pytest.raises(
        ValueError, match="cannot listen at 192.0.2.1, .*an address of this machine"
    ):
        processes.start(f"192.0.2.1:{port}", 2, 0)
    processes.finish()
    with socket.socket() as taken:
        taken.bind(("", port))
        taken.listen()
        with pytest.raises(ValueError, match=f"port {port} .*cannot be used"):
            processes.start(f"127.0.0.1:{port}", 2, 0)


@pytest.fixture
def guests():
    """Starts knocking in threads: a list that gets what each is answered."""

    def start(port, *knocks):
        answers = [[] for _ in knocks]

        def go(answer, process, count, purpose):
            try:
                answer.append(knock("127.0.0.1", port, count, process, purpose, SECONDS))
            except (ValueError, NobodyCame) as error:
                answer.append(error)

        for answer, (process, count, purpose) in zip(answers, knocks):
            threading.Thread(target=go, args=(answer, process, count, purpose), daemon=True).start()
        return answers

    return start


def answered(answers):
    """Waits for the answers of some threads."""
    end = time.monotonic() + SECONDS
    while not all(answers) and time.monotonic() < end:
        time.sleep(0.01)
    return [str(answer) for (answer,) in answers]


def test_the_first_process_lets_in_who_belongs_and_nobody_else(guests):
    port = free_port()
    with contextlib.closing(Door("127.0.0.1", port, 3, "train")) as door:
        met = []
        gathering = threading.Thread(target=lambda: met.append(door.gather(SECONDS)), daemon=True)
        gathering.start()
        with pytest.raises(ConnectionRefusedError):  # an address that nobody gave
            socket.create_connection(("127.0.0.2", port), timeout=5)
        with socket.create_connection(("127.0.0.1", port)) as scanner:
            scanner.sendall(b"GET / HTTP/1.1\n")
            assert b"not a process of icl" in scanner.recv(1000)
        with socket.create_connection(("127.0.0.1", port)) as dies:
            dies.sendall(b'{"process": 1, "processes": 3, "purpose": "train"}\n')
        refused = answered(
            guests(port, (1, 2, "train"), (2, 3, "eval"), (3, 3, "train"), (0, 3, "train"))
        )
        for said, words in zip(
            refused, ("with --processes 2", "other settings", "3 already", "0 al")
        ):
            assert words in said
        addresses = answered(guests(port, (1, 3, "train"), (2, 3, "train")))
        gathering.join()
        assert set(addresses) == set(met) and not met[0].endswith(str(port))
        [late] = answered(guests(port, (2, 3, "train")))
        assert "has its process 2 already; give this one another number" in late

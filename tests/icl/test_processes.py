"""Real processes that train together over gloo, stop together, are killed and resumed."""

import contextlib
import json
import os
import shutil
import signal
import socket
import threading
import time
from pathlib import Path

import jax
import numpy as np
import pytest

import icl
from icl.training import Interrupted, LostProcess, Run, RunError, processes
from icl.training.door import Door, NobodyCame, knock

from . import children
from .helpers import QUIET, assert_same_bits

SECONDS = 240
# Trains until it is stopped. With a constant learning rate the length changes no bit.
ENDLESS = children.small(
    training_steps=10**6,
    training_log_every=10,
    training_checkpoint_every=50,
    optimizer_schedule="constant",
)


def say(**words):
    print(json.dumps(words), flush=True)


def start(address, process):
    processes.start(address, 2, process, heartbeat_seconds=10)


def train(address, process):
    try:
        processes.start("auto")
    except ValueError as error:
        say(auto=str(error))
    start(address, process)
    try:
        icl.train(ENDLESS, "taken", logging=QUIET)
    except (RunError, LostProcess) as error:
        say(taken=str(error), kind=type(error).__name__)
    try:
        icl.train(ENDLESS, "run", logging=QUIET)
    except Interrupted as stop:
        say(step=stop.step, signum=stop.signum)
    icl.resume("run", logging=QUIET)


def wait(address, process):
    """Waits for the other process and exchanges arrays as a run does, without training."""
    start(address, process)
    with processes.together("icl train --resume run", Interrupted):
        for step in range(10**9):
            processes.lead_arrays(np.ones(3))
            processes.agree(0, step)
            say(waits=step)


def train_alone(config):
    icl.train(config, "run", logging=QUIET)
    icl.resume("copy", logging=QUIET, training_steps=config.training.steps)


@pytest.fixture
def launch():
    """Starts a child in a folder, its output in files beside; none outlives the test."""
    started = []

    def start(folder, program, *arguments, devices=1):
        folder.mkdir(exist_ok=True)
        out = folder.with_suffix(".out")
        started.append(children.start(program, *arguments, out=out, cwd=folder, devices=devices))
        return started[-1]

    yield start
    for process in started:
        process.kill()
        process.join()


def launch_pair(launch, folders, program, port):
    address = f"127.0.0.1:{port}"
    return [launch(folder, program, address, i) for i, folder in enumerate(folders)]


def free_port():
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def said(folder):
    """The values that the process of a folder printed, by name."""
    lines = folder.with_suffix(".out").read_text().splitlines()
    told = [json.loads(line) for line in lines if line.startswith("{") and line.endswith("}")]
    return {key: value for line in told for key, value in line.items()}


def wait_for(what, folders, processes):
    """Waits until `what` is true, while the processes live."""
    end = time.monotonic() + SECONDS
    while not what():
        for folder, process in zip(folders, processes):
            assert process.is_alive(), folder.with_suffix(".err").read_text()
        assert time.monotonic() < end
        time.sleep(0.05)


def last_step(path):
    if not (path / "config.json").exists():
        return 0
    return max((record["step"] for record in Run.open(path).metrics()), default=0)


def listening(pid):
    """The addresses at which a process listens, as in /proc/net/tcp."""
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


# One test, since each start of a pair of processes costs seconds.
def test_processes_train_as_one_and_stop_together(launch, tmp_path):
    folders = [tmp_path / "lead", tmp_path / "other"]  # as on machines without a shared disk
    (folders[0] / "taken").mkdir(parents=True)
    (folders[0] / "taken" / "thesis.tex").write_text("precious")
    path = folders[0] / "run"

    port = free_port()
    pair = launch_pair(launch, folders, train, port)
    wait_for(lambda: last_step(path) > 10, folders, pair)
    # A process with a number in use is refused, and the others go on.
    with pytest.raises(ValueError, match="has its process 1 already"):
        knock("127.0.0.1", port, 2, 1, "", SECONDS)
    for address in listening(pair[0].pid):
        assert address in ("0100007F", "0" * 16 + "FFFF00000100007F"), (
            "reachable from other machines"
        )
    wait_for(lambda: last_step(path) > 30, folders, pair)
    os.kill(pair[1].pid, signal.SIGTERM)
    wait_for(lambda: "step" in said(folders[0]), folders, pair)
    lead = said(folders[0])
    wait_for(lambda: last_step(path) > lead["step"] + 60, folders, pair)
    pair[0].kill()
    lost(folders[1], pair[1])
    other = said(folders[1])
    run = Run.open(path)
    saved = run.variables()[0]

    # An error of the lead is told to the other process.
    assert "--distributed HOST:PORT" in other["auto"]
    assert other["kind"] == "LostProcess"
    assert other["taken"].startswith("process 0 stopped: RunError: taken exists and is not a run")
    assert [p.name for p in (folders[0] / "taken").iterdir()] == ["thesis.tex"]
    # A signal to one process stops both at the same step.
    assert lead["signum"] == other["signum"] == signal.SIGTERM
    assert 30 < lead["step"] == other["step"] < saved
    # One process with two devices resumes the run of the pair and gives the bits of the pair.
    folder, config = tmp_path / "alone", ENDLESS.replace(training_steps=saved + 20)
    shutil.copytree(path, folder / "copy")
    alone = launch(folder, train_alone, config, devices=2)
    alone.join(SECONDS)
    assert alone.exitcode == 0, folder.with_suffix(".err").read_text()
    whole, copy = Run.open(folder / "run"), Run.open(folder / "copy")
    assert losses(copy) == losses(whole)
    assert_same_bits(copy.variables()[1], whole.variables()[1])

    assert {p.name for p in folders[0].iterdir()} == {"taken", "run"}
    assert list(folders[1].iterdir()) == []


def test_the_lead_stops_when_another_is_killed(launch, tmp_path):
    folders = [tmp_path / "lead", tmp_path / "other"]
    pair = launch_pair(launch, folders, wait, free_port())
    wait_for(lambda: "waits" in said(folders[1]), folders, pair)
    pair[1].kill()
    lost(folders[0], pair[0])


def lost(folder, process):
    """Asserts that the process ends with status 1 and says that another one is lost."""
    process.join(SECONDS)
    errors = folder.with_suffix(".err").read_text()
    assert process.exitcode == 1, errors
    assert "a process of this run was lost after step" in errors
    assert "Start all processes again, with: icl train --resume run" in errors


def test_wrong_starts_are_told(monkeypatch):
    jax.devices()
    port = free_port()
    for process in (0, 1):
        with pytest.raises(RuntimeError, match="must be called before any JAX calls"):
            processes.start(f"127.0.0.1:{port}", 2, process)
    monkeypatch.setattr(processes, "_check_jax_is_unused", lambda: None)
    for arguments, message in [
        (("auto", 2, 0), "auto neither"),
        (("127.0.0.1:1", None, 0), "needs --processes and --process"),
        (("127.0.0.1", 2, 0), "takes auto or HOST:PORT"),
        (("127.0.0.1:x", 2, 0), "takes auto or HOST:PORT"),
        (("127.0.0.1:1", 2, 2), "process 2 of 2"),
    ]:
        with pytest.raises(ValueError, match=message):
            processes.start(*arguments)
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
        with pytest.raises(ValueError, match=f"cannot listen at .*port {port} .*a free port"):
            processes.start(f"127.0.0.1:{port}", 2, 0)


@pytest.fixture
def guests():
    """Starts threads that knock, and returns a list for the answer of each."""

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
    """Waits for the answers of the threads, and returns them as text."""
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
        with pytest.raises(ConnectionRefusedError):  # an address that was not given
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
            refused, ("with --processes 2", "settings of this process differ", "3 already", "0 al")
        ):
            assert words in said
        # Process 2 alone does not end the wait, since the first process 1 has ended.
        second = guests(port, (2, 3, "train"))
        gathering.join(0.3)
        addresses = answered([*second, *guests(port, (1, 3, "train"))])
        gathering.join()
        assert set(addresses) == set(met) and not met[0].endswith(str(port))
        [late] = answered(guests(port, (2, 3, "train")))
        assert "has its process 2 already; give this one another number" in late

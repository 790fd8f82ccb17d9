# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The ranks of vLLM's own executor start and end together, with a program that only writes down that it runs."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
import typing as t
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

PROGRAM = Path(__file__).parents[2] / "plugins/module_utils/_ranks.py"
ENGINE = "import os, sys, time; open(sys.argv[1], 'a').write(f'{os.getpid()}\\n'); time.sleep(60)"
DEADLINE_S = 20.0


def until(what: Callable[[], t.Any]) -> t.Any:
    """What *what* returns, once that is something."""
    deadline = time.monotonic() + DEADLINE_S
    while not (found := what()):
        assert time.monotonic() < deadline
        time.sleep(0.05)
    return found


class Rig:
    """Three ranks on this machine; each has a file with the processes that its engine had."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        with socket.create_server(("127.0.0.1", 0)) as server:
            self.port = server.getsockname()[1]
        self.running: list[subprocess.Popen[bytes]] = []

    def start(self, rank: int) -> subprocess.Popen[bytes]:
        role, number = ("head", 3) if rank == 0 else ("node", rank)
        command = [sys.executable, "-I", "-S", str(PROGRAM), role, f"127.0.0.1:{self.port}", str(number)]
        command += [sys.executable, "-c", ENGINE, str(self.folder / str(rank))]
        with (self.folder / f"{rank}.log").open("ab") as log:
            self.running.append(subprocess.Popen(command, stdout=log, stderr=log))
        return self.running[-1]

    def engines(self, rank: int) -> list[int]:
        path = self.folder / str(rank)
        return [int(line) for line in path.read_text().splitlines()] if path.exists() else []

    def log(self, rank: int) -> list[str]:
        return (self.folder / f"{rank}.log").read_text().splitlines()

    def alive(self, rank: int) -> bool:
        return bool(self.engines(rank)) and Path(f"/proc/{self.engines(rank)[-1]}").exists()


@pytest.fixture
def rig(tmp_path: Path) -> Iterator[Rig]:
    made = Rig(tmp_path)
    yield made
    for process in made.running:
        process.kill()
        process.wait()
    for pid in (pid for rank in range(3) for pid in made.engines(rank)):
        try:
            os.kill(pid, signal.SIGKILL)
        except ProcessLookupError:
            continue


def test_no_engine_starts_before_every_rank_is_there(rig: Rig) -> None:
    rig.start(2)
    head = rig.start(0)
    until(lambda: "waiting for rank 1 of 3" in rig.log(0))
    assert [rig.engines(rank) for rank in range(3)] == [[], [], []]
    # What listens at that port by chance, or says nothing that is a rank, is no rank.
    with socket.create_connection(("127.0.0.1", rig.port)) as stranger:
        stranger.sendall(b"GET / HTTP/1.1\r\n\r\n")
        assert stranger.recv(64) == b""
    rig.start(1)
    until(lambda: all(rig.alive(rank) for rank in range(3)))
    assert rig.log(0)[-1] == "all 3 ranks are there"
    assert head.poll() is None


@pytest.mark.parametrize("how", ["engine", "rank"])
def test_a_rank_that_goes_takes_the_others_with_it(rig: Rig, how: str) -> None:
    head, first, second = (rig.start(rank) for rank in range(3))
    until(lambda: all(rig.alive(rank) for rank in range(3)))
    os.kill(rig.engines(1)[-1] if how == "engine" else first.pid, signal.SIGKILL)
    # systemd starts the head and that rank anew.
    assert head.wait(DEADLINE_S) == 1
    assert rig.log(0)[-1] == "rank 1 (127.0.0.1) is gone: all ranks start anew, because one dead rank is a dead model"
    assert not rig.alive(0)
    assert first.wait(DEADLINE_S) == (1 if how == "engine" else -signal.SIGKILL)
    # The other one stays, without its engine, and waits for the next head.
    until(lambda: not rig.alive(2))
    assert second.poll() is None
    rig.start(0)
    rig.start(1)
    until(lambda: [len(rig.engines(rank)) for rank in range(3)] == [2, 2, 2])
    assert all(rig.alive(rank) for rank in range(3))


def test_when_the_head_ends_nothing_of_the_engine_is_left(rig: Rig) -> None:
    head, first, second = (rig.start(rank) for rank in range(3))
    until(lambda: all(rig.alive(rank) for rank in range(3)))
    os.kill(rig.engines(0)[-1], signal.SIGKILL)
    assert head.wait(DEADLINE_S) == 1
    assert rig.log(0)[-1].startswith("the engine's process ended with -9: all ranks start anew")
    until(lambda: not rig.alive(1) and not rig.alive(2))
    assert (first.poll(), second.poll()) == (None, None)
    until(lambda: any(line.startswith("waiting for the head at 127.0.0.1:") for line in rig.log(1)))
    assert "the head at 127.0.0.1 is gone" in rig.log(1)


def test_what_the_engine_started_ends_with_it(tmp_path: Path) -> None:
    """A rank that the engine started and did not end, because it was still loading; it does not hear SIGTERM."""
    deaf = (
        "import signal, time; signal.signal(signal.SIGTERM, signal.SIG_IGN); print('deaf', flush=True); time.sleep(60)"
    )
    engine = f"import subprocess, sys, time; print(subprocess.Popen([sys.executable, '-c', {deaf!r}]).pid, flush=True)"
    code = f"import sys; sys.path.insert(0, {str(PROGRAM.parent)!r}); import _ranks; _ranks.PATIENCE_S = 1\n"
    code += "child = _ranks.start(sys.argv[1:]); sys.stdin.readline(); _ranks.end(child)"
    command = [sys.executable, "-c", code, sys.executable, "-c", f"{engine}; time.sleep(60)"]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as supervisor:
        assert supervisor.stdout is not None
        said = sorted(supervisor.stdout.readline().strip() for _ in range(2))
        assert said[1] == "deaf"
        assert Path(f"/proc/{said[0]}").exists()
        supervisor.communicate("\n", timeout=DEADLINE_S)
    # Nobody of this machine may have reaped it yet.
    status = Path(f"/proc/{said[0]}/status")
    assert not status.exists() or "State:\tZ" in status.read_text()


def test_a_rank_that_was_started_anew_counts_once(rig: Rig) -> None:
    rig.start(0)
    before = rig.start(1)
    until(lambda: "waiting for rank 2 of 3" in rig.log(0))
    before.kill()
    until(lambda: "waiting for rank 1, 2 of 3" in rig.log(0)[1:])
    rig.start(2)
    rig.start(1)
    until(lambda: all(rig.alive(rank) for rank in range(3)))


@pytest.mark.parametrize("arguments", [[], ["head", "127.0.0.1:5", "3"], ["other", "127.0.0.1:5", "3", "true"]])
def test_what_is_no_question_gets_the_usage(arguments: list[str]) -> None:
    done = subprocess.run([sys.executable, str(PROGRAM), *arguments], capture_output=True, text=True, check=False)
    assert done.returncode == 2
    assert done.stderr.startswith("usage: ranks head ADDRESS:PORT RANKS COMMAND...")

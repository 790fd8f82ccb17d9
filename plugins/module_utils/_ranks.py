# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Starts and ends the ranks of vLLM's own multi-node executor together: one dead rank is a dead model.

Private to the collection, standard library only. Put on every node and run by systemd in the place of the engine:

  ranks head ADDRESS:PORT RANKS COMMAND...   waits until every other rank is there, tells them to go, and runs COMMAND;
                                             when a rank goes, or COMMAND ends, this ends and the others with it
  ranks node ADDRESS:PORT RANK COMMAND...    tells the head that it is there, and runs COMMAND when it is told to go;
                                             when the head goes, COMMAND is ended and the next head is waited for

Until then a node holds a few MB; vLLM left alone would hold the memory of a loaded engine while it waits for its head,
and go on holding it after its head has ended.
"""

from __future__ import annotations

import os
import select
import signal
import socket
import subprocess
import sys
import time
import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Sequence

GO = b"go\n"
RETRY_S = 0.5
# How long a command may take to end when it is asked to.
PATIENCE_S = 5.0
# A silent connection is given up after 10 + 6 x 5 = 40 s: a cable that is back after half a minute costs nothing.
_KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 6))


def say(sentence: str) -> None:
    """One line for the journal."""
    sys.stdout.write(sentence + "\n")
    sys.stdout.flush()


def keep_alive(connection: socket.socket) -> None:
    """Let the kernel find out when the peer is gone without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, number in _KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, number)


def received(connection: socket.socket) -> bytes:
    """What the peer said; nothing when it is gone."""
    try:
        return connection.recv(64)
    except OSError:
        return b""


def start(command: Sequence[str]) -> subprocess.Popen[bytes]:
    """The command, with all that it will start in one group of processes."""
    return subprocess.Popen(command, start_new_session=True)


def end(child: subprocess.Popen[bytes]) -> None:
    """End the command and all that it started, politely first.

    An engine that is ended while it loads does not end its rank, and that would wait for the others with its memory.
    """
    for number in (signal.SIGTERM, signal.SIGKILL):
        deadline = time.monotonic() + PATIENCE_S
        try:
            os.killpg(child.pid, number)
            while time.monotonic() < deadline:
                child.poll()
                os.killpg(child.pid, 0)
                time.sleep(0.1)
        except ProcessLookupError:
            break
    child.wait()


def guard(child: subprocess.Popen[bytes], names: dict[socket.socket, str]) -> str:
    """Wait until the command ends or a connection does, and say which; the command is ended then."""
    ended = os.pidfd_open(child.pid)
    waiting: list[t.Any] = [ended, *names]
    try:
        while True:
            for ready in select.select(waiting, [], [])[0]:
                if ready == ended:
                    return f"the engine's process ended with {child.wait()}"
                if not received(ready):
                    return f"{names[ready]} is gone"
    finally:
        os.close(ended)
        end(child)


def gather(listener: socket.socket, ranks: int) -> dict[int, socket.socket]:
    """Wait until each rank but the head's own has said that it is there, and say meanwhile who is missing."""
    there: dict[int, socket.socket] = {}
    unknown: list[socket.socket] = []
    told: list[int] = []
    while len(there) < ranks - 1:
        missing = [rank for rank in range(1, ranks) if rank not in there]
        if missing != told:
            say(f"waiting for rank {', '.join(str(rank) for rank in missing)} of {ranks}")
            told = missing
        for ready in select.select([listener, *unknown, *there.values()], [], [])[0]:
            if ready is listener:
                connection = listener.accept()[0]
                keep_alive(connection)
                unknown.append(connection)
                continue
            said = received(ready)
            rank = int(said) if said.strip().isdigit() else 0
            if ready in unknown:
                unknown.remove(ready)
                if 0 < rank < ranks:
                    # A node that was started anew says so on a new connection.
                    if rank in there:
                        there.pop(rank).close()
                    there[rank] = ready
                    continue
            there = {rank: connection for rank, connection in there.items() if connection is not ready}
            ready.close()
    for connection in unknown:
        connection.close()
    return there


def head(address: str, port: int, ranks: int, command: Sequence[str]) -> int:
    """The node that serves."""
    with socket.create_server((address, port), backlog=64) as listener:
        there = gather(listener, ranks)
    names = {connection: f"rank {rank} ({connection.getpeername()[0]})" for rank, connection in there.items()}
    for connection in names:
        connection.sendall(GO)
    say(f"all {ranks} ranks are there")
    say(f"{guard(start(command), names)}: all ranks start anew, because one dead rank is a dead model")
    return 1


def connect(address: str, port: int, rank: int) -> socket.socket:
    """The connection to a head that gathers its ranks, however long that takes."""
    tries = 0
    while True:
        try:
            connection = socket.create_connection((address, port), 2)
        except OSError as error:
            if tries % 60 == 0:
                say(f"waiting for the head at {address}:{port}: {error.strerror or error}")
            tries += 1
            time.sleep(RETRY_S)
            continue
        connection.settimeout(None)
        keep_alive(connection)
        connection.sendall(f"{rank}\n".encode())
        return connection


def node(address: str, port: int, rank: int, command: Sequence[str]) -> int:
    """Every other node."""
    while True:
        with connect(address, port, rank) as connection:
            if received(connection) != GO:
                time.sleep(RETRY_S)
                continue
            child = start(command)
            reason = guard(child, {connection: f"the head at {address}"})
        say(reason)
        if not reason.startswith("the head"):
            # The head learns of it when this process ends.
            return 1


def main(arguments: Sequence[str]) -> int:
    """Entry point."""
    if len(arguments) > 3 and arguments[0] in ("head", "node"):
        address, _colon, port = arguments[1].rpartition(":")
        run = head if arguments[0] == "head" else node
        return run(address, int(port), int(arguments[2]), arguments[3:])
    sys.stderr.write("usage: ranks head ADDRESS:PORT RANKS COMMAND... | ranks node ADDRESS:PORT RANK COMMAND...\n")
    return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

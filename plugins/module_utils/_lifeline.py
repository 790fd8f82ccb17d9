# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lifeline between the head and every other node: one dead rank is a dead model, so the set starts anew together.

Private to the collection, standard library only. Put on every node and run by systemd beside the node's part of the
rig, with which it ends:

  lifeline head ADDRESS:PORT UNIT ENGINE     holds a connection to every other node; when one ends while ENGINE is up,
                                             UNIT is restarted, and the engine that stands on it
  lifeline node ADDRESS:PORT UNIT            when the connection to the head ends, UNIT is restarted
"""

from __future__ import annotations

import contextlib
import selectors
import socket
import subprocess
import sys
import time
import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Callable, Sequence

RETRY_S = 0.5
# A silent connection is given up after 10 + 6 x 5 = 40 s: a cable that is back after half a minute costs nothing.
KEEPALIVE = ((socket.TCP_KEEPIDLE, 10), (socket.TCP_KEEPINTVL, 5), (socket.TCP_KEEPCNT, 6))
# When somebody stops the whole set, the jobs of the head follow those of a node within this time.
GRACE_S = 1.5


def say(sentence: str) -> None:
    """One line for the journal."""
    sys.stdout.write(sentence + "\n")
    sys.stdout.flush()


def keep_alive(connection: socket.socket) -> None:
    """Let the kernel find out when the peer is gone without a word."""
    connection.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
    for option, number in KEEPALIVE:
        connection.setsockopt(socket.IPPROTO_TCP, option, number)


def systemctl(*words: str) -> str:
    """What systemctl says."""
    done = subprocess.run(["systemctl", *words], stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, check=False)
    return done.stdout.decode("utf-8", "replace")


def restart(unit: str) -> None:
    """Restart *unit* and what stands on it. This process ends with it."""
    systemctl("restart", "--no-block", unit)


def is_up(unit: str) -> bool:
    """Whether *unit* runs and nobody is about to stop or to restart it."""
    if systemctl("is-active", unit).strip() != "active":
        return False
    jobs = systemctl("list-jobs", "--no-legend", "--no-pager")
    return not any(unit in line.split()[1:2] for line in jobs.splitlines())


def hold(listener: socket.socket, lost: Callable[[str], None]) -> None:
    """Accept every node, for ever, and call *lost* with the address of one that went away."""
    with selectors.DefaultSelector() as waiting:
        waiting.register(listener, selectors.EVENT_READ)
        while True:
            for key, _events in waiting.select():
                if key.fileobj is listener:
                    connection, (address, _port) = listener.accept()
                    keep_alive(connection)
                    waiting.register(connection, selectors.EVENT_READ, address)
                    say(f"{address} holds the lifeline")
                    continue
                connection = t.cast("socket.socket", key.fileobj)
                # Nobody ever says anything: what can be read is the end.
                with contextlib.suppress(OSError):
                    connection.recv(64)
                waiting.unregister(connection)
                connection.close()
                lost(str(key.data))


def head(address: str, port: int, unit: str, engine: str) -> None:
    """The head's side."""

    def lost(node: str) -> None:
        time.sleep(GRACE_S)
        if is_up(engine):
            say(f"{node} let the lifeline go: {unit} and {engine} start anew, because one dead rank is a dead model")
            restart(unit)
        else:
            say(f"{node} let the lifeline go; {engine} does not run")

    while True:
        try:
            with socket.create_server((address, port), backlog=64) as listener:
                hold(listener, lost)
        except OSError as error:
            # The rail may not have its address yet.
            say(f"{address}:{port} cannot be listened on: {error.strerror or error}")
            time.sleep(5)


def connect(address: str, port: int) -> socket.socket:
    """The connection to the head, however long that takes."""
    while True:
        try:
            connection = socket.create_connection((address, port), 2)
        except OSError:
            time.sleep(RETRY_S)
            continue
        connection.settimeout(None)
        keep_alive(connection)
        return connection


def node(address: str, port: int, unit: str) -> None:
    """Every other node's side."""
    with connect(address, port) as connection:
        say(f"holds the lifeline to {address}:{port}")
        with contextlib.suppress(OSError):
            connection.recv(64)
    say(f"the head at {address} let the lifeline go: {unit} starts anew")
    restart(unit)
    # Until systemd ends this process with the unit.
    time.sleep(60)


def main(arguments: Sequence[str]) -> int:
    """Entry point."""
    if len(arguments) in (3, 4) and arguments[0] in ("head", "node"):
        address, _colon, port = arguments[1].rpartition(":")
        if arguments[0] == "head" and len(arguments) == 4:
            head(address, int(port), arguments[2], arguments[3])
        elif arguments[0] == "node" and len(arguments) == 3:
            node(address, int(port), arguments[2])
            return 1
    sys.stderr.write("usage: lifeline head ADDRESS:PORT UNIT ENGINE | lifeline node ADDRESS:PORT UNIT\n")
    return 2


if __name__ == "__main__":
    raise SystemExit(main(sys.argv[1:]))

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A runtime's tree goes from one node to the others over the fabric, as the archive that it came from.

The sender reads its tree, the receiver unpacks what comes and checks every file against the manifest, whose hash it
was told by the controller: nobody in between can change a byte unnoticed, and neither side needs room for an archive.
"""

from __future__ import annotations

import hmac
import re
import select
import socket
import threading
import time
from contextlib import suppress
from pathlib import Path
from typing import BinaryIO, cast

from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_layout import TreeError
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_nodes import load_manifest
from ansible_collections.sparkrig.serving.plugins.module_utils._runtime_pack import pack

__all__ = ["check_token", "decline", "receive", "serve"]

_TOKEN = re.compile(r"[0-9A-Za-z]{16,64}")
_BUFFER_BYTES = 1 << 20
_CONNECT_S = 15.0
_GREETING_S = 60.0
# How long one read or write may take on a rail that is up.
_STALL_S = 180.0
# A sender to whom nobody comes any more ends, so that its port is free for the next run.
_IDLE_S = 120.0
# How often the sender looks at the time while nothing happens.
_LOOK_S = 1.0
# What a receiver says after the token: that it wants the tree, or that it has it already.
_WANTS = b"+"
_HAS_IT = b"-"


def check_token(token: str) -> str:
    """The token, if it is one; ValueError does not repeat it."""
    if not _TOKEN.fullmatch(token):
        raise ValueError(f"the relay's token has {len(token)} characters, expected 16 to 64 letters and digits")
    return token


def _send(connection: socket.socket, tree: Path, token: str) -> bool:
    """Send the tree to a peer that knows the token and lacks it; whether the peer has all of it now."""
    manifest = load_manifest(tree)
    if manifest is None:
        raise TreeError(f"{tree} has no manifest that can be read")
    with connection:
        connection.settimeout(_GREETING_S)
        asked = b""
        length = len(token) + len(_WANTS)
        while len(asked) < length:
            piece = connection.recv(length - len(asked))
            if not piece:
                return False
            asked += piece
        if not hmac.compare_digest(asked[: len(token)], token.encode()):
            return False
        if asked[len(token) :] == _HAS_IT:
            return True
        connection.settimeout(_STALL_S)
        with connection.makefile("wb", buffering=_BUFFER_BYTES) as out:
            pack(tree, manifest, cast(BinaryIO, out))
        connection.shutdown(socket.SHUT_WR)
    return True


def serve(tree: Path, address: str, port: int, token: str, receivers: int, timeout_s: float) -> int:
    """Send ``tree`` to as many ``receivers`` at once, for at most ``timeout_s``; how many have all of it then."""
    if load_manifest(tree) is None:
        raise TreeError(f"{tree} has no manifest that can be read: there is nothing to send")
    done: list[bool] = []
    threads: list[threading.Thread] = []
    ends = time.monotonic() + timeout_s
    # One byte for each connection that has ended: the last one is not waited for longer than it takes.
    ended, end = socket.socketpair()

    def one(connection: socket.socket) -> None:
        with suppress(OSError, TreeError):
            done.append(_send(connection, tree, token))
        # After the time nobody listens any more.
        with suppress(OSError):
            end.send(b".")

    with ended, end, socket.socket(socket.AF_INET, socket.SOCK_STREAM) as listener:
        listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        try:
            listener.bind((address, port))
        except OSError as exc:
            raise TreeError(f"{address}:{port} cannot be listened on ({exc.strerror}): set runtime_relay_port") from exc
        listener.listen(receivers + 2)
        listener.setblocking(False)
        last = time.monotonic()
        while done.count(True) < receivers and time.monotonic() < min(ends, last + _IDLE_S):
            if any(thread.is_alive() for thread in threads):
                last = time.monotonic()
            ready, _writable, _broken = select.select([listener, ended], [], [], _LOOK_S)
            if ended in ready:
                ended.recv(receivers + 1)
            # Who knocked may have gone again.
            with suppress(BlockingIOError, ConnectionAbortedError):
                connection, _peer = listener.accept()
                last = time.monotonic()
                threads.append(threading.Thread(target=one, args=(connection,), daemon=True))
                threads[-1].start()
        for thread in threads:
            thread.join(max(0.0, ends - time.monotonic()))
    return done.count(True)


def _connect(address: str, port: int, wait_s: float) -> socket.socket:
    ends = time.monotonic() + wait_s
    while True:
        try:
            return socket.create_connection((address, port), timeout=_CONNECT_S)
        except OSError as exc:
            if time.monotonic() > ends:
                raise TreeError(
                    f"the node that hands the runtime on does not answer at {address}:{port} ({exc}): is the rail up?"
                    " Set runtime_spread=controller to do without it"
                ) from exc
            time.sleep(0.3)


def receive(address: str, port: int, token: str, wait_s: float) -> BinaryIO:
    """The archive as it comes from the node that serves it; TreeError when there is none within ``wait_s``."""
    connection = _connect(address, port, wait_s)
    connection.settimeout(_STALL_S)
    connection.sendall(token.encode() + _WANTS)
    stream = connection.makefile("rb", buffering=_BUFFER_BYTES)
    connection.close()
    return cast(BinaryIO, stream)


def decline(address: str, port: int, token: str, wait_s: float) -> None:
    """Tell the node that serves the tree not to wait for this one, which has it; nothing when it cannot be told."""
    with suppress(OSError, TreeError), _connect(address, port, wait_s) as connection:
        connection.sendall(token.encode() + _HAS_IT)

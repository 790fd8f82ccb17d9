# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who listens on a port that a unit of the rig needs.

Private to the collection. Reads /proc, so that it also knows the process, which a failed bind does not tell.
"""

from __future__ import annotations

import ipaddress
import os
import typing as t
from dataclasses import dataclass

from ansible_collections.sparkrig.serving.plugins.module_utils._node import belongs_to

if t.TYPE_CHECKING:
    from collections.abc import Collection, Sequence

_LISTEN, _ESTABLISHED = "0A", "01"


@dataclass(frozen=True)
class Listener:
    """A socket that waits for connections."""

    address: str
    port: int
    inode: str


def _address(text: str) -> str:
    """The address of /proc/net/tcp and tcp6: words of four bytes, each in the machine's (little-endian) order."""
    data = bytes.fromhex(text)
    words = [data[index : index + 4][::-1] for index in range(0, len(data), 4)]
    address = ipaddress.ip_address(b"".join(words))
    mapped = address.ipv4_mapped if isinstance(address, ipaddress.IPv6Address) else None
    return str(mapped or address)


def listeners(text: str) -> list[Listener]:
    """The listening sockets in the text of /proc/net/tcp or tcp6."""
    found = []
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) > 9 and words[3] == _LISTEN:
            address, _colon, port = words[1].partition(":")
            found.append(Listener(_address(address), int(port, 16), words[9]))
    return found


def peers(text: str, port: int) -> set[str]:
    """The addresses that have a connection to *port* of this machine, in the text of /proc/net/tcp or tcp6."""
    found = set()
    for line in text.splitlines()[1:]:
        words = line.split()
        if len(words) > 9 and words[3] == _ESTABLISHED and int(words[1].partition(":")[2], 16) == port:
            found.add(_address(words[2].partition(":")[0]))
    return found


def connected_peers(port: int, proc: str = "/proc") -> set[str]:
    """The same for this machine now."""
    return {peer for name in ("tcp", "tcp6") for peer in peers(_read(f"{proc}/net/{name}"), port)}


def in_the_way(listener: Listener, address: str, port: int) -> bool:
    """Whether nobody else can listen on *address* and *port* because of *listener*."""
    return listener.port == port and (listener.address in (address, "0.0.0.0", "::") or address in ("0.0.0.0", "::"))


def _read(path: str) -> str:
    try:
        with open(path, encoding="utf-8", errors="replace") as stream:
            return stream.read()
    except OSError:
        return ""


def owners(inodes: Collection[str], proc: str = "/proc") -> dict[str, str]:
    """The process that has each socket open, by the socket's inode; a socket of which none can be seen is left out.

    All are looked for in one pass: a node that serves has thousands of open files.
    """
    wanted = {f"socket:[{inode}]": inode for inode in inodes}
    found: dict[str, str] = {}
    for pid in filter(str.isdigit, os.listdir(proc) if wanted else ()):
        try:
            for number in os.listdir(f"{proc}/{pid}/fd"):
                inode = wanted.get(os.readlink(f"{proc}/{pid}/fd/{number}"))
                if inode:
                    found.setdefault(inode, pid)
        except OSError:
            continue
        if len(found) == len(wanted):
            break
    return found


def _program(pid: str, proc: str) -> str:
    try:
        return os.readlink(f"{proc}/{pid}/exe")
    except OSError:
        return ""


def taken_ports(
    wanted: Sequence[str], own_units: Sequence[str], folder: str | None = None, proc: str = "/proc"
) -> list[str]:
    """One sentence for each of *wanted* ("ADDRESS:PORT") that a stranger listens on.

    No stranger is what runs in one of *own_units*, and what an earlier start left behind: a program under *folder*.
    """
    seen = [one for name in ("tcp", "tcp6") for one in listeners(_read(f"{proc}/net/{name}"))]
    found: dict[tuple[str, int], list[Listener]] = {}
    for entry in wanted:
        address, _colon, port = entry.rpartition(":")
        found[address, int(port)] = [one for one in seen if in_the_way(one, address, int(port))]
    pids = owners({one.inode for some in found.values() for one in some}, proc)
    sentences = []
    for wish, some in found.items():
        for listener in some:
            pid = pids.get(listener.inode)
            if pid is not None and belongs_to(_read(f"{proc}/{pid}/cgroup"), own_units):
                continue
            if pid is not None and folder and _program(pid, proc).startswith(folder.rstrip("/") + "/"):
                continue
            name = _read(f"{proc}/{pid}/comm").strip() if pid else ""
            who = f"process {pid} ({name})" if pid else "a process that cannot be seen from here"
            sentences.append(f"port {wish[1]} on {listener.address} is taken by {who}")
            break
    return sentences

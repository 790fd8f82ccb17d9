# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rails of a node, live: reading them, and putting back what was there before.

The file is also put on the nodes as it is: a change that nobody confirms is undone there by the node itself, without
Ansible. So it imports nothing of Ansible, and every command goes through a function that it is given.

Private to this collection: import it from nowhere else.
"""

from __future__ import annotations

import os
import time
import typing as t
from dataclasses import dataclass

from . import _journal
from ._fabric import Link, parse_links

PENDING_KIND = "fabric_pending"
UNDO_UNIT = "sparkrig-fabric-undo"
SETTLE_S = 5.0
# A command and its input in, rc, stdout and stderr out.
Runner = t.Callable[[t.Sequence[str], t.Optional[str]], tuple[int, str, str]]


class ApplyError(Exception):
    """The node refused a step of the change."""


@dataclass(frozen=True)
class Owned:
    """A file that is written whole; no text means that it must not be there."""

    path: str
    mode: int
    text: str | None


class Node:
    """The commands of the node."""

    def __init__(self, runner: Runner) -> None:
        self.runner = runner

    def run(self, *argv: str, data: str | None = None) -> tuple[int, str, str]:
        return self.runner(argv, data)

    def must(self, *argv: str) -> str:
        rc, out, err = self.run(*argv)
        if rc != 0:
            reason = (err or out).strip().rstrip(".") or "it gave no reason"
            raise ApplyError(f"'{' '.join(argv)}' failed with rc {rc}: {reason}")
        return out

    def links(self) -> dict[str, Link]:
        return parse_links(self.must("ip", "-json", "addr", "show"))

    def active(self, *units: str) -> list[bool]:
        _rc, out, err = self.run("systemctl", "is-active", *units)
        states = out.split()
        if len(states) != len(units):
            raise ApplyError(f"systemd does not answer on this node: {(err or out).strip() or 'it gave no reason'}")
        return [state == "active" for state in states]


def read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def put(file: Owned) -> None:
    if file.text is not None:
        _journal.write_file(file.path, file.text, file.mode)
        return
    if os.path.lexists(file.path):
        os.unlink(file.path)
    # Folders of ours that are left empty go as well.
    folder = os.path.dirname(file.path)
    while "sparkrig" in os.path.basename(folder) and os.path.isdir(folder) and not os.listdir(folder):
        os.rmdir(folder)
        folder = os.path.dirname(folder)


def bring_back(node: Node, content: t.Mapping[str, t.Any], netplan_file: str, lossless_unit: str) -> list[str]:
    """Files and links as they were found; the result is one sentence for each link."""
    files = [Owned(raw["path"], int(raw["mode"]), raw["text"]) for raw in content["files"]]
    before: dict[str, dict[str, t.Any]] = content["links"]
    gone = [file.path for file in files if file.text is None]
    if any(os.path.basename(path) == lossless_unit and os.path.exists(path) for path in gone):
        node.must("systemctl", "disable", "--now", lossless_unit)
    for file in files:
        put(file)
    node.must("netplan", "generate")
    node.must("systemctl", "daemon-reload")
    networkd, manager = node.active("systemd-networkd.service", "NetworkManager.service")
    links = node.links()
    there = [name for name in before if name in links]
    planned_before = any(file.text for file in files if file.path == netplan_file)
    if manager and planned_before:
        # NetworkManager has to let go before networkd gives the addresses, and to take over after it took them away.
        node.must("nmcli", "general", "reload", "conf")
    if networkd and not content["networkd_active"]:
        node.must("systemctl", "stop", "systemd-networkd.socket", "systemd-networkd.service")
    elif networkd:
        node.must("networkctl", "reload")
        if planned_before and there:
            node.must("networkctl", "reconfigure", *there)
    wrong = unlike(node.links(), before, there)
    deadline = time.monotonic() + SETTLE_S
    while wrong and planned_before and time.monotonic() < deadline:
        time.sleep(0.25)
        wrong = unlike(node.links(), before, there)
    for name in wrong:
        set_link(node, name, node.links()[name], before[name])
    if manager and not planned_before:
        node.must("nmcli", "general", "reload", "conf")
        node.must("nmcli", "connection", "reload")
    # What a manager put beside the addresses, such as routes of somebody's drop-in, goes with a link that was down.
    return [
        f"{name} is back as it was found: {', '.join(was['addresses']) or 'no address'}, MTU {was['mtu']}, "
        f"{'up' if was['up'] else 'down'}."
        if name in there
        else f"{name} does not exist any more; nothing to bring back."
        for name, was in sorted(before.items(), key=lambda item: item[0] not in there)
    ]


def unlike(links: t.Mapping[str, Link], before: t.Mapping[str, t.Any], names: t.Sequence[str]) -> list[str]:
    """The links that are not as they were."""
    return [
        name
        for name in names
        if (sorted(links[name].addresses), links[name].mtu, links[name].up)
        != (sorted(before[name]["addresses"]), before[name]["mtu"], before[name]["up"])
    ]


def set_link(node: Node, name: str, link: Link, was: t.Mapping[str, t.Any]) -> None:
    """Make a link by hand what it was, where no manager does."""
    for cidr in link.addresses:
        if cidr not in was["addresses"]:
            node.must("ip", "address", "del", cidr, "dev", name)
    if link.mtu != was["mtu"]:
        node.must("ip", "link", "set", "dev", name, "mtu", str(was["mtu"]))
    for cidr in was["addresses"]:
        if cidr not in link.addresses:
            node.must("ip", "address", "add", cidr, "dev", name)
    if link.up != was["up"]:
        node.must("ip", "link", "set", "dev", name, "up" if was["up"] else "down")


def disarm(node: Node, pending: str) -> None:
    """The change stands: nothing undoes it any more."""
    node.run("systemctl", "stop", f"{UNDO_UNIT}.timer")
    _journal.remove(pending)


def undo(node: Node, pending: str) -> list[str]:
    """Undo the change that nobody confirmed; the result is what was done. Nothing is pending: nothing is done."""
    content = _journal.load(pending, PENDING_KIND)
    if content is None:
        return ["No change is pending; nothing to undo."]
    sentences = bring_back(node, content["before"], content["netplan_file"], content["lossless_unit"])
    if content["first"]:
        _journal.remove(content["journal"])
    _journal.remove(pending)
    return sentences

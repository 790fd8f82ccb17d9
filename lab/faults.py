# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What can go wrong with a rig that serves, done to the lab; and what is seen afterwards, without any controller.

Each fault is done to the nodes, and then nobody helps: either the model is served again within a bounded time, or the
rig is down and says why in one place. Nothing may be left over, and no configuration may be lost.
"""

from __future__ import annotations

import json
import re
import shlex
import time
import typing as t
import urllib.request
from collections.abc import Callable
from dataclasses import dataclass

from lab.common import LabError, run
from lab.nodes import Node, read_nodes, up

PORT = 18089
MODEL = "lab-moe"
FAILURE = "/var/lib/sparkrig/watch/last_failure.json"
ENGINE = "sparkrig-vllm.service"
WAITING = "/var/lib/sparkrig/watch/waiting.json"
STARTS = "/var/lib/sparkrig/watch/starts.json"
# What the collection put on a node. Lost or changed, it would be a half state.
CONFIGURATION = (
    "find /etc/sparkrig /opt/sparkrig/lib /etc/systemd/system -name '*.pyc' -prune -o -type f -print0"
    " | sort -z | xargs -0 sha256sum"
)
# Processes with the runtime's files that run in none of the rig's units.
ORPHANS = (
    "for p in /proc/[0-9]*; do"
    " if grep -qs /opt/sparkrig/runtime $p/maps && ! grep -qsE 'sparkrig-[a-z]+[.]service' $p/cgroup;"
    " then cat $p/comm; fi; done; true"
)


def inside(node: Node, script: str, check: bool = False) -> str:
    """What a shell on the node says. podman is asked, so that it works without the node's network."""
    result = run(["podman", "exec", node.container, "sh", "-c", script], check=check)
    return result.stdout.decode(errors="replace").strip()


@dataclass(frozen=True)
class Seen:
    """How a fault ended."""

    fault: str
    outcome: str
    seconds: float
    reason: str
    orphans: list[str]
    lost: list[str]

    @property
    def ok(self) -> bool:
        """Served again, or not and with a reason; nothing left over, nothing lost."""
        good = self.outcome == "served" or (self.outcome in ("down", "waits") and bool(self.reason))
        return good and not self.orphans and not self.lost

    def line(self) -> list[str]:
        """The cells of the table."""
        return [
            self.fault,
            self.outcome,
            f"{self.seconds:.0f} s",
            str(len(self.orphans)),
            str(len(self.lost)),
            self.reason[:120],
        ]


def table(rows: list[list[str]]) -> str:
    """The rows in columns, under their headings."""
    lines = [["fault", "in the end", "after", "orphans", "lost files", "what was written down"], *rows]
    widths = [max(len(line[column]) for line in lines) for column in range(len(lines[0]))]
    return "\n".join("  ".join(cell.ljust(width) for cell, width in zip(line, widths)).rstrip() for line in lines)


class Rig:
    """The lab while it serves."""

    def __init__(self) -> None:
        self.nodes = read_nodes()
        self.head = self.nodes[0]
        self.key = inside(self.head, "sed -n 's/^VLLM_API_KEY=//p' /etc/sparkrig/secrets.env", check=True)

    def completion(self, timeout_s: float = 20.0) -> str | None:
        """The text of one completion from outside; None when none comes back."""
        body = {"model": MODEL, "prompt": "Four small machines", "max_tokens": 4, "temperature": 0}
        request = urllib.request.Request(
            f"http://{self.head.management_ip}:{PORT}/v1/completions",
            data=json.dumps(body).encode(),
            headers={"Content-Type": "application/json", "Authorization": f"Bearer {self.key}"},
        )
        opener = urllib.request.build_opener(urllib.request.ProxyHandler({}))
        try:
            with opener.open(request, timeout=timeout_s) as answer:
                return str(json.load(answer)["choices"][0]["text"])
        except (OSError, ValueError, KeyError):
            return None

    def engine(self) -> dict[str, str]:
        """What systemd on the head says about the engine."""
        text = inside(self.head, f"systemctl show -p ActiveState,SubState,InvocationID,MainPID {ENGINE}")
        return dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def failure(self) -> dict[str, t.Any]:
        """The one place that says why."""
        try:
            found: dict[str, t.Any] = json.loads(inside(self.head, f"cat {FAILURE}"))
            return found
        except ValueError:
            return {}

    def configuration(self) -> dict[str, set[str]]:
        """The files of the rig on every node that can be asked, with their digests."""
        return {node.name: set(inside(node, CONFIGURATION).splitlines()) for node in self.nodes}

    def orphans(self) -> list[str]:
        """What runs outside of every unit."""
        return [f"{node.name}: {name}" for node in self.nodes for name in inside(node, ORPHANS).split("\n") if name]

    def pids(self, node: Node, pattern: str) -> list[int]:
        """Processes of the node whose command line matches."""
        found = inside(node, f"pgrep -f {shlex.quote(pattern)}")
        return [int(word) for word in found.split()]

    def signal(self, node: Node, pattern: str, name: str) -> None:
        """A signal for every process that matches; there must be one."""
        # The shell that looks for the pattern has it in its own command line, and is gone by now.
        signalled = [pid for pid in self.pids(node, pattern) if inside(node, f"kill -{name} {pid} && echo done")]
        if not signalled:
            raise LabError(f"{node.name} has no process that matches {pattern!r}; is the lab serving?")

    def wait(self, limit_s: float, before: str | None) -> tuple[str, float]:
        """("served" or "down" or "waits" or "neither", seconds).

        It waits when a node is away: it says for which, and serves again when that one is back.

        *before* is the start of the engine that has to be another one; None where the same one may go on.
        """
        begin = time.monotonic()
        while time.monotonic() - begin < limit_s:
            state = self.engine()
            # One that did not stop in time is failed for a moment, and started anew.
            if state.get("ActiveState") == "failed" and not inside(
                self.head, f"systemctl list-jobs --no-legend {ENGINE}"
            ):
                return "down", time.monotonic() - begin
            fresh = before is None or state.get("InvocationID") != before
            if fresh and state.get("ActiveState") == "active" and self.completion() is not None:
                return "served", time.monotonic() - begin
            time.sleep(1)
        return ("waits" if self.waiting() else "neither"), limit_s

    def waiting(self) -> str:
        """What the start of the engine waits for; empty when it does not."""
        if self.engine().get("SubState") != "start-pre":
            return ""
        try:
            return str((json.loads(inside(self.head, f"cat {WAITING}")) or {}).get("sentence", ""))
        except ValueError:
            return ""


@dataclass(frozen=True)
class Fault:
    """One thing that goes wrong. *do* does it; *undo* ends what would not end by itself."""

    name: str
    do: Callable[[Rig], None]
    limit_s: float = 300.0
    # Whether the engine has to be another one afterwards.
    restarts: bool = True
    undo: Callable[[Rig], None] | None = None
    representative: bool = False


def _cut(rig: Rig, node: Node) -> None:
    del rig
    for number in range(1 + len(node.rails)):
        run(["ip", "link", "set", f"sr{node.index}-{number}", "nomaster", "down"])


def _mend(rig: Rig, node: Node) -> None:
    del rig
    for number in range(1 + len(node.rails)):
        run(["ip", "link", "set", f"sr{node.index}-{number}", "master", f"sparkrig{number}", "up"])


def _cut_for(seconds: float) -> Callable[[Rig], None]:
    def do(rig: Rig) -> None:
        _cut(rig, rig.nodes[2])
        time.sleep(seconds)
        _mend(rig, rig.nodes[2])

    return do


def _reboot(*numbers: int) -> Callable[[Rig], None]:
    def do(rig: Rig) -> None:
        nodes = [rig.nodes[number] for number in numbers]
        # As a power button that is held: nothing is shut down in order.
        run(["podman", "kill", *[node.container for node in nodes]])
        for node in nodes:
            deadline = time.monotonic() + 20
            while (
                run(["podman", "container", "inspect", "-f", "{{.State.Running}}", node.container]).stdout == b"true\n"
            ):
                if time.monotonic() > deadline:
                    raise LabError(f"{node.name} does not stop")
                time.sleep(0.2)
        up()

    return do


def _fill_memory(rig: Rig) -> None:
    """Something on a worker takes all the memory that its control group has, and the kernel has to kill."""
    node = rig.nodes[2]
    script = (
        "import os,time\n"
        "open('/proc/self/oom_score_adj','w').write('-1000')\n"
        "held=[]\n"
        "end=time.time()+15\n"
        "while time.time()<end:\n"
        "    if len(held)<70: held.append(bytearray(b'x')*(1<<26))\n"
        "    time.sleep(0.05)\n"
    )
    inside(node, f"timeout -s KILL 40 python3 -c {shlex.quote(script)}")


def _fill_disk(rig: Rig) -> None:
    """A full disk under the log and the state of the head, while a rank dies."""
    inside(
        rig.head,
        "mount -t tmpfs -o size=1m tmpfs /var/lib/sparkrig/watch && dd if=/dev/zero of=/var/lib/sparkrig/watch/full",
    )
    inside(
        rig.head,
        "mkdir -p /run/fulldisk && mount -t tmpfs -o size=1m tmpfs /run/fulldisk;"
        " dd if=/dev/zero of=/run/fulldisk/full;"
        " mount --bind /run/fulldisk /var/log/journal 2>/dev/null || mount --bind /run/fulldisk /run/log/journal",
    )
    rig.signal(rig.nodes[1], "ray::RayWorkerProc", "KILL")


def _free_disk(rig: Rig) -> None:
    inside(
        rig.head,
        "umount /var/lib/sparkrig/watch; umount /var/log/journal || umount /run/log/journal; umount /run/fulldisk;"
        " systemctl restart systemd-journald",
    )


def _kill(number: int, pattern: str) -> Callable[[Rig], None]:
    return lambda rig: rig.signal(rig.nodes[number], pattern, "KILL")


def _stop_engine_core(rig: Rig) -> None:
    """The engine core stands still, as in a deadlock: alive, but nothing moves."""
    rig.signal(rig.head, "VLLM::EngineCore", "STOP")


FAULTS = (
    Fault("worker killed", _kill(2, "ray::RayWorkerProc"), representative=True),
    Fault("engine core killed", _kill(0, "VLLM::EngineCore")),
    Fault("engine core stands still", _stop_engine_core, limit_s=480.0),
    Fault("API server killed", _kill(0, "openai.api_server")),
    Fault("raylet of a worker killed", _kill(1, "/raylet/raylet")),
    Fault("raylet of the head killed", _kill(0, "/raylet/raylet")),
    Fault("GCS of the head killed", _kill(0, "gcs_server")),
    Fault("a network gone for 30 s", _cut_for(30.0), restarts=False),
    Fault("a network gone for 75 s", _cut_for(75.0), restarts=False),
    Fault(
        "a network gone for good",
        lambda rig: _cut(rig, rig.nodes[2]),
        limit_s=150.0,
        undo=lambda rig: _mend(rig, rig.nodes[2]),
    ),
    Fault("one node rebooted", _reboot(1), representative=True),
    Fault("the head rebooted", _reboot(0)),
    Fault("all nodes rebooted", _reboot(0, 1, 2, 3)),
    Fault("disk full under the log", _fill_disk, undo=_free_disk),
    Fault("a node out of memory", _fill_memory, restarts=False, representative=True),
)


def observe(rig: Rig, fault: Fault) -> Seen:
    """Do *fault* to a rig that serves, and see how it ends."""
    # The faults before this one are no starts of this hour.
    inside(rig.head, f"systemctl reset-failed {ENGINE}; rm -f {STARTS}")
    files = rig.configuration()
    start = rig.engine().get("InvocationID", "")
    before = rig.failure()
    begin = time.monotonic()
    fault.do(rig)
    outcome, _seconds = rig.wait(fault.limit_s, start if fault.restarts else None)
    seconds = time.monotonic() - begin
    failure = rig.failure()
    reason = rig.waiting() or ("" if failure == before else str(failure.get("sentence", "")))
    if fault.undo is not None:
        fault.undo(rig)
    after = rig.configuration()
    lost = sorted(
        f"{name}: {re.sub(r'^[0-9a-f]+ +', '', line)}"
        for name in files
        for line in files[name] - after.get(name, set())
    )
    return Seen(fault.name, outcome, seconds, reason, rig.orphans(), lost)

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""From `systemctl start` of the rig to the first token: how much of it is ours.

Ours is everything before systemd runs vLLM's own command: Ray on every node, and the checks before the start. From
there on it is the engine. Nodes in containers share this machine's monotonic clock, so systemd's times are ours.
"""

from __future__ import annotations

import http.client
import json
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor

from lab.common import LabError
from lab.faults import ENGINE, MODEL, PORT, STARTS, Rig, inside
from lab.nodes import Node

RAY = "sparkrig-ray.service"
LIMIT_S = 420.0
LOOK_EVERY_S = 0.1
ROUNDS = 2


def first_token(address: str, key: str, limit_s: float = LIMIT_S) -> float:
    """When the first token of a completion arrives, on the monotonic clock; it is asked for until there is one."""
    body = json.dumps({"model": MODEL, "prompt": "Four small", "max_tokens": 4, "temperature": 0, "stream": True})
    headers = {"Content-Type": "application/json", "Authorization": f"Bearer {key}"}
    deadline = time.monotonic() + limit_s
    while time.monotonic() < deadline:
        connection = http.client.HTTPConnection(address, PORT, timeout=limit_s)
        try:
            connection.request("POST", "/v1/completions", body, headers)
            answer = connection.getresponse()
            if answer.status == 200 and answer.readline().startswith(b"data:"):
                return time.monotonic()
        except OSError:
            # Nobody listens yet.
            pass
        finally:
            connection.close()
        time.sleep(LOOK_EVERY_S)
    raise LabError(f"no token came from {address}:{PORT} in {limit_s:.0f} s")


def executed(rig: Rig) -> float:
    """When systemd last ran the engine's own command, on the monotonic clock."""
    return int(inside(rig.head, f"systemctl show -P ExecMainStartTimestampMonotonic {ENGINE}", check=True)) / 1e6


def everywhere(rig: Rig, verb: str) -> None:
    """The same for every node's part of the rig, on all nodes at once."""

    def on(node: Node) -> None:
        inside(node, f"systemctl {verb} {RAY} {ENGINE if node is rig.head else ''}", check=True)

    with ThreadPoolExecutor(len(rig.nodes)) as pool:
        list(pool.map(on, rig.nodes))


def one_start(rig: Rig) -> dict[str, float]:
    """Stop the rig, start it, and divide the seconds to the first token."""
    everywhere(rig, "stop")
    # Those before this one are no starts of this hour.
    inside(rig.head, f"systemctl reset-failed {ENGINE}; rm -f {STARTS}")
    started = time.monotonic()
    everywhere(rig, "start --no-block")
    token = first_token(rig.head.management_ip, rig.key)
    engine = executed(rig)
    return {
        "whole_s": round(token - started, 2),
        "ours_s": round(engine - started, 2),
        "engine_s": round(token - engine, 2),
    }


def measure() -> dict[str, t.Any]:
    """Some starts, on nodes that serve."""
    rig = Rig()
    return {"nodes": len(rig.nodes), "starts": [one_start(rig) for _round in range(ROUNDS)]}

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab of the benchmarks: beside every other one, with as many nodes as are wanted.

Its inventory is made from that of ``inventory/lab``: the same variables, the first node's addresses counted up, one
rank on each node. Eight ranks want eight attention heads, so that model is served with every number of nodes.
"""

from __future__ import annotations

import ipaddress
import json
import os
import subprocess
import sys
import typing as t
from pathlib import Path

import yaml

from lab.common import LabError, say

PROJECT = Path(__file__).resolve().parents[2]
BUILD = PROJECT / "build" / "bench"
NAME = "bench"
HEADS = 8
PATTERN = PROJECT / "inventory" / "lab"


def inventory_of(pattern: dict[str, t.Any], count: int) -> dict[str, t.Any]:
    """An inventory of *count* nodes like the first one of *pattern*."""
    first = next(iter(pattern["sparks"]["hosts"].values()))

    def later(address: str, number: int) -> str:
        host, slash, prefix = address.partition("/")
        return f"{ipaddress.ip_address(host) + number}{slash}{prefix}"

    hosts = {
        f"spark{number + 1}": {
            "ansible_host": later(first["ansible_host"], number),
            "fabric_addresses": {rail: later(address, number) for rail, address in first["fabric_addresses"].items()},
        }
        for number in range(count)
    }
    variables = {"serving_overrides": {"tensor_parallel_size": count}, "lab_checkpoint_options": f"--heads {HEADS}"}
    return {"sparks": {"hosts": hosts, "vars": variables}}


def write_inventory(count: int) -> Path:
    """The folder with the inventory of *count* nodes."""
    folder = BUILD / f"nodes-{count}"
    folder.mkdir(parents=True, exist_ok=True)
    pattern = yaml.safe_load((PATTERN / "hosts.yml").read_text(encoding="utf-8"))
    (folder / "hosts.yml").write_text(yaml.safe_dump(inventory_of(pattern, count)), encoding="utf-8")
    for name in ("group_vars", "reach.py"):
        if not (folder / name).exists():
            (folder / name).symlink_to(PATTERN / name)
    return folder


class BenchLab:
    """What the nodes are now: none, bare ones, or ones that serve."""

    def __init__(self) -> None:
        self.count = 0
        self.serves = False

    def _run(self, *command: str) -> None:
        environment = {**os.environ, "PYTHONPATH": str(PROJECT)}
        if self.count:
            environment["SPARKRIG_INVENTORY"] = str(write_inventory(self.count))
        done = subprocess.run(
            [str(PROJECT / "lab" / "beside.sh"), NAME, *command], cwd=PROJECT, env=environment, check=False
        )
        if done.returncode != 0:
            raise LabError(f"'{' '.join(command[1:])}' failed on {self.count} nodes (exit {done.returncode})")

    def bare(self, count: int) -> None:
        """*count* nodes that nobody has touched yet, with the checkpoints on them."""
        # A run that was killed may have left some.
        self._clear()
        self.count = count
        say(f"making bare nodes: {count}")
        self._run(sys.executable, "-m", "lab.nodes", "up")
        playbook = [str(Path(sys.executable).parent / "ansible-playbook"), "-i", str(write_inventory(count))]
        self._run(*playbook, "molecule/default/prepare.yml")

    def serving(self, count: int) -> None:
        """*count* nodes that serve."""
        if (self.count, self.serves) != (count, True):
            self.bare(count)
            self.measured("site_speed")

    def measured(self, part: str) -> dict[str, t.Any]:
        """What ``measure()`` of the module *part* finds on the nodes, where it runs: in the lab's own network."""
        path = BUILD / f"inside-{part}.json"
        self.serves = False
        self._run(sys.executable, "-m", "tests.bench.inside", part, str(path))
        # Only these two leave them as they are for the next one.
        self.serves = part in ("site_speed", "start_up")
        found: dict[str, t.Any] = json.loads(path.read_text(encoding="utf-8"))
        path.unlink()
        return found

    def remove(self) -> None:
        """Take the nodes away; parts that need no node have made none."""
        if self.count:
            self._clear()

    def _clear(self) -> None:
        self.count, self.serves = 0, False
        self._run(sys.executable, "-m", "lab.nodes", "down")

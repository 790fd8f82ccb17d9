# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The program that role fabric puts on every node. It runs without Ansible, from a copy of these files.

``fabric start CONFIG`` runs before every start of a service: it holds the service's own environment against the rules
for RoCE, and resolves the GID index of this boot where one is needed. ``fabric undo PENDING`` undoes a change of the
rails that nobody confirmed in time.

Private to this collection: import it from nowhere else.
"""

from __future__ import annotations

import json
import os
import socket
import subprocess
import sys
import time
import typing as t

from . import _fabric_node, _journal, _rdma
from ._roce_rules import roce_problems

# What the program is made of, in the folder of that name.
PARTS = ("_fabric", "_fabric_node", "_fabric_start", "_journal", "_rdma", "_roce_rules")
PACKAGE = "sparkrig_fabric"
MAIN = f"""\
# Managed by sparkrig.serving. Changes are overwritten.
import sys

from {PACKAGE}._fabric_start import main

sys.exit(main(sys.argv))
"""


def has_address(address: str) -> bool:
    """Whether this machine has this IPv4 address on an interface that is up."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
        try:
            probe.bind((address, 0))
        except OSError:
            return False
    return True


def written_index(gid_file: str) -> str | None:
    """The index that an earlier start of a service wrote; systemd hands it to this program as well."""
    text = _fabric_node.read(gid_file) or ""
    values = [line.partition("=")[2] for line in text.splitlines() if line.startswith("NCCL_IB_GID_INDEX=")]
    return values[0] if values else None


def refusals(
    environment: t.Mapping[str, str], own_index: str | None, interfaces: t.Collection[str], sys_root: str
) -> list[str]:
    """What in a service's own environment takes RoCE away, for good: waiting does not help."""
    judged = dict(environment)
    if own_index is not None and judged.get("NCCL_IB_GID_INDEX") == own_index:
        del judged["NCCL_IB_GID_INDEX"]
    devices = {port.device for port in _rdma.read_ports(sys_root)}
    return roce_problems(judged, interfaces=interfaces, devices=devices)


def gid_text(index: int | None) -> str:
    """The environment file with the GID index of this boot; empty of variables where none is needed."""
    text = "# Managed by sparkrig.serving. Written at every start of a service.\n"
    return text if index is None else f"{text}NCCL_IB_GID_INDEX={index}\n"


def start(config: t.Mapping[str, t.Any], environment: t.Mapping[str, str]) -> list[str]:
    """Check and resolve, waiting for what may still come up after a boot; ValueError when it does not."""
    sys_root, gid_file = config["sys_root"], config["gid_file"]
    interfaces = {name for _index, name in socket.if_nameindex()}
    problems = refusals(environment, written_index(gid_file), interfaces, sys_root)
    if problems:
        raise ValueError(". ".join(f"The environment of this service takes RoCE away: {text}" for text in problems))
    host = environment.get("VLLM_HOST_IP", "")
    deadline = time.monotonic() + config["wait_s"]
    while True:
        missing = f"VLLM_HOST_IP is {host!r}, which no interface of this node has" if host else ""
        if host and has_address(host):
            missing = ""
        try:
            index, sentences = _rdma.resolve_gid_index(
                _rdma.read_ports(sys_root), config["rails"], config["gid_policy"]
            )
        except ValueError as error:
            missing = missing or str(error)
        if not missing:
            break
        if time.monotonic() >= deadline:
            raise ValueError(f"{missing}, after {config['wait_s']} s of waiting; run role fabric here")
        time.sleep(1)
    os.makedirs(config["nccl_log_folder"], mode=0o755, exist_ok=True)
    _journal.write_file(gid_file, gid_text(index), 0o644)
    return [*sentences, "NCCL_IB_GID_INDEX is left unset" if index is None else f"NCCL_IB_GID_INDEX is {index}"]


def run_command(argv: t.Sequence[str], data: str | None) -> tuple[int, str, str]:
    """One command of the node, for the undo."""
    environment = {**os.environ, "LC_ALL": "C"}
    done = subprocess.run(list(argv), input=data, capture_output=True, text=True, check=False, env=environment)
    return done.returncode, done.stdout, done.stderr


def main(argv: t.Sequence[str]) -> int:
    """What systemd starts; all that it prints goes to the journal."""
    try:
        if list(argv[1:2]) == ["undo"] and len(argv) == 3:
            sentences = _fabric_node.undo(_fabric_node.Node(run_command), argv[2])
        elif list(argv[1:2]) == ["start"] and len(argv) == 3:
            with open(argv[2], encoding="utf-8") as stream:
                sentences = start(json.load(stream), os.environ)
        else:
            raise ValueError("usage: fabric start CONFIG | fabric undo PENDING")
    except (ValueError, OSError, _fabric_node.ApplyError) as error:
        sys.stderr.write(f"sparkrig: {error}.\n")
        return 1
    for sentence in sentences:
        sys.stdout.write(f"sparkrig: {sentence}\n")
    return 0

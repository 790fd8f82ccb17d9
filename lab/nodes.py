# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The lab's nodes: systemd containers on a management bridge and two rails.

``up`` makes what is missing and leaves alone what is there, so that it also repairs a node whose container
was killed. ``down`` removes everything that ``up`` made. The nodes are those of ``inventory/lab``, or of the inventory
that ``SPARKRIG_INVENTORY`` names.

The networks are plain bridges and veth pairs rather than podman's: the rails have to appear inside a node
as unaddressed links, as after cabling, and one mechanism is enough.
"""

from __future__ import annotations

import ipaddress
import json
import os
import re
import resource
import shutil
import subprocess
import sys
import time
import typing as t
from dataclasses import dataclass
from pathlib import Path

from lab.common import LabError, lab_name, main_guard, run, say, state_dir
from lab.image import ensure_image

PROJECT = Path(__file__).resolve().parent.parent
INVENTORY = Path(os.environ.get("SPARKRIG_INVENTORY") or PROJECT / "inventory" / "lab")
LABEL = f"sparkrig=lab{lab_name()}"
MANAGEMENT_BRIDGE = "sparkrig0"
MANAGEMENT_PREFIX = 24
RAIL_MTU = 9000
READY_TIMEOUT_S = 60.0
BOOT_TIMEOUT_S = 240.0
NODE_OPEN_FILES = 65536
NODE_PROCESSES = 32768


@dataclass(frozen=True)
class Node:
    """One container: its name in the inventory, its links and its limits."""

    name: str
    index: int
    management_ip: str
    rails: tuple[str, ...]
    memory_limit_bytes: int
    shm_bytes: int

    @property
    def container(self) -> str:
        """The container's name in podman."""
        return f"sparkrig{lab_name()}-{self.name}"


def nodes_of(inventory: dict[str, t.Any]) -> list[Node]:
    """The nodes of what ``ansible-inventory --list`` printed, in the inventory's order.

    Raises :class:`LabError` when a host has no address or no rail.
    """
    hostvars = inventory["_meta"]["hostvars"]
    hosts = inventory["sparks"]["hosts"]
    nodes = []
    for index, name in enumerate(hosts, start=1):
        values = hostvars[name]
        if "ansible_host" not in values or not values.get("fabric_addresses"):
            raise LabError(f"{name} in the lab's inventory has no ansible_host or no fabric_addresses.")
        nodes.append(
            Node(
                name=name,
                index=index,
                management_ip=values["ansible_host"],
                rails=tuple(values["fabric_addresses"]),
                memory_limit_bytes=int(values["lab_memory_limit_bytes"]),
                shm_bytes=int(values["lab_shm_bytes"]),
            )
        )
    return nodes


def read_nodes() -> list[Node]:
    """The nodes of the lab's inventory."""
    ansible_inventory = Path(sys.executable).parent / "ansible-inventory"
    result = subprocess.run(
        [str(ansible_inventory), "-i", str(INVENTORY), "--list"], capture_output=True, check=False, cwd=PROJECT
    )
    if result.returncode != 0:
        raise LabError(f"the lab's inventory cannot be read: {result.stderr.decode(errors='replace').strip()}")
    return nodes_of(json.loads(result.stdout))


def bridges(rail_count: int) -> list[str]:
    """The management bridge and one bridge per rail."""
    return [MANAGEMENT_BRIDGE, *(f"sparkrig{rail}" for rail in range(1, rail_count + 1))]


def links() -> list[str]:
    """The names of this machine's network links; in a lab beside the first one, /sys shows those of another."""
    return [link["ifname"] for link in json.loads(run(["ip", "-json", "link", "show"]).stdout)]


def namespace() -> str:
    """The name of the network namespace that this runs in, as ``lab/beside.sh`` made it; the first lab has none."""
    return f"sparkrig-{lab_name()}" if lab_name() else ""


def ensure_namespace() -> None:
    """Give it its name again, after ``down`` in the same command has taken that away."""
    if namespace() and not Path("/run/netns", namespace()).exists():
        run(["ip", "netns", "attach", namespace(), str(os.getpid())])


def ensure_bridges(nodes: list[Node]) -> None:
    """Make the bridges and give this machine an address on the management bridge."""
    for name in bridges(len(nodes[0].rails)):
        if name not in links():
            run(["ip", "link", "add", name, "type", "bridge"])
        run(["ip", "link", "set", name, "mtu", "1500" if name == MANAGEMENT_BRIDGE else str(RAIL_MTU), "up"])
    network = ipaddress.ip_network(f"{nodes[0].management_ip}/{MANAGEMENT_PREFIX}", strict=False)
    gateway = f"{network.network_address + 1}/{MANAGEMENT_PREFIX}"
    run(["ip", "address", "replace", gateway, "dev", MANAGEMENT_BRIDGE])


def container_pid(node: Node) -> int:
    """The process id of the node's init on this machine, 0 when the node does not run."""
    result = run(["podman", "inspect", "--format", "{{.State.Pid}}", node.container], check=False)
    return int(result.stdout.strip() or b"0") if result.returncode == 0 else 0


def runtime_options() -> list[str]:
    """The container runtime that this machine's cgroups need: crun refuses cgroup v1."""
    version = run(["podman", "info", "--format", "{{.Host.CgroupsVersion}}"]).stdout.decode().strip()
    return [] if version == "v2" else ["--runtime", "runc"]


def limit(resource_id: int, wanted: int) -> int:
    """*wanted*, or this machine's hard limit where that is lower."""
    hard = resource.getrlimit(resource_id)[1]
    return wanted if hard == resource.RLIM_INFINITY else min(hard, wanted)


def ensure_container(node: Node, image: str, runtime: list[str]) -> None:
    """Create and start the node's container if it is not running."""
    if container_pid(node):
        return
    if run(["podman", "container", "exists", node.container], check=False).returncode == 0:
        run(["podman", *runtime, "start", node.container])
        return
    # A container may not raise the limits that it inherits, and podman asks for more than that by default.
    files = limit(resource.RLIMIT_NOFILE, NODE_OPEN_FILES)
    processes = limit(resource.RLIMIT_NPROC, NODE_PROCESSES)
    run(
        [
            *["podman", *runtime, "run", "--detach", "--label", LABEL],
            *["--name", node.container, "--hostname", node.name],
            *["--systemd=always", "--privileged", "--network", "none"],
            *["--tmpfs", "/run", "--tmpfs", "/tmp", "--shm-size", str(node.shm_bytes)],
            *["--memory", str(node.memory_limit_bytes)],
            *["--ulimit", f"nofile={files}:{files}", "--ulimit", f"nproc={processes}:{processes}"],
            image,
        ]
    )


def ensure_links(node: Node) -> None:
    """Plug the node's management link and its rails in, if they are not."""
    pid = container_pid(node)
    if not pid:
        log = run(["podman", "logs", "--tail", "5", node.container], check=False).stdout.decode(errors="replace")
        raise LabError(f"{node.name} stopped right after its start: {log.strip() or 'its log is empty'}")
    inside = ["nsenter", "--target", str(pid), "--net"]
    wanted = [("eth0", MANAGEMENT_BRIDGE, 1500)]
    wanted += [(rail, f"sparkrig{number}", RAIL_MTU) for number, rail in enumerate(node.rails, start=1)]
    for number, (inner, bridge, mtu) in enumerate(wanted):
        outer = f"sr{node.index}-{number}"
        if run([*inside, "ip", "link", "show", "dev", inner], check=False).returncode == 0:
            continue
        if outer in links():
            run(["ip", "link", "delete", outer])
        # A node that comes back keeps its MAC addresses, as a machine does: its peers still know them.
        address = f"02:53:50:52:{node.index:02x}:{number:02x}"
        peer = ["peer", "name", inner, "address", address, "netns", str(pid)]
        run(["ip", "link", "add", outer, "type", "veth", *peer])
        run(["ip", "link", "set", outer, "mtu", str(mtu), "master", bridge, "up"])
        if bridge == MANAGEMENT_BRIDGE:
            run([*inside, "ip", "address", "replace", f"{node.management_ip}/{MANAGEMENT_PREFIX}", "dev", inner])
            run([*inside, "ip", "link", "set", inner, "up"])


def ensure_key() -> Path:
    """The key that opens the nodes, made once per lab."""
    key = state_dir() / "id_ed25519"
    if not key.exists():
        subprocess.run(
            ["ssh-keygen", "-q", "-t", "ed25519", "-N", "", "-C", "sparkrig lab", "-f", str(key)], check=True
        )
    return key


def ensure_login(node: Node, key: Path) -> str:
    """Let the key in and return the node's line for known_hosts, once its sshd is up."""
    public = key.with_suffix(".pub").read_bytes()
    execute = ["podman", "exec", "--interactive", node.container]
    deadline = time.monotonic() + READY_TIMEOUT_S
    while True:
        # The host key is taken from inside the node, not from the network.
        host_key = run([*execute, "cat", "/etc/ssh/ssh_host_ed25519_key.pub"], check=False)
        active = run([*execute, "systemctl", "is-active", "--quiet", "ssh.service"], check=False)
        if host_key.returncode == 0 and active.returncode == 0:
            break
        if time.monotonic() > deadline:
            failed = run([*execute, "systemctl", "--failed", "--no-legend"], check=False).stdout.decode().strip()
            raise LabError(
                f"{node.name} has no sshd {READY_TIMEOUT_S:.0f} s after its start; failed units: {failed or 'none'}."
            )
        time.sleep(0.3)
    run(
        [
            *execute,
            *["install", "-D", "-m", "0600", "-o", "spark", "-g", "spark", "/dev/stdin"],
            "/home/spark/.ssh/authorized_keys",
        ],
        stdin=public,
    )
    run([*execute, "chown", "spark:spark", "/home/spark/.ssh"])
    kind, value = host_key.stdout.decode().split()[:2]
    return f"{node.management_ip} {kind} {value}\n"


def wait_for_boot(node: Node) -> None:
    """Wait until systemd has nothing left to start; sshd answers half a minute before that, snapd seeds so long."""
    deadline = time.monotonic() + BOOT_TIMEOUT_S
    while True:
        command = ["podman", "exec", node.container, "systemctl", "is-system-running"]
        state = run(command, check=False).stdout.decode().strip()
        if state in {"running", "degraded"}:
            return
        if time.monotonic() > deadline:
            jobs = run(["podman", "exec", node.container, "systemctl", "list-jobs", "--no-legend"], check=False)
            waiting = " ".join(jobs.stdout.decode().split()) or "nothing that it names"
            raise LabError(f"{node.name} is still '{state}' after {BOOT_TIMEOUT_S:.0f} s; it waits for {waiting}.")
        time.sleep(0.3)


def up() -> None:
    """Make the lab complete: image, bridges, containers, links and logins."""
    for program in ("podman", "ip", "nsenter", "ssh-keygen"):
        if shutil.which(program, path="/usr/sbin:/sbin:/usr/bin:/bin:/usr/local/bin") is None:
            raise LabError(f"{program} is not installed; `make system` installs what the lab needs.")
    nodes = read_nodes()
    image = ensure_image()
    key = ensure_key()
    ensure_namespace()
    ensure_bridges(nodes)
    runtime = runtime_options()
    for node in nodes:
        ensure_container(node, image, runtime)
        ensure_links(node)
    (state_dir() / "cp").mkdir(mode=0o700, exist_ok=True)
    known_hosts = "".join(ensure_login(node, key) for node in nodes)
    (state_dir() / "known_hosts").write_text(known_hosts, encoding="utf-8")
    say(f"{len(nodes)} nodes are up: " + ", ".join(f"{node.name} {node.management_ip}" for node in nodes))


def close_connections() -> None:
    """End the SSH connections that Ansible keeps open: their peers are about to vanish."""
    for socket in sorted((state_dir() / "cp").glob("*")):
        subprocess.run(["ssh", "-O", "exit", "-o", f"ControlPath={socket}", "none"], capture_output=True, check=False)


def down() -> None:
    """Remove every container, link and bridge of the lab, its network namespace, its key and its known hosts."""
    close_connections()
    if shutil.which("podman", path="/usr/bin:/usr/local/bin") is not None:
        listed = run(["podman", "ps", "--all", "--quiet", "--filter", f"label={LABEL}"]).stdout.decode().split()
        if listed:
            # The nodes hold nothing worth a clean shutdown.
            run(["podman", "rm", "--force", "--time", "0", "--volumes", *listed])
    for name in links():
        if re.fullmatch(r"sr[0-9]+-[0-9]|sparkrig[0-9]", name):
            run(["ip", "link", "delete", name], check=False)
    if namespace():
        # It lives on until this command ends, but nobody finds it any more.
        run(["ip", "netns", "delete", namespace()], check=False)
    shutil.rmtree(state_dir())
    say("nothing of the lab is left but its cache")


def main() -> None:
    """``python -m lab.nodes up|down``."""
    actions = {"up": up, "down": down}
    if len(sys.argv) != 2 or sys.argv[1] not in actions:
        raise LabError("usage: python -m lab.nodes up|down")
    actions[sys.argv[1]]()


if __name__ == "__main__":
    main_guard(main)

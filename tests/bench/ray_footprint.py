# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What Ray holds on the nodes of a lab: ours idle, the seed's flags on `ray[default]`, and no Ray at all, in one run.

Needs a lab that serves, and leaves it serving with vLLM's own executor. Every node has its own copy of either Ray, as
machines have, so that nothing is shared between nodes. Memory is PSS: what is shared is divided among those who share
it, and files that are mapped count as well.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
import tempfile
import time
import typing as t
from dataclasses import asdict, dataclass
from pathlib import Path

from lab.common import LabError, cache_dir, run, say
from lab.hosts import HOSTS, NODES, Host, environment
from lab.play import play
from lab.processes import rig_processes

PYTHON = "/opt/sparkrig/current/bin/python"
SEED = "/opt/bench-ray"
SEED_UNIT = "sparkrig-bench-ray.service"
OUR_UNIT = "sparkrig-ray.service"
SETTLE_S = 15.0
OUR_ENVIRONMENT = "set -a; . /etc/sparkrig/ray.env; . /etc/sparkrig/ray-token.env; set +a;"
SEED_ENVIRONMENT = f"PYTHONPATH={SEED} RAY_AUTH_MODE=disabled"
MP = {"serving_overrides": {"tensor_parallel_size": len(NODES), "distributed_executor_backend": "mp"}}

SEED_COMMON = (
    "--object-store-memory=134217728 --object-spilling-directory=/var/tmp/ray-spill --num-cpus=1 --num-gpus=1"
    " --include-log-monitor=false --disable-usage-stats"
)


@dataclass(frozen=True)
class Footprint:
    """One Ray on one node: MiB by process, the largest first."""

    what: str
    processes: list[tuple[str, float]]


def seed_ray(version: str, python: str) -> Path:
    """A folder with `ray[default]` of that version from the package index, kept in the cache."""
    folder = cache_dir() / "bench" / f"ray-default-{version}-py{python}"
    if not folder.exists():
        say(f"installing ray[default] {version}")
        folder.parent.mkdir(parents=True, exist_ok=True)
        partial = Path(tempfile.mkdtemp(dir=folder.parent))
        uv = Path(sys.executable).parent / "uv"
        command = [str(uv), "pip", "install", "--quiet", "--system-certs", "--target", str(partial)]
        # Bytecode belongs to an installation; without it each process would hold what it compiled.
        command += ["--compile-bytecode", "--python-version", python, "--link-mode", "copy", f"ray[default]=={version}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode != 0:
            shutil.rmtree(partial)
            raise LabError(f"ray[default] {version} cannot be installed: {done.stderr.strip().splitlines()[-1:]}")
        partial.rename(folder)
    return folder


def measured(host: Host, what: str, unit: str) -> Footprint:
    """What the processes of *unit* hold on *host* now, the largest first."""
    found = sorted(rig_processes(host, [unit]), key=lambda process: -process.pss_bytes)
    return Footprint(what, [(name_of(process.command), round(process.pss_bytes / 2**20, 1)) for process in found])


def held_mib() -> dict[str, float]:
    """What everything holds that the rig runs, by node."""
    time.sleep(SETTLE_S)
    return {
        name: round(sum(process.pss_bytes for process in rig_processes(host)) / 2**20, 1)
        for name, host in HOSTS.items()
    }


def name_of(command: str) -> str:
    """The program and its first words."""
    program, _blank, rest = command.partition(" ")
    return " ".join(f"{program.rsplit('/', 1)[-1]} {rest}".split())[:50]


def wait_for_nodes(head: Host, address: str, count: int, python: str) -> None:
    """Wait until the GCS at *address* has *count* living nodes, asked with *python*, its environment before it."""
    code = (
        "import sys; from ray._raylet import GcsClientOptions, GlobalStateAccessor;"
        " o = GcsClientOptions.create(sys.argv[1], None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False);"
        " a = GlobalStateAccessor(o); a.connect(); print(sum(n['alive'] for n in a.get_node_table()))"
    )
    deadline = time.monotonic() + 120
    while True:
        # Without a GCS to connect to, Ray would try for minutes.
        answer = head.run(f"{python} -c %s %s", code, address).stdout.split()
        if answer[-1:] == [str(count)]:
            return
        if time.monotonic() > deadline:
            raise LabError(f"Ray at {address} has {answer[-1:]} nodes after 120 s; {count} were started.")
        time.sleep(1)


def ours(nodes: t.Sequence[Host], address: str) -> list[Footprint]:
    """The rig's own units, started anew."""
    for host in nodes:
        host.check_output(f"systemctl start {OUR_UNIT}")
    wait_for_nodes(nodes[0], address, len(nodes), f"{OUR_ENVIRONMENT} timeout 20 {PYTHON}")
    time.sleep(SETTLE_S)
    found = [measured(host, f"ours, {role}", OUR_UNIT) for host, role in zip(nodes, ("head", "node"), strict=True)]
    for host in nodes:
        host.check_output(f"systemctl stop {OUR_UNIT}")
    return found


def seed(nodes: t.Sequence[Host], containers: t.Sequence[str], ips: t.Sequence[str], folder: Path) -> list[Footprint]:
    """The seed's flags on `ray[default]`."""
    head = f"--head --port=26479 --include-dashboard=false --temp-dir=/tmp/ray-vllm-head --node-ip-address={ips[0]}"
    node = f"--address={ips[0]}:26479 --temp-dir=/tmp/ray-vllm-worker --node-ip-address={ips[1]}"
    try:
        for host, container, flags in zip(nodes, containers, (head, node), strict=True):
            run(["podman", "cp", f"{folder}/.", f"{container}:{SEED}"])
            host.check_output("mkdir -p /var/tmp/ray-spill")
            start = f"python3 -m ray.scripts.scripts start {flags} {SEED_COMMON} --block"
            variables = " ".join(f"--setenv={variable}" for variable in SEED_ENVIRONMENT.split())
            host.check_output(f"systemd-run --quiet --unit={SEED_UNIT} {variables} {start}")
            # A node that finds no head yet would try again only after half a minute.
            started = 1 if host is nodes[0] else 2
            wait_for_nodes(nodes[0], f"{ips[0]}:26479", started, f"{SEED_ENVIRONMENT} timeout 20 python3")
        time.sleep(SETTLE_S)
        roles = ("head", "node")
        return [measured(host, f"the seed's, {role}", SEED_UNIT) for host, role in zip(nodes, roles, strict=True)]
    finally:
        for host in nodes:
            host.run(f"systemctl stop {SEED_UNIT}; systemctl reset-failed {SEED_UNIT}")
            host.run(f"rm -rf {SEED} /var/tmp/ray-spill /tmp/ray-vllm-head /tmp/ray-vllm-worker")


def measure() -> dict[str, t.Any]:
    """The whole rig with Ray, either Ray alone, and the whole rig without."""
    nodes = [HOSTS[node.name] for node in NODES]
    pair, containers = nodes[:2], [node.container for node in NODES[:2]]
    ips = [environment(host, "/etc/sparkrig/fabric.env")["VLLM_HOST_IP"] for host in pair]
    code = "import platform, ray; print(ray.__version__, platform.python_version())"
    version, python = pair[0].check_output(f"{PYTHON} -c %s", code).split()[-2:]
    folder = seed_ray(version, ".".join(python.split(".")[:2]))
    with_ray = held_mib()
    for host in nodes:
        host.run("systemctl stop sparkrig-vllm.service sparkrig-ray.service")
    idle = [*ours(pair, f"{ips[0]}:26479"), *seed(pair, containers, ips, folder)]
    outcome = play("sparkrig.serving.site", MP)
    if outcome.code != 0:
        raise LabError(f"`site` without Ray failed (exit {outcome.code}):\n{outcome.text}")
    return {
        "version": version,
        "idle": [asdict(footprint) for footprint in idle],
        "serving_mib": {"ray": with_ray, "mp": held_mib()},
    }

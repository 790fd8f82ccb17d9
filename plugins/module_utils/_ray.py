# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A slim Ray cluster: the command line of each node, and what the cluster says about its nodes.

Private to the collection.
"""

from __future__ import annotations

import json
import typing as t
from dataclasses import dataclass

if t.TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Ray refuses less: "Attempting to cap object store memory usage ... the minimum allowed is 78643200 bytes."
OBJECT_STORE_MINIMUM_BYTES = 78643200

# Where gRPC is installed, as vLLM has it, a head also starts the server of the Ray client: 96 MB and an open port 10001
# that runs anybody's code. No option turns it off; Ray leaves it out when it believes that its client is not usable.
HEAD_LAUNCHER = (
    "import ray.scripts.scripts as scripts;"
    " scripts.get_ray_client_dependency_error = lambda: 'not wanted';"
    " scripts.main()"
)

# A node waits here for its head, with a few MB and at most half a second late. Ray itself would take 36 s from one try
# to the next.
WORKER_LAUNCHER = """\
import socket, time
while True:
    try:
        socket.create_connection({address!r}, 2).close()
        break
    except OSError:
        time.sleep(0.5)
import ray.scripts.scripts as scripts
scripts.main()
"""

# Asks the head's GCS for the table of nodes, without a driver, a dashboard or a job. One JSON list on stdout.
# Connecting takes milliseconds where the GCS answers, the import about a second.
NODE_TABLE_SCRIPT = """\
import json, sys
from ray._raylet import GcsClientOptions, GlobalStateAccessor
options = GcsClientOptions.create(sys.argv[1], None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
accessor = GlobalStateAccessor(options)
if not accessor.connect():
    sys.exit("GCS at " + sys.argv[1] + " does not answer")
keys = ("NodeManagerAddress", "NodeManagerHostname", "alive", "Resources", "DeathReasonMessage")
table = [{key: node.get(key) for key in keys} for node in accessor.get_node_table()]
print(json.dumps(table))
"""


@dataclass(frozen=True)
class RayOptions:
    """What is the same on every node of the cluster."""

    head_ip: str
    port: int = 26479
    object_store_bytes: int = 134217728
    temp_dir: str = "/var/lib/sparkrig/ray"
    spill_dir: str = "/var/lib/sparkrig/ray/spill"
    runtime: str = "/opt/sparkrig/current"
    worker_ports: int = 50

    def __post_init__(self) -> None:
        if self.object_store_bytes < OBJECT_STORE_MINIMUM_BYTES:
            raise ValueError(
                f"the object store is {self.object_store_bytes} bytes; Ray needs at least {OBJECT_STORE_MINIMUM_BYTES}"
            )
        last = self.port + 20 + self.worker_ports
        if not 1024 <= self.port <= 65535 - (last - self.port):
            raise ValueError(
                f"the Ray port is {self.port}; it and the {last - self.port} ports after it must lie in 1024 to 65535"
            )


def ray_argv(options: RayOptions, node_ip: str) -> list[str]:
    """The command that runs one node of the cluster in the foreground; the node with the head's IP is the head.

    Every port is pinned, so that a firewall can know them. The log monitor is off (its output goes to a driver that
    nobody reads), and so are the dashboard and the autoscaler's monitor on the head, the only node that has them.
    """
    head = node_ip == options.head_ip
    port = options.port
    role = (
        ["--head", f"--port={port}", "--include-dashboard=false", "--no-monitor"]
        if head
        else [f"--address={options.head_ip}:{port}"]
    )
    launcher = HEAD_LAUNCHER if head else WORKER_LAUNCHER.format(address=(options.head_ip, port))
    return [
        f"{options.runtime}/bin/python",
        "-c",
        launcher,
        "start",
        *role,
        f"--node-ip-address={node_ip}",
        f"--node-manager-port={port + 1}",
        f"--object-manager-port={port + 2}",
        f"--dashboard-agent-listen-port={port + 3}",
        f"--dashboard-agent-grpc-port={port + 4}",
        f"--runtime-env-agent-port={port + 5}",
        f"--metrics-export-port={port + 6}",
        f"--min-worker-port={port + 21}",
        f"--max-worker-port={port + 20 + options.worker_ports}",
        f"--object-store-memory={options.object_store_bytes}",
        f"--object-spilling-directory={options.spill_dir}",
        "--num-cpus=1",
        "--num-gpus=1",
        "--include-log-monitor=false",
        "--disable-usage-stats",
        f"--temp-dir={options.temp_dir}",
        "--block",
    ]


@dataclass(frozen=True)
class RayNode:
    """One node as the cluster sees it."""

    ip: str
    alive: bool
    cpus: float
    gpus: float
    death: str


@dataclass(frozen=True)
class ClusterState:
    """What the cluster has, compared with what it should have."""

    alive: list[str]
    missing: list[str]
    problems: list[str]

    @property
    def ready(self) -> bool:
        return not self.problems


def parse_node_table(text: str) -> list[RayNode]:
    """The nodes that `NODE_TABLE_SCRIPT` printed; other lines (Ray's warnings) are skipped."""
    lines = [line for line in text.splitlines() if line.startswith("[{") or line.strip() == "[]"]
    if not lines:
        raise ValueError(f"Ray's table of nodes is {text[:200]!r}; it must be one line of JSON")
    nodes = []
    for entry in json.loads(lines[-1]):
        resources = entry.get("Resources") or {}
        nodes.append(
            RayNode(
                ip=str(entry.get("NodeManagerAddress")),
                alive=bool(entry.get("alive")),
                cpus=float(resources.get("CPU", 0)),
                gpus=float(resources.get("GPU", 0)),
                death=str(entry.get("DeathReasonMessage") or ""),
            )
        )
    return nodes


def _named(ip: str, expected: Mapping[str, str]) -> str:
    names = [name for name, address in expected.items() if address == ip]
    return f"{names[0]} ({ip})" if names else ip


def compare_nodes(nodes: Sequence[RayNode], expected: Mapping[str, str]) -> ClusterState:
    """*nodes* against *expected* (host name to fabric IP): each once, alive, with one CPU and one GPU."""
    alive = [node for node in nodes if node.alive]
    addresses = [node.ip for node in alive]
    missing = [name for name, ip in expected.items() if ip not in addresses]
    problems = []
    if missing:
        listed = ", ".join(_named(expected[name], expected) for name in missing)
        problems.append(f"Ray sees {len(alive)} of {len(expected)} nodes alive; missing: {listed}")
    for ip in sorted({address for address in addresses if address not in expected.values()}):
        problems.append(f"Ray has a node {ip} that belongs to none of {', '.join(expected)}")
    for ip in sorted({address for address in addresses if addresses.count(address) > 1}):
        problems.append(f"Ray has {addresses.count(ip)} living nodes on {_named(ip, expected)}; it must be one")
    for node in alive:
        if node.ip in expected.values() and (node.cpus, node.gpus) != (1.0, 1.0):
            problems.append(
                f"Ray node {_named(node.ip, expected)} offers {node.cpus:g} CPU and {node.gpus:g} GPU;"
                " it must be 1 and 1"
            )
    return ClusterState(alive=sorted(addresses), missing=missing, problems=problems)

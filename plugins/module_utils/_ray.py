# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A slim Ray cluster: the command line of each node, and what the cluster says about its nodes.

Private to the collection.
"""

from __future__ import annotations

import json
import typing as t
from dataclasses import asdict, dataclass, replace

if t.TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

# Ray refuses less: "Attempting to cap object store memory usage ... the minimum allowed is 78643200 bytes."
OBJECT_STORE_MINIMUM_BYTES = 78643200

# Where a node keeps the secret that every process of the cluster shows to the others.
TOKEN_FILE = "/etc/sparkrig/ray-token.env"
TOKEN_VARIABLE = "RAY_AUTH_TOKEN"

# A node waits here for its head, with a few MB and at most half a second late. Ray itself would take 36 s from one try
# to the next.
_WAIT = """\
import socket, time
tries = 0
while True:
    try:
        socket.create_connection({address!r}, 2).close()
        break
    except OSError as error:
        if tries % 60 == 0:
            print("waiting for the head at {address[0]}:{address[1]}:", error, flush=True)
        tries += 1
        time.sleep(0.5)
"""

# Starts a node with Ray's own `ray start`, but only with what a rig needs:
# - no server of the Ray client. A head starts one wherever gRPC is installed, as vLLM has it: 96 MB, and an open port
#   that runs anybody's code. No option turns it off; Ray leaves it out when it believes that its client is not usable;
# - no dashboard process. `--include-dashboard=false` still starts one, 70 MiB for statistics that are off;
# - a process that sleeps in the place of the dashboard's agent, 75 MiB on every node. A raylet wants a living agent
#   and the ports of its services; -1 is Ray's own word for a service that is not in use, its minimal agent says it too;
# - nothing of the launcher itself, 80 MiB: it becomes a watcher of 3 MiB with the same process id, which ends with the
#   first of its children, so that systemd ends and restarts the node as a whole.
# A Ray that is built otherwise inside is started as it is (`--block`): larger, but no less able.
_LAUNCH = '''\
import os, sys
import ray.scripts.scripts as scripts
scripts.get_ray_client_dependency_error = lambda: "not wanted"
try:
    import ray._private.services as services
    from ray._raylet import DASHBOARD_AGENT_LISTEN_PORT_NAME, METRICS_AGENT_PORT_NAME, METRICS_EXPORT_PORT_NAME
    from ray._raylet import persist_port
    start_process, _ = services.start_ray_process, services.start_api_server
except (AttributeError, ImportError) as error:
    print("this Ray cannot be made slimmer:", error, flush=True)
    sys.exit(scripts.main())
agent = "--dashboard_agent_command="
started = []
def start_slim(command, kind, *rest, **options):
    said = dict(word.split("=", 1) for word in command if word.startswith("--") and "=" in word)
    if agent[:-1] in said:
        for port in DASHBOARD_AGENT_LISTEN_PORT_NAME, METRICS_AGENT_PORT_NAME, METRICS_EXPORT_PORT_NAME:
            persist_port(said["--session_dir"], said["--node_id"], port, -1)
        asleep = agent + '/bin/sh -c "exec sleep infinity" agent'
        command = [asleep if word.startswith(agent) else word for word in command]
    process = start_process(command, kind, *rest, **options)
    started.append(f"{process.process.pid}={kind}")
    return process
services.start_ray_process = start_slim
services.start_api_server = lambda *words, **options: (None, None)
sys.argv.remove("--block")
scripts.cli(standalone_mode=False)
watch = """
import os, sys
kinds = dict(child.split("=") for child in sys.argv[1:])
while True:
    pid, status = os.wait()
    if str(pid) in kinds:
        sys.exit(f"{kinds[str(pid)]} ended with {os.waitstatus_to_exitcode(status)}")
"""
os.execv(sys.executable, [sys.executable, "-I", "-S", "-c", watch, *started])
'''

# Asks the head's GCS for the table of nodes and for the versions, without a driver, a dashboard or a job. One JSON
# object on stdout. Connecting takes milliseconds where the GCS answers, the import about a second.
NODE_TABLE_SCRIPT = """\
import json, platform, sys
import ray
from ray._raylet import GcsClient, GcsClientOptions, GlobalStateAccessor
options = GcsClientOptions.create(sys.argv[1], None, allow_cluster_id_nil=True, fetch_cluster_id_if_nil=False)
accessor = GlobalStateAccessor(options)
if not accessor.connect():
    sys.exit("GCS at " + sys.argv[1] + " does not answer")
keys = ("NodeID", "NodeManagerAddress", "NodeManagerHostname", "alive", "Resources", "DeathReasonMessage")
table = [{key: node.get(key) for key in keys} for node in accessor.get_node_table()]
said = json.loads(GcsClient(address=sys.argv[1]).internal_kv_get(b"CLUSTER_METADATA", b"cluster", 5) or b"{}")
print(json.dumps({
    "nodes": table,
    "cluster": {"python": said.get("python_version", ""), "ray": said.get("ray_version", "")},
    "here": {"python": platform.python_version(), "ray": ray.__version__},
}))
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
    wait = "" if head else _WAIT.format(address=(options.head_ip, port))
    return [
        f"{options.runtime}/bin/python",
        "-c",
        wait + _LAUNCH,
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
    """One node as the cluster sees it; *name* is what the machine calls itself."""

    ip: str
    alive: bool
    cpus: float = 1.0
    gpus: float = 1.0
    death: str = ""
    name: str = ""
    node_id: str = ""

    def as_dict(self) -> dict[str, t.Any]:
        """What modules return."""
        return asdict(self)


@dataclass(frozen=True)
class Table:
    """What the head's GCS says: its nodes, the versions that the cluster was made with, and those of who asked."""

    nodes: list[RayNode]
    cluster: Mapping[str, str]
    here: Mapping[str, str]


@dataclass(frozen=True)
class ClusterState:
    """What the cluster has, compared with what it should have."""

    alive: list[str]
    missing: list[str]
    problems: list[str]
    table: Table | None = None

    @property
    def ready(self) -> bool:
        """Whether nothing is wrong."""
        return not self.problems


def ports_of(port: int, head: bool) -> list[int]:
    """The ports that a node listens on, of a cluster whose GCS has *port*: without the agents that are off."""
    return [*([port] if head else []), port + 1, port + 2, port + 5]


def token_in(text: str) -> str | None:
    """The secret in the text of a node's token file; None when there is none."""
    prefix = TOKEN_VARIABLE + "="
    values = [line[len(prefix) :] for line in text.splitlines() if line.startswith(prefix)]
    return values[-1] if values and values[-1] else None


def parse_node_table(text: str) -> Table:
    """What `NODE_TABLE_SCRIPT` printed; other lines (Ray's warnings) are skipped."""
    lines = [line for line in text.splitlines() if line.startswith('{"nodes"')]
    if not lines:
        raise ValueError(f"Ray's table of nodes is {text[:200]!r}; it must be one line of JSON")
    content = json.loads(lines[-1])
    nodes = []
    for entry in content["nodes"]:
        resources = entry.get("Resources") or {}
        nodes.append(
            RayNode(
                ip=str(entry.get("NodeManagerAddress")),
                alive=bool(entry.get("alive")),
                cpus=float(resources.get("CPU", 0)),
                gpus=float(resources.get("GPU", 0)),
                death=str(entry.get("DeathReasonMessage") or ""),
                name=str(entry.get("NodeManagerHostname") or ""),
                node_id=str(entry.get("NodeID") or ""),
            )
        )
    return Table(nodes, content.get("cluster") or {}, content.get("here") or {})


def _named(ip: str, expected: Mapping[str, str]) -> str:
    names = [name for name, address in expected.items() if address == ip]
    return f"{names[0]} ({ip})" if names else ip


def _stranger(node: RayNode, expected: Mapping[str, str]) -> str:
    """What is wrong with a living node at an address that nobody should have."""
    if node.name in expected:
        return (
            f"{node.name} is in Ray with the stale address {node.ip}; the inventory says {expected[node.name]}"
            f" (restart its sparkrig-ray.service)"
        )
    called = f" ({node.name})" if node.name else ""
    return f"Ray has a node {node.ip}{called} that belongs to none of {', '.join(expected)}"


def compare_nodes(nodes: Sequence[RayNode], expected: Mapping[str, str]) -> ClusterState:
    """*nodes* against *expected* (host name to fabric IP): each once, alive, with one CPU and one GPU."""
    alive = [node for node in nodes if node.alive]
    addresses = [node.ip for node in alive]
    missing = [name for name, ip in expected.items() if ip not in addresses]
    problems = []
    if missing:
        deaths = {node.ip: node.death for node in nodes if not node.alive and node.death}
        listed = ", ".join(
            _named(expected[name], expected)
            + (f", lost because: {deaths[expected[name]].rstrip('.')}" if expected[name] in deaths else "")
            for name in missing
        )
        present = len(expected) - len(missing)
        problems.append(f"Ray sees {present} of {len(expected)} nodes alive; missing: {listed}")
    strangers = {node.ip: node for node in alive if node.ip not in expected.values()}
    problems += [_stranger(strangers[ip], expected) for ip in sorted(strangers)]
    for ip in sorted({address for address in addresses if addresses.count(address) > 1}):
        problems.append(f"Ray has {addresses.count(ip)} living nodes on {_named(ip, expected)}; it must be one")
    for node in alive:
        if node.ip in expected.values() and (node.cpus, node.gpus) != (1.0, 1.0):
            problems.append(
                f"Ray node {_named(node.ip, expected)} offers {node.cpus:g} CPU and {node.gpus:g} GPU;"
                " it must be 1 and 1"
            )
    return ClusterState(alive=sorted(addresses), missing=missing, problems=problems)


def compare_table(table: Table, expected: Mapping[str, str]) -> ClusterState:
    """The whole table against the inventory: its nodes, and the versions where both are known."""
    state = compare_nodes(table.nodes, expected)
    problems = list(state.problems)
    for what in sorted(table.cluster):
        cluster, here = table.cluster[what], table.here.get(what, "")
        if cluster and here and cluster != here:
            problems.append(f"the cluster runs {what} {cluster}, this node has {here}; it must be the same")
    return replace(state, problems=problems, table=table)

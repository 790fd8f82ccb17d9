# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Collectives of torch.distributed over all nodes, and what NCCL's own log says about the transport that it chose.

Private to this collection: import it from nowhere else.
"""

from __future__ import annotations

import json
import re
import typing as t
from dataclasses import dataclass

# 16 GB froze a node once: buffers and engine share one memory.
BUFFER_LIMIT_BYTES = 2_000_000_000

# Run by the installed runtime's own Python on every node: rank, world, address, port, largest buffer in bytes, seconds.
PROBE = r"""
import datetime, json, statistics, sys, time
import torch
import torch.distributed as dist

rank, world, address, port, largest, limit = int(sys.argv[1]), int(sys.argv[2]), sys.argv[3], *map(int, sys.argv[4:7])
cuda = torch.cuda.is_available()
backend = "nccl" if cuda else "gloo"
device = torch.device("cuda", 0) if cuda else torch.device("cpu")
if not cuda:
    largest = min(largest, 16 * 1024 * 1024)
dist.init_process_group(
    backend, init_method=f"tcp://{address}:{port}", rank=rank, world_size=world,
    timeout=datetime.timedelta(seconds=limit),
)

def timed(work, times):
    seconds = []
    for number in range(times + 2):
        dist.barrier()
        if cuda:
            torch.cuda.synchronize()
        began = time.perf_counter()
        work()
        if cuda:
            torch.cuda.synchronize()
        if number >= 2:
            seconds.append(time.perf_counter() - began)
    return statistics.median(seconds)

small = torch.full((10 * 1024 // 4,), float(rank + 1), device=device)
dist.all_reduce(small)
right = bool((small == world * (world + 1) / 2).all())
result = {"backend": backend, "rank": rank, "all_reduce_small_us": timed(lambda: dist.all_reduce(small), 50) * 1e6}
sizes = {}
size = 1024 * 1024
while size <= largest:
    count = size // 4 // world
    own = torch.full((count,), float(rank), device=device)
    all_of_them = torch.empty(count * world, device=device)
    def gather():
        if backend == "nccl":
            dist.all_gather_into_tensor(all_of_them, own)
        else:
            dist.all_gather(list(all_of_them.chunk(world)), own)
    seconds = timed(gather, 5)
    right = right and all(bool((part == number).all()) for number, part in enumerate(all_of_them.chunk(world)))
    # Bus bandwidth as nccl-tests define it: what every rank has to receive, by the time.
    sizes[size] = size * (world - 1) / world / seconds / 1e9
    del own, all_of_them
    size *= 4
result["all_gather_gbytes_per_s"] = sizes
result["right"] = right
dist.barrier()
dist.destroy_process_group()
print("SPARKRIG " + json.dumps(result), flush=True)
"""


@dataclass(frozen=True)
class Collective:
    """What one rank measured."""

    backend: str
    rank: int
    right: bool
    all_reduce_small_us: float
    all_gather_gbytes_per_s: dict[int, float]

    @property
    def best_gbytes_per_s(self) -> float:
        return max(self.all_gather_gbytes_per_s.values(), default=0.0)


def parse_probe(output: str) -> Collective:
    """What the probe printed, or ValueError with its last words."""
    found = re.search(r"^SPARKRIG (\{.*\})$", output, re.MULTILINE)
    if not found:
        lines = [line.strip() for line in output.splitlines() if line.strip()]
        raise ValueError(lines[-1] if lines else "it printed nothing")
    raw = json.loads(found.group(1))
    return Collective(
        backend=raw["backend"],
        rank=raw["rank"],
        right=raw["right"],
        all_reduce_small_us=raw["all_reduce_small_us"],
        all_gather_gbytes_per_s={int(size): value for size, value in raw["all_gather_gbytes_per_s"].items()},
    )


def by_nodes(table: t.Mapping[t.Any, t.Any], nodes: int) -> float:
    """The entry for this number of nodes; keys may be numbers or texts."""
    return float(table.get(nodes, table.get(str(nodes), 0)) or 0)


def collective_problems(
    seen: Collective, nodes: int, min_gbytes_per_s: t.Mapping[t.Any, t.Any], max_small_us: t.Mapping[t.Any, t.Any]
) -> list[str]:
    """What is not as it must be for this number of nodes, and by how much."""
    problems = []
    if not seen.right:
        problems.append("The collectives gave wrong numbers: the fabric or the runtime damages data.")
    if seen.backend != "nccl":
        return problems
    least, best = by_nodes(min_gbytes_per_s, nodes), seen.best_gbytes_per_s
    if best < least:
        problems.append(
            f"NCCL's all-gather over {nodes} nodes reaches {best:.2f} GB/s, {100 * (1 - best / least):.0f} % below the"
            f" {least:g} needed. Run the pairs (fabric_bandwidth) to find the rail."
        )
    most, small = by_nodes(max_small_us, nodes), seen.all_reduce_small_us
    if most and small > most:
        problems.append(
            f"NCCL's all-reduce of 10 KiB over {nodes} nodes takes {small:.1f} us, {100 * (small / most - 1):.0f} %"
            f" above the {most:g} allowed."
        )
    return problems


@dataclass(frozen=True)
class Transport:
    """What NCCL says that it uses, from its log with NCCL_DEBUG=INFO."""

    network: str = ""  # IB, Socket, or what a plugin calls itself
    devices: tuple[str, ...] = ()
    channels: t.Mapping[str, int] | None = None  # "NET/IB" and so on to the number of channels


def parse_transport(text: str) -> Transport:
    """The transport in one log of NCCL."""
    network = ""
    for pattern in (r"NCCL INFO Using network (\S+)", r"NCCL INFO NET/(\w+) : Using"):
        found = re.findall(pattern, text)
        if found:
            network = found[-1]
            break
    using = re.search(r"NCCL INFO NET/IB : Using (.+)", text)
    devices = re.findall(r"\[\d+\](\S+?):(\d+)/", using.group(1)) if using else []
    channels: dict[str, int] = {}
    for name in re.findall(r"\[(?:send|receive)\] via (NET/\w+)", text):
        channels[name] = channels.get(name, 0) + 1
    return Transport(network, tuple(f"{device}:{port}" for device, port in devices), channels)


def transport_problems(seen: Transport, wanted: t.Sequence[str]) -> list[str]:
    """What is wrong with the transport. *wanted* are the devices of NCCL_IB_HCA; none where there is no RDMA."""
    if not seen.network and not seen.channels:
        return ["NCCL's log names no transport; it has to be started with NCCL_DEBUG=INFO (role fabric does that)."]
    if not wanted:
        return []
    problems = []
    sockets = (seen.channels or {}).get("NET/Socket", 0)
    if seen.network == "Socket" or sockets:
        how = f", {sockets} channels of it" if sockets else ""
        problems.append(
            f"NCCL uses sockets (NET/Socket{how}) and not RDMA, which costs more than half of the speed. Look for"
            " /dev/infiniband, the memlock limit and the GIDs; the log says why it left NET/IB."
        )
    missing = [
        name for name in wanted if not any(name in (device, device.partition(":")[0]) for device in seen.devices)
    ]
    if not problems and missing:
        problems.append(
            f"NCCL uses {', '.join(seen.devices) or 'no device'} and not {', '.join(missing)}: part of the bandwidth is"
            " lost."
        )
    return problems


def wanted_devices(environment: str) -> list[str]:
    """The devices that NCCL_IB_HCA in an environment file names."""
    found = re.search(r"^NCCL_IB_HCA==?(.*)$", environment, re.MULTILINE)
    return [name for name in (found.group(1).split(",") if found else []) if name]


def parse_environment(text: str) -> dict[str, str]:
    """The variables of an environment file as this collection writes it."""
    variables = {}
    for line in text.splitlines():
        name, sign, value = line.partition("=")
        if sign and not line.startswith("#"):
            quoted = len(value) > 1 and value[0] == value[-1] == '"'
            variables[name] = re.sub(r"\\(.)", r"\1", value[1:-1]) if quoted else value
    return variables

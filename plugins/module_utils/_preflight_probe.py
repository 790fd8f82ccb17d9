# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A full look at a node: reads /proc, /sys and a few files, and asks systemctl and nvidia-smi. Changes nothing.

What the texts mean is in ``_preflight_facts.py`` and ``_gpu.py``. Private to the collection.
"""

from __future__ import annotations

import ctypes
import json
import os
import socket
import typing as t
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict

from ansible_collections.sparkrig.serving.plugins.module_utils import (
    _gpu,
    _launch_ground,
    _memory,
    _memory_probe,
)
from ansible_collections.sparkrig.serving.plugins.module_utils import (
    _preflight_facts as facts,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._gpu_probe import Run, Smi
from ansible_collections.sparkrig.serving.plugins.module_utils._launch_lock import LOCK
from ansible_collections.sparkrig.serving.plugins.module_utils._node import held_bytes

ROOT = "/"
RIG = "/opt/sparkrig"
# The beginning of the name of every unit of the rig.
RIG_UNITS = "sparkrig-"
PEER_TIMEOUT_S = 2.0
# What the kernel answers when nobody keeps the clock (TIME_ERROR of adjtimex).
_TIME_ERROR = 5


def path(name: str) -> str:
    """A path below the root that is looked at."""
    return os.path.join(ROOT, name)


def read_text(name: str) -> str:
    """The text of a file below the root; empty when it is not there or this user may not read it."""
    return _memory_probe.read_text(path(name)) or ""


def names_in(name: str) -> list[str]:
    """What is in a folder; nothing when it is not there."""
    try:
        return sorted(os.listdir(path(name)))
    except OSError:
        return []


def clock_synchronized() -> bool | None:
    """Whether something keeps the kernel's clock; None where the kernel does not tell."""
    try:
        # A struct timex with modes=0 asks and sets nothing; it is smaller than this.
        answer = ctypes.CDLL(None).adjtimex(ctypes.create_string_buffer(512))
    except (AttributeError, OSError):
        return None
    return None if answer < 0 else answer != _TIME_ERROR


def reboot() -> dict[str, t.Any]:
    """Whether the packages ask for a reboot, and which do."""
    packages = sorted(set(read_text("run/reboot-required.pkgs").split()))
    return {"required": os.path.exists(path("run/reboot-required")), "packages": packages}


def next_kernel(running: str) -> dict[str, t.Any] | None:
    """The newest kernel and whether the driver is there for it; None when it runs already, or without a driver."""
    if not read_text("sys/module/nvidia/version"):
        return None
    installed = [name for name in names_in("lib/modules") if os.path.exists(path(f"boot/vmlinuz-{name}"))]
    newest = facts.newest_kernel(installed)
    if newest in ("", running):
        return None
    modules = read_text(f"lib/modules/{newest}/modules.dep")
    return {"release": newest, "has_driver": "/nvidia.ko" in modules}


def gpu(run: Run, program: str | None, units: t.Sequence[str], seconds: float) -> dict[str, t.Any]:
    """The GPUs of this node, their clocks under load, and who else uses them."""
    smi = Smi(run, program, ROOT)
    seen = smi.query()
    gpus = []
    for one in seen.gpus:
        clocks = smi.clocks(one, seconds, _gpu.MINIMUM_CLOCK_MHZ)
        gpus.append({**_gpu.to_dict(one), "load": clocks.load, "load_skipped": clocks.skipped, "stuck": clocks.stuck})
    return {
        "status": seen.status,
        "sentence": seen.sentence,
        "driver_version": seen.driver_version,
        "cuda_version": seen.cuda_version,
        "gpus": gpus,
        "leftovers": [asdict(left) for left in smi.leftovers(seen, units)],
    }


def containers() -> list[dict[str, t.Any]]:
    """The containers that run here, by what their processes hold; found by control group, so no engine is woken."""
    own = read_text("proc/1/cgroup")
    held: dict[tuple[str, str], int] = {}
    for name in names_in("proc"):
        if not name.isdigit():
            continue
        found = facts.container_of(read_text(f"proc/{name}/cgroup"), own)
        if found:
            held[found] = held.get(found, 0) + held_bytes(read_text(f"proc/{name}/smaps_rollup"))
    return [
        {"engine": engine, "id": key, "name": container_name(engine, key), "held_bytes": size}
        for (engine, key), size in sorted(held.items())
    ]


def container_name(engine: str, key: str) -> str:
    """What Docker calls a container; empty for other engines, and for who may not read it."""
    if engine != "docker":
        return ""
    try:
        name = json.loads(read_text(f"var/lib/docker/containers/{key}/config.v2.json") or "{}").get("Name", "")
    except ValueError:
        return ""
    return str(name).lstrip("/")


def lock() -> dict[str, t.Any] | None:
    """What the launch lock says; None when nobody launches."""
    try:
        holder = json.loads(read_text(LOCK.lstrip("/")) or "null")
    except ValueError:
        return None
    return holder if isinstance(holder, dict) else None


def peer(address: str) -> str:
    """Why the SSH server at ADDRESS:PORT does not answer; empty when it does."""
    host, _colon, port = address.rpartition(":")
    try:
        with socket.create_connection((host.strip("[]"), int(port)), PEER_TIMEOUT_S) as connection:
            connection.settimeout(PEER_TIMEOUT_S)
            return "" if connection.recv(4) == b"SSH-" else "it is no SSH server"
    except OSError as error:
        return facts.peer_reason(error)


def peers(addresses: t.Mapping[str, str]) -> dict[str, str]:
    """Every peer with the reason why it does not answer, all asked at once."""
    if not addresses:
        return {}
    with ThreadPoolExecutor(min(32, len(addresses))) as pool:
        return dict(zip(addresses, pool.map(peer, addresses.values())))


def earlyoom(pid: str, total_bytes: int) -> dict[str, float] | None:
    """The thresholds of the earlyoom that runs; None when none does."""
    argv = [word for word in read_text(f"proc/{pid}/cmdline").split("\0") if word]
    return facts.earlyoom_thresholds(argv, total_bytes) if pid != "0" and argv else None


def look(
    run: Run,
    find: t.Callable[[str], str | None],
    rig_units: t.Sequence[str],
    prune_units: t.Sequence[str],
    addresses: t.Mapping[str, str],
    gpu_load_s: float,
) -> dict[str, t.Any]:
    """Everything that role preflight judges. ValueError when systemd or /proc answers oddly."""
    seen, _unreadable = _memory_probe.look()
    memory = _memory.to_dict(seen)
    held = {unit.unit: unit.pss_bytes for unit in seen.units}
    del memory["units"]
    # A template has no state, and systemctl gives up on its name.
    names = ["earlyoom.service", *dict.fromkeys(name for name in prune_units if "@." not in name)]
    systemctl = find("systemctl")
    units: dict[str, dict[str, str]] = {}
    if systemctl:
        shown = "--property=LoadState,UnitFileState,ActiveState,MainPID"
        _rc, out, _err = run([systemctl, "show", shown, "--", *names])
        units = facts.parse_units(names, out)
    guard = units.pop("earlyoom.service", {"pid": "0"})
    would = facts.prunable(units)
    kernel = os.uname().release
    return {
        "kernel": kernel,
        "dgx_os": facts.dgx_release(read_text("etc/dgx-release")),
        "uptime_s": float((read_text("proc/uptime") or "0").split()[0]),
        "clock_synchronized": clock_synchronized(),
        "reboot": reboot(),
        "next_kernel": next_kernel(kernel),
        "packages": facts.package_versions(read_text("var/lib/dpkg/status"), facts.SAME_PACKAGES),
        "gpu": gpu(run, find("nvidia-smi"), rig_units, gpu_load_s),
        "memory": memory,
        "prunable_units": would,
        "prunable_bytes": sum(held.get(name, 0) for name in would),
        "earlyoom": earlyoom(guard["pid"], seen.total_bytes),
        "containers": containers(),
        "leftovers": _launch_ground.processes_under(RIG, [RIG_UNITS]),
        "lock": lock(),
        "peers": peers(addresses),
        "privileged": os.geteuid() == 0,
    }

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a full look at a node means: texts of files and lists of names in, values out, no I/O.

Private to the collection.
"""

from __future__ import annotations

import re
import typing as t

# Packages of which all nodes need the same version, with what they are called.
SAME_PACKAGES = {"nvidia-container-toolkit": "NVIDIA container toolkit"}
# earlyoom's own defaults, in percent of the memory that is available: SIGTERM, and SIGKILL at half of it.
_EARLYOOM_TERM = 10.0
_CONTAINER = re.compile(
    r"(?:^|/)(docker|libpod|cri-containerd|crio|nerdctl|containerd)[-/]([0-9a-f]{12,64})(?:\.scope)?(?=/|$)"
)
_ENGINES = {"libpod": "podman", "cri-containerd": "containerd", "crio": "CRI-O"}


def dgx_release(text: str) -> str:
    """The release in ``/etc/dgx-release``: the last update that was applied, else the one that was installed."""
    fields = re.findall(r'^(DGX_OTA_VERSION|DGX_SWBUILD_VERSION)="?([^"\n]*)"?', text, re.MULTILINE)
    updates = [value for name, value in fields if name == "DGX_OTA_VERSION" and value]
    installed = [value for _name, value in fields if value]
    return str((updates or installed or [""])[-1])


def earlyoom_thresholds(argv: t.Sequence[str], total_bytes: int) -> dict[str, float]:
    """From which share of available memory on earlyoom ends (SIGTERM) and kills processes, in percent."""
    term, kill = _EARLYOOM_TERM, None
    words = iter(argv[1:])
    for word in words:
        option, value = word[:2], word[2:]
        if option not in ("-m", "-M"):
            continue
        value = value or next(words, "")
        # "TERM[,KILL]", -m in percent and -M in KiB.
        parts = [float(part) for part in re.findall(r"\d+(?:\.\d+)?", value)[:2]]
        if option == "-M" and total_bytes:
            parts = [100 * 1024 * part / total_bytes for part in parts]
        if parts:
            term, kill = parts[0], parts[1] if len(parts) > 1 else None
    return {"term_percent": round(term, 2), "kill_percent": round(term / 2 if kill is None else kill, 2)}


def container_of(cgroup: str, own: str) -> tuple[str, str] | None:
    """(engine, id) of the container that a process runs in, from its ``/proc/PID/cgroup``; None for none.

    *own* is that of process 1: a node that is a container itself runs nothing in a container for that.
    """
    prefixes = {}
    for line in own.splitlines():
        number, _controllers, path = (line.split(":", 2) + ["", ""])[:3]
        prefixes[number] = re.sub(r"/init\.scope$", "", path)
    for line in cgroup.splitlines():
        number, _controllers, path = (line.split(":", 2) + ["", ""])[:3]
        prefix = prefixes.get(number, "").rstrip("/")
        match = _CONTAINER.search(path[len(prefix) :] if prefix and path.startswith(prefix) else path)
        if match:
            return _ENGINES.get(match.group(1), match.group(1)), match.group(2)
    return None


def package_versions(status: str, names: t.Collection[str]) -> dict[str, str]:
    """The versions of those packages that are installed, from ``/var/lib/dpkg/status``."""
    found = {}
    for block in status.split("\n\n"):
        name = re.match(r"Package: (\S+)", block)
        if name and name.group(1) in names and re.search(r"^Status: install ok installed$", block, re.MULTILINE):
            version = re.search(r"^Version: (\S+)", block, re.MULTILINE)
            found[name.group(1)] = version.group(1) if version else ""
    return found


def _version_key(release: str) -> list[tuple[int, str]]:
    """Numbers count as numbers: 6.17.0-1032 comes after 6.17.0-999."""
    return [(int(number), word) for number, word in re.findall(r"(\d+)([^\d]*)", release)]


def newest_kernel(releases: t.Iterable[str]) -> str:
    """The kernel that the boot loader takes when nobody chose another one; empty without any."""
    return max(releases, key=_version_key, default="")


def parse_units(names: t.Sequence[str], text: str) -> dict[str, dict[str, str]]:
    """Name to load, file and active state, from ``systemctl show`` for these names in this order."""
    blocks = [block for block in text.strip().split("\n\n") if block.strip()]
    if len(blocks) != len(names):
        raise ValueError(f"systemctl show answered for {len(blocks)} of {len(names)} units")
    units = {}
    for name, block in zip(names, blocks):
        fields = dict(line.partition("=")[::2] for line in block.splitlines())
        units[name] = {
            "load": fields.get("LoadState", ""),
            "file": fields.get("UnitFileState", ""),
            "active": fields.get("ActiveState", ""),
            "pid": fields.get("MainPID", "0"),
        }
    return units


def prunable(units: t.Mapping[str, t.Mapping[str, str]]) -> list[str]:
    """The units that pruning would change: those that exist and that nobody has masked."""
    return sorted(
        name
        for name, state in units.items()
        if state["load"] == "loaded" and not state["file"].startswith("masked") and state["file"] != "transient"
    )


def peer_reason(error: OSError) -> str:
    """Why a peer does not answer, in a few words."""
    words = str(error.strerror or error or type(error).__name__).rstrip(".")
    return "no answer" if isinstance(error, TimeoutError) or "timed out" in words else words[:1].lower() + words[1:]

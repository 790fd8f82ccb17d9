# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Everything that a role could change on a lab node, before and after: files, units, sysctls, mounts, links, packages.

``python -m lab.snapshot`` keeps what the nodes are now, unless there is something kept already or a node was touched.
"""

from __future__ import annotations

import json
import re
import subprocess
import time
import typing as t
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

from lab.common import LabError, as_root, main_guard, say, state_dir
from lab.nodes import Node, read_nodes, wait_for_boot

# Area ("files", "units", ...) to name to what it is.
Snapshot = dict[str, dict[str, str]]

# Runs on the node, by its own Python. Contents are hashed but for /usr, which only packages write: size and time do.
COLLECT = r"""
import hashlib, json, os, stat, subprocess

SKIPPED = ("/proc", "/sys", "/dev", "/run", "/lost+found")
ALSO = ("/dev/shm", "/run/sparkrig", "/run/systemd/system", "/run/netplan", "/run/NetworkManager/conf.d")


def run(*words):
    return subprocess.run(words, capture_output=True, text=True).stdout


def describe(path):
    seen = os.lstat(path)
    text = "%s %o %d:%d" % (stat.S_IFMT(seen.st_mode) // 4096, stat.S_IMODE(seen.st_mode), seen.st_uid, seen.st_gid)
    if stat.S_ISLNK(seen.st_mode):
        return text + " -> " + os.readlink(path)
    if not stat.S_ISREG(seen.st_mode):
        return text
    if path.startswith("/usr/") and not path.startswith("/usr/local/"):
        return "%s %d bytes of %d" % (text, seen.st_size, seen.st_mtime)
    with open(path, "rb") as stream:
        return text + " sha256 " + hashlib.sha256(stream.read()).hexdigest()


def walk(top, found):
    for folder, folders, files in os.walk(top):
        folders[:] = [name for name in folders if os.path.join(folder, name) not in SKIPPED]
        for name in folders + files:
            path = os.path.join(folder, name)
            try:
                found[path] = describe(path)
            except FileNotFoundError:
                pass


files = {}
for top in ("/", *ALSO):
    if os.path.exists(top):
        walk(top, files)
        if top != "/":
            files[top] = describe(top)

units = {}
rows = [line.split() for line in run("systemctl", "list-unit-files", "--no-legend", "--no-pager").splitlines()]
for row in rows:
    units[row[0]] = row[1]
for line in run("systemctl", "--global", "list-unit-files", "--no-legend", "--no-pager").splitlines():
    units["user unit " + line.split()[0]] = line.split()[1]
names = [row[0] for row in rows if "@." not in row[0] and row[1] != "alias"]
for block in run("systemctl", "show", "--property=Id,ActiveState", "--", *names).strip().split("\n\n"):
    fields = dict(line.split("=", 1) for line in block.splitlines())
    units[fields["Id"] + " runs"] = fields["ActiveState"]

sysctls = {}
for folder, _folders, names in os.walk("/proc/sys"):
    for name in names:
        try:
            with open(os.path.join(folder, name)) as stream:
                sysctls[os.path.join(folder, name)[10:]] = stream.read().strip()
        except (OSError, UnicodeDecodeError):
            pass

mounts = {}
with open("/proc/self/mountinfo") as stream:
    for line in stream:
        left, right = line.split(" - ", 1)
        words = left.split()
        mounts[words[4]] = "%s %s %s" % (right.split()[0], words[3], words[5])

links = {}
for link in json.loads(run("ip", "-json", "address", "show")):
    # Link-local addresses come and go with every try of NetworkManager's to get an address from somebody.
    given = [one for one in link["addr_info"] if one["scope"] != "link"]
    addresses = sorted("%s/%s" % (one["local"], one["prefixlen"]) for one in given)
    links[link["ifname"]] = "%s mtu %d %s" % ("up" if "UP" in link["flags"] else "down", link["mtu"], addresses)
for route in json.loads(run("ip", "-json", "route", "show", "table", "all")):
    links["route to %s dev %s" % (route["dst"], route.get("dev", "-"))] = route.get("gateway", "direct")

packages = {}
for line in run("dpkg-query", "--show", "--showformat=${Package} ${Version} ${Status}\n").splitlines():
    packages[line.split()[0]] = line.split(" ", 1)[1]

print(json.dumps({"files": files, "units": units, "sysctls": sysctls, "mounts": mounts, "links": links,
                  "packages": packages}))
"""

# What a running system changes by itself, and why. Everything else has to be equal.
ITS_OWN: dict[str, dict[str, str]] = {
    "files": {
        r"/var/log(/.*)?": "logs",
        r"/tmp/(systemd-private-.*|snap-private-tmp.*)": "private folders of services that started",
        r"/var/tmp/systemd-private-.*": "private folders of services that started",
        r"/var/lib/systemd/(timers|random-seed|timesync|catalog|linger)(/.*)?": "systemd's own records",
        r"/var/lib/private(/.*)?": "state of services with a user of their own",
        r"/var/lib/NetworkManager/.*": "NetworkManager's records",
        r"/var/lib/snapd/.*": "snapd's records of its own start",
        r"/var/lib/(upower|fwupd|PackageKit|colord|bluetooth|udisks2|cups|polkit-1|AccountsService)(/.*)?": (
            "records that desktop services keep of themselves"
        ),
        r"/var/cache/(cups|fwupd|PackageKit|snapd|ldconfig|lightdm)(/.*)?": "caches of desktop services",
        r"/var/spool/cups(/.*)?": "the print queue",
        r"/etc/cups/(subscriptions|printers|classes)\.conf.*": "cupsd writes them when it stops",
        r"/(root|home/spark)/\.ansible(/.*)?": "Ansible's own folder for what it ships",
        r"/tmp/ansible_.*_payload_.*": "what Ansible shipped to a node before it was killed",
        r"/home/spark/\.ssh(/.*)?": "the key that the lab lets in",
        r"/etc/(resolv\.conf|\.updated|machine-id)": "the container's own",
        r"/var/\.updated": "the container's own",
        r"/root/\.ansible_async(/.*)?": "Ansible's own folder for tasks that run beside others",
        r"/etc/(passwd|group|shadow|gshadow)-": "the copy from before the last change, by useradd and userdel",
        r"/etc/ssh/ssh_host_.*": "made at the first start",
        r"(/usr/.*)?/__pycache__(/.*)?": "compiled by whoever ran Python first",
    },
    "units": {
        r"session-.*": "logins",
        r"user[@-].*": "logins",
    },
    "sysctls": {
        r"fs/(dentry-state|file-nr|inode-nr|inode-state|aio-nr|quota/.*|binfmt_misc/.*)": "counters",
        r"fs/inotify/.*": "this machine's, for all labs on it",
        r"kernel/(ns_last_pid|pty/nr|random/.*|perf_.*|cad_pid|spl.*|tainted)": "counters",
        r"kernel/sched_domain/.*": "the scheduler's",
        r"net/netfilter/nf_conntrack_count": "a counter",
        r"net/ipv[46]/(neigh|conf)/.*": "belongs to links, which are compared",
        r"net/ipv4/(tcp_mem|udp_mem)": "by free memory",
    },
    "mounts": {
        r"/run/(user|credentials)(/.*)?": "logins and services",
        r"/proc/sys/fs/binfmt_misc": "mounted when it is first looked at",
    },
    "links": {
        r"route to (ff00::/8|fe80::.*|anycast .*|multicast .*) .*": "the kernel's own, with every link that is up",
    },
    "packages": {},
}
# Units that come and go by themselves: started on demand, by a timer, or ending after a while without work.
ON_DEMAND = re.compile(
    # network-pre.target is a mark on the way up that stays until the next boot.
    r"(apt-.*|colord|network-pre|dpkg-.*|e2scrub.*|emergency|fstrim|fwupd.*|logrotate|man-db|motd-news|NetworkManager-dispatcher"
    r"|packagekit|plymouth.*|polkit|rescue|snapd.*|systemd-(hostnamed|localed|timedated|tmpfiles-.*|timesyncd|logind"
    r"|update-utmp.*|networkd-persistent-storage|journal-.*|sysext|pcr.*|rfkill.*|user-sessions)|udisks2|upower|user.*"
    r"|blueman.*|dbus-.*|phpsession.*|session.*|switcheroo-control|rtkit-daemon)"
)


def take(node: Node) -> Snapshot:
    """What the node is now."""
    command = as_root(["podman", "exec", "--interactive", node.container, "python3", "-"])
    result = subprocess.run(command, input=COLLECT.encode(), capture_output=True, check=False)
    if result.returncode != 0:
        raise LabError(f"{node.name} cannot be looked at: {result.stderr.decode(errors='replace').strip()[-300:]}")
    return t.cast("Snapshot", json.loads(result.stdout))


def take_all(names: t.Collection[str] | None = None) -> dict[str, Snapshot]:
    """What every node of the lab is now, by name; with *names* only those."""
    nodes = [node for node in read_nodes() if names is None or node.name in names]
    with ThreadPoolExecutor(len(nodes)) as pool:
        return dict(zip([node.name for node in nodes], pool.map(take, nodes)))


def expected(area: str, name: str) -> bool:
    """Whether the system itself changes this."""
    if area == "units" and name.endswith(" runs"):
        return ON_DEMAND.match(name) is not None
    return any(re.fullmatch(pattern, name) for pattern in ITS_OWN[area])


def differences(before: Snapshot, after: Snapshot) -> list[str]:
    """One line for everything that is not as it was, but for what the system itself changes."""
    found = []
    for area, was in before.items():
        now = after[area]
        for name in sorted(was.keys() | now.keys()):
            if was.get(name) != now.get(name) and not expected(area, name):
                found.append(f"{area}: {name}: was {was.get(name, 'absent')}, is {now.get(name, 'absent')}")
    return found


def path_of(name: str) -> Path:
    """Where the kept snapshot of a node is; `lab.nodes down` removes it with the rest of the lab's state."""
    return state_dir() / f"snapshot-{name}.json"


def kept() -> dict[str, Snapshot]:
    """The kept snapshots by node. LabError when there are none."""
    snapshots = {}
    for node in read_nodes():
        path = path_of(node.name)
        if not path.is_file():
            raise LabError(f"there is no snapshot of {node.name} as it was before: `make down`, then start anew")
        snapshots[node.name] = t.cast("Snapshot", json.loads(path.read_text(encoding="utf-8")))
    return snapshots


def remaining(patience_s: float = 60.0, names: t.Collection[str] | None = None) -> dict[str, list[str]]:
    """By node, what is not as it was kept; empty when all is. Units may need *patience_s* to come up again."""
    before = kept()
    deadline = time.monotonic() + patience_s
    while True:
        found = {name: differences(before[name], seen) for name, seen in take_all(names).items()}
        found = {name: lines for name, lines in found.items() if lines}
        if not found or time.monotonic() >= deadline:
            return found
        # A look takes seconds: who is as before is not looked at again.
        names = list(found)
        time.sleep(3)


def keep() -> None:
    """Keep what the nodes are, if nothing is kept yet and nobody has changed them."""
    if all(path_of(node.name).is_file() for node in read_nodes()):
        return
    for node in read_nodes():
        wait_for_boot(node)
    snapshots = take_all()
    touched = [name for name, seen in snapshots.items() if "/var/lib/sparkrig" in seen["files"]]
    if touched:
        say(f"{', '.join(touched)} bears traces of the collection already; what was before it cannot be kept")
        return
    for name, seen in snapshots.items():
        path_of(name).write_text(json.dumps(seen), encoding="utf-8")
    say(f"kept what {len(snapshots)} nodes are like before anything is changed")


if __name__ == "__main__":
    main_guard(keep)

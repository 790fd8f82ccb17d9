#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give the rails of a node their addresses and MTU in one transaction, and prove that they carry."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_rails
short_description: Addresses, MTU and environment of the rails of a node
version_added: 1.0.0
author: The sparkrig engineers (@sparkrig)
description:
  - Gives each rail its address and MTU through netplan, and writes the environment file for NCCL, Gloo and vLLM.
  - Everything is validated before the first change, the new plan by C(netplan generate) on a scratch root. After the
    change the module waits until the rails are up as planned; when they are not, it puts the previous state back.
  - It applies the plan to the rails alone (C(netplan generate), then networkd or NetworkManager for these
    interfaces). C(netplan apply) would also restart the network that carries the connection to the node.
  - Interfaces with the default route, with our own SSH connection, or named in O(management_interfaces) are never
    touched.
extends_documentation_fragment:
  - sparkrig.serving._attributes
attributes:
  check_mode:
    support: full
    details: For O(state=verified), check mode sends nothing, since the rails may not be up yet.
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  state:
    description:
      - V(present) makes the rails and the environment file as described.
      - V(verified) changes nothing and sends one packet of full MTU that may not be fragmented to every peer on every
        rail. It fails with a sentence for each one that does not answer.
      - V(absent) brings back what the journal says that V(present) found, and removes the journal.
    type: str
    choices: [present, verified, absent]
    default: present
  rails:
    description:
      - The rails in their order, the same on all nodes. The first one names the node's address for vLLM.
      - Required unless O(state=absent).
    type: list
    elements: dict
    default: []
    suboptions:
      interface:
        description: The name of the interface.
        type: str
        required: true
      address:
        description: Its IPv4 address with prefix, as in V(10.98.1.11/24).
        type: str
        required: true
  mtu:
    description: The MTU of the rails, in bytes.
    type: int
    default: 9000
  renderer:
    description: What configures the rails. V(auto) takes what runs on the node, networkd first.
    type: str
    choices: [networkd, NetworkManager, auto]
    default: networkd
  netplan_file:
    description: The netplan file that holds the rails, and nothing else.
    type: path
    default: /etc/netplan/40-sparkrig-fabric.yaml
  env_file:
    description: The environment file that the services read.
    type: path
    default: /etc/sparkrig/fabric.env
  environment:
    description: More variables for O(env_file). Values that take RoCE away are refused.
    type: dict
    default: {}
  management_interfaces:
    description: More interfaces that are never touched.
    type: list
    elements: str
    default: []
  sys_root:
    description: Where sysfs is; RDMA devices are read from there.
    type: path
    default: /sys
  wait_s:
    description: How long the rails may take to come up, in seconds.
    type: int
    default: 30
  node:
    description: The name of this node, for the sentences.
    type: str
    default: this node
  peers:
    description: The other nodes for O(state=verified), each with its C(fabric_addresses) in the order of O(rails).
    type: dict
    default: {}
  journal:
    description: The file that records what was found. It is written before the change.
    type: path
    default: /var/lib/sparkrig/journal/fabric.json
"""

EXAMPLES = r"""
---
- name: Bring the rails up
  sparkrig.serving.fabric_rails:
    rails:
      - interface: enp1s0f0np0
        address: 10.98.1.11/24
      - interface: enP2p1s0f0np0
        address: 10.98.2.11/24

- name: Prove that they carry full packets
  sparkrig.serving.fabric_rails:
    state: verified
    rails:
      - interface: enp1s0f0np0
        address: 10.98.1.11/24
    peers:
      spark2:
        enp1s0f0np0: 10.98.1.12/24

- name: Leave the links as they were found
  sparkrig.serving.fabric_rails:
    state: absent
"""

RETURN = r"""
actions:
  description: One sentence for each thing that was done, found or left alone.
  returned: always
  type: list
  elements: str
  sample:
    - enp1s0f0np0 gets 10.98.1.11/24 and MTU 9000.
host_ip:
  description: The address of the first rail.
  returned: when O(state) is not V(absent)
  type: str
  sample: 10.98.1.11
rails:
  description: The rails as they are.
  returned: when O(state) is not V(absent)
  type: list
  elements: dict
  contains:
    interface:
      description: The interface.
      type: str
    address:
      description: Its address.
      type: str
    prefix:
      description: The length of its prefix.
      type: int
    mtu:
      description: Its MTU in bytes.
      type: int
  sample:
    - interface: enp1s0f0np0
      address: 10.98.1.11
      prefix: 24
      mtu: 9000
"""

import os
import shutil
import tempfile
import time
import typing as t
from dataclasses import dataclass

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils import _journal
from ansible_collections.sparkrig.serving.plugins.module_utils._fabric import (
    PING_OVERHEAD_BYTES,
    Link,
    Rail,
    answered,
    defined_elsewhere,
    interface_of,
    live_problems,
    local_limit,
    parse_default_interfaces,
    parse_links,
    parse_rails,
    peer_rails,
    plan_problems,
    rail_problems,
    render_environment,
    render_netplan,
    render_nm_unmanaged,
    unreachable,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._rdma import nccl_environment, read_ports

KIND = "fabric_rails"
NETPLAN_FOLDERS = ("/etc/netplan", "/run/netplan", "/lib/netplan")
NM_FOLDER = "/etc/NetworkManager"
NM_FILE = "/etc/NetworkManager/conf.d/40-sparkrig-fabric.conf"
PING_ROUNDS = 3
SETTLE_S = 5.0


@dataclass(frozen=True)
class Owned:
    """A file that this module writes whole; no text means that it must not be there."""

    path: str
    mode: int
    text: str | None


class Node:
    """The commands and files of the node."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        module.run_command_environ_update = {"LANGUAGE": "C", "LC_ALL": "C"}

    def run(self, *argv: str, data: str | None = None) -> tuple[int, str, str]:
        rc, out, err = self.module.run_command(list(argv), data=data)
        return rc, out, err

    def must(self, *argv: str) -> str:
        rc, out, err = self.run(*argv)
        if rc != 0:
            reason = (err or out).strip().rstrip(".") or "it gave no reason"
            raise ApplyError(f"'{' '.join(argv)}' failed with rc {rc}: {reason}")
        return out

    def links(self) -> dict[str, Link]:
        return parse_links(self.must("ip", "-json", "addr", "show"))

    def active(self, *units: str) -> list[bool]:
        _rc, out, err = self.run("systemctl", "is-active", *units)
        states = out.split()
        if len(states) != len(units):
            raise ApplyError(f"systemd does not answer on this node: {(err or out).strip() or 'it gave no reason'}")
        return [state == "active" for state in states]


class ApplyError(Exception):
    """The node refused a step of the change."""


def read(path: str) -> str | None:
    try:
        with open(path, encoding="utf-8") as stream:
            return stream.read()
    except FileNotFoundError:
        return None


def put(file: Owned) -> None:
    if file.text is not None:
        _journal.write_file(file.path, file.text, file.mode)
    elif os.path.lexists(file.path):
        os.unlink(file.path)
        folder = os.path.dirname(file.path)
        if os.path.basename(folder) == "sparkrig" and not os.listdir(folder):
            os.rmdir(folder)


def differs(file: Owned) -> bool:
    found = read(file.path)
    if found != file.text:
        return True
    return found is not None and (os.stat(file.path).st_mode & 0o777) != file.mode


def ssh_interface(links: t.Mapping[str, Link], pid: int, proc: str = "/proc") -> str:
    """The interface that our own SSH connection came in on. sudo drops the variable, so ask the ancestors."""
    while pid > 1:
        try:
            with open(f"{proc}/{pid}/environ", "rb") as stream:
                for variable in stream.read().split(b"\0"):
                    if variable.startswith(b"SSH_CONNECTION="):
                        return interface_of(variable.decode("ascii", "replace").split()[2], links)
            with open(f"{proc}/{pid}/stat", encoding="utf-8", errors="replace") as stream:
                pid = int(stream.read().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            return ""
    return ""


def keep_off(node: Node, links: t.Mapping[str, Link]) -> dict[str, str]:
    """Interface to the reason why it is not ours."""
    keep = {name: "is a management interface of yours" for name in node.module.params["management_interfaces"]}
    routes = node.must("ip", "-json", "-4", "route", "show", "default")
    keep.update((name, "carries the default route") for name in parse_default_interfaces(routes))
    ssh = ssh_interface(links, os.getpid())
    if ssh:
        keep[ssh] = "carries the SSH connection of this very run"
    return keep


def netplan_files(own: str) -> dict[str, str]:
    """The netplan files of others, as netplan merges them: a name in /etc hides the same name elsewhere."""
    files: dict[str, str] = {}
    seen: set[str] = set()
    for folder in NETPLAN_FOLDERS:
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        for name in names:
            path = os.path.join(folder, name)
            if not name.endswith(".yaml") or name in seen or path == own:
                continue
            seen.add(name)
            files[path] = read(path) or ""
    return files


def scratch_check(node: Node, file: Owned, others: t.Mapping[str, str]) -> None:
    """Let netplan judge the new plan together with the files of others, away from the real ones."""
    root = tempfile.mkdtemp(prefix="sparkrig-")
    try:
        for path, text in {**others, file.path: file.text or ""}.items():
            # Files from /etc, /run and /lib have different names here, so one folder holds them all.
            _journal.write_file(f"{root}/etc/netplan/{os.path.basename(path)}", text, 0o600)
        rc, out, err = node.run("netplan", "generate", "--root-dir", root)
    finally:
        shutil.rmtree(root, ignore_errors=True)
    if rc != 0:
        said = " ".join((err or out).replace(root, "").split()) or f"rc {rc}"
        raise ValueError(f"netplan refuses the new plan, nothing was changed: {said}.")


def choose_renderer(node: Node) -> str:
    wanted: str = node.module.params["renderer"]
    if wanted != "auto":
        return wanted
    networkd, manager = node.active("systemd-networkd.service", "NetworkManager.service")
    return "NetworkManager" if manager and not networkd else "networkd"


def reload(node: Node, renderer: str, interfaces: t.Sequence[str]) -> None:
    """Make the files that are there now true for these interfaces, and for no others."""
    node.must("netplan", "generate")
    # The generator decides anew whether networkd starts at boot.
    node.must("systemctl", "daemon-reload")
    networkd, manager = node.active("systemd-networkd.service", "NetworkManager.service")
    if manager:
        # First, because NetworkManager takes the addresses off an interface that it lets go.
        node.must("nmcli", "general", "reload", "conf")
        if renderer == "NetworkManager":
            if networkd:
                node.must("networkctl", "reload")
            node.must("nmcli", "connection", "reload")
            for interface in interfaces:
                node.must("nmcli", "connection", "up", f"netplan-{interface}")
    elif renderer == "NetworkManager":
        raise ApplyError("the renderer is NetworkManager, which does not run on this node")
    if renderer == "networkd":
        if not networkd:
            node.must("systemctl", "start", "systemd-networkd.service")
        else:
            node.must("networkctl", "reload")
            node.must("networkctl", "reconfigure", *interfaces)


def wait_up(node: Node, rails: t.Sequence[Rail], mtu: int, wait_s: int) -> list[str]:
    """Wait until the rails are as planned; the result is what is still wrong."""
    deadline = time.monotonic() + wait_s
    good = 0
    while True:
        problems = live_problems(rails, node.links(), mtu)
        # Twice in a row, as a manager that lets an interface go may still take an address off it.
        good = 0 if problems else good + 1
        if good == 2 or (problems and time.monotonic() >= deadline):
            return problems
        time.sleep(0.25)


def bring_back(node: Node, content: t.Mapping[str, t.Any]) -> list[str]:
    """Files and links as the journal found them."""
    files = [Owned(raw["path"], int(raw["mode"]), raw["text"]) for raw in content["files"]]
    before: dict[str, dict[str, t.Any]] = content["links"]
    for file in files:
        put(file)
    node.must("netplan", "generate")
    node.must("systemctl", "daemon-reload")
    networkd, manager = node.active("systemd-networkd.service", "NetworkManager.service")
    links = node.links()
    there = [name for name in before if name in links]
    planned_before = any(file.text for file in files if file.path == node.module.params["netplan_file"])
    if manager and planned_before:
        # NetworkManager has to let go before networkd gives the addresses, and to take over after it took them away.
        node.must("nmcli", "general", "reload", "conf")
    if networkd and not content["networkd_active"]:
        node.must("systemctl", "stop", "systemd-networkd.socket", "systemd-networkd.service")
    elif networkd:
        node.must("networkctl", "reload")
        if planned_before and there:
            node.must("networkctl", "reconfigure", *there)
    wrong = unlike(node.links(), before, there)
    deadline = time.monotonic() + SETTLE_S
    while wrong and planned_before and time.monotonic() < deadline:
        time.sleep(0.25)
        wrong = unlike(node.links(), before, there)
    for name in wrong:
        set_link(node, name, node.links()[name], before[name])
    if manager and not planned_before:
        node.must("nmcli", "general", "reload", "conf")
        node.must("nmcli", "connection", "reload")
    sentences = [
        f"{name} is back as it was found: {', '.join(was['addresses']) or 'no address'}, MTU {was['mtu']}, "
        f"{'up' if was['up'] else 'down'}."
        for name, was in before.items()
        if name in there
    ]
    return sentences + [
        f"{name} does not exist any more; nothing to bring back." for name in before if name not in there
    ]


def unlike(links: t.Mapping[str, Link], before: t.Mapping[str, t.Any], names: t.Sequence[str]) -> list[str]:
    """The links that are not as they were."""
    return [
        name
        for name in names
        if (sorted(links[name].addresses), links[name].mtu, links[name].up)
        != (sorted(before[name]["addresses"]), before[name]["mtu"], before[name]["up"])
    ]


def set_link(node: Node, name: str, link: Link, was: t.Mapping[str, t.Any]) -> None:
    """Make a link by hand what it was, where no manager does."""
    for cidr in link.addresses:
        if cidr not in was["addresses"]:
            node.must("ip", "address", "del", cidr, "dev", name)
    if link.mtu != was["mtu"]:
        node.must("ip", "link", "set", "dev", name, "mtu", str(was["mtu"]))
    for cidr in was["addresses"]:
        if cidr not in link.addresses:
            node.must("ip", "address", "add", cidr, "dev", name)
    if link.up != was["up"]:
        node.must("ip", "link", "set", "dev", name, "up" if was["up"] else "down")


def found(
    node: Node, files: t.Sequence[Owned], links: t.Mapping[str, Link], names: t.Iterable[str]
) -> dict[str, t.Any]:
    """The journal's content: all that a change of these files and links can touch."""
    return {
        "files": [
            {
                "path": file.path,
                "mode": (os.stat(file.path).st_mode & 0o777) if os.path.exists(file.path) else file.mode,
                "text": read(file.path),
            }
            for file in files
        ],
        "links": {
            name: {"addresses": list(links[name].addresses), "mtu": links[name].mtu, "up": links[name].up}
            for name in names
        },
        "networkd_active": node.active("systemd-networkd.service")[0],
    }


def described(rails: t.Sequence[Rail], mtu: int) -> dict[str, t.Any]:
    return {
        "host_ip": rails[0].address,
        "rails": [
            {"interface": rail.interface, "address": rail.address, "prefix": rail.prefix, "mtu": mtu} for rail in rails
        ],
    }


def wanted_rails(module: AnsibleModule) -> tuple[Rail, ...]:
    addresses: dict[str, str] = {}
    for rail in module.params["rails"]:
        if rail["interface"] in addresses:
            raise ValueError(f"rails names {rail['interface']} twice; every rail is an interface of its own.")
        addresses[rail["interface"]] = rail["address"]
    return parse_rails(addresses, module.params["mtu"])


def present(module: AnsibleModule, node: Node) -> dict[str, t.Any]:
    mtu: int = module.params["mtu"]
    rails = wanted_rails(module)
    for tool, package in (("netplan", "netplan.io"), ("ip", "iproute2")):
        if not module.get_bin_path(tool):
            raise ValueError(
                f"{tool} is not installed on this node, and the rails need it: install the package {package}."
            )
    links = node.links()
    problems = plan_problems(rails, links, keep_off(node, links))
    if problems:
        raise ValueError(" ".join(problems) + " Nothing was changed.")
    others = netplan_files(module.params["netplan_file"])
    foreign = defined_elsewhere(rails, others)
    live = live_problems(rails, links, mtu)
    if foreign and live:
        where = "; ".join(f"{path} configures {name}" for name, path in foreign.items())
        raise ValueError(
            f"{where}, and not as planned ({', '.join(live)}). Take it out there, or make it as planned, and run this "
            f"again. Nothing was changed."
        )
    rdma, rdma_sentences = nccl_environment(read_ports(module.params["sys_root"]), [rail.interface for rail in rails])
    extra = {name: str(value) for name, value in module.params["environment"].items()}
    environment = Owned(module.params["env_file"], 0o644, render_environment(rails, rdma, extra))
    actions = []
    renderer = choose_renderer(node)
    network: list[Owned] = []
    if foreign:
        actions += [f"{name} is as planned already, by {path}; left to it." for name, path in foreign.items()]
    else:
        network.append(Owned(module.params["netplan_file"], 0o600, render_netplan(rails, mtu, renderer)))
        if os.path.isdir(NM_FOLDER):
            text = render_nm_unmanaged(rails) if renderer == "networkd" else None
            network.append(Owned(NM_FILE, 0o644, text))
    stale = [file for file in network if differs(file)]
    apply = bool(network) and bool(stale or live)
    writes = [file for file in (*network, environment) if differs(file)]
    changed = bool(writes) or apply
    if stale:
        scratch_check(node, network[0], others)
    for rail in rails:
        if apply:
            actions.append(f"{rail.interface} gets {rail.cidr} and MTU {mtu}.")
        elif rail.interface not in foreign:
            actions.append(f"{rail.interface} has {rail.cidr} and MTU {mtu} already.")
    actions.append(f"{environment.path} is {'written' if environment in writes else 'as it should be already'}.")
    actions.extend(rdma_sentences)
    diff = [
        {
            "before_header": file.path,
            "after_header": file.path,
            "before": read(file.path) or "",
            "after": file.text or "",
        }
        for file in writes
    ]
    if apply:
        before = {rail.interface: links[rail.interface] for rail in rails}
        diff.append(
            {
                "before_header": "links",
                "after_header": "links",
                "before": "".join(
                    f"{name}: {', '.join(link.addresses) or 'no address'}, MTU {link.mtu}\n"
                    for name, link in before.items()
                ),
                "after": "".join(f"{rail.interface}: {rail.cidr}, MTU {mtu}\n" for rail in rails),
            }
        )
    result = {"changed": changed, "actions": actions, "diff": diff, **described(rails, mtu)}
    if not changed or module.check_mode:
        return result

    names = [rail.interface for rail in rails] if network else []
    now = found(node, [*network, environment], links, names)
    first = record_found(module.params["journal"], now)
    for file in writes:
        put(file)
    if apply:
        try:
            reload(node, renderer, names)
            wrong = wait_up(node, rails, mtu, module.params["wait_s"])
        except ApplyError as error:
            wrong = [str(error)]
        if wrong:
            module.fail_json(msg=roll_back(node, now, first, wrong), actions=actions)
    return result


def record_found(journal: str, now: t.Mapping[str, t.Any]) -> bool:
    """Write the journal; true when it is the first. What an earlier run found stays, only what is new is added."""
    earlier = _journal.load(journal, KIND)
    if earlier is None:
        _journal.store(journal, KIND, now)
        return True
    paths = {raw["path"] for raw in earlier["files"]}
    merged = {
        "files": earlier["files"] + [raw for raw in now["files"] if raw["path"] not in paths],
        "links": {**now["links"], **earlier["links"]},
        "networkd_active": earlier["networkd_active"],
    }
    if merged != earlier:
        _journal.store(journal, KIND, merged)
    return False


def roll_back(node: Node, now: t.Mapping[str, t.Any], first: bool, wrong: t.Sequence[str]) -> str:
    """Put back what was there just before; the result is the sentence that says so."""
    wait_s = node.module.params["wait_s"]
    what = f"The rails did not come up as planned within {wait_s} s: {', '.join(wrong)}."
    try:
        bring_back(node, now)
    except ApplyError as error:
        names = ", ".join(now["links"])
        return f"{what} Putting the previous state back failed too: {error}. Look at {names} on the node by hand."
    if first:
        _journal.remove(node.module.params["journal"])
    return f"{what} The previous files and links were put back; run this again when the cause is gone."


def absent(module: AnsibleModule, node: Node) -> dict[str, t.Any]:
    journal = module.params["journal"]
    content = _journal.load(journal, KIND)
    if content is None:
        sentence = f"There is no journal {journal}: no rail was configured by us, nothing to bring back."
        return {"changed": False, "actions": [sentence], "diff": []}
    diff = [
        {
            "before_header": raw["path"],
            "after_header": raw["path"],
            "before": read(raw["path"]) or "",
            "after": raw["text"] or "",
        }
        for raw in content["files"]
    ]
    actions = [f"{name} goes back to MTU {was['mtu']}." for name, was in content["links"].items()]
    if not module.check_mode:
        try:
            actions = bring_back(node, content)
        except ApplyError as error:
            module.fail_json(
                msg=f"The rails are not back as they were: {error}. Run this again when the cause is gone."
            )
        _journal.remove(journal)
    return {"changed": True, "actions": actions, "diff": diff}


def verified(module: AnsibleModule, node: Node) -> dict[str, t.Any]:
    rails = wanted_rails(module)
    payload = module.params["mtu"] - PING_OVERHEAD_BYTES
    peers = module.params["peers"]
    wrong = [f"{host}: {problem}" for host, rails_there in peers.items() for problem in rail_problems(rails_there)]
    if wrong:
        raise ValueError(" ".join(wrong))
    result = {"changed": False, "diff": [], **described(rails, module.params["mtu"])}
    pairs = peer_rails(rails, peers)
    if not pairs:
        return {**result, "actions": ["There are no peers, so nothing was sent."]}
    if module.check_mode:
        return {**result, "actions": [f"{len(pairs)} packets of {payload} bytes would be sent."]}
    missing: list[tuple[str, Rail, Rail]] = pairs
    said = ""
    for _round in range(PING_ROUNDS):
        heard, said = ping(node, missing, payload)
        missing = [pair for pair in missing if pair[2].address not in heard]
        if not missing:
            break
    if missing:
        small, _said = ping(node, missing, 56)
        local = local_limit(said)
        sentences = [
            unreachable(module.params["node"], host, own, their, payload, their.address in small, local)
            for host, own, their in missing
        ]
        module.fail_json(msg="\n".join(sentences), actions=sentences)
    lines = [
        f"{host} answers {payload} bytes over {own.interface} ({own.address} to {their.address})."
        for host, own, their in pairs
    ]
    return {**result, "actions": lines}


def ping(node: Node, pairs: t.Sequence[tuple[str, Rail, Rail]], payload: int) -> tuple[frozenset[str], str]:
    """One packet to each peer, all at the same time, so that silent ones cost 2 s together and not each."""
    lines = "".join(f"-I {own.address} {their.address}\n" for _host, own, their in pairs)
    command = ("xargs", "-P", "128", "-L", "1", "ping", "-n", "-M", "do", "-s", str(payload), "-c", "1", "-W", "2")
    _rc, out, err = node.run(*command, data=lines)
    return answered(out), out + err


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "verified", "absent"], "default": "present"},
            "rails": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "interface": {"type": "str", "required": True},
                    "address": {"type": "str", "required": True},
                },
            },
            "mtu": {"type": "int", "default": 9000},
            "renderer": {"type": "str", "choices": ["networkd", "NetworkManager", "auto"], "default": "networkd"},
            "netplan_file": {"type": "path", "default": "/etc/netplan/40-sparkrig-fabric.yaml"},
            "env_file": {"type": "path", "default": "/etc/sparkrig/fabric.env"},
            "environment": {"type": "dict", "default": {}},
            "management_interfaces": {"type": "list", "elements": "str", "default": []},
            "sys_root": {"type": "path", "default": "/sys"},
            "wait_s": {"type": "int", "default": 30},
            "node": {"type": "str", "default": "this node"},
            "peers": {"type": "dict", "default": {}},
            "journal": {"type": "path", "default": "/var/lib/sparkrig/journal/fabric.json"},
        },
        supports_check_mode=True,
    )
    act = {"present": present, "verified": verified, "absent": absent}[module.params["state"]]
    try:
        result = act(module, Node(module))
    except (ValueError, ApplyError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

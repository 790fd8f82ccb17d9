#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Give the rails of a node their addresses and MTU in one transaction, and prove that they carry."""

from __future__ import annotations

DOCUMENTATION = r"""
module: fabric_rails
short_description: Addresses, MTU and environment of the rails of a node
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Gives each rail its address and MTU through netplan, and writes the environment file for NCCL, Gloo and vLLM.
  - Everything is validated before the first change, the new plan by C(netplan generate) on a scratch root. After the
    change the module waits until the rails are up as planned; when they are not, it puts the previous state back.
  - A change stays only when it is confirmed. The way back to the machine that we came from is looked at all the time,
    and with O(confirm_s) the node itself undoes the change unless O(state=verified) succeeds within that time.
  - It applies the plan to the rails alone (C(netplan generate), then networkd or NetworkManager for these
    interfaces). C(netplan apply) would also restart the network that carries the connection to the node.
  - Interfaces with the default route, with our own SSH connection, or named in O(management_interfaces) are never
    touched.
  - Rails that somebody else configured are adopted when they are as planned. When they are not, nothing is changed.
  - It also installs a small program and a drop-in for O(services), which hold the environment of these services against
    the rules for RoCE at every start, and resolve the GID index of this boot where one is needed.
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
        rail. It fails with a sentence for each one that does not answer. It also compares the links of RDMA devices
        with O(rate_gbps) and O(pcie_width). A change that waits for its confirmation is confirmed, or undone.
      - V(absent) brings back what the journal says that V(present) found, and removes the journal.
    type: str
    choices: [present, verified, absent]
    default: present
  rails:
    description:
      - The rails in their order. The first one names the node's address for vLLM, unless O(host_interface) does.
      - Empty, the rails are O(interfaces), or the active RDMA ports of this node, with addresses from O(subnets).
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
  interfaces:
    description: The interfaces of the rails where O(rails) is empty. Empty as well, those of the active RDMA ports.
    type: list
    elements: str
    default: []
  subnets:
    description: The subnet of each rail, in order, where O(rails) is empty.
    type: list
    elements: str
    default: []
  index:
    description: The number of this node, from 1; its address in each of O(subnets).
    type: int
    default: 0
  host_interface:
    description:
      - The interface whose address the nodes find each other by, as the management network where the rails are cables
        between two nodes each. Left out, the first rail.
    type: str
    default: ""
  take_over:
    description: Whether addresses that somebody else gave to a rail, in no file, may be replaced.
    type: bool
    default: false
  confirm_s:
    description:
      - After how many seconds the node undoes a change by itself, unless O(state=verified) has confirmed it. V(0) needs
        no confirmation.
    type: int
    default: 0
  rate_gbps:
    description: What the link of each RDMA port must have at least for O(state=verified), in Gb/s. V(0) checks nothing.
    type: int
    default: 0
  pcie_width:
    description: How many PCIe lanes each RDMA device must have for O(state=verified). V(0) checks nothing.
    type: int
    default: 0
  lossless:
    description: Whether DSCP, PFC and ECN make the rails lossless, by a unit that survives reboots.
    type: bool
    default: false
  gid_policy:
    description:
      - When the program sets NCCL_IB_GID_INDEX at the start of a service. V(auto) does where an interface has several
        IPv4 addresses, V(always) everywhere, for a NCCL before 2.21.
    type: str
    choices: [auto, always]
    default: auto
  services:
    description: The units that the program runs before.
    type: list
    elements: str
    default: []
  start_wait_s:
    description: How long the program waits for addresses and GIDs that are not there yet after a boot, in seconds.
    type: int
    default: 60
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
    description:
      - The other nodes for O(state=verified) and O(prove), each with its rails, a dict of interface to address.
    type: dict
    default: {}
  prove:
    description:
      - With O(state=present), whether rails that need no change are proved at once as with O(state=verified). A peer
        that does not answer is no failure then; RV(proved) tells.
    type: bool
    default: false
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
rdma:
  description: Whether NCCL has RDMA devices to use on these rails.
  returned: when O(state=present)
  type: bool
proved:
  description: Whether O(prove) has found that every peer answers; what it says is in RV(actions).
  returned: when O(state=present)
  type: bool
host_ip:
  description: The address that the other nodes find this one by.
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

import json
import os
import shutil
import sys
import tempfile
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils import (
    _fabric,
    _fabric_lossless,
    _fabric_node,
    _fabric_start,
    _journal,
    _rdma,
    _roce_rules,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._fabric import (
    NCCL_LOG_FOLDER,
    PING_OVERHEAD_BYTES,
    Link,
    Rail,
    answered,
    configured_elsewhere,
    derive_addresses,
    foreign_addresses,
    interface_of,
    live_problems,
    local_limit,
    parse_default_interfaces,
    parse_rails,
    peer_rails,
    plan_problems,
    rail_problems,
    render_environment,
    render_netplan,
    render_nm_unmanaged,
    unreachable,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._fabric_node import (
    ApplyError,
    Node,
    Owned,
    bring_back,
    put,
    read,
)

KIND = "fabric_rails"
NETPLAN_FOLDERS = ("/etc/netplan", "/run/netplan", "/lib/netplan")
NM_FOLDER = "/etc/NetworkManager"
NM_FILE = "/etc/NetworkManager/conf.d/40-sparkrig-fabric.conf"
OTHER_FILES = {
    "/etc/systemd/network": ".network",
    "/etc/NetworkManager/system-connections": ".nmconnection",
    "/etc/network": "interfaces",
    "/etc/network/interfaces.d": "",
}
UNIT_FOLDER = "/etc/systemd/system"
PROGRAM_FOLDER = "/usr/local/lib/sparkrig"
CONFIG_FILE = "/etc/sparkrig/fabric.json"
GID_FILE = "/run/sparkrig/gid.env"
PING_ROUNDS = 3


def differs(file: Owned) -> bool:
    found = read(file.path)
    if found != file.text:
        return True
    return found is not None and (os.stat(file.path).st_mode & 0o777) != file.mode


def ssh_connection(pid: int, proc: str = "/proc") -> list[str]:
    """Client, port, server and port of our own SSH connection. sudo drops the variable, so ask the ancestors."""
    while pid > 1:
        try:
            with open(f"{proc}/{pid}/environ", "rb") as stream:
                for variable in stream.read().split(b"\0"):
                    if variable.startswith(b"SSH_CONNECTION="):
                        words = variable[len(b"SSH_CONNECTION=") :].decode("ascii", "replace").split()
                        return words if len(words) == 4 else []
            with open(f"{proc}/{pid}/stat", encoding="utf-8", errors="replace") as stream:
                pid = int(stream.read().rpartition(")")[2].split()[1])
        except (OSError, IndexError, ValueError):
            return []
    return []


def way_to(node: Node, address: str) -> str:
    """The interface that packets to this address leave by; empty when there is no way."""
    rc, out, _err = node.run("ip", "-json", "route", "get", address)
    routes = parse_default_interfaces(out) if rc == 0 else ()
    return routes[0] if routes else ""


def keep_off(module: AnsibleModule, node: Node, links: t.Mapping[str, Link], server: str) -> dict[str, str]:
    """Interface to the reason why it is not ours."""
    keep = {name: "is a management interface of yours" for name in module.params["management_interfaces"]}
    routes = node.must("ip", "-json", "-4", "route", "show", "default")
    keep.update((name, "carries the default route") for name in parse_default_interfaces(routes))
    ssh = interface_of(server, links) if server else ""
    if ssh:
        keep[ssh] = "carries the SSH connection of this very run"
    # A bridge, a bond or a VLAN lives on what is below it.
    for name, reason in list(keep.items()):
        for below in lower_links(module.params["sys_root"], name):
            keep.setdefault(below, f"is below {name}, which {reason}")
    return keep


def lower_links(sys_root: str, name: str) -> list[str]:
    """What an interface stands on, all the way down."""
    folder = os.path.join(sys_root, "class", "net", name)
    entries = os.listdir(folder) if os.path.isdir(folder) else []
    names = [entry[len("lower_") :] for entry in entries if entry.startswith("lower_")]
    return names + [deeper for below in names for deeper in lower_links(sys_root, below)]


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


def other_files() -> dict[str, str]:
    """What networkd, NetworkManager and ifupdown were told without netplan."""
    files = {}
    for folder, ending in OTHER_FILES.items():
        names = sorted(os.listdir(folder)) if os.path.isdir(folder) else []
        for name in names:
            path = os.path.join(folder, name)
            if name.endswith(ending) and os.path.isfile(path):
                files[path] = read(path) or ""
    return files


def program_files(module: AnsibleModule, rails: t.Sequence[Rail]) -> list[Owned]:
    """The program of the services' start, as it runs here in this very moment, its configuration and its drop-ins."""
    parts = (_fabric, _fabric_node, _fabric_start, _journal, _rdma, _roce_rules)
    files = []
    for part in parts:
        name = part.__name__.rpartition(".")[2]
        loader = t.cast("t.Any", part.__spec__).loader
        path = f"{PROGRAM_FOLDER}/{_fabric_start.PACKAGE}/{name}.py"
        files.append(Owned(path, 0o644, loader.get_source(part.__name__)))
    files.append(Owned(f"{PROGRAM_FOLDER}/fabric", 0o755, _fabric_start.MAIN))
    config = {
        "rails": {rail.interface: rail.address for rail in rails},
        "gid_policy": module.params["gid_policy"],
        "gid_file": GID_FILE,
        "nccl_log_folder": NCCL_LOG_FOLDER,
        "sys_root": module.params["sys_root"],
        "wait_s": module.params["start_wait_s"],
    }
    files.append(Owned(CONFIG_FILE, 0o644, json.dumps(config, indent=2, sort_keys=True) + "\n"))
    # Not the interpreter of this run: controllers that are configured in different ways find different ones.
    drop_in = (
        f"{_fabric.HEADER}[Service]\nEnvironmentFile=-{GID_FILE}\n"
        f"ExecStartPre=+/usr/bin/python3 -B {PROGRAM_FOLDER}/fabric start {CONFIG_FILE}\n"
    )
    files += [
        Owned(f"{UNIT_FOLDER}/{unit}.d/sparkrig-fabric.conf", 0o644, drop_in) for unit in module.params["services"]
    ]
    return files


def lossless_file(module: AnsibleModule, node: Node, rails: t.Sequence[Rail], devices: t.Sequence[str]) -> Owned:
    """The unit that makes the rails lossless, or nothing where they are not to be; ValueError where they cannot be."""
    path = f"{UNIT_FOLDER}/{_fabric_lossless.UNIT}"
    if not module.params["lossless"]:
        return Owned(path, 0o644, None)
    tools = [(tool, module.get_bin_path(tool)) for tool in ("dcb", "mlnx_qos")]
    tool, where = next(((tool, found) for tool, found in tools if found), ("", ""))
    if not tool:
        raise ValueError(
            "fabric_lossless is on, but neither dcb (package iproute2) nor mlnx_qos is installed on this node. Nothing"
            " was changed."
        )
    for rail in rails:
        rc, out, err = node.run(*_fabric_lossless.probe(tool, rail.interface))
        if rc != 0:
            raise ValueError(
                f"fabric_lossless is on, but {rail.interface} knows no DCB ({tool} says: "
                f"{' '.join((err or out).split()) or f'rc {rc}'}); turn it off, or use interfaces that do. Nothing was"
                " changed."
            )
    names = [rail.interface for rail in rails]
    return Owned(path, 0o644, _fabric_lossless.render_unit(tool, where, names, devices))


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


def choose_renderer(wanted: str, node: Node) -> str:
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


def wait_up(node: Node, rails: t.Sequence[Rail], mtu: int, wait_s: int, client: str, way: str) -> list[str]:
    """Wait until the rails are as planned; the result is what is still wrong. A lost way back ends the wait at once."""
    deadline = time.monotonic() + wait_s
    good = 0
    while True:
        now = way_to(node, client) if client else way
        if now != way:
            return [
                f"the way back to {client}, which this run comes from, would lead over {now or 'no interface'} instead"
                f" of {way}"
            ]
        problems = live_problems(rails, node.links(), mtu)
        # Twice in a row, as a manager that lets an interface go may still take an address off it.
        good = 0 if problems else good + 1
        if good == 2 or (problems and time.monotonic() >= deadline):
            return problems
        time.sleep(0.25)


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


def described(rails: t.Sequence[Rail], mtu: int, host_ip: str = "") -> dict[str, t.Any]:
    return {
        "host_ip": host_ip or rails[0].address,
        "rails": [
            {"interface": rail.interface, "address": rail.address, "prefix": rail.prefix, "mtu": mtu} for rail in rails
        ],
    }


def wanted_rails(module: AnsibleModule) -> tuple[Rail, ...]:
    params = module.params
    addresses: dict[str, str] = {}
    for rail in params["rails"]:
        if rail["interface"] in addresses:
            raise ValueError(f"rails names {rail['interface']} twice; every rail is an interface of its own.")
        addresses[rail["interface"]] = rail["address"]
    if not addresses and params["subnets"]:
        interfaces = params["interfaces"]
        if not interfaces:
            usable = _rdma.usable_rails(_rdma.read_ports(params["sys_root"]))
            interfaces = list(dict.fromkeys((port.uppers or port.netdevs)[0] for port in usable))
        if not interfaces:
            raise ValueError(
                "This node has no active RDMA port that could be a rail, and neither fabric_addresses nor"
                " fabric_interfaces names one; name them, or let sparkrig.serving.discover find them."
            )
        addresses = derive_addresses(interfaces, params["subnets"], params["index"])
    return parse_rails(addresses, params["mtu"])


def host_end(module: AnsibleModule, rails: t.Sequence[Rail], links: t.Mapping[str, Link]) -> tuple[str, str]:
    """The interface and the address that the other nodes find this one by."""
    name = module.params["host_interface"]
    if not name or name == rails[0].interface:
        return rails[0].interface, rails[0].address
    own = next((rail for rail in rails if rail.interface == name), None)
    if own:
        return own.interface, own.address
    if name not in links or not links[name].addresses:
        there = ", ".join(sorted(other for other in links if links[other].addresses and other != "lo")) or "none"
        raise ValueError(
            f"fabric_host_interface is {name}, which has no IPv4 address on this node; with one are {there}."
        )
    return name, links[name].addresses[0].partition("/")[0]


def diff_of(files: t.Sequence[Owned]) -> list[dict[str, str]]:
    return [
        {
            "before_header": file.path,
            "after_header": file.path,
            "before": read(file.path) or "",
            "after": file.text or "",
        }
        for file in files
    ]


def present(module: AnsibleModule, node: Node) -> dict[str, t.Any]:
    params = module.params
    mtu: int = params["mtu"]
    rails = wanted_rails(module)
    names = [rail.interface for rail in rails]
    for tool, package in (("netplan", "netplan.io"), ("ip", "iproute2")):
        if not module.get_bin_path(tool):
            raise ValueError(
                f"{tool} is not installed on this node, and the rails need it: install the package {package}."
            )
    links = node.links()
    connection = ssh_connection(os.getpid())
    client, server = (connection[0], connection[2]) if connection else ("", "")
    problems = plan_problems(rails, links, keep_off(module, node, links, server), client)
    if problems:
        raise ValueError(" ".join(problems) + " Nothing was changed.")
    others = netplan_files(params["netplan_file"])
    foreign = configured_elsewhere(rails, others, other_files())
    live = live_problems(rails, links, mtu)
    if foreign and live:
        where = "; ".join(f"{path} configures {name}" for name, path in foreign.items())
        raise ValueError(
            f"{where}, and not as planned ({', '.join(live)}). Take it out there, or make it as planned, and run this "
            f"again. Nothing was changed."
        )
    strangers = foreign_addresses(rails, links, read(params["netplan_file"]) or "")
    if strangers and not params["take_over"]:
        listed = "; ".join(f"{name} has {', '.join(cidrs)}" for name, cidrs in strangers.items())
        raise ValueError(
            f"{listed}, which is neither planned nor ours. Take it off, put it into fabric_addresses, or set"
            " fabric_take_over to replace it. Nothing was changed."
        )
    ports = _rdma.read_ports(params["sys_root"])
    rdma, rdma_sentences = _rdma.nccl_environment(ports, names)
    devices = [port.device for port in ports if any(port.carries(name) for name in names)]
    extra = {name: str(value) for name, value in params["environment"].items()}
    host = host_end(module, rails, links)
    text = render_environment(
        rails, rdma, extra, host, params["lossless"], list(links), [port.device for port in ports]
    )
    environment = Owned(params["env_file"], 0o644, text)
    program = program_files(module, rails)
    lossless = lossless_file(module, node, rails, devices)
    renderer = choose_renderer(params["renderer"], node)
    actions = []
    network: list[Owned] = []
    if foreign:
        actions += [f"{name} is as planned already, by {path}; left to it." for name, path in foreign.items()]
    else:
        network.append(Owned(params["netplan_file"], 0o600, render_netplan(rails, mtu, renderer)))
        if os.path.isdir(NM_FOLDER):
            unmanaged = render_nm_unmanaged(rails) if renderer == "networkd" else None
            network.append(Owned(NM_FILE, 0o644, unmanaged))
    stale = [file for file in network if differs(file)]
    apply = bool(network) and bool(stale or live)
    # The program first: it is what undoes the rest.
    owned = [*program, lossless, *network, environment]
    writes = [file for file in owned if differs(file)]
    changed = bool(writes) or apply
    if stale:
        scratch_check(node, network[0], others)
    for rail in rails:
        if apply:
            actions.append(f"{rail.interface} gets {rail.cidr} and MTU {mtu}.")
        elif rail.interface not in foreign:
            actions.append(f"{rail.interface} has {rail.cidr} and MTU {mtu} already.")
    actions.append(f"{environment.path} is {'written' if environment in writes else 'as it should be already'}.")
    if any(file in writes for file in program):
        actions.append(
            f"{PROGRAM_FOLDER}/fabric is written; it runs before {', '.join(params['services']) or 'nothing'}."
        )
    if lossless in writes:
        actions.append(f"{_fabric_lossless.UNIT} is {'written and started' if lossless.text else 'removed'}.")
    actions.extend(rdma_sentences)
    diff = diff_of([file for file in writes if file not in program])
    if apply:
        before = {name: links[name] for name in names}
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
    result = {
        "changed": changed,
        "actions": actions,
        "diff": diff,
        "rdma": bool(rdma),
        "proved": False,
        **described(rails, mtu, host[1]),
    }
    if module.check_mode:
        return result
    if not changed and not pending_now(module):
        if params["prove"]:
            pairs = asked(module, rails)
            # A peer may be in the middle of its own change: what is not so yet is for the proof afterwards to say.
            if not prove(module, node, rails, pairs):
                result = {**result, "proved": True, "actions": [*actions, *answers(module, pairs)]}
        return result

    way = way_to(node, client) if apply and client else ""
    now = found(node, owned, links, names if network else [])
    first = record_found(params["journal"], now)
    for file in program:
        put(file)
    arm(module, node, now, first, apply)
    for file in writes:
        if file not in program and not (file is lossless and file.text is None):
            put(file)
    try:
        if lossless in writes and lossless.text is None:
            node.must("systemctl", "disable", "--now", _fabric_lossless.UNIT)
            put(lossless)
        if apply:
            reload(node, renderer, names)
        elif any(file in writes for file in (*program, lossless)):
            node.must("systemctl", "daemon-reload")
        if lossless.text and (lossless in writes or not node.active(_fabric_lossless.UNIT)[0]):
            node.must("systemctl", "enable", _fabric_lossless.UNIT)
            node.must("systemctl", "restart", _fabric_lossless.UNIT)
        wrong = wait_up(node, rails, mtu, params["wait_s"], client, way) if apply else []
    except ApplyError as error:
        wrong = [str(error)]
    if wrong:
        module.fail_json(msg=roll_back(module, node, now, first, wrong), actions=actions)
    return result


def pending_path(module: AnsibleModule) -> str:
    """Where the change that waits for its confirmation is written down."""
    return os.path.join(os.path.dirname(module.params["journal"]), "fabric-pending.json")


def pending_now(module: AnsibleModule) -> bool:
    return os.path.exists(pending_path(module))


def arm(module: AnsibleModule, node: Node, now: t.Mapping[str, t.Any], first: bool, apply: bool) -> None:
    """Have the node undo the change by itself, unless it is confirmed. What an earlier run left open stays the goal."""
    path = pending_path(module)
    confirm_s = module.params["confirm_s"]
    if not confirm_s:
        if pending_now(module):
            _fabric_node.disarm(node, path)
        return
    if not pending_now(module):
        if not apply:
            return
        content = {
            "before": dict(now),
            "first": first,
            "journal": module.params["journal"],
            "netplan_file": module.params["netplan_file"],
            "lossless_unit": _fabric_lossless.UNIT,
        }
        _journal.store(path, _fabric_node.PENDING_KIND, content)
    # One that was armed before counts anew.
    node.run("systemctl", "stop", f"{_fabric_node.UNDO_UNIT}.timer")
    node.must(
        *("systemd-run", "--quiet", "--collect", f"--unit={_fabric_node.UNDO_UNIT}", f"--on-active={confirm_s}"),
        *("--timer-property=AccuracySec=1s", sys.executable, "-B", f"{PROGRAM_FOLDER}/fabric", "undo", path),
    )


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


def roll_back(
    module: AnsibleModule, node: Node, now: t.Mapping[str, t.Any], first: bool, wrong: t.Sequence[str]
) -> str:
    """Put back what was there just before; the result is the sentence that says so."""
    params = module.params
    what = f"The rails did not come up as planned within {params['wait_s']} s: {', '.join(wrong)}."
    try:
        bring_back(node, now, params["netplan_file"], _fabric_lossless.UNIT)
    except ApplyError as error:
        names = ", ".join(now["links"])
        return f"{what} Putting the previous state back failed too: {error}. Look at {names} on the node by hand."
    if pending_now(module) and first:
        _fabric_node.disarm(node, pending_path(module))
    if first:
        _journal.remove(params["journal"])
    return f"{what} The previous files and links were put back; run this again when the cause is gone."


def absent(module: AnsibleModule, node: Node) -> dict[str, t.Any]:
    journal = module.params["journal"]
    content = _journal.load(journal, KIND)
    if content is None:
        sentence = f"There is no journal {journal}: no rail was configured by us, nothing to bring back."
        return {"changed": False, "actions": [sentence], "diff": []}
    diff = [
        {"before_header": path, "after_header": path, "before": read(path) or "", "after": text}
        for path, text in ((raw["path"], raw["text"] or "") for raw in content["files"])
        if not path.startswith(PROGRAM_FOLDER)
    ]
    actions = [f"{name} goes back to MTU {was['mtu']}." for name, was in content["links"].items()]
    if not module.check_mode:
        try:
            if pending_now(module):
                _fabric_node.disarm(node, pending_path(module))
            actions = bring_back(node, content, module.params["netplan_file"], _fabric_lossless.UNIT)
        except ApplyError as error:
            module.fail_json(
                msg=f"The rails are not back as they were: {error}. Run this again when the cause is gone."
            )
        _journal.remove(journal)
    return {"changed": True, "actions": actions, "diff": diff}


def asked(module: AnsibleModule, rails: t.Sequence[Rail]) -> list[tuple[str, Rail, Rail]]:
    """Who is sent a packet over which rail: the peer, our end and theirs."""
    peers = module.params["peers"]
    wrong = [f"{host}: {problem}" for host, rails_there in peers.items() for problem in rail_problems(rails_there)]
    if wrong:
        raise ValueError(" ".join(wrong))
    return peer_rails(rails, peers)


def prove(
    module: AnsibleModule, node: Node, rails: t.Sequence[Rail], pairs: t.Sequence[tuple[str, Rail, Rail]]
) -> list[str]:
    """Send full packets to all of *pairs*; the result is a sentence for each thing that is not as it must be."""
    payload = module.params["mtu"] - PING_OVERHEAD_BYTES
    missing = pairs
    said = ""
    for _round in range(PING_ROUNDS if pairs else 0):
        heard, said = ping(node, missing, payload)
        missing = [pair for pair in missing if pair[2].address not in heard]
        if not missing:
            break
    sentences = link_problems(module, rails)
    if missing:
        small, _said = ping(node, missing, 56)
        local = local_limit(said)
        ends = {rail: live_problems([rail], node.links(), module.params["mtu"]) for _host, rail, _their in missing}
        down = {rail: ", ".join(wrong) for rail, wrong in ends.items() if any("MTU" not in text for text in wrong)}
        sentences += [
            unreachable(
                *(module.params["node"], host, own, their, payload),
                *(their.address in small, local, down.get(own, "")),
            )
            for host, own, their in missing
        ]
    return sentences


def answers(module: AnsibleModule, pairs: t.Sequence[tuple[str, Rail, Rail]]) -> list[str]:
    """What is said of a proof that went well."""
    payload = module.params["mtu"] - PING_OVERHEAD_BYTES
    return [
        f"{host} answers {payload} bytes over {own.interface} ({own.address} to {their.address})."
        for host, own, their in pairs
    ] or ["There are no peers, so nothing was sent."]


def verified(module: AnsibleModule, node: Node) -> dict[str, t.Any]:
    rails = wanted_rails(module)
    result = {"changed": False, "diff": [], **described(rails, module.params["mtu"])}
    pairs = asked(module, rails)
    if module.check_mode:
        payload = module.params["mtu"] - PING_OVERHEAD_BYTES
        return {**result, "actions": [f"{len(pairs)} packets of {payload} bytes would be sent."]}
    sentences = prove(module, node, rails, pairs)
    if sentences:
        module.fail_json(msg="\n".join([*sentences, *taken_back(module, node)]), actions=sentences)
    lines = answers(module, pairs)
    if pending_now(module):
        _fabric_node.disarm(node, pending_path(module))
        lines.append("The change of the rails is confirmed; it stays.")
    return {**result, "actions": lines}


def taken_back(module: AnsibleModule, node: Node) -> list[str]:
    """Undo a change that waits for its confirmation, since there will be none."""
    path = pending_path(module)
    if not pending_now(module):
        return []
    try:
        node.run("systemctl", "stop", f"{_fabric_node.UNDO_UNIT}.timer")
        _fabric_node.undo(node, path)
    except (ApplyError, ValueError) as error:
        return [f"Putting the previous files and links back failed too: {error}. Look at the rails by hand."]
    return ["So the change of the rails was taken back on this node; run this again when the cause is gone."]


def link_problems(module: AnsibleModule, rails: t.Sequence[Rail]) -> list[str]:
    """What is wrong with the links of RDMA devices on these rails; nothing is asked of rails without one."""
    ports = _rdma.read_ports(module.params["sys_root"])
    mine = [port for port in ports if any(port.carries(rail.interface) for rail in rails)]
    node = module.params["node"]
    wrong = _rdma.port_problems(mine, module.params["rate_gbps"], module.params["pcie_width"])
    return [f"{node}: {sentence}" for sentence in wrong]


def ping(node: Node, pairs: t.Sequence[tuple[str, Rail, Rail]], payload: int) -> tuple[frozenset[str], str]:
    """One packet to each peer, all at the same time, so that silent ones cost 2 s together and not each."""
    # By the interface and not by its address: a node answers for all of its addresses on any of its cables, so that
    # swapped cables would not show; bound to the interface, only answers that come back by it count.
    lines = "".join(f"-I {own.interface} {their.address}\n" for _host, own, their in pairs)
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
            "interfaces": {"type": "list", "elements": "str", "default": []},
            "subnets": {"type": "list", "elements": "str", "default": []},
            "index": {"type": "int", "default": 0},
            "host_interface": {"type": "str", "default": ""},
            "take_over": {"type": "bool", "default": False},
            "confirm_s": {"type": "int", "default": 0},
            "rate_gbps": {"type": "int", "default": 0},
            "pcie_width": {"type": "int", "default": 0},
            "lossless": {"type": "bool", "default": False},
            "gid_policy": {"type": "str", "choices": ["auto", "always"], "default": "auto"},
            "services": {"type": "list", "elements": "str", "default": []},
            "start_wait_s": {"type": "int", "default": 60},
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
            "prove": {"type": "bool", "default": False},
            "journal": {"type": "path", "default": "/var/lib/sparkrig/journal/fabric.json"},
        },
        supports_check_mode=True,
    )
    act = {"present": present, "verified": verified, "absent": absent}[module.params["state"]]
    module.run_command_environ_update = {"LANGUAGE": "C", "LC_ALL": "C"}

    def run(argv: t.Sequence[str], data: str | None) -> tuple[int, str, str]:
        rc, out, err = module.run_command(list(argv), data=data)
        return rc, out, err

    try:
        result = act(module, Node(run))
    except (ValueError, ApplyError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

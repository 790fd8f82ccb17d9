# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The rails of the four nodes, from bare links to bare links. The tests stand in the order of a rig's life."""

from __future__ import annotations

import json
import socket
import threading
import time
import typing as t
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import yaml

from lab.common import run
from lab.hosts import HOSTS, NODES, Host, environment
from lab.nodes import INVENTORY, up
from lab.play import Outcome, play

RAILS_PLAYBOOK = "molecule/fabric/rails.yml"
RESET_PLAYBOOK = "molecule/fabric/reset.yml"
RAIL_A, RAIL_B = "enp1s0f0np0", "enP2p1s0f0np0"
PLAN: dict[str, dict[str, str]] = {
    name: host["fabric_addresses"]
    for name, host in yaml.safe_load((INVENTORY / "hosts.yml").read_text(encoding="utf-8"))["sparks"]["hosts"].items()
}
OURS = (
    "/etc/netplan/40-sparkrig-fabric.yaml",
    "/etc/NetworkManager/conf.d/40-sparkrig-fabric.conf",
    "/etc/sparkrig/fabric.env",
    "/etc/sparkrig/fabric.json",
    "/usr/local/lib/sparkrig",
    "/etc/systemd/system/sparkrig-ray.service.d",
    "/etc/systemd/system/sparkrig-vllm.service.d",
    "/var/lib/sparkrig/journal/fabric.json",
    "/var/lib/sparkrig/journal/fabric-pending.json",
)


def state(host: Host) -> dict[str, t.Any]:
    """The IPv4 addresses, MTU and carrier of the rails, and which of our files are there."""
    links = {link["ifname"]: link for link in json.loads(host.check_output("ip -json -4 addr show"))}
    bare = {"mtu": 1500, "addresses": []}
    rails = {}
    for rail in (RAIL_A, RAIL_B):
        mtu = int(host.file(f"/sys/class/net/{rail}/mtu").content_string)
        addresses = [f"{info['local']}/{info['prefixlen']}" for info in links.get(rail, {}).get("addr_info", [])]
        rails[rail] = {**bare, "mtu": mtu, "addresses": addresses}
    return {"rails": rails, "files": [path for path in OURS if host.file(path).exists]}


def words(outcome: Outcome) -> str:
    return " ".join(outcome.text.split())


def assert_refused(outcome: Outcome, sentence: str) -> None:
    """Refused with this sentence, before any change."""
    assert outcome.code != 0, outcome.text
    assert sentence in words(outcome)
    assert outcome.changed == 0


def assert_bare(*names: str) -> None:
    for name in names or tuple(HOSTS):
        found = state(HOSTS[name])
        # A link that nobody configured has the MTU of its driver, and no file of ours.
        assert {rail: value["addresses"] for rail, value in found["rails"].items()} == {RAIL_A: [], RAIL_B: []}, name
        assert found["files"] == [], name


def full_frames(peers: dict[str, dict[str, str]], names: list[str]) -> list[str]:
    """The pairs that a frame of 9000 bytes does not get through between."""
    lost = []
    for name in names:
        for rail in (RAIL_A, RAIL_B):
            own = peers[name][rail].split("/")[0]
            for peer in names:
                address = peers[peer][rail].split("/")[0]
                if peer != name and HOSTS[name].run(f"ping -M do -s 8972 -c 1 -W 2 -I {own} {address}").rc != 0:
                    lost.append(f"{name} {peer} {rail}")
    return lost


def port_of(name: str, rail: str) -> str:
    """This machine's end of a rail."""
    (node,) = (node for node in NODES if node.name == name)
    return f"sr{node.index}-{node.rails.index(rail) + 1}"


def switch_of(rail: str) -> str:
    """The bridge that a rail is plugged into."""
    return f"sparkrig{NODES[0].rails.index(rail) + 1}"


@contextmanager
def link(name: str, rail: str, setting: list[str], back: list[str]) -> Iterator[None]:
    """Change this machine's end of a rail, as somebody does with a cable or a switch port, and change it back."""
    run(["ip", "link", "set", port_of(name, rail), *setting])
    try:
        yield
    finally:
        run(["ip", "link", "set", port_of(name, rail), *back])


@contextmanager
def file_on(name: str, path: str, text: str, mode: str = "644") -> Iterator[None]:
    """A file that somebody else left on a node."""
    host = HOSTS[name]
    host.check_output("mkdir -p %s", str(Path(path).parent))
    host.check_output("printf %%s %s > %s", text, path)
    host.check_output("chmod %s %s", mode, path)
    try:
        yield
    finally:
        host.check_output("rm -f %s", path)


@pytest.fixture(scope="module", autouse=True)
def bare_before_and_after() -> Iterator[None]:
    assert play(RESET_PLAYBOOK).code == 0
    yield
    assert play(RESET_PLAYBOOK).code == 0
    up()


# --- Refused before any change -----------------------------------------------------------------------------------


def test_a_plan_with_a_gateway_a_taken_address_and_the_management_network(tmp_path: Path) -> None:
    rails: dict[str, t.Any] = {name: dict(addresses) for name, addresses in PLAN.items()}
    rails["spark1"][RAIL_A] = {"address": "10.98.1.11/24", "gateway": "10.98.9.1"}
    rails["spark3"][RAIL_A] = rails["spark2"][RAIL_A]
    hosts = {"sparks": {"hosts": {name: {"fabric_addresses": value} for name, value in rails.items()}}}
    (tmp_path / "more.yml").write_text(yaml.safe_dump(hosts), encoding="utf-8")
    outcome = play(RAILS_PLAYBOOK, options=("-i", str(tmp_path / "more.yml")))
    assert_refused(outcome, "a rail takes no gateway (10.98.9.1), since the fabric is not routed")
    assert "spark2 (enp1s0f0np0) and spark3 (enp1s0f0np0) have the same rail address 10.98.1.12" in words(outcome)

    # The management network is only known on the node; none of the nodes may have been touched by then.
    variables = {"fabric_addresses": {RAIL_A: "10.98.0.77/25"}}
    outcome = play(RAILS_PLAYBOOK, variables, ("--limit", "spark4"))
    assert_refused(outcome, "enp1s0f0np0 would get 10.98.0.77/25, but this run comes from 10.98.0.1")
    assert "but eth0 is in that subnet already (10.98.0.14/24)" in words(outcome)

    outcome = play(RAILS_PLAYBOOK, {"fabric_environment": {"NCCL_IB_GID_INDEX": ""}}, ("--limit", "spark4"))
    assert_refused(outcome, "fabric_environment.NCCL_IB_GID_INDEX is ''; the right index differs by node")
    outcome = play(RAILS_PLAYBOOK, {"fabric_lossless": True}, ("--limit", "spark4"))
    assert_refused(outcome, "fabric_lossless is on, but enp1s0f0np0 knows no DCB")
    assert_bare()


# --- Undone --------------------------------------------------------------------------------------------------------


class Knock(threading.Thread):
    """Knocks at a node's SSH port all the time, and remembers how long the slowest answer took."""

    def __init__(self, address: str) -> None:
        super().__init__(daemon=True)
        self.address, self.ended, self.slowest_s, self.count = address, threading.Event(), 0.0, 0

    def run(self) -> None:
        while not self.ended.wait(0.1):
            began = time.monotonic()
            with socket.create_connection((self.address, 22), timeout=20):
                self.slowest_s = max(self.slowest_s, time.monotonic() - began)
                self.count += 1


def test_a_plan_that_cuts_the_node_off_is_undone_at_once() -> None:
    # Somebody's leftover for networkd: with the rail, a route to the machine that we come from appears on it.
    drop_in = f"/etc/systemd/network/10-netplan-{RAIL_A}.network.d/leftover.conf"
    (node,) = (node for node in NODES if node.name == "spark2")
    knock = Knock(node.management_ip)
    knock.start()
    try:
        with file_on("spark2", drop_in, "[Route]\nDestination=10.98.0.1/32\nScope=link\n"):
            outcome = play(RAILS_PLAYBOOK, options=("--limit", "spark2"))
            assert outcome.code != 0, outcome.text
            assert (
                "the way back to 10.98.0.1, which this run comes from, would lead over enp1s0f0np0 instead of eth0. The"
                " previous files and links were put back"
            ) in words(outcome)
            assert_bare("spark2")
    finally:
        knock.ended.set()
        knock.join(30)
    # Reachable all along: a connection that begins in the worst moment is answered within a few seconds.
    assert knock.count > 10
    assert knock.slowest_s < 10


def test_a_change_that_nobody_confirms_is_undone_by_the_node_itself() -> None:
    outcome = play("molecule/fabric/unconfirmed.yml")
    assert outcome.code == 0, outcome.text
    host = HOSTS["spark2"]
    assert state(host)["rails"][RAIL_A]["addresses"] == [PLAN["spark2"][RAIL_A]]
    deadline = time.monotonic() + 30
    while state(host)["files"] and time.monotonic() < deadline:
        time.sleep(0.5)
    assert_bare("spark2")
    assert "is back as it was found" in host.check_output("journalctl -o cat -u sparkrig-fabric-undo.service")


def test_a_rail_on_the_wrong_cable_is_undone_with_its_name() -> None:
    """Everything is up and has its address, but the two rails of spark4 are swapped: only peers can tell."""
    with (
        link("spark4", RAIL_A, ["master", switch_of(RAIL_B)], ["master", switch_of(RAIL_A)]),
        link("spark4", RAIL_B, ["master", switch_of(RAIL_A)], ["master", switch_of(RAIL_B)]),
    ):
        outcome = play(RAILS_PLAYBOOK)
    assert outcome.code != 0, outcome.text
    assert "spark1 cannot reach spark4 (10.98.1.14) over rail enp1s0f0np0 with 8972 bytes" in words(outcome)
    assert "So the change of the rails was taken back on this node" in words(outcome)
    assert_bare()


# --- Up ------------------------------------------------------------------------------------------------------------


def test_bare_links_become_rails_that_carry_full_frames() -> None:
    outcome = play(RAILS_PLAYBOOK)
    assert outcome.code == 0, outcome.text
    for name, host in HOSTS.items():
        expected = {rail: {"mtu": 9000, "addresses": [PLAN[name][rail]]} for rail in (RAIL_A, RAIL_B)}
        assert state(host)["rails"] == expected
        values = environment(host, "/etc/sparkrig/fabric.env")
        assert values["NCCL_IB_DISABLE"] == "0"
        assert values["VLLM_HOST_IP"] == PLAN[name][RAIL_A].split("/")[0]
        assert values["NCCL_SOCKET_IFNAME"] == values["GLOO_SOCKET_IFNAME"] == RAIL_A
        assert "NCCL_IB_GID_INDEX" not in values
        assert not host.file("/var/lib/sparkrig/journal/fabric-pending.json").exists
    assert full_frames(PLAN, list(HOSTS)) == []
    again = play(RAILS_PLAYBOOK)
    assert (again.code, again.changed) == (0, 0), again.text


def test_verify_names_a_rail_that_was_pulled_and_a_port_with_a_small_mtu() -> None:
    with link("spark3", RAIL_B, ["down"], ["up"]), link("spark2", RAIL_A, ["mtu", "1500"], ["mtu", "9000"]):
        outcome = play("sparkrig.serving.verify")
    assert outcome.code != 0, outcome.text
    text = words(outcome)
    assert (
        f"spark3 cannot reach spark1 (10.98.2.11): {RAIL_B} has no carrier (is the cable in, and the other end up?)"
    ) in text
    assert (
        f"spark1 cannot reach spark2 (10.98.1.12) over rail {RAIL_A} with 8972 bytes, though small packets pass:"
        f" something between them carries less than MTU 9000. Check the MTU of {RAIL_A} on spark2"
    ) in text
    # What was confirmed once stays.
    assert state(HOSTS["spark3"])["rails"][RAIL_B]["addresses"] == [PLAN["spark3"][RAIL_B]]


def test_pairs_are_measured_in_rounds_and_held_against_thresholds() -> None:
    variables = {"fabric_bandwidth_seconds": 1, "fabric_bandwidth_thresholds": {"tcp": {"rail_gbps": 100000}}}
    outcome = play("sparkrig.serving.preflight", variables, ("--tags", "fabric"))
    assert outcome.code != 0, outcome.text
    pairs = [(one, two) for index, one in enumerate(PLAN) for two in list(PLAN)[index + 1 :]]
    for server, client in pairs:
        assert f"{client} to {server} over {RAIL_A}:" in words(outcome)
    assert "% below the 100000 needed" in words(outcome)


# --- The start of a service ----------------------------------------------------------------------------------------

SERVICE = """[Service]
EnvironmentFile=/etc/sparkrig/fabric.env
ExecStart=/bin/sleep 600
"""


def test_a_service_does_not_start_when_its_own_environment_takes_roce_away() -> None:
    host = HOSTS["spark1"]
    unit = "/etc/systemd/system/sparkrig-ray.service"
    drop_in = "/etc/systemd/system/sparkrig-ray.service.d/zz-tuning.conf"
    try:
        with file_on("spark1", unit, SERVICE):
            host.check_output("systemctl daemon-reload")
            host.check_output("systemctl start sparkrig-ray.service")
            assert host.file("/run/sparkrig/gid.env").exists
            with file_on("spark1", drop_in, "[Service]\nEnvironment=NCCL_NET=Socket\nEnvironment=NCCL_IB_GID_INDEX=\n"):
                host.check_output("systemctl daemon-reload")
                assert host.run("systemctl restart sparkrig-ray.service").rc != 0
                said = host.check_output("journalctl -o cat -u sparkrig-ray.service")
                assert "The environment of this service takes RoCE away: NCCL_IB_GID_INDEX is ''" in said
                assert "NCCL_NET is 'Socket'; it must not be: it forbids RDMA" in said
            host.check_output("systemctl daemon-reload")
            host.check_output("systemctl restart sparkrig-ray.service")
    finally:
        host.run("systemctl stop sparkrig-ray.service")
        host.run("systemctl daemon-reload")


def test_the_gid_index_is_resolved_at_every_start() -> None:
    """On a recorded sysfs tree, since there is no RDMA here: between two starts the index moves, as over a reboot."""
    host = HOSTS["spark1"]
    port = "/root/sysfs/class/infiniband/rocep1s0f0/ports/1"
    gid = "0000:0000:0000:0000:0000:ffff:0a62:010b"

    def slot(index: int) -> str:
        return (
            f"rm -rf {port}/gids {port}/gid_attrs && mkdir -p {port}/gids {port}/gid_attrs/types"
            f" && echo {gid} > {port}/gids/{index} && echo 'RoCE v2' > {port}/gid_attrs/types/{index}"
        )

    def start(index: int) -> str:
        host.check_output(slot(index))
        host.check_output("env -u NCCL_IB_GID_INDEX python3 -B /usr/local/lib/sparkrig/fabric start /root/fabric.json")
        return str(host.file("/run/sparkrig/gid.env").content_string)

    host.check_output(f"mkdir -p {port} /root/sysfs/class/infiniband/rocep1s0f0/device/net/{RAIL_A}")
    host.check_output(f"echo '4: ACTIVE' > {port}/state")
    config = json.loads(host.file("/etc/sparkrig/fabric.json").content_string)
    config.update(sys_root="/root/sysfs", gid_policy="always", wait_s=1, rails={RAIL_A: "10.98.1.11"})
    with file_on("spark1", "/root/fabric.json", json.dumps(config)):
        assert "NCCL_IB_GID_INDEX=3\n" in start(3)
        assert "NCCL_IB_GID_INDEX=5\n" in start(5)
        host.check_output(f"rm {port}/gids/5")
        gone = host.run("python3 -B /usr/local/lib/sparkrig/fabric start /root/fabric.json")
        assert gone.rc == 1
        assert "rocep1s0f0 port 1 has no RoCE v2 GID for 10.98.1.11 of enp1s0f0np0 among its 0 GIDs" in gone.stderr
    host.check_output("rm -r /root/sysfs")


# --- Rails of somebody else, another renderer, and lossless --------------------------------------------------------


def test_rails_of_somebody_else_are_adopted_or_left_alone() -> None:
    host = HOSTS["spark4"]
    limit = ("--limit", "spark4")
    assert play(RESET_PLAYBOOK, options=limit).code == 0
    text = "network:\n  version: 2\n  renderer: networkd\n  ethernets:\n" + "".join(
        f"    {rail}:\n      mtu: 9000\n      link-local: []\n      addresses: ['{cidr}']\n"
        for rail, cidr in PLAN["spark4"].items()
    )
    try:
        with file_on("spark4", "/etc/netplan/30-mine.yaml", text, "600"):
            assert_refused(play(RAILS_PLAYBOOK, options=limit), "/etc/netplan/30-mine.yaml configures enp1s0f0np0")
            host.check_output(
                "netplan generate && systemctl daemon-reload && systemctl restart systemd-networkd"
                f" && nmcli device set {RAIL_A} managed no && nmcli device set {RAIL_B} managed no"
            )
            outcome = play(RAILS_PLAYBOOK, options=(*limit, "-v"))
            assert outcome.code == 0, outcome.text
            assert "enp1s0f0np0 is as planned already, by /etc/netplan/30-mine.yaml; left to it." in words(outcome)
            assert not host.file("/etc/netplan/40-sparkrig-fabric.yaml").exists
            assert host.file("/etc/sparkrig/fabric.env").exists
            assert play(RESET_PLAYBOOK, options=limit).code == 0
            assert state(host)["rails"][RAIL_A]["addresses"] == [PLAN["spark4"][RAIL_A]]
    finally:
        host.run("netplan generate; systemctl daemon-reload; networkctl reload; systemctl stop systemd-networkd.socket")
        host.run(f"systemctl stop systemd-networkd; ip addr flush dev {RAIL_A}; ip addr flush dev {RAIL_B}")
        host.run(f"ip link set dev {RAIL_A} mtu 1500; ip link set dev {RAIL_B} mtu 1500")

    # An address by hand, in no file, is somebody's as well.
    host.check_output(f"ip address add 192.168.7.7/24 dev {RAIL_B}")
    assert_refused(
        play(RAILS_PLAYBOOK, options=limit), f"{RAIL_B} has 192.168.7.7/24, which is neither planned nor ours"
    )
    host.check_output(f"ip address flush dev {RAIL_B}")


def test_networkmanager_renders_the_rails_as_well() -> None:
    limit = ("--limit", "spark4")
    outcome = play(RAILS_PLAYBOOK, {"fabric_renderer": "NetworkManager"}, limit)
    assert outcome.code == 0, outcome.text
    assert f"netplan-{RAIL_A}" in HOSTS["spark4"].check_output("nmcli -g NAME connection show --active")
    peers = {name: PLAN[name] for name in ("spark3", "spark4")}
    assert full_frames(peers, list(peers)) == []
    again = play(RAILS_PLAYBOOK, {"fabric_renderer": "NetworkManager"}, limit)
    assert (again.code, again.changed) == (0, 0), again.text


FAKE_DCB = '#!/bin/sh\necho "$@" >> /var/log/fake-dcb\n'


def test_a_reboot_keeps_the_rails_and_lossless() -> None:
    """No link here knows DCB; a stand-in for the tool shows that the unit speaks to it again after a boot."""
    host = HOSTS["spark4"]
    # The lab plugs the management link in while the node boots; its NetworkManager must not ask for a lease there.
    keep = "[keyfile]\nunmanaged-devices=interface-name:eth0\n"
    with (
        file_on("spark4", "/usr/local/sbin/dcb", FAKE_DCB, "755"),
        file_on("spark4", "/etc/NetworkManager/conf.d/10-lab.conf", keep),
    ):
        outcome = play(RAILS_PLAYBOOK, {"fabric_lossless": True}, ("--limit", "spark4"))
        assert outcome.code == 0, outcome.text
        assert environment(host, "/etc/sparkrig/fabric.env")["NCCL_IB_TC"] == "106"
        host.check_output("rm /var/log/fake-dcb")
        (node,) = (node for node in NODES if node.name == "spark4")
        run(["podman", "stop", "--time", "20", node.container])
        up()
        # For as long as this boot lasts, also when the file that was needed for the boot is gone.
        host.check_output("install -D /etc/NetworkManager/conf.d/10-lab.conf /run/NetworkManager/conf.d/10-lab.conf")
        deadline = time.monotonic() + 60
        while full_frames({name: PLAN[name] for name in ("spark1", "spark4")}, ["spark1", "spark4"]):
            assert time.monotonic() < deadline, state(host)
            time.sleep(1)
        assert f"pfc set dev {RAIL_B} prio-pfc 0:off 1:off 2:off 3:on" in host.file("/var/log/fake-dcb").content_string
        again = play(RAILS_PLAYBOOK, {"fabric_lossless": True}, ("--limit", "spark4"))
        assert (again.code, again.changed) == (0, 0), again.text
        outcome = play(RAILS_PLAYBOOK)
        assert outcome.code == 0, outcome.text
        assert not host.file("/etc/systemd/system/sparkrig-lossless.service").exists


# --- Down ----------------------------------------------------------------------------------------------------------


def test_reset_leaves_bare_links_and_twice_is_harmless() -> None:
    assert play(RESET_PLAYBOOK).code == 0
    assert_bare()
    for name, host in HOSTS.items():
        assert {rail: value["mtu"] for rail, value in state(host)["rails"].items()} == {RAIL_A: 1500, RAIL_B: 1500}, (
            name
        )
        # Services wrote there while it was up.
        assert not host.file("/run/sparkrig").exists, name
    again = play(RESET_PLAYBOOK)
    assert (again.code, again.changed) == (0, 0), again.text


# --- How the rails are cabled --------------------------------------------------------------------------------------


@contextmanager
def cables(*ends: tuple[tuple[str, str], tuple[str, str]]) -> Iterator[None]:
    """Take rails out of their switches and connect them in pairs.

    A bridge of two ports that passes on what is meant for the nearest bridge is a cable.
    """
    names = [f"f{number}" for number in range(len(ends))]
    try:
        for name, pair in zip(names, ends, strict=True):
            run(["ip", "link", "add", name, "mtu", "9000", "type", "bridge", "group_fwd_mask", "0x4000"])
            run(["ip", "link", "set", name, "mtu", "9000", "up"])
            for host, rail in pair:
                run(["ip", "link", "set", port_of(host, rail), "master", name])
        yield
    finally:
        for pair in ends:
            for host, rail in pair:
                run(["ip", "link", "set", port_of(host, rail), "master", switch_of(rail)])
        for name in names:
            run(["ip", "link", "delete", name], check=False)


def discover(path: Path, *options: str, **variables: t.Any) -> tuple[str, dict[str, dict[str, str]]]:
    outcome = play("sparkrig.serving.discover", {"discover_file": str(path), **variables}, options)
    assert outcome.code == 0, outcome.text
    hosts = yaml.safe_load(path.read_text(encoding="utf-8"))["all"]["hosts"]
    return words(outcome), {name: host["fabric_addresses"] for name, host in hosts.items()}


def test_discover_finds_one_switch_and_keeps_the_addresses(tmp_path: Path) -> None:
    text, found = discover(tmp_path / "rails.yml")
    assert "The rails are one switch." in text
    assert found == PLAN
    assert_bare()


def test_discover_finds_a_direct_cable_of_two(tmp_path: Path) -> None:
    with cables((("spark1", RAIL_A), ("spark2", RAIL_A)), (("spark1", RAIL_B), ("spark2", RAIL_B))):
        text, found = discover(tmp_path / "rails.yml", "--limit", "spark1,spark2")
    assert "The rails are a direct cable." in text
    assert f"Cable: spark1 {RAIL_A} - spark2 {RAIL_A}" in text
    assert found == {name: PLAN[name] for name in ("spark1", "spark2")}


def test_discover_finds_a_ring_and_what_it_writes_works(tmp_path: Path) -> None:
    names = list(PLAN)
    ring = [((name, RAIL_A), (names[(index + 1) % 4], RAIL_B)) for index, name in enumerate(names)]
    with cables(*ring):
        text, found = discover(tmp_path / "rails.yml")
        assert "The rails are a ring of 4." in text
        assert f"The inventory has {RAIL_A} {PLAN['spark1'][RAIL_A]}" in text
        assert found["spark1"][RAIL_A] == "192.168.100.1/24"
        assert found["spark2"][RAIL_B] == "192.168.100.2/24"
        # No rail reaches everybody, so the nodes find each other over the management network.
        outcome = play(
            RAILS_PLAYBOOK,
            {"fabric_host_interface": "eth0"},
            ("-i", str(tmp_path / "rails.yml"), "-v"),
        )
        assert outcome.code == 0, outcome.text
        assert "spark2 answers 8972 bytes over enp1s0f0np0 (192.168.100.1 to 192.168.100.2)." in words(outcome)
        assert environment(HOSTS["spark3"], "/etc/sparkrig/fabric.env")["VLLM_HOST_IP"] == "10.98.0.13"
        assert play(RESET_PLAYBOOK).code == 0
    assert_bare()

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""fabric_rails from end to end, against a node whose links follow its netplan files."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
import yaml
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.sparkrig.serving.plugins.module_utils import _fabric_node
from ansible_collections.sparkrig.serving.plugins.modules import fabric_rails
from ansible_collections.sparkrig.serving.plugins.modules.fabric_rails import ssh_connection

A, B = "enp1s0f0np0", "enP2p1s0f0np0"
PROJECT = Path(__file__).parents[2]


class FakeNode:
    """Links, netplan, networkd and NetworkManager, as far as the module talks to them."""

    def __init__(self, root: Path) -> None:
        self.netplan = root / "netplan" / "40-sparkrig-fabric.yaml"
        self.netplan.parent.mkdir()
        self.nm = root / "NetworkManager" / "conf.d" / "40-sparkrig-fabric.conf"
        self.links: dict[str, dict[str, t.Any]] = {
            "eth0": {"mtu": 1500, "up": True, "carrier": True, "addresses": ["10.98.0.11/24"]},
            A: {"mtu": 1500, "up": True, "carrier": True, "addresses": []},
            B: {"mtu": 1500, "up": False, "carrier": False, "addresses": []},
        }
        self.services = {"systemd-networkd.service": False, "NetworkManager.service": True}
        self.services["sparkrig-lossless.service"] = False
        self.commands: list[list[str]] = []
        self.refuse: dict[str, str] = {}
        self.silent: set[str] = set()
        self.small_only: set[str] = set()
        self.unplugged: set[str] = set()
        self.pings: list[str] = []
        self.connection: list[str] = []
        self.way = "eth0"
        self.way_after = "eth0"
        self.other = root / "system-connections"
        self.other.mkdir()
        self.units = root / "units"
        self.units.mkdir()

    def texts(self) -> list[str]:
        """What changes something, without what only reads."""
        reads = ("ip -json", "systemctl is-active", "xargs", "dcb -json")
        return [text for text in (" ".join(argv) for argv in self.commands) if not text.startswith(reads)]

    def run_command(self, argv: list[str], data: str | None) -> tuple[int, str, str]:
        self.commands.append(argv)
        text = " ".join(argv)
        for start, reason in self.refuse.items():
            if text.startswith(start):
                return 1, "", reason
        if text == "ip -json addr show":
            return 0, json.dumps([self.ip(name) for name in self.links]), ""
        if text.startswith("ip -json -4 route"):
            return 0, json.dumps([{"dst": "default", "dev": "eth0"}]), ""
        if text.startswith("ip -json route get"):
            return (0, json.dumps([{"dst": argv[-1], "dev": self.way}]), "") if self.way else (2, "", "unreachable")
        if argv[0] == "xargs":
            return self.ping(argv, data or "")
        if text.startswith("systemctl is-active"):
            return 0, "".join("active\n" if self.services[name] else "inactive\n" for name in argv[2:]), ""
        if text == "systemctl start systemd-networkd.service":
            self.services["systemd-networkd.service"] = True
            self.follow("networkd")
        elif text.startswith("systemctl stop"):
            self.services["systemd-networkd.service"] = False
        elif argv[0] == "networkctl":
            self.follow("networkd")
        elif text.startswith("nmcli connection up"):
            self.follow("NetworkManager")
        elif argv[0] == "ip":
            self.by_hand(argv)
        return 0, "", ""

    def ip(self, name: str) -> dict[str, t.Any]:
        link = self.links[name]
        flags = ["UP"] * link["up"] + ["LOWER_UP"] * link["carrier"]
        addresses = [cidr.split("/") for cidr in link["addresses"]]
        return {
            "ifname": name,
            "flags": flags,
            "mtu": link["mtu"],
            "addr_info": [{"family": "inet", "local": ip, "prefixlen": int(prefix)} for ip, prefix in addresses],
        }

    def follow(self, renderer: str) -> None:
        plan = yaml.safe_load(self.netplan.read_text())["network"]["ethernets"] if self.netplan.exists() else {}
        for name, config in plan.items():
            if config["renderer"] == renderer and name not in self.unplugged:
                self.links[name].update(mtu=config["mtu"], up=True, carrier=True, addresses=config["addresses"])
        self.way = self.way_after if plan else "eth0"

    def by_hand(self, argv: list[str]) -> None:
        link = self.links[argv[argv.index("dev") + 1]]
        if argv[1:3] == ["address", "del"]:
            link["addresses"] = [cidr for cidr in link["addresses"] if cidr != argv[3]]
        elif argv[1:3] == ["address", "add"]:
            link["addresses"] = [*link["addresses"], argv[3]]
        elif "mtu" in argv:
            link["mtu"] = int(argv[-1])
        else:
            link.update(up=argv[-1] == "up", carrier=argv[-1] == "up")

    def ping(self, argv: list[str], data: str) -> tuple[int, str, str]:
        size = int(argv[argv.index("-s") + 1])
        out = ""
        for line in data.splitlines():
            self.pings.append(f"{size} {line}")
            peer = line.split()[-1]
            if peer not in self.silent and not (peer in self.small_only and size > 1472):
                out += f"{size + 8} bytes from {peer}: icmp_seq=1 ttl=64 time=0.05 ms\n"
        return 123, out, ""


@pytest.fixture
def node(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> FakeNode:
    fake = FakeNode(tmp_path)
    fake.nm.parent.mkdir(parents=True)
    monkeypatch.setattr(
        AnsibleModule, "run_command", lambda _module, argv, data=None, **_more: fake.run_command(argv, data)
    )
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _module, name, **_more: f"/bin/{name}")
    monkeypatch.setattr(fabric_rails, "NETPLAN_FOLDERS", (str(fake.netplan.parent),))
    monkeypatch.setattr(fabric_rails, "NM_FOLDER", str(tmp_path / "NetworkManager"))
    monkeypatch.setattr(fabric_rails, "NM_FILE", str(fake.nm))
    monkeypatch.setattr(fabric_rails, "OTHER_FILES", {str(fake.other): ".nmconnection"})
    monkeypatch.setattr(fabric_rails, "PROGRAM_FOLDER", str(tmp_path / "local" / "sparkrig"))
    monkeypatch.setattr(fabric_rails, "CONFIG_FILE", str(tmp_path / "sparkrig" / "fabric.json"))
    monkeypatch.setattr(fabric_rails, "UNIT_FOLDER", str(fake.units))
    monkeypatch.setattr(_fabric_node, "SETTLE_S", 0.0)
    monkeypatch.setattr(fabric_rails, "ssh_connection", lambda _pid: fake.connection)
    return fake


class Run:
    """Runs the module and reads its answer."""

    def __init__(self, capsys: pytest.CaptureFixture[str], root: Path, node: FakeNode) -> None:
        self.capsys = capsys
        self.defaults = {
            "netplan_file": str(node.netplan),
            "env_file": str(root / "sparkrig" / "fabric.env"),
            "journal": str(root / "lib" / "sparkrig" / "journal" / "fabric.json"),
            "sys_root": str(root / "sys"),
            "wait_s": 0,
        }
        (root / "lib").mkdir()
        self.env = root / "sparkrig" / "fabric.env"
        self.journal = Path(str(self.defaults["journal"]))

    def __call__(self, rails: dict[str, str] | None = None, check: bool = False, **more: t.Any) -> dict[str, t.Any]:
        listed = [{"interface": name, "address": cidr} for name, cidr in (rails or {}).items()]
        arguments = {**self.defaults, "rails": listed, **more}
        if check:
            arguments["_ansible_check_mode"] = True
        with patch_module_args(arguments), pytest.raises(SystemExit):
            fabric_rails.main()
        result: dict[str, t.Any] = json.loads(self.capsys.readouterr().out)
        return result


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path, node: FakeNode) -> Run:
    return Run(capsys, tmp_path, node)


PLAN = {A: "10.98.1.11/24", B: "10.98.2.11/24"}


def test_bare_links_become_rails(node: FakeNode, run: Run) -> None:
    result = run(PLAN)
    assert result["changed"] is True
    assert node.links[A] == {"mtu": 9000, "up": True, "carrier": True, "addresses": ["10.98.1.11/24"]}
    assert node.links[B]["addresses"] == ["10.98.2.11/24"]
    assert node.links["eth0"] == {"mtu": 1500, "up": True, "carrier": True, "addresses": ["10.98.0.11/24"]}
    check, *rest = node.texts()
    assert check.startswith("netplan generate --root-dir /")
    assert rest == [
        "netplan generate",
        "systemctl daemon-reload",
        "nmcli general reload conf",
        "systemctl start systemd-networkd.service",
    ]
    assert node.netplan.stat().st_mode & 0o777 == 0o600
    assert "unmanaged-devices+=" in node.nm.read_text()
    assert run.env.read_text().splitlines()[1:] == [
        "NCCL_IB_DISABLE=0",
        f"NCCL_SOCKET_IFNAME={A}",
        f"GLOO_SOCKET_IFNAME={A}",
        "VLLM_HOST_IP=10.98.1.11",
        "HOST_IP=10.98.1.11",
        "NCCL_DEBUG=INFO",
        "NCCL_DEBUG_SUBSYS=INIT,NET",
        "NCCL_DEBUG_FILE=/run/sparkrig/nccl/%h.%p.log",
    ]
    assert (result["host_ip"], result["rails"][1]) == (
        "10.98.1.11",
        {"interface": B, "address": "10.98.2.11", "prefix": 24, "mtu": 9000},
    )


def test_the_second_run_only_reads(node: FakeNode, run: Run) -> None:
    run(PLAN)
    node.commands.clear()
    result = run(PLAN)
    assert result["changed"] is False
    assert [argv[:3] for argv in node.commands] == [["ip", "-json", "addr"], ["ip", "-json", "-4"]]
    assert result["actions"][0] == f"{A} has 10.98.1.11/24 and MTU 9000 already."


def test_check_mode_predicts_and_touches_nothing(node: FakeNode, run: Run) -> None:
    before = json.dumps(node.links)
    predicted = run(PLAN, check=True)
    assert json.dumps(node.links) == before
    assert not node.netplan.exists()
    assert not node.nm.exists()
    assert not run.env.exists()
    assert not run.journal.exists()
    done = run(PLAN)
    predicted.pop("invocation", None)
    done.pop("invocation", None)
    assert predicted == done
    assert [part["after_header"] for part in done["diff"]] == [str(node.netplan), str(node.nm), str(run.env), "links"]


def test_absent_is_what_was_found_and_twice_harmless(node: FakeNode, run: Run) -> None:
    before = json.dumps([node.links, node.services])
    run(PLAN)
    assert run(state="absent", check=True)["changed"] is True
    assert run(state="absent")["changed"] is True
    assert json.dumps([node.links, node.services]) == before
    assert not node.netplan.exists()
    assert not node.nm.exists()
    assert not run.env.exists()
    assert not run.journal.exists()
    assert run(state="absent")["changed"] is False


def test_an_interrupted_run_goes_on(node: FakeNode, run: Run) -> None:
    node.refuse["systemctl daemon-reload"] = "killed"
    real = fabric_rails.roll_back
    fabric_rails.roll_back = lambda *_all: "interrupted"
    try:
        assert run(PLAN)["msg"] == "interrupted"
    finally:
        fabric_rails.roll_back = real
    assert node.netplan.exists()
    node.refuse.clear()
    assert run(PLAN)["changed"] is True
    assert run(PLAN)["changed"] is False
    run(state="absent")
    assert node.links[A] == {"mtu": 1500, "up": True, "carrier": True, "addresses": []}


def test_rails_that_do_not_come_up_are_put_back(node: FakeNode, run: Run) -> None:
    before = json.dumps([node.links, node.services])
    node.unplugged.add(B)
    result = run(PLAN)
    assert result["msg"] == (
        f"The rails did not come up as planned within 0 s: {B} is down, {B} lacks 10.98.2.11/24 (it has none), {B} has "
        f"MTU 1500 instead of 9000. The previous files and links were put back; run this again when the cause is gone."
    )
    assert json.dumps([node.links, node.services]) == before
    assert not node.netplan.exists()
    assert not run.journal.exists()


def test_a_change_that_fails_leaves_the_rails_of_before(node: FakeNode, run: Run) -> None:
    run(PLAN)
    text = node.netplan.read_text()
    links = json.dumps(node.links)
    node.unplugged.add(B)
    result = run({A: "10.98.5.11/24", B: "10.98.6.11/24"})
    assert "were put back" in result["msg"]
    assert (node.netplan.read_text(), json.dumps(node.links)) == (text, links)
    node.unplugged.clear()
    assert run(PLAN)["changed"] is False
    run(state="absent")
    assert node.links[A]["mtu"] == 1500


def test_a_refused_step_is_quoted_and_undone(node: FakeNode, run: Run) -> None:
    node.refuse["systemctl start systemd-networkd"] = "Unit is masked."
    result = run(PLAN)
    assert (
        "'systemctl start systemd-networkd.service' failed with rc 1: Unit is masked. The previous files"
        in result["msg"]
    )
    assert not node.netplan.exists()
    node.refuse["netplan generate"] = "no"
    result = run(PLAN)
    assert result["msg"] == "netplan refuses the new plan, nothing was changed: no."


@pytest.mark.parametrize(
    ("rails", "said"),
    [
        ({"enp9": "10.98.9.1/24"}, "enp9 does not exist on this node, which has "),
        ({"eth0": "10.98.9.1/24"}, "eth0 carries the default route, so it is never touched; name another interface."),
        ({A: "10.98.0.77/24"}, f"{A} would get 10.98.0.77/24, but eth0 is in that subnet already (10.98.0.11/24)"),
        ({A: "10.98.1.1/24", B: "10.98.1.2/24"}, f"{A} (10.98.1.1/24) and {B} (10.98.1.2/24) are in one subnet"),
        ({A: "10.98.1.0/24"}, f"fabric_addresses['{A}'] is '10.98.1.0/24', which is the subnet itself"),
        ({}, "fabric_addresses is empty"),
    ],
)
def test_a_bad_plan_is_refused_before_any_change(node: FakeNode, run: Run, rails: dict[str, str], said: str) -> None:
    result = run(rails)
    assert result["failed"] is True
    assert result["msg"].startswith(said)
    assert node.texts() == []
    assert not node.netplan.exists()


def test_management_interfaces_and_the_ssh_interface_are_kept_off(
    node: FakeNode, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    assert run(PLAN, management_interfaces=[A])["msg"].startswith(f"{A} is a management interface of yours, so it")
    node.links[B]["addresses"] = ["10.98.0.77/24"]
    node.connection = ["10.97.0.1", "50022", "10.98.0.77", "22"]
    assert run(PLAN)["msg"].startswith(f"{B} carries the SSH connection of this very run, so it is never touched")


def test_values_that_take_roce_away_are_refused(node: FakeNode, run: Run) -> None:
    assert run(PLAN, environment={"NCCL_IB_DISABLE": 1})["msg"].startswith(
        "fabric_environment.NCCL_IB_DISABLE is '1'; it must stay '0'"
    )
    assert node.texts() == []


def test_rails_of_somebody_else(node: FakeNode, run: Run) -> None:
    other = node.netplan.parent / "40-cx7.yaml"
    other.write_text(f"network:\n  ethernets:\n    {A}: {{}}\n")
    assert run({A: "10.98.1.11/24"})["msg"] == (
        f"{other} configures {A}, and not as planned ({A} lacks 10.98.1.11/24 (it has none), {A} has MTU 1500 instead "
        f"of 9000). Take it out there, or make it as planned, and run this again. Nothing was changed."
    )
    node.links[A].update(mtu=9000, addresses=["10.98.1.11/24"])
    result = run({A: "10.98.1.11/24"})
    assert result["actions"][0] == f"{A} is as planned already, by {other}; left to it."
    assert not node.netplan.exists()
    assert run.env.exists()


def test_networkmanager_as_renderer(node: FakeNode, run: Run) -> None:
    assert run(PLAN, renderer="auto")["changed"] is True
    assert node.texts()[-2:] == [f"nmcli connection up netplan-{A}", f"nmcli connection up netplan-{B}"]
    assert not node.nm.exists()
    assert run(PLAN, renderer="networkd")["changed"] is True
    assert node.nm.exists()
    assert run(PLAN, renderer="auto")["changed"] is False


def test_a_renderer_that_does_not_run(node: FakeNode, run: Run) -> None:
    node.services["NetworkManager.service"] = False
    result = run(PLAN, renderer="NetworkManager")
    assert "the renderer is NetworkManager, which does not run on this node" in result["msg"]
    assert not node.netplan.exists()


def test_rdma_devices_are_named(node: FakeNode, run: Run, tmp_path: Path) -> None:
    for name, netdev in (("rocep1s0f0", A), ("roceP2p1s0f0", B)):
        base = tmp_path / "sys" / "class" / "infiniband" / name
        (base / "device" / "net" / netdev).mkdir(parents=True)
        (base / "ports" / "1").mkdir(parents=True)
        (base / "ports" / "1" / "state").write_text("4: ACTIVE\n")
    run(PLAN)
    assert "NCCL_IB_HCA==rocep1s0f0,roceP2p1s0f0\n" in run.env.read_text()


PEERS = {"spark2": {A: "10.98.1.12/24", B: "10.98.2.12/24"}, "spark3": {A: "10.98.1.13/24", B: "10.98.2.13/24"}}


def test_all_peers_on_all_rails_in_one_command(node: FakeNode, run: Run) -> None:
    result = run(PLAN, state="verified", peers=PEERS, node="spark1")
    assert result["changed"] is False
    assert len(node.commands) == 1
    assert node.pings == [
        f"8972 -I {A} 10.98.1.12",
        f"8972 -I {B} 10.98.2.12",
        f"8972 -I {A} 10.98.1.13",
        f"8972 -I {B} 10.98.2.13",
    ]
    assert result["actions"][0] == f"spark2 answers 8972 bytes over {A} (10.98.1.11 to 10.98.1.12)."


def test_every_silent_peer_is_named(node: FakeNode, run: Run) -> None:
    run(PLAN)
    node.commands.clear()
    node.small_only.add("10.98.2.12")
    node.silent.add("10.98.1.13")
    result = run(PLAN, state="verified", peers=PEERS, node="spark1")
    assert result["msg"].splitlines() == [
        f"spark1 cannot reach spark2 (10.98.2.12) over rail {B} with 8972 bytes, though small packets pass: something "
        f"between them carries less than MTU 9000. Check the MTU of {B} on spark2, and set MTU 9000 and L2MTU 9216 or "
        f"more on both switch ports.",
        f"spark1 cannot reach spark3 (10.98.1.13) over rail {A} with 8972 bytes, and no small packet passes either: "
        f"check the cables, the switch ports and {A} on spark3, and that the role fabric ran there.",
    ]
    assert [argv[0] for argv in node.commands] == ["xargs"] * 4 + ["ip"] * 2
    node.links[A].update(up=False, carrier=False)
    assert run(PLAN, state="verified", peers=PEERS, node="spark1")["msg"].splitlines()[1] == (
        f"spark1 cannot reach spark3 (10.98.1.13): {A} is down. Check the cable of {A} on spark1."
    )


def test_alone_or_in_check_mode_nothing_is_sent(node: FakeNode, run: Run) -> None:
    assert run(PLAN, state="verified")["actions"] == ["There are no peers, so nothing was sent."]
    result = run(PLAN, state="verified", peers=PEERS, check=True)
    assert result["actions"] == ["4 packets of 8972 bytes would be sent."]
    assert node.commands == []


def test_a_peer_with_a_bad_address_is_refused(node: FakeNode, run: Run) -> None:
    result = run(PLAN, state="verified", peers={"spark2": {A: "10.98.1.0/24"}})
    assert result["msg"].startswith(f"spark2: fabric_addresses['{A}'] is '10.98.1.0/24', which is the subnet itself")


def test_a_missing_tool_is_named(run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _module, _name, **_more: None)
    assert run(PLAN)["msg"] == (
        "netplan is not installed on this node, and the rails need it: install the package netplan.io."
    )


def test_an_edited_journal_is_refused(node: FakeNode, run: Run) -> None:
    run(PLAN)
    run.journal.write_text(run.journal.read_text().replace("1500", "1400"))
    assert "was edited, its digest does not fit" in run(state="absent")["msg"]
    assert node.netplan.exists()


def process(proc: Path, pid: int, parent: int, environment: bytes) -> None:
    (proc / str(pid)).mkdir()
    (proc / str(pid) / "environ").write_bytes(environment)
    (proc / str(pid) / "stat").write_text(f"{pid} (a ) b) S {parent} 1 1")


@pytest.mark.parametrize(
    ("connection", "found"),
    [
        (b"10.98.0.1 50022 10.98.0.11 22", ["10.98.0.1", "50022", "10.98.0.11", "22"]),
        (b"fe80::9 50022 fe80::1%eth0 22", ["fe80::9", "50022", "fe80::1%eth0", "22"]),
        (b"broken", []),
    ],
)
def test_our_connection_is_found_behind_sudo(tmp_path: Path, connection: bytes, found: list[str]) -> None:
    process(tmp_path, 30, 20, b"PATH=/bin\0SUDO_USER=spark\0")
    process(tmp_path, 20, 10, b"PATH=/bin\0SSH_CONNECTION=" + connection + b"\0")
    process(tmp_path, 10, 1, b"")
    assert ssh_connection(30, str(tmp_path)) == found


def test_a_local_run_has_no_connection(tmp_path: Path) -> None:
    process(tmp_path, 30, 1, b"PATH=/bin\0")
    assert ssh_connection(30, str(tmp_path)) == []
    assert ssh_connection(99, str(tmp_path)) == []


# --- What is undone when nobody confirms it ------------------------------------------------------------------


def pending(run: Run) -> Path:
    return run.journal.parent / "fabric-pending.json"


def test_a_change_waits_for_its_confirmation(node: FakeNode, run: Run) -> None:
    before = json.dumps([node.links, node.services])
    run(PLAN, confirm_s=90)
    (armed,) = (text for text in node.texts() if text.startswith("systemd-run"))
    assert "--unit=sparkrig-fabric-undo --on-active=90 " in armed
    assert armed.endswith(f"/local/sparkrig/fabric undo {pending(run)}")
    assert pending(run).exists()
    # What the timer runs on the node, without Ansible.
    _fabric_node.undo(_fabric_node.Node(lambda argv, data: node.run_command(list(argv), data)), str(pending(run)))
    assert json.dumps([node.links, node.services]) == before
    assert not node.netplan.exists()
    assert not run.journal.exists()
    assert not pending(run).exists()


def test_the_proof_confirms(node: FakeNode, run: Run) -> None:
    run(PLAN, confirm_s=90)
    node.commands.clear()
    result = run(PLAN, state="verified", peers=PEERS)
    assert result["actions"][-1] == "The change of the rails is confirmed; it stays."
    assert node.texts() == ["systemctl stop sparkrig-fabric-undo.timer"]
    assert not pending(run).exists()
    assert run(PLAN, confirm_s=90)["changed"] is False


def test_a_proof_that_fails_takes_the_change_back(node: FakeNode, run: Run) -> None:
    before = json.dumps([node.links, node.services])
    run(PLAN, confirm_s=90)
    node.silent.add("10.98.1.12")
    result = run(PLAN, state="verified", peers=PEERS, node="spark1")
    assert result["msg"].splitlines()[-1] == (
        "So the change of the rails was taken back on this node; run this again when the cause is gone."
    )
    assert json.dumps([node.links, node.services]) == before
    # What was confirmed before stays when a later proof fails.
    node.silent.clear()
    run(PLAN, confirm_s=90)
    run(PLAN, state="verified", peers=PEERS)
    node.silent.add("10.98.1.12")
    assert "taken back" not in run(PLAN, state="verified", peers=PEERS)["msg"]
    assert node.netplan.exists()


def test_an_unconfirmed_change_keeps_its_goal_over_runs(node: FakeNode, run: Run) -> None:
    run(PLAN, confirm_s=90)
    first = pending(run).read_text()
    node.commands.clear()
    assert run(PLAN, confirm_s=90)["changed"] is False
    assert pending(run).read_text() == first
    assert [text for text in node.texts() if text.startswith("systemd-run")]
    run({A: "10.98.5.11/24", B: "10.98.6.11/24"}, confirm_s=90)
    assert pending(run).read_text() == first
    assert run({A: "10.98.5.11/24", B: "10.98.6.11/24"})["changed"] is False
    assert not pending(run).exists()


def test_a_plan_that_turns_the_way_back_is_undone_at_once(node: FakeNode, run: Run) -> None:
    before = json.dumps([node.links, node.services])
    node.connection = ["10.97.0.1", "50022", "10.98.0.11", "22"]
    node.way_after = A
    result = run(PLAN, wait_s=30)
    assert result["msg"] == (
        "The rails did not come up as planned within 30 s: the way back to 10.97.0.1, which this run comes from, would "
        f"lead over {A} instead of eth0. The previous files and links were put back; run this again when the cause is "
        "gone."
    )
    assert json.dumps([node.links, node.services]) == before


def test_a_plan_that_holds_the_controller_is_refused(node: FakeNode, run: Run) -> None:
    node.connection = ["10.98.1.200", "50022", "10.98.0.11", "22"]
    assert run(PLAN)["msg"].startswith(f"{A} would get 10.98.1.11/24, but this run comes from 10.98.1.200, which is in")
    assert node.texts() == []


def test_nothing_that_the_management_stands_on_is_touched(node: FakeNode, run: Run, tmp_path: Path) -> None:
    (tmp_path / "sys" / "class" / "net" / "eth0" / f"lower_{A}").mkdir(parents=True)
    assert run(PLAN)["msg"].startswith(f"{A} is below eth0, which carries the default route, so it is never touched")


# --- Rails of others ---------------------------------------------------------------------------------------------


def test_addresses_given_by_hand_are_not_taken_away_silently(node: FakeNode, run: Run) -> None:
    node.links[A]["addresses"] = ["192.168.7.7/24"]
    assert run(PLAN)["msg"] == (
        f"{A} has 192.168.7.7/24, which is neither planned nor ours. Take it off, put it into fabric_addresses, or set "
        "fabric_take_over to replace it. Nothing was changed."
    )
    assert node.texts() == []
    assert run(PLAN, take_over=True)["changed"] is True
    run(state="absent")
    assert node.links[A]["addresses"] == ["192.168.7.7/24"]


def test_a_connection_of_networkmanager_is_left_to_it(node: FakeNode, run: Run) -> None:
    (node.other / "rail.nmconnection").write_text(f"[connection]\ninterface-name={A}\n")
    assert "rail.nmconnection configures" in run({A: "10.98.1.11/24"})["msg"]
    node.links[A].update(mtu=9000, addresses=["10.98.1.11/24"])
    assert run({A: "10.98.1.11/24"})["actions"][0].endswith("rail.nmconnection; left to it.")


# --- What starts before the services, and lossless ------------------------------------------------------------


def test_the_program_is_installed_as_it_is_here_and_goes_again(node: FakeNode, run: Run, tmp_path: Path) -> None:
    run(PLAN, services=["sparkrig-ray.service"])
    folder = tmp_path / "local" / "sparkrig"
    for part in ("_fabric", "_fabric_node", "_fabric_start", "_journal", "_rdma", "_roce_rules"):
        own = (PROJECT / "plugins" / "module_utils" / f"{part}.py").read_text()
        assert (folder / "sparkrig_fabric" / f"{part}.py").read_text() == own
    drop_in = (node.units / "sparkrig-ray.service.d" / "sparkrig-fabric.conf").read_text()
    assert "EnvironmentFile=-/run/sparkrig/gid.env\nExecStartPre=+/usr/bin/python3 -B " in drop_in
    config = json.loads((tmp_path / "sparkrig" / "fabric.json").read_text())
    assert config["rails"] == {A: "10.98.1.11", B: "10.98.2.11"}
    run(state="absent")
    assert not folder.exists()
    assert list(node.units.iterdir()) == []


def test_lossless_is_a_unit(node: FakeNode, run: Run) -> None:
    run(PLAN)
    result = run(PLAN, lossless=True)
    assert "sparkrig-lossless.service is written and started." in result["actions"]
    unit = (node.units / "sparkrig-lossless.service").read_text()
    assert f"ExecStart=/bin/dcb app replace dev {A} dscp-prio 26:3\n" in unit
    assert f"ExecStart=/bin/dcb pfc set dev {B} prio-pfc 0:off 1:off 2:off 3:on 4:off 5:off 6:off 7:off\n" in unit
    assert "NCCL_IB_TC=106\n" in run.env.read_text()
    assert node.texts()[-3:] == [
        "systemctl daemon-reload",
        "systemctl enable sparkrig-lossless.service",
        "systemctl restart sparkrig-lossless.service",
    ]
    node.services["sparkrig-lossless.service"] = True
    assert run(PLAN, lossless=True)["changed"] is False
    run(PLAN)
    assert "systemctl disable --now sparkrig-lossless.service" in node.texts()
    assert not (node.units / "sparkrig-lossless.service").exists()
    run(PLAN, lossless=True)
    node.commands.clear()
    run(state="absent")
    assert node.texts()[0] == "systemctl disable --now sparkrig-lossless.service"


def test_lossless_needs_dcb(node: FakeNode, run: Run) -> None:
    node.refuse["dcb -json pfc show"] = "Error: Operation not supported"
    assert run(PLAN, lossless=True)["msg"] == (
        f"fabric_lossless is on, but {A} knows no DCB (dcb says: Error: Operation not supported); turn it off, or use "
        "interfaces that do. Nothing was changed."
    )
    assert not node.netplan.exists()


# --- Derived rails, and another interface for the hosts ---------------------------------------------------------


def test_rails_derived_from_subnets(node: FakeNode, run: Run, tmp_path: Path) -> None:
    subnets = ["10.98.1.0/24", "10.98.2.0/24"]
    assert run(subnets=subnets, index=11)["msg"].startswith("This node has no active RDMA port that could be a rail")
    result = run(subnets=subnets, index=11, interfaces=[A, B], check=True)
    assert [(rail["interface"], rail["address"]) for rail in result["rails"]] == [(A, "10.98.1.11"), (B, "10.98.2.11")]
    for name, netdev, domain in (("rocep1s0f0", A, "0000"), ("roceP2p1s0f0", B, "0002")):
        base = tmp_path / "sys" / "class" / "infiniband" / name
        (base / "device" / "net" / netdev).mkdir(parents=True)
        (base / "device" / "uevent").write_text(f"PCI_SLOT_NAME={domain}:01:00.0\n")
        (base / "ports" / "1").mkdir(parents=True)
        (base / "ports" / "1" / "state").write_text("4: ACTIVE\n")
    derived = run(subnets=subnets, index=11, check=True)
    assert (derived["rails"], derived["rdma"]) == (result["rails"], True)
    wrong = run(PLAN, state="verified", peers=PEERS, rate_gbps=100, node="spark1")["msg"]
    assert wrong.splitlines()[0].startswith(f"spark1: roceP2p1s0f0 port 1 ({B}) has a link of 0 Gb/s, 0 % of the 100")


def test_the_hosts_may_meet_on_another_interface(node: FakeNode, run: Run) -> None:
    result = run(PLAN, host_interface="eth0")
    assert result["host_ip"] == "10.98.0.11"
    assert "NCCL_SOCKET_IFNAME=eth0\nGLOO_SOCKET_IFNAME=eth0\nVLLM_HOST_IP=10.98.0.11\n" in run.env.read_text()
    assert run(PLAN, host_interface=B)["host_ip"] == "10.98.2.11"
    assert run(PLAN, host_interface="eth7")["msg"].startswith(
        "fabric_host_interface is eth7, which has no IPv4 address"
    )

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module rig_absent with files that are real and a systemctl that is not."""

from __future__ import annotations

import json
import pwd
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.sparkrig.serving.plugins.module_utils._rig_absent import check_path, check_units, kept_folder
from ansible_collections.sparkrig.serving.plugins.modules import rig_absent


class Systemd:
    """Units by name with the state that `systemctl show` tells."""

    def __init__(self) -> None:
        self.active: dict[str, str] = {}
        self.calls: list[list[str]] = []
        self.refuses = ""

    def run(self, words: list[str]) -> tuple[int, str, str]:
        self.calls.append(words[1:])
        if words[1] == self.refuses:
            return 1, "", f"Failed to {words[1]}"
        names = words[words.index("--") + 1 :] if "--" in words else []
        if words[1] == "show":
            blocks = [f"Id={name}\nLoadState=loaded\nActiveState={self.active.get(name, 'inactive')}" for name in names]
            return 0, "\n\n".join(blocks) + "\n", ""
        if words[1] == "stop":
            for name in names:
                self.active[name] = "inactive"
        return 0, "", ""

    @property
    def verbs(self) -> list[str]:
        return [call[0] for call in self.calls]


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    fake = Systemd()
    (tmp_path / "units" / "multi-user.target.wants").mkdir(parents=True)
    monkeypatch.setattr(rig_absent, "UNIT_FOLDERS", (str(tmp_path / "units"),))
    monkeypatch.setattr(rig_absent, "stale_shared_memory", list)
    monkeypatch.setattr(rig_absent, "processes_under", lambda _folder, _but: [])
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, words, **_more: fake.run(words))
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _self, name, required=False: name)
    return fake


def call(capsys: pytest.CaptureFixture[str], check: bool = False, **options: t.Any) -> dict[str, t.Any]:
    with patch_module_args({"_ansible_check_mode": check, **options}), pytest.raises(SystemExit):
        rig_absent.main()
    result: dict[str, t.Any] = json.loads(capsys.readouterr().out)
    return result


def install(units: Path, name: str) -> None:
    (units / name).write_text("[Service]\nExecStart=/bin/true\n")
    (units / "multi-user.target.wants" / name).symlink_to(units / name)
    (units / f"{name}.d").mkdir()
    (units / f"{name}.d" / "more.conf").write_text("[Service]\n")


def test_a_unit_goes_with_all_that_enables_and_changes_it(
    systemd: Systemd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    units = tmp_path / "units"
    install(units, "sparkrig-ray.service")
    systemd.active["sparkrig-ray.service"] = "active"
    names = ["sparkrig-ray.service", "sparkrig-vllm.service"]
    result = call(capsys, units=names)
    assert result["changed"]
    assert result["actions"] == [
        "sparkrig-ray.service: stopped and removed (was active)",
        "sparkrig-vllm.service: not there",
    ]
    assert systemd.verbs == ["show", "stop", "reset-failed", "daemon-reload"]
    assert systemd.calls[1] == ["stop", "--", "sparkrig-ray.service"]
    assert list(units.iterdir()) == []
    systemd.calls.clear()
    again = call(capsys, units=names)
    assert (again["changed"], systemd.verbs) == (False, ["show"])


def test_parts_that_an_interrupted_run_left(
    systemd: Systemd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    units = tmp_path / "units"
    # The unit file is gone, the link that enables it points to nothing, and it failed.
    (units / "multi-user.target.wants" / "sparkrig-vllm.service").symlink_to(units / "sparkrig-vllm.service")
    systemd.active["sparkrig-vllm.service"] = "failed"
    # Somebody masked this one.
    (units / "sparkrig-ray.service").symlink_to("/dev/null")
    result = call(capsys, units=["sparkrig-vllm.service", "sparkrig-ray.service"])
    assert result["actions"] == [
        "sparkrig-vllm.service: removed (was failed)",
        "sparkrig-ray.service: removed (was inactive)",
    ]
    assert list(units.iterdir()) == []
    assert "stop" not in systemd.verbs


def test_a_dry_run_says_the_same_and_does_nothing(
    systemd: Systemd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    units = tmp_path / "units"
    install(units, "sparkrig-ray.service")
    systemd.active["sparkrig-ray.service"] = "active"
    etc = tmp_path / "sparkrig"
    etc.mkdir()
    (etc / "ray.env").write_text("A=1\n")
    options: dict[str, t.Any] = {
        "units": ["sparkrig-ray.service"],
        "files": [str(etc / "*.env")],
        "empty_folders": [str(etc)],
    }
    dry = call(capsys, check=True, **options)
    assert systemd.verbs == ["show"]
    assert (etc / "ray.env").is_file()
    wet = call(capsys, **options)
    assert dry["actions"] == wet["actions"]
    assert dry["diff"] == wet["diff"]
    assert dry["changed"]
    assert not etc.exists()
    assert not call(capsys, **options)["changed"]


def test_a_folder_with_something_of_others_in_it_stays(
    systemd: Systemd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    etc = tmp_path / "sparkrig"
    (etc / "vllm").mkdir(parents=True)
    (etc / "vllm" / "a.json").write_text("{}")
    (etc / "mine.txt").write_text("do not touch")
    result = call(capsys, folders=[str(etc / "vllm"), str(etc / "gone")], empty_folders=[str(etc)])
    assert result["actions"] == [
        f"{etc}/vllm: removed with everything in it",
        f"{etc}/gone: not there",
        f"{etc}: left, it holds mine.txt",
    ]
    assert (etc / "mine.txt").read_text() == "do not touch"


def test_a_link_goes_and_what_it_points_to_stays(
    systemd: Systemd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "weights"
    target.mkdir()
    (target / "shard").write_text("x")
    link = tmp_path / "current"
    link.symlink_to(target)
    assert call(capsys, folders=[str(link)])["changed"]
    assert not link.is_symlink()
    assert (target / "shard").is_file()


def test_what_outlived_its_unit_is_ended(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rig_absent, "end_processes", lambda _find: ["77 ray::IDLE"])
    result = call(capsys, leftovers_under="/opt/sparkrig")
    assert result["actions"] == ["process 77 ray::IDLE: ended, it had outlived its unit"]
    assert result["changed"]
    assert call(capsys, check=True, leftovers_under="/opt/sparkrig")["actions"] == []


def test_a_process_that_cannot_be_ended_is_named(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def end(_find: t.Any) -> list[str]:
        raise ValueError("1 process(es) of an earlier start cannot be ended: 77 ray")

    monkeypatch.setattr(rig_absent, "end_processes", end)
    result = call(capsys, leftovers_under="/opt/sparkrig")
    assert result["failed"]
    assert result["msg"] == "The rig is stopped, but 1 process(es) of an earlier start cannot be ended: 77 ray."


class User(t.NamedTuple):
    pw_uid: int


def test_a_user_goes_with_what_it_left(
    systemd: Systemd, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shared = tmp_path / "tmp"
    shared.mkdir()
    (shared / "socket").write_text("")
    there = {"sparkrig": User(shared.stat().st_uid)}
    monkeypatch.setattr(rig_absent, "SHARED_FOLDERS", (str(shared),))
    monkeypatch.setattr(pwd, "getpwnam", there.__getitem__)
    dry = call(capsys, check=True, users=["sparkrig"])
    assert (shared / "socket").exists()
    result = call(capsys, users=["sparkrig"])
    assert result["actions"] == dry["actions"]
    assert result["actions"] == [f"{shared}/socket: removed, it was sparkrig's", "user sparkrig: removed"]
    assert systemd.calls == [["sparkrig"]]
    assert list(shared.iterdir()) == []
    there.clear()
    again = call(capsys, users=["sparkrig"])
    assert (again["changed"], again["actions"]) == (False, ["user sparkrig: not there"])


def test_what_systemctl_refuses_is_told(systemd: Systemd, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    install(tmp_path / "units", "sparkrig-ray.service")
    systemd.active["sparkrig-ray.service"] = "active"
    systemd.refuses = "stop"
    result = call(capsys, units=["sparkrig-ray.service"])
    assert result["failed"]
    assert result["msg"].startswith("'systemctl stop -- sparkrig-ray.service' ended with 1: Failed to stop.")


BAD = [
    ({"units": ["ssh.service"]}, "units[0] is 'ssh.service'; only units named sparkrig-*.service or the like"),
    ({"units": ["sparkrig-ray.service", "sparkrig-*.service"]}, "units[1] is 'sparkrig-*.service'; only"),
    ({"users": ["root"]}, "users[0] is 'root'; only users whose name begins with sparkrig are removed"),
    ({"units": ["sparkrig-a;b.service"]}, "units[0] is 'sparkrig-a;b.service'; only"),
    ({"folders": ["/"]}, "folders[0] is '/', a folder of the system; it is never removed"),
    ({"folders": ["/etc"]}, "folders[0] is '/etc', a folder of the system"),
    ({"folders": ["/var/lib"]}, "folders[0] is '/var/lib', a folder of the system"),
    ({"folders": ["/home/spark"]}, "folders[0] is '/home/spark', a folder of the system"),
    ({"folders": ["/opt/sparkrig/../x/y"]}, "folders[0] is '/opt/sparkrig/../x/y'; it has to be an absolute path"),
    ({"files": ["etc/sparkrig/x.env"]}, "files[0] is 'etc/sparkrig/x.env'; it has to be an absolute path"),
    ({"empty_folders": ["/usr/lib"]}, "empty_folders[0] is '/usr/lib', a folder of the system"),
]


@pytest.mark.parametrize(("options", "sentence"), BAD)
def test_what_is_not_the_rigs_is_refused_before_anything_is_done(
    systemd: Systemd, capsys: pytest.CaptureFixture[str], options: dict[str, t.Any], sentence: str
) -> None:
    result = call(capsys, **options)
    assert result["failed"]
    assert result["msg"].startswith(sentence)
    assert result["msg"].endswith(" Nothing was changed.")
    assert systemd.calls == []


def test_names_and_paths_that_are_fine() -> None:
    assert check_units(["sparkrig-ray.service", "sparkrig-ray.service"]) == ("sparkrig-ray.service",)
    for path in ("/opt/sparkrig", "/run/sparkrig", "/etc/sparkrig/vllm", "/srv/models/hybrid"):
        assert check_path("folders", 0, path) == path


def test_a_full_folder_is_told_briefly() -> None:
    assert kept_folder("/x", list("gfedcba")) == "/x: left, it holds a, b, c, d, e and 2 more"

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Module rig_service with files that are real and a systemctl that is not."""

from __future__ import annotations

import hashlib
import json
import os
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.sparkrig.serving.plugins.module_utils import _rig_unit
from ansible_collections.sparkrig.serving.plugins.module_utils._gpu_probe import Smi
from ansible_collections.sparkrig.serving.plugins.modules import rig_service

UNIT = "[Unit]\nDescription=x\n[Service]\nExecStart=/bin/sleep 9\n[Install]\nWantedBy=multi-user.target\n"

# What a person asks for does not count for the starts that systemd allows.
RESTART = [["reset-failed", "x.service"], ["restart", "x.service"]]


class Systemd:
    """Knows one unit, and what it was started with."""

    def __init__(self, folder: Path) -> None:
        self.unit = folder / "x.service"
        self.active, self.enabled, self.loaded = "inactive", False, ""
        self.stamp: str | None = None
        self.calls: list[list[str]] = []

    def run_command(self, _module: AnsibleModule, words: list[str], **_options: t.Any) -> tuple[int, str, str]:
        verb = words[1]
        if verb != "show":
            self.calls.append(words[1:])
        text = self.unit.read_text() if self.unit.exists() else ""
        if verb == "daemon-reload":
            self.loaded = text
        elif verb in ("enable", "disable"):
            self.enabled = verb == "enable"
        elif verb in ("start", "restart") and words[-1] == self.unit.name:
            self.active = "active"
            self.stamp = text.split("SPARKRIG_STAMP=")[1].split("\n")[0]
        elif verb == "stop":
            self.active, self.stamp = "inactive", None
        shown = {
            "LoadState": "loaded" if text else "not-found",
            "ActiveState": self.active,
            "MainPID": "7" if self.active == "active" else "0",
            "UnitFileState": "enabled" if self.enabled else "disabled",
            "NeedDaemonReload": "yes" if text != self.loaded else "no",
        }
        # systemctl tells of each unit that it is asked for, with an empty line between them.
        block = "\n".join(f"{key}={value}" for key, value in shown.items())
        return 0, "\n\n".join([block] * len(words[3:])), ""


@pytest.fixture
def systemd(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Systemd:
    fake = Systemd(tmp_path)
    plain_read = rig_service.read

    def read(path: str) -> bytes | None:
        if path == "/proc/7/environ":
            return b"" if fake.stamp is None else f"{_rig_unit.STAMP_VARIABLE}={fake.stamp}\0".encode()
        return plain_read(path)

    monkeypatch.setattr(rig_service, "UNIT_DIRECTORY", str(tmp_path))
    monkeypatch.setattr(rig_service, "read", read)
    monkeypatch.setattr(AnsibleModule, "run_command", lambda self, words, **more: fake.run_command(self, words, **more))
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _self, name, required=False: name)
    return fake


def call(capsys: pytest.CaptureFixture[str], check: bool = False, **options: t.Any) -> dict[str, t.Any]:
    arguments: dict[str, t.Any] = {"name": "x.service", "_ansible_check_mode": check, "_ansible_diff": True, **options}
    with patch_module_args(arguments), pytest.raises(SystemExit):
        rig_service.main()
    result: dict[str, t.Any] = json.loads(capsys.readouterr().out)
    return result


def test_first_everything_then_nothing(systemd: Systemd, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    env = tmp_path / "x.env"
    options: dict[str, t.Any] = {
        "content": UNIT,
        "files": [{"path": str(env), "content": "A=1\n"}],
        "restart_on": ["digest"],
    }
    first = call(capsys, **options)
    assert (first["changed"], first["started"]) == (True, True)
    assert first["actions"] == [
        f"{env}: created",
        f"{systemd.unit}: created",
        "x.service: enabled",
        "x.service: started, it was not running",
    ]
    assert systemd.calls == [["daemon-reload"], ["enable", "x.service"], ["start", "x.service"]]
    systemd.calls.clear()
    second = call(capsys, **options)
    assert (second["changed"], second["started"], systemd.calls) == (False, False, [])
    assert second["actions"] == ["x.service: left running (process 7), nothing that it was made from has changed"]
    assert second["stamp"] == first["stamp"]
    assert second["diff"]["before"] == second["diff"]["after"] == {}


def test_a_dry_run_says_what_would_change_and_changes_nothing(
    systemd: Systemd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    options: dict[str, t.Any] = {"content": UNIT, "secret": {"path": str(tmp_path / "etc/s.env"), "variable": "K"}}
    dry = call(capsys, check=True, **options)
    assert dry["changed"]
    assert dry["started"]
    assert not systemd.unit.exists()
    assert systemd.calls == []
    assert [line.split(": ")[1] for line in dry["actions"]] == [
        line.split(": ")[1] for line in call(capsys, **options)["actions"]
    ]


@pytest.mark.parametrize(
    ("change", "calls"),
    [
        ({"content": UNIT.replace("9", "8")}, [["daemon-reload"], *RESTART]),
        ({"restart_on": ["other"]}, [["daemon-reload"], *RESTART]),
        ({"force_restart": True}, RESTART),
        ({"enabled": False}, [["disable", "x.service"]]),
    ],
)
def test_only_what_counts_restarts(
    systemd: Systemd, capsys: pytest.CaptureFixture[str], change: dict[str, t.Any], calls: list[list[str]]
) -> None:
    options: dict[str, t.Any] = {"content": UNIT, "restart_on": ["digest"]}
    call(capsys, **options)
    systemd.calls.clear()
    assert call(capsys, **{**options, **change})["changed"]
    assert systemd.calls == calls


def test_an_environment_file_of_others_restarts(
    systemd: Systemd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    env = tmp_path / "fabric.env"
    options: dict[str, t.Any] = {"content": UNIT, "restart_files": [str(env)]}
    call(capsys, **options)
    env.write_text("A=1\n")
    assert call(capsys, **options)["started"]
    assert not call(capsys, **options)["started"]


def test_a_run_interrupted_before_the_restart_is_made_up_for(
    systemd: Systemd, capsys: pytest.CaptureFixture[str]
) -> None:
    call(capsys, content=UNIT)
    systemd.stamp = "older"
    assert call(capsys, content=UNIT)["started"]


def test_a_secret_is_made_once_kept_hidden_and_only_for_root(
    systemd: Systemd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    path = tmp_path / "secrets.env"
    options: dict[str, t.Any] = {"content": UNIT, "secret": {"path": str(path), "variable": "VLLM_API_KEY"}}
    first = call(capsys, **options)
    text = path.read_text()
    key = text.strip().split("=", 1)[1]
    assert len(key) == 43
    assert text == f"VLLM_API_KEY={key}\n"
    assert path.stat().st_mode & 0o777 == 0o600
    second = call(capsys, **options)
    assert not second["changed"]
    assert path.read_text() == text
    assert key not in json.dumps([first, second])
    # Somebody opened it to the world: closed again, and the key stays.
    path.chmod(0o644)
    assert call(capsys, **options)["changed"]
    assert path.stat().st_mode & 0o777 == 0o600
    assert path.read_text() == text
    # The user gives a key of his own: the engine must get it.
    own = {**options, "secret": {**options["secret"], "value": "my-key"}}
    third = call(capsys, **own)
    assert third["started"]
    assert "my-key" not in json.dumps({name: third[name] for name in ("actions", "diff")})
    assert path.read_text() == "VLLM_API_KEY=my-key\n"


def test_a_key_that_no_file_can_carry_is_refused(
    systemd: Systemd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    secret: dict[str, t.Any] = {"path": str(tmp_path / "s.env"), "variable": "K", "value": 'a "b"'}
    result = call(capsys, content=UNIT, secret=secret)
    assert result["failed"]
    assert result["msg"].startswith("The value for K holds a blank, a quote")
    assert systemd.calls == []


def test_a_unit_that_has_no_place_here_goes(
    systemd: Systemd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "y.service").write_text("[Service]\n")
    result = call(capsys, content=UNIT, absent_units=["y.service", "z.service"])
    assert "y.service: stopped, disabled and removed, it has no place on this node" in result["actions"]
    assert ["disable", "--now", "y.service"] in systemd.calls
    assert not (tmp_path / "y.service").exists()


def test_stop_and_stop_again(systemd: Systemd, capsys: pytest.CaptureFixture[str]) -> None:
    call(capsys, content=UNIT)
    systemd.calls.clear()
    assert call(capsys, state="stopped")["changed"]
    assert systemd.calls == [["stop", "x.service"], ["reset-failed", "x.service"]]
    again = call(capsys, state="stopped")
    assert (again["changed"], again["actions"]) == (False, ["x.service: left alone, it does not run"])


def test_a_process_that_is_left_is_named(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(rig_service.Service, "leftovers", lambda _self, _folder, _but: ["12 ray::IDLE"])
    result = call(capsys, state="stopped", leftovers_under="/opt/sparkrig", stop_timeout_s=0)
    assert result["failed"]
    assert "1 process(es) under /opt/sparkrig still run on this node: 12 ray::IDLE." in result["msg"]


def test_leftovers_are_found_by_their_program(systemd: Systemd, tmp_path: Path) -> None:
    service = rig_service.Service.__new__(rig_service.Service)
    parent = os.path.dirname(os.path.realpath("/proc/self/exe"))
    assert str(os.getpid()) not in [line.split()[0] for line in service.leftovers(parent, [])]
    assert service.leftovers(str(tmp_path), []) == []


def test_a_masked_unit_is_not_fought_over(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, _words, **_more: (0, "LoadState=masked\n", ""))
    result = call(capsys, content=UNIT)
    assert result["msg"].startswith("x.service is masked on this node, so it cannot be started.")


def test_what_systemctl_refuses_is_told(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _self, words, **_more: (1, "", f"no {words[1]}"))
    result = call(capsys, content=UNIT)
    assert result["msg"].endswith(
        "ended with 1: no show. What to do: `systemctl status x.service` and `journalctl -u x.service` on this node"
        " tell more."
    )


def test_what_stands_on_it_is_stopped_before(systemd: Systemd, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, t.Any] = {"content": UNIT, "stop_first": ["top.service"]}
    call(capsys, **options)
    systemd.calls.clear()
    assert "top.service" not in str(call(capsys, **options)["actions"])
    assert systemd.calls == []
    result = call(capsys, **options, force_restart=True)
    assert result["actions"][-1] == "top.service: stopped, what it stands on is started anew"
    assert systemd.calls == [["stop", "top.service"], ["reset-failed", "x.service"], ["restart", "x.service"]]


def test_what_stands_beside_it_does_not_restart_it(
    systemd: Systemd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    program = tmp_path / "lib" / "watch"
    options: dict[str, t.Any] = {
        "content": UNIT,
        "extra_files": [{"path": str(program), "content": "1", "mode": "0755"}],
        "extra_units": [{"name": "w.service", "content": "[Service]\n"}],
    }
    assert call(capsys, **options)["started"]
    assert program.stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "w.service").exists()
    systemd.calls.clear()
    options["extra_files"][0]["content"] = "2"
    second = call(capsys, **options)
    assert (second["changed"], second["started"], systemd.calls) == (True, False, [])
    options["extra_units"][0]["content"] = "[Service]\nNice=1\n"
    third = call(capsys, **options)
    assert (third["changed"], third["started"], systemd.calls) == (True, False, [["daemon-reload"]])
    assert not call(capsys, **options)["changed"]


def test_a_timer_beside_it_is_started_once(systemd: Systemd, capsys: pytest.CaptureFixture[str]) -> None:
    options: dict[str, t.Any] = {
        "content": UNIT,
        "extra_units": [{"name": "w.timer", "content": "[Timer]\n", "started": True}],
    }
    assert "w.timer: enabled and started" in call(capsys, **options)["actions"]
    systemd.calls.clear()
    assert (call(capsys, **options)["changed"], systemd.calls) == (False, [])
    options["extra_units"][0]["content"] = "[Timer]\nOnBootSec=1\n"
    assert call(capsys, **options)["changed"]
    assert systemd.calls == [["daemon-reload"], ["enable", "w.timer"], ["restart", "w.timer"]]


def test_nodes_can_be_compared_without_their_secret(
    systemd: Systemd, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    def with_secret(name: str, value: str, check: bool = False) -> dict[str, t.Any]:
        secret = {"path": str(tmp_path / name), "variable": "TOKEN", "value": value}
        return call(capsys, check, content=UNIT, secret=secret)

    before = with_secret("one", "s3cret", check=True)
    assert (before["settled"], before["secret_sha256"]) == (False, None)
    one, two = with_secret("one", "s3cret"), with_secret("two", "s3cret")
    assert one["secret_sha256"] == two["secret_sha256"] == hashlib.sha256(b"TOKEN=s3cret\n").hexdigest()
    assert "s3cret" not in json.dumps(two)
    # What is there is kept without a value, and nothing is to be done.
    kept = with_secret("two", "", check=True)
    assert (kept["settled"], kept["changed"], kept["secret_sha256"]) == (True, False, two["secret_sha256"])
    # In check mode nothing is written, so the digest is still that of the secret which is there.
    other = with_secret("two", "other", check=True)
    assert (other["settled"], other["secret_sha256"]) == (False, two["secret_sha256"])
    assert "secret_sha256" not in call(capsys, content=UNIT)


def test_it_is_started_on_clean_ground(
    systemd: Systemd, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    left = [["9 VLLM::Worker"], []]
    monkeypatch.setattr(rig_service.Service, "leftovers", lambda _self, _folder, _but: left.pop(0))
    monkeypatch.setattr(rig_service, "end_processes", lambda find: find())
    monkeypatch.setattr(Smi, "strangers", lambda _self, _seen, _but: [])
    monkeypatch.setattr(rig_service, "stale_shared_memory", list)
    first = call(capsys, content=UNIT, leftovers_under="/opt/x", memory_bytes=1, wait=False)
    assert "process 9 VLLM::Worker: ended, an earlier start had left it behind" in first["actions"]
    assert systemd.calls[-1] == ["start", "--no-block", "x.service"]
    monkeypatch.setattr(Smi, "strangers", lambda _self, _seen, _but: ["process 4 (train.py) uses the GPU"])
    refused = call(capsys, content=UNIT, leftovers_under="/opt/x", force_restart=True)
    assert refused["msg"].startswith("x.service is not started: process 4 (train.py) uses the GPU. The model needs")


def test_too_little_memory_is_said_with_both_numbers(systemd: Systemd, capsys: pytest.CaptureFixture[str]) -> None:
    result = call(capsys, content=UNIT, memory_bytes=2**60, memory_timeout_s=0)
    assert result["failed"]
    assert "of memory are available on this node after 0 s, the plan needs 1073741824.00 GiB." in result["msg"]

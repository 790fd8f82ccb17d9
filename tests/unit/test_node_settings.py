# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""node_settings on a small machine in a folder: files, kernel values and commands really change."""

from __future__ import annotations

import json
import os
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.sparkrig.serving.plugins.module_utils import _memory_probe
from ansible_collections.sparkrig.serving.plugins.modules import node_settings

DROP_IN = "/etc/systemd/system/ssh.service.d/90-sparkrig.conf"
JOURNALD = {
    "path": "/etc/systemd/journald.conf.d/90-sparkrig.conf",
    "content": "[Journal]\nSystemMaxUse=268435456\n",
    "restart": "systemd-journald.service",
}
EARLYOOM = {
    "path": "/etc/systemd/system/earlyoom.service.d/90-sparkrig.conf",
    "content": "[Service]\nEnvironmentFile=\n",
    "unit": "earlyoom.service",
    "restart": "earlyoom.service",
}
EVERYTHING: dict[str, t.Any] = {
    "files": [JOURNALD, EARLYOOM],
    "sysctls": {"vm.swappiness": "1"},
    "oom_units": ["ssh.service", "docker.service"],
    "memory_min_bytes": 268435456,
    "default_target": "multi-user.target",
    "journal_vacuum_bytes": 268435456,
}
UNITS = {"ssh.service": ("loaded", "active", 168), "earlyoom.service": ("loaded", "active", 55)}


class Machine:
    """A root folder, a /proc and the commands that were run."""

    def __init__(self, folder: Path) -> None:
        self.root = folder / "root"
        self.proc = folder / "proc"
        self.journal = folder / "var/lib/sparkrig/journal/node_settings.json"
        self.commands: list[list[str]] = []
        self.fails: dict[str, str] = {}
        self.write(self.proc / "sys/vm/swappiness", "60\n")
        self.write(self.proc / "168/oom_score_adj", "0\n")
        (self.root / "etc/systemd/system").mkdir(parents=True)
        os.symlink("/lib/systemd/system/graphical.target", self.root / "etc/systemd/system/default.target")

    def write(self, path: Path, text: str) -> None:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)

    def file(self, path: str) -> Path:
        return self.root / path.lstrip("/")

    def run_command(self, argv: list[str]) -> tuple[int, str, str]:
        self.commands.append(argv)
        verb = argv[1]
        if verb in self.fails:
            return 1, "", self.fails[verb]
        if verb == "show":
            blocks = []
            for name in argv[argv.index("--") + 1 :]:
                load, active, pid = UNITS.get(name, ("not-found", "inactive", 0))
                blocks.append(f"MainPID={pid}\nLoadState={load}\nActiveState={active}\n")
            return 0, "\n".join(blocks), ""
        if verb == "set-default":
            link = self.file("/etc/systemd/system/default.target")
            if link.is_symlink():
                link.unlink()
            os.symlink(f"/lib/systemd/system/{argv[-1]}", link)
        return 0, "", ""

    def state(self) -> dict[str, str]:
        """Every file, link and folder, and every kernel value."""
        found = {}
        for path in sorted(self.root.rglob("*")):
            name = str(path.relative_to(self.root))
            if path.is_symlink():
                found[name] = os.readlink(path)
            else:
                found[name] = "" if path.is_dir() else f"{path.stat().st_mode:o} {path.read_text()}"
        for path in sorted(self.proc.rglob("*")):
            if path.is_file():
                found[str(path.relative_to(self.proc))] = path.read_text()
        return found


@pytest.fixture
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Machine:
    made = Machine(tmp_path)
    monkeypatch.setattr(AnsibleModule, "run_command", lambda _module, argv, **_more: made.run_command(argv))
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _module, name, **_more: f"/bin/{name}")
    monkeypatch.setattr(node_settings, "ROOT", str(made.root))
    monkeypatch.setattr(_memory_probe, "PROC", str(made.proc))
    monkeypatch.setattr(_memory_probe, "RUN", str(tmp_path / "run"))
    return made


class Run:
    """Runs the module and reads its answer."""

    def __init__(self, capsys: pytest.CaptureFixture[str], machine: Machine) -> None:
        self.capsys = capsys
        self.machine = machine

    def __call__(self, check: bool = False, **arguments: t.Any) -> dict[str, t.Any]:
        arguments = {"journal": str(self.machine.journal), "_ansible_check_mode": check, **arguments}
        with patch_module_args(arguments), pytest.raises(SystemExit):
            node_settings.main()
        result: dict[str, t.Any] = json.loads(self.capsys.readouterr().out)
        return result


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], machine: Machine) -> Run:
    return Run(capsys, machine)


def test_everything_in_few_commands(machine: Machine, run: Run) -> None:
    result = run(**EVERYTHING)
    assert result["changed"] is True
    assert result["actions"] == [
        "/etc/systemd/system/docker.service.d/90-sparkrig.conf is not needed: docker.service is not installed on this "
        "node.",
        f"{JOURNALD['path']} is written.",
        f"{EARLYOOM['path']} is written.",
        f"{DROP_IN} is written.",
        "/etc/systemd/system/system.slice.d/90-sparkrig.conf is written.",
        "/etc/sysctl.d/99-sparkrig.conf is written.",
        "vm.swappiness is set to 1 (was 60).",
        "ssh.service gets the OOM score -900 (was 0); it is not restarted.",
        "The node boots to multi-user.target from now on (was graphical.target).",
    ]
    assert machine.commands == [
        [
            "/bin/systemctl",
            "show",
            "--property=LoadState,ActiveState,MainPID",
            "--",
            "earlyoom.service",
            "ssh.service",
            "docker.service",
        ],
        ["/bin/systemctl", "daemon-reload"],
        ["/bin/systemctl", "try-restart", "--", "systemd-journald.service", "earlyoom.service"],
        ["/bin/journalctl", "--rotate", "--quiet", "--vacuum-size=268435456"],
        ["/bin/systemctl", "set-default", "--quiet", "multi-user.target"],
    ]
    assert machine.file(DROP_IN).read_text() == (
        "# Managed by sparkrig.serving. Changes are overwritten.\n[Service]\nOOMScoreAdjust=-900\nMemoryMin=268435456\n"
    )
    assert "MemoryMin=536870912" in machine.file("/etc/systemd/system/system.slice.d/90-sparkrig.conf").read_text()
    assert machine.file("/etc/sysctl.d/99-sparkrig.conf").read_text().endswith("\nvm.swappiness = 1\n")
    assert (machine.proc / "sys/vm/swappiness").read_text() == "1\n"
    assert (machine.proc / "168/oom_score_adj").read_text() == "-900\n"


def test_the_second_run_reads_once(machine: Machine, run: Run) -> None:
    run(**EVERYTHING)
    machine.commands.clear()
    journal = machine.journal.read_text()
    result = run(**EVERYTHING)
    assert result["changed"] is False
    assert [command[1] for command in machine.commands] == ["show"]
    assert machine.journal.read_text() == journal
    assert result["diff"] == []


def test_check_mode_predicts(machine: Machine, run: Run) -> None:
    before = machine.state()
    predicted = run(check=True, **EVERYTHING)
    assert machine.state() == before
    assert not machine.journal.exists()
    assert [command[1] for command in machine.commands] == ["show"]
    done = run(**EVERYTHING)
    assert {key: predicted[key] for key in ("changed", "actions", "diff")} == {
        key: done[key] for key in ("changed", "actions", "diff")
    }


def test_restored_is_as_it_was(machine: Machine, run: Run) -> None:
    machine.write(machine.file("/etc/sysctl.d/99-sparkrig.conf"), "vm.swappiness = 30\n")
    machine.file("/etc/sysctl.d/99-sparkrig.conf").chmod(0o640)
    before = machine.state()
    run(**EVERYTHING)
    run(**{**EVERYTHING, "sysctls": {"vm.swappiness": "10"}, "oom_score": -500})
    machine.commands.clear()
    assert run(check=True, state="restored")["changed"] is True
    result = run(state="restored")
    assert machine.state() == before
    assert sorted(result["actions"]) == sorted(
        [
            f"{DROP_IN} is removed.",
            f"{EARLYOOM['path']} is removed.",
            "/etc/systemd/system/system.slice.d/90-sparkrig.conf is removed.",
            f"{JOURNALD['path']} is removed.",
            "/etc/sysctl.d/99-sparkrig.conf is as it was.",
            "ssh.service gets its OOM score 0 back.",
            "vm.swappiness is 60 again.",
            "The node boots to graphical.target again.",
        ]
    )
    assert [command[1] for command in machine.commands] == ["show", "show", "daemon-reload", "try-restart"]
    assert not machine.journal.exists()
    assert run(state="restored")["changed"] is False


def test_a_file_that_somebody_else_changed_stays(machine: Machine, run: Run) -> None:
    run(**EVERYTHING)
    machine.file(DROP_IN).write_text("theirs\n")
    assert f"{DROP_IN} was changed by somebody else since; left alone." in run(state="restored")["actions"]
    assert machine.file(DROP_IN).read_text() == "theirs\n"


def test_a_run_that_was_killed_goes_on_and_comes_back(
    machine: Machine, run: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    before = machine.state()

    def die(*_arguments: object) -> list[str]:
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(node_settings, "apply", die)
        with patch_module_args({**EVERYTHING, "journal": str(machine.journal)}):
            node_settings.main()
    assert run(**EVERYTHING)["changed"] is True
    run(state="restored")
    assert machine.state() == before


def test_a_container_keeps_its_hosts_kernel(machine: Machine, run: Run, tmp_path: Path) -> None:
    machine.write(tmp_path / "run/systemd/container", "podman\n")
    actions = run(**EVERYTHING)["actions"]
    assert actions[1] == (
        "vm.swappiness: left alone, because this node is a container (podman) and its kernel is its host's. "
        "shared_kernel: true sets it all the same."
    )
    assert "ssh.service keeps the OOM score 0 until its next start, because this node is a container." in actions
    assert (machine.proc / "sys/vm/swappiness").read_text() == "60\n"
    assert not machine.file("/etc/sysctl.d/99-sparkrig.conf").exists()
    assert run(**EVERYTHING)["changed"] is False
    assert run(**EVERYTHING, shared_kernel=True)["changed"] is True
    assert (machine.proc / "sys/vm/swappiness").read_text() == "1\n"


def test_a_kernel_that_cannot_be_written(machine: Machine, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    plain = os.access
    monkeypatch.setattr(os, "access", lambda path, mode: "/sys/" not in str(path) and plain(path, mode))
    result = run(sysctls={"vm.swappiness": "1", "vm.nosuch": "1"})
    assert "vm.swappiness stays 60 until the next boot: /proc/sys is read-only here." in result["actions"]
    assert "vm.nosuch does not exist in this kernel; left alone." in result["actions"]
    assert run(sysctls={"vm.swappiness": "1", "vm.nosuch": "1"})["changed"] is False


def test_systemd_that_refuses_is_quoted(machine: Machine, run: Run) -> None:
    machine.fails["daemon-reload"] = "Access denied\n"
    assert run(**EVERYTHING)["msg"] == (
        "'/bin/systemctl daemon-reload' failed to read the units again: Access denied (exit 1). What is done already "
        "is in the journal; run this again, or state=restored to go back."
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            {"files": [{"path": "/usr/lib/x", "content": ""}]},
            "files[0] '/usr/lib/x' is not a file under /etc; only configuration is written here.",
        ),
        (
            {"files": [{"path": "/etc/x", "content": "", "mode": "rw"}]},
            "files[0] '/etc/x' has the mode 'rw'; it takes three or four octal digits, as in '0644'.",
        ),
        (
            {"files": [JOURNALD, {"path": "/etc/x", "content": "", "restart": "a;b"}]},
            "files[1] '/etc/x' has 'a;b' as its restart; a unit is needed, as in 'ssh.service'.",
        ),
        ({"sysctls": {"vm/../x": 1}}, "sysctls has 'vm/../x'; a name like 'vm.swappiness' is needed."),
        (
            {"sysctls": {"vm.swappiness": "1\n2"}},
            "sysctls has '1\\n2' for vm.swappiness; a plain value is needed, as in '1'.",
        ),
        ({"oom_units": ["ssh"]}, "oom_units[0] is 'ssh'; a service is needed, as in 'ssh.service'."),
        (
            {"oom_units": ["ssh.service"], "oom_score": 2000},
            "oom_score is 2000; it takes -1000 (never killed) to 1000 (killed first).",
        ),
        ({"memory_min_bytes": -1}, "memory_min_bytes is -1; it takes 0 or more."),
        (
            {"default_target": "gdm.service"},
            "default_target is 'gdm.service'; a target is needed, as in 'multi-user.target'.",
        ),
    ],
)
def test_bad_input_changes_nothing(machine: Machine, run: Run, arguments: dict[str, t.Any], said: str) -> None:
    before = machine.state()
    result = run(**arguments)
    assert (result["failed"], result["msg"]) == (True, said)
    assert (machine.state(), machine.commands) == (before, [])


def test_a_foreign_or_edited_journal_changes_nothing(machine: Machine, run: Run) -> None:
    run(**EVERYTHING)
    machine.commands.clear()
    machine.journal.write_text(machine.journal.read_text().replace('"60"', '"90"'))
    before = machine.state()
    for state in ("present", "restored"):
        assert "was edited, its digest does not fit" in run(state=state, files=[JOURNALD])["msg"]
    assert (machine.state(), machine.commands) == (before, [])


def test_a_file_that_is_no_text_is_refused(machine: Machine, run: Run) -> None:
    path = machine.file(str(JOURNALD["path"]))
    path.parent.mkdir(parents=True)
    path.write_bytes(b"\xff\xfe")
    assert run(files=[JOURNALD])["msg"] == (
        f"{JOURNALD['path']} is not UTF-8 text, so it could not be brought back; look at it first."
    )

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The exit status of a real ansible-playbook with the callback of preflight beside its playbooks."""

from __future__ import annotations

import os
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import yaml

pytestmark = pytest.mark.slow

PLAYBOOKS = Path(__file__).parents[2] / "playbooks"
ANSIBLE = Path(sys.executable).with_name("ansible-playbook")


def hand_on() -> dict[str, t.Any]:
    """The task of preflight that says how it is to end."""
    (play,) = yaml.safe_load((PLAYBOOKS / "preflight.yml").read_text(encoding="utf-8"))
    (task,) = [task for task in play["tasks"] if "ansible.builtin.set_stats" in task]
    return t.cast("dict[str, t.Any]", task)


def refuse(status: str) -> dict[str, t.Any]:
    """A task that fails with errors, as the role's last one does before the status is handed on."""
    return {"ansible.builtin.assert": {"that": [status != "errors"], "quiet": True}}


def written(folder: Path, name: str, tasks: list[dict[str, t.Any]], status: str = "ok") -> Path:
    """A playbook beside the callback."""
    (folder / "callback_plugins").mkdir(parents=True, exist_ok=True)
    callback = folder / "callback_plugins/exit_status.py"
    callback.write_bytes((PLAYBOOKS / "callback_plugins/exit_status.py").read_bytes())
    play = {"hosts": "localhost", "gather_facts": False, "vars": {"preflight_findings": {"status": status}}}
    path = folder / name
    path.write_text(yaml.safe_dump([{**play, "tasks": tasks}]), encoding="utf-8")
    return path


def run(folder: Path, *playbooks: Path, **variables: str) -> subprocess.CompletedProcess[str]:
    """Ansible with a configuration of its own, as on a machine that has none."""
    (folder / "ansible.cfg").touch()
    home = {"ANSIBLE_HOME": str(folder / "home"), "ANSIBLE_CONFIG": str(folder / "ansible.cfg")}
    argv = [str(ANSIBLE), "-i", "localhost,", "-c", "local", *map(str, playbooks)]
    return subprocess.run(argv, env={**os.environ, **home, **variables}, capture_output=True, text=True, check=False)


@pytest.mark.parametrize(("status", "code"), [("ok", 0), ("warnings", 3), ("errors", 2)])
def test_the_exit_status_tells_three_cases_apart(tmp_path: Path, status: str, code: int) -> None:
    report = tmp_path / "junit"
    playbook = written(tmp_path, "preflight.yml", [refuse(status), hand_on()], status)
    environment = {"ANSIBLE_CALLBACKS_ENABLED": "ansible.builtin.junit", "JUNIT_OUTPUT_DIR": str(report)}
    ended = run(tmp_path, playbook, **environment)
    assert ended.returncode == code, ended.stdout + ended.stderr
    # Nothing of the end is lost: neither the recap, nor what another callback writes there, nor the cleaning up.
    assert "PLAY RECAP" in ended.stdout
    assert len(list(report.iterdir())) == 1
    assert list((tmp_path / "home/tmp").iterdir()) == []
    assert ended.stderr == ""


def test_other_playbooks_end_as_ever(tmp_path: Path) -> None:
    fails = [{"ansible.builtin.fail": {"msg": "no"}}]
    warns = written(tmp_path, "preflight.yml", [hand_on()], "warnings")
    failed, fine = written(tmp_path, "failed.yml", fails), written(tmp_path, "fine.yml", [])
    assert run(tmp_path, fine).returncode == 0
    assert run(tmp_path, failed).returncode == 2
    # With others on one command line: a failure counts more, a statistic stays for the whole run.
    assert run(tmp_path, warns, failed).returncode == 2
    assert run(tmp_path, warns, fine).returncode == 3
    assert run(tmp_path, warns, warns).returncode == 3
    (tmp_path / "broken.yml").write_text("- hosts: [", encoding="utf-8")
    broken = run(tmp_path, warns, tmp_path / "broken.yml")
    assert broken.returncode not in (0, 3), broken.stderr


def test_the_callback_comes_with_the_playbooks_of_the_collection(tmp_path: Path) -> None:
    """By its full name too, where no folder of a playbook is on the search path beforehand."""
    collection = tmp_path / "ansible_collections/house/rig"
    written(collection / "playbooks", "preflight.yml", [hand_on()], "warnings")
    ended = run(tmp_path, Path("house.rig.preflight"), ANSIBLE_COLLECTIONS_PATH=str(tmp_path))
    assert ended.returncode == 3, ended.stdout + ended.stderr

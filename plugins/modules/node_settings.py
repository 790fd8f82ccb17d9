#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Set configuration files, kernel values, OOM scores and the default target in one call, with a journal."""

from __future__ import annotations

DOCUMENTATION = r"""
module: node_settings
short_description: Configuration files, sysctls, OOM scores and the default target of a node, with an undo
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Brings any number of small configuration files, kernel values and OOM scores to what they should be, in one
    call. Everything is validated before the first change.
  - A changed drop-in of a unit costs one C(systemctl daemon-reload) for all of them. A unit that has to read its file
    again is restarted if it runs; SSH and the container engine are never restarted, their OOM score is set in place.
  - How everything was found is written to O(journal) first, and O(state=restored) brings exactly that back.
  - A node that is a container shares its host's kernel, so O(sysctls) are left alone there, with a sentence.
extends_documentation_fragment:
  - sparkrig.serving._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: full
  idempotent:
    support: full
options:
  state:
    description: V(present) sets everything; V(restored) brings back what the journal says and removes the journal.
    type: str
    choices: [present, restored]
    default: present
  files:
    description: Files under C(/etc).
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The file.
        type: path
        required: true
      content:
        description: All of its text.
        type: str
        required: true
      mode:
        description: Its mode in octal digits.
        type: str
        default: "0644"
      unit:
        description: Write it only where this unit is installed.
        type: str
      restart:
        description: The unit that has to read it again. It is restarted when the file changes and the unit runs.
        type: str
  sysctls:
    description: Kernel values by name, for now. That they survive a reboot is the business of one of O(files).
    type: dict
    default: {}
  sysctl_file:
    description: The file that carries O(sysctls) over a reboot. Left out where O(sysctls) are left alone.
    type: path
    default: /etc/sysctl.d/99-sparkrig.conf
  oom_units:
    description:
      - Services that must live when memory runs out. Each that is installed gets a drop-in with O(oom_score) and
        O(memory_min_bytes), and the OOM score of its main process is set in place.
    type: list
    elements: str
    default: []
  oom_score:
    description: The OOM score of O(oom_units), from V(-1000) (never killed) to V(1000) (killed first).
    type: int
    default: -900
  memory_min_bytes:
    description:
      - The memory of each of O(oom_units) that is never reclaimed (C(MemoryMin), needs cgroup v2); C(system.slice)
        gets the sum, because it bounds what is in it. V(0) sets none.
    type: int
    default: 0
  default_target:
    description: The target that the node boots to; an empty string leaves it alone.
    type: str
    default: ""
  journal_vacuum_bytes:
    description:
      - When a file of C(systemd-journald.service) changes, throw away its oldest logs down to this size.
        B(They are not brought back.) V(0) keeps them.
    type: int
    default: 0
  shared_kernel:
    description: Set O(sysctls) in a container too. B(They are those of its host.)
    type: bool
    default: false
  journal:
    description: The file that records how everything was. It is written before the change.
    type: path
    default: /var/lib/sparkrig/journal/node_settings.json
seealso:
  - module: sparkrig.serving.unit_prune
"""

EXAMPLES = r"""
---
- name: Keep SSH alive when memory runs out, and swap only in need
  sparkrig.serving.node_settings:
    oom_units: [ssh.service]
    memory_min_bytes: 268435456
    sysctls:
      vm.swappiness: "1"

- name: Bring everything back
  sparkrig.serving.node_settings:
    state: restored
"""

RETURN = r"""
actions:
  description: One sentence for each setting, also for those left alone.
  returned: always
  type: list
  elements: str
  sample:
    - /etc/systemd/system/ssh.service.d/90-sparkrig.conf is written.
    - vm.swappiness is set to 1 (was 60).
"""

import os
import typing as t
from dataclasses import replace

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils import _journal, _memory_probe, _settings

KIND = "node_settings"
ROOT = ""  # tests put a folder before every path
DEFAULT_TARGET = "/etc/systemd/system/default.target"
JOURNALD = "systemd-journald.service"


def read_text(path: str) -> str | None:
    """The text of *path*, or None where there is no such file. ValueError when it is no plain text file."""
    try:
        with open(ROOT + path, encoding="utf-8") as stream:
            return stream.read()
    except FileNotFoundError:
        return None
    except UnicodeDecodeError:
        raise ValueError(f"{path} is not UTF-8 text, so it could not be brought back; look at it first.") from None


def read_link(path: str) -> str:
    """Where the link *path* points; an empty string where there is none."""
    return os.readlink(ROOT + path) if os.path.islink(ROOT + path) else ""


class Node:
    """The commands and files of this node."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.systemctl: str = module.get_bin_path("systemctl", required=True)
        module.run_command_environ_update = {"LANGUAGE": "C", "LC_ALL": "C", "SYSTEMD_COLORS": "0"}

    def must(self, what: str, *argv: str) -> str:
        rc, out, err = self.module.run_command(list(argv))
        if rc != 0:
            self.module.fail_json(
                msg=f"'{' '.join(argv)}' failed to {what}: {(err or out).strip() or 'it gave no reason'} (exit {rc}). "
                "What is done already is in the journal; run this again, or state=restored to go back.",
                rc=rc,
            )
        return str(out)

    def units(self, names: t.Sequence[str]) -> dict[str, _settings.UnitFact]:
        if not names:
            return {}
        wanted = "--property=LoadState,ActiveState,MainPID"
        out = self.must("show the units", self.systemctl, "show", wanted, "--", *names)
        return _settings.parse_units(names, out)

    def reload(self) -> None:
        self.must("read the units again", self.systemctl, "daemon-reload")

    def restart(self, names: t.Sequence[str]) -> None:
        if names:
            self.must("restart what reads the files", self.systemctl, "try-restart", "--", *names)

    def score(self, pid: int) -> int | None:
        """The OOM score of a process; None when it has ended."""
        text = _memory_probe.read_text(f"{_memory_probe.PROC}/{pid}/oom_score_adj")
        return None if text is None else int(text)

    def set_score(self, pid: int, score: int) -> str:
        """Set it; the result is the reason when the kernel refuses."""
        return write_kernel(f"{pid}/oom_score_adj", str(score))


def write_kernel(path: str, value: str) -> str:
    """Write a file of /proc; the result is the reason when the kernel refuses."""
    try:
        with open(f"{_memory_probe.PROC}/{path}", "w", encoding="ascii") as stream:
            stream.write(value + "\n")
    except OSError as error:
        return error.strerror or str(error)
    return ""


def missing_folders(path: str) -> tuple[str, ...]:
    """The folders that have to be made for *path*, the innermost first."""
    found = []
    folder = os.path.dirname(path)
    while not os.path.isdir(ROOT + folder):
        found.append(folder)
        folder = os.path.dirname(folder)
    return tuple(found)


def present(module: AnsibleModule, node: Node, journal_path: str) -> dict[str, t.Any]:
    """Set everything."""
    params = module.params
    files = [_settings.file_from(index, raw) for index, raw in enumerate(params["files"])]
    asked = {name: str(value) for name, value in params["sysctls"].items()}
    sysctls = {name: (_settings.check_sysctl(name, value), value) for name, value in asked.items()}
    protected, score = params["oom_units"], params["oom_score"]
    files += _settings.protection_files(protected, score, params["memory_min_bytes"])
    _settings.check_target(params["default_target"])
    journal = _settings.journal_from(_journal.load(journal_path, KIND))

    names = list(dict.fromkeys([one.unit for one in files if one.unit]))
    units = node.units(names)
    actions: list[str] = []
    for one in files:
        if one.unit and not units[one.unit].loaded:
            actions.append(f"{one.path} is not needed: {one.unit} is not installed on this node.")
    files = [one for one in files if not one.unit or units[one.unit].loaded]
    container = _memory_probe.container()
    if sysctls and container and not params["shared_kernel"]:
        actions.append(
            f"{', '.join(sysctls)}: left alone, because this node is a container ({container}) and its kernel is its "
            "host's. shared_kernel: true sets it all the same."
        )
        sysctls = {}
    if sysctls:
        files.append(_settings.sysctl_file(params["sysctl_file"], asked))

    texts = {one.path: read_text(one.path) for one in files}
    changed_files = [one for one in files if texts[one.path] != one.content]
    actions += [_settings.file_sentence(one, texts[one.path]) for one in files]
    live: dict[str, tuple[str, str, str]] = {}
    for name, (path, value) in sysctls.items():
        now = _memory_probe.read_text(f"{_memory_probe.PROC}/sys/{path}")
        if now is None:
            actions.append(f"{name} does not exist in this kernel; left alone.")
        elif " ".join(now.split()) == value:
            actions.append(f"{name} is {value} already.")
        elif not os.access(f"{_memory_probe.PROC}/sys/{path}", os.W_OK):
            actions.append(f"{name} stays {' '.join(now.split())} until the next boot: /proc/sys is read-only here.")
        else:
            live[name] = (path, " ".join(now.split()), value)
            actions.append(f"{name} is set to {value} (was {live[name][1]}).")
    rescored: dict[str, tuple[int, int, int]] = {}
    for unit in protected:
        fact = units[unit]
        old = node.score(fact.main_pid) if fact.loaded and fact.main_pid else None
        if old is None:
            continue
        if old == score:
            actions.append(f"{unit} has the OOM score {score} already.")
        elif container and not params["shared_kernel"]:
            actions.append(f"{unit} keeps the OOM score {old} until its next start, because this node is a container.")
        else:
            rescored[unit] = (fact.main_pid, old, score)
            actions.append(f"{unit} gets the OOM score {score} (was {old}); it is not restarted.")
    target, found_target = params["default_target"], read_link(DEFAULT_TARGET)
    retarget = bool(target) and os.path.basename(found_target) != target
    if target:
        was = os.path.basename(found_target) or "systemd's own"
        actions.append(f"The node boots to {target}" + (f" from now on (was {was})." if retarget else " already."))

    changed = bool(changed_files or live or rescored or retarget)
    if changed and not module.check_mode:
        old_files = dict(journal.files)
        for one in changed_files:
            old_files[one.path] = remember(one, texts[one.path], old_files.get(one.path))
        journal = _settings.Journal(
            old_files,
            {**{name: old for name, (_path, old, _new) in live.items()}, **journal.sysctls},
            {**{unit: old for unit, (_pid, old, _new) in rescored.items()}, **journal.scores},
            found_target if retarget and journal.default_target is None else journal.default_target,
        )
        _journal.store(journal_path, KIND, _settings.journal_to(journal))
        for one in changed_files:
            _journal.write_file(ROOT + one.path, one.content, one.mode)
        actions += apply(module, node, changed_files, live, rescored, target if retarget else "")
    return {
        "changed": changed,
        "actions": actions,
        "diff": [
            {
                "before_header": one.path,
                "after_header": one.path,
                "before": texts[one.path] or "",
                "after": one.content,
            }
            for one in changed_files
        ]
        + [
            {"before_header": name, "after_header": name, "before": f"{old}\n", "after": f"{new}\n"}
            for name, (_path, old, new) in live.items()
        ],
    }


def remember(one: _settings.File, text: str | None, before: _settings.OldFile | None) -> _settings.OldFile:
    """How a file was found; what the first run saw counts, not a later one."""
    if before is not None:
        return replace(before, written=one.content, restart=one.restart)
    mode = 0 if text is None else os.stat(ROOT + one.path).st_mode & 0o7777
    return _settings.OldFile(text, mode, one.content, one.restart, missing_folders(one.path))


def apply(
    module: AnsibleModule,
    node: Node,
    files: t.Sequence[_settings.File],
    live: t.Mapping[str, tuple[str, str, str]],
    rescored: t.Mapping[str, tuple[int, int, int]],
    target: str,
) -> list[str]:
    """Make it so; the result is a sentence for each thing that the kernel refused."""
    refused = []
    if any(one.path.startswith(_settings.UNIT_FOLDER) for one in files):
        node.reload()
    restart = list(dict.fromkeys(one.restart for one in files if one.restart))
    node.restart(restart)
    if JOURNALD in restart and module.params["journal_vacuum_bytes"]:
        journalctl = module.get_bin_path("journalctl", required=True)
        size = f"--vacuum-size={module.params['journal_vacuum_bytes']}"
        node.must("throw the oldest logs away", journalctl, "--rotate", "--quiet", size)
    for name, (path, _old, new) in live.items():
        reason = write_kernel(f"sys/{path}", new)
        if reason:
            refused.append(f"{name} stays as it is until the next boot: /proc/sys is not writable ({reason}).")
    for unit, (pid, _score, score) in rescored.items():
        reason = node.set_score(pid, score)
        if reason:
            refused.append(f"{unit} keeps its OOM score until its next start: the kernel refuses ({reason}).")
    if target:
        node.must("set the default target", node.systemctl, "set-default", "--quiet", target)
    return refused


def restored(module: AnsibleModule, node: Node, journal_path: str) -> dict[str, t.Any]:
    """Bring back what the journal says."""
    content = _journal.load(journal_path, KIND)
    if content is None:
        return {
            "changed": False,
            "actions": [f"There is no journal {journal_path}: nothing was set by us, nothing to bring back."],
            "diff": [],
        }
    journal = _settings.journal_from(content)
    actions, diff, back = [], [], []
    for path, old in journal.files.items():
        text = read_text(path)
        if text == old.text:
            actions.append(f"{path} is back already.")
        elif text is not None and text != old.written:
            actions.append(f"{path} was changed by somebody else since; left alone.")
        else:
            actions.append(f"{path} is {'removed' if old.text is None else 'as it was'}.")
            back.append(path)
            diff.append({"before_header": path, "after_header": path, "before": text or "", "after": old.text or ""})
    units = node.units(list(journal.scores))
    for unit, old_score in journal.scores.items():
        actions.append(f"{unit} gets its OOM score {old_score} back.")
    for name, value in journal.sysctls.items():
        actions.append(f"{name} is {value} again.")
    if journal.default_target is not None:
        actions.append(f"The node boots to {os.path.basename(journal.default_target) or 'its own target'} again.")
    if not module.check_mode:
        for path in back:
            restore_file(path, journal.files[path])
        for name, value in journal.sysctls.items():
            reason = write_kernel(f"sys/{_settings.check_sysctl(name, value)}", value)
            if reason:
                actions.append(f"{name} is not set now: /proc/sys is not writable ({reason}).")
        if journal.default_target is not None:
            restore_link(DEFAULT_TARGET, journal.default_target)
        if any(path.startswith(_settings.UNIT_FOLDER) for path in back) or journal.default_target is not None:
            node.reload()
        for unit, old_score in journal.scores.items():
            if units[unit].main_pid:
                node.set_score(units[unit].main_pid, old_score)
        node.restart(list(dict.fromkeys(journal.files[path].restart for path in back if journal.files[path].restart)))
        _journal.remove(journal_path)
    return {"changed": True, "actions": actions, "diff": diff}


def restore_file(path: str, old: _settings.OldFile) -> None:
    """Bring one file back, and take away the folders that were made for it and are empty."""
    if old.text is not None:
        _journal.write_file(ROOT + path, old.text, old.mode)
        return
    if os.path.lexists(ROOT + path):
        os.unlink(ROOT + path)
    for folder in old.folders:
        if not os.path.isdir(ROOT + folder) or os.listdir(ROOT + folder):
            return
        os.rmdir(ROOT + folder)


def restore_link(path: str, target: str) -> None:
    """Bring a link back to *target*; an empty one takes it away."""
    if os.path.islink(ROOT + path):
        os.unlink(ROOT + path)
    if target:
        os.symlink(target, ROOT + path)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["present", "restored"], "default": "present"},
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                    "mode": {"type": "str", "default": "0644"},
                    "unit": {"type": "str"},
                    "restart": {"type": "str"},
                },
            },
            "sysctls": {"type": "dict", "default": {}},
            "sysctl_file": {"type": "path", "default": "/etc/sysctl.d/99-sparkrig.conf"},
            "oom_units": {"type": "list", "elements": "str", "default": []},
            "oom_score": {"type": "int", "default": -900},
            "memory_min_bytes": {"type": "int", "default": 0},
            "default_target": {"type": "str", "default": ""},
            "journal_vacuum_bytes": {"type": "int", "default": 0},
            "shared_kernel": {"type": "bool", "default": False},
            "journal": {"type": "path", "default": "/var/lib/sparkrig/journal/node_settings.json"},
        },
        supports_check_mode=True,
    )
    node = Node(module)
    act = present if module.params["state"] == "present" else restored
    try:
        result = act(module, node, module.params["journal"])
    except ValueError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

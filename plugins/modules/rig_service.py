#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bring one systemd unit of the rig to what it should be, in one call."""

from __future__ import annotations

DOCUMENTATION = r"""
module: rig_service
short_description: One systemd unit of the rig, from its text to its running process
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Writes the unit and the files that belong to it, reloads systemd where needed, enables the unit and starts it.
  - Restarts it when its running process was made from something else, which is read from the process itself. The unit
    carries a digest of its text, its environment files and O(restart_on) in the variable C(SPARKRIG_STAMP).
  - An interrupted run converges when it is started again, and nothing is restarted without a reason.
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
  name:
    description: The unit's name.
    type: str
    required: true
  content:
    description:
      - The text of the unit file with exactly one C([Service]) section.
      - Needed for O(state=started).
    type: str
  state:
    description:
      - V(started) writes, enables and starts the unit.
      - V(stopped) stops it and leaves its files alone. A unit that does not exist is stopped.
      - V(resumed) starts a unit that V(stopped) has stopped, as it is on the disk. Where it does not exist nothing is
        done.
    type: str
    choices: [started, stopped, resumed]
    default: started
  enabled:
    description: Whether the unit starts at boot. With O(state=stopped) this is left as it is.
    type: bool
    default: true
  files:
    description: Files that the unit reads, written before it is started. They count for the stamp.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The absolute path of the file.
        type: path
        required: true
      content:
        description: What is in it. No secrets.
        type: str
        required: true
      mode:
        description: Its mode.
        type: str
        default: "0644"
  secret:
    description:
      - A file of mode 0600 with one line C(VARIABLE=value), which counts for the stamp.
      - Without a O(secret.value) a random one is made once and kept from then on. It is never returned or shown.
    type: dict
    suboptions:
      path:
        description: The absolute path of the file.
        type: path
        required: true
      variable:
        description: The name of the variable.
        type: str
        required: true
      value:
        description: The value to set. Left out, the value that the file has is kept, or a random one is made.
        type: str
  extra_files:
    description: Files beside the unit, such as a program that a timer runs. They do not count for the stamp.
    type: list
    elements: dict
    default: []
    suboptions:
      path:
        description: The absolute path of the file.
        type: path
        required: true
      content:
        description: What is in it. No secrets.
        type: str
        required: true
      mode:
        description: Its mode.
        type: str
        default: "0644"
  extra_units:
    description: Units beside this one, such as the timer of a watchdog.
    type: list
    elements: dict
    default: []
    suboptions:
      name:
        description: The unit's name.
        type: str
        required: true
      content:
        description: The text of the unit file.
        type: str
        required: true
      started:
        description: Whether it is enabled and started; one that another unit starts is only written.
        type: bool
        default: false
  wait:
    description: Whether to wait until systemd has started the unit, or only to tell it so.
    type: bool
    default: true
  absent_units:
    description: Units of the rig that have no place on this node. They are stopped, disabled and removed if they exist.
    type: list
    elements: str
    default: []
  restart_files:
    description: Environment files that others write. A changed content leads to a restart.
    type: list
    elements: path
    default: []
  restart_on:
    description: Anything else that the process is made from, such as a runtime's digest. A change leads to a restart.
    type: list
    elements: str
    default: []
  force_restart:
    description:
      - Restart it even when nothing that it was made from has changed, because what it depends on was started anew.
    type: bool
    default: false
  stop_first:
    description: Units on top of this one, stopped before it is started or restarted. Who needs them starts them again.
    type: list
    elements: str
    default: []
  leftovers_under:
    description:
      - A folder. Processes whose program or libraries lie under it must be gone once the unit is stopped.
      - With O(state=started) this is looked at before a start or a restart; what is left of an earlier start, and in no
        unit of the rig, is ended and named.
      - With O(state=stopped) what is left ends in a failure that names the processes.
    type: path
  user:
    description: A system user that the unit runs as. It is made where it is missing, before the unit is started.
    type: str
    default: ""
  own_units:
    description: Units of the rig on this node. What runs in them is no leftover when another one is started.
    type: list
    elements: str
    default: [sparkrig-ray.service, sparkrig-vllm.service, sparkrig-watchdog.service]
  memory_bytes:
    description: The memory that must be available before a start or a restart.
    type: int
    default: 0
  memory_timeout_s:
    description: How long to wait for that memory.
    type: int
    default: 60
  ports:
    description:
      - Addresses and ports that the unit will listen on, as C(ADDRESS:PORT).
      - One that a process outside of O(own_units) listens on ends in a failure before anything is changed.
    type: list
    elements: str
    default: []
  stop_too:
    description: With O(state=stopped), other units that are stopped in the same step.
    type: list
    elements: str
    default: []
  stop_timeout_s:
    description: How long to wait for leftovers to end.
    type: int
    default: 20
"""

EXAMPLES = r"""
---
- name: Run a node of the Ray cluster
  sparkrig.serving.rig_service:
    name: sparkrig-ray.service
    content: "{{ lookup('ansible.builtin.template', 'sparkrig-ray.service.j2') }}"
    restart_files: [/etc/sparkrig/fabric.env, /etc/sparkrig/runtime.env]
    restart_on: ["{{ runtime_result.digest }}"]

- name: Stop the engine
  sparkrig.serving.rig_service:
    name: sparkrig-vllm.service
    state: stopped
    leftovers_under: /opt/sparkrig
"""

RETURN = r"""
actions:
  description: One sentence for each step, also for what was left alone.
  returned: always
  type: list
  elements: str
  sample: ["sparkrig-ray.service: left running (process 812), nothing that it was made from has changed"]
started:
  description: Whether the process was started or restarted by this call, or would be in check mode.
  returned: always
  type: bool
settled:
  description: Whether nothing had to be done. In check mode it tells whether the unit is as it should be.
  returned: always
  type: bool
stamp:
  description: The digest of everything that the process is made from.
  returned: O(state=started)
  type: str
secret_sha256:
  description:
    - The SHA-256 of O(secret)'s file as it is afterwards, so that nodes that must have the same one can be compared.
      Null where there is none yet, as in check mode.
  returned: O(state=started) with O(secret)
  type: str
unit:
  description: What systemd says about the unit afterwards.
  returned: always
  type: dict
  contains:
    load_state:
      description: C(loaded), C(not-found) and so on.
      type: str
      returned: always
    active_state:
      description: C(active), C(activating), C(failed) and so on.
      type: str
      returned: always
    sub_state:
      description: The finer state.
      type: str
      returned: always
    result:
      description: Why it ended.
      type: str
      returned: always
    enabled:
      description: Whether it starts at boot.
      type: bool
      returned: always
    main_pid:
      description: Its main process, 0 when there is none.
      type: int
      returned: always
    restarts:
      description: How often systemd restarted it by itself.
      type: int
      returned: always
    invocation_id:
      description: The identity of this start.
      type: str
      returned: always
"""

import hashlib
import os
import pwd
import secrets
import time
import typing as t
from dataclasses import dataclass

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._launch_ground import (
    end_processes,
    memory_now,
    processes_under,
    stale_shared_memory,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._node import gib
from ansible_collections.sparkrig.serving.plugins.module_utils._ports import taken_ports
from ansible_collections.sparkrig.serving.plugins.module_utils._rig_unit import (
    SHOWN_PROPERTIES,
    UnitState,
    parse_show,
    stamp_in,
    stamp_of,
    start_step,
    with_stamp,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._rig_user import HOME

UNIT_DIRECTORY = "/etc/systemd/system"


@dataclass(frozen=True)
class Wanted:
    """A file as it should be; *shown* is False for what no diff may hold."""

    path: str
    data: bytes
    mode: int
    shown: bool = True


def read(path: str) -> bytes | None:
    """What is in the file; None when there is none."""
    try:
        with open(path, "rb") as handle:
            return handle.read()
    except FileNotFoundError:
        return None


def mode_of(path: str) -> int | None:
    """The permission bits of the file; None when there is none."""
    try:
        return os.stat(path).st_mode & 0o7777
    except FileNotFoundError:
        return None


def write(wanted: Wanted) -> None:
    """Write a file so that nobody ever sees half of it, and a secret never with a wider mode."""
    directory = os.path.dirname(wanted.path)
    os.makedirs(directory, mode=0o755, exist_ok=True)
    temporary = f"{wanted.path}.{os.getpid()}.new"
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_TRUNC, 0o600)
    with os.fdopen(descriptor, "wb") as handle:
        handle.write(wanted.data)
        os.fchmod(handle.fileno(), wanted.mode)
        os.fsync(handle.fileno())
    # AnsibleModule.atomic_move would give a new file the mode that the umask allows.
    os.replace(temporary, wanted.path)


class Service:
    """The unit on this node."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.name: str = module.params["name"]
        self.systemctl = module.get_bin_path("systemctl", required=True)
        self.actions: list[str] = []
        self.before: dict[str, t.Any] = {}
        self.after: dict[str, t.Any] = {}
        self.changed = False
        # What systemd said before anything was done: it holds as long as nothing is.
        self.seen: UnitState | None = None

    def run(self, *words: str) -> str:
        """One call of systemctl, or the end of the module with what it said."""
        command = [self.systemctl, *words]
        code, out, err = self.module.run_command(command, environ_update={"LC_ALL": "C", "LANGUAGE": "C"})
        if code != 0:
            self.module.fail_json(
                msg=f"'{' '.join(command)}' ended with {code}: {(err or out).strip()}."
                f" What to do: `systemctl status {self.name}` and `journalctl -u {self.name}` on this node tell more.",
                rc=code,
                actions=self.actions,
            )
        return str(out)

    def show(self, *others: str) -> list[UnitState]:
        """What systemd knows about the unit, and about *others*, in one question."""
        said = self.run("show", f"--property={','.join(SHOWN_PROPERTIES)}", self.name, *others)
        return [parse_show(block) for block in said.split("\n\n")]

    def finish(self, started: bool, **more: t.Any) -> t.NoReturn:
        """Report."""
        diff = {"before": self.before, "after": self.after, "before_header": self.name, "after_header": self.name}
        self.module.exit_json(
            changed=self.changed,
            settled=not self.changed,
            actions=self.actions,
            started=started,
            unit=(self.show()[0] if self.changed or self.seen is None else self.seen).as_dict(),
            diff=diff,
            **more,
        )

    # --- started -----------------------------------------------------------------------------------------------

    def wanted_files(self) -> list[Wanted]:
        """The files of the unit, the secret included, without the unit itself."""
        files = [
            Wanted(entry["path"], entry["content"].encode(), int(entry["mode"], 8))
            for entry in self.module.params["files"]
        ]
        secret = self.module.params["secret"]
        if secret:
            files.append(Wanted(secret["path"], self.secret_line(secret), 0o600, shown=False))
        return files

    def secret_line(self, secret: dict[str, t.Any]) -> bytes:
        """The content of the secret's file: the value given, else the one that it has, else a new one."""
        variable = secret["variable"]
        if secret["value"]:
            if any(sign in secret["value"] for sign in "\n\r\0\"'\\ "):
                self.module.fail_json(
                    msg=f"The value for {variable} holds a blank, a quote, a backslash or a line break; "
                    "a key that goes through an environment file and a request's header must not."
                )
            return f"{variable}={secret['value']}\n".encode()
        present = read(secret["path"]) or b""
        prefix = f"{variable}=".encode()
        for line in present.splitlines():
            if line.startswith(prefix) and len(line) > len(prefix):
                return line + b"\n"
        return f"{variable}={secrets.token_urlsafe(32)}\n".encode()

    def secret_digest(self) -> dict[str, str | None]:
        """Which secret is on the disk now, without the secret; nothing where there shall be none."""
        secret = self.module.params["secret"]
        if not secret:
            return {}
        data = read(secret["path"])
        return {"secret_sha256": None if data is None else hashlib.sha256(data).hexdigest()}

    def extra_files(self) -> list[Wanted]:
        """The files and units beside the unit."""
        files = [
            Wanted(entry["path"], entry["content"].encode(), int(entry["mode"], 8))
            for entry in self.module.params["extra_files"]
        ]
        return files + [
            Wanted(os.path.join(UNIT_DIRECTORY, entry["name"]), entry["content"].encode(), 0o644)
            for entry in self.module.params["extra_units"]
        ]

    def make_user(self) -> None:
        """Have the user that the unit runs as."""
        name = self.module.params["user"]
        if not name:
            return
        try:
            pwd.getpwnam(name)
            return
        except KeyError:
            self.changed = True
            self.actions.append(f"user {name}: created")
        if self.module.check_mode:
            return
        command = ["useradd", "--system", "--user-group", "--no-create-home", "--home-dir", HOME]
        command += ["--shell", "/usr/sbin/nologin", name]
        code, _out, err = self.module.run_command(command)
        if code != 0:
            self.module.fail_json(msg=f"The user {name} cannot be made on this node: {err.strip()}.", rc=code)

    def start_extra_units(self, units: dict[str, UnitState], changed: set[str]) -> None:
        """Enable and start those units beside this one that want it; restart one whose text has changed."""
        for name, state in units.items():
            stale = os.path.join(UNIT_DIRECTORY, name) in changed
            if state.active == "active" and state.file_state == "enabled" and not stale:
                continue
            self.changed = True
            self.actions.append(f"{name}: enabled and started")
            if not self.module.check_mode:
                self.run("enable", name)
                self.run("restart", name)

    def put_files(self, files: list[Wanted]) -> set[str]:
        """Write what differs, in check mode only say so; the paths of what differed."""
        written = set()
        for wanted in files:
            present = read(wanted.path)
            if present == wanted.data and mode_of(wanted.path) == wanted.mode:
                continue
            self.changed = True
            verb = "created" if present is None else "changed"
            written.add(wanted.path)
            self.actions.append(f"{wanted.path}: {verb}")
            if wanted.shown:
                self.before[wanted.path] = (present or b"").decode("utf-8", "replace")
                self.after[wanted.path] = wanted.data.decode()
            else:
                self.before[wanted.path] = "absent" if present is None else "a secret"
                self.after[wanted.path] = "a secret, mode 0600"
            if not self.module.check_mode:
                write(wanted)
        return written

    def remove_units(self) -> None:
        """Take away the units that have no place here, as after another node became the head."""
        for name in self.module.params["absent_units"]:
            path = os.path.join(UNIT_DIRECTORY, name)
            if not os.path.exists(path):
                continue
            self.changed = True
            self.actions.append(f"{name}: stopped, disabled and removed, it has no place on this node")
            self.before[path], self.after[path] = "present", "absent"
            if not self.module.check_mode:
                self.run("disable", "--now", name)
                os.unlink(path)
                self.run("daemon-reload")

    def stop_those_on_top(self) -> None:
        """Stop the units that stand on this one, so that they end in order and not by losing their ground."""
        for name in self.module.params["stop_first"]:
            shown = self.run("show", f"--property={','.join(SHOWN_PROPERTIES)}", name)
            if parse_show(shown).runs:
                self.actions.append(f"{name}: stopped, what it stands on is started anew")
                if not self.module.check_mode:
                    self.run("stop", name)

    def start(self) -> t.NoReturn:
        """Files, unit, reload, enablement, process."""
        params = self.module.params
        beside = [entry["name"] for entry in params["extra_units"] if entry["started"]]
        now, *others = self.show(*beside)
        self.seen = now
        if now.load == "masked":
            self.module.fail_json(
                msg=f"{self.name} is masked on this node, so it cannot be started. "
                f"What to do: `systemctl unmask {self.name}` if nobody masked it on purpose."
            )
        files = self.wanted_files()
        ours = {wanted.path: wanted.data for wanted in files}
        inputs: dict[str, bytes | None] = {path: ours.get(path, read(path)) for path in params["restart_files"]}
        inputs.update(ours)
        stamp = stamp_of(params["content"], inputs, params["restart_on"])
        try:
            text = with_stamp(params["content"], stamp)
        except ValueError as error:
            self.module.fail_json(msg=f"{self.name}: {error}.")
        unit = Wanted(os.path.join(UNIT_DIRECTORY, self.name), text.encode(), 0o644)
        unit_differs = read(unit.path) != unit.data
        verb, sentence = start_step(
            self.name,
            now,
            stamp_in(read(f"/proc/{now.main_pid}/environ")) if now.main_pid else None,
            stamp,
            unit_differs,
            params["force_restart"],
        )
        if verb:
            self.refuse_taken_ports()
        self.make_user()
        self.remove_units()
        written = self.put_files([*files, *self.extra_files(), unit])
        reload = now.needs_reload or any(os.path.dirname(path) == UNIT_DIRECTORY for path in written)
        if reload and not self.module.check_mode:
            self.run("daemon-reload")
        enabled = now.file_state == "enabled"
        if enabled != params["enabled"]:
            self.changed = True
            word = "enable" if params["enabled"] else "disable"
            self.actions.append(f"{self.name}: {word}d")
            self.before["enabled"], self.after["enabled"] = enabled, params["enabled"]
            if not self.module.check_mode:
                self.run(word, self.name)
        self.start_extra_units(dict(zip(beside, others)), written)
        self.actions.append(sentence)
        if verb:
            self.changed = True
            self.before["process"], self.after["process"] = now.active, f"{verb}ed"
            self.stop_those_on_top()
            if not self.module.check_mode:
                self.launch(now, verb)
        self.finish(started=bool(verb), stamp=stamp, **self.secret_digest())

    def refuse_taken_ports(self) -> None:
        """Leave everything as it is when somebody else has a port that the unit needs."""
        params = self.module.params
        taken = taken_ports(params["ports"], [*params["own_units"], self.name], params["leftovers_under"])
        if taken:
            self.module.fail_json(
                msg=f"{self.name} is not started: {'; '.join(taken)}. What to do: end what listens there on this node,"
                " or give the rig other ports in the profile.",
                actions=self.actions,
            )

    def launch(self, now: UnitState, verb: str) -> None:
        """Start it on clean ground."""
        params = self.module.params
        if params["leftovers_under"] or params["memory_bytes"]:
            if now.runs:
                self.run("stop", self.name)
            verb = "start"
            self.end_leftovers()
            self.await_memory()
        # What a person asks for does not count for the starts that systemd makes by itself.
        if now.load != "not-found":
            self.run("reset-failed", self.name)
        self.run(verb, *([] if params["wait"] else ["--no-block"]), self.name)

    def end_leftovers(self) -> None:
        """End what an earlier start left behind outside of every unit of the rig."""
        folder = self.module.params["leftovers_under"]
        if not folder:
            return
        try:
            ended = end_processes(lambda: self.leftovers(folder, self.module.params["own_units"]))
        except ValueError as error:
            self.module.fail_json(msg=f"{self.name} is not started: {error}", actions=self.actions)
        self.actions += [f"process {left}: ended, an earlier start had left it behind" for left in ended]
        # Only here: a run that starts nothing does not have to compile it.
        from ansible_collections.sparkrig.serving.plugins.module_utils._gpu_probe import smi_of

        smi = smi_of(self.module)
        strangers = smi.strangers(smi.query(), self.module.params["own_units"])
        if strangers:
            self.module.fail_json(
                msg=f"{self.name} is not started: {'; '.join(strangers)}. The model needs the GPU's memory for itself."
                " What to do: end what uses the GPU on this node.",
                actions=self.actions,
            )
        for path in stale_shared_memory():
            os.unlink(path)
            self.actions.append(f"{path}: removed, no process has it open any more")

    def await_memory(self) -> None:
        """Wait until the memory of the plan is there."""
        needed, limit_s = self.module.params["memory_bytes"], self.module.params["memory_timeout_s"]
        begin = time.monotonic()
        while memory_now().available_bytes < needed:
            if time.monotonic() - begin > limit_s:
                self.module.fail_json(
                    msg=f"{self.name} is not started: {gib(memory_now().available_bytes)} of memory are available on"
                    f" this node after {limit_s} s, the plan needs {gib(needed)}. What to do: see what holds the memory"
                    " (`ps -eo pid,rss,args --sort -rss | head`), end it and run this again.",
                    actions=self.actions,
                )
            time.sleep(1)

    def resume(self) -> t.NoReturn:
        """Start what is on the disk."""
        now = self.seen = self.show()[0]
        if now.load == "not-found":
            self.actions.append(f"{self.name}: left alone, it does not exist on this node")
            self.finish(started=False)
        if now.runs:
            self.actions.append(f"{self.name}: left running (process {now.main_pid})")
            self.finish(started=False)
        self.changed = True
        self.actions.append(f"{self.name}: started")
        self.before[self.name], self.after[self.name] = now.active, "started"
        if not self.module.check_mode:
            self.launch(now, "start")
        self.finish(started=True)

    # --- stopped -----------------------------------------------------------------------------------------------

    def leftovers(self, folder: str, but: list[str]) -> list[str]:
        """Processes whose program or libraries lie under *folder* and that run in no unit of *but*, as "PID NAME"."""
        return processes_under(folder, but)

    def stop(self) -> t.NoReturn:
        """Stop the unit by systemd, and see that nothing of it is left."""
        running = []
        for name in [self.name, *self.module.params["stop_too"]]:
            now = parse_show(self.run("show", f"--property={','.join(SHOWN_PROPERTIES)}", name))
            if now.load == "not-found" or (now.active == "inactive" and not now.main_pid):
                self.actions.append(f"{name}: left alone, it does not run")
                continue
            self.changed = True
            self.actions.append(f"{name}: stopped")
            self.before[name], self.after[name] = now.active, "stopped"
            running.append(name)
        if running and not self.module.check_mode:
            # In one step: systemd knows the order.
            self.run("stop", *running)
            # Ray's launcher ends with 1 when it is stopped. That is no failure.
            self.run("reset-failed", *running)
        folder = self.module.params["leftovers_under"]
        if folder and not self.module.check_mode:
            deadline = time.monotonic() + self.module.params["stop_timeout_s"]
            left = self.leftovers(folder, [])
            while left and time.monotonic() < deadline:
                time.sleep(0.2)
                left = self.leftovers(folder, [])
            if left:
                self.module.fail_json(
                    msg=f"{self.name} is stopped, but {len(left)} process(es) under {folder} still run on this node: "
                    f"{', '.join(left[:8])}. What to do: see what started them (`systemctl status PID`); they belong"
                    " to no unit that may be stopped here.",
                    actions=self.actions,
                    changed=self.changed,
                )
            for path in stale_shared_memory():
                os.unlink(path)
                self.actions.append(f"{path}: removed, no process has it open any more")
        self.finish(started=False)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            "name": {"type": "str", "required": True},
            "content": {"type": "str"},
            "state": {"type": "str", "choices": ["started", "stopped", "resumed"], "default": "started"},
            "enabled": {"type": "bool", "default": True},
            "files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                    "mode": {"type": "str", "default": "0644"},
                },
            },
            "secret": {
                "type": "dict",
                "no_log": False,
                "options": {
                    "path": {"type": "path", "required": True},
                    "variable": {"type": "str", "required": True},
                    "value": {"type": "str", "no_log": True},
                },
            },
            "extra_files": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "path": {"type": "path", "required": True},
                    "content": {"type": "str", "required": True},
                    "mode": {"type": "str", "default": "0644"},
                },
            },
            "extra_units": {
                "type": "list",
                "elements": "dict",
                "default": [],
                "options": {
                    "name": {"type": "str", "required": True},
                    "content": {"type": "str", "required": True},
                    "started": {"type": "bool", "default": False},
                },
            },
            "wait": {"type": "bool", "default": True},
            "absent_units": {"type": "list", "elements": "str", "default": []},
            "restart_files": {"type": "list", "elements": "path", "default": []},
            "restart_on": {"type": "list", "elements": "str", "default": []},
            "force_restart": {"type": "bool", "default": False},
            "stop_first": {"type": "list", "elements": "str", "default": []},
            "leftovers_under": {"type": "path"},
            "user": {"type": "str", "default": ""},
            "own_units": {
                "type": "list",
                "elements": "str",
                "default": ["sparkrig-ray.service", "sparkrig-vllm.service", "sparkrig-watchdog.service"],
            },
            "memory_bytes": {"type": "int", "default": 0},
            "memory_timeout_s": {"type": "int", "default": 60},
            "ports": {"type": "list", "elements": "str", "default": []},
            "stop_too": {"type": "list", "elements": "str", "default": []},
            "stop_timeout_s": {"type": "int", "default": 20},
        },
        required_if=[("state", "started", ["content"])],
        supports_check_mode=True,
    )
    service = Service(module)
    if module.params["state"] == "started":
        service.start()
    if module.params["state"] == "resumed":
        service.resume()
    service.stop()


if __name__ == "__main__":
    main()

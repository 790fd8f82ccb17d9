#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Stop and mask any number of systemd units in one call, with a journal from which they all come back."""

from __future__ import annotations

DOCUMENTATION = r"""
module: unit_prune
short_description: Stop and mask systemd units in one call, and bring them back
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Stops and masks any number of systemd units with one command each, whatever their number, after reading
    all their states with one C(systemctl show). Everything is validated before the first change.
  - Units that are not installed, templates, transient units and units that somebody else masked are left
    alone, each with a sentence. A mask of somebody else is never taken away.
  - Sockets, paths and timers that would start a pruned unit again are pruned with it, and units that systemd
    stops together with it are recorded, so that O(state=restored) starts them again.
  - Static and generated units are masked like others, because D-Bus and generators start them again
    otherwise. A unit whose file lies in C(/etc/systemd/system) cannot be masked; it is stopped and disabled.
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
    description:
      - V(pruned) stops and masks the units.
      - V(restored) brings back exactly what the journal says that V(pruned) changed (masks, enablement,
        running), and removes the journal. O(units) and O(user_units) are not looked at.
    type: str
    choices: [pruned, restored]
    default: pruned
  units:
    description: System units (services, sockets, paths, timers), with their type, as in V(cups.service).
    type: list
    elements: str
    default: []
  user_units:
    description:
      - Units of the users' own managers, masked for all users. Instances that run already, in the manager of a user
        who is logged in or lingers, are stopped, and started again by V(restored) if that manager still runs.
    type: list
    elements: str
    default: []
  allow_protected:
    description:
      - Protected units (SSH, network, D-Bus, RDMA, NVIDIA, time, container engine, systemd itself, ...) that
        may be pruned all the same, by their names. B(Pruning them can cost the access to the node.)
    type: list
    elements: str
    default: []
  consent:
    description:
      - Prune also while somebody is logged in to a graphical session. B(This takes the desktop away from
        under them.)
    type: bool
    default: false
  probe_s:
    description: Seconds over which swap and faults are counted, before and after a change, for RV(evidence).
    type: float
    default: 0
  journal:
    description: The file that records what was changed. It is written before the change.
    type: path
    default: /var/lib/sparkrig/journal/os_prune.json
seealso:
  - module: ansible.builtin.systemd_service
"""

EXAMPLES = r"""
---
- name: Give the memory of printing and discovery back
  sparkrig.serving.unit_prune:
    units:
      - cups.service
      - cups.socket
      - cups.path
      - avahi-daemon.service
      - avahi-daemon.socket

- name: Bring everything back
  sparkrig.serving.unit_prune:
    state: restored
"""

RETURN = r"""
actions:
  description: One sentence for each unit, also for those left alone.
  returned: always
  type: list
  elements: str
  sample:
    - cups.service is stopped and masked (was enabled, active).
    - apport.service is not installed on this node; left alone.
pruned:
  description: The units that are pruned by us, now or by an earlier run.
  returned: always
  type: list
  elements: str
  sample: [cups.service]
left_alone:
  description: The units that were left alone, and why.
  returned: always
  type: dict
  sample:
    apport.service: apport.service is not installed on this node; left alone.
evidence:
  description:
    - What pruning gave back (memory by unit, swap, faults), as RV(sparkrig.serving.node_memory_info#module:evidence);
      null when nothing was pruned now.
  returned: always
  type: dict
restored:
  description: The units that were brought back.
  returned: always
  type: list
  elements: str
  sample: []
"""

import os
import pwd
import time
import typing as t
from dataclasses import asdict, dataclass
from functools import partial

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils import _journal, _memory, _memory_probe
from ansible_collections.sparkrig.serving.plugins.module_utils._systemd_units import (
    PROPERTIES,
    RUNNING,
    Entry,
    Step,
    Undo,
    UnitState,
    UserManager,
    check_names,
    check_protected,
    decide_user,
    entries_from,
    entries_to,
    graphical_sessions,
    merge,
    parse_show,
    parse_user_files,
    plan_prune,
    plan_running,
    undo,
    undo_user,
)

KIND = "unit_prune"
SETTLE_S = 3.0
LOGIND_SESSIONS = "/run/systemd/sessions"
RUN_USER = "/run/user"
# Units of these file states start when somebody asks for them, over D-Bus for example; they end by themselves as well.
ON_DEMAND = ("static", "disabled", "indirect")


class Systemd:
    """The few commands that this module runs."""

    def __init__(self, module: AnsibleModule) -> None:
        self.module = module
        self.systemctl: str = module.get_bin_path("systemctl", required=True)
        module.run_command_environ_update = {
            "LANGUAGE": "C",
            "LC_ALL": "C",
            "SYSTEMD_COLORS": "0",
            "SYSTEMD_PAGER": "",
        }

    def run(self, *arguments: str) -> tuple[int, str, str]:
        rc, out, err = self.module.run_command([self.systemctl, *arguments])
        return rc, out, err

    def must(self, what: str, *arguments: str) -> str:
        rc, out, err = self.run(*arguments)
        if rc != 0:
            self.module.fail_json(
                msg=f"systemd refused to {what}: {err.strip() or out.strip() or 'it gave no reason'} "
                f"(rc {rc}). "
                f"What is done already is in the journal; run this again, or state=restored to go back.",
                rc=rc,
            )
        return out

    def show(self, names: t.Sequence[str]) -> dict[str, UnitState]:
        out = self.must("show the units' states", "show", "--property=" + ",".join(PROPERTIES), "--", *names)
        return parse_show(names, out)

    def managers(self) -> list[UserManager]:
        """The users' own managers that run now."""
        if not os.path.isdir(RUN_USER):
            return []
        found = []
        for entry in sorted(os.listdir(RUN_USER)):
            if entry.isdigit() and os.path.exists(f"{RUN_USER}/{entry}/systemd/private"):
                uid = int(entry)
                try:
                    name = pwd.getpwuid(uid).pw_name
                except KeyError:
                    name = ""
                found.append(UserManager(uid, os.stat(f"{RUN_USER}/{entry}").st_gid, name))
        return found

    def run_user(self, manager: UserManager, *arguments: str) -> tuple[int, str, str]:
        """systemctl in a user's own manager, which answers to that user only, not even to root."""
        setpriv = self.module.get_bin_path("setpriv", required=True)
        user = [f"--reuid={manager.uid}", f"--regid={manager.gid}", "--clear-groups"]
        rc, out, err = self.module.run_command(
            [setpriv, *user, self.systemctl, "--user", *arguments],
            environ_update={"XDG_RUNTIME_DIR": f"{RUN_USER}/{manager.uid}"},
        )
        return rc, out, err

    def show_user(self, manager: UserManager, names: t.Sequence[str]) -> dict[str, UnitState]:
        """The states in a user's manager; everything is inactive in one that ends just now."""
        rc, out, _err = self.run_user(manager, "show", "--property=" + ",".join(PROPERTIES), "--", *names)
        if rc != 0:
            return {name: UnitState(name, name, (name,), "not-found", "", "inactive", "", (), ()) for name in names}
        return parse_show(names, out)

    def settled(
        self, names: t.Sequence[str], show: t.Callable[[t.Sequence[str]], dict[str, UnitState]]
    ) -> dict[str, UnitState]:
        """The states once everything has stopped, or after a few seconds: a slow unit may go on stopping."""
        deadline = time.monotonic() + SETTLE_S
        while True:
            states = show(names)
            moving = [name for name in names if states[name].running or states[name].active == "deactivating"]
            if not moving or time.monotonic() >= deadline:
                return states
            time.sleep(0.2)

    def user_files(self, names: t.Sequence[str]) -> dict[str, str]:
        if not names:
            return {}
        # rc 1 only says that no unit of these exists.
        _rc, out, _err = self.run("--global", "list-unit-files", "--no-legend", "--no-pager", "--", *names)
        return parse_user_files(out)

    def desktops(self) -> tuple[str, ...]:
        """Who is logged in to a graphical session; nobody where logind does not run."""
        loginctl = self.module.get_bin_path("loginctl")
        if not loginctl or not os.path.isdir(LOGIND_SESSIONS):
            return ()
        rc, out, _err = self.module.run_command([loginctl, "list-sessions", "--no-legend", "--no-pager"])
        sessions = [line.split()[0] for line in out.splitlines() if line.strip()]
        if rc != 0 or not sessions:
            return ()
        # A session that ends meanwhile makes rc 1; the others are printed all the same.
        # Unlike systemctl, loginctl takes no list of properties, and says nothing when it gets one.
        properties = [f"--property={name}" for name in ("Id", "Name", "Type", "Class", "State")]
        _rc, out, _err = self.module.run_command([loginctl, "show-session", *properties, "--", *sessions])
        return graphical_sessions(out)


def prune(module: AnsibleModule, systemd: Systemd, journal: str) -> dict[str, t.Any]:
    allowed = module.params["allow_protected"]
    units = check_names("units", module.params["units"])
    user_units = check_names("user_units", module.params["user_units"])
    check_protected("user_units", user_units, allowed)
    content = _journal.load(journal, KIND) or {}
    entries = entries_from(content, "units")
    user_entries = entries_from(content, "user_units")

    plan = plan_prune("units", units, entries, allowed, systemd.show)
    files = systemd.user_files(user_units)
    user_steps = [
        decide_user(name, files, os.path.lexists(f"/etc/systemd/user/{name}"), user_entries.get(name))
        for name in user_units
    ]
    running = plan_managers(systemd, [step.name for step in user_steps if step.ours], content)
    steps = plan.changed
    user_masks = [step.name for step in user_steps if step.mask]
    changed = bool(steps or user_masks or any(manager.stops for manager in running))
    if changed and not module.params["consent"]:
        desktops = systemd.desktops()
        if desktops:
            raise ValueError(
                f"{' and '.join(desktops)} would lose the desktop: {len(steps) + len(user_masks)} units are to be "
                "pruned while a graphical session runs. Log out there, or give consent (role variable "
                "os_prune_consent: true)."
            )

    evidence = None
    after = {step.name: "masked, inactive" if step.mask else "stopped" for step in steps}
    if changed and not module.check_mode:
        seen, probe = measure(module.params["probe_s"])
        for step in steps:
            state = plan.states[step.name]
            entries[step.name] = merge(entries.get(step.name), step, state, plan.because.get(step.name, ""))
        for step in user_steps:
            if step.mask:
                user_entries[step.name] = user_entries.get(step.name) or Entry(files[step.name], "", step.did, "")
        for one in running:
            for step in one.stops:
                one.entries[step.name] = merge(one.entries.get(step.name), step, one.states[step.name], "")
        known = {str(one.manager.uid): entries_to(one.entries) for one in running if one.entries}
        store(journal, entries, user_entries, {**content.get("running", {}), **known})
        apply_prune(module, systemd, steps, user_masks)
        apply_running(module, systemd, running, bool(user_masks))
        seen_after, probe_after = measure(module.params["probe_s"])
        evidence = _memory.evidence(seen, seen_after, probe, probe_after)

    every: list[Step] = [*plan.steps, *user_steps]
    instances = [step for one in running for step in one.steps]
    forgotten = [name for name in (*entries, *user_entries) if name not in {step.name for step in every}]
    return {
        "changed": changed,
        "actions": [step.sentence for step in (*every, *instances)]
        + [
            f"{name} is not listed any more but still pruned by an earlier run; state=restored brings it back."
            for name in forgotten
        ],
        "pruned": sorted({step.name for step in every if step.ours} | set(forgotten)),
        "left_alone": {step.name: step.sentence for step in every if not step.ours},
        "restored": [],
        "evidence": evidence,
        "diff": {
            "before": lines((step.name, plan.states[step.name].summary) for step in steps)
            + lines((f"user unit {name}", files[name]) for name in user_masks)
            + lines((f"{step.name} of {one.manager}", "running") for one in running for step in one.stops),
            "after": lines(after.items())
            + lines((f"user unit {name}", "masked") for name in user_masks)
            + lines((f"{step.name} of {one.manager}", "stopped") for one in running for step in one.stops),
        },
    }


def measure(seconds: float) -> tuple[dict[str, t.Any], dict[str, t.Any] | None]:
    """The node's memory now, and what swap and faults do over some seconds."""
    if not seconds:
        return _memory.to_dict(_memory_probe.look()[0]), None
    seen, probe, _unreadable = _memory_probe.watch(seconds)
    return _memory.to_dict(seen), asdict(probe)


def store(
    journal: str,
    entries: t.Mapping[str, Entry],
    user_entries: t.Mapping[str, Entry],
    running: t.Mapping[str, t.Any],
) -> None:
    content = {"units": entries_to(entries), "user_units": entries_to(user_entries), "running": dict(running)}
    _journal.store(journal, KIND, content)


@dataclass
class Instances:
    """The running instances of pruned user units in one user's manager."""

    manager: UserManager
    steps: list[Step]
    states: dict[str, UnitState]
    entries: dict[str, Entry]

    @property
    def stops(self) -> list[Step]:
        return [step for step in self.steps if step.stop]


def plan_managers(systemd: Systemd, masked: t.Sequence[str], content: t.Mapping[str, t.Any]) -> list[Instances]:
    """What stops in the managers of the users who are there."""
    found = []
    for manager in systemd.managers() if masked else []:
        entries = entries_from(content.get("running", {}), str(manager.uid))
        show = partial(systemd.show_user, manager)
        steps, states = plan_running(manager, masked, entries, show)
        found.append(Instances(manager, steps, states, entries))
    return found


def apply_running(module: AnsibleModule, systemd: Systemd, running: t.Sequence[Instances], reload: bool) -> None:
    """Stop what runs in each user's manager, and let it see the masks."""
    for one in running:
        names = [step.name for step in one.stops]
        if names:
            systemd.run_user(one.manager, "stop", "--no-block", "--", *names)
        if reload or names:
            systemd.run_user(one.manager, "daemon-reload")
        if not names:
            continue
        show = partial(systemd.show_user, one.manager)
        states = systemd.settled(names, show)
        woken = [name for name in names if states[name].running]
        if woken:
            systemd.run_user(one.manager, "stop", "--", *woken)
            states = show(names)
        bad = [name for name in names if states[name].running]
        if bad:
            module.fail_json(
                msg=f"{', '.join(bad)} of {one.manager} still run{'s' if len(bad) == 1 else ''} after stop. See "
                f"`systemctl --user status {bad[0]}` as that user; the journal has what is done, so run this again, "
                "or state=restored to go back."
            )


def apply_prune(module: AnsibleModule, systemd: Systemd, steps: t.Sequence[Step], user_masks: t.Sequence[str]) -> None:
    """One command each. Stop comes before mask: a masked unit has lost its ExecStop= and KillMode=."""
    stop = [step.name for step in steps if step.stop]
    mask = [step.name for step in steps if step.mask]
    disable = [step.name for step in steps if step.disable]
    if stop:
        # Not waited for here: snapd takes half a minute to stop where the network is down. The states tell below.
        systemd.run("stop", "--no-block", "--", *stop)
    if mask:
        systemd.must("mask units", "mask", "--", *mask)
    if disable:
        systemd.must("disable units", "disable", "--", *disable)
    if user_masks:
        systemd.must("mask user units", "--global", "mask", "--", *user_masks)
    names = [step.name for step in steps]
    if not names:
        return
    states = systemd.settled(names, systemd.show)
    woken = [name for name in names if states[name].running]
    if woken:
        # Something asked for them between stop and mask.
        systemd.run("stop", "--", *woken)
        states = systemd.show(names)
    failed = [name for name in names if states[name].active == "failed"]
    if failed:
        systemd.run("reset-failed", "--", *failed)
    bad = [name for name in names if states[name].running or (name in mask and not states[name].masked)]
    if bad:
        module.fail_json(
            msg=f"{', '.join(f'{name} ({states[name].summary})' for name in bad)}: still not pruned "
            "after stop and mask. "
            f"See 'systemctl status {bad[0]}' on the node; the journal has what is done, so run this "
            "again, or "
            f"state=restored to go back."
        )


def restore(module: AnsibleModule, systemd: Systemd, journal: str) -> dict[str, t.Any]:
    content = _journal.load(journal, KIND)
    if content is None:
        return {
            "changed": False,
            "actions": [f"There is no journal {journal}: nothing was pruned by us, nothing to bring back."],
            "pruned": [],
            "left_alone": {},
            "restored": [],
            "evidence": None,
            "diff": {"before": "", "after": ""},
        }
    entries = entries_from(content, "units")
    user_entries = entries_from(content, "user_units")
    states = systemd.show(list(entries)) if entries else {}
    files = systemd.user_files(list(user_entries))
    undos = [undo(name, entry, states[name]) for name, entry in entries.items()]
    user_undos = [undo_user(name, files) for name in user_entries]
    running = plan_restart(systemd, content.get("running", {}))
    before = lines((name, states[name].summary) for name in entries)
    after = lines((name, f"{entry.file}, {entry.active}") for name, entry in entries.items())
    if not module.check_mode:
        slow = [name for name in entries if states[name].active == "deactivating"]
        if slow:
            # Still on the way down from pruning; a socket refuses to start before its service is down.
            systemd.run("stop", "--", *slow)
        down = apply_restore(systemd, undos, user_undos, entries)
        left = [name for name in down if entries[name].file not in ON_DEMAND]
        warnings = apply_restart(systemd, running)
        warnings += [
            f"{name} ran before pruning and does not start now; nothing starts it at boot, and it is unmasked for "
            "whoever asks for it."
            for name in down
            if name not in left
        ]
        for sentence in warnings:
            module.warn(sentence)
        if left:
            store(journal, {name: entries[name] for name in left}, {}, {})
            module.fail_json(
                msg=f"{', '.join(left)} ran before pruning and did not start again; all other units are "
                "back. See "
                f"'systemctl status {left[0]}' on the node, then run this again."
            )
        _journal.remove(journal)
    every: list[Undo] = [*undos, *user_undos]
    return {
        # The journal goes too, so a journal alone is a change.
        "changed": True,
        "actions": [step.sentence for step in every] + [one.sentence for one in running],
        "pruned": [],
        "left_alone": {step.name: step.sentence for step in every if not step.changes},
        "restored": sorted(step.name for step in every if step.changes),
        "evidence": None,
        "diff": {"before": before, "after": after},
    }


def apply_restore(
    systemd: Systemd, undos: t.Sequence[Undo], user_undos: t.Sequence[Undo], entries: t.Mapping[str, Entry]
) -> list[str]:
    """Bring back; the result is the units that ran before and do not run now."""
    unmask = [step.name for step in undos if step.unmask]
    enable = [step.name for step in undos if step.enable]
    start = [step.name for step in undos if step.start and step.wait]
    nudge = [step.name for step in undos if step.start and not step.wait]
    user_unmask = [step.name for step in user_undos if step.unmask]
    if unmask:
        systemd.must("unmask units", "unmask", "--", *unmask)
    if enable:
        systemd.must("enable units", "enable", "--", *enable)
    if user_unmask:
        systemd.must("unmask user units", "--global", "unmask", "--", *user_unmask)
    if start:
        # Judged by the states below, unit by unit; rc is that of all together.
        systemd.run("start", "--", *start)
    if nudge:
        systemd.run("start", "--no-block", "--", *nudge)
    if not (start or nudge):
        return []
    states = systemd.show(list(entries))
    woken = [name for name, entry in entries.items() if states[name].active == "active" and entry.active == "inactive"]
    if woken:
        # Units that did not run before, and that the others asked for while they started.
        systemd.run("stop", "--no-block", "--", *woken)
    return [name for name in start if not states[name].running]


@dataclass(frozen=True)
class Restart:
    """What starts again in one user's manager; no manager where that user is not there."""

    manager: UserManager | None
    names: tuple[str, ...]
    sentence: str


def plan_restart(systemd: Systemd, running: t.Mapping[str, t.Any]) -> list[Restart]:
    """How the instances that ran in the users' managers come back."""
    managers = {str(manager.uid): manager for manager in systemd.managers()} if running else {}
    found = []
    for uid in sorted(running):
        names = tuple(name for name, entry in entries_from(running, uid).items() if entry.active in RUNNING)
        manager = managers.get(uid)
        what = ", ".join(names)
        if manager is None:
            sentence = f"{what} of user {uid}: that user has no manager now; they start with the next login."
        else:
            sentence = f"{what} of {manager}: started again."
        found.append(Restart(manager, names, sentence))
    return found


def apply_restart(systemd: Systemd, running: t.Sequence[Restart]) -> list[str]:
    """Start them; the result is a sentence for each user for whom something did not start."""
    sentences = []
    for one in running:
        if one.manager is None or not one.names:
            continue
        systemd.run_user(one.manager, "daemon-reload")
        systemd.run_user(one.manager, "start", "--", *one.names)
        states = systemd.show_user(one.manager, one.names)
        down = [name for name in one.names if not states[name].running]
        if down:
            sentences.append(
                f"{', '.join(down)} of {one.manager} did not start again; they are unmasked, and start with the next "
                "login."
            )
    return sentences


def lines(rows: t.Iterable[tuple[str, str]]) -> str:
    return "".join(f"{name}: {text}\n" for name, text in sorted(rows))


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "state": {"type": "str", "choices": ["pruned", "restored"], "default": "pruned"},
            "units": {"type": "list", "elements": "str", "default": []},
            "user_units": {"type": "list", "elements": "str", "default": []},
            "allow_protected": {"type": "list", "elements": "str", "default": []},
            "consent": {"type": "bool", "default": False},
            "probe_s": {"type": "float", "default": 0},
            "journal": {"type": "path", "default": "/var/lib/sparkrig/journal/os_prune.json"},
        },
        supports_check_mode=True,
    )
    systemd = Systemd(module)
    act = prune if module.params["state"] == "pruned" else restore
    try:
        result = act(module, systemd, module.params["journal"])
    except ValueError as error:
        module.fail_json(msg=str(error))
    module.exit_json(**result)


if __name__ == "__main__":
    main()

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What stopping and masking systemd units means, and how it is undone: states in, a plan out, no I/O.

Private to this collection: import it from nowhere else.
"""

from __future__ import annotations

import fnmatch
import re
import typing as t
from dataclasses import dataclass, replace

# Every property that a decision needs, so that one `systemctl show` answers for any number of units.
PROPERTIES = (
    "Id",
    "Names",
    "LoadState",
    "UnitFileState",
    "ActiveState",
    "FragmentPath",
    "TriggeredBy",
    "RequiredBy",
    "RequisiteOf",
    "BoundBy",
    "ConsistsOf",
)

# Without these a node cannot be reached, cannot serve, or cannot be undone.
PROTECTED = (
    "NetworkManager*.service",
    "chrony*.service",
    "containerd*.service",
    "dbus-broker.service",
    "dbus.service",
    "dbus.socket",
    "docker.service",
    "docker.socket",
    "ibacm.*",
    "init.scope",
    "iwpmd.*",
    "multipathd.*",
    "netplan-*.service",
    "networking.service",
    "ntp*.service",
    "nvidia-*",
    "openibd.service",
    "polkit.service",
    "podman*",
    "rdma-*",
    "sparkrig-*",
    "srp_daemon*",
    "ssh*.service",
    "ssh*.socket",
    "systemd-*",
    "user@*.service",
    "wpa_supplicant*.service",
)

KINDS = (".service", ".socket", ".path", ".timer")
# A unit that is deactivating is on its way down: it needs no other stop.
RUNNING = ("active", "activating", "reloading", "refreshing", "maintenance")
_NAME = re.compile(r"[A-Za-z0-9_][A-Za-z0-9:_.@\\-]*")


@dataclass(frozen=True)
class UnitState:
    """What systemd says about a unit."""

    name: str  # as asked; `id` is what it resolves to
    id: str
    names: tuple[str, ...]
    load: str
    file: str
    active: str
    fragment: str
    triggers: tuple[str, ...]  # units that start it: its sockets, paths and timers
    dependents: tuple[str, ...]  # units that systemd stops with it

    @property
    def masked(self) -> bool:
        return self.load == "masked" or self.file.startswith("masked")

    @property
    def running(self) -> bool:
        return self.active in RUNNING

    @property
    def summary(self) -> str:
        if self.load == "not-found":
            return "not installed"
        return f"{self.file or self.load}, {self.active}"


@dataclass(frozen=True)
class Entry:
    """A journal entry: how a unit was found, and what was done to it."""

    file: str
    active: str
    did: tuple[str, ...]
    because: str  # the listed unit for whose sake an unlisted one was changed; empty for a listed one


@dataclass(frozen=True)
class Step:
    """What happens to one unit, and the sentence that says so."""

    name: str
    sentence: str
    stop: bool = False
    mask: bool = False
    disable: bool = False
    ours: bool = False  # pruned by us: now or in an earlier run

    @property
    def changes(self) -> bool:
        return self.stop or self.mask or self.disable

    @property
    def did(self) -> tuple[str, ...]:
        acts = (("stop", self.stop), ("mask", self.mask), ("disable", self.disable))
        return tuple(name for name, wanted in acts if wanted)


@dataclass(frozen=True)
class Undo:
    """How one unit comes back, and the sentence that says so."""

    name: str
    sentence: str
    unmask: bool = False
    enable: bool = False
    start: bool = False
    wait: bool = True  # False for a unit that was still starting when it was pruned: it may never finish

    @property
    def changes(self) -> bool:
        return self.unmask or self.enable or self.start


def is_template(name: str) -> bool:
    """A template has no state: `systemctl show` gives up on its name and on all names after it."""
    return "@." in name


def check_names(option: str, names: t.Sequence[str]) -> tuple[str, ...]:
    """The names without repetitions, or ValueError with the index of the first that is none."""
    for index, name in enumerate(names):
        where = f"{option}[{index}] {name!r}"
        if any(letter in name for letter in "*?["):
            raise ValueError(f"{where} is a pattern; name each unit, patterns are not expanded.")
        if not _NAME.fullmatch(name) or len(name) > 255:
            raise ValueError(
                f"{where} is not a unit name; use letters, digits and : _ . @ \\ - only, as in 'cups.service'."
            )
        if not name.endswith(KINDS):
            suffix = name.rpartition(".")[2] if "." in name else ""
            known = ("target", "mount", "automount", "swap", "slice", "scope", "device")
            if suffix in known:
                raise ValueError(f"{where} is a {suffix}; only {', '.join(k[1:] for k in KINDS)} units can be pruned.")
            raise ValueError(f"{where} does not say which type of unit it is; write '{name}.service', for example.")
        if name in KINDS or name.startswith("@"):
            raise ValueError(f"{where} has no name before its type; write it in full, as in 'cups.service'.")
    return tuple(dict.fromkeys(names))


def protection(names: t.Iterable[str], allowed: t.Collection[str]) -> str:
    """The protected pattern that one of a unit's names falls under, or an empty string."""
    every = tuple(names)
    if any(name in allowed for name in every):
        return ""
    for name in every:
        for pattern in PROTECTED:
            if fnmatch.fnmatchcase(name, pattern):
                return pattern
    return ""


def check_protected(option: str, names: t.Sequence[str], allowed: t.Collection[str]) -> None:
    """ValueError when a listed unit is one that a node must keep."""
    for index, name in enumerate(names):
        pattern = protection([name], allowed)
        if pattern:
            raise ValueError(
                f"{option}[{index}] {name!r} is protected ({pattern}): the node needs it. Take it off "
                "the list, "
                f"or name it in allow_protected as well if you are sure."
            )


def parse_show(names: t.Sequence[str], text: str) -> dict[str, UnitState]:
    """The states in the output of `systemctl show`, one block a name, in the order of the names."""
    blocks = [block for block in text.strip().split("\n\n") if block.strip()]
    if len(blocks) != len(names):
        raise ValueError(f"systemctl show answered for {len(blocks)} of {len(names)} units")
    states = {}
    for name, block in zip(names, blocks):
        fields = dict(line.partition("=")[::2] for line in block.splitlines())
        missing = [key for key in ("Id", "LoadState", "ActiveState") if key not in fields]
        if missing:
            raise ValueError(f"systemctl show of {name} lacks {', '.join(missing)}")
        dependents = [
            unit
            for key in ("RequiredBy", "RequisiteOf", "BoundBy", "ConsistsOf")
            for unit in fields.get(key, "").split()
        ]
        states[name] = UnitState(
            name=name,
            id=fields["Id"],
            names=tuple(fields.get("Names", "").split()) or (fields["Id"],),
            load=fields["LoadState"],
            file=fields.get("UnitFileState", ""),
            active=fields["ActiveState"],
            fragment=fields.get("FragmentPath", ""),
            triggers=tuple(fields.get("TriggeredBy", "").split()),
            dependents=tuple(dict.fromkeys(dependents)),
        )
    return states


def parse_user_files(text: str) -> dict[str, str]:
    """Unit name to file state, from `systemctl --global list-unit-files --no-legend`."""
    rows = (line.split() for line in text.splitlines())
    return {row[0]: row[1] for row in rows if len(row) >= 2}


def graphical_sessions(text: str) -> tuple[str, ...]:
    """Who is logged in to a desktop, from `loginctl show-session`; a login screen is nobody."""
    found = []
    for block in text.strip().split("\n\n"):
        session = dict(line.partition("=")[::2] for line in block.splitlines())
        if (
            session.get("Type") in ("x11", "wayland", "mir")
            and session.get("Class", "").startswith("user")
            and session.get("State") != "closing"
        ):
            found.append(f"{session.get('Name', '?')} ({session['Type']} session {session.get('Id', '?')})")
    return tuple(found)


def decide(state: UnitState, entry: Entry | None) -> Step:
    """What pruning means for one unit in this state; entry is what we did to it before."""
    name = state.id

    def alone(reason: str) -> Step:
        return Step(name, f"{name} {reason}; left alone.")

    if state.masked:
        if entry is None or state.file == "masked-runtime":
            until = " until the next boot" if state.file == "masked-runtime" else ""
            return alone(f"is masked{until} by somebody else" + (" and still running" if state.running else ""))
        if state.running:
            return Step(
                name,
                f"{name} is masked by us but runs ({state.active}): it is stopped.",
                stop=True,
                ours=True,
            )
        return Step(name, f"{name} is pruned already.", ours=True)
    if state.load == "not-found":
        return alone("is not installed on this node")
    if state.load != "loaded":
        return alone(f"cannot be loaded by systemd (LoadState {state.load})")
    if state.file == "transient":
        return alone("is transient (started by hand), so stopping it could not be undone")
    if "/generator.early/" in state.fragment:
        return alone("comes from an early generator, which no mask overrides")
    if state.fragment.startswith("/etc/systemd/system"):
        enabled = state.file in ("enabled", "enabled-runtime")
        if not state.running and not enabled:
            if entry is not None:
                return Step(
                    name,
                    f"{name} is pruned already (its file is in /etc, so it cannot be masked).",
                    ours=True,
                )
            return alone("is stopped and not enabled, and its file is in /etc, so it cannot be masked")
        acts = " and ".join(act for act, wanted in (("stopped", state.running), ("disabled", enabled)) if wanted)
        return Step(
            name,
            f"{name} is {acts}, not masked, because its file is in /etc (was {state.summary}).",
            stop=state.running,
            disable=enabled,
            ours=True,
        )
    acts = "stopped and masked" if state.running else "masked"
    return Step(name, f"{name} is {acts} (was {state.summary}).", stop=state.running, mask=True, ours=True)


def follow(name: str, state: UnitState, because: Step, cause: UnitState) -> Step:
    """What happens to a unit that nobody listed, for the sake of one that changes."""
    if name in cause.triggers and (because.mask or because.disable):
        own = decide(state, None)
        if own.changes:
            return replace(own, sentence=own.sentence[:-1] + f", as it would start {because.name} again.")
        return own
    if not state.running:
        return Step(state.id, f"{state.id} needs {because.name} and does not run; left alone.")
    if not state.id.endswith(KINDS) or state.file == "transient":
        raise ValueError(
            f"stopping {because.name} would stop {state.id} too, and that could not be undone: stop "
            f"{state.id} "
            f"yourself, or take {because.name} off the list."
        )
    return Step(
        state.id,
        f"{state.id} stops, because it needs {because.name} (was {state.summary}).",
        stop=True,
        ours=True,
    )


def _again(state: UnitState, entry: Entry) -> Step:
    """What an unlisted unit that an earlier run changed needs now."""
    if entry.did == ("stop",):
        if state.running:
            return Step(state.id, f"{state.id} stops, because it needs {entry.because}.", stop=True, ours=True)
        return Step(state.id, f"{state.id} is stopped already, because it needs {entry.because}.", ours=True)
    return decide(state, entry)


@dataclass(frozen=True)
class Plan:
    """What pruning does, unit by unit."""

    steps: tuple[Step, ...]
    states: t.Mapping[str, UnitState]  # of every unit in the steps, by its name in them
    because: t.Mapping[str, str]

    @property
    def changed(self) -> tuple[Step, ...]:
        return tuple(step for step in self.steps if step.changes)


def plan_prune(
    option: str,
    listed: t.Sequence[str],
    entries: t.Mapping[str, Entry],
    allowed: t.Collection[str],
    look: t.Callable[[t.Sequence[str]], t.Mapping[str, UnitState]],
) -> Plan:
    """The whole plan. `look` asks systemd; it is called once, and again only for units that changes drag along."""
    check_protected(option, listed, allowed)
    before = [name for name, entry in entries.items() if entry.because in listed and name not in listed]
    asked = [name for name in (*listed, *before) if not is_template(name)]
    seen = dict(look(asked)) if asked else {}
    steps: dict[str, Step] = {}
    states: dict[str, UnitState] = {}
    because: dict[str, str] = {}
    for index, name in enumerate(listed):
        if is_template(name):
            stem, _at, kind = name.partition("@.")
            steps[name] = Step(
                name, f"{name} is a template; name its instances ({stem}@NAME.{kind}) instead; left alone."
            )
            continue
        state = seen[name]
        pattern = protection(state.names, allowed)
        if pattern:
            raise ValueError(
                f"{option}[{index}] {name!r} is another name of {state.id!r}, which is protected "
                f"({pattern}): the node "
                f"needs it. Take it off the list, or name it in allow_protected as well if you are sure."
            )
        if state.id != name:
            steps[name] = Step(name, f"{name} is another name of {state.id}, which is handled under that name.")
        if state.id not in states:
            states[state.id] = state
            steps[state.id] = decide(state, entries.get(state.id))
    for name in before:
        state = seen[name]
        if state.id not in states:
            states[state.id] = state
            steps[state.id] = _again(state, entries[name])
            because[state.id] = entries[name].because
    pending = [step for step in steps.values() if step.changes]
    while pending:
        known = {alias for state in states.values() for alias in state.names} | set(steps)
        causes: dict[str, Step] = {}
        for step in pending:
            cause = states[step.name]
            starters = cause.triggers if step.mask or step.disable else ()
            for name in (*starters, *(cause.dependents if step.stop else ())):
                if name not in known and not name.endswith((".target", ".slice")):
                    causes.setdefault(name, step)
        found = look(list(causes)) if causes else {}
        pending = []
        for name, step in causes.items():
            state = found[name]
            if state.id in states:
                continue
            new = follow(name, state, step, states[step.name])
            pattern = protection(state.names, allowed)
            if pattern and new.changes:
                raise ValueError(
                    f"pruning {step.name} would take {state.id} with it, which is protected "
                    f"({pattern}): the node needs "
                    f"it. Take {step.name} off the list, or name {state.id} in allow_protected if you "
                    "are sure."
                )
            steps[state.id] = new
            states[state.id] = state
            because[state.id] = step.name
            if new.changes:
                pending.append(new)
    return Plan(tuple(steps.values()), states, because)


def merge(entry: Entry | None, step: Step, state: UnitState, because: str) -> Entry:
    """The journal entry after a step. How the unit was found is what the first run saw, not a later one."""
    if entry is None:
        return Entry(state.file, state.active, step.did, because)
    return replace(entry, did=tuple(dict.fromkeys((*entry.did, *step.did))))


def undo(name: str, entry: Entry, state: UnitState) -> Undo:
    """How a unit comes back to what the journal says."""
    masked = state.masked and state.file != "masked-runtime"
    unmask = "mask" in entry.did and masked
    enable = "disable" in entry.did and state.file == "disabled"
    gone = state.load == "not-found"
    start = entry.active in RUNNING and not state.running and not gone
    acts = [act for act, wanted in (("unmasked", unmask), ("enabled", enable), ("started", start)) if wanted]
    if gone:
        return Undo(name, f"{name} is not installed any more; nothing to bring back.")
    if not acts:
        return Undo(name, f"{name} is back already ({state.summary}); left alone.")
    was = f"{entry.file or 'loaded'}, {entry.active}"
    sentence = f"{name} is {' and '.join(acts)} (was {was} before it was pruned)."
    return Undo(name, sentence, unmask, enable, start, wait=entry.active != "activating")


def decide_user(name: str, files: t.Mapping[str, str], in_etc: bool, entry: Entry | None) -> Step:
    """What pruning means for a unit of all users' managers; entry is what we did to it before."""
    state = files.get(name)

    def alone(reason: str) -> Step:
        return Step(name, f"user unit {name} {reason}; left alone.")

    if state is None:
        return alone("is not installed on this node")
    if state.startswith("masked"):
        if entry is None:
            return alone("is masked by somebody else")
        return Step(name, f"user unit {name} is pruned already.", ours=True)
    if state in ("alias", "transient", "generated"):
        return alone(f"is {state}: no mask is its own")
    if in_etc:
        return alone("has its file or a link in /etc/systemd/user, so it cannot be masked")
    return Step(
        name,
        f"user unit {name} is masked for all users (was {state}).",
        mask=True,
        ours=True,
    )


@dataclass(frozen=True)
class UserManager:
    """A user's own manager that runs now: somebody is logged in, or lingers."""

    uid: int
    gid: int
    name: str

    def __str__(self) -> str:
        return f"user {self.name} ({self.uid})" if self.name else f"user {self.uid}"


def decide_running(manager: UserManager, state: UnitState, entry: Entry | None) -> Step:
    """What pruning means for a running instance of a unit that is masked for all users, in one user's manager."""
    label = f"{state.id} of {manager}"
    if not state.running:
        return Step(state.id, f"{label} does not run.", ours=entry is not None)
    if state.fragment and not state.fragment.startswith(("/usr/lib/", "/lib/", "/etc/", "/usr/local/", "/run/")):
        return Step(state.id, f"{label} is that user's own ({state.fragment}); left alone.")
    return Step(state.id, f"{label} is stopped (was {state.summary}).", stop=True, ours=True)


def plan_running(
    manager: UserManager,
    masked: t.Sequence[str],
    entries: t.Mapping[str, Entry],
    look: t.Callable[[t.Sequence[str]], t.Mapping[str, UnitState]],
) -> tuple[list[Step], dict[str, UnitState]]:
    """What stops in one user's manager: the running units of `masked`, and the running ones that need them."""
    if not masked:
        return [], {}
    states = dict(look(masked))
    steps = [decide_running(manager, states[name], entries.get(name)) for name in masked]
    stopped = {step.name for step in steps if step.stop}
    wanted = {
        name: state.id
        for state in list(states.values())
        if state.id in stopped
        for name in state.dependents
        if name not in states and name.endswith(KINDS)
    }
    if wanted:
        more = look(list(wanted))
        for name, cause in wanted.items():
            if more[name].running:
                states[name] = more[name]
                sentence = f"{name} of {manager} stops, because it needs {cause} (was {more[name].summary})."
                steps.append(Step(name, sentence, stop=True, ours=True))
    return [step for step in steps if step.stop or "left alone" in step.sentence], states


def undo_user(name: str, files: t.Mapping[str, str]) -> Undo:
    """How a user unit comes back."""
    if files.get(name, "").startswith("masked"):
        return Undo(name, f"user unit {name} is unmasked for all users.", unmask=True)
    return Undo(name, f"user unit {name} is back already; left alone.")


def entries_from(content: t.Mapping[str, t.Any], key: str) -> dict[str, Entry]:
    """The journal's entries of one kind; ValueError when they are not what we write."""
    found = {}
    for name, raw in content.get(key, {}).items():
        try:
            entry = Entry(
                str(raw["file"]),
                str(raw["active"]),
                tuple(str(act) for act in raw["did"]),
                str(raw["because"]),
            )
            check_names(key, [name])
        except (KeyError, TypeError, ValueError):
            raise ValueError(f"the journal's entry for {name!r} is not one that this module writes.") from None
        found[name] = entry
    return found


def entries_to(entries: t.Mapping[str, Entry]) -> dict[str, t.Any]:
    """The entries as the journal stores them."""
    return {
        name: {"file": entry.file, "active": entry.active, "did": list(entry.did), "because": entry.because}
        for name, entry in sorted(entries.items())
    }

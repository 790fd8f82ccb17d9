# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""One systemd unit of the rig: what it should be, what it is, and the steps between.

Private to the collection. The unit carries a stamp of everything that it was made from in its environment. The
stamp of the *running* process is read back from the kernel, so it cannot claim more than what was really started.
"""

from __future__ import annotations

import hashlib
import json
import typing as t
from dataclasses import dataclass

if t.TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

STAMP_VARIABLE = "SPARKRIG_STAMP"

SHOWN_PROPERTIES = (
    "ActiveState",
    "ControlGroup",
    "ExecMainStartTimestampMonotonic",
    "InvocationID",
    "LoadState",
    "MainPID",
    "NRestarts",
    "NeedDaemonReload",
    "Result",
    "SubState",
    "UnitFileState",
)


@dataclass(frozen=True)
class UnitState:
    """What systemd says about one unit."""

    load: str = "not-found"
    active: str = "inactive"
    sub: str = "dead"
    result: str = "success"
    file_state: str = ""
    main_pid: int = 0
    restarts: int = 0
    invocation: str = ""
    control_group: str = ""
    started_monotonic_s: float = 0.0
    needs_reload: bool = False

    @property
    def runs(self) -> bool:
        """Up, or on its way up by itself: systemd will start what is on the disk."""
        return self.active in ("active", "activating", "reloading")

    def as_dict(self) -> dict[str, t.Any]:
        """What modules return."""
        return {
            "load_state": self.load,
            "active_state": self.active,
            "sub_state": self.sub,
            "result": self.result,
            "enabled": self.file_state == "enabled",
            "main_pid": self.main_pid,
            "restarts": self.restarts,
            "invocation_id": self.invocation,
        }


def parse_show(text: str) -> UnitState:
    """The answer of ``systemctl show --property=...`` for one unit."""
    values = dict(line.split("=", 1) for line in text.splitlines() if "=" in line)

    def number(name: str) -> int:
        value = values.get(name, "")
        return int(value) if value.isdigit() else 0

    return UnitState(
        load=values.get("LoadState", "not-found"),
        active=values.get("ActiveState", "inactive"),
        sub=values.get("SubState", "dead"),
        result=values.get("Result", "success"),
        file_state=values.get("UnitFileState", ""),
        main_pid=number("MainPID"),
        restarts=number("NRestarts"),
        invocation=values.get("InvocationID", ""),
        control_group=values.get("ControlGroup", ""),
        started_monotonic_s=number("ExecMainStartTimestampMonotonic") / 1e6,
        needs_reload=values.get("NeedDaemonReload") == "yes",
    )


def stamp_of(content: str, files: Mapping[str, bytes | None], inputs: Sequence[str]) -> str:
    """A digest of everything that a running process of the unit was made from.

    *files* are the environment files by path (None: absent), *inputs* whatever else must lead to a restart.
    """
    made_from = {
        "content": content,
        "files": {path: None if data is None else hashlib.sha256(data).hexdigest() for path, data in files.items()},
        "inputs": list(inputs),
    }
    return hashlib.sha256(json.dumps(made_from, sort_keys=True).encode()).hexdigest()


def with_stamp(content: str, stamp: str) -> str:
    """The text of the unit file: *content* with the stamp as the first line of its [Service] section."""
    lines = content.rstrip("\n").split("\n")
    sections = [index for index, line in enumerate(lines) if line.strip() == "[Service]"]
    if len(sections) != 1:
        raise ValueError(f"the unit has {len(sections)} sections [Service]; it must have one")
    lines.insert(sections[0] + 1, f"Environment={STAMP_VARIABLE}={stamp}")
    return "\n".join(lines) + "\n"


def stamp_in(environ: bytes | None) -> str | None:
    """The stamp in the environment of a process (``/proc/PID/environ``); None when it has none."""
    prefix = STAMP_VARIABLE.encode() + b"="
    for entry in (environ or b"").split(b"\0"):
        if entry.startswith(prefix):
            return entry[len(prefix) :].decode("ascii", "replace")
    return None


def wedged(state: UnitState, age_s: float, patience_s: float) -> bool:
    """Whether a service that does not answer will not come up by itself any more.

    One that is in its first start within *patience_s* may just be loading. One that already died, or that takes longer,
    most likely waits for something that its predecessor left behind, such as a GPU that Ray still counts as taken.
    """
    if state.load == "not-found" or state.active == "inactive":
        return False
    return state.active == "failed" or state.restarts > 0 or age_s > patience_s


def start_step(
    name: str,
    now: UnitState,
    running_stamp: str | None,
    stamp: str,
    file_differs: bool,
    forced: bool,
) -> tuple[str, str]:
    """What brings the unit up with what it should be made from: (systemctl's verb or "", one sentence).

    *running_stamp* is None when there is no process to ask, as between two tries of a unit that restarts itself.
    """
    if not now.runs:
        why = f"failed ({now.result})" if now.active == "failed" else "not running"
        return "start", f"{name}: started, it was {why}"
    if now.main_pid and running_stamp != stamp:
        why = "it ran with an older unit, environment or runtime"
        return "restart", f"{name}: restarted, {why}"
    if not now.main_pid and file_differs:
        return "restart", f"{name}: restarted, it was about to start with an older unit, environment or runtime"
    if forced:
        return "restart", f"{name}: restarted, what it depends on was started anew"
    return "", f"{name}: left running (process {now.main_pid}), nothing that it was made from has changed"

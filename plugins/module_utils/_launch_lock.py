# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who is launching: one controller at a time, by a small file on every node.

Private to the collection. The file lies in /run, so a reboot forgets it. A holder whose process is gone from the
controller that asks now is taken over at once; one of another controller when its lease has run out.
"""

from __future__ import annotations

import hashlib
import json
import typing as t
from dataclasses import asdict, dataclass

if t.TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

LOCK = "/run/sparkrig/launch.lock"


@dataclass(frozen=True)
class Holder:
    """A run on a controller. *process* is "PID:START", which no other process of that boot ever is."""

    who: str
    controller: str
    process: str
    what: str
    since: float = 0.0
    until: float = 0.0

    @property
    def token(self) -> str:
        """What tells one run from every other."""
        return hashlib.sha256(f"{self.controller} {self.process}".encode()).hexdigest()[:16]

    def text(self) -> str:
        """What is in the file."""
        return json.dumps(asdict(self), sort_keys=True) + "\n"


def parse_holder(text: str | None) -> Holder | None:
    """What the file says; None for no file, and for one that nobody can read."""
    if not text:
        return None
    try:
        return Holder(**json.loads(text))
    except (TypeError, ValueError):
        return None


def age(seconds: float) -> str:
    """A time that has passed, for a person."""
    return f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"


def holder_sentence(holder: Holder, now: float) -> str:
    """Who launches, in words."""
    left = holder.until - now
    lease = f"its lease ends in {age(left)}" if left > 0 else "its lease has run out"
    return (
        f"{holder.who} runs {holder.what} here since {age(now - holder.since)}"
        f" (process {holder.process.split(':')[0]}, {lease})"
    )


def may_take(present: Holder | None, wanted: Holder, alive: Sequence[str] | None, now: float) -> tuple[bool, str]:
    """(whether *wanted* may take the lock, why in words).

    *alive* are the processes of the controller that asks, None when it cannot tell.
    """
    if present is None:
        return True, "free"
    if present.token == wanted.token:
        return True, "held already"
    if present.controller == wanted.controller and alive is not None and present.process not in alive:
        return True, f"taken over from {present.who}: process {present.process.split(':')[0]} there is gone"
    if present.until <= now:
        return True, f"taken over from {present.who}: its lease has run out"
    return False, holder_sentence(present, now)


def holder_of(option: Mapping[str, t.Any]) -> tuple[Holder, list[str] | None]:
    """The option `holder` of the module, as the lookup `controller` gives it; ValueError for what is none."""
    missing = [key for key in ("who", "controller", "process") if not option.get(key)]
    if missing:
        raise ValueError(f"the holder has no '{missing[0]}'; lookup('sparkrig.serving.controller') gives one")
    alive = option.get("alive")
    holder = Holder(
        str(option["who"]), str(option["controller"]), str(option["process"]), str(option.get("what") or "a playbook")
    )
    return holder, None if alive is None else [str(item) for item in alive]

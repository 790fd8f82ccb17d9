# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a module again and again until what it looks at is ready, and show meanwhile what is going on."""

from __future__ import annotations

import re
import time
import typing as t

from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

_OPTIONS: dict[str, tuple[type, ...]] = {
    "module": (str,),
    "args": (dict,),
    "what": (str,),
    "timeout_s": (int,),
    "interval_s": (int, float),
    "report_s": (int, float),
    "advice": (str,),
}
_DEFAULTS: dict[str, t.Any] = {
    "args": {},
    "interval_s": 2,
    "report_s": 10,
    "advice": "Look at the journal of the unit on that node.",
}
_REQUIRED = ("module", "what", "timeout_s")


def progress(host: str, message: str, waited_s: float, timeout_s: float) -> str:
    """The line that a person sees."""
    return f"{host}: {message}, {waited_s:.0f} s of at most {timeout_s:.0f} s"


def timeout_sentence(host: str, what: str, message: str, timeout_s: float, advice: str) -> str:
    """What, where, seen, needed, what to do."""
    return (
        f"{what[:1].upper()}{what[1:]} on {host} is not ready after {timeout_s:.0f} s; last seen: {message}. {advice}"
    )


class ActionModule(ActionBase):
    """The action."""

    TRANSFERS_FILES = False
    _supports_check_mode = True
    _VALID_ARGS = frozenset(_OPTIONS)

    def _options(self) -> dict[str, t.Any]:
        given = self._task.args
        for name in _REQUIRED:
            if given.get(name) is None:
                raise AnsibleActionFail(f"wait_for_state needs the option '{name}'.")
        for name, value in given.items():
            if not isinstance(value, _OPTIONS[name]) or isinstance(value, bool):
                wanted = " or ".join(kind.__name__ for kind in _OPTIONS[name])
                raise AnsibleActionFail(f"wait_for_state: '{name}' is {value!r}; it must be of type {wanted}.")
        return {**_DEFAULTS, **given}

    def run(self, tmp: str | None = None, task_vars: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
        """Ask, show, pause; until it is ready, failed or the time is over."""
        result: dict[str, t.Any] = super().run(tmp, task_vars)
        options = self._options()
        host = (task_vars or {}).get("inventory_hostname", "?")
        if self._task.check_mode:
            return {
                **result,
                "changed": False,
                "skipped": True,
                "waited_s": 0.0,
                "state": {},
                "msg": f"Check mode starts nothing, so {options['what']} on {host} was not waited for.",
            }
        begin = time.monotonic()
        shown_at = begin
        shown = ""
        while True:
            state = self._execute_module(
                module_name=options["module"], module_args=options["args"], task_vars=task_vars
            )
            now = time.monotonic()
            waited = now - begin
            answer = {**result, "changed": False, "waited_s": round(waited, 1), "state": state}
            if state.get("failed") or state.get("unreachable"):
                return {**answer, "failed": True, "msg": state.get("msg") or f"{options['module']} failed on {host}."}
            if state.get("ready"):
                return answer
            message = str(state.get("message") or "not ready")
            if state.get("failed_state"):
                sentence = str(state.get("sentence") or message)
                text = f"{sentence}. That is why {options['what']} on {host} does not come up."
                return {**answer, "failed": True, "msg": text}
            if waited >= options["timeout_s"]:
                text = timeout_sentence(host, options["what"], message, options["timeout_s"], options["advice"])
                return {**answer, "failed": True, "msg": text}
            # Numbers move all the time; only other words are news before it is time to report again.
            words = re.sub(r"[0-9.,]+", "", message)
            if words != shown or now - shown_at >= options["report_s"]:
                self._display.display(progress(host, message, waited, options["timeout_s"]))
                shown, shown_at = words, now
            time.sleep(options["interval_s"])

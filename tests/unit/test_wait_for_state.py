# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Action wait_for_state with a module and a clock that are not real."""

from __future__ import annotations

import typing as t

import pytest
from ansible.errors import AnsibleActionFail
from ansible.plugins.action import ActionBase

from ansible_collections.sparkrig.serving.plugins.action import wait_for_state

OPTIONS = {"module": "sparkrig.serving.serving_state", "what": "the engine", "timeout_s": 300}


class Clock:
    """Every question takes a second, every pause what it takes."""

    def __init__(self) -> None:
        self.now = 1000.0

    def monotonic(self) -> float:
        return self.now

    def sleep(self, seconds: float) -> None:
        self.now += seconds


class Task:
    def __init__(self, args: dict[str, t.Any], check_mode: bool) -> None:
        self.args, self.check_mode = args, check_mode


class Screen:
    def __init__(self) -> None:
        self.lines: list[str] = []

    def display(self, line: str) -> None:
        self.lines.append(line)


class Waiting:
    """The action with what surrounds it replaced."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, states: list[dict[str, t.Any]]) -> None:
        self.clock, self.screen, self.asked = Clock(), Screen(), 0
        self.states = states
        monkeypatch.setattr(wait_for_state, "time", self.clock)
        monkeypatch.setattr(ActionBase, "run", lambda *_args, **_more: {})

    def answer(self, **_options: t.Any) -> dict[str, t.Any]:
        self.clock.now += 1
        self.asked += 1
        return self.states[min(self.asked, len(self.states)) - 1]

    def run(self, check_mode: bool = False, **options: t.Any) -> dict[str, t.Any]:
        # Built without Ansible's own machinery, so any stand-in will do.
        action: t.Any = wait_for_state.ActionModule.__new__(wait_for_state.ActionModule)
        action._task = Task({**OPTIONS, **options}, check_mode)
        action._display = self.screen
        action._execute_module = self.answer
        result: dict[str, t.Any] = action.run(None, {"inventory_hostname": "spark1"})
        return result


def test_it_shows_news_at_once_and_the_same_every_ten_seconds(monkeypatch: pytest.MonkeyPatch) -> None:
    loading = {"ready": False, "message": "loading weights"}
    waiting = Waiting(monkeypatch, [{"ready": False, "message": "starting"}, *[loading] * 5, {"ready": True}])
    result = waiting.run()
    assert waiting.screen.lines == [
        "spark1: starting, 1 s of at most 300 s",
        "spark1: loading weights, 4 s of at most 300 s",
        "spark1: loading weights, 16 s of at most 300 s",
    ]
    assert (result["changed"], result["waited_s"], result["state"]) == (False, 19.0, {"ready": True})
    assert "failed" not in result


def test_what_is_ready_is_not_waited_for(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting(monkeypatch, [{"ready": True}])
    assert waiting.run()["waited_s"] == 1.0
    assert (waiting.asked, waiting.screen.lines) == (1, [])


def test_a_state_that_waiting_cannot_cure_ends_it_at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    states = [{"ready": False, "failed_state": True, "sentence": "ValueError: no room (x.service: it died)"}]
    result = Waiting(monkeypatch, states).run()
    assert result["failed"]
    assert (
        result["msg"] == "ValueError: no room (x.service: it died). That is why the engine on spark1 does not come up."
    )


def test_the_end_of_the_time_says_what_was_seen_and_what_to_do(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting(monkeypatch, [{"ready": False, "message": "loading weights"}])
    result = waiting.run(timeout_s=5, advice="Look.")
    assert result["failed"]
    assert result["msg"] == "The engine on spark1 is not ready after 5 s; last seen: loading weights. Look."
    assert waiting.asked == 3


@pytest.mark.parametrize("answer", [{"failed": True, "msg": "broken"}, {"unreachable": True, "msg": "broken"}])
def test_a_module_that_fails_fails(monkeypatch: pytest.MonkeyPatch, answer: dict[str, t.Any]) -> None:
    result = Waiting(monkeypatch, [answer]).run()
    assert (result["failed"], result["msg"]) == (True, "broken")


def test_a_dry_run_waits_for_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = Waiting(monkeypatch, [])
    result = waiting.run(check_mode=True)
    assert (result["skipped"], result["changed"], waiting.asked) == (True, False, 0)
    assert result["msg"] == "Check mode starts nothing, so the engine on spark1 was not waited for."


@pytest.mark.parametrize(
    ("options", "sentence"),
    [
        ({"what": None}, "wait_for_state needs the option 'what'."),
        ({"timeout_s": "5"}, "wait_for_state: 'timeout_s' is '5'; it must be of type int."),
        ({"timeout_s": True}, "wait_for_state: 'timeout_s' is True; it must be of type int."),
        ({"interval_s": "x"}, "wait_for_state: 'interval_s' is 'x'; it must be of type int or float."),
    ],
)
def test_options_are_checked(monkeypatch: pytest.MonkeyPatch, options: dict[str, t.Any], sentence: str) -> None:
    with pytest.raises(AnsibleActionFail) as error:
        Waiting(monkeypatch, []).run(**options)
    assert error.value.message == sentence

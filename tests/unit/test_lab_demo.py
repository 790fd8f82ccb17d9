# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import typing as t

import pytest

from lab.demo import Progress


def event(kind: str, second: int, **data: t.Any) -> dict[str, t.Any]:
    return {"event": kind, "created": f"2026-01-01T00:00:{second:02d}.000000+00:00", "event_data": data}


def test_seconds_are_booked_to_the_role_of_the_task() -> None:
    progress = Progress()
    progress.take(event("playbook_on_task_start", 0, role="sparkrig.serving.profile", name="Read"))
    progress.take(event("playbook_on_task_start", 2, role="sparkrig.serving.runtime", name="Unpack"))
    progress.take(event("playbook_on_task_start", 5, role="sparkrig.serving.runtime", name="Switch"))
    progress.take(event("playbook_on_stats", 9, changed={"spark1": 2, "spark2": 1}))
    assert progress.seconds_by_role == {"profile": 2.0, "runtime": 7.0}
    assert progress.changed_by_host == {"spark1": 2, "spark2": 1}


def test_facts_are_kept_by_host() -> None:
    progress = Progress()
    progress.take(event("runner_on_ok", 0, host="spark1", res={"ansible_facts": {"a_result": {"x": 1}}}))
    progress.take(event("runner_on_ok", 1, host="spark1", res={"ansible_facts": {"b_result": 2}}))
    assert progress.facts == {"spark1": {"a_result": {"x": 1}, "b_result": 2}}


def test_failures_keep_their_own_words() -> None:
    progress = Progress()
    progress.take(event("runner_on_failed", 0, host="spark2", res={"msg": "it does not fit"}))
    progress.take(event("runner_on_failed", 0, host="spark2", res={"msg": "never mind"}, ignore_errors=True))
    assert progress.failures == ["spark2: it does not fit"]


def test_a_long_step_shows_that_it_is_alive(capsys: pytest.CaptureFixture[str]) -> None:
    progress = Progress()
    progress.take(event("playbook_on_task_start", 0, role="sparkrig.serving.runtime", name="Unpack"))
    capsys.readouterr()
    progress.heartbeat()
    assert capsys.readouterr().out == ""
    progress.last_spoken -= 11
    progress.task_started -= 31
    progress.heartbeat()
    assert "runtime: Unpack: still at it, 31 s" in capsys.readouterr().out

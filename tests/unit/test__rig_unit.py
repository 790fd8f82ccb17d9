# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A unit's stamp, and the step that it needs."""

from __future__ import annotations

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._rig_unit import (
    UnitState,
    parse_show,
    stamp_in,
    stamp_of,
    start_step,
    wedged,
    with_stamp,
)

UNIT = "[Unit]\nDescription=x\n\n[Service]\nExecStart=/bin/true\n"
NAME = "x.service"


def test_what_systemd_shows() -> None:
    state = parse_show(
        "ActiveState=active\nControlGroup=/system.slice/x.service\nExecMainStartTimestampMonotonic=1500000\n"
        "InvocationID=abc\nLoadState=loaded\nMainPID=7\nNRestarts=2\nNeedDaemonReload=yes\nResult=success\n"
        "SubState=running\nUnitFileState=enabled\n"
    )
    assert state == UnitState(
        load="loaded",
        active="active",
        sub="running",
        result="success",
        file_state="enabled",
        main_pid=7,
        restarts=2,
        invocation="abc",
        control_group="/system.slice/x.service",
        started_monotonic_s=1.5,
        needs_reload=True,
    )
    assert parse_show("LoadState=not-found\nNRestarts=[not set]\n") == UnitState()


def test_every_input_changes_the_stamp() -> None:
    base = stamp_of(UNIT, {"/a": b"1", "/b": None}, ["digest"])
    assert base == stamp_of(UNIT, {"/b": None, "/a": b"1"}, ["digest"])
    others = [
        stamp_of(UNIT + "#", {"/a": b"1", "/b": None}, ["digest"]),
        stamp_of(UNIT, {"/a": b"2", "/b": None}, ["digest"]),
        stamp_of(UNIT, {"/a": b"1", "/b": b""}, ["digest"]),
        stamp_of(UNIT, {"/a": b"1"}, ["digest"]),
        stamp_of(UNIT, {"/a": b"1", "/b": None}, ["other"]),
    ]
    assert len({base, *others}) == 6


def test_the_stamp_stands_in_the_service_section_and_in_the_process() -> None:
    text = with_stamp(UNIT, "s1")
    assert text == "[Unit]\nDescription=x\n\n[Service]\nEnvironment=SPARKRIG_STAMP=s1\nExecStart=/bin/true\n"
    assert stamp_in(b"A=1\0SPARKRIG_STAMP=s1\0B=2\0") == "s1"
    assert stamp_in(b"A=1\0XSPARKRIG_STAMP=s1\0") is None
    assert stamp_in(None) is None


@pytest.mark.parametrize("text", ["[Unit]\n", UNIT + "[Service]\n"])
def test_a_unit_has_one_service_section(text: str) -> None:
    with pytest.raises(ValueError, match=r"^the unit has [02] sections \[Service\]; it must have one$"):
        with_stamp(text, "s")


RUNS = UnitState(load="loaded", active="active", sub="running", main_pid=7)
BETWEEN = UnitState(load="loaded", active="activating", sub="auto-restart")


@pytest.mark.parametrize(
    ("state", "running", "differs", "forced", "verb", "words"),
    [
        (UnitState(), None, True, False, "start", "it was not running"),
        (UnitState(active="failed", result="exit-code"), None, False, False, "start", "it was failed (exit-code)"),
        (RUNS, "new", False, False, "", "left running (process 7)"),
        (RUNS, "old", False, False, "restart", "older unit"),
        (RUNS, None, False, False, "restart", "older unit"),
        (RUNS, "new", False, True, "restart", "what it depends on was started anew"),
        (BETWEEN, None, False, False, "", "left running"),
        (BETWEEN, None, True, False, "restart", "about to start"),
    ],
)
def test_the_step_that_a_unit_needs(
    state: UnitState, running: str | None, differs: bool, forced: bool, verb: str, words: str
) -> None:
    step, sentence = start_step(NAME, state, running, "new", differs, forced)
    assert step == verb
    assert words in sentence


@pytest.mark.parametrize(
    ("state", "age_s", "stuck"),
    [
        (UnitState(), 0.0, False),
        (UnitState(load="loaded", active="inactive"), 9999.0, False),
        (RUNS, 300.0, False),
        (RUNS, 301.0, True),
        (UnitState(load="loaded", active="active", main_pid=7, restarts=1), 5.0, True),
        (UnitState(load="loaded", active="failed"), 5.0, True),
    ],
)
def test_only_what_will_not_come_up_by_itself_is_stuck(state: UnitState, age_s: float, stuck: bool) -> None:
    assert wedged(state, age_s, 300.0) is stuck

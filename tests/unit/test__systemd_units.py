# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Unit names, decisions and plans, on what systemd on a lab node really answered."""

from __future__ import annotations

import re
import typing as t
from pathlib import Path

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.sparkrig.serving.plugins.module_utils._systemd_units import (
    PROTECTED,
    Entry,
    UnitState,
    check_names,
    check_protected,
    decide,
    decide_user,
    entries_from,
    entries_to,
    graphical_sessions,
    merge,
    parse_show,
    parse_user_files,
    plan_prune,
    protection,
    undo,
    undo_user,
)

ROOT = Path(__file__).parents[2]
RECORDED = ROOT / "tests/fixtures/systemd"
TABLE: list[dict[str, t.Any]] = yaml.safe_load((ROOT / "roles/os_prune/vars/main.yml").read_text())["__os_prune_table"]
# In the order of the recording, which has one block a unit.
SEED: list[str] = re.findall(r"^Id=(.+)$", (RECORDED / "show_found.txt").read_text(), re.MULTILINE)


def unit(name: str, **changes: t.Any) -> UnitState:
    fields: dict[str, t.Any] = {
        "name": name,
        "id": name,
        "names": (name,),
        "load": "loaded",
        "file": "enabled",
        "active": "active",
        "fragment": f"/lib/systemd/system/{name}",
        "triggers": (),
        "dependents": (),
    }
    return UnitState(**{**fields, **changes})


ABSENT = {"load": "not-found", "file": "", "active": "inactive", "fragment": ""}
MASKED = {"load": "masked", "file": "masked", "active": "inactive", "fragment": "/etc/systemd/system/x"}


class Look:
    """Answers for systemd, and remembers what it was asked."""

    def __init__(self, *states: UnitState) -> None:
        self.states = {alias: state for state in states for alias in state.names}
        self.asked: list[list[str]] = []

    def __call__(self, names: t.Sequence[str]) -> dict[str, UnitState]:
        self.asked.append(list(names))
        return {name: self.states.get(name) or unit(name, **ABSENT) for name in names}


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("cups*.service", "units[1] 'cups*.service' is a pattern; name each unit, patterns are not expanded."),
        ("a;reboot.service", "units[1] 'a;reboot.service' is not a unit name; use letters"),
        ("$(id).service", "units[1] '$(id).service' is not a unit name; use letters"),
        ("../x.service", "units[1] '../x.service' is not a unit name; use letters"),
        ("-x.service", "units[1] '-x.service' is not a unit name; use letters"),
        ("", "units[1] '' is not a unit name; use letters"),
        ("cups", "units[1] 'cups' does not say which type of unit it is; write 'cups.service', for example."),
        ("graphical.target", "units[1] 'graphical.target' is a target; only service, socket, path, timer units"),
        ("x.mount", "units[1] 'x.mount' is a mount; only service, socket, path, timer units can be pruned."),
    ],
)
def test_a_name_that_is_none_is_refused_with_its_index(name: str, text: str) -> None:
    with pytest.raises(ValueError, match="^" + re.escape(text)):
        check_names("units", ["cups.service", name])


def test_names_are_taken_once_in_their_order() -> None:
    names = ["b.service", "a.socket", "b.service", "snap.x.y.service", "getty@tty1.service", r"dev-disk\x2dby.service"]
    assert check_names("units", names) == tuple(dict.fromkeys(names))


@given(st.text())
def test_whatever_passes_as_a_name_is_harmless(name: str) -> None:
    try:
        (passed,) = check_names("units", [name])
    except ValueError as error:
        assert "units[0]" in str(error)
    else:
        assert re.fullmatch(r"[A-Za-z0-9_][A-Za-z0-9:_.@\\-]*\.(service|socket|path|timer)", passed)


@pytest.mark.parametrize(
    "name",
    [
        "ssh.service",
        "sshd.service",
        "ssh.socket",
        "NetworkManager.service",
        "wpa_supplicant.service",
        "systemd-resolved.service",
        "systemd-timesyncd.service",
        "chronyd.service",
        "docker.service",
        "docker.socket",
        "containerd.service",
        "polkit.service",
        "nvidia-persistenced.service",
        "rdma-load-modules@rdma.service",
        "multipathd.service",
        "dbus.service",
        "sparkrig-ray.service",
    ],
)
def test_what_a_node_needs_is_protected(name: str) -> None:
    with pytest.raises(ValueError, match=rf"^units\[0\] '{re.escape(name)}' is protected \("):
        check_protected("units", [name], [])
    check_protected("units", [name], [name])


def test_nothing_on_the_seeds_list_is_protected() -> None:
    check_protected("os_prune_units", SEED, [])
    states = parse_show(SEED, (RECORDED / "show_found.txt").read_text())
    assert [name for state in states.values() for name in state.names if protection([name], [])] == []
    assert len(PROTECTED) == len(set(PROTECTED))


def test_recorded_states_are_read() -> None:
    states = parse_show(SEED, (RECORDED / "show_found.txt").read_text())
    assert list(states) == SEED
    assert states["gnome-remote-desktop.service"].summary == "not installed"
    assert set(states["cups.service"].triggers) == {"cups.path", "cups.socket"}
    assert set(states["cups.service"].dependents) == {"cups-browsed.service", "cups.socket", "cups.path"}
    assert set(states["avahi-daemon.service"].names) == {"avahi-daemon.service", "dbus-org.freedesktop.Avahi.service"}
    assert states["colord.service"].file == "static"


def test_an_answer_that_is_cut_off_is_an_error() -> None:
    with pytest.raises(ValueError, match="^systemctl show answered for 1 of 2 units$"):
        parse_show(["a.service", "b.service"], "Id=a.service\nLoadState=loaded\nActiveState=active\n")
    with pytest.raises(ValueError, match="^systemctl show of a.service lacks LoadState$"):
        parse_show(["a.service"], "Id=a.service\nActiveState=active\n")


@pytest.mark.parametrize(
    ("changes", "did", "sentence"),
    [
        ({}, ("stop", "mask"), "x.service is stopped and masked (was enabled, active)."),
        ({"active": "inactive"}, ("mask",), "x.service is masked (was enabled, inactive)."),
        ({"active": "failed"}, ("mask",), "x.service is masked (was enabled, failed)."),
        ({"active": "deactivating"}, ("mask",), "x.service is masked (was enabled, deactivating)."),
        ({"active": "activating"}, ("stop", "mask"), "x.service is stopped and masked (was enabled, activating)."),
        ({"file": "static", "active": "inactive"}, ("mask",), "x.service is masked (was static, inactive)."),
        (
            {"file": "generated", "fragment": "/run/systemd/generator.late/x.service"},
            ("stop", "mask"),
            "x.service is stopped and masked (was generated, active).",
        ),
        (
            {"file": "generated", "fragment": "/run/systemd/generator.early/x.service"},
            (),
            "x.service comes from an early generator, which no mask overrides; left alone.",
        ),
        (
            {"file": "transient", "fragment": "/run/systemd/transient/x.service"},
            (),
            "x.service is transient (started by hand), so stopping it could not be undone; left alone.",
        ),
        (ABSENT, (), "x.service is not installed on this node; left alone."),
        ({"load": "bad-setting"}, (), "x.service cannot be loaded by systemd (LoadState bad-setting); left alone."),
        (MASKED, (), "x.service is masked by somebody else; left alone."),
        ({**MASKED, "active": "active"}, (), "x.service is masked by somebody else and still running; left alone."),
        (
            {**MASKED, "file": "masked-runtime"},
            (),
            "x.service is masked until the next boot by somebody else; left alone.",
        ),
        (
            {"fragment": "/etc/systemd/system/x.service"},
            ("stop", "disable"),
            "x.service is stopped and disabled, not masked, because its file is in /etc (was enabled, active).",
        ),
        (
            {"fragment": "/etc/systemd/system/x.service", "file": "linked"},
            ("stop",),
            "x.service is stopped, not masked, because its file is in /etc (was linked, active).",
        ),
        (
            {"fragment": "/etc/systemd/system/x.service", "file": "disabled", "active": "inactive"},
            (),
            "x.service is stopped and not enabled, and its file is in /etc, so it cannot be masked; left alone.",
        ),
    ],
)
def test_every_state_has_its_decision(changes: dict[str, t.Any], did: tuple[str, ...], sentence: str) -> None:
    step = decide(unit("x.service", **changes), None)
    assert (step.did, step.sentence, step.ours) == (did, sentence, bool(did))


def test_what_we_pruned_stays_ours() -> None:
    entry = Entry("enabled", "active", ("stop", "mask"), "")
    assert decide(unit("x.service", **MASKED), entry).sentence == "x.service is pruned already."
    assert decide(unit("x.service", **{**MASKED, "active": "active"}), entry).did == ("stop",)
    local = unit("x.service", fragment="/etc/systemd/system/x.service", file="disabled", active="inactive")
    assert decide(local, Entry("enabled", "active", ("stop", "disable"), "")).ours


def test_one_question_answers_for_any_number_of_units() -> None:
    look = Look(*(unit(f"u{n}.service") for n in range(40)))
    plan = plan_prune("units", [f"u{n}.service" for n in range(40)], {}, [], look)
    assert len(look.asked) == 1
    assert len(plan.changed) == 40


def test_an_alias_is_handled_under_its_own_name() -> None:
    real = unit("bluetooth.service", names=("bluetooth.service", "dbus-org.bluez.service"))
    plan = plan_prune("units", ["dbus-org.bluez.service"], {}, [], Look(real))
    assert [step.name for step in plan.changed] == ["bluetooth.service"]
    assert [step.sentence for step in plan.steps] == [
        "dbus-org.bluez.service is another name of bluetooth.service, which is handled under that name.",
        "bluetooth.service is stopped and masked (was enabled, active).",
    ]


def test_an_alias_of_a_protected_unit_is_refused() -> None:
    real = unit("systemd-logind.service", names=("systemd-logind.service", "dbus-org.freedesktop.login1.service"))
    with pytest.raises(
        ValueError, match=r"^units\[0\] 'dbus-org.freedesktop.login1.service' is another name of 'systemd-l"
    ):
        plan_prune("units", ["dbus-org.freedesktop.login1.service"], {}, [], Look(real))


def test_a_template_is_not_asked_for() -> None:
    look = Look(unit("getty@tty1.service"))
    plan = plan_prune("units", ["getty@.service", "getty@tty1.service"], {}, [], look)
    assert look.asked == [["getty@tty1.service"]]
    assert plan.steps[0].sentence == (
        "getty@.service is a template; name its instances (getty@NAME.service) instead; left alone."
    )


def test_what_would_start_a_unit_again_goes_with_it() -> None:
    look = Look(
        unit("cups.service", triggers=("cups.socket", "cups.path"), dependents=("cups.socket",)),
        unit("cups.socket"),
        unit("cups.path", **MASKED),
    )
    plan = plan_prune("units", ["cups.service"], {}, [], look)
    assert look.asked == [["cups.service"], ["cups.socket", "cups.path"]]
    assert {step.name: step.did for step in plan.steps} == {
        "cups.service": ("stop", "mask"),
        "cups.socket": ("stop", "mask"),
        "cups.path": (),
    }
    assert plan.because["cups.socket"] == "cups.service"
    assert plan.steps[1].sentence.endswith("(was enabled, active), as it would start cups.service again.")


def test_what_systemd_stops_along_is_known() -> None:
    look = Look(
        unit("db.service", dependents=("app.service", "idle.service", "multi-user.target")),
        unit("app.service", dependents=("front.service",)),
        unit("front.service"),
        unit("idle.service", active="inactive"),
    )
    plan = plan_prune("units", ["db.service"], {}, [], look)
    assert {step.name: step.did for step in plan.steps} == {
        "db.service": ("stop", "mask"),
        "app.service": ("stop",),
        "front.service": ("stop",),
        "idle.service": (),
    }


def test_a_protected_unit_is_not_dragged_along() -> None:
    look = Look(unit("db.service", dependents=("docker.service",)), unit("docker.service"))
    with pytest.raises(ValueError, match=r"^pruning db.service would take docker.service with it, which is protected"):
        plan_prune("units", ["db.service"], {}, [], look)
    assert plan_prune("units", ["db.service"], {}, ["docker.service"], look).changed[1].name == "docker.service"


def test_a_mount_is_not_dragged_along() -> None:
    look = Look(unit("db.service", dependents=("srv.mount",)), unit("srv.mount"))
    with pytest.raises(
        ValueError, match=r"^stopping db.service would stop srv.mount too, and that could not be undone"
    ):
        plan_prune("units", ["db.service"], {}, [], look)


def test_a_steady_node_needs_one_question_and_no_change() -> None:
    entries = {
        "cups.service": Entry("enabled", "active", ("stop", "mask"), ""),
        "cups.socket": Entry("enabled", "active", ("stop", "mask"), "cups.service"),
        "app.service": Entry("enabled", "active", ("stop",), "cups.service"),
    }
    look = Look(
        unit("cups.service", **MASKED, triggers=("cups.socket", "cups.path"), dependents=("app.service",)),
        unit("cups.socket", **MASKED),
        unit("app.service", active="inactive"),
    )
    plan = plan_prune("units", ["cups.service"], entries, [], look)
    assert look.asked == [["cups.service", "cups.socket", "app.service"]]
    assert plan.changed == ()
    assert all(step.ours for step in plan.steps)


def test_the_recording_is_of_the_default_tier() -> None:
    tier = [row["unit"] for row in TABLE if row["tier"] in ("minimal", "headless") and "user" not in row]
    assert sorted(tier) == sorted(SEED)


def test_recorded_nodes_are_planned_and_steady() -> None:
    def found(names: t.Sequence[str]) -> dict[str, UnitState]:
        return parse_show(names, (RECORDED / "show_found.txt").read_text())

    def pruned(names: t.Sequence[str]) -> dict[str, UnitState]:
        return parse_show(names, (RECORDED / "show_pruned.txt").read_text())

    plan = plan_prune("units", SEED, {}, [], found)
    entries = {step.name: merge(None, step, plan.states[step.name], "") for step in plan.changed}
    left = {step.name for step in plan.steps} - set(entries)
    assert left == {"gnome-remote-desktop.service", "apport.service"}
    again = plan_prune("units", SEED, entries, [], pruned)
    assert again.changed == ()
    assert {step.name for step in again.steps if step.ours} == set(entries)
    backs = [undo(name, entry, again.states[name]) for name, entry in entries.items()]
    assert all(back.unmask for back in backs)
    assert {back.name for back in backs if back.start} == {
        name for name, entry in entries.items() if entry.active == "active"
    }


def test_the_journal_keeps_what_the_first_run_saw() -> None:
    step = decide(unit("x.service", active="inactive"), None)
    first = Entry("enabled", "active", ("stop", "mask"), "")
    assert merge(first, step, unit("x.service", active="inactive"), "") == first
    assert merge(None, step, unit("x.service", active="inactive"), "y.service") == Entry(
        "enabled", "inactive", ("mask",), "y.service"
    )


@pytest.mark.parametrize(
    ("entry", "now", "acts"),
    [
        (Entry("enabled", "active", ("stop", "mask"), ""), MASKED, (True, False, True)),
        (Entry("static", "inactive", ("mask",), ""), MASKED, (True, False, False)),
        (Entry("enabled", "active", ("stop", "mask"), ""), {}, (False, False, False)),
        (Entry("enabled", "active", ("stop", "mask"), ""), {"active": "inactive"}, (False, False, True)),
        (
            Entry("enabled", "active", ("stop", "disable"), ""),
            {"file": "disabled", "active": "failed"},
            (False, True, True),
        ),
        (Entry("enabled", "active", ("stop",), "y.service"), {"active": "inactive"}, (False, False, True)),
        (Entry("enabled", "active", ("stop", "mask"), ""), ABSENT, (False, False, False)),
        (Entry("enabled", "failed", ("mask",), ""), MASKED, (True, False, False)),
        (Entry("enabled", "active", ("stop",), ""), MASKED, (False, False, True)),
    ],
)
def test_undo_brings_back_what_was_done(entry: Entry, now: dict[str, t.Any], acts: tuple[bool, ...]) -> None:
    back = undo("x.service", entry, unit("x.service", **now))
    assert (back.unmask, back.enable, back.start) == acts
    assert back.sentence.startswith("x.service ")


def test_a_unit_that_never_got_up_is_not_waited_for() -> None:
    back = undo("x.service", Entry("enabled", "activating", ("stop", "mask"), ""), unit("x.service", **MASKED))
    assert (back.start, back.wait) == (True, False)


def test_user_units() -> None:
    files = parse_user_files((RECORDED / "user_files.txt").read_text())
    assert files["pipewire.service"] == "enabled"
    assert decide_user("pipewire.service", files, False, None).sentence == (
        "user unit pipewire.service is masked for all users (was enabled)."
    )
    assert not decide_user("pipewire.service", files, True, None).changes
    assert not decide_user("nosuch.service", files, False, None).changes
    masked = {"pipewire.service": "masked"}
    entry = Entry("enabled", "", ("mask",), "")
    assert decide_user("pipewire.service", masked, True, entry).ours
    assert decide_user("pipewire.service", masked, True, None).sentence.endswith("masked by somebody else; left alone.")
    assert not decide_user("a.service", {"a.service": "alias"}, False, None).changes
    assert undo_user("pipewire.service", masked).unmask
    assert not undo_user("pipewire.service", files).changes


SESSIONS = """\
Id=2
Name=anna
Type=wayland
Class=user
State=active

Id=c1
Name=gdm
Type=wayland
Class=greeter
State=online

Id=7
Name=spark
Type=tty
Class=user
State=active

Id=9
Name=bob
Type=x11
Class=user
State=closing
"""


def test_only_a_person_at_a_desktop_counts() -> None:
    assert graphical_sessions(SESSIONS) == ("anna (wayland session 2)",)
    assert graphical_sessions("") == ()


def test_entries_survive_the_journal() -> None:
    entries = {"a.service": Entry("enabled", "active", ("stop", "mask"), "b.service")}
    assert entries_from({"units": entries_to(entries)}, "units") == entries
    assert entries_from({}, "units") == {}


@pytest.mark.parametrize(
    "raw", [{"a.service": {}}, {"a b": {"file": "", "active": "", "did": [], "because": ""}}, {"a.service": 3}]
)
def test_an_entry_that_is_none_is_refused(raw: dict[str, t.Any]) -> None:
    with pytest.raises(ValueError, match="is not one that this module writes"):
        entries_from({"units": raw}, "units")

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""unit_prune from end to end, against a systemd that keeps states and remembers every command."""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest
from ansible.module_utils.basic import AnsibleModule
from ansible.module_utils.testing import patch_module_args

from ansible_collections.sparkrig.serving.plugins.module_utils import _memory_probe
from ansible_collections.sparkrig.serving.plugins.modules import unit_prune


class FakeSystemd:
    """Enough of systemctl and loginctl: unit states that stop, start, mask and so on really change."""

    def __init__(self) -> None:
        self.units: dict[str, dict[str, str]] = {}
        self.user: dict[str, str] = {}
        self.commands: list[list[str]] = []
        self.sessions = ""
        self.stubborn: set[str] = set()
        self.slow: set[str] = set()
        self.instances: dict[str, FakeSystemd] = {}

    def add(self, name: str, file: str = "enabled", active: str = "active", **more: str) -> None:
        self.units[name] = {
            "Id": name,
            "Names": name,
            "LoadState": "loaded",
            "UnitFileState": file,
            "ActiveState": active,
            "FragmentPath": f"/lib/systemd/system/{name}",
            "TriggeredBy": "",
            "RequiredBy": "",
            "RequisiteOf": "",
            "BoundBy": "",
            "ConsistsOf": "",
            "_file": file,
            **more,
        }

    def state(self, name: str) -> tuple[str, str]:
        return self.units[name]["UnitFileState"], self.units[name]["ActiveState"]

    def verbs(self) -> list[str]:
        return [next(word for word in command[1:] if not word.startswith("-")) for command in self.commands]

    def run_command(self, module: AnsibleModule, argv: list[str], **_more: t.Any) -> tuple[int, str, str]:
        self.commands.append(argv)
        if argv[0] == "/bin/loginctl":
            if argv[1] == "list-sessions":
                return 0, "2 1000 anna seat0\n", ""
            # It takes one property at a time, and prints nothing for a list of them.
            assert "," not in "".join(argv)
            return 0, self.sessions, ""
        if argv[0] == "/bin/setpriv":
            assert _more == {"environ_update": {"XDG_RUNTIME_DIR": f"{unit_prune.RUN_USER}/{argv[1].split('=')[1]}"}}
            return self.instances[argv[1]].run(argv[argv.index("--user") + 1 :])
        if "--global" in argv:
            verb = next(word for word in argv[1:] if not word.startswith("-"))
            return self.run_global(verb, argv[argv.index("--") + 1 :])
        return self.run(argv[1:])

    def run(self, words: list[str]) -> tuple[int, str, str]:
        verb = next(word for word in words if not word.startswith("-"))
        names = words[words.index("--") + 1 :] if "--" in words else []
        if verb == "show":
            missing = {"LoadState": "not-found", "UnitFileState": "", "ActiveState": "inactive"}
            blocks = []
            for name in names:
                fields = self.units.get(name) or {"Id": name, "Names": name, **missing}
                blocks.append("".join(f"{key}={value}\n" for key, value in fields.items() if key[0] != "_"))
            return 0, "\n".join(blocks), ""
        for name in names:
            getattr(self, f"do_{verb.replace('-', '_')}")(name, self.units[name])
        return 0, "", ""

    def run_global(self, verb: str, names: list[str]) -> tuple[int, str, str]:
        if verb == "list-unit-files":
            found = [name for name in names if name in self.user]
            return (0 if found else 1), "".join(f"{name} {self.user[name]} enabled\n" for name in found), ""
        for name in names:
            self.user[name] = "masked" if verb == "mask" else "enabled"
        return 0, "", ""

    def do_daemon_reload(self, name: str, unit: dict[str, str]) -> None:
        raise AssertionError("daemon-reload takes no unit")

    def do_stop(self, name: str, unit: dict[str, str]) -> None:
        if name not in self.stubborn and unit["ActiveState"] != "inactive":
            unit["ActiveState"] = "deactivating" if name in self.slow else "inactive"

    def do_start(self, name: str, unit: dict[str, str]) -> None:
        unit["ActiveState"] = "failed" if name in self.stubborn else "active"

    def do_mask(self, name: str, unit: dict[str, str]) -> None:
        unit.update(LoadState="masked", UnitFileState="masked")

    def do_unmask(self, name: str, unit: dict[str, str]) -> None:
        unit.update(LoadState="loaded", UnitFileState=unit["_file"])

    def do_disable(self, name: str, unit: dict[str, str]) -> None:
        unit["UnitFileState"] = "disabled"

    def do_enable(self, name: str, unit: dict[str, str]) -> None:
        unit["UnitFileState"] = "enabled"

    def do_reset_failed(self, name: str, unit: dict[str, str]) -> None:
        unit["ActiveState"] = "inactive"


@pytest.fixture
def systemd(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> FakeSystemd:
    fake = FakeSystemd()
    monkeypatch.setattr(
        AnsibleModule, "run_command", lambda module, argv, **more: fake.run_command(module, argv, **more)
    )
    monkeypatch.setattr(AnsibleModule, "get_bin_path", lambda _module, name, **_more: f"/bin/{name}")
    monkeypatch.setattr(unit_prune, "SETTLE_S", 0.0)
    monkeypatch.setattr(unit_prune, "LOGIND_SESSIONS", "/proc")
    monkeypatch.setattr(unit_prune, "RUN_USER", str(tmp_path / "run-user"))
    # What the processes of this machine hold is no part of these tests.
    monkeypatch.setattr(_memory_probe, "processes", lambda: ([], 0))
    fake.add("cups.service", TriggeredBy="cups.socket", ConsistsOf="cups.socket")
    fake.add("cups.socket")
    fake.add("colord.service", file="static", active="inactive")
    fake.add("theirs.service", file="masked", active="inactive", LoadState="masked")
    fake.add("local.service", FragmentPath="/etc/systemd/system/local.service")
    fake.user["pipewire.service"] = "enabled"
    return fake


class Run:
    """Runs the module and reads its answer."""

    def __init__(self, capsys: pytest.CaptureFixture[str], journal: Path) -> None:
        self.capsys = capsys
        self.journal = journal

    def __call__(self, check: bool = False, **arguments: t.Any) -> dict[str, t.Any]:
        arguments.setdefault("journal", str(self.journal))
        if check:
            arguments["_ansible_check_mode"] = True
        with patch_module_args(arguments), pytest.raises(SystemExit):
            unit_prune.main()
        result: dict[str, t.Any] = json.loads(self.capsys.readouterr().out)
        return result


@pytest.fixture
def run(capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Run:
    return Run(capsys, tmp_path / "journal" / "os_prune.json")


UNITS = ["cups.service", "cups.socket", "colord.service", "theirs.service", "local.service", "apport.service"]


def test_one_command_each_whatever_the_number(systemd: FakeSystemd, run: Run) -> None:
    result = run(units=UNITS, user_units=["pipewire.service", "nosuch.service"])
    assert result["changed"] is True
    assert result["pruned"] == ["colord.service", "cups.service", "cups.socket", "local.service", "pipewire.service"]
    assert sorted(result["left_alone"]) == ["apport.service", "nosuch.service", "theirs.service"]
    assert len(result["actions"]) == 8
    assert systemd.verbs() == [
        "show",
        "list-unit-files",
        "list-sessions",
        "show-session",
        "stop",
        "mask",
        "disable",
        "mask",
        "show",
    ]
    assert systemd.commands[4] == [
        "/bin/systemctl",
        "stop",
        "--no-block",
        "--",
        "cups.service",
        "cups.socket",
        "local.service",
    ]
    assert systemd.commands[5][-3:] == ["cups.service", "cups.socket", "colord.service"]
    assert systemd.state("cups.service") == ("masked", "inactive")
    assert systemd.state("local.service") == ("disabled", "inactive")


def test_the_second_run_only_reads(systemd: FakeSystemd, run: Run) -> None:
    run(units=UNITS, user_units=["pipewire.service"])
    systemd.commands.clear()
    result = run(units=UNITS, user_units=["pipewire.service"])
    assert result["changed"] is False
    assert systemd.verbs() == ["show", "list-unit-files"]
    assert result["pruned"] == ["colord.service", "cups.service", "cups.socket", "local.service", "pipewire.service"]


def test_check_mode_predicts_and_touches_nothing(systemd: FakeSystemd, run: Run) -> None:
    before = json.dumps(systemd.units)
    predicted = run(check=True, units=UNITS, user_units=["pipewire.service"])
    assert json.dumps(systemd.units) == before
    assert not run.journal.exists()
    assert not {"stop", "mask", "disable"} & set(systemd.verbs())
    done = run(units=UNITS, user_units=["pipewire.service"])
    ignored = {"invocation", "evidence"}
    assert {key: predicted[key] for key in predicted if key not in ignored} == {
        key: done[key] for key in done if key not in ignored
    }
    assert done["diff"]["before"].splitlines()[1] == "cups.service: enabled, active"
    assert done["diff"]["after"].splitlines()[1] == "cups.service: masked, inactive"


def test_restored_is_what_was_found_and_twice_harmless(systemd: FakeSystemd, run: Run) -> None:
    before = json.dumps([systemd.units, systemd.user])
    run(units=UNITS, user_units=["pipewire.service"])
    assert run(check=True, state="restored")["changed"] is True
    result = run(state="restored")
    assert result["changed"] is True
    assert json.dumps([systemd.units, systemd.user]) == before
    assert not run.journal.exists()
    assert run(state="restored")["changed"] is False
    assert json.dumps([systemd.units, systemd.user]) == before


def test_the_journal_is_there_before_the_first_change(systemd: FakeSystemd, run: Run) -> None:
    def die(name: str, unit: dict[str, str]) -> None:
        raise KeyboardInterrupt

    systemd.do_mask = die  # type: ignore[method-assign]
    with pytest.raises(KeyboardInterrupt), patch_module_args({"units": UNITS, "journal": str(run.journal)}):
        unit_prune.main()
    assert systemd.state("cups.service") == ("enabled", "inactive")
    del systemd.do_mask
    assert run(units=UNITS)["changed"] is True
    assert run(units=UNITS)["changed"] is False
    run(state="restored")
    assert systemd.state("cups.service") == ("enabled", "active")
    assert systemd.state("colord.service") == ("static", "inactive")


def test_what_is_dragged_along_comes_back_too(systemd: FakeSystemd, run: Run) -> None:
    systemd.add("app.service")
    systemd.units["cups.service"]["RequiredBy"] = "app.service"
    result = run(units=["cups.service"])
    assert result["pruned"] == ["app.service", "cups.service", "cups.socket"]
    assert systemd.state("app.service") == ("enabled", "inactive")
    systemd.commands.clear()
    assert run(units=["cups.service"])["changed"] is False
    assert systemd.verbs() == ["show"]
    run(state="restored")
    assert {systemd.state(name) for name in ("app.service", "cups.service", "cups.socket")} == {("enabled", "active")}


def test_a_shorter_list_says_what_is_still_pruned(systemd: FakeSystemd, run: Run) -> None:
    run(units=["cups.service", "cups.socket", "colord.service"])
    result = run(units=["cups.service", "cups.socket"])
    assert result["changed"] is False
    assert result["actions"][-1] == (
        "colord.service is not listed any more but still pruned by an earlier run; state=restored brings it back."
    )


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        ({"units": ["cups.service", "x;id.service"]}, "units[1] 'x;id.service' is not a unit name"),
        ({"units": ["cups.service", "cups*.service"]}, "units[1] 'cups*.service' is a pattern"),
        ({"units": ["cups.service", "ssh.service"]}, "units[1] 'ssh.service' is protected (ssh*.service)"),
        ({"user_units": ["dbus.service"]}, "user_units[0] 'dbus.service' is protected (dbus.service)"),
    ],
)
def test_bad_input_is_refused_before_anything_runs(
    systemd: FakeSystemd, run: Run, arguments: dict[str, t.Any], said: str
) -> None:
    result = run(**arguments)
    assert result["failed"] is True
    assert result["msg"].startswith(said)
    assert systemd.commands == []


def test_a_foreign_or_edited_journal_changes_nothing(systemd: FakeSystemd, run: Run) -> None:
    run(units=["cups.service"])
    systemd.commands.clear()
    run.journal.write_text(run.journal.read_text().replace("enabled", "disabled"))
    for state in ("pruned", "restored"):
        result = run(state=state, units=["cups.service"])
        assert "was edited, its digest does not fit: nothing was changed" in result["msg"]
    assert systemd.commands == []


DESKTOP = "Id=2\nName=anna\nType=wayland\nClass=user\nState=active\n"


def test_a_desktop_is_not_taken_away_unasked(systemd: FakeSystemd, run: Run) -> None:
    systemd.sessions = DESKTOP
    result = run(units=["cups.service"])
    assert result["msg"] == (
        "anna (wayland session 2) would lose the desktop: 2 units are to be pruned while a graphical session runs. "
        "Log out there, or give consent (role variable os_prune_consent: true)."
    )
    assert systemd.state("cups.service") == ("enabled", "active")
    assert run(check=True, units=["cups.service"])["failed"] is True
    assert run(units=["cups.service"], consent=True)["changed"] is True
    assert run(units=["cups.service"])["changed"] is False


def test_a_unit_that_will_not_stop_is_an_error(systemd: FakeSystemd, run: Run) -> None:
    systemd.stubborn.add("cups.service")
    result = run(units=["cups.service"])
    assert result["msg"].startswith("cups.service (masked, active): still not pruned after stop and mask.")
    systemd.stubborn.clear()
    assert run(units=["cups.service"])["changed"] is True
    assert run(units=["cups.service"])["changed"] is False


def test_a_slow_unit_is_not_waited_for(systemd: FakeSystemd, run: Run) -> None:
    systemd.slow.add("cups.service")
    assert run(units=["cups.service"])["changed"] is True
    assert systemd.state("cups.service") == ("masked", "deactivating")
    assert run(units=["cups.service"])["changed"] is False
    systemd.slow.clear()
    run(state="restored")
    assert systemd.state("cups.service") == ("enabled", "active")


def test_a_unit_that_does_not_come_back_stays_in_the_journal(systemd: FakeSystemd, run: Run) -> None:
    run(units=["cups.service", "colord.service"])
    systemd.stubborn.add("cups.service")
    result = run(state="restored")
    assert result["msg"].startswith(
        "cups.service ran before pruning and did not start again; all other units are back."
    )
    systemd.stubborn.clear()
    assert run(state="restored")["restored"] == ["cups.service"]
    assert not run.journal.exists()


def test_a_unit_on_demand_that_does_not_start_is_a_warning(systemd: FakeSystemd, run: Run) -> None:
    systemd.add("rtkit-daemon.service", file="disabled")
    run(units=["rtkit-daemon.service"])
    systemd.stubborn.add("rtkit-daemon.service")
    result = run(state="restored")
    assert result["changed"] is True
    assert "rtkit-daemon.service ran before pruning and does not start now" in json.dumps(result["warnings"])
    assert not run.journal.exists()


def test_what_starting_woke_is_stopped_again(systemd: FakeSystemd, run: Run) -> None:
    systemd.add("snapd.service", active="inactive")
    systemd.add("snapd.seeded.service")
    run(units=["snapd.service", "snapd.seeded.service"])
    plain = systemd.do_start

    def start(name: str, unit: dict[str, str]) -> None:
        plain(name, unit)
        plain("snapd.service", systemd.units["snapd.service"])

    systemd.do_start = start  # type: ignore[method-assign]
    run(state="restored")
    assert systemd.state("snapd.service") == ("enabled", "inactive")
    assert systemd.state("snapd.seeded.service") == ("enabled", "active")


def test_a_unit_that_failed_while_stopping_counts_as_stopped(systemd: FakeSystemd, run: Run) -> None:
    def stop(name: str, unit: dict[str, str]) -> None:
        unit["ActiveState"] = "failed"

    systemd.do_stop = stop  # type: ignore[method-assign]
    assert run(units=["cups.service"])["changed"] is True
    assert systemd.state("cups.service") == ("masked", "inactive")


def test_systemd_that_refuses_is_quoted(systemd: FakeSystemd, run: Run, monkeypatch: pytest.MonkeyPatch) -> None:
    real = systemd.run_command

    def refuse(module: AnsibleModule, argv: list[str], **more: t.Any) -> tuple[int, str, str]:
        return (1, "", "Access denied\n") if argv[1] == "mask" else real(module, argv, **more)

    monkeypatch.setattr(systemd, "run_command", refuse)
    result = run(units=["cups.service"])
    assert result["msg"] == (
        "systemd refused to mask units: Access denied (rc 1). What is done already is in the journal; run this again, "
        "or state=restored to go back."
    )


@pytest.fixture
def anna(systemd: FakeSystemd) -> FakeSystemd:
    """A user who is logged in, with sound running in her own manager."""
    private = Path(unit_prune.RUN_USER) / "61234" / "systemd" / "private"
    private.parent.mkdir(parents=True)
    private.touch()
    manager = systemd.instances["--reuid=61234"] = FakeSystemd()
    manager.add("pipewire.socket", FragmentPath="/usr/lib/systemd/user/pipewire.socket")
    manager.add(
        "pipewire.service", FragmentPath="/usr/lib/systemd/user/pipewire.service", BoundBy="wireplumber.service"
    )
    manager.add("wireplumber.service", FragmentPath="/usr/lib/systemd/user/wireplumber.service")
    for name in ("pipewire.socket", "wireplumber.service"):
        systemd.user[name] = "enabled"
    return manager


USER_UNITS = ["pipewire.service", "pipewire.socket"]
USER = "user 61234"


def test_running_instances_of_every_user_stop_too(systemd: FakeSystemd, run: Run, anna: FakeSystemd) -> None:
    predicted = run(check=True, user_units=USER_UNITS)
    assert anna.state("pipewire.service") == ("enabled", "active")
    systemd.commands.clear()
    done = run(user_units=USER_UNITS)
    assert predicted["actions"] == done["actions"]
    assert predicted["diff"] == done["diff"]
    assert done["actions"][-3:] == [
        f"pipewire.service of {USER} is stopped (was enabled, active).",
        f"pipewire.socket of {USER} is stopped (was enabled, active).",
        f"wireplumber.service of {USER} stops, because it needs pipewire.service (was enabled, active).",
    ]
    gid = Path(unit_prune.RUN_USER, "61234").stat().st_gid
    setpriv = ["/bin/setpriv", "--reuid=61234", f"--regid={gid}", "--clear-groups", "/bin/systemctl", "--user"]
    told = [command[6:] for command in systemd.commands if command[:6] == setpriv]
    everything = ["pipewire.service", "pipewire.socket", "wireplumber.service"]
    assert [command[0] for command in told] == ["show", "show", "stop", "daemon-reload", "show"]
    assert told[2] == ["stop", "--no-block", "--", *everything]
    assert {anna.state(name)[1] for name in everything} == {"inactive"}
    systemd.commands.clear()
    assert run(user_units=USER_UNITS)["changed"] is False
    assert systemd.verbs()[:1] == ["list-unit-files"]
    assert len(systemd.commands) == 2


def test_instances_come_back_with_their_user(systemd: FakeSystemd, run: Run, anna: FakeSystemd) -> None:
    run(user_units=USER_UNITS)
    done = run(state="restored")
    assert done["actions"][-1] == (f"pipewire.service, pipewire.socket, wireplumber.service of {USER}: started again.")
    assert {unit["ActiveState"] for unit in anna.units.values()} == {"active"}
    assert systemd.user == {
        "pipewire.service": "enabled",
        "pipewire.socket": "enabled",
        "wireplumber.service": "enabled",
    }
    assert run(state="restored")["changed"] is False


def test_a_user_who_left_gets_the_units_with_the_next_login(systemd: FakeSystemd, run: Run, anna: FakeSystemd) -> None:
    run(user_units=["pipewire.socket"])
    Path(unit_prune.RUN_USER, "61234", "systemd", "private").unlink()
    assert run(state="restored")["actions"][-1] == (
        "pipewire.socket of user 61234: that user has no manager now; they start with the next login."
    )


def test_a_unit_of_the_users_own_is_left_alone(systemd: FakeSystemd, run: Run, anna: FakeSystemd) -> None:
    anna.units["pipewire.socket"]["FragmentPath"] = "/home/anna/.config/systemd/user/pipewire.socket"
    done = run(user_units=["pipewire.socket"])
    assert done["actions"][-1] == (
        f"pipewire.socket of {USER} is that user's own (/home/anna/.config/systemd/user/pipewire.socket); left alone."
    )
    assert anna.state("pipewire.socket")[1] == "active"


def test_an_instance_that_will_not_stop_is_an_error(systemd: FakeSystemd, run: Run, anna: FakeSystemd) -> None:
    anna.stubborn.add("pipewire.socket")
    assert run(user_units=["pipewire.socket"])["msg"].startswith(
        f"pipewire.socket of {USER} still runs after stop. See `systemctl --user status pipewire.socket`"
    )


def test_evidence_only_when_something_was_pruned(systemd: FakeSystemd, run: Run) -> None:
    assert run(check=True, units=["cups.service"])["evidence"] is None
    assert "Units that ended held 0.0 MiB (PSS and swap) together." in run(units=["cups.service"])["evidence"]["lines"]
    assert run(units=["cups.service"])["evidence"] is None

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""os_prune alone on one node with a desktop's services: what it predicts, does, keeps over a reboot and takes back."""

from __future__ import annotations

import json
import time
import typing as t
from collections.abc import Iterator
from pathlib import Path

import pytest

from lab.common import run
from lab.hosts import HOSTS, NODES
from lab.nodes import up
from lab.play import Outcome, play
from lab.snapshot import differences, take
from tests.bench.promises import PRUNE_RATIO
from tests.bench.prune import measure

HERE = Path(__file__).parents[1]
NODE = NODES[0]
HOST = HOSTS[NODE.name]
JOURNALS = "/var/lib/sparkrig/journal"
SOUND = ("pipewire.service", "pipewire.socket", "wireplumber.service")
AS_SPARK = "XDG_RUNTIME_DIR=/run/user/1000 setpriv --reuid=1000 --regid=1000 --clear-groups systemctl --user"
# A session as a display manager opens one: through PAM, of type wayland.
DESKTOP = (
    "systemd-run --unit=desktop --uid=spark -p PAMName=login -p 'Environment=XDG_SESSION_TYPE=wayland"
    " XDG_SESSION_CLASS=user' sleep 600"
)
Prune = t.Callable[..., tuple[Outcome, dict[str, t.Any]]]


@pytest.fixture
def prune(tmp_path: Path) -> Prune:
    """Runs the role on the node; the result is what it handed on."""

    def call(*options: str, **variables: t.Any) -> tuple[Outcome, dict[str, t.Any]]:
        result = tmp_path / "result.json"
        result.unlink(missing_ok=True)
        everything = {"result_file": str(result), "os_prune_probe_s": 1, **variables}
        outcome = play(str(HERE / "prune.yml"), everything, ("--limit", NODE.name, *options))
        return outcome, json.loads(result.read_text(encoding="utf-8")) if result.is_file() else {}

    return call


def reset() -> Outcome:
    return play(str(HERE / "prune_reset.yml"), {}, ("--limit", NODE.name))


def states(*units: str) -> list[str]:
    """How the units are, in their order: masked, active, ..."""
    shown = HOST.run("systemctl show -p LoadState -p ActiveState -- " + " ".join(units)).stdout
    blocks = [dict(line.split("=", 1) for line in block.splitlines()) for block in shown.strip().split("\n\n")]
    return ["masked" if one["LoadState"] == "masked" else one["ActiveState"] for one in blocks]


def sound() -> list[str]:
    """How sound is in the user's own manager."""
    return str(HOST.run(f"{AS_SPARK} is-active -- {' '.join(SOUND)}").stdout).split()


def wait_for(what: t.Callable[[], bool], seconds: float = 30.0) -> None:
    deadline = time.monotonic() + seconds
    while not what():
        assert time.monotonic() < deadline, f"it did not happen within {seconds:.0f} s"
        time.sleep(0.5)


def settled_differences(before: t.Any) -> list[str]:
    """What is not as it was; units may need a moment to come up again."""
    deadline = time.monotonic() + 60
    while True:
        found = differences(before, take(NODE))
        if not found or time.monotonic() > deadline:
            return found
        time.sleep(2)


@pytest.fixture(scope="module", autouse=True)
def user() -> Iterator[None]:
    """The user's own manager runs, with sound in it."""
    HOST.run("loginctl enable-linger spark")
    wait_for(lambda: sound() == ["active"] * 3)
    yield
    HOST.run("loginctl disable-linger spark")


@pytest.fixture(scope="module")
def before(user: None) -> dict[str, dict[str, str]]:
    """What the node is before anything."""
    return take(NODE)


def test_check_mode_predicts_and_the_second_run_changes_nothing(
    prune: Prune, before: dict[str, dict[str, str]]
) -> None:
    predicted_outcome, predicted = prune("--check", "--diff")
    assert predicted_outcome.code == 0, predicted_outcome.text
    assert differences(before, take(NODE)) == []
    assert "+cups.service: masked, inactive" in predicted_outcome.text
    assert "+pipewire.service of user spark (1000): stopped" in predicted_outcome.text

    outcome, done = prune()
    assert outcome.code == 0, outcome.text
    assert outcome.changed == predicted_outcome.changed == 2
    assert {**done, "evidence": None} == predicted
    assert {"cups.service", "cups.path", "snapd.socket", "pipewire.socket"} <= set(done["pruned"])
    assert done["left_alone"]["apport.service"] == "apport.service is not installed on this node; left alone."
    # The evidence says what each unit held, and what swap and faults did.
    assert {row["unit"] for row in done["evidence"]["units"]} >= {"cups.service", "pipewire.service (user 1000)"}
    assert done["evidence"]["freed_bytes"] > 2**20
    assert done["evidence"]["probe_after"]["counters"]["pswpout"] >= 0
    assert "Pages swapped out" in outcome.text

    assert states("cups.service", "avahi-daemon.socket", "snapd.service") == ["masked"] * 3
    assert states("ssh.service", "NetworkManager.service", "polkit.service", "greetd.service") == ["active"] * 4
    assert sound() == ["inactive"] * 3
    assert (
        "-m 2,1 -s 2,1"
        in HOST.run("cat /proc/$(systemctl show -p MainPID --value earlyoom)/cmdline | tr '\\0' ' '").stdout
    )
    assert HOST.run("apt-config dump APT::Periodic::Enable").stdout.strip() == 'APT::Periodic::Enable "0";'

    again, _result = prune()
    assert again.code == 0, again.text
    assert again.changed == 0, again.text


def test_it_holds_over_a_reboot(prune: Prune) -> None:
    run(["podman", "stop", "--time", "20", NODE.container])
    up()
    wait_for(lambda: HOST.run(f"{AS_SPARK} is-system-running").stdout.strip() in ("running", "degraded"))
    assert states("cups.service", "avahi-daemon.socket", "snapd.service") == ["masked"] * 3
    assert sound() == ["inactive"] * 3
    shown = HOST.run("systemctl show -p OOMScoreAdjust -p MemoryMin ssh.service").stdout.split()
    assert shown == ["MemoryMin=268435456", "OOMScoreAdjust=-900"]
    again, _result = prune()
    assert again.changed == 0, again.text


@pytest.mark.parametrize(("journal", "edit"), [("os_prune", "s/enabled/disabled/"), ("os_settings", "s/Journal/X/")])
def test_an_edited_journal_undoes_nothing(journal: str, edit: str) -> None:
    path = f"{JOURNALS}/{journal}.json"
    HOST.run(f"sed -i.kept {edit} {path}")
    outcome = reset()
    HOST.run(f"mv {path}.kept {path}")
    assert outcome.code != 0
    assert f"{path} was edited, its digest does not fit: nothing was changed" in " ".join(outcome.text.split())
    assert states("cups.service") == ["masked"]
    assert HOST.file("/etc/apt/apt.conf.d/99-sparkrig-serving").exists


def test_everything_comes_back(before: dict[str, dict[str, str]]) -> None:
    outcome = reset()
    assert outcome.code == 0, outcome.text
    assert settled_differences(before) == []
    assert sound() == ["active"] * 3
    outcome = reset()
    assert outcome.changed == 0, outcome.text


@pytest.mark.parametrize(
    ("variables", "said"),
    [
        ({"os_prune_units": ["cups.service;reboot"]}, "'cups.service;reboot' is not a unit name"),
        ({"os_prune_units": ["cups*.service"]}, "'cups*.service' is a pattern; name each unit"),
        ({"os_prune_units": ["ssh.service"]}, "'ssh.service' is protected (ssh*.service): the node needs it."),
    ],
)
def test_bad_input_changes_nothing(prune: Prune, variables: dict[str, t.Any], said: str) -> None:
    outcome, _result = prune(**variables)
    assert outcome.code != 0
    assert said in " ".join(outcome.text.split())
    assert states("cups.service", "cups.socket") == ["active"] * 2


def test_a_desktop_is_taken_away_only_with_consent(prune: Prune, before: dict[str, dict[str, str]]) -> None:
    HOST.run(DESKTOP)
    wait_for(lambda: "TYPE=wayland" in HOST.run("grep -hs ^TYPE= /run/systemd/sessions/*[0-9]").stdout)
    try:
        outcome, _result = prune(os_prune_tier="bare")
        assert outcome.code != 0
        text = " ".join(outcome.text.split())
        assert "would lose the desktop" in text
        assert "os_prune_consent: true" in text
        assert states("cups.service", "greetd.service") == ["active"] * 2

        outcome, done = prune(os_prune_tier="bare", os_prune_consent=True)
        assert outcome.code == 0, outcome.text
        assert "greetd.service" in done["pruned"]
        assert states("cups.service", "greetd.service", "plymouth-start.service") == ["masked"] * 3
        assert HOST.run("systemctl get-default").stdout.strip() == "multi-user.target"
        assert HOST.run("journalctl --disk-usage").rc == 0
        again, _result = prune(os_prune_tier="bare")
        assert again.changed == 0, again.text
    finally:
        HOST.run("systemctl stop desktop")
    outcome = reset()
    assert outcome.code == 0, outcome.text
    assert settled_differences(before) == []


def test_a_container_leaves_swap_and_page_cache_to_its_host() -> None:
    outcome = play(str(HERE / "prune_launch.yml"), {}, ("--limit", NODE.name))
    assert outcome.code == 0, outcome.text
    assert outcome.changed == 0
    # The callback quotes an apostrophe by doubling it.
    text = " ".join(outcome.text.split()).replace("''", "'")
    for what in ("swap", "page cache"):
        assert f"This node is a container (podman): its {what} is its host's, and is left alone." in text


def test_one_call_takes_less_than_an_eighth_of_a_loop() -> None:
    figures = measure()
    assert figures.ratio < PRUNE_RATIO, figures

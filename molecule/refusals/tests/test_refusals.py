# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What bad input gets: one clear sentence, before anything is touched."""

from __future__ import annotations

import json
import time
import typing as t
from pathlib import Path

import pytest
import yaml

from lab.hosts import HOSTS, NODES
from lab.play import Outcome, play

# Nothing past the read-only part of the path may have begun.
FIRST_CHANGING_TASK = "TASK [sparkrig.serving.os_prune"


def site(variables: dict[str, t.Any] | None = None, options: tuple[str, ...] = ()) -> Outcome:
    return play("sparkrig.serving.site", variables, options)


def assert_refused(outcome: Outcome, *parts: str) -> None:
    assert outcome.code != 0, outcome.text
    sentence = next((line for line in outcome.text.splitlines() if parts[0] in line), "")
    assert sentence, outcome.text
    # Whatever a terminal shows in one line counts as one sentence.
    text = " ".join(outcome.text.split())
    for part in parts:
        assert part in text, outcome.text
    assert FIRST_CHANGING_TASK not in outcome.text
    assert outcome.changed == 0


def host_vars(folder: Path, **values: dict[str, t.Any]) -> tuple[str, ...]:
    """Options that lay other host variables over the lab's inventory."""
    path = folder / "more.yml"
    path.write_text(yaml.safe_dump({"sparks": {"hosts": values}}), encoding="utf-8")
    return ("-i", str(path))


def test_a_node_too_few() -> None:
    outcome = site(options=("--limit", "spark1,spark2,spark3"))
    assert_refused(
        outcome,
        "The inventory has 3 nodes (spark1, spark2, spark3). Needed: 4, because the profile has 4 ranks, one GPU each.",
    )


def test_two_nodes_with_the_same_rail_address(tmp_path: Path) -> None:
    twin = {"enp1s0f0np0": "10.98.1.11/24", "enP2p1s0f0np0": "10.98.2.12/24"}
    outcome = site(options=host_vars(tmp_path, spark2={"fabric_addresses": twin}))
    assert_refused(outcome, "10.98.1.11", "spark1", "spark2")


def test_an_unknown_profile() -> None:
    outcome = site({"serving_profile": "glm9"})
    assert_refused(outcome, "serving_profile is 'glm9', which is no profile of this collection; there are", "lab_cpu")


def test_an_unknown_key() -> None:
    outcome = site({"serving_overrides": {"max_modle_len": 1024}})
    assert_refused(outcome, "Profile lab_cpu: 'max_modle_len' is no key of a profile (did you mean 'max_model_len'?).")


def test_a_node_that_cannot_be_reached(tmp_path: Path) -> None:
    outcome = site(options=host_vars(tmp_path, spark3={"ansible_host": "10.98.0.99"}))
    assert_refused(outcome, "spark3 (10.98.0.99) was not reached:", "Check its power, its cable and")


def test_a_model_folder_without_a_config() -> None:
    outcome = site({"serving_overrides": {"model": {"base": "/var/tmp"}}})
    assert_refused(outcome, "/var/tmp", "config.json")


def test_a_budget_that_does_not_fit() -> None:
    # One request of 2,048 tokens needs 128 blocks and the null block, of 73,728 B each.
    outcome = site({"serving_overrides": {"kv_cache_memory_bytes": 5_000_000}})
    # 67 blocks fit, one of them is the null block: 66 * 16 tokens.
    assert_refused(outcome, "5,000,000", "1,056")


@pytest.mark.parametrize("value", ["1", "true"])
def test_a_profile_that_switches_rdma_off(value: str) -> None:
    outcome = site({"serving_overrides": {"environment": {"NCCL_IB_DISABLE": value}}})
    assert_refused(outcome, f"environment.NCCL_IB_DISABLE is '{value}'; it must stay '0'")


def test_a_runtime_that_cannot_be_built() -> None:
    outcome = site({"serving_overrides": {"runtime": {"lock": "glm9"}}})
    assert_refused(outcome, "Role runtime has neither files/locks/glm9.py")


# Four nodes, and the controller on the same two cores. An idle machine takes 7 s; the best of three runs tells a
# regression from a machine that is busy for a moment.
PREFLIGHT_S = 10.0


def findings(path: Path) -> dict[str, t.Any]:
    """What preflight wrote down."""
    return t.cast("dict[str, t.Any]", json.loads(path.read_text(encoding="utf-8")))


def test_preflight_tells_everything_at_once(tmp_path: Path) -> None:
    report = tmp_path / "preflight.json"
    wrong = {
        "requires": {"disk_free_bytes": 10**15},
        "kv_cache_memory_bytes": 5_000_000,
        "model": {"base": "/srv/models/gone"},
    }
    options = host_vars(tmp_path, spark3={"ansible_host": "10.98.0.99"})
    outcome = play("sparkrig.serving.preflight", {"serving_overrides": wrong, "preflight_report": str(report)}, options)
    assert outcome.code == 2, outcome.text
    assert outcome.changed == 0
    seen = findings(report)
    assert seen["status"] == "errors"
    ids = {finding["id"] for finding in seen["findings"] if finding["severity"] == "error"}
    assert ids >= {"node.unreachable", "disk.free", "checkpoint"}
    by_node = [finding["node"] for finding in seen["findings"] if finding["id"] == "disk.free"]
    assert by_node == ["spark1", "spark2", "spark4"]


def test_preflight_has_a_plan_that_does_not_fit_among_its_findings(tmp_path: Path) -> None:
    report = tmp_path / "preflight.json"
    wrong = {"kv_cache_memory_bytes": 5_000_000}
    outcome = play("sparkrig.serving.preflight", {"serving_overrides": wrong, "preflight_report": str(report)})
    assert outcome.code == 2, outcome.text
    refused = [finding for finding in findings(report)["findings"] if finding["severity"] == "error"]
    assert [finding["id"] for finding in refused] == ["plan.refused"]
    assert "5,000,000" in refused[0]["seen"]


def test_preflight_says_by_its_exit_status_what_it_found(tmp_path: Path) -> None:
    report = tmp_path / "preflight.json"
    seconds = []

    def preflight(variables: dict[str, t.Any]) -> Outcome:
        started = time.monotonic()
        outcome = play("sparkrig.serving.preflight", variables)
        seconds.append(time.monotonic() - started)
        return outcome

    host = HOSTS[NODES[1].name]
    # A process of ours that no unit knows, as a launch that was killed leaves them.
    host.run("cp /bin/sleep /opt/sparkrig/stray && systemd-run --unit=stray /opt/sparkrig/stray 300")
    try:
        outcome = preflight({"preflight_report": str(report)})
        assert outcome.code == 3, outcome.text
        assert outcome.changed == 0
        seen = findings(report)
        assert seen["status"] == "warnings"
        left = [finding for finding in seen["findings"] if finding["id"] == "process.leftover"]
        assert [finding["node"] for finding in left] == [NODES[1].name]
        warned = {finding["id"] for finding in seen["findings"] if finding["severity"] == "warning"}
        accepted = preflight({"preflight_accept": sorted(warned)})
        assert accepted.code == 0, accepted.text
        strict = preflight({"preflight_strict": True})
        assert strict.code == 2, strict.text
        assert "Warnings, which fail because preflight_strict is true:" in strict.text
        assert "(process.leftover)" in strict.text
    finally:
        host.run("systemctl stop stray; rm -f /opt/sparkrig/stray")
    assert min(seconds) <= PREFLIGHT_S, seconds

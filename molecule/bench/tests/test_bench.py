# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The playbooks bench and monitoring on the served lab: the engine counts what the client counted."""

from __future__ import annotations

import json
import re
import typing as t
import urllib.request
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import parse_metrics, total
from lab.hosts import HOSTS, NODES, environment
from lab.play import Outcome, play

PROJECT = Path(__file__).parents[3]
ENDPOINT = f"http://{NODES[0].management_ip}:18089"
DASHBOARD = PROJECT / "roles/monitoring/files/dashboard.json"
# How a run ended, its document, and by how much the engine's own counters grew over it.
Measured = tuple[Outcome, dict[str, t.Any], list[float]]
COUNTED = ("vllm:prompt_tokens_total", "vllm:generation_tokens_total", "vllm:request_success_total")


def metrics() -> str:
    with urllib.request.urlopen(f"{ENDPOINT}/metrics", timeout=30) as answer:
        return t.cast("str", answer.read().decode())


def counters() -> list[float]:
    """Tokens in, tokens out and requests, as the engine counts them now."""
    samples = parse_metrics(metrics())
    return [total(samples, name) or 0.0 for name in COUNTED]


@pytest.fixture(scope="module")
def folder(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return tmp_path_factory.mktemp("bench")


@pytest.fixture(scope="module")
def measured(folder: Path) -> Measured:
    """A whole run."""
    before = counters()
    outcome = play("sparkrig.serving.bench", {"bench_report_dir": str(folder)})
    assert outcome.code == 0, outcome.text
    (path,) = folder.glob("lab_cpu-*.json")
    grown = [last - first for first, last in zip(before, counters(), strict=True)]
    return outcome, json.loads(path.read_text(encoding="utf-8")), grown


def test_a_dry_run_says_what_would_be_sent_and_sends_nothing(tmp_path: Path) -> None:
    outcome = play("sparkrig.serving.bench", {"bench_report_dir": str(tmp_path / "none")}, ("--check",))
    assert outcome.code == 0, outcome.text
    assert "Would send 3 requests to lab-moe at http://127.0.0.1:18089: 64 tokens in, 16 out, 1 at once" in " ".join(
        outcome.text.split()
    )
    assert outcome.changed == 0
    assert not (tmp_path / "none").exists()


def test_the_engine_counts_what_the_client_counted(
    measured: Measured,
) -> None:
    _outcome, document, grown = measured
    points = document["points"]
    assert [(point["prompt_tokens"], point["concurrency"]) for point in points] == [
        (64, 1),
        (64, 2),
        (512, 1),
        (512, 2),
    ]
    for point in points:
        assert point["total_prompt_tokens"] == point["prompt_tokens"] * point["requests"]
        assert point["total_output_tokens"] == 16 * point["requests"]
        engine = point["engine"]
        assert engine["prefix_cache_hit_tokens"] == 0
        # The watchdog may have asked for its one token meanwhile.
        if engine["foreign_requests"] == 0:
            assert point["problems"] == []
            assert engine["prompt_tokens"] == point["total_prompt_tokens"]
            assert engine["generation_tokens"] == point["total_output_tokens"]
    assert any(point["engine"]["foreign_requests"] == 0 for point in points)
    # Over the whole run, with one warm-up for each length, and with what was foreign.
    foreign = grown[2] - sum(point["requests"] for point in points) - 2
    assert foreign >= 0
    assert grown[1] - foreign == sum(point["total_output_tokens"] for point in points) + 2 * 16
    if not foreign:
        assert grown[0] == sum(point["total_prompt_tokens"] for point in points) + 64 + 512


def test_the_figures_are_sound(measured: Measured) -> None:
    _outcome, document, _grown = measured
    for point in document["points"]:
        for name in ("ttft_s", "tpot_s", "prefill_tokens_per_s", "decode_tokens_per_s"):
            spread = point[name]
            assert 0 < spread["min"] <= spread["p50"] <= spread["p90"] <= spread["p99"] <= spread["max"]
        assert point["request_s"]["max"] <= point["seconds"]
        assert point["engine"]["drafts"] > 0
        assert len(point["engine"]["acceptance"]) == 1
        assert point["gpu"] is None
    assert re.match(r"0\.32\.0", document["engine_version"])
    plan = HOSTS[NODES[0].name].check_output("sha256sum < /var/lib/sparkrig/plan.json").split()[0]
    assert document["plan_sha256"] == plan
    assert document["gpu_sentences"] == ["No GPU was watched: the profile's device is a CPU."]


def test_nothing_of_it_tells_the_key(measured: Measured, folder: Path) -> None:
    outcome, _document, _grown = measured
    key = environment(HOSTS[NODES[0].name], "/etc/sparkrig/secrets.env")["VLLM_API_KEY"]
    assert key not in outcome.text
    for path in folder.iterdir():
        assert key not in path.read_text(encoding="utf-8")
    # The files here, and nothing on a node.
    assert outcome.changed == 1


def test_the_next_run_is_put_beside_it(measured: Measured, folder: Path) -> None:
    _outcome, first, _grown = measured
    plan = {"prompt_tokens": [64], "concurrency": [1], "output_tokens": 16, "requests": 1, "warmup": 0}
    outcome = play("sparkrig.serving.bench", {"bench_report_dir": str(folder), "bench_plan": plan})
    assert outcome.code == 0, outcome.text
    newest = max(folder.glob("lab_cpu-*.json"))
    last = json.loads(newest.read_text(encoding="utf-8"))["last"]
    assert last["date"] == first["date"]
    assert {(row["prompt_tokens"], row["concurrency"]) for row in last["figures"]} == {(64, 1)}
    assert "Next to the last run" in (folder / "bench.html").read_text(encoding="utf-8")


def test_where_nothing_serves_it_says_so_in_one_sentence(folder: Path) -> None:
    before = sorted(folder.iterdir())
    outcome = play("sparkrig.serving.bench", {"bench_report_dir": str(folder), "bench_url": "http://127.0.0.1:9"})
    assert outcome.code != 0
    assert "There is nothing to measure: /v1/models at http://127.0.0.1:9 does not answer" in " ".join(
        outcome.text.split()
    )
    assert sorted(folder.iterdir()) == before


def test_every_metric_of_the_dashboard_is_one_that_the_engine_exports() -> None:
    text = metrics()
    exported = {sample.name for sample in parse_metrics(text)}
    named = set(re.findall(r"\b(?:vllm:|process_)\w+", DASHBOARD.read_text(encoding="utf-8")))
    assert len(named) > 15
    assert sorted(named - exported) == []


def test_the_scrape_configuration_leads_to_the_engine(tmp_path: Path) -> None:
    outcome = play("sparkrig.serving.monitoring", {"monitoring_dir": str(tmp_path)})
    assert outcome.code == 0, outcome.text
    (target,) = re.findall(r'targets: \["(.*)"\]', (tmp_path / "prometheus.yml").read_text(encoding="utf-8"))
    with urllib.request.urlopen(f"http://{target}/metrics", timeout=30) as answer:
        assert answer.status == 200
    assert play("sparkrig.serving.monitoring", {"monitoring_dir": str(tmp_path)}).changed == 0

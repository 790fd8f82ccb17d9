# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The dashboard, the scrape configuration and all who read /metrics, beside what vLLM 0.32 exports."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
import typing as t
from pathlib import Path

import pytest
import yaml

from ansible_collections.sparkrig.serving.plugins.module_utils import _bench, _status, _verify, _watchdog
from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import Sample, parse_metrics, total

PROJECT = Path(__file__).parents[2]
# See the README beside it.
RECORDED = PROJECT / "tests/fixtures/metrics/vllm-0.32.0.txt"
DASHBOARD = PROJECT / "roles/monitoring/files/dashboard.json"


@pytest.fixture(scope="module", name="samples")
def recorded() -> list[Sample]:
    return parse_metrics(RECORDED.read_text(encoding="utf-8"))


@pytest.fixture(scope="module", name="panels")
def dashboard() -> list[dict[str, t.Any]]:
    panels: list[dict[str, t.Any]] = json.loads(DASHBOARD.read_text(encoding="utf-8"))["panels"]
    return [panel for panel in panels if panel["type"] != "row"]


def expressions(panels: list[dict[str, t.Any]]) -> list[str]:
    return [target["expr"] for panel in panels for target in panel["targets"]]


def test_every_metric_of_the_dashboard_is_exported(samples: list[Sample], panels: list[dict[str, t.Any]]) -> None:
    exported = {sample.name for sample in samples}
    named = set(re.findall(r"\b(?:vllm:|process_)\w+", " ".join(expressions(panels))))
    assert len(named) > 15
    assert sorted(named - exported) == []


def test_every_label_of_the_dashboard_is_there(samples: list[Sample], panels: list[dict[str, t.Any]]) -> None:
    for expression in expressions(panels):
        for labels in re.findall(r"sum by \(([^)]*)\)", expression):
            names = re.findall(r"(?:vllm:|process_)\w+", expression)
            found = {label for sample in samples if sample.name in names for label in sample.labels}
            assert {label.strip() for label in labels.split(",")} <= found, expression


def test_the_dashboard_is_one_that_grafana_takes(panels: list[dict[str, t.Any]]) -> None:
    whole = json.loads(DASHBOARD.read_text(encoding="utf-8"))
    assert whole["uid"] and whole["title"] and whole["schemaVersion"] >= 36
    numbers = [panel["id"] for panel in whole["panels"]]
    assert len(set(numbers)) == len(numbers)
    places: set[tuple[int, int]] = set()
    for panel in whole["panels"]:
        place = panel["gridPos"]
        assert place["x"] + place["w"] <= 24
        cells = {
            (x, y)
            for x in range(place["x"], place["x"] + place["w"])
            for y in range(place["y"], place["y"] + place["h"])
        }
        assert not cells & places, panel["title"]
        places |= cells
    for panel in panels:
        assert panel["description"], panel["title"]
        assert panel["fieldConfig"]["defaults"]["unit"]
    for expression in expressions(panels):
        assert expression.count("(") == expression.count(")"), expression
        assert expression.count("{") == expression.count("}"), expression
        assert 'rig="$rig"' in expression, expression


def test_what_bench_verify_status_and_watchdog_read_is_exported(samples: list[Sample]) -> None:
    names = [_bench.PROMPT_TOKENS, _bench.GENERATION_TOKENS, _bench.REQUESTS, _bench.PREFIX_HITS, _bench.PREEMPTIONS]
    names += [_bench.PREFILL_SECONDS, _verify.DRAFTS, _verify.ACCEPTED, _verify.DRAFT_TOKENS, _verify.ACCEPTED_AT]
    names += [_verify.CACHE_INFO, _status.KV_USAGE, _status.GENERATED, *_watchdog.MOVING]
    assert [name for name in names if total(samples, name) is None] == []


def monitoring(folder: Path, **variables: t.Any) -> dict[str, t.Any]:
    """What the playbook writes for the lab; the counters of the recap say that no node was reached."""
    command = [str(Path(sys.executable).parent / "ansible-playbook"), "playbooks/monitoring.yml", "-i", "inventory/lab"]
    command += ["--extra-vars", json.dumps({"monitoring_dir": str(folder), **variables})]
    environment = {**os.environ, "ANSIBLE_CONFIG": str(PROJECT / "ansible.cfg"), "ANSIBLE_FORCE_COLOR": "0"}
    played = subprocess.run(command, cwd=PROJECT, env=environment, capture_output=True, text=True, check=False)
    assert played.returncode == 0, played.stdout + played.stderr
    assert (folder / "dashboard.json").read_text(encoding="utf-8") == DASHBOARD.read_text(encoding="utf-8")
    (job,) = yaml.safe_load((folder / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    return t.cast("dict[str, t.Any]", job)


@pytest.mark.slow
def test_the_scrape_configuration_is_that_of_the_inventory(tmp_path: Path) -> None:
    job = monitoring(tmp_path / "without")
    assert job == {
        "job_name": "sparkrig",
        "scrape_interval": "15s",
        "metrics_path": "/metrics",
        "static_configs": [{"targets": ["10.98.0.11:18089"], "labels": {"rig": "spark1", "profile": "lab_cpu"}}],
    }
    named = monitoring(tmp_path / "with", monitoring_credentials_file="/etc/prometheus/key", monitoring_rig="cellar")
    assert named["authorization"] == {"credentials_file": "/etc/prometheus/key"}
    assert named["static_configs"][0]["labels"]["rig"] == "cellar"

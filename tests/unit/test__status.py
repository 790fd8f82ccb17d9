# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The table that `status` shows."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import parse_metrics
from ansible_collections.sparkrig.serving.plugins.module_utils._status import (
    rank_of,
    row,
    status,
    tokens_per_second,
)


def unit(active: str = "active", sub: str = "running", restarts: int = 0) -> dict[str, t.Any]:
    return {"load_state": "loaded", "active_state": active, "sub_state": sub, "restarts": restarts}


def seen(**changes: t.Any) -> dict[str, t.Any]:
    values = {
        "units": {"sparkrig-vllm.service": unit(restarts=2), "sparkrig-ray.service": unit()},
        "memory_available_bytes": 2**30,
        "memory_total_bytes": 2**32,
        "swap_used_bytes": 2**29,
        "gpu": "96% 61 C 15.2 W",
        "health": "200",
        "kv_usage": 0.125,
        "tokens_per_second": 14.84,
    }
    return {**values, **changes}


def test_one_line_says_all() -> None:
    assert row("spark1", 0, seen()) == [
        *["spark1", "0", "serves", "up", "1.0 of 4.0 GiB", "0.5 GiB", "96% 61 C 15.2 W", "12.5%", "14.8", "2"]
    ]


@pytest.mark.parametrize(
    ("engine", "health", "word"),
    [
        (unit("active"), "Connection refused", "loads"),
        (unit("activating", "start-pre"), "", "waits"),
        (unit("activating", "auto-restart"), "", "restarts"),
        (unit("failed", "failed"), "", "down"),
        (unit("inactive", "dead"), "", "stopped"),
    ],
)
def test_every_state_has_a_word(engine: dict[str, t.Any], health: str, word: str) -> None:
    assert row("a", 0, seen(units={"sparkrig-vllm.service": engine}, health=health))[2] == word


def test_a_node_that_does_not_answer_has_its_line_and_its_reason() -> None:
    lines = status(["a", "b"], {"a": seen(last_failure={"when": "then", "sentence": "It died"})}, {"b": "No route"})
    assert lines[1].startswith("a     0     serves")
    assert lines[2].startswith("b     1     ?")
    assert lines[3:] == ["a, last failure, then: It died", "b does not answer: No route"]


def test_speed() -> None:
    before = parse_metrics("vllm:generation_tokens_total 10\n")
    after = parse_metrics("vllm:generation_tokens_total 40\n")
    assert tokens_per_second(before, after, 2.0) == 15.0
    assert tokens_per_second([], after, 2.0) is None


@pytest.mark.parametrize(
    ("title", "rank"), [("VLLM::Worker_TP2", 2), ("ray::RayWorkerProc.run", None), ("VLLM::Worker_TP3_EP3", 3)]
)
def test_a_rank_tells_its_number(title: str, rank: int | None) -> None:
    assert rank_of(["bash", title]) == rank

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The checks of verify, and the one text that says what is wrong."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.sparkrig.serving.plugins.filter.vllm_argv import FilterModule
from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import Sample, parse_metrics
from ansible_collections.sparkrig.serving.plugins.module_utils._ray import ClusterState
from ansible_collections.sparkrig.serving.plugins.module_utils._rig_unit import UnitState
from ansible_collections.sparkrig.serving.plugins.module_utils._verify import (
    ACCEPTED,
    CACHE_INFO,
    DRAFT_TOKENS,
    DRAFTS,
    acceptance_by_position,
    check_cache,
    check_completion,
    check_drafts,
    check_memory,
    check_models,
    check_node,
    check_ranks,
    check_ray,
    engine_state,
    summary,
    unreachable_reason,
    with_readings,
)

PLAN = {"num_blocks": 271, "kv_cache_tokens": 4336, "max_concurrency": 2.1171875, "block_size": 16}


def info(**labels: str) -> list[Sample]:
    numbers = {"num_gpu_blocks": "271", "kv_cache_size_tokens": "4336", "kv_cache_max_concurrency": "2.1171875"}
    return [Sample(CACHE_INFO, {**numbers, **labels}, 1.0)]


def test_the_plan_is_what_the_engine_did() -> None:
    checks = check_cache(info(), PLAN)
    assert [(check.name, check.ok, check.predicted, check.seen) for check in checks] == [
        ("num_blocks", True, 271, 271),
        ("kv_cache_tokens", True, 4336, 4336),
        ("max_concurrency", True, 2.1172, 2.1172),
    ]
    assert checks[1].sentence == "The engine has 4336 KV tokens, as planned"


@pytest.mark.parametrize(
    ("labels", "sentence"),
    [
        ({"kv_cache_size_tokens": "4320"}, "The engine has 4320 KV tokens; the plan says 4336"),
        ({"num_gpu_blocks": "270"}, "The engine has 270 KV blocks; the plan says 271"),
        (
            {"kv_cache_max_concurrency": "2.0"},
            "The engine has 2 requests of full length at once; the plan says 2.1172",
        ),
        (
            {"kv_cache_size_tokens": "None"},
            "The engine does not tell its KV tokens (label kv_cache_size_tokens of vllm:cache_config_info in /metrics"
            " is missing or no number); the plan says 4336",
        ),
    ],
)
def test_a_deviation_has_both_numbers(labels: dict[str, str], sentence: str) -> None:
    assert [check.sentence for check in check_cache(info(**labels), PLAN) if not check.ok] == [sentence]


def test_an_engine_without_the_metric_fails_every_number() -> None:
    checks = check_cache([], PLAN)
    assert [(check.ok, check.seen) for check in checks] == [(False, None)] * 3
    assert check_cache([], {"num_blocks": None}) == []


def counted(drafts: float, tokens: float = 0.0, accepted: float = 0.0) -> list[Sample]:
    return [Sample(DRAFTS, {}, drafts), Sample(DRAFT_TOKENS, {}, tokens), Sample(ACCEPTED, {}, accepted)]


def test_only_the_drafts_of_this_completion_count() -> None:
    good = check_drafts(counted(63, 63, 40), counted(70, 70, 45))
    assert (good.ok, good.seen) == (True, 7)
    assert good.sentence == "The engine made 7 drafts during the completion; 5 of 7 were accepted"
    assert not check_drafts(counted(63), counted(63)).ok
    assert not check_drafts([], []).ok


@pytest.mark.parametrize(
    ("answer", "failed"),
    [
        ({"data": [{"id": "lab-moe", "max_model_len": 2048}]}, []),
        (
            {"data": [{"id": "lab-moe", "max_model_len": 1024}]},
            ["Requests may be 1024 tokens long; the plan says 2048"],
        ),
        ({"data": [{"id": "other"}]}, ["The API serves other; wanted is lab-moe"]),
        ({}, ["The API serves nothing; wanted is lab-moe"]),
    ],
)
def test_the_model_and_its_context(answer: dict[str, t.Any], failed: list[str]) -> None:
    assert [check.sentence for check in check_models(answer, "lab-moe", 2048) if not check.ok] == failed


def test_a_completion_is_an_answer_with_tokens() -> None:
    assert check_completion("hi", 3, 1.25, "").ok
    assert not check_completion("", 0, 1.0, "").ok
    failed = check_completion(None, 0, 20.04, "/v1/chat/completions did not answer within 20 s")
    assert failed.sentence == "A completion failed after 20.0 s: /v1/chat/completions did not answer within 20 s"


@pytest.mark.parametrize(
    ("state", "words"),
    [
        (UnitState(), "x.service does not exist there"),
        (UnitState(load="loaded"), "x.service is inactive"),
        (
            UnitState(load="loaded", active="active"),
            "x.service is active, last seen: loading weights",
        ),
        (
            UnitState(load="loaded", active="failed", restarts=6),
            "x.service is failed, restarted 6 times; it died of: ValueError: no room",
        ),
    ],
)
def test_the_state_of_an_engine_that_does_not_answer(state: UnitState, words: str) -> None:
    assert engine_state("x.service", state, "loading weights", "ValueError: no room.") == words


def test_the_ray_nodes() -> None:
    nodes = {"spark1": "10.98.1.11", "spark2": "10.98.1.12"}
    assert check_ray(ClusterState(["10.98.1.11", "10.98.1.12"], [], []), nodes).ok
    missing = ClusterState(["10.98.1.11"], ["spark2"], ["Ray sees 1 of 2 nodes alive; missing: spark2 (10.98.1.12)"])
    assert check_ray(missing, nodes).sentence == "Ray sees 1 of 2 nodes alive; missing: spark2 (10.98.1.12)"
    silent = check_ray(None, nodes, "Ray's GCS at 10.98.1.11:26479 does not answer: timed out")
    assert (silent.ok, silent.seen) == (False, None)


NODES = ["spark1", "spark2", "spark3", "spark4"]
BAD = {"ok": False, "sentence": "Ray sees 3 of 4 nodes alive; missing: spark3 (10.98.1.13)."}
GOOD = {"ok": True, "sentence": "fine"}


def test_a_dead_node_is_named_with_what_the_head_says() -> None:
    ssh = "Failed to connect to the host via ssh: ssh: connect to host 10.98.0.13 port 22: No route to host"
    assert summary([GOOD, BAD], {"spark3 (10.98.0.13)": ssh}, NODES, "lab-moe") == (
        "spark3 (10.98.0.13) does not answer over SSH: ssh: connect to host 10.98.0.13 port 22: No route to host. "
        "lab-moe needs all 4 ranks (spark1, spark2, spark3, spark4), so it is not served until they are all back. "
        "Ray sees 3 of 4 nodes alive; missing: spark3 (10.98.1.13). "
        "What to do: power up or reconnect what does not answer, see that `ssh` reaches it, and run"
        " sparkrig.serving.site."
    )


def test_nothing_wrong_is_no_text() -> None:
    assert summary([GOOD], {}, NODES, "lab-moe") == ""
    assert summary([BAD], {}, NODES, "lab-moe").startswith(
        "Ray sees 3 of 4 nodes alive; missing: spark3 (10.98.1.13). "
    )


@pytest.mark.parametrize(
    ("message", "reason"),
    [
        ("", "no reason was given"),
        ("Data could not be sent.\nvia ssh: timed out.\n", "timed out"),
        ("Timed out", "Timed out"),
        (
            'Task failed: Data could not be sent to remote host "x". Make sure this host can be reached over ssh: ssh:'
            " connect to host x port 22: No route to host",
            "ssh: connect to host x port 22: No route to host",
        ),
    ],
)
def test_the_reason_is_what_ssh_said_last(message: str, reason: str) -> None:
    assert unreachable_reason(message) == reason


def test_the_filter_reads_the_results_of_all_nodes() -> None:
    hostvars = {
        "spark1": {"r": {"units": {}}},
        "spark3": {"ansible_host": "10.98.0.13", "r": {"unreachable": True, "msg": "via ssh: timed out"}},
    }
    filters = FilterModule().filters()
    assert filters["unreachable_nodes"](list(hostvars), hostvars, "r") == {"spark3 (10.98.0.13)": "timed out"}


RANKS = {"spark1": "10.98.1.11", "spark2": "10.98.1.12"}


@pytest.mark.parametrize(
    ("peers", "ok", "sentence"),
    [
        (
            {"10.98.1.11", "10.98.1.12"},
            True,
            "2 ranks are connected to 10.98.1.11:29501, each from its own rail address",
        ),
        ({"10.98.1.11"}, False, "1 of 2 ranks are connected to 10.98.1.11:29501; missing: spark2 (10.98.1.12)"),
        (
            {"10.98.1.11", "10.98.1.12", "10.98.0.13"},
            False,
            "10.98.0.13 is connected to 10.98.1.11:29501 and belongs to none of spark1, spark2",
        ),
    ],
)
def test_the_ranks_of_vllms_own_executor_are_told_by_their_connections(
    peers: set[str], ok: bool, sentence: str
) -> None:
    check = check_ranks(peers, RANKS, "10.98.1.11:29501")
    assert (check.ok, check.sentence, check.predicted) == (ok, sentence, ["10.98.1.11", "10.98.1.12"])


def test_acceptance_is_told_by_position() -> None:
    def at(drafts: int, first: int, second: int) -> list[t.Any]:
        return parse_metrics(
            f"vllm:spec_decode_num_drafts_total {drafts}\n"
            f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{position="0"}} {first}\n'
            f'vllm:spec_decode_num_accepted_tokens_per_pos_total{{position="1"}} {second}\n'
        )

    assert acceptance_by_position(at(10, 9, 5), at(30, 27, 19)) == [0.9, 0.7]
    assert acceptance_by_position(at(10, 9, 5), at(10, 9, 5)) == []


MIB = 2**20


def test_a_node_is_compared_with_its_rank() -> None:
    rank = {"available_bytes": 100 * MIB, "weights_bytes": 40 * MIB, "kv_bytes": 10 * MIB, "overhead_bytes": 10 * MIB}
    seen = {"memory_available_bytes": 35 * MIB, "object_store_bytes": 7, "unknown_processes": []}
    assert [check.ok for check in check_node("a", seen, rank, 7)] == [True, True, True]
    bad = {"memory_available_bytes": 425 * MIB, "object_store_bytes": 8, "unknown_processes": ["9 python"]}
    checks = check_node("a", bad, rank, 7)
    assert [check.ok for check in checks] == [False, False, False]
    assert checks[1].sentence == "Ray's object store on a has 8 bytes; the profile says 7"
    assert checks[2].sentence == "a runs what the plan does not know: 9 python"
    # A plan that was made without measuring the nodes has nothing to compare memory with.
    assert [check.name for check in check_node("a", seen, {"available_bytes": None}, None)] == ["processes_a"]


@pytest.mark.parametrize(
    ("left", "percent", "ok"),
    [
        # The plan leaves 20,000 MiB; 10 % of it are 2,000.
        (20_000, 10, True),
        (18_000, 10, True),
        (17_999, 10, False),
        (22_000, 10, True),
        (22_001, 10, False),
        (17_999, 11, True),
        # However narrow the wish, 384 MiB come and go.
        (19_616, 0, True),
        (19_615, 0, False),
        (20_385, 0, False),
    ],
)
def test_memory_that_is_left_is_compared_in_both_directions(left: int, percent: float, ok: bool) -> None:
    parts = {"weights_bytes": 90_000 * MIB, "kv_bytes": 2_000 * MIB, "overhead_bytes": 8_000 * MIB}
    check = check_memory("a", left * MIB, {"available_bytes": 120_000 * MIB, **parts}, percent)
    assert check.ok is ok
    assert (check.predicted, check.seen) == (20_000 * MIB, left * MIB)


def test_a_deviation_says_both_numbers_and_what_would_be_right() -> None:
    rank = {"available_bytes": 2**34, "weights_bytes": 2**30, "kv_bytes": 2**30, "overhead_bytes": 2**31}
    assert check_memory("spark3", 12 * 2**30, rank, 10).sentence == (
        "spark3 has 12.00 GiB of memory left; the plan says 12.00 GiB, give or take 1.20 GiB"
    )
    assert check_memory("spark3", 10 * 2**30, rank, 10).sentence == (
        "spark3 has 10.00 GiB of memory left; the plan says 12.00 GiB, give or take 1.20 GiB: 2.00 GiB more is taken"
        " there than was planned; if that is what the engine needs, the overhead of this rank (fit.overhead_bytes, on"
        f" the head with fit.head_bytes) is {2**32} bytes"
    )
    assert "1.50 GiB less is taken" in check_memory("spark3", 27 * 2**29, rank, 10).sentence


def test_readings_belong_to_one_plan() -> None:
    plan: dict[str, t.Any] = {"ranks": [{"rank": 0, "available_bytes": None}, {"rank": 1, "available_bytes": 5}]}
    readings = {"plan_sha256": "ab", "available_bytes": [8, 9]}
    filled = with_readings(plan, "ab", readings)
    assert [rank["available_bytes"] for rank in filled["ranks"]] == [8, 5]
    assert plan["ranks"][0]["available_bytes"] is None
    assert with_readings(plan, "cd", readings) == plan
    assert with_readings(plan, "ab", None) == plan
    assert with_readings(plan, "ab", {**readings, "available_bytes": [8]}) == plan
    assert with_readings({}, "ab", readings) == {}

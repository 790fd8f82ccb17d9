# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The whole node: every rank's bytes against its memory, the start-up gate, and the plan file."""

from __future__ import annotations

import re
import typing as t

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit, fit_nodes, plan_document
from tests.fixtures.glm52 import question

GIB = 2**30
NODES = ["spark1", "spark2", "spark3", "spark4"]
LAB = {
    "model_type": "deepseek_v3",
    "num_hidden_layers": 3,
    "num_attention_heads": 4,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "num_nextn_predict_layers": 1,
    "max_position_embeddings": 4096,
}


def glm(**options: t.Any) -> dict[str, t.Any]:
    """GLM-5.2 on four GB10, with some options changed."""
    memory = {
        "gpu_memory_utilization": 0.9,
        "weights_bytes": int(106.93 * GIB),
        "overhead_bytes": 5 * GIB,
        "reserve_bytes": GIB,
        "memory_available_bytes": 118 * GIB,
        "memory_total_bytes": int(121.69 * GIB),
        "nodes": NODES,
    }
    return fit(question(**{**memory, **options}))


def lab(**options: t.Any) -> dict[str, t.Any]:
    """The lab's model on four CPU nodes."""
    base = {
        "config": LAB,
        "device": "cpu",
        "tensor_parallel_size": 4,
        "max_model_len": 2048,
        "max_num_seqs": 2,
        "max_num_batched_tokens": 512,
        "kv_cache_memory_bytes": 20_000_000,
        "speculative_config": {"method": "mtp", "num_speculative_tokens": 1},
        "nodes": NODES,
    }
    return {**base, **options}


def test_lab() -> None:
    """The lab's capacity: 4 layers x 16 tokens x 576 x 2 bytes in a block."""
    answer = fit(lab())
    figures = (answer["bytes_per_block"], answer["num_blocks"], answer["kv_cache_tokens"], answer["block_size"])
    assert figures == (73_728, 271, 4_336, 16)
    assert answer["engine_log"] == (
        "CPU KV cache size: 4,336 tokens, Maximum concurrency for 2,048 tokens per request: 2.12x"
    )


def test_ranks_add_up() -> None:
    """Weights, KV, overhead and reserve against what is available, by rank."""
    answer = glm()
    assert answer["fits"] and answer["reasons"] == []
    rank = answer["ranks"][3]
    assert rank["node"] == "spark4"
    assert rank["needed_bytes"] == rank["weights_bytes"] + 1_810_000_000 + 6 * GIB
    assert rank["headroom_bytes"] == 118 * GIB - rank["needed_bytes"]


def test_short_rank_is_named() -> None:
    """Only the rank that is short is named, with its node, the bytes, and the change."""
    available = [118 * GIB, 118 * GIB, 114 * GIB, 118 * GIB]
    answer = glm(memory_available_bytes=available)
    assert not answer["fits"]
    assert len(answer["reasons"]) == 1
    assert answer["reasons"][0].startswith("Rank 2 (spark3) does not fit: 123,067,664,184 B (114.62 GiB) are needed")
    assert "122,406,567,936 B (114.00 GiB) are available" in answer["reasons"][0]
    change = answer["changes"][0]
    spoken = f"max_model_len {change['max_model_len']} with kv_cache_memory_bytes {change['kv_cache_memory_bytes']}"
    assert answer["reasons"][0].endswith(f"Smallest change: {spoken}.")
    assert glm(memory_available_bytes=available, **change)["fits"]


def test_hopeless_rank() -> None:
    """When not even one token fits, the sentence says how much has to be freed."""
    answer = glm(memory_available_bytes=100 * GIB, memory_total_bytes=None)
    assert answer["reasons"][0].endswith(
        "No context is short enough: free {} B ({:.2f} GiB) on the node.".format(
            format(-answer["ranks"][0]["headroom_bytes"], ","),
            -answer["ranks"][0]["headroom_bytes"] / GIB,
        )
    )


def test_gate_of_a_gpu() -> None:
    """ceil(total * utilization) has to be free even with explicit KV bytes."""
    available = int(110.66 * GIB)
    answer = glm(
        gpu_memory_utilization=0.915,
        memory_available_bytes=available,
        weights_bytes=0,
        overhead_bytes=0,
        reserve_bytes=0,
    )
    assert answer["engine_error"] == (
        "Free memory on device cuda:0 (110.66/121.69 GiB) on startup is less than desired GPU memory utilization "
        "(0.915, 111.35 GiB). Decrease GPU memory utilization or reduce GPU memory used by other processes."
    )
    assert answer["reasons"][0].startswith("The engine will not start on rank 0 (spark1): it wants ")
    assert answer["reasons"][0].endswith("Smallest change: gpu_memory_utilization 0.909.")
    assert glm(
        gpu_memory_utilization=0.909,
        memory_available_bytes=available,
        weights_bytes=0,
        overhead_bytes=0,
        reserve_bytes=0,
    )["fits"]


def test_gate_of_a_cpu() -> None:
    """A CPU engine compares its explicit KV bytes with what is available, and nothing else."""
    assert fit(lab(memory_available_bytes=20_000_000, memory_total_bytes=3 * GIB))["fits"]
    answer = fit(lab(memory_available_bytes=19_999_999, memory_total_bytes=3 * GIB))
    assert answer["engine_error"] == (
        "Available memory on node 0 (0.02/3.0 GiB) on kv cache allocation is less than requested memory for kv "
        "(0.02 GiB). Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory used by other "
        "processes."
    )


def test_larger_dcp_is_proposed() -> None:
    """A context that is too long for DCP 1 fits with DCP 4, and the answer says so."""
    answer = glm(decode_context_parallel_size=1)
    assert {"decode_context_parallel_size": 4} in answer["changes"]
    assert glm(decode_context_parallel_size=4)["fits"]


def test_fewer_sequences_are_proposed() -> None:
    """auto for eight sequences is too much; the answer says how many would do."""
    answer = glm(kv_cache_memory_bytes="auto", max_num_seqs=8, memory_total_bytes=None)
    assert not answer["fits"]
    sequences = answer["changes"][0]["max_num_seqs"]
    assert glm(kv_cache_memory_bytes="auto", max_num_seqs=sequences, memory_total_bytes=None)["fits"]
    assert not glm(kv_cache_memory_bytes="auto", max_num_seqs=sequences + 1, memory_total_bytes=None)["fits"]


def test_auto_with_the_longest_context() -> None:
    """The longest context that the measured memory allows, and not a block more."""
    answer = glm(kv_cache_memory_bytes="auto", max_model_len=-1, engine="0.32.0", memory_total_bytes=None)
    assert answer["fits"]
    spare = min(rank["headroom_bytes"] for rank in answer["ranks"])
    assert 0 <= spare < answer["bytes_per_block"]
    assert answer["planned_model_len"] == answer["max_model_len"]


def test_self_sized_engine() -> None:
    """Without KV bytes the engine takes its share less what else it needs."""
    answer = glm(kv_cache_memory_bytes=None, gpu_memory_utilization=0.95, memory_available_bytes=None)
    total = -(-int(121.69 * GIB) * 95 // 100)
    assert answer["kv_cache_memory_bytes"] == total - int(106.93 * GIB) - 5 * GIB


def test_smallest_rank_decides() -> None:
    """Budgets by rank: the engine gives every rank the blocks of the poorest."""
    answer = fit(lab(kv_cache_memory_bytes=[20_000_000, 20_000_000, 19_000_000, 20_000_000]))
    assert answer["num_blocks"] == 19_000_000 // 73_728
    assert answer["kv_cache_memory_bytes"] == [20_000_000, 20_000_000, 19_000_000, 20_000_000]


def test_plan_document_is_stable() -> None:
    """What is measured at the moment does not get into the plan file."""
    first = fit_nodes(lab(memory_available_bytes=[GIB] * 4, memory_total_bytes=3 * GIB))
    second = fit_nodes(lab(memory_available_bytes=[GIB - 4096] * 4, memory_total_bytes=3 * GIB))
    assert first["document"] == second["document"]
    assert first["document"] == plan_document(first["result"])
    assert "available" not in first["document"]


def test_served_plan_is_not_compared_again() -> None:
    """A rank that serves this very plan holds its memory already; another rank is still compared."""
    options = lab(memory_available_bytes=[1_000_000] * 4, memory_total_bytes=3 * GIB)
    fresh = fit_nodes(options)
    assert not fresh["result"]["fits"]
    served = fit_nodes(options, [fresh["sha256"]] * 4)
    assert served["result"]["fits"] and served["served"] == [True] * 4
    one_down = fit_nodes(options, [fresh["sha256"]] * 3 + [""])
    assert not one_down["result"]["fits"]
    assert [rank["available_bytes"] for rank in one_down["result"]["ranks"]] == [None, None, None, 1_000_000]


def test_a_context_that_was_found_stays_while_it_is_served() -> None:
    """The served model holds the memory that would be measured; what is asked otherwise is looked for anew."""
    asked = {"kv_cache_memory_bytes": "auto", "max_model_len": -1, "memory_total_bytes": 3 * GIB}
    first = fit_nodes(lab(memory_available_bytes=[30_000_000] * 4, **asked))
    assert first["result"]["fits"] and first["result"]["planned_model_len"] < 4096
    later = lab(memory_available_bytes=[9_000_000] * 4, **asked)
    served = [first["sha256"]] * 4
    second = fit_nodes(later, served, first["document"])
    assert second["document"] == first["document"] and second["served"] == [True] * 4 and second["result"]["fits"]
    # Not served everywhere, another question, or another plan on the disk: the memory decides again.
    for serving, options, standing in (
        (["", *served[1:]], later, first["document"]),
        (served, {**later, "max_num_seqs": 3}, first["document"]),
        (served, later, first["document"] + " "),
    ):
        assert fit_nodes(options, serving, standing)["document"] != first["document"]


def test_pipeline_stages() -> None:
    """Layers are dealt out over the stages, the draft is on the last one, and the poorest stage decides."""
    answer = fit(lab(tensor_parallel_size=1, pipeline_parallel_size=2, nodes=["a", "b"]))
    # Three layers: two on the first stage, one and the draft layer on the second.
    assert answer["bytes_per_block"] == 2 * 18_432
    assert answer["num_blocks"] == 20_000_000 // (2 * 18_432)


def test_legal_dcp_is_proposed() -> None:
    """Where DCP is what the engine refuses, the next smaller one that it takes is the change, with its context."""
    answer = glm(decode_context_parallel_size=3)
    assert answer["changes"] == [{"decode_context_parallel_size": 2, "max_model_len": 66_048}]
    assert answer["reasons"][0].endswith("Smallest change: decode_context_parallel_size 2 with max_model_len 66048.")
    assert glm(**answer["changes"][0])["fits"]
    assert glm(decode_context_parallel_size=3, max_model_len=65_536)["changes"] == [{"decode_context_parallel_size": 2}]
    assert answer["ranks"] == [] and answer["num_blocks"] is None


def test_gate_sees_what_is_left_at_startup() -> None:
    """Ray, context and NCCL are there before the engine looks: 118.3 GiB before them are 110.66 GiB then."""
    options = {"memory_available_bytes": int(118.3 * GIB), "startup_bytes": int(7.64 * GIB)}
    assert glm(gpu_memory_utilization=0.9, **options)["fits"]
    answer = glm(gpu_memory_utilization=0.915, **options)
    assert answer["engine_error"].startswith("Free memory on device cuda:0 (110.66/121.69 GiB) on startup is less than")


def test_smallest_changes_of_a_short_node() -> None:
    """Fewer sequences, a shorter context or a larger DCP: each alone would do, and does."""
    options: dict[str, t.Any] = {
        "decode_context_parallel_size": 1,
        "kv_cache_memory_bytes": "auto",
        "max_model_len": 65_536,
        "max_num_seqs": 2,
        "memory_available_bytes": int(116.5 * GIB),
        "memory_total_bytes": None,
    }
    answer = glm(**options)
    assert [sorted(change) for change in answer["changes"]] == [
        ["max_num_seqs"],
        ["kv_cache_memory_bytes", "max_model_len"],
        ["decode_context_parallel_size"],
    ]
    for words in ("Rank 0 (spark1) does not fit: ", " B (", "max_num_seqs 1 or max_model_len ", " or decode_context_"):
        assert words in answer["reasons"][0]
    for change in answer["changes"]:
        assert glm(**{**options, **change})["fits"], change


def found(**options: t.Any) -> dict[str, t.Any]:
    """The longest context of the lab's model that memory and limit allow, for two sequences."""
    return fit(lab(kv_cache_memory_bytes="auto", max_model_len=-1, engine="0.32.0", **options))


BLOCK = 73_728
LIMITS: list[tuple[t.Any, t.Any, int]] = [
    # What is measured beside what is allowed: the less of both, for every rank.
    (30_000_000, 20_000_000, 20_000_000),
    (20_000_000, 30_000_000, 20_000_000),
    ([30_000_000, 9_000_000, 30_000_000, 30_000_000], 20_000_000, 9_000_000),
    (30_000_000, [20_000_000, 20_000_000, 20_000_000, 8_000_000], 8_000_000),
    # No measurement, or one that is not to be compared: the limit alone.
    (None, 20_000_000, 20_000_000),
    ([None, 5_000_000, 5_000_000, 5_000_000], 20_000_000, 20_000_000),
]


@pytest.mark.parametrize(("measured", "limit", "room"), LIMITS)
def test_a_budget_that_is_looked_for_keeps_below_its_limit(measured: t.Any, limit: t.Any, room: int) -> None:
    """The longest context of which every rank holds both sequences in that room, and not one token more."""
    answer = found(memory_available_bytes=measured, kv_cache_limit_bytes=limit)
    blocks = room // BLOCK - 1
    assert answer["planned_model_len"] == min(4096, blocks // 2 * 16)
    assert answer["kv_cache_memory_bytes"] <= room
    longer = answer["planned_model_len"] + 1
    assert longer > 4096 or fit(lab(kv_cache_memory_bytes="auto", max_model_len=longer))["kv_cache_memory_bytes"] > room


def test_a_limit_below_one_token() -> None:
    """Not even a token: the refusal says so, and what would be needed."""
    answer = found(kv_cache_limit_bytes=100_000)
    assert not answer["fits"] and answer["engine_error"].startswith("To serve at least one request")
    assert "not even one token fits" in answer["reasons"][0]


@pytest.mark.parametrize(
    "other",
    [
        {"kv_cache_memory_bytes": 20_000_000, "max_model_len": -1},
        {"kv_cache_memory_bytes": "auto", "max_model_len": 2048},
        {"kv_cache_memory_bytes": "auto"},
    ],
)
def test_a_limit_needs_something_that_is_looked_for(other: dict[str, t.Any]) -> None:
    """A limit beside a figure that stands would be silently ignored: it is an error."""
    message = "kv_cache_limit_bytes: 5 is not allowed; it bounds a budget that is looked for, which needs "
    with pytest.raises(ValueError, match="^" + re.escape(message)):
        fit(lab(kv_cache_limit_bytes=5, **other))

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Capacities and refusals that engines have really logged, on GB10, on H200 and on CPU."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit
from tests.fixtures.glm52 import question

MTP = {"method": "mtp", "num_speculative_tokens": 1}
REPLICATED = {**MTP, "replicated_draft": True}


def glm(**options: t.Any) -> dict[str, t.Any]:
    """GLM-5.2 at TP4, as the seed serves it, with some options changed."""
    return fit(question(**options))


# KV bytes a rank, DCP, context, drafts, blocks, tokens, concurrency as logged.
SEED_LOGS = [
    (1_810_000_000, 4, 131_072, MTP, 516, 132_096, "1.01"),
    (1_810_000_000, 4, 131_072, {**MTP, "num_speculative_tokens": 3}, 516, 132_096, "1.01"),
    (1_810_000_000, 1, 32_768, MTP, 516, 33_024, "1.01"),
    (1_900_000_000, 4, 131_072, MTP, 542, 138_752, "1.06"),
    (1_900_000_000, 4, 16_384, MTP, 542, 138_752, "8.47"),
    (1_900_000_000, 1, 16_384, MTP, 542, 34_688, "2.12"),
    (1_900_000_000, 1, 16_384, None, 550, 35_200, "2.15"),
    (1_900_000_000, 1, 16_384, REPLICATED, 550, 34_658, "2.12"),
    (1_900_000_000, 4, 131_072, REPLICATED, 550, 133_006, "1.01"),
    (1_900_000_000, 4, 32_768, REPLICATED, 550, 132_517, "4.04"),
    (900_000_000, 4, 16_384, MTP, 256, 65_536, "4.00"),
    (750_000_000, 4, 16_384, MTP, 214, 54_784, "3.34"),
    (1_680_000_000, 4, 120_000, MTP, 479, 122_558, "1.02"),
]


@pytest.mark.parametrize(("size", "dcp", "context", "drafts", "blocks", "tokens", "concurrency"), SEED_LOGS)
def test_seed_logs(
    size: int, dcp: int, context: int, drafts: t.Any, blocks: int, tokens: int, concurrency: str
) -> None:
    """What the seed's fork logged on four Sparks."""
    answer = glm(
        kv_cache_memory_bytes=size,
        decode_context_parallel_size=dcp,
        max_model_len=context,
        speculative_config=drafts,
    )
    assert (answer["fits"], answer["num_blocks"], answer["kv_cache_tokens"]) == (True, blocks, tokens)
    assert answer["engine_log"] == (
        "GPU KV cache size: {} tokens\nMaximum concurrency for {} tokens per request: {}x".format(
            format(tokens, ","), format(context, ","), concurrency
        )
    )


def test_seed_refusal() -> None:
    """480 blocks are needed and 479 are there."""
    answer = glm(kv_cache_memory_bytes=1_680_000_000, max_model_len=122_880)
    assert not answer["fits"]
    assert (answer["num_blocks"], answer["max_model_len"]) == (479, 122_624)
    assert (
        "(1.57 GiB KV cache is needed, which is larger than the available KV cache memory (1.56 GiB)"
        in (answer["engine_error"])
    )
    assert answer["changes"][0] == {"max_model_len": 122_624}
    assert answer["reasons"] == [
        "The KV cache of rank 0 is too small for one request of 122,880 tokens: 1,681,244,160 B (1.57 GiB) are needed, "
        "1,680,000,000 B (1.56 GiB) are there; the longest context that fits is 122,624 tokens. Smallest change: "
        "max_model_len 122624 or no speculative_config or kv_cache_memory_bytes 1681244160."
    ]


def test_every_indexer() -> None:
    """Without index sharing each of the 79 layers keeps an indexer."""
    answer = glm(kv_cache_memory_bytes=900_000_000, max_model_len=16_384, hf_overrides={"use_index_cache": False})
    assert (answer["bytes_per_block"], answer["num_blocks"], answer["kv_cache_tokens"]) == (3_984_128, 225, 57_600)


@pytest.mark.parametrize(
    ("options", "size"),
    [
        ({}, 3_502_592),
        ({"speculative_config": None}, 3_452_160),
        ({"kv_cache_dtype": "nvfp4_ds_mla"}, 2_046_464),
        ({"kv_cache_dtype": "bfloat16"}, 6_010_368),
        ({"kv_cache_dtype": "fp8"}, 3_502_592),
    ],
)
def test_block_bytes(options: dict[str, t.Any], size: int) -> None:
    """79 x 64 x 656 + 22 x 64 x 132, and what becomes of it."""
    answer = glm(kv_cache_memory_bytes=10_000_000_000, **options)
    assert answer["bytes_per_block"] == size
    assert answer["bytes_per_token"] == size // 64


def test_exact_million() -> None:
    """A million tokens fit to the last block."""
    answer = glm(kv_cache_dtype="nvfp4_ds_mla", kv_cache_memory_bytes=7_995_534_848, max_model_len=1_000_000)
    assert (answer["fits"], answer["num_blocks"]) == (True, 3_907)
    short = glm(kv_cache_dtype="nvfp4_ds_mla", kv_cache_memory_bytes=7_995_534_847, max_model_len=1_000_000)
    assert not short["fits"]


@pytest.mark.parametrize(
    ("options", "needed", "available", "blocks", "estimate"),
    [
        ({"decode_context_parallel_size": 1}, "6.68", "1.68", 516, 32_960),
        ({"max_model_len": 202_752}, "2.58", "1.68", 516, 131_840),
        ({"max_model_len": 132_096}, "1.68", "1.68", 516, 131_840),
        ({"kv_cache_dtype": "bfloat16"}, "2.87", "1.68", 301, 76_800),
    ],
)
def test_refusals_of_032(options: dict[str, t.Any], needed: str, available: str, blocks: int, estimate: int) -> None:
    """0.32 holds a block back before it checks, and its estimate shows it."""
    answer = glm(engine="0.32.0", **options)
    assert answer["engine_error"] == (
        f"To serve at least one request with the model's max seq len ({answer['planned_model_len']}), ("
        f"{needed} GiB KV cache is needed, which is larger than the available KV cache memory ({available} "
        f"GiB). Based on the available memory, the estimated maximum model length is {estimate}. Try "
        "increasing `gpu_memory_utilization` (which also controls CPU memory on the CPU backend) or "
        "decreasing `max_model_len` when initializing the engine. See "
        "https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details."
    )
    assert (answer["num_blocks"], answer["max_model_len"], answer["engine_log"]) == (blocks, estimate, None)


def test_auto_fit() -> None:
    """The longest context that fits, found by the engine itself."""
    answer = glm(engine="0.32.0", max_model_len=-1, hf_overrides={"max_position_embeddings": 202_752})
    assert answer["auto_fit_log"] == (
        "Auto-fit max_model_len: reduced from 202752 to 131840 to fit in available KV cache memory (1.68 GiB GPU)"
    )
    assert answer["engine_log"] == (
        "GPU KV cache size: 132,096 tokens, Maximum concurrency for 131,840 tokens per request: 1.00x"
    )
    assert answer["planned_model_len"] == 131_840


def test_block_outermost_layout() -> None:
    """The layout that keeps all layers of a block together rounds the block up."""
    answer = glm(engine="0.32.0", kv_cache_layout="BLHNC")
    assert (answer["bytes_per_block"], answer["num_blocks"], answer["kv_cache_tokens"]) == (3_526_656, 513, 131_328)


@pytest.mark.parametrize(
    ("engine", "context", "dcp", "size"),
    [
        ("0.28.0", 131_072, 4, 1_793_327_104),
        ("0.28.0", 32_768, 1, 1_793_327_104),
        ("0.30.0", 131_072, 4, 1_796_829_696),
        ("0.32.0", 32_768, 1, 1_796_829_696),
    ],
)
def test_smallest_budget(engine: str, context: int, dcp: int, size: int) -> None:
    """auto takes the smallest budget that the engine accepts, and not a byte less would do."""
    options = {"engine": engine, "max_model_len": context, "decode_context_parallel_size": dcp}
    answer = glm(**options, kv_cache_memory_bytes="auto")
    assert (answer["fits"], answer["kv_cache_memory_bytes"], answer["minimum_kv_bytes"]) == (True, size, size)
    assert glm(**options, kv_cache_memory_bytes=size)["fits"]
    assert not glm(**options, kv_cache_memory_bytes=size - 1)["fits"]


# On four H200 (SM90) with dummy weights. Engine, DCP, context, KV bytes, drafts -> blocks, tokens.
H200 = [
    ("0.33.0", 4, 131_072, 1_810_000_000, MTP, 516, 132_096),
    ("0.24.0", 1, 32_768, 1_810_000_000, MTP, 516, 33_024),
    ("0.24.0", 4, 131_072, 1_900_000_000, {**MTP, "num_speculative_tokens": 2}, 542, 138_752),
    ("0.24.0", 1, 16_384, 1_900_000_000, None, 550, 35_200),
]


@pytest.mark.parametrize(("engine", "dcp", "context", "size", "drafts", "blocks", "tokens"), H200)
def test_h200(engine: str, dcp: int, context: int, size: int, drafts: t.Any, blocks: int, tokens: int) -> None:
    """What the engines of 0.24 and 0.33 reported there."""
    answer = glm(
        engine=engine,
        decode_context_parallel_size=dcp,
        max_model_len=context,
        kv_cache_memory_bytes=size,
        speculative_config=drafts,
        compute_capability="9.0",
    )
    assert (answer["num_blocks"], answer["kv_cache_tokens"]) == (blocks, tokens)
    # 0.24 logs its capacity and then dies, because its sparse kernel does not return the LSE.
    assert answer["fits"] == (engine == "0.33.0" or dcp == 1)


@pytest.mark.parametrize(("engine", "estimate"), [("0.33.0", 131_840), ("0.24.0", 132_096)])
def test_h200_estimates(engine: str, estimate: int) -> None:
    """0.24 does not hold the null block back, 0.33 does."""
    answer = glm(engine=engine, max_model_len=202_752, compute_capability="9.0")
    assert f"the estimated maximum model length is {estimate}." in answer["engine_error"]


def test_h200_too_many_heads() -> None:
    """32 heads a rank are too many for the sparse kernel's DCP: the capacity is logged, then the engine dies."""
    answer = glm(
        engine="0.33.0",
        tensor_parallel_size=2,
        decode_context_parallel_size=2,
        max_model_len=65_536,
        compute_capability="9.0",
    )
    assert (answer["kv_cache_tokens"], answer["fits"]) == (66_048, False)
    assert answer["engine_log"] is not None
    assert "(num_heads < 32)" in answer["engine_error"]


def test_h200_dcp_texts() -> None:
    """Refusals, word for word."""
    uneven = glm(engine="0.24.0", decode_context_parallel_size=3)
    assert uneven["engine_error"] == "tp_size=4 must be divisible bydcp_size=3."
    assert glm(engine="0.32.0", decode_context_parallel_size=3)["engine_error"] == (
        "tp_size=4 must be divisible by dcp_size=3."
    )
    llama = {
        "model_type": "llama",
        "num_hidden_layers": 2,
        "num_attention_heads": 32,
        "num_key_value_heads": 8,
        "hidden_size": 4096,
    }
    grouped = glm(
        engine="0.24.0", config=llama, kv_cache_dtype="auto", decode_context_parallel_size=2, speculative_config=None
    )
    assert grouped["engine_error"] == (
        "tensor parallel size 4 must be greater than total num kv heads 8 when enable decode context parallel for "
        "GQA/MQA"
    )


def test_interleave_is_compared_with_the_blocks_of_the_plan() -> None:
    """The engine logs its capacity before it looks at the interleave; the change holds the context that then fits."""
    answer = glm(dcp_kv_cache_interleave_size=48)
    assert answer["engine_error"] == (
        "Block_size(64) should be greater than or equal to and divisible by cp_kv_cache_interleave_size (48)."
    )
    assert answer["engine_log"].startswith("GPU KV cache size: 132,096 tokens")
    assert answer["changes"] == [{"decode_context_parallel_size": 1, "max_model_len": 33_024}]
    assert glm(dcp_kv_cache_interleave_size=48, **answer["changes"][0])["fits"]
    # What does not fit is said first.
    short = glm(dcp_kv_cache_interleave_size=48, max_model_len=202_752)
    assert short["engine_error"].startswith("To serve at least one request")
    assert glm(dcp_kv_cache_interleave_size=16)["fits"] and glm(dcp_kv_cache_interleave_size=64)["fits"]
    assert glm(cp_kv_cache_interleave_size=48)["engine_error"] == answer["engine_error"]

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Every planner dialect beside what the functions of that vLLM version answered.

The fixture holds blocks, log lines and refusals that the published wheels of each version gave for the generated
questions of tests/oracle/cases.py; only the log and the text are kept, so that no old vLLM is needed here.
"""

from __future__ import annotations

import json
import typing as t
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_dialects import find_dialect
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_options import parse_request
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_planner import build_geometry, plan_cache
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_specs import EngineRefusal
from tests.fixtures.glm52 import GLM
from tests.oracle.cases import generate

RECORDED = json.loads((Path(__file__).parents[1] / "fixtures/planner-dialects.json").read_text(encoding="utf-8"))
UNEVEN_GROUPS = "If tensor parallel world size does not divide num_groups, then num_groups must equal 1."
MODEL = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 8, "head_dim": 64}


def answer(options: dict[str, t.Any]) -> dict[str, t.Any]:
    """Ours, in the shape of the fixture."""
    request = parse_request(options)
    try:
        capacity = plan_cache(build_geometry(request), request.kv_cache_memory_bytes, request.max_model_len)
    except EngineRefusal as refusal:
        return {"error": str(refusal)}
    if capacity.error is not None:
        return {"error": capacity.error}
    return {"blocks": capacity.blocks, "log": capacity.log}


@pytest.mark.parametrize("engine", sorted(RECORDED))
def test_recorded(engine: str) -> None:
    """Blocks, log lines and refusals of this version, without deviation."""
    assert len(RECORDED[engine]) > 25
    for seed, theirs in RECORDED[engine].items():
        options = generate(int(seed))
        ours = answer({**options, "engine": engine})
        if "error" in ours and ours["error"] == UNEVEN_GROUPS:
            # The model's class refuses before the planner, which alone was recorded, is asked; the real classes say so
            # in tests/oracle/test_builds.py. It is only right where TP deals the groups out unevenly.
            groups, ranks = options["config"]["n_groups"], options["tensor_parallel_size"]
            assert groups != 1 and groups % ranks, seed
            continue
        assert ours == theirs, seed


@pytest.mark.parametrize("engine", ["0.32", "0.32.0", "0.32.1", "0.32.0+cpu", "0.32.0rc1", "0.32.1.dev5+g1234"])
def test_spellings(engine: str) -> None:
    """A version counts by its minor number, whatever was appended."""
    assert find_dialect(engine).name == "0.32"


@pytest.mark.parametrize("engine", ["0.29.0", "1.0", "", "0.3", "v0.32.0", "dark"])
def test_unknown_versions(engine: str) -> None:
    """A version that was not compared with its wheel is refused."""
    with pytest.raises(ValueError, match="is not a planner that is known here"):
        find_dialect(engine)


@pytest.mark.parametrize(
    ("engine", "dtype"), [("0.13.0", "nvfp4"), ("0.24.0", "int4_per_token_head"), ("0.28.0", "nvfp4_ds_mla")]
)
def test_cache_dtypes_by_version(engine: str, dtype: str) -> None:
    """A cache dtype that the version does not offer is an error."""
    options = {"config": MODEL, "engine": engine, "kv_cache_dtype": dtype, "kv_cache_memory_bytes": 10**6}
    with pytest.raises(ValueError, match=f"^kv_cache_dtype: '{dtype}' is not known to engine {engine[:4]}$"):
        fit({**options, "max_model_len": 16})


@pytest.mark.parametrize(
    ("engine", "block_size", "states"), [("0.24.0", 272, 1), ("0.32.0", 272, 2), ("0.33.0", 320, 3)]
)
def test_gated_delta_net_on_h200(engine: str, block_size: int, states: int) -> None:
    """Qwen3-Next at TP4 on SM90: blocks and states of a request, as the engines there had them."""
    config = {
        "model_type": "qwen3_next",
        "num_hidden_layers": 4,
        "num_attention_heads": 16,
        "num_key_value_heads": 2,
        "head_dim": 256,
        "linear_num_key_heads": 16,
        "linear_num_value_heads": 32,
        "linear_key_head_dim": 128,
        "linear_value_head_dim": 128,
        "linear_conv_kernel_dim": 4,
        "max_position_embeddings": 262_144,
    }
    found = fit(
        {
            "config": config,
            "engine": engine,
            "tensor_parallel_size": 4,
            "compute_capability": "9.0",
            "kv_cache_memory_bytes": 10**9,
            "max_model_len": 2048,
        }
    )
    assert found["block_size"] == block_size
    blocks = -(-2048 // block_size) + 3 * states
    assert found["max_concurrency"] == found["num_blocks"] / blocks


NEMOTRON = {
    "model_type": "nemotron_h",
    "num_hidden_layers": 4,
    "hybrid_override_pattern": "MM*-",
    "num_attention_heads": 32,
    "num_key_value_heads": 8,
    "head_dim": 128,
    "mamba_num_heads": 128,
    "mamba_head_dim": 64,
    "n_groups": 8,
    "ssm_state_size": 128,
    "conv_kernel": 4,
    "chunk_size": 256,
    "max_position_embeddings": 131_072,
}
# State: (8192 + 2*8*128) * 3 * 2 + 128*64*128*4 = 4,255,744 B; attention: 4096 B a token; 1,039 tokens hold a state.
# `all`: blocks of whole chunks of 256, a state for each; `align`: multiples of 16, two states; none: one.
STATES = [
    ("0.13.0", True, 1280, 7 + 7),
    ("0.13.0", False, 1040, 8 + 1),
    ("0.20.0", True, 1280, 7 + 7),
    ("0.24.0", True, 1280, 7 + 7),
    ("0.24.0", None, 1040, 8 + 1),
    ("0.26.0", None, 1280, 7 + 7),
    ("0.28.0", None, 1040, 8 + 2),
    ("0.32.0", None, 1040, 8 + 3),
]


@pytest.mark.parametrize(("engine", "cached", "block_size", "blocks"), STATES)
def test_mamba2_prefixes(engine: str, cached: bool | None, block_size: int, blocks: int) -> None:
    """Cached prefixes of Mamba2, as the versions keep them: two mamba layers are two groups of one attention layer."""
    found = fit(
        {
            "config": NEMOTRON,
            "engine": engine,
            "enable_prefix_caching": cached,
            "kv_cache_memory_bytes": 10**9,
            "max_model_len": 8192,
        }
    )
    assert found["block_size"] == block_size
    states = blocks - -(-8192 // block_size)
    assert found["max_concurrency"] == found["num_blocks"] / (-(-8192 // block_size) + 2 * states)


def test_sequences_without_blocks() -> None:
    """CUDA graphs want a block for each sequence of a model with recurrent layers."""
    options = {"config": NEMOTRON, "kv_cache_memory_bytes": 200_000_000, "max_model_len": 2048, "max_num_seqs": 256}
    answer = fit(options)
    assert answer["engine_error"] == (
        "max_num_seqs (256) exceeds available Mamba cache blocks (46). Each decode sequence requires one Mamba cache "
        "block, so CUDA graph capture cannot proceed. Please lower max_num_seqs to at most 46 or increase "
        "gpu_memory_utilization."
    )
    assert answer["changes"] == [{"max_num_seqs": 46}]
    assert answer["engine_log"] is not None
    for change in ({"enforce_eager": True}, {"max_num_seqs": 46}, {"engine": "0.13.0"}):
        assert fit({**options, **change})["engine_error"] is None


PAGES = [
    (
        "0.13.0",
        "The page size of the layer is not divisible by the maximum page size. Cannot unify by adjusting block_",
    ),
    ("0.24.0", None),
    ("0.32.0", None),
]


@pytest.mark.parametrize(("engine", "error"), PAGES)
def test_pages_that_do_not_divide(engine: str, error: str | None) -> None:
    """A draft whose page does not divide that of a windowed model: refused of old, padded since 0.24."""
    window = {**MODEL, "model_type": "gemma2", "num_key_value_heads": 8, "sliding_window": 128}
    draft = {**MODEL, "num_key_value_heads": 5, "num_attention_heads": 10, "num_hidden_layers": 1}
    answer = fit(
        {
            "config": window,
            "draft_config": draft,
            "engine": engine,
            "speculative_config": {"method": "eagle", "num_speculative_tokens": 1},
            "kv_cache_memory_bytes": 10**9,
            "max_model_len": 4096,
        }
    )
    if error is None:
        assert answer["fits"]
    else:
        assert answer["engine_error"].startswith(error)


@pytest.mark.parametrize(
    ("capability", "block_size", "dtype", "chosen"),
    [
        ("9.0", None, "auto", 16),
        ("9.0", None, "fp8", 64),
        ("9.0", 16, "fp8", 16),
        ("10.0", None, "auto", 32),
        ("10.0", 16, "auto", 16),
        ("12.1", None, "fp8", 16),
    ],
)
def test_kernels_of_latent_attention(capability: str, block_size: int | None, dtype: str, chosen: int) -> None:
    """The first kernel that runs on the GPU, reads the cache and takes the block size."""
    model = {
        "model_type": "deepseek_v3",
        "num_hidden_layers": 2,
        "num_attention_heads": 16,
        "kv_lora_rank": 512,
        "qk_rope_head_dim": 64,
    }
    answer = fit(
        {
            "config": model,
            "compute_capability": capability,
            "block_size": block_size,
            "kv_cache_dtype": dtype,
            "kv_cache_memory_bytes": 10**9,
            "max_model_len": 4096,
        }
    )
    assert answer["fits"] and answer["block_size"] == chosen


def test_no_kernel_for_context_parallelism() -> None:
    """GLM-5.2 with DCP on a GB10: upstream's only sparse kernel there has none, in the engine's own words."""
    answer = fit(
        {
            "config": GLM,
            "compute_capability": "12.1",
            "tensor_parallel_size": 4,
            "decode_context_parallel_size": 4,
            "kv_cache_dtype": "fp8_ds_mla",
            "kv_cache_memory_bytes": 1_810_000_000,
            "max_model_len": 131_072,
        }
    )
    assert answer["engine_error"] == (
        "No valid attention backend found for cuda with AttentionSelectorConfig(head_size=576, dtype=torch.bfloat16, "
        "kv_cache_dtype=fp8_ds_mla, block_size=None, use_mla=True, has_sink=False, use_sparse=True, "
        "use_mm_prefix=False, use_per_head_quant_scales=False, attn_type=AttentionType.DECODER, "
        "has_sliding_window=False, use_non_causal=False, use_batch_invariant=False, use_kv_connector=False, "
        "use_adaptive_verification=False, use_pcp=False, use_dcp=True, use_rswa=False). Reasons: {TRITON_MLA: "
        "[kv_cache_dtype not supported, sparse not supported], FLASHINFER_MLA_SPARSE_SM120: [DCP not supported]}."
    )
    # DCP 1 alone would not do: four times the blocks.
    assert answer["changes"] == [{"decode_context_parallel_size": 1, "max_model_len": 33_472}]
    assert answer["reasons"][0].endswith("Smallest change: decode_context_parallel_size 1 with max_model_len 33472.")


DEEPSEEK_SPARSE = {
    "model_type": "deepseek_v32",
    "num_hidden_layers": 1,
    "num_attention_heads": 64,
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
    "index_topk": 2048,
    "index_head_dim": 128,
    "max_position_embeddings": 4096,
}


# Kernel and cache dtype as the classes of each version answered, on four ranks.
@pytest.mark.parametrize(
    ("engine", "model", "capability", "dtype", "kernel", "packed"),
    [
        # FA4's kernel reads bf16 on SM100, for few heads; before there was none, and FlashInfer's was first.
        ("0.33.0", DEEPSEEK_SPARSE, "10.0", "auto", "FLASH_ATTN_MLA_SPARSE_FA4", "auto"),
        ("0.32.0", DEEPSEEK_SPARSE, "10.0", "auto", "FLASHINFER_MLA_SPARSE", "auto"),
        ("0.33.0", {**DEEPSEEK_SPARSE, "index_topk": 1000}, "10.0", "auto", "FLASHINFER_MLA_SPARSE", "auto"),
        ("0.33.0", {**DEEPSEEK_SPARSE, "num_attention_heads": 128}, "10.0", "auto", "FLASHMLA_SPARSE", "auto"),
        ("0.33.0", DEEPSEEK_SPARSE, "10.0", "fp8", "FLASHINFER_MLA_SPARSE", "fp8"),
        # GLM-5 wants fp8 on SM100 since 0.32, DeepSeek V3.2 takes bfloat16 for auto.
        ("0.30.0", GLM, "10.0", "auto", "FLASHINFER_MLA_SPARSE", "auto"),
        ("0.31.0", GLM, "10.0", "auto", "FLASHINFER_MLA_SPARSE", "auto"),
        ("0.32.0", GLM, "10.0", "auto", "FLASHINFER_MLA_SPARSE", "fp8_e4m3"),
        ("0.24.0", GLM, "10.0", "auto", "FLASHINFER_MLA_SPARSE", "auto"),
        ("0.32.0", DEEPSEEK_SPARSE, "12.1", "bfloat16", "FLASHINFER_MLA_SPARSE_SM120", "fp8_ds_mla"),
        ("0.24.0", GLM, "12.1", "auto", "FLASHINFER_MLA_SPARSE_SM120", "fp8_ds_mla"),
        # FlashAttention's sparse kernel came with 0.26, FlashInfer's for SM90 with 0.30.
        ("0.24.0", GLM, "9.0", "auto", "FLASHMLA_SPARSE", "auto"),
        ("0.26.0", GLM, "9.0", "auto", "FLASH_ATTN_MLA_SPARSE", "auto"),
        ("0.30.0", GLM, "9.0", "fp8_e4m3", "FLASHINFER_MLA_SPARSE_SM90", "fp8_e4m3"),
        # 0.13 packs whatever is called fp8.
        ("0.13.0", DEEPSEEK_SPARSE, "9.0", "fp8_e4m3", "FLASHMLA_SPARSE", "fp8_ds_mla"),
        ("0.13.0", DEEPSEEK_SPARSE, "10.0", "fp8", "FLASHMLA_SPARSE", "fp8_ds_mla"),
    ],
)
def test_kernels_by_version(
    engine: str, model: dict[str, t.Any], capability: str, dtype: str, kernel: str, packed: str
) -> None:
    """Sparse MLA by version."""
    asked = {"config": model, "engine": engine, "compute_capability": capability, "kv_cache_dtype": dtype}
    geometry = build_geometry(parse_request({**asked, "tensor_parallel_size": 4, "max_model_len": 64}))
    assert (geometry.backend.name, geometry.dtype) == (kernel, packed)


# What the classes of each version say when no kernel runs.
REFUSALS = [
    (
        "0.20.0",
        "12.1",
        {},
        "head_size=576, dtype=torch.bfloat16, kv_cache_dtype=auto, block_size=None, use_mla=True, has_sink=False, "
        "use_sparse=True, use_mm_prefix=False, use_per_head_quant_scales=False, attn_type=AttentionType.DECODER, "
        "use_non_causal=False, use_batch_invariant=False). Reasons: {FLASH_ATTN_MLA: [sparse not supported, compute "
        "capability not supported, FlashAttention MLA not supported on this device], FLASHMLA: [sparse not supported, "
        "compute capability not supported, FlashMLA Sparse is only supported on Hopper and Blackwell devices.], "
        "FLASHINFER_MLA: [sparse not supported, compute capability not supported], TRITON_MLA: [sparse not supported], "
        "FLASHMLA_SPARSE: [compute capability not supported]}.",
    ),
    (
        "0.13.0",
        "12.1",
        {"block_size": 16},
        "head_size=576, dtype=torch.bfloat16, kv_cache_dtype=auto, block_size=None, use_mla=True, has_sink=False, "
        "use_sparse=True, use_mm_prefix=False, attn_type=decoder). Reasons: {FLASH_ATTN_MLA: [sparse not supported, "
        "compute capability not supported, FlashAttention MLA not supported on this device], FLASHMLA: [sparse not "
        "supported, compute capability not supported, FlashMLA Sparse is only supported on Hopper and Blackwell "
        "devices.], FLASHINFER_MLA: [sparse not supported, compute capability not supported], TRITON_MLA: [sparse not "
        "supported], FLASHMLA_SPARSE: [compute capability not supported]}.",
    ),
    (
        "0.33.0",
        "10.0",
        {"block_size": 16},
        "head_size=576, dtype=torch.bfloat16, kv_cache_dtype=auto, block_size=16, use_mla=True, has_sink=False, "
        "use_sparse=True, use_mm_prefix=False, use_per_head_quant_scales=False, attn_type=AttentionType.DECODER, "
        "has_sliding_window=False, use_non_causal=False, use_batch_invariant=False, use_kv_connector=False, "
        "use_adaptive_verification=False, use_pcp=False, use_dcp=False, use_rswa=False). Reasons: {FLASHINFER_MLA: "
        "[block_size not supported, sparse not supported], TOKENSPEED_MLA: [kv_cache_dtype not supported, block_size "
        "not supported, sparse not supported], CUTLASS_MLA: [block_size not supported, sparse not supported], "
        "FLASH_ATTN_MLA: [sparse not supported, compute capability not supported, FlashAttention MLA not supported on "
        "this device], FLASHMLA: [block_size not supported, sparse not supported], TRITON_MLA: [sparse not supported], "
        "FLASH_ATTN_MLA_SPARSE_FA4: [block_size not supported], FLASHINFER_MLA_SPARSE: [block_size not supported], "
        "FLASHMLA_SPARSE: [block_size not supported]}.",
    ),
]


@pytest.mark.parametrize(("engine", "capability", "more", "words"), REFUSALS)
def test_no_kernel_by_version(engine: str, capability: str, more: dict[str, t.Any], words: str) -> None:
    """DeepSeek V3.2 where nothing runs it."""
    asked = {"config": DEEPSEEK_SPARSE, "engine": engine, "compute_capability": capability, **more}
    with pytest.raises(EngineRefusal) as refusal:
        build_geometry(parse_request({**asked, "tensor_parallel_size": 4, "max_model_len": 64}))
    assert str(refusal.value) == f"No valid attention backend found for cuda with AttentionSelectorConfig({words}"


GROUPED = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 4096,
}


@pytest.mark.parametrize(
    ("engine", "model", "capability", "dtype", "kernel"),
    [
        ("0.33.0", GROUPED, "9.0", "auto", "FLASH_ATTN"),
        ("0.33.0", GROUPED, "9.0", "fp8", "FLASH_ATTN"),
        # FlashAttention reads fp8 on SM90 and SM100 only, FlashInfer fp8_e5m2 too, and few sizes of heads.
        ("0.33.0", GROUPED, "12.1", "fp8", "FLASHINFER"),
        ("0.33.0", GROUPED, "9.0", "fp8_e5m2", "FLASHINFER"),
        ("0.33.0", {**GROUPED, "head_dim": 80}, "12.1", "fp8", "TRITON_ATTN"),
        ("0.33.0", {**GROUPED, "head_dim": 80}, "10.0", "fp8", "FLASH_ATTN"),
        ("0.33.0", GROUPED, "10.0", "auto", "FLASHINFER"),
        ("0.33.0", GROUPED, "12.1", "nvfp4", "FLASHINFER"),
        ("0.30.0", GROUPED, "10.0", "nvfp4", "FLASHINFER"),
        ("0.30.0", GROUPED, "12.1", "int8_per_token_head", "TRITON_ATTN"),
    ],
)
def test_kernels_of_grouped_heads(
    engine: str, model: dict[str, t.Any], capability: str, dtype: str, kernel: str
) -> None:
    """K and V heads by version, as the classes of each answered."""
    asked = {"config": model, "engine": engine, "compute_capability": capability, "kv_cache_dtype": dtype}
    geometry = build_geometry(parse_request({**asked, "tensor_parallel_size": 4, "max_model_len": 64}))
    assert geometry.backend.name == kernel


@pytest.mark.parametrize(
    ("capability", "dtype", "kv_heads", "sizes"),
    [
        ("10.0", "auto", 8, (16, 32, 64, 128, 256, 512, 1024)),
        ("10.0", "auto", 32, (16, 32, 64)),
        ("12.1", "fp8", 8, (16, 32, 64)),
    ],
)
def test_pages_of_flashinfer(capability: str, dtype: str, kv_heads: int, sizes: tuple[int, ...]) -> None:
    """What 0.33's class says of its pages: larger ones on SM100 where query heads share a K and V head."""
    asked = {"config": {**GROUPED, "num_key_value_heads": kv_heads}, "engine": "0.33.0", "kv_cache_dtype": dtype}
    geometry = build_geometry(parse_request({**asked, "compute_capability": capability, "max_model_len": 64}))
    assert (geometry.backend.name, geometry.backend.fixed) == ("FLASHINFER", sizes)


def test_no_kernel_for_grouped_heads() -> None:
    """The 0.30 classes about NVFP4 on a GB10, which they read on SM100 only."""
    asked = {"config": GROUPED, "engine": "0.30.0", "compute_capability": "12.1", "kv_cache_dtype": "nvfp4"}
    with pytest.raises(EngineRefusal) as refusal:
        build_geometry(parse_request({**asked, "tensor_parallel_size": 4, "max_model_len": 64}))
    assert str(refusal.value) == (
        "No valid attention backend found for cuda with AttentionSelectorConfig(head_size=128, dtype=torch.bfloat16, "
        "kv_cache_dtype=nvfp4, block_size=None, use_mla=False, has_sink=False, use_sparse=False, use_mm_prefix=False, "
        "use_per_head_quant_scales=False, attn_type=AttentionType.DECODER, has_sliding_window=False, "
        "use_non_causal=False, use_batch_invariant=False, use_kv_connector=False, use_adaptive_verification=False, "
        "use_pcp=False, use_dcp=False, use_rswa=False). Reasons: {FLASH_ATTN: [kv_cache_dtype not supported, FP8 KV "
        "cache requires FA3 on SM90 or FA4 on SM100], FLASHINFER: [kv_cache_dtype not supported], TRITON_ATTN: "
        "[kv_cache_dtype not supported], FLEX_ATTENTION: [kv_cache_dtype not supported], TURBOQUANT: [kv_cache_dtype "
        "not supported]}."
    )


def test_a_kernel_by_name_that_does_not_run() -> None:
    """The 0.32 classes about FlashInfer's sparse kernel on a GB10."""
    asked = {"config": GLM, "compute_capability": "12.1", "attention_backend": "FLASHINFER_MLA_SPARSE"}
    with pytest.raises(EngineRefusal) as refusal:
        build_geometry(parse_request({**asked, "kv_cache_dtype": "fp8_ds_mla", "max_model_len": 64}))
    assert str(refusal.value) == (
        "Selected backend AttentionBackendEnum.FLASHINFER_MLA_SPARSE is not valid for this configuration. Reason: "
        "['kv_cache_dtype not supported', 'compute capability not supported', 'FLASHINFER_MLA_SPARSE SM10 does not "
        "support fp8_ds_mla kv-cache dtype']"
    )


@pytest.mark.parametrize(
    ("dtype", "capability", "row_bytes"),
    [
        # FlashMLA packs what it is asked for as fp8, and does not read fp8_e4m3: FlashInfer's kernel does, as it is.
        ("fp8", "9.0", 656),
        ("fp8_e4m3", "9.0", 576),
        ("fp8_e4m3", "10.0", 576),
        ("fp8_e4m3", "12.1", 656),
    ],
)
def test_the_kernel_of_sparse_attention_decides_the_rows(dtype: str, capability: str, row_bytes: int) -> None:
    """One layer of GLM-5.2 with its indexer, in blocks of 64."""
    asked = {"kv_cache_dtype": dtype, "compute_capability": capability, "max_model_len": 4096}
    overrides = {"num_hidden_layers": 1}
    answer = fit({"config": GLM, "kv_cache_memory_bytes": 10**9, "hf_overrides": overrides, **asked})
    assert answer["bytes_per_block"] == 64 * (row_bytes + 132)

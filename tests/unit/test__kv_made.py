# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What attention kernels refuse after they were chosen: made for a layer, or when their cache is there."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit

LLAMA: dict[str, t.Any] = {
    "model_type": "llama",
    "num_hidden_layers": 2,
    "num_attention_heads": 32,
    "num_key_value_heads": 2,
    "head_dim": 128,
    "max_position_embeddings": 4096,
}
GEMMA2 = {**LLAMA, "model_type": "gemma2", "sliding_window": 512}
DEEPSEEK = {
    **LLAMA,
    "model_type": "deepseek_v3",
    "kv_lora_rank": 512,
    "qk_rope_head_dim": 64,
    "qk_nope_head_dim": 128,
    "v_head_dim": 128,
}
GLM = {**DEEPSEEK, "model_type": "glm_moe_dsa", "index_topk": 2048, "index_head_dim": 128}
MIMO = {
    **LLAMA,
    "model_type": "mimo_v2_flash",
    "head_dim": 192,
    "v_head_dim": 128,
    "hybrid_layer_pattern": [0, 1],
    "swa_num_key_value_heads": 2,
    "swa_head_dim": 192,
    "swa_v_head_dim": 128,
    "sliding_window_size": 128,
}
WHISPER = {
    "model_type": "whisper",
    "decoder_layers": 2,
    "decoder_attention_heads": 16,
    "d_model": 1024,
    "max_source_positions": 1500,
    "max_target_positions": 448,
}
SPARSE_BF16 = (
    "DCP for FlashMLA sparse requires an fp8_ds_mla kv-cache; the bf16 sparse path is not supported under DCP."
)
TRITON_FP8 = (
    "FP8 KV cache is not supported by the Triton attention backend on this GPU (compute capability 8.6); native FP8 "
    "(fp8e4nv) requires SM89+. Re-run with --kv-cache-dtype bfloat16."
)
NO_CROSS = (
    "Selected backend AttentionBackendEnum.FLASHINFER is not valid for this configuration. Reason: "
    "['attention type AttentionType.ENCODER_DECODER not supported']"
)


def answer(config: dict[str, t.Any], engine: str, capability: str, dtype: str, **options: t.Any) -> dict[str, t.Any]:
    """The answer for four ranks with much memory."""
    return fit(
        {
            "config": config,
            "engine": engine,
            "compute_capability": capability,
            "kv_cache_dtype": dtype,
            "kv_cache_memory_bytes": 1_000_000_000,
            "max_model_len": 400,
            "tensor_parallel_size": 4,
            **options,
        }
    )


@pytest.mark.parametrize(
    ("config", "engine", "capability", "dtype", "options", "words"),
    [
        (LLAMA, "0.32.0", "8.6", "fp8", {"attention_backend": "TRITON_ATTN"}, TRITON_FP8),
        (LLAMA, "0.32.0", "8.9", "fp8", {"attention_backend": "TRITON_ATTN"}, None),
        (LLAMA, "0.32.0", "8.6", "int8_per_token_head", {"attention_backend": "TRITON_ATTN"}, None),
        (
            GEMMA2,
            "0.32.0",
            "9.0",
            "auto",
            {"attention_backend": "FLEX_ATTENTION"},
            "FlexAttention does not support logits soft cap yet.",
        ),
        (
            MIMO,
            "0.28.0",
            "12.1",
            "fp8",
            {},
            "TritonAttentionDiffKVBackend does not yet support quantized KV cache (got kv_cache_dtype='fp8').",
        ),
        (MIMO, "0.32.0", "12.1", "fp8", {}, None),
        (
            MIMO,
            "0.32.0",
            "12.1",
            "nvfp4",
            {},
            "TritonAttentionDiffKVBackend supports only fp8/fp8_e4m3 quantized KV cache (got kv_cache_dtype='nvfp4').",
        ),
        (MIMO, "0.33.0", "10.0", "fp8", {}, "FlashAttention does not support fp8 kv-cache on this device."),
        (MIMO, "0.20.0", "12.1", "fp8", {}, "FlashAttention does not support fp8 kv-cache on this device."),
        (GLM, "0.33.0", "9.0", "bfloat16", {"decode_context_parallel_size": 2}, SPARSE_BF16),
        (WHISPER, "0.32.0", "10.0", "auto", {}, None),
        (WHISPER, "0.32.0", "10.0", "auto", {"attention_backend": "FLASHINFER"}, NO_CROSS),
    ],
)
def test_refused_when_made(
    config: dict[str, t.Any], engine: str, capability: str, dtype: str, options: dict[str, t.Any], words: str | None
) -> None:
    """The engine dies when it makes its layers, before it knows of any capacity."""
    result = answer(config, engine, capability, dtype, **options)
    assert result["engine_error"] == words
    assert result["fits"] == (words is None)
    assert (result["engine_log"] is None) == (words is not None)


DCP: dict[str, t.Any] = {"decode_context_parallel_size": 2}
EIGHT: dict[str, t.Any] = {"decode_context_parallel_size": 8, "tensor_parallel_size": 8}
MANY_HEADS = {**GLM, "model_type": "deepseek_v32", "num_attention_heads": 128}
ENVELOPE = (
    "DCP for FlashMLA sparse requires the local and DCP-gathered head counts to pad to the same fp8 decode kernel "
    "envelope; got 16 local heads (pad to 64) vs 128 gathered heads (pad to 128)"
)
SM100F = "--kv-cache-dtype nvfp4 requires sm100f, please try a different dtype or remove"
WINDOWS = "Window left is not the same for all layers. One potential fix is to set disable_sliding_window=True"


@pytest.mark.parametrize(
    ("config", "engine", "capability", "dtype", "options", "words"),
    [
        (DEEPSEEK, "0.24.0", "9.0", "fp8", DCP, "DCP not support fp8 kvcache now."),
        (DEEPSEEK, "0.24.0", "9.0", "auto", DCP, None),
        (DEEPSEEK, "0.26.0", "9.0", "fp8", DCP, None),
        (
            GLM,
            "0.28.0",
            "10.0",
            "fp8",
            {**DCP, "dcp_kv_cache_interleave_size": 16},
            "DCP sparse indexer currently supports only cp_kv_cache_interleave_size=1 (got 16).",
        ),
        (GLM, "0.28.0", "10.0", "fp8", DCP, None),
        (MANY_HEADS, "0.33.0", "9.0", "fp8", EIGHT, ENVELOPE),
        (MANY_HEADS, "0.33.0", "9.0", "fp8", {**EIGHT, "decode_context_parallel_size": 4}, None),
        (LLAMA, "0.24.0", "12.1", "nvfp4", {}, SM100F),
        (LLAMA, "0.24.0", "10.0", "nvfp4", {}, None),
        (LLAMA, "0.32.0", "12.1", "nvfp4", DCP, "The DCP prefill wrapper cannot read NVFP4 block scales."),
        (LLAMA, "0.32.0", "12.1", "nvfp4", {}, None),
        (LLAMA, "0.20.0", "9.0", "fp8_e5m2", {}, "Unrecognized FP8 dtype: fp8_e5m2"),
        (GEMMA2, "0.32.0", "12.1", "fp8", {"disable_hybrid_kv_cache_manager": True}, WINDOWS),
        (GEMMA2, "0.32.0", "12.1", "fp8", {}, None),
    ],
)
def test_refused_when_planned(
    config: dict[str, t.Any], engine: str, capability: str, dtype: str, options: dict[str, t.Any], words: str | None
) -> None:
    """The engine prints its capacity, and dies then."""
    result = answer(config, engine, capability, dtype, **options)
    assert result["engine_error"] == words
    assert result["fits"] == (words is None)
    assert result["engine_log"] is not None


def test_block_of_flashinfer() -> None:
    """0.13 knows of a bug on SM100 with heads of 256 elements in blocks of 16."""
    wide = {**LLAMA, "head_dim": 256}
    assert "block_size 16 head size 256" in answer(wide, "0.13.0", "10.0", "auto")["engine_error"]
    assert answer(wide, "0.13.0", "10.0", "auto", block_size=32)["engine_error"] is None


@pytest.mark.parametrize(
    ("config", "engine", "capability", "dtype"),
    [
        (LLAMA, "0.20.0", "9.0", "nvfp4"),
        (LLAMA, "0.20.0", "9.0", "fp8_per_token_head"),
        ({**LLAMA, "head_dim": 512}, "0.24.0", "9.0", "fp8"),
        (MIMO, "0.32.0", "9.0", "nvfp4"),
        (MIMO, "0.24.0", "10.0", "fp8"),
        (MIMO, "0.20.0", "12.1", "auto"),
        ({**MIMO, "add_swa_attention_sink_bias": True}, "0.32.0", "9.0", "fp8"),
    ],
)
def test_not_known(config: dict[str, t.Any], engine: str, capability: str, dtype: str) -> None:
    """What a kernel neither refuses nor is known to run is refused by name rather than planned."""
    with pytest.raises(ValueError, match=f"kv_cache_dtype: '{dtype}' with kernel FLASH_ATTN"):
        answer(config, engine, capability, dtype)


def test_rotary_part_of_latent_attention() -> None:
    """No model class that is known here runs MLA without one."""
    with pytest.raises(ValueError, match="qk_rope_head_dim is 0"):
        answer({**DEEPSEEK, "qk_rope_head_dim": 0}, "0.32.0", "9.0", "auto")

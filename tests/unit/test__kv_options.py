# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Bad input: an error that names the option, the value and the rule, before any arithmetic."""

from __future__ import annotations

import re
import typing as t

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_options import parse_request

LLAMA = {
    "model_type": "llama",
    "architectures": ["LlamaForCausalLM"],
    "num_hidden_layers": 4,
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
    "head_dim": 32,
    "max_position_embeddings": 8192,
}

BAD = [
    (
        {"config": {**LLAMA, "max_position_embeddings": None}},
        "config: max_position_embeddings is null; model_type llama wants an integer, or the key left out",
    ),
    (
        {"config": {**LLAMA, "rope_scaling": {"rope_type": "linear"}}},
        "config: rope_parameters has no factor, which rope_type linear needs",
    ),
    (
        {"config": {**LLAMA, "rope_scaling": {"type": "mrope", "factor": 2.0}}},
        "config: rope_parameters has no mrope_section, which rope_type mrope needs",
    ),
    (
        {"dcp_kv_cache_interleave_size": 64, "cp_kv_cache_interleave_size": 16},
        "cp_kv_cache_interleave_size: 16 is not allowed; dcp_kv_cache_interleave_size is 64, and both are names of one "
        "thing",
    ),
    (
        {"cp_kv_cache_interleave_size": 0},
        "cp_kv_cache_interleave_size: 0 is not allowed; it must be an integer of at least 1",
    ),
    ({"tensor_parallel_size": 0}, "tensor_parallel_size: 0 is not allowed; it must be an integer of at least 1"),
    ({"tensor_parallel_size": True}, "tensor_parallel_size: True is not allowed; it must be an integer of at least 1"),
    ({"tensor_parallel_size": "4"}, "tensor_parallel_size: '4' is not allowed; it must be an integer of at least 1"),
    ({"max_num_seqs": -1}, "max_num_seqs: -1 is not allowed; it must be an integer of at least 1"),
    (
        {"max_model_len": 0},
        "max_model_len: 0 is not allowed; it must be a number of tokens of at least 1, or -1 for the longest that fits",
    ),
    ({"block_size": 1.5}, "block_size: 1.5 is not allowed; it must be an integer of at least 1"),
    ({"enable_prefix_caching": "yes"}, "enable_prefix_caching: 'yes' is not allowed; it must be true or false"),
    ({"device": "tpu"}, "device: 'tpu' is not allowed; it must be one of cuda, cpu"),
    ({"compute_capability": "sm121"}, "compute_capability: 'sm121' is not allowed; it must look like 9.0 or 12.1"),
    ({"gpu_memory_utilization": 90}, "gpu_memory_utilization: 90 is not allowed; it must be above 0 and at most 1"),
    ({"hf_overrides": []}, "hf_overrides: [] is not allowed; it must be a dictionary"),
    ({"nodes": "spark1"}, "nodes: 'spark1' is not allowed; it must be a list of node names, rank 0 first"),
    (
        {"kv_cache_memory_bytes": "1.8 GB"},
        "kv_cache_memory_bytes: '1.8 GB' is not allowed; it must be bytes, a list of bytes by rank, or auto",
    ),
    (
        {"kv_cache_memory_bytes": [5, -1]},
        "kv_cache_memory_bytes[1]: -1 is not allowed; it must be an integer of at least 0",
    ),
    (
        {"kv_cache_memory_bytes": [5, 6, 7], "tensor_parallel_size": 2},
        "kv_cache_memory_bytes: 3 entries for 2 ranks (tensor_parallel_size 2 x pipeline_parallel_size 1); "
        "one for each is needed",
    ),
    (
        {"speculative_config": {"num_speculative_tokens": 1}},
        "speculative_config.method: None is not allowed; it must be one of mtp, eagle, eagle3, ngram",
    ),
    (
        {"speculative_config": {"method": "mtp"}},
        "speculative_config.num_speculative_tokens: None is not allowed; it must be an integer of at least 1",
    ),
    (
        {
            "config": {**LLAMA, "model_type": "glm4_moe"},
            "speculative_config": {"method": "mtp", "num_speculative_tokens": 1},
        },
        "config: num_nextn_predict_layers is missing; speculative_config.method mtp needs it for model_type glm4_moe",
    ),
    (
        {"config": {**LLAMA, "model_type": "gpt_oss", "rope_scaling": {"rope_type": "linear", "factor": 2.0}}},
        "config: rope_parameters has no original_max_position_embeddings; model_type gpt_oss cannot be loaded without "
        "it",
    ),
    (
        {"speculative_config": {"method": "eagle3", "num_speculative_tokens": 1}},
        "draft_config: speculative_config.method eagle3 needs the config.json of the draft model",
    ),
    (
        {"engine": "0.29.0"},
        "engine: '0.29.0' is not a planner that is known here; known are 0.13, 0.20, 0.24, 0.26, 0.28, 0.30, 0.31, "
        "0.32, "
        "0.33 or dark-devotion",
    ),
    ({"config": {}}, "config: the model's config.json as a dictionary is needed, not {}"),
    (
        {"config": {"num_hidden_layers": 3}},
        "config: it has neither model_type nor architectures, so the model cannot be recognised",
    ),
    (
        {"config": {"model_type": "bloom", "architectures": ["BloomForCausalLM"]}},
        "config: model_type 'bloom' (architecture BloomForCausalLM) is not a model that is known here; it is refused "
        "rather "
        "than guessed",
    ),
    (
        {"config": {**LLAMA, "num_hidden_layers": None}},
        "config: num_hidden_layers is null; model_type llama cannot be sized without it",
    ),
    (
        {"config": {**LLAMA, "num_key_value_heads": "2"}},
        "config: num_key_value_heads is '2'; it must be an integer of at least 1",
    ),
    (
        {"config": {key: LLAMA[key] for key in LLAMA if key != "max_position_embeddings"}, "max_model_len": -1},
        "config: max_position_embeddings is missing, so max_model_len must be a number of tokens for model_type llama",
    ),
    (
        {"config": {**LLAMA, "model_type": "qwen3", "head_dim": None}},
        "config: head_dim is null; model_type qwen3 wants an integer, or the key left out",
    ),
    (
        {"config": {**LLAMA, "hidden_size": 130}},
        "config: hidden_size is 130; model_type llama wants a multiple of num_attention_heads (4)",
    ),
    (
        {"config": {**LLAMA, "layer_types": ["sliding_attention"] * 4}},
        "config: sliding_window is missing, and layer_types has sliding_attention",
    ),
    ({"tensor_parallel_size": 5000}, "tensor_parallel_size: 5000 is not allowed; it must be at most 1024"),
    (
        {"config": {**LLAMA, "num_hidden_layers": 10**9}},
        "config: num_hidden_layers is 1000000000; it must be at most 10000",
    ),
    ({"config": {**LLAMA, "model_type": ["llama"]}}, "config: model_type is ['llama']; it must be a string"),
    (
        {"config": {**LLAMA, "model_type": "glm_moe_dsa", "kv_lora_rank": 512, "qk_rope_head_dim": 64}},
        "config: index_topk is missing; model_type glm_moe_dsa cannot be sized without it",
    ),
    (
        {"config": {**LLAMA, "rope_scaling": {"rope_type": "linear", "factor": "x"}}},
        "config: the factor of rope_parameters is 'x'; it must be a number above 0",
    ),
    (
        {"engine": "0.28.0", "kv_cache_layout": "BLHNC"},
        "kv_cache_layout: 'BLHNC' is not known to engine 0.28; it came with 0.30",
    ),
    (
        {"device": "cpu", "kv_cache_dtype": "nvfp4"},
        "kv_cache_dtype: 'nvfp4' needs a GPU, and device is cpu",
    ),
    (
        {"kv_cache_dtype_skip_layers": ["0", "1"]},
        "kv_cache_dtype_skip_layers: ['0', '1'] is not allowed; layers with a cache dtype of their own are not planned",
    ),
    (
        {"dtype": "float32"},
        "dtype: 'float32' is planned for device cpu only; GPUs serve bfloat16 or float16",
    ),
    (
        {"engine": "0.13.0", "max_model_len": -1},
        "max_model_len: -1 is not known to engine 0.13; give a number of tokens",
    ),
    (
        {"attention_backend": "FLASH"},
        "attention_backend: 'FLASH' is not known here; known are AMX_MLA, B12X_MLA_SPARSE, CPU_ATTN, CPU_MLA, "
        "CUTLASS_MLA, "
        "FLASHINFER, FLASHINFER_MLA, FLASHINFER_MLA_SPARSE, FLASHINFER_MLA_SPARSE_SM120, "
        "FLASHINFER_MLA_SPARSE_SM90, FLASHMLA, FLASHMLA_SPARSE, "
        "FLASH_ATTN, FLASH_ATTN_DIFFKV, FLASH_ATTN_MLA, FLASH_ATTN_MLA_SPARSE, FLASH_ATTN_MLA_SPARSE_FA4, "
        "FLEX_ATTENTION, TOKENSPEED_MLA, "
        "TRITON_ATTN, "
        "TRITON_ATTN_DIFFKV, TRITON_MLA",
    ),
    (
        {"kv_cache_memory_bytes": None},
        "kv_cache_memory_bytes: give bytes, a list by rank or auto; without it memory_total_bytes and weights_bytes "
        "are "
        "needed, from which the engine sizes its cache by gpu_memory_utilization",
    ),
    (
        {"kv_cache_memory_bytes": "auto", "max_model_len": -1},
        "memory_available_bytes: it is needed for every rank when kv_cache_memory_bytes is auto and max_model_len "
        "is -1",
    ),
]


@pytest.mark.parametrize(
    ("change", "message"), BAD, ids=[message.split(":")[0] + str(n) for n, (_c, message) in enumerate(BAD)]
)
def test_bad_input(change: dict[str, t.Any], message: str) -> None:
    """No traceback and no silent default: one exact sentence."""
    with pytest.raises(ValueError, match=f"^{re.escape(message)}$"):
        fit({"config": LLAMA, "kv_cache_memory_bytes": 1_000_000, "max_model_len": 512, **change})


def test_unknown_option() -> None:
    """An option that is spelled wrong is not swallowed."""
    with pytest.raises(ValueError, match="^max_len: unknown option; known are async_scheduling, attention_backend, "):
        fit({"config": LLAMA, "max_len": 5})
    with pytest.raises(ValueError, match="^options: a dictionary is needed, not list$"):
        fit([])  # type: ignore[arg-type]


def test_one_value_for_all_ranks() -> None:
    """A number stands for every rank, null in a list of readings for a node that is not compared."""
    request = parse_request(
        {"config": LLAMA, "tensor_parallel_size": 2, "weights_bytes": 7, "memory_available_bytes": [None, 9]}
    )
    assert (request.weights_bytes, request.memory_available_bytes, request.ranks) == ((7, 7), (None, 9), 2)


def test_models_that_cannot_draft() -> None:
    """A family without an MTP head is vLLM's own refusal."""
    options = {"config": LLAMA, "kv_cache_memory_bytes": 10**6, "max_model_len": 512}
    answer = fit({**options, "speculative_config": {"method": "mtp", "num_speculative_tokens": 1}})
    assert (answer["fits"], answer["engine_error"]) == (False, "Unsupported speculative method: 'mtp'")


def test_no_layers_to_draft_with() -> None:
    """A config that says it has no draft layers: the engine's own words, what they mean, and the change."""
    config = {**LLAMA, "model_type": "glm4_moe", "num_nextn_predict_layers": 0}
    drafts = {"method": "mtp", "num_speculative_tokens": 1}
    answer = fit({"config": config, "kv_cache_memory_bytes": 10**6, "max_model_len": 512, "speculative_config": drafts})
    assert (answer["fits"], answer["engine_error"]) == (False, "integer modulo by zero")
    assert answer["reasons"] == [
        "The engine refuses these options: integer modulo by zero (it divides by the number of built-in "
        "draft layers, and the model's config has none). Smallest change: no speculative_config."
    ]
    assert answer["changes"] == [{"speculative_config": None}]


REFUSED: list[tuple[dict[str, t.Any], str]] = [
    ({"kv_cache_dtype": "fp8_ds_mla"}, "No valid attention backend found for cuda"),
    (
        {"max_num_seqs": 8, "max_num_batched_tokens": 4},
        "max_num_batched_tokens (4) must be greater than or equal to max_num_seqs (8).",
    ),
    (
        {"config": {**LLAMA, "num_attention_heads": 12, "num_key_value_heads": 6}, "tensor_parallel_size": 4},
        "assert self.total_num_kv_heads % tp_size == 0",
    ),
    (
        {
            "config": {**LLAMA, "num_attention_heads": 12, "num_key_value_heads": 6, "model_type": "gpt_oss"},
            "tensor_parallel_size": 4,
        },
        "6 is not divisible by 4",
    ),
]


@pytest.mark.parametrize(("change", "error"), REFUSED)
def test_engine_refusals(change: dict[str, t.Any], error: str) -> None:
    """What the engine dies of is an answer."""
    answer = fit({"config": LLAMA, "kv_cache_memory_bytes": 10**6, "max_model_len": 512, **change})
    assert (answer["fits"], answer["engine_error"]) == (False, error)
    assert answer["reasons"][0].startswith(f"The engine refuses these options: {error}")


def test_missing_keys_are_said() -> None:
    """A key that the config leaves to the engine's default is no secret."""
    config = {**LLAMA, "model_type": "mixtral", "num_attention_heads": 16}
    del config["num_key_value_heads"]
    answer = fit({"config": config, "kv_cache_memory_bytes": 10**6, "max_model_len": 512})
    assert answer["bytes_per_token"] == 4 * 8 * 32 * 4
    assert answer["assumptions"] == [
        "config: num_key_value_heads is missing; the engine's default for model_type mixtral is 8"
    ]


@pytest.mark.parametrize("name", ["deepseek_mtp", "glm4_moe_mtp", "qwen3_next_mtp"])
def test_old_names_of_mtp(name: str) -> None:
    """The names by model are still taken."""
    request = parse_request({"config": LLAMA, "speculative_config": {"method": name, "num_speculative_tokens": 1}})
    assert request.speculative_method == "mtp"


def test_scales_that_an_old_engine_forgets_are_not_planned() -> None:
    config = {**LLAMA, "model_type": "gemma3_text", "architectures": ["Gemma3ForCausalLM"], "num_hidden_layers": 6}
    options = {
        "config": {**config, "sliding_window": 64},
        "kv_cache_dtype": "int8_per_token_head",
        "kv_cache_memory_bytes": 10**8,
        "max_model_len": 512,
        "compute_capability": "9.0",
        "attention_backend": "TRITON_ATTN",
    }
    assert fit({**options, "engine": "0.20.0"})["fits"]
    assert fit({**options, "engine": "0.28.0", "disable_hybrid_kv_cache_manager": True})["fits"]
    with pytest.raises(ValueError, match="int8_per_token_head and the hybrid KV cache manager is off"):
        fit({**options, "engine": "0.20.0", "disable_hybrid_kv_cache_manager": True})

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Which caches the layers of a model keep."""

from __future__ import annotations

import typing as t

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_models import (
    KNOWN_MODEL_TYPES,
    merge_overrides,
    read_model,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit
from tests.fixtures.glm52 import GLM


def kinds(config: dict[str, t.Any]) -> list[str]:
    """The kinds of cache by layer, joined where a layer keeps several."""
    return ["+".join(cache.kind for cache in layer) for layer in read_model(config).layers]


def test_glm_indexers() -> None:
    """21 of 78 layers own an indexer, and the draft layer has its own."""
    model = read_model(GLM)
    owners = [number for number, layer in enumerate(model.layers) if len(layer) == 2]
    assert owners == [0, 1, 2, *range(6, 78, 4)]
    assert [len(layer) for layer in model.drafts] == [2]
    assert model.context == 1_048_576


def test_indexer_rules() -> None:
    """Frequency and offset, a pattern (layers beyond it own one), and none of both: every layer."""
    base = {key: value for key, value in GLM.items() if not key.startswith(("index_topk_freq", "index_skip"))}
    every = {**base, "num_hidden_layers": 6}
    assert kinds(every) == ["mla+indexer"] * 6
    pattern = {**every, "index_topk_pattern": "FSSF"}
    assert kinds(pattern) == ["mla+indexer", "mla", "mla", "mla+indexer", "mla+indexer", "mla+indexer"]
    rule = {**every, "index_topk_freq": 2, "index_skip_topk_offset": 2}
    assert kinds(rule) == ["mla+indexer", "mla+indexer", "mla", "mla+indexer", "mla", "mla+indexer"]


def test_old_planners_have_every_indexer() -> None:
    """Before 0.24 no layer shares an indexer: 79 of them."""
    options = {
        "config": GLM,
        "tensor_parallel_size": 4,
        "kv_cache_dtype": "fp8_ds_mla",
        "kv_cache_memory_bytes": 1_810_000_000,
        "max_model_len": 16_384,
        "speculative_config": {"method": "mtp", "num_speculative_tokens": 1},
    }
    assert fit({**options, "engine": "0.20.0"})["bytes_per_block"] == 3_984_128
    assert fit({**options, "engine": "0.24.0"})["bytes_per_block"] == 3_502_592


WINDOWS = [
    ({"model_type": "gemma2", "num_hidden_layers": 4}, ["sliding", "full", "sliding", "full"]),
    ({"model_type": "gemma3_text", "num_hidden_layers": 7}, ["sliding"] * 5 + ["full", "sliding"]),
    (
        {"model_type": "gemma3_text", "num_hidden_layers": 3, "sliding_window_pattern": 2},
        ["sliding", "full", "sliding"],
    ),
    (
        {"model_type": "gemma3_text", "num_hidden_layers": 2, "layer_types": ["full_attention", "sliding_attention"]},
        ["full", "sliding"],
    ),
    ({"model_type": "gpt_oss", "num_hidden_layers": 3, "num_attention_heads": 8}, ["sliding", "full", "sliding"]),
    (
        {
            "model_type": "mistral",
            "num_hidden_layers": 2,
            "num_attention_heads": 8,
            "head_dim": 64,
            "sliding_window": None,
        },
        ["full", "full"],
    ),
    (
        {"model_type": "llama4_text", "num_hidden_layers": 4, "num_attention_heads": 8},
        ["chunked", "chunked", "chunked", "full"],
    ),
]


@pytest.mark.parametrize(("config", "expected"), WINDOWS)
def test_windows(config: dict[str, t.Any], expected: list[str]) -> None:
    """Which layers see only a window, by the rule of each family."""
    assert kinds(config) == expected


def test_wrapped_text_model() -> None:
    """A multimodal config is sized by its text part."""
    text = {"model_type": "gemma3_text", "num_hidden_layers": 6, "sliding_window": 1024}
    model = read_model(
        {"model_type": "gemma3", "architectures": ["Gemma3ForConditionalGeneration"], "text_config": text}
    )
    assert (model.family, model.kv_heads, len(model.layers), model.context) == ("gemma3_text", 4, 6, 131_072)


def test_context_and_rope() -> None:
    """A linear rope factor stretches the context, a yarn factor does not."""
    base = {"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 64}
    config = {**base, "max_position_embeddings": 4096}
    assert read_model({**config, "rope_scaling": {"rope_type": "linear", "factor": 4.0}}).context == 16_384
    assert read_model({**config, "rope_scaling": {"rope_type": "yarn", "factor": 4.0}}).context == 4096
    assert read_model(base).context is None


LLAMA_3 = {"rope_type": "llama3", "factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0}
YARN = {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32_768}


@pytest.mark.parametrize(
    ("engine", "positions", "rope", "context"),
    [
        # Qwen3 as its card stretches it: up to 0.28 the factor counts, since 0.30 what the config says is all.
        ("0.13.0", 40_960, YARN, 131_072),
        ("0.24.0", 40_960, YARN, 131_072),
        ("0.28.0", 40_960, YARN, 131_072),
        ("0.30.0", 40_960, YARN, 40_960),
        ("0.32.0", 40_960, YARN, 40_960),
        ("dark-devotion", 40_960, YARN, 131_072),
        # DeepSeek, whose positions hold the factor already.
        ("0.28.0", 163_840, {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096}, 163_840),
        ("0.28.0", 40_960, LLAMA_3, 40_960),
    ],
)
def test_yarn_by_version(engine: str, positions: int, rope: dict[str, t.Any], context: int) -> None:
    """What is served without a length, and the engine's refusal of one token more."""
    config = {
        "model_type": "llama",
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "num_key_value_heads": 1,
        "head_dim": 64,
        "max_position_embeddings": positions,
        "rope_scaling": rope,
    }
    options = {"config": config, "engine": engine, "kv_cache_memory_bytes": 10**9}
    assert fit(options)["planned_model_len"] == context
    error = fit({**options, "max_model_len": context + 1})["engine_error"]
    assert f"is greater than the derived max_model_len (max_position_embeddings={float(context)}" in error


def test_published_under_another_name() -> None:
    """MiniMax M2 came out as `minimax`, which is another family; its architecture says what it is."""
    config = {"model_type": "minimax", "num_hidden_layers": 2, "num_attention_heads": 48, "head_dim": 128}
    with pytest.raises(ValueError, match="^config: model_type 'minimax' .* is not a model that is known here"):
        read_model(config)
    model = read_model({**config, "architectures": ["MiniMaxM2ForCausalLM"]})
    assert (model.family, model.kv_heads) == ("minimax_m2", 8)


SCHEMES = [
    ({"quant_method": "modelopt", "quantization": {"kv_cache_quant_algo": "FP8"}}, "fp8_e4m3"),
    ({"quant_method": "modelopt", "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False}}, "fp8_e4m3"),
    ({"quant_method": "modelopt_fp4", "kv_cache_scheme": {"num_bits": 4, "type": "float"}}, "nvfp4"),
    ({"quant_method": "compressed-tensors", "kv_cache_scheme": {"num_bits": 8}}, "fp8"),
    ({"quant_method": "fp8"}, None),
    (None, None),
]


@pytest.mark.parametrize(("quantization", "scheme"), SCHEMES)
def test_cache_scheme(quantization: dict[str, t.Any] | None, scheme: str | None) -> None:
    """auto follows the checkpoint, and an explicit dtype wins over it."""
    config = {
        "model_type": "llama",
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 64,
        "quantization_config": quantization,
    }
    assert read_model(config).cache_scheme == scheme
    answer = fit({"config": config, "kv_cache_dtype": "bfloat16", "kv_cache_memory_bytes": 10**6, "max_model_len": 16})
    assert answer["kv_cache_dtype"] == "bfloat16"


def test_overrides_reach_into_parts() -> None:
    """A part that is a config of its own is merged, and so is what it holds; any other dictionary is replaced."""
    nested = {"text_config": {"a": {"b": 1, "c": 2}, "d": 3}}
    assert merge_overrides(nested, {"text_config": {"a": {"b": 5}}}) == {"text_config": {"a": {"b": 5, "c": 2}, "d": 3}}
    assert merge_overrides({"a": {"b": 1, "c": 2}}, {"a": {"b": 5}}) == {"a": {"b": 5}}


@pytest.mark.parametrize("names", [("rope_scaling", "rope_parameters"), ("rope_parameters", "rope_scaling")])
def test_both_names_of_a_rope_are_one(names: tuple[str, str]) -> None:
    """Either name replaces what the other said."""
    config = {
        "model_type": "llama",
        "num_hidden_layers": 1,
        "num_attention_heads": 1,
        "head_dim": 64,
        "max_position_embeddings": 4096,
        names[0]: {"rope_type": "linear", "factor": 8.0},
    }
    answer = fit(
        {
            "config": config,
            "hf_overrides": {names[1]: {"rope_type": "linear", "factor": 2.0}},
            "kv_cache_memory_bytes": 10**9,
        }
    )
    assert answer["planned_model_len"] == 8192


def test_overrides_come_after_what_the_config_class_works_out() -> None:
    """The size of a head and the kinds of layers are settled when the config is read: fewer layers or other heads do
    not change them any more."""
    llama = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 8, "hidden_size": 512}
    options = {"kv_cache_memory_bytes": 10**9, "max_model_len": 512}
    plain = fit({**options, "config": llama})
    assert plain["bytes_per_token"] == 2 * 8 * 64 * 4
    # 8 KV heads of 64 elements, as they were read.
    other = fit({**options, "config": llama, "hf_overrides": {"num_attention_heads": 16}})
    assert other["bytes_per_token"] == plain["bytes_per_token"]
    assert any("head_dim is missing" in sentence for sentence in other["assumptions"])
    gemma = {"model_type": "gemma3_text", "num_hidden_layers": 6, "sliding_window": 128}
    short = fit({**options, "config": gemma, "hf_overrides": {"num_hidden_layers": 5, "sliding_window_pattern": 2}})
    assert [group["spec"] for group in short["groups"]] == ["sliding"]


def test_layer_types_are_named_and_counted() -> None:
    """Old names of kinds count, unknown ones and a wrong number of them are errors."""
    base = {"num_attention_heads": 8, "num_hidden_layers": 2, "head_dim": 64}
    gated = {
        "linear_num_key_heads": 2,
        "linear_num_value_heads": 2,
        "linear_key_head_dim": 32,
        "linear_value_head_dim": 32,
        "linear_conv_kernel_dim": 4,
    }
    old = {**base, **gated, "model_type": "qwen3_next", "layer_types": ["linear_attention", "attention"]}
    assert kinds(old) == ["state", "full"]
    options = {"kv_cache_memory_bytes": 10**9, "max_model_len": 512}
    windowed = {**base, "model_type": "mistral", "sliding_window": 64}
    with pytest.raises(ValueError, match="^config: layer_types has 'full', which is no kind of layer; known are full_"):
        fit({**options, "config": {**windowed, "layer_types": ["full", "sliding_attention"]}})
    with pytest.raises(ValueError, match="^config: layer_types has 3 entries for 2 layers; one for each is needed$"):
        fit({**options, "config": {**windowed, "layer_types": ["full_attention"] * 3}})


def test_known_families() -> None:
    """The families that are promised."""
    promised = {
        "llama", "mistral", "mixtral", "qwen2", "qwen2_moe", "qwen3", "qwen3_moe", "qwen3_next", "gemma2", "gemma3",
        "gpt_oss", "glm4_moe", "glm_moe_dsa", "deepseek_v2", "deepseek_v3", "deepseek_v32", "kimi_k2", "minimax_m2",
        "nemotron_h",
    }  # fmt: skip
    assert promised <= set(KNOWN_MODEL_TYPES)


@pytest.mark.parametrize("model_type", ["glm4", "glm4_moe", "minimax_m2"])
def test_a_window_that_the_class_knows_nothing_of(model_type: str) -> None:
    """The engine puts it on every layer, unless layer_types names one without."""
    base = {
        "model_type": model_type,
        "num_hidden_layers": 2,
        "num_attention_heads": 4,
        "head_dim": 32,
        "sliding_window": 64,
    }
    assert kinds(base) == ["sliding", "sliding"]
    assert kinds({**base, "sliding_window": 0}) == kinds({**base, "sliding_window": None}) == ["full", "full"]
    assert kinds({**base, "layer_types": ["sliding_attention", "full_attention"]}) == ["full", "full"]


def test_windows_that_are_switched_off() -> None:
    """All layers see everything then, and no request is longer than the window."""
    config = {"model_type": "gemma3_text", "num_hidden_layers": 7, "sliding_window": 1024}
    options = {"config": config, "kv_cache_memory_bytes": 10**9, "disable_sliding_window": True}
    answer = fit(options)
    assert ([group["spec"] for group in answer["groups"]], answer["planned_model_len"]) == (["full"], 1024)
    assert "(sliding_window=1024 or" in fit({**options, "max_model_len": 1025})["engine_error"]
    assert fit({**options, "config": {**config, "sliding_window": None}})["planned_model_len"] == 131_072
    # A window that the config promises and does not give is not missed either.
    llama = {"model_type": "llama", "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 32}
    llama.update(layer_types=["sliding_attention", "full_attention"], max_position_embeddings=4096)
    assert fit({**options, "config": llama})["fits"]


@pytest.mark.parametrize(
    ("changes", "batches"),
    [
        ({}, 2),
        ({"pipeline_parallel_size": 2}, 3),
        ({"pipeline_parallel_size": 2, "async_scheduling": False}, 2),
        ({"async_scheduling": True}, 2),
        ({"async_scheduling": False}, 1),
        ({"speculative_config": {"method": "ngram", "num_speculative_tokens": 2}}, 1),
    ],
)
def test_steps_that_are_scheduled_ahead(changes: dict[str, t.Any], batches: int) -> None:
    """A window keeps every batch that is in flight."""
    config = {"model_type": "mistral", "num_hidden_layers": 2, "num_attention_heads": 8, "sliding_window": 512}
    config.update(hidden_size=256, max_position_embeddings=32_768)
    options = {"config": config, "kv_cache_memory_bytes": 10**9, "max_num_batched_tokens": 1024, "block_size": 16}
    # 511 + batches x 1024 tokens, and one block more because a window may begin inside one.
    blocks = -(-(511 + batches * 1024) // 16) + 1
    answer = fit({**options, **changes, "max_model_len": 32_768})
    assert answer["max_concurrency"] == answer["num_blocks"] / blocks


def test_scheduling_ahead_where_it_cannot_be() -> None:
    """In the engine's words."""
    config = {"model_type": "mistral", "num_hidden_layers": 2, "num_attention_heads": 8, "hidden_size": 256}
    config["max_position_embeddings"] = 32_768
    drafts = {"method": "ngram", "num_speculative_tokens": 2}
    options = {"config": config, "kv_cache_memory_bytes": 10**9, "max_model_len": 512, "async_scheduling": True}
    assert fit({**options, "speculative_config": drafts})["engine_error"] == (
        "Currently, async scheduling is only supported with EAGLE/MTP/Draft Model/NGram GPU/DSpark/DFlash kind of "
        "speculative decoding"
    )


def test_a_length_that_the_config_leaves_to_the_engine_is_said() -> None:
    """What is asked for is planned, with the default that the engine compares it with."""
    config = {"model_type": "llama", "num_hidden_layers": 1, "num_attention_heads": 1, "head_dim": 64}
    answer = fit({"config": config, "kv_cache_memory_bytes": 10**9, "max_model_len": 4096})
    assert (
        "config: max_position_embeddings is missing; the engine's default for model_type llama is 2048, and it refuses "
        "a longer max_model_len"
    ) in answer["assumptions"]


def test_a_stage_without_layers_has_the_usual_kernel() -> None:
    """On a CPU K and V heads of different sizes have a kernel of their own, which reads more layouts than the usual."""
    config = {
        "model_type": "mimo_v2_flash",
        "num_hidden_layers": 2,
        "num_attention_heads": 8,
        "num_key_value_heads": 2,
        "head_dim": 64,
        "v_head_dim": 32,
        "swa_num_key_value_heads": 8,
        "swa_head_dim": 64,
        "swa_v_head_dim": 32,
        "sliding_window_size": 128,
        "hybrid_layer_pattern": [0, 0],
        "max_position_embeddings": 4096,
    }
    options = {"config": config, "device": "cpu", "kv_cache_memory_bytes": 10**8, "max_model_len": 2048}
    every = ["LBNHC", "LBHNC", "BLNHC", "BLHNC", "BHLNC", "LHBNC"]
    assert fit({**options, "pipeline_parallel_size": 3})["engine_error"] == (
        f"Workers disagree on supported KV cache layouts: {[every, every, ['LBHNC']]}."
    )
    assert fit({**options, "pipeline_parallel_size": 2})["fits"]


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({}, "FlashInfer MLA native DCP requires cp_kv_cache_interleave_size=1; got 16."),
        ({"engine": "0.28.0"}, None),
        ({"dcp_kv_cache_interleave_size": 1}, None),
        ({"compute_capability": "9.0"}, None),
        (
            {"speculative_config": {"method": "mtp", "num_speculative_tokens": 1}},
            "MTP with cp_kv_cache_interleave_size > 1 is not supported in FlashInferMLAImpl.",
        ),
    ],
)
def test_a_kernel_that_deals_out_single_tokens(changes: dict[str, t.Any], words: str | None) -> None:
    """FlashInfer's MLA kernel since 0.30, after the capacity is logged."""
    config = {"model_type": "deepseek_v3", "num_hidden_layers": 2, "num_attention_heads": 64, "kv_lora_rank": 512}
    config.update(qk_rope_head_dim=64, max_position_embeddings=4096, num_nextn_predict_layers=1)
    options = {"config": config, "kv_cache_memory_bytes": 10**9, "max_model_len": 4096, "compute_capability": "10.0"}
    options.update(tensor_parallel_size=4, decode_context_parallel_size=4, dcp_kv_cache_interleave_size=16)
    assert fit({**options, **changes})["engine_error"] == words


def test_gpt_oss_has_a_kv_head_for_every_rank() -> None:
    """Its class divides them by the ranks and repeats none."""
    config = {
        "model_type": "gpt_oss",
        "num_hidden_layers": 2,
        "num_attention_heads": 64,
        "max_position_embeddings": 4096,
    }
    options = {"config": config, "kv_cache_memory_bytes": 10**9, "max_model_len": 4096}
    assert fit({**options, "tensor_parallel_size": 8})["fits"]
    assert fit({**options, "tensor_parallel_size": 16})["engine_error"] == "integer modulo by zero"
    assert fit({**options, "tensor_parallel_size": 16, "hf_overrides": {"num_key_value_heads": 16}})["fits"]


def test_drafts_have_the_window_of_the_model() -> None:
    """The engine's one window is that of the draft layers too."""
    config = {"model_type": "glm4_moe", "num_hidden_layers": 2, "num_attention_heads": 4, "head_dim": 32}
    config.update(num_nextn_predict_layers=1, sliding_window=64, max_position_embeddings=4096, num_key_value_heads=4)
    drafts = {"method": "mtp", "num_speculative_tokens": 1}
    answer = fit({"config": config, "kv_cache_memory_bytes": 10**8, "speculative_config": drafts})
    assert [(group["spec"], group["layers"]) for group in answer["groups"]] == [("sliding", 3)]


def test_gpt_oss_wants_an_even_width_for_all_ranks() -> None:
    """Its experts are dealt out over every process, pipeline stages included."""
    config = {"model_type": "gpt_oss", "num_hidden_layers": 14, "num_attention_heads": 64}
    options = {"config": {**config, "max_position_embeddings": 4096}, "kv_cache_memory_bytes": 10**9}
    odd = fit({**options, "max_model_len": 4096, "pipeline_parallel_size": 7})
    assert odd["engine_error"] == "assert config.intermediate_size % self.world_size == 0"
    assert fit({**options, "max_model_len": 4096, "pipeline_parallel_size": 2})["fits"]

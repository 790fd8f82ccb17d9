# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Generated models for the real model classes: every family, unusual but legal keys, odd sizes of everything."""

from __future__ import annotations

import random
import typing as t

from tests.oracle import models

Config = dict[str, t.Any]
Case = tuple[Config, dict[str, t.Any], t.Optional[Config]]

WINDOWS = ("sliding_attention", "full_attention")
WINDOWED = ("mistral", "gemma2", "gemma3_text", "gpt_oss")
LAYERED = (*WINDOWED, "llama", "qwen2", "qwen3", "qwen2_moe", "qwen3_moe")
GROUPED = (
    models.LLAMA,
    models.MISTRAL,
    models.MIXTRAL,
    models.QWEN2,
    models.QWEN3,
    models.QWEN2_MOE,
    models.QWEN3_MOE,
    models.GEMMA2,
    models.GEMMA3,
    models.GPT_OSS,
    models.GLM4,
    models.GLM4_MOE,
    models.MINIMAX_M2,
    models.LLAMA4,
)
QUANTISED = (
    {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": "FP8"},
    {
        "quant_method": "modelopt",
        "quant_algo": "FP8",
        "kv_cache_scheme": {"num_bits": 8, "type": "float", "dynamic": False},
    },
    {"quant_method": "modelopt", "quantization": {"quant_algo": "FP8", "kv_cache_quant_algo": "FP8"}},
    {"quant_method": "modelopt", "quant_algo": "FP8", "kv_cache_quant_algo": None},
    {
        "quant_method": "compressed-tensors",
        "kv_cache_scheme": {
            "num_bits": 8,
            "type": "float",
            "strategy": "tensor",
            "dynamic": False,
            "symmetric": True,
        },
        "config_groups": {},
        "format": "naive-quantized",
        "ignore": [],
        "quantization_status": "compressed",
    },
)
ROPES = (
    {"rope_type": "linear", "factor": 2.0},
    {"rope_type": "dynamic", "factor": 4.0},
    {"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 2048},
    None,
)


def _types(draw: random.Random, count: int) -> list[str]:
    if draw.random() < 0.2:
        return ["sliding_attention"] * count
    return [draw.choice(WINDOWS) for _layer in range(count)]


def _grouped(draw: random.Random) -> Config:
    kv = draw.choice([1, 2, 4, 8])
    query, layers = kv * draw.choice([1, 1, 2, 4]), draw.randint(1, 9)
    config: Config = {
        **draw.choice(GROUPED),
        "num_attention_heads": query,
        "num_key_value_heads": kv,
        "head_dim": draw.choice([32, 32, 64, 80, 96, 128]),
        "hidden_size": query * 16,
        "num_hidden_layers": layers,
        "first_k_dense_replace": 0,
    }
    kind = config["model_type"]
    if kind == "llama4_text":
        del config["no_rope_layers"]
        if draw.random() < 0.4:
            config["no_rope_layers"] = [draw.randint(0, 1) for _layer in range(layers)]
        if draw.random() < 0.3:
            config["no_rope_layer_interval"] = draw.choice([2, 3, 4])
        config["attention_chunk_size"] = draw.choice([64, 256, 1000, None])
    if kind == "minimax_m2":
        config["attn_type_list"] = [1] * layers
    if kind in WINDOWED:
        config["sliding_window"] = draw.choice([17, 64, 100, 256, 1000, 4096])
    if kind == "mistral" and draw.random() < 0.3:
        config["sliding_window"] = None
    if kind in ("mistral", "gemma2", "gemma3_text") and draw.random() < 0.1:
        del config["sliding_window"]
    if kind in LAYERED and draw.random() < 0.4:
        config["layer_types"] = _types(draw, layers)
    if kind == "gemma3_text" and "layer_types" not in config and draw.random() < 0.5:
        config["sliding_window_pattern"] = draw.choice([1, 2, 3, 6])
    if kind == "llama" and draw.random() < 0.3:
        config["sliding_window"] = draw.choice([64, 100, None, 0])
    if kind.startswith("qwen") and draw.random() < 0.5:
        config["use_sliding_window"] = draw.choice([True, True, False])
        config["sliding_window"] = draw.choice([64, 100, 256, None])
        config["max_window_layers"] = draw.choice([0, 1, layers, layers + 3])
    if kind == "glm4_moe" and draw.random() < 0.3:
        config["num_nextn_predict_layers"] = draw.choice([0, 1, 2])
    if draw.random() < 0.2:
        key = draw.choice(["head_dim", "num_key_value_heads"])
        if draw.random() < 0.5:
            del config[key]
        else:
            config[key] = None
        config["hidden_size"] = query * draw.choice([32, 64])
    if draw.random() < 0.12 and kind in ("llama", "mistral", "qwen2", "qwen3", "gemma2", "gemma3_text", "glm4"):
        config["quantization_config"] = draw.choice(QUANTISED)
    return config


def _latent(draw: random.Random) -> Config:
    lite = {**models.DEEPSEEK_V3, "model_type": "glm4_moe_lite", "architectures": ["Glm4MoeLiteForCausalLM"]}
    heads = draw.choice([4, 8, 16])
    config: Config = {
        **draw.choice([models.DEEPSEEK_V2, models.DEEPSEEK_V3, models.KIMI_K2, lite]),
        "num_hidden_layers": draw.randint(1, 9),
        "num_attention_heads": heads,
        "num_key_value_heads": heads,
        "first_k_dense_replace": 0,
    }
    if "num_nextn_predict_layers" in config and draw.random() < 0.3:
        config["num_nextn_predict_layers"] = draw.choice([0, 1, 2])
    if draw.random() < 0.2:
        del config["num_key_value_heads"]
    if draw.random() < 0.15:
        config["q_lora_rank"] = None
    return config


def _gated_delta(draw: random.Random) -> Config:
    layers, heads = draw.randint(1, 9), draw.choice([2, 4])
    config: Config = {
        **models.QWEN3_NEXT,
        "num_hidden_layers": layers,
        "num_attention_heads": 8,
        "num_key_value_heads": draw.choice([1, 2, 4]),
        "head_dim": draw.choice([32, 64, 128]),
        "linear_num_key_heads": heads,
        "linear_num_value_heads": heads * draw.choice([1, 2]),
        "linear_key_head_dim": draw.choice([32, 64]),
        "linear_value_head_dim": draw.choice([32, 64]),
    }
    if draw.random() < 0.3:
        config["layer_types"] = [draw.choice(["linear_attention", "full_attention"]) for _layer in range(layers)]
    elif draw.random() < 0.3:
        config["full_attention_interval"] = draw.choice([2, 3, 4])
    if draw.random() < 0.5:
        del config["num_nextn_predict_layers"]
    return config


def _mamba(draw: random.Random) -> Config:
    letters = ["M", "*", *(draw.choice("MM-*") for _layer in range(draw.randint(0, 7)))]
    draw.shuffle(letters)
    config: Config = {
        **models.NEMOTRON_H,
        "num_hidden_layers": len(letters),
        "hybrid_override_pattern": "".join(letters),
        "num_attention_heads": 8,
        "num_key_value_heads": draw.choice([1, 2, 4]),
        "head_dim": draw.choice([32, 64]),
        "mamba_num_heads": draw.choice([8, 16]),
        "n_groups": draw.choice([1, 2, 4, 8]),
        "ssm_state_size": draw.choice([32, 64]),
    }
    if draw.random() < 0.3:
        config["mamba_ssm_cache_dtype"] = draw.choice(["float32", "bfloat16"])
    return config


def _mimo(draw: random.Random) -> Config:
    layers = draw.randint(1, 9)
    return {
        **models.MIMO_V2,
        "num_hidden_layers": layers,
        "hybrid_layer_pattern": [draw.randint(0, 1) for _layer in range(layers)],
        "num_attention_heads": 8,
        "num_key_value_heads": draw.choice([1, 2, 4]),
        "swa_num_attention_heads": 8,
        "swa_num_key_value_heads": draw.choice([1, 2, 4, 8]),
        "head_dim": 64,
        "swa_head_dim": 64,
        "v_head_dim": 32,
        "swa_v_head_dim": 32,
        "hidden_size": 128,
        "layernorm_epsilon": 1e-5,
        "attention_bias": False,
        "rope_theta": 10000.0,
        "swa_rope_theta": 10000.0,
        "partial_rotary_factor": 1.0,
        "moe_layer_freq": [0] * layers,
    }


def _unusual(draw: random.Random, config: Config) -> None:
    """Keys that any model may have."""
    if draw.random() < 0.15:
        config["torch_dtype"] = draw.choice(["float16", "float32", None])
    if draw.random() < 0.1:
        config["dtype"] = config.pop("torch_dtype", None)
    if draw.random() < 0.08 and "kv_lora_rank" not in config:
        config["rope_scaling"] = draw.choice(ROPES)
    if draw.random() < 0.1:
        config["max_position_embeddings"] = draw.choice([100, 1000, 2048, 40960])
    if draw.random() < 0.05:
        config["model_max_length"] = draw.choice([512, 1024, 16384])
    if draw.random() < 0.05:
        config["max_seq_len"] = draw.choice([512, 16384])


def _overrides(draw: random.Random, config: Config) -> Config:
    return draw.choice(
        [
            {"num_hidden_layers": max(1, config["num_hidden_layers"] - 1)},
            {"max_position_embeddings": 4096},
            {"sliding_window": 64},
            {"num_key_value_heads": 1},
            {"num_key_value_heads": config["num_attention_heads"]},
        ]
    )


def _odd_windows(draw: random.Random, config: Config, arguments: dict[str, t.Any]) -> None:
    """Windows where a model's class knows none, none where it has some, and windows that are switched off."""
    kind = config["model_type"]
    if kind in ("glm4", "glm4_moe", "minimax_m2") and draw.random() < 0.4:
        config["sliding_window"] = draw.choice([1, 64, 100, 4096, 0, None])
        if draw.random() < 0.3:
            config["layer_types"] = _types(draw, config["num_hidden_layers"])
    if kind in ("gemma2", "gemma3_text") and draw.random() < 0.1:
        config["sliding_window"] = draw.choice([0, None])
    if kind != "mimo_v2_flash" and draw.random() < 0.08:
        arguments["disable_sliding_window"] = True


def _parallel(draw: random.Random) -> dict[str, t.Any]:
    found: dict[str, t.Any] = {}
    if draw.random() < 0.4:
        tp = found["tensor_parallel_size"] = draw.choice([2, 2, 2, 3, 4, 4])
        if draw.random() < 0.3:
            found["decode_context_parallel_size"] = draw.choice([2, 2, 3, 4])
            found["dcp_kv_cache_interleave_size"] = draw.choice([1, 1, 1, 16, 48, 64])
        if tp == 2 and draw.random() < 0.3:
            found["pipeline_parallel_size"] = 2
    elif draw.random() < 0.4:
        found["pipeline_parallel_size"] = draw.choice([2, 2, 3, 4])
    return found


def _drafts(draw: random.Random, config: Config) -> tuple[dict[str, t.Any] | None, Config | None]:
    has_head = config.get("num_nextn_predict_layers") or config["model_type"] == "mimo_v2_flash"
    if has_head and draw.random() < 0.6 or draw.random() < 0.03:
        return {"method": "mtp", "num_speculative_tokens": draw.choice([1, 2, 3, 4])}, None
    if config["model_type"] != "llama" or draw.random() < 0.6 or not config.get("head_dim"):
        return None, None
    third = draw.random() < 0.5
    draft = {
        **(models.EAGLE3 if third else models.EAGLE),
        "hidden_size": config["hidden_size"],
        "num_attention_heads": config["num_attention_heads"],
        "num_key_value_heads": draw.choice([1, config["num_attention_heads"]]),
        "head_dim": draw.choice([32, config["head_dim"]]),
        "num_hidden_layers": 1 if third else draw.choice([1, 2]),
    }
    method = "eagle3" if third else "eagle"
    return {"method": method, "num_speculative_tokens": draw.choice([1, 2, 4])}, draft


def generate(seed: int) -> Case:
    """config.json, the engine's arguments and the config of a draft model."""
    draw = random.Random(seed)
    shapes = (_grouped, _grouped, _grouped, _latent, _gated_delta, _mamba, _mimo)
    config = draw.choice(shapes)(draw)
    _unusual(draw, config)
    arguments: dict[str, t.Any] = {
        "max_num_batched_tokens": draw.choice([64, 256, 512, 2048]),
        "max_num_seqs": draw.choice([1, 4, 16]),
        "kv_cache_memory_bytes": int(2 ** draw.uniform(16, 29)),
        **_parallel(draw),
    }
    length = draw.choice([1, 17, 100, 300, 512, 512, 1000, 2048, 4096, 9000, -1, -1, None])
    if length is not None:
        arguments["max_model_len"] = length
    if draw.random() < 0.35:
        arguments["block_size"] = draw.choice([1, 8, 16, 32, 48, 64, 96, 128, 256])
    if draw.random() < 0.25:
        arguments["kv_cache_dtype"] = draw.choice(["auto", "bfloat16", "fp8", "fp8_e4m3", "fp8_e5m2", "float16"])
    if draw.random() < 0.3:
        arguments["enable_prefix_caching"] = draw.choice([True, False])
    if draw.random() < 0.08:
        arguments["disable_hybrid_kv_cache_manager"] = draw.choice([True, False])
    if draw.random() < 0.06:
        arguments["num_gpu_blocks_override"] = draw.choice([1, 2, 9, 100])
    if draw.random() < 0.2 and config["model_type"] in ("qwen3_next", "nemotron_h"):
        arguments["mamba_ssm_cache_dtype"] = draw.choice(["float32", "bfloat16", "float16"])
    if draw.random() < 0.1:
        arguments["hf_overrides"] = _overrides(draw, config)
    drafts, draft = _drafts(draw, config)
    if drafts is not None:
        arguments["speculative_config"] = drafts
    _odd_windows(draw, config, arguments)
    return config, arguments, draft

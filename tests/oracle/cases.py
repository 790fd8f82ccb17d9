# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Generated questions: random models of every shape and random options, the same on every run."""

from __future__ import annotations

import random
import typing as t

from tests.oracle import models

Options = dict[str, t.Any]


def _heads(draw: random.Random) -> dict[str, t.Any]:
    kv = draw.choice([1, 2, 4, 8])
    return {
        "num_attention_heads": kv * draw.choice([1, 2, 4, 8]),
        "num_key_value_heads": kv,
        "head_dim": draw.choice([32, 64, 80, 128, 256]),
    }


def _sparse(draw: random.Random) -> dict[str, t.Any]:
    keys: dict[str, t.Any] = {"index_topk": 2048, "index_head_dim": 128, "num_hidden_layers": draw.randint(1, 78)}
    kind = draw.choice(["rule", "pattern", "every"])
    if kind == "rule":
        keys.update(index_topk_freq=draw.choice([1, 2, 4]), index_skip_topk_offset=draw.choice([1, 2, 3]))
    elif kind == "pattern":
        keys["index_topk_pattern"] = "".join(draw.choice("FS") for _layer in range(draw.randint(1, 90)))
    return {**models.DEEPSEEK_V3, "model_type": draw.choice(["glm_moe_dsa", "deepseek_v32"]), **keys}


def _windows(draw: random.Random) -> dict[str, t.Any]:
    base = draw.choice(
        [models.GEMMA2, models.GEMMA3, models.GPT_OSS, models.MISTRAL, models.QWEN2_WINDOW, models.LLAMA4]
    )
    config = {**base, **_heads(draw), "num_hidden_layers": draw.randint(1, 48)}
    config["sliding_window"] = draw.choice([64, 100, 256, 1000, 4096])
    config["attention_chunk_size"] = draw.choice([256, 1000, 8192])
    config.pop("no_rope_layers", None)
    if config["model_type"] == "gemma3_text" and draw.random() < 0.5:
        config["layer_types"] = [
            draw.choice(["sliding_attention", "full_attention"]) for _layer in range(config["num_hidden_layers"])
        ]
    return config


def _recurrent(draw: random.Random) -> dict[str, t.Any]:
    if draw.random() < 0.5:
        return {
            **models.QWEN3_NEXT,
            "num_hidden_layers": draw.randint(1, 48),
            "num_attention_heads": 16,
            "num_key_value_heads": draw.choice([1, 2, 4]),
            "head_dim": draw.choice([64, 128, 256]),
            "linear_num_key_heads": draw.choice([8, 16]),
            "linear_num_value_heads": draw.choice([16, 32]),
            "linear_key_head_dim": draw.choice([32, 64, 128]),
            "linear_value_head_dim": draw.choice([32, 64, 128]),
        }
    pattern = "".join(draw.choice("MM-*E") for _layer in range(draw.randint(2, 60))) + "*"
    return {
        **models.NEMOTRON_H,
        "num_hidden_layers": len(pattern),
        "hybrid_override_pattern": pattern,
        "num_attention_heads": 16,
        "num_key_value_heads": draw.choice([2, 4]),
        "head_dim": draw.choice([64, 128]),
        "mamba_num_heads": draw.choice([16, 64]),
        "mamba_head_dim": draw.choice([32, 64]),
        "n_groups": draw.choice([1, 2, 8]),
        "ssm_state_size": draw.choice([64, 128]),
    }


def _dense(draw: random.Random) -> dict[str, t.Any]:
    base = draw.choice([models.LLAMA, models.QWEN3, models.GLM4_MOE, models.MINIMAX_M2, models.MIXTRAL])
    return {**base, **_heads(draw), "num_hidden_layers": draw.randint(1, 80)}


def _latent(draw: random.Random) -> dict[str, t.Any]:
    base = draw.choice([models.DEEPSEEK_V2, models.DEEPSEEK_V3, models.KIMI_K2])
    return {**base, "num_hidden_layers": draw.randint(1, 61), "num_attention_heads": 64}


def _whisper(draw: random.Random) -> dict[str, t.Any]:
    heads = draw.choice([4, 8])
    return {
        "model_type": "whisper",
        "architectures": ["WhisperForConditionalGeneration"],
        "decoder_layers": draw.randint(1, 32),
        "decoder_attention_heads": heads,
        "d_model": heads * 64,
        "max_source_positions": 1500,
        "max_target_positions": 448,
    }


_SHAPES = (_dense, _dense, _latent, _sparse, _sparse, _windows, _windows, _windows, _recurrent, _recurrent, _whisper)
_DTYPES = {
    "dense": ["auto", "fp8", "nvfp4", "int8_per_token_head", "fp8_per_token_head", "int4_per_token_head"],
    "latent": ["auto", "fp8", "bfloat16"],
    "sparse": ["fp8_ds_mla", "nvfp4_ds_mla", "bfloat16", "fp8"],
}


def _dtype(draw: random.Random, config: dict[str, t.Any]) -> str:
    if "index_topk" in config:
        return draw.choice(_DTYPES["sparse"])
    if "kv_lora_rank" in config:
        return draw.choice(_DTYPES["latent"])
    if config["model_type"] in ("qwen3_next", "nemotron_h", "whisper"):
        return draw.choice(["auto", "fp8"])
    return draw.choice(_DTYPES["dense"])


def generate(seed: int) -> Options:
    """The options of one generated fit."""
    draw = random.Random(seed)
    config = draw.choice(_SHAPES)(draw)
    config = {**config, "max_position_embeddings": 262144}
    if config["model_type"] == "whisper":
        config.pop("max_position_embeddings")
    tp = draw.choice([1, 1, 2, 4, 8])
    options: Options = {
        "config": config,
        "device": "cuda",
        "tensor_parallel_size": tp,
        "decode_context_parallel_size": draw.choice([d for d in (1, 1, 2, 4, 8) if tp % d == 0]),
        "kv_cache_dtype": _dtype(draw, config),
        "max_num_batched_tokens": draw.choice([256, 512, 2048, 8192]),
        "max_model_len": draw.choice([1, 17, 500, 512, 4096, 10000, 32768, 131072, -1]),
        "block_size": draw.choice([None, None, 16, 32, 64]),
    }
    if config["model_type"] == "whisper":
        options["max_model_len"] = draw.choice([1, 100, 448])
    layers = config.get("num_hidden_layers", 1)
    if draw.random() < 0.25:
        options["pipeline_parallel_size"] = draw.choice([stages for stages in (1, 2, 3, 4) if stages <= layers])
    if "index_topk" in config and options["block_size"] is not None:
        options["block_size"] = 64
    if config.get("num_nextn_predict_layers") and draw.random() < 0.6:
        options["speculative_config"] = {"method": "mtp", "num_speculative_tokens": draw.choice([1, 2, 3])}
    if config["model_type"] in ("qwen3_next", "nemotron_h"):
        options["enable_prefix_caching"] = draw.choice([None, True, False])
    if draw.random() < 0.1:
        options["disable_hybrid_kv_cache_manager"] = True
    if draw.random() < 0.05:
        options["num_gpu_blocks_override"] = draw.choice([1, 2, 100, 5000])
    size = int(2 ** draw.uniform(14, 34))
    ranks = tp * options.get("pipeline_parallel_size", 1)
    options["kv_cache_memory_bytes"] = draw.choice(
        [size, size, [max(0, size - draw.randint(0, size // 3)) for _rank in range(ranks)]]
    )
    return options

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Models as they were published: the keys of their config.json that a cache may hang on, with their real values."""

from __future__ import annotations

import typing as t

Config = dict[str, t.Any]

_YARN: Config = {"type": "yarn", "factor": 40, "original_max_position_embeddings": 4096, "mscale": 1.0}
_YARN.update(mscale_all_dim=1.0, beta_fast=32, beta_slow=1)
_LLAMA3: Config = {"factor": 8.0, "low_freq_factor": 1.0, "high_freq_factor": 4.0, "rope_type": "llama3"}
_LLAMA3["original_max_position_embeddings"] = 8192


def _config(model_type: str, architecture: str, layers: int, heads: int, kv: int, hidden: int, **keys: t.Any) -> Config:
    return {
        "model_type": model_type,
        "architectures": [architecture],
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv,
        "hidden_size": hidden,
        "torch_dtype": "bfloat16",
        **keys,
    }


def _llama(layers: int, heads: int, kv: int, hidden: int, **keys: t.Any) -> Config:
    return _config("llama", "LlamaForCausalLM", layers, heads, kv, hidden, **keys)


def _mistral(layers: int, heads: int, hidden: int, **keys: t.Any) -> Config:
    return _config("mistral", "MistralForCausalLM", layers, heads, 8, hidden, **keys)


def _qwen(model_type: str, architecture: str, layers: int, heads: int, kv: int, hidden: int, **keys: t.Any) -> Config:
    window = {"use_sliding_window": False, "sliding_window": 131072, "max_window_layers": 28}
    return {**_config(model_type, architecture, layers, heads, kv, hidden, **window), **keys}


_QWEN_EXPERTS: Config = {"decoder_sparse_step": 1, "mlp_only_layers": [], "num_experts_per_tok": 8, "num_experts": 128}
_QWEN_EXPERTS["norm_topk_prob"] = True


def _latent(model_type: str, architecture: str, layers: int, heads: int, hidden: int, **keys: t.Any) -> Config:
    return _config(
        model_type,
        architecture,
        layers,
        heads,
        heads,
        hidden,
        **{
            "kv_lora_rank": 512,
            "q_lora_rank": 1536,
            "qk_nope_head_dim": 128,
            "qk_rope_head_dim": 64,
            "v_head_dim": 128,
            "n_routed_experts": 256,
            "n_shared_experts": 1,
            "num_experts_per_tok": 8,
            "first_k_dense_replace": 3,
            "moe_layer_freq": 1,
            "n_group": 8,
            "topk_group": 4,
            "topk_method": "noaux_tc",
            "scoring_func": "sigmoid",
            "norm_topk_prob": True,
            "routed_scaling_factor": 2.5,
            **keys,
        },
    )


def _glm(layers: int, heads: int, hidden: int, context: int, **keys: t.Any) -> Config:
    return _config(
        "glm4_moe",
        "Glm4MoeForCausalLM",
        layers,
        heads,
        8,
        hidden,
        head_dim=128,
        max_position_embeddings=context,
        num_nextn_predict_layers=1,
        n_routed_experts=128,
        n_shared_experts=1,
        num_experts_per_tok=8,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        partial_rotary_factor=0.5,
        rope_scaling=None,
        rope_theta=1000000,
        routed_scaling_factor=1.0,
        use_qk_norm=True,
        attention_bias=True,
        **keys,
    )


_GEMMA_TEXT: Config = {"model_type": "gemma3_text", "rope_scaling": {"factor": 8.0, "rope_type": "linear"}}
_GEMMA_TEXT["sliding_window"] = 1024


def _gemma3(**keys: t.Any) -> Config:
    """A multimodal Gemma 3, whose text part leaves out what its config class fills in."""
    vision = {"hidden_size": 64, "intermediate_size": 64, "model_type": "siglip_vision_model", "num_attention_heads": 4}
    vision.update(num_hidden_layers=1, image_size=896, patch_size=14, vision_use_head=False)
    return {
        "model_type": "gemma3",
        "architectures": ["Gemma3ForConditionalGeneration"],
        "mm_tokens_per_image": 256,
        "image_token_index": 262144,
        "torch_dtype": "bfloat16",
        "text_config": {**_GEMMA_TEXT, **keys},
        "vision_config": vision,
    }


def _gpt_oss(layers: int, experts: int) -> Config:
    return _config(
        "gpt_oss",
        "GptOssForCausalLM",
        layers,
        64,
        8,
        2880,
        head_dim=64,
        sliding_window=128,
        layer_types=["sliding_attention", "full_attention"] * (layers // 2),
        initial_context_length=4096,
        max_position_embeddings=131072,
        num_local_experts=experts,
        num_experts_per_tok=4,
        rope_scaling={
            "beta_fast": 32.0,
            "beta_slow": 1.0,
            "factor": 32.0,
            "original_max_position_embeddings": 4096,
            "rope_type": "yarn",
            "truncate": False,
        },
        rope_theta=150000,
    )


def _nemotron(pattern: str, heads: int, hidden: int, mamba_heads: int, mamba_dim: int, **keys: t.Any) -> Config:
    config = _config(
        "nemotron_h",
        "NemotronHForCausalLM",
        len(pattern),
        heads,
        8,
        hidden,
        hybrid_override_pattern=pattern,
        mamba_num_heads=mamba_heads,
        mamba_head_dim=mamba_dim,
        n_groups=8,
        ssm_state_size=128,
        conv_kernel=4,
        chunk_size=128,
        expand=2,
        mlp_hidden_act="relu2",
    )
    return {**config, **keys}


_NANO_9B = "M-M-M-MM-M-M-M*-M-M-M*-M-M-M-M*-M-M-M-M*-M-MM-M-M-M-M-M-"
_H_8B = "M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M*-M-M-M-M-M-"
_NANO_30B = "MEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEM*EMEMEMEM*EMEMEMEME"

PUBLISHED: dict[str, Config] = {
    "llama-3-8b": _llama(32, 32, 8, 4096, max_position_embeddings=8192, rope_scaling=None, rope_theta=500000.0),
    "llama-3.1-70b": _llama(80, 64, 8, 8192, max_position_embeddings=131072, rope_scaling=_LLAMA3),
    "llama-3.2-1b": _llama(
        16, 32, 8, 2048, head_dim=64, max_position_embeddings=131072, rope_scaling={**_LLAMA3, "factor": 32.0}
    ),
    "llama-2-7b": _llama(32, 32, 32, 4096, max_position_embeddings=4096, rope_scaling=None),
    "mistral-7b-v0.1": _mistral(32, 32, 4096, sliding_window=4096, max_position_embeddings=32768),
    "mistral-7b-v0.3": _mistral(32, 32, 4096, sliding_window=None, max_position_embeddings=32768),
    "mistral-small-24b": _mistral(40, 32, 5120, head_dim=128, sliding_window=None, max_position_embeddings=32768),
    "mixtral-8x7b": _config(
        "mixtral",
        "MixtralForCausalLM",
        32,
        32,
        8,
        4096,
        max_position_embeddings=32768,
        num_local_experts=8,
        num_experts_per_tok=2,
        sliding_window=None,
    ),
    "qwen2-7b": _qwen("qwen2", "Qwen2ForCausalLM", 28, 28, 4, 3584, max_position_embeddings=131072),
    "qwen2.5-72b": _qwen(
        "qwen2", "Qwen2ForCausalLM", 80, 64, 8, 8192, max_position_embeddings=32768, max_window_layers=70
    ),
    "qwen3-8b": _qwen(
        "qwen3",
        "Qwen3ForCausalLM",
        36,
        32,
        8,
        4096,
        head_dim=128,
        max_position_embeddings=40960,
        max_window_layers=36,
        sliding_window=None,
    ),
    "qwen3-0.6b-yarn": _qwen(
        "qwen3",
        "Qwen3ForCausalLM",
        28,
        16,
        8,
        1024,
        head_dim=128,
        max_position_embeddings=40960,
        sliding_window=None,
        rope_scaling={"rope_type": "yarn", "factor": 4.0, "original_max_position_embeddings": 32768},
    ),
    "qwen3-30b-a3b": _qwen(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        48,
        32,
        4,
        2048,
        head_dim=128,
        max_position_embeddings=262144,
        max_window_layers=48,
        sliding_window=None,
        **_QWEN_EXPERTS,
    ),
    "qwen3-235b-a22b": _qwen(
        "qwen3_moe",
        "Qwen3MoeForCausalLM",
        94,
        64,
        4,
        4096,
        head_dim=128,
        max_position_embeddings=40960,
        max_window_layers=94,
        sliding_window=None,
        **_QWEN_EXPERTS,
    ),
    "qwen1.5-moe-a2.7b": _qwen(
        "qwen2_moe",
        "Qwen2MoeForCausalLM",
        24,
        16,
        16,
        2048,
        max_position_embeddings=8192,
        max_window_layers=21,
        sliding_window=32768,
        shared_expert_intermediate_size=64,
        decoder_sparse_step=1,
        num_experts=60,
        num_experts_per_tok=4,
        norm_topk_prob=False,
    ),
    "qwen3-next-80b-a3b": _config(
        "qwen3_next",
        "Qwen3NextForCausalLM",
        48,
        16,
        2,
        2048,
        head_dim=256,
        full_attention_interval=4,
        linear_conv_kernel_dim=4,
        linear_key_head_dim=128,
        linear_num_key_heads=16,
        linear_num_value_heads=32,
        linear_value_head_dim=128,
        max_position_embeddings=262144,
        partial_rotary_factor=0.25,
        shared_expert_intermediate_size=64,
        rope_scaling=None,
        rope_theta=10000000,
        **{**_QWEN_EXPERTS, "num_experts": 512, "num_experts_per_tok": 10},
    ),
    "gemma-2-9b": _config(
        "gemma2",
        "Gemma2ForCausalLM",
        42,
        16,
        8,
        3584,
        head_dim=256,
        sliding_window=4096,
        sliding_window_size=4096,
        max_position_embeddings=8192,
        query_pre_attn_scalar=256,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
        cache_implementation="hybrid",
    ),
    "gemma-2-27b": _config(
        "gemma2",
        "Gemma2ForCausalLM",
        46,
        32,
        16,
        4608,
        head_dim=128,
        sliding_window=4096,
        max_position_embeddings=8192,
        query_pre_attn_scalar=144,
        attn_logit_softcapping=50.0,
        final_logit_softcapping=30.0,
    ),
    "gemma-3-1b": _config(
        "gemma3_text",
        "Gemma3ForCausalLM",
        26,
        4,
        1,
        1152,
        head_dim=256,
        sliding_window=512,
        sliding_window_pattern=6,
        max_position_embeddings=32768,
        query_pre_attn_scalar=256,
        rope_local_base_freq=10000,
        rope_scaling=None,
        rope_theta=1000000,
    ),
    "gemma-3-4b": _gemma3(hidden_size=2560, num_hidden_layers=34),
    "gemma-3-12b": _gemma3(hidden_size=3840, num_attention_heads=16, num_hidden_layers=48, num_key_value_heads=8),
    "gemma-3-27b": _gemma3(
        head_dim=128,
        hidden_size=5376,
        num_attention_heads=32,
        num_hidden_layers=62,
        num_key_value_heads=16,
        query_pre_attn_scalar=168,
    ),
    "gpt-oss-20b": _gpt_oss(24, 32),
    "gpt-oss-120b": _gpt_oss(36, 128),
    "glm-4.5": _glm(92, 96, 5120, 131072),
    "glm-4.5-air": _glm(46, 96, 4096, 131072),
    "glm-4.6": _glm(92, 96, 5120, 202752),
    "glm-4.7-flash": _latent(
        "glm4_moe_lite",
        "Glm4MoeLiteForCausalLM",
        47,
        20,
        2048,
        q_lora_rank=768,
        qk_nope_head_dim=192,
        v_head_dim=256,
        max_position_embeddings=202752,
        n_routed_experts=64,
        num_experts_per_tok=4,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        num_nextn_predict_layers=1,
        routed_scaling_factor=1.8,
        rope_scaling=None,
    ),
    "deepseek-v2-lite": _latent(
        "deepseek_v2",
        "DeepseekV2ForCausalLM",
        27,
        16,
        2048,
        q_lora_rank=None,
        n_routed_experts=64,
        n_shared_experts=2,
        num_experts_per_tok=6,
        first_k_dense_replace=1,
        n_group=1,
        topk_group=1,
        topk_method="greedy",
        scoring_func="softmax",
        norm_topk_prob=False,
        routed_scaling_factor=1.0,
        max_position_embeddings=163840,
        rope_scaling={**_YARN, "mscale": 0.707, "mscale_all_dim": 0.707},
    ),
    "deepseek-v3": _latent(
        "deepseek_v3",
        "DeepseekV3ForCausalLM",
        61,
        128,
        7168,
        max_position_embeddings=163840,
        num_nextn_predict_layers=1,
        rope_scaling=_YARN,
        ep_size=1,
    ),
    "kimi-k2": _latent(
        "kimi_k2",
        "DeepseekV3ForCausalLM",
        61,
        64,
        7168,
        max_position_embeddings=131072,
        num_nextn_predict_layers=0,
        n_routed_experts=384,
        n_group=1,
        topk_group=1,
        first_k_dense_replace=1,
        routed_scaling_factor=2.827,
        rope_scaling={**_YARN, "factor": 32.0, "beta_fast": 1.0},
    ),
    "minimax-m2": _config(
        "minimax_m2",
        "MiniMaxM2ForCausalLM",
        62,
        48,
        8,
        3072,
        head_dim=128,
        max_position_embeddings=196608,
        num_local_experts=256,
        num_experts_per_tok=8,
        rotary_dim=64,
        rope_theta=5000000,
        scoring_func="sigmoid",
        use_routing_bias=True,
        use_qk_norm=True,
        qk_norm_type="per_layer",
        use_mtp=True,
        num_mtp_modules=3,
        mtp_transformer_layers=1,
        attn_type_list=[1] * 62,
    ),
    "nemotron-h-8b": _nemotron(
        _H_8B, 32, 4096, 128, 64, attention_head_dim=128, max_position_embeddings=8192, sliding_window=None
    ),
    "nemotron-nano-9b-v2": _nemotron(
        _NANO_9B, 40, 4480, 128, 80, head_dim=128, max_position_embeddings=131072, sliding_window=None
    ),
    "nemotron-3-nano-30b": _nemotron(
        _NANO_30B,
        32,
        2688,
        64,
        64,
        num_key_value_heads=2,
        head_dim=128,
        max_position_embeddings=262144,
        n_routed_experts=128,
        n_shared_experts=1,
        num_experts_per_tok=6,
        n_group=1,
        topk_group=1,
        norm_topk_prob=True,
        routed_scaling_factor=2.5,
        mamba_ssm_cache_dtype="float32",
        sliding_window=None,
    ),
}

# Sizes that weigh much and say nothing about a cache.
_LIGHT: Config = {
    "vocab_size": 512,
    "intermediate_size": 64,
    "moe_intermediate_size": 64,
    "shared_intermediate_size": 64,
    "moe_shared_expert_intermediate_size": 64,
}
_EXPERT_KEYS = ("num_experts", "n_routed_experts", "num_local_experts")


def light(config: Config) -> Config:
    """The model with small weights and the very same cache: vocabulary, MLPs, experts and, where the config says the
    size of a head, the width between the layers."""
    if "text_config" in config:
        return {**config, "text_config": light(config["text_config"])}
    small = {**config, **_LIGHT}
    for key in _EXPERT_KEYS:
        if key in small:
            small.update({key: 8, "num_experts_per_tok": 2})
    if small.get("n_group", 1) > 1:
        small.update(n_group=2, topk_group=1)
    if "hybrid_override_pattern" in small:
        # Neither experts nor MLPs keep a cache, and a CPU has no kernel for the former.
        small["hybrid_override_pattern"] = small["hybrid_override_pattern"].replace("E", "-")
    if "head_dim" in small or "kv_lora_rank" in small:
        small["hidden_size"] = small.get("num_attention_heads", 8) * 16
    return small

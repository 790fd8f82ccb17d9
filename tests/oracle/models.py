# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Tiny models of every family that a CPU engine can start in seconds, as config.json dictionaries."""

from __future__ import annotations

import typing as t

Config = dict[str, t.Any]

_BASE: Config = {
    "hidden_size": 128,
    "intermediate_size": 256,
    "vocab_size": 512,
    "max_position_embeddings": 8192,
    "torch_dtype": "bfloat16",
    "num_attention_heads": 4,
    "num_key_value_heads": 2,
}
_EXPERTS: Config = {"num_experts_per_tok": 2, "moe_intermediate_size": 64, "norm_topk_prob": True}
_LATENT: Config = {
    **_EXPERTS,
    "num_key_value_heads": 4,
    "n_routed_experts": 4,
    "n_shared_experts": 1,
    "first_k_dense_replace": 1,
    "n_group": 1,
    "topk_group": 1,
    "routed_scaling_factor": 1.0,
    "scoring_func": "sigmoid",
    "topk_method": "noaux_tc",
    "moe_layer_freq": 1,
    "q_lora_rank": 64,
    "kv_lora_rank": 512,
    "qk_nope_head_dim": 32,
    "qk_rope_head_dim": 64,
    "v_head_dim": 32,
}


def _model(model_type: str, architecture: str, **keys: t.Any) -> Config:
    return {**_BASE, "model_type": model_type, "architectures": [architecture], **keys}


LLAMA = _model("llama", "LlamaForCausalLM", num_hidden_layers=4, head_dim=32)
MISTRAL = _model("mistral", "MistralForCausalLM", num_hidden_layers=4, head_dim=32, sliding_window=256)
MIXTRAL = _model("mixtral", "MixtralForCausalLM", num_hidden_layers=2, num_local_experts=4, num_experts_per_tok=2)
QWEN2 = _model("qwen2", "Qwen2ForCausalLM", num_hidden_layers=3)
QWEN2_WINDOW = {**QWEN2, "use_sliding_window": True, "sliding_window": 256, "max_window_layers": 0}
QWEN3 = _model("qwen3", "Qwen3ForCausalLM", num_hidden_layers=3, num_key_value_heads=1, head_dim=64)
QWEN3_MOE = _model(
    "qwen3_moe",
    "Qwen3MoeForCausalLM",
    num_hidden_layers=2,
    head_dim=32,
    num_experts=4,
    decoder_sparse_step=1,
    mlp_only_layers=[],
    **_EXPERTS,
)
QWEN2_MOE = _model(
    "qwen2_moe",
    "Qwen2MoeForCausalLM",
    num_hidden_layers=2,
    num_experts=4,
    shared_expert_intermediate_size=64,
    decoder_sparse_step=1,
    mlp_only_layers=[],
    **_EXPERTS,
)
GLM4 = _model("glm4", "Glm4ForCausalLM", num_hidden_layers=2, head_dim=32, partial_rotary_factor=0.5)
EAGLE = {**LLAMA, "architectures": ["EagleLlamaForCausalLM"], "num_hidden_layers": 1}
EAGLE3 = {**LLAMA, "architectures": ["LlamaForCausalLMEagle3"], "num_hidden_layers": 1, "draft_vocab_size": 512}
GEMMA2 = _model(
    "gemma2", "Gemma2ForCausalLM", num_hidden_layers=5, head_dim=32, sliding_window=256, query_pre_attn_scalar=32
)
GEMMA3 = _model(
    "gemma3_text", "Gemma3ForCausalLM", num_hidden_layers=6, head_dim=32, sliding_window=256, query_pre_attn_scalar=32
)
GPT_OSS = _model(
    "gpt_oss",
    "GptOssForCausalLM",
    num_hidden_layers=5,
    head_dim=32,
    sliding_window=128,
    num_local_experts=4,
    num_experts_per_tok=2,
)
GLM4_MOE = _model(
    "glm4_moe",
    "Glm4MoeForCausalLM",
    num_hidden_layers=3,
    head_dim=32,
    num_nextn_predict_layers=1,
    n_routed_experts=4,
    n_shared_experts=1,
    first_k_dense_replace=1,
    n_group=1,
    topk_group=1,
    routed_scaling_factor=1.0,
    partial_rotary_factor=0.5,
    **_EXPERTS,
)
MINIMAX_M2 = _model(
    "minimax_m2",
    "MiniMaxM2ForCausalLM",
    num_hidden_layers=2,
    head_dim=32,
    num_local_experts=4,
    num_experts_per_tok=2,
    rotary_dim=16,
    scoring_func="sigmoid",
    attn_type_list=[1, 1],
)
DEEPSEEK_V2 = _model(
    "deepseek_v2",
    "DeepseekV2ForCausalLM",
    num_hidden_layers=3,
    **{**_LATENT, "scoring_func": "softmax", "topk_method": "greedy"},
)
DEEPSEEK_V3 = _model("deepseek_v3", "DeepseekV3ForCausalLM", num_hidden_layers=3, num_nextn_predict_layers=1, **_LATENT)
KIMI_K2 = {**DEEPSEEK_V3, "model_type": "kimi_k2"}
QWEN3_NEXT = _model(
    "qwen3_next",
    "Qwen3NextForCausalLM",
    num_hidden_layers=4,
    head_dim=64,
    linear_num_key_heads=2,
    linear_num_value_heads=4,
    linear_key_head_dim=32,
    linear_value_head_dim=32,
    linear_conv_kernel_dim=4,
    num_experts=4,
    shared_expert_intermediate_size=64,
    decoder_sparse_step=1,
    num_nextn_predict_layers=1,
    **_EXPERTS,
)
QWEN3_NEXT_PLAIN = {key: value for key, value in QWEN3_NEXT.items() if key != "num_nextn_predict_layers"}
QWEN3_5 = _model(
    "qwen3_5_text",
    "Qwen3_5ForCausalLM",
    **{key: QWEN3_NEXT[key] for key in QWEN3_NEXT if key.startswith(("linear_", "num_hidden", "head_dim"))},
    mtp_num_hidden_layers=1,
)
QWEN3_5_MOE = {
    **{key: value for key, value in QWEN3_NEXT.items() if key != "num_nextn_predict_layers"},
    "model_type": "qwen3_5_moe_text",
    "architectures": ["Qwen3_5MoeForCausalLM"],
    "mtp_num_hidden_layers": 1,
}
NEMOTRON_H = _model(
    "nemotron_h",
    "NemotronHForCausalLM",
    num_hidden_layers=6,
    hybrid_override_pattern="M-M*M-",
    head_dim=32,
    mamba_num_heads=8,
    mamba_head_dim=32,
    n_groups=2,
    ssm_state_size=64,
    conv_kernel=4,
    chunk_size=128,
    expand=2,
    mlp_hidden_act="relu2",
)
LLAMA4 = _model(
    "llama4_text",
    "Llama4ForCausalLM",
    num_hidden_layers=4,
    head_dim=32,
    attention_chunk_size=256,
    num_local_experts=4,
    num_experts_per_tok=1,
    interleave_moe_layer_step=1,
    intermediate_size_mlp=256,
    no_rope_layers=[1, 1, 1, 0],
    use_qk_norm=True,
)
MIMO_V2 = _model(
    "mimo_v2_flash",
    "MiMoV2FlashForCausalLM",
    num_hidden_layers=13,
    head_dim=192,
    v_head_dim=128,
    swa_num_key_value_heads=8,
    swa_head_dim=192,
    swa_v_head_dim=128,
    sliding_window_size=128,
    hybrid_layer_pattern=[0, 1, 1, 1, 1, 0, 1, 1, 1, 1, 1, 0, 1],
)
MIMO_V2.update(num_attention_heads=64, num_key_value_heads=4, max_position_embeddings=262144)

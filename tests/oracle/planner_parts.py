# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Specs and a configuration, made from plain descriptions, for the planner of whatever vLLM is on the path.

The servers beside this file load it by name, once they have prepared what that vLLM imports.
"""

from __future__ import annotations

import dataclasses
import importlib
import typing as t
from types import SimpleNamespace

torch: t.Any = importlib.import_module("torch")
interface: t.Any = importlib.import_module("vllm.v1.kv_cache_interface")
utilities: t.Any = importlib.import_module("vllm.utils.torch_utils")

Question = dict[str, t.Any]


def built(kind: t.Any, **options: t.Any) -> t.Any:
    """A spec with what this version of it has."""
    return kind(**{name: value for name, value in options.items() if name in kind.__dataclass_fields__})


def torch_dtype(name: str) -> t.Any:
    """The torch type of a cache dtype; auto is bfloat16 here."""
    return torch.bfloat16 if name == "auto" else utilities.STR_DTYPE_TO_TORCH_DTYPE[name]


def state_spec(spec: Question) -> t.Any:
    """The states of a Mamba or gated-delta-net layer."""
    return built(
        interface.MambaSpec,
        block_size=spec["block_size"],
        shapes=tuple(tuple(shape) for shape in spec["shapes"]),
        dtypes=tuple(utilities.STR_DTYPE_TO_TORCH_DTYPE[name] for name in spec["dtypes"]),
        page_size_padded=spec["padded_page"],
        mamba_cache_mode=spec["mode"],
        num_speculative_blocks=spec["draft_states"],
        num_prefill_checkpoint_blocks=spec["checkpoint_states"],
    )


def heads_spec(spec: Question, **options: t.Any) -> t.Any:
    """The cache of a layer with K and V heads, not packed yet."""
    options = {**options, "dtype": torch_dtype(spec["dtype"]), "num_kv_heads": spec["heads"]}
    options["head_size_v"] = spec["value"]
    if hasattr(interface, "get_kv_quant_mode"):
        options["kv_quant_mode"] = interface.get_kv_quant_mode(spec["dtype"])
    if spec["kind"] == "sliding":
        return built(interface.SlidingWindowSpec, **options, sliding_window=spec["window"])
    if spec["kind"] == "chunked":
        return built(interface.ChunkedLocalAttentionSpec, **options, attention_chunk_size=spec["window"])
    if spec["kind"] == "cross":
        return built(interface.CrossAttentionSpec, **options)
    return built(interface.FullAttentionSpec, **options)


def nvfp4_spec(spec: t.Any) -> t.Any:
    """An NVFP4 cache as its kernels pack it since 0.28."""
    content = utilities.nvfp4_kv_cache_full_dim(spec.head_size)
    return dataclasses.replace(spec, num_head_slots=2 * spec.num_kv_heads, state_content_bytes=content)


def make_config(question: Question, **cache: t.Any) -> SimpleNamespace:
    """The little of VllmConfig that the planners' functions look at."""
    length = question["max_model_len"]
    return SimpleNamespace(
        model_config=SimpleNamespace(
            max_model_len=question["derived_len"] if length == -1 else length,
            original_max_model_len=length,
            supports_kv_cache_grouping=False,
            hf_config=SimpleNamespace(model_type="llama"),
        ),
        parallel_config=SimpleNamespace(
            decode_context_parallel_size=question["dcp"],
            tensor_parallel_size=question["tp"],
            prefill_context_parallel_size=1,
        ),
        cache_config=SimpleNamespace(
            num_gpu_blocks_override=question.get("override"),
            prefix_cache_retention_interval=0,
            block_size=question["block_size"],
            mamba_cache_mode=question["mode"],
            **cache,
        ),
        scheduler_config=SimpleNamespace(
            disable_hybrid_kv_cache_manager=question.get("disable_hybrid", False),
            max_num_batched_tokens=question["in_flight"],
            max_num_encoder_input_tokens=question.get("encoder_tokens", 0),
        ),
        attention_config=SimpleNamespace(hisparse_config=None),
        device_config=SimpleNamespace(device_type=question["device"]),
        speculative_config=None,
        kv_transfer_config=None,
        kv_events_config=None,
        num_prefill_lookahead_tokens=0,
        max_in_flight_tokens=question["in_flight"],
    )

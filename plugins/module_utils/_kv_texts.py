# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the engine prints: its log lines and the words that it refuses with, by version.

The wording belongs to vLLM and is compared with the engine's own in the tests. Private to this collection.
"""

from __future__ import annotations

from typing import List

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_dialects import Dialect, format_gib

_GUIDE = "See https://docs.vllm.ai/en/latest/configuration/conserving_memory/ for more details."


def no_memory(dialect: Dialect) -> str:
    """Not a single block: the budget is empty."""
    if dialect.mentions_cpu:
        return (
            "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the "
            "engine (this flag also controls CPU memory reservation on the CPU backend, despite its name). " + _GUIDE
        )
    return (
        "No available memory for the cache blocks. Try increasing `gpu_memory_utilization` when initializing the "
        "engine. " + _GUIDE
    )


def too_long(dialect: Dialect, context: int, needed_bytes: int, available_bytes: int, estimate: int) -> str:
    """One request of `context` tokens does not fit; estimate: the longest that would (0: not even one token)."""
    cpu = " (which also controls CPU memory on the CPU backend)" if dialect.mentions_cpu else ""
    hint = ""
    if estimate > 0:
        hint = "Based on the available memory, the estimated maximum model length is %d. " % estimate
    elif dialect.version < (0, 20):
        hint = " "
    return (
        "To serve at least one request with the %s max seq len (%d), (%s GiB KV cache is needed, which is larger than "
        "the available KV cache memory (%s GiB). %sTry increasing `gpu_memory_utilization`%s or decreasing "
        "`max_model_len` when initializing the engine. %s"
    ) % (
        dialect.owner,
        context,
        format_gib(dialect, needed_bytes),
        format_gib(dialect, available_bytes),
        hint,
        cpu,
        _GUIDE,
    )


def no_auto_fit() -> str:
    """max_model_len -1, and not even one token fits."""
    return (
        "Cannot auto-fit max_model_len: not enough GPU memory available to serve even a single token. "
        "Try increasing `gpu_memory_utilization`."
    )


def device_name(dialect: Dialect, device: str) -> str:
    """How log lines call the device."""
    if device == "cuda" or not dialect.log_names_device:
        return "GPU"
    return device.upper()


def capacity_log(
    dialect: Dialect, device: str, tokens: int, context: int, concurrency: float, decode_context_parallel: int
) -> str:
    """The line (older versions: the lines) in which the engine reports its capacity."""
    size = "%s KV cache size: %s tokens" % (device_name(dialect, device), format(tokens, ","))
    requests = "Maximum concurrency for %s tokens per request: %.2fx" % (format(context, ","), concurrency)
    if dialect.log_lines == 1:
        return "%s, %s" % (size, requests)
    lines: List[str] = []
    if dialect.tokens == "blocks" and decode_context_parallel > 1:
        lines.append(
            "Multiplying the GPU KV cache size by the cp_world_size %d (pcp_world_size 1 * dcp_world_size %d)."
            % (decode_context_parallel, decode_context_parallel)
        )
    return "\n".join([*lines, size, requests])


def auto_fit_log(dialect: Dialect, device: str, original: int, fitted: int, budget_bytes: int) -> str:
    """The line in which the engine says which context it settled for."""
    gib = format_gib(dialect, budget_bytes)
    if dialect.auto_fit_text == "device":
        room = "available KV cache memory (%s GiB %s)" % (gib, device_name(dialect, device))
    else:
        room = "available GPU memory (%s GiB available for KV cache)" % gib
    if fitted >= original:
        tail = room if dialect.auto_fit_text == "device" else "available GPU memory"
        return "Auto-fit max_model_len: full model context length %d fits in %s" % (original, tail)
    return "Auto-fit max_model_len: reduced from %d to %d to fit in %s" % (original, fitted, room)


def heads_not_divisible(heads: int, tensor_parallel: int) -> str:
    """Query heads that cannot be dealt out over the tensor-parallel ranks."""
    return "Total number of attention heads (%d) must be divisible by tensor parallel size (%d)." % (
        heads,
        tensor_parallel,
    )


def dcp_needs_more_ranks(dialect: Dialect, tensor_parallel: int, kv_heads: int) -> str:
    """GQA: context parallelism needs ranks that share a KV head."""
    if dialect.dcp_texts == "short":
        return (
            "tensor parallel size %d must be greater than total num kv heads %d when enable decode context parallel "
            "for GQA/MQA" % (tensor_parallel, kv_heads)
        )
    return (
        "Decode context parallelism for GQA/MQA requires `--tensor-parallel-size` (%d) to be greater than the model's "
        "total number of KV heads (%d). Increase `--tensor-parallel-size` or set `--decode-context-parallel-size 1`."
        % (tensor_parallel, kv_heads)
    )


def dcp_too_large(dialect: Dialect, dcp: int, limit: int, tensor_parallel: int, kv_heads: int) -> str:
    """GQA: more context-parallel ranks than there are ranks for one KV head."""
    if dialect.dcp_texts == "short":
        return (
            "decode context parallel size must less than or equal to (tensor parallel size %d // total num kv heads "
            "%d) = %d, but got %d" % (tensor_parallel, kv_heads, limit, dcp)
        )
    return (
        "`--decode-context-parallel-size` (%d) exceeds the maximum supported value (%d) for `--tensor-parallel-size` "
        "(%d) and %d model KV heads." % (dcp, limit, tensor_parallel, kv_heads)
    )


def dcp_uneven_heads(dialect: Dialect, queries: int, dcp: int) -> str:
    """GQA: the query heads of one KV head cannot be dealt out."""
    if dialect.dcp_texts == "short":
        return (
            "Total number of q per kv attn heads (%d) must be divisible by dcp world size when enable decode context "
            "parallel for GQA (%d)." % (queries, dcp)
        )
    return (
        "The model's number of query heads per KV head (%d) must be divisible by `--decode-context-parallel-size` (%d) "
        "for GQA/MQA." % (queries, dcp)
    )


def interleave_uneven(block_size: int, interleave: int) -> str:
    """A block that the DCP interleave does not divide."""
    return (
        "Block_size(%d) should be greater than or equal to and divisible by cp_kv_cache_interleave_size (%d)."
        % (block_size, interleave)
    )


def no_lse(dialect: Dialect, implementation: str) -> str:
    """An attention implementation that cannot take part in DCP."""
    if dialect.version < (0, 20):
        return (
            "DCP requires attention impls to return the softmax lse for decode, but the impl %s does not return the "
            "softmax lse for decode." % implementation
        )
    return (
        "Decode Context Parallelism (DCP) requires attention implementations to return the softmax LSE during decode, "
        "but %s does not. Try a different backend by setting --attention-backend or disable DCP." % implementation
    )


def drafts_not_interleaved(implementation: str) -> str:
    """Drafts together with an interleave above one need a kernel for it."""
    return "MTP with cp_kv_cache_interleave_size > 1 is not supported in %s." % implementation


def context_too_long(context: int, key: str, derived: int, model_max_length: object) -> str:
    """A context above what the config allows."""
    return (
        "User-specified max_model_len (%d) is greater than the derived max_model_len (%s=%s or model_max_length=%s in "
        "model's config.json). To allow overriding this maximum, set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1. "
        "VLLM_ALLOW_LONG_MAX_MODEL_LEN must be used with extreme caution. If the model uses relative position encoding "
        "(RoPE), positions exceeding derived_max_model_len lead to nan. If the model uses absolute position encoding, "
        "positions exceeding derived_max_model_len will cause a CUDA array out-of-bounds error."
        % (context, key, derived, model_max_length)
    )


def gpu_gate(dialect: Dialect, device: str, free_bytes: int, total_bytes: int, share: float, wanted_bytes: int) -> str:
    """The start-up gate on a GPU."""
    return (
        "Free memory on device %s (%s/%s GiB) on startup is less than desired GPU memory utilization (%s, %s GiB). "
        "Decrease GPU memory utilization or reduce GPU memory used by other processes."
        % (
            device,
            format_gib(dialect, free_bytes),
            format_gib(dialect, total_bytes),
            share,
            format_gib(dialect, wanted_bytes),
        )
    )


def cpu_gate(dialect: Dialect, free_bytes: int, total_bytes: int, share: float, wanted_bytes: int) -> str:
    """The start-up gate of a CPU engine that sizes its own cache."""
    return (
        "Available memory on node 0 (%s/%s GiB) on startup is less than desired CPU memory utilization (%s, %s GiB). "
        "On the CPU backend, the `--gpu-memory-utilization` flag controls the fraction of CPU memory reserved (despite "
        "its name). To resolve: decrease `--gpu-memory-utilization` (e.g. `--gpu-memory-utilization 0.5`) or reduce "
        "CPU memory used by other processes."
        % (format_gib(dialect, free_bytes), format_gib(dialect, total_bytes), share, format_gib(dialect, wanted_bytes))
    )


def cpu_cache_gate(dialect: Dialect, free_bytes: int, total_bytes: int, cache_bytes: int) -> str:
    """A CPU engine whose explicit cache does not fit in what is free."""
    return (
        "Available memory on node 0 (%s/%s GiB) on kv cache allocation is less than requested memory for kv (%s GiB). "
        "Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory used by other processes."
        % (format_gib(dialect, free_bytes), format_gib(dialect, total_bytes), format_gib(dialect, cache_bytes))
    )


def uneven_drafts(tokens: int, layers: int) -> str:
    """More draft tokens than draft layers, and not a multiple of them."""
    return "num_speculative_tokens:%d must be divisible by n_predict=%d" % (tokens, layers)


def no_common_block(dialect: Dialect, block_size: int, backend: str, sizes: str) -> str:
    """A block that no kernel of the backend can run."""
    if dialect.version >= (0, 32):
        return "No common block size for %d (%s: [%s])." % (block_size, backend, sizes)
    return "No common block size for %d.%s" % (block_size, "" if dialect.version >= (0, 30) else " ")


def sparse_dcp_comm(backend: str) -> str:
    """FlashMLA's sparse kernel with another DCP collective than the default."""
    return (
        "DCP for FlashMLA sparse is only validated with the default 'ag_rs' DCP comm backend; got '%s'" % backend
    )


def sparse_dcp_heads() -> str:
    """FlashMLA's sparse kernel with too many query heads on a rank for DCP."""
    return (
        "DCP for FlashMLA sparse is only supported on the mixed-batch fp8 path (num_heads < 32); the separate "
        "prefill/decode path returns the LSE for decode tokens only, while the DCP merge needs it for every token"
    )


def sparse_dcp_cache() -> str:
    """FlashMLA's sparse kernel with DCP over a cache that is not quantised."""
    return (
        "DCP for FlashMLA sparse requires an fp8_ds_mla kv-cache; the bf16 sparse path is not supported under DCP."
    )

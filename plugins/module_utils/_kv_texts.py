# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""What the engine prints: its log lines and the words that it refuses with, by version.

The wording belongs to vLLM and is compared with the engine's own in the tests. Private to this collection.
"""

from __future__ import annotations

from collections.abc import Sequence

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
        hint = f"Based on the available memory, the estimated maximum model length is {estimate}. "
    elif dialect.version < (0, 20):
        hint = " "
    return (
        f"To serve at least one request with the {dialect.owner} max seq len ({context}), ("
        f"{format_gib(dialect, needed_bytes)} GiB KV cache is needed, which is larger than the available KV cache "
        f"memory ({format_gib(dialect, available_bytes)} GiB). {hint}Try increasing `gpu_memory_utilization`{cpu} "
        f"or decreasing `max_model_len` when initializing the engine. {_GUIDE}"
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
    size = "{} KV cache size: {} tokens".format(device_name(dialect, device), format(tokens, ","))
    requests = "Maximum concurrency for {} tokens per request: {:.2f}x".format(format(context, ","), concurrency)
    if dialect.log_lines == 1:
        return f"{size}, {requests}"
    lines: list[str] = []
    if dialect.tokens == "blocks" and decode_context_parallel > 1:
        lines.append(
            f"Multiplying the GPU KV cache size by the cp_world_size {decode_context_parallel} "
            f"(pcp_world_size 1 * dcp_world_size {decode_context_parallel})."
        )
    return "\n".join([*lines, size, requests])


def auto_fit_log(dialect: Dialect, device: str, original: int, fitted: int, budget_bytes: int) -> str:
    """The line in which the engine says which context it settled for."""
    gib = format_gib(dialect, budget_bytes)
    if dialect.auto_fit_text == "device":
        room = f"available KV cache memory ({gib} GiB {device_name(dialect, device)})"
    else:
        room = f"available GPU memory ({gib} GiB available for KV cache)"
    if fitted >= original:
        tail = room if dialect.auto_fit_text == "device" else "available GPU memory"
        return f"Auto-fit max_model_len: full model context length {original} fits in {tail}"
    return f"Auto-fit max_model_len: reduced from {original} to {fitted} to fit in {room}"


def no_float16(model_type: str) -> str:
    """A model that is not to be computed with float16."""
    return (
        f"The model type {model_type!r} does not support float16. Reason: Numerical instability. Please use bfloat16 "
        "or float32 instead."
    )


def heads_not_divisible(heads: int, tensor_parallel: int) -> str:
    """Query heads that cannot be dealt out over the tensor-parallel ranks."""
    return f"Total number of attention heads ({heads}) must be divisible by tensor parallel size ({tensor_parallel})."


def dcp_needs_more_ranks(dialect: Dialect, tensor_parallel: int, kv_heads: int) -> str:
    """GQA: context parallelism needs ranks that share a KV head."""
    if dialect.dcp_texts == "short":
        return (
            f"tensor parallel size {tensor_parallel} must be greater than total num kv heads {kv_heads} when "
            "enable decode context parallel for GQA/MQA"
        )
    return (
        f"Decode context parallelism for GQA/MQA requires `--tensor-parallel-size` ({tensor_parallel}) to be "
        f"greater than the model's total number of KV heads ({kv_heads}). Increase `--tensor-parallel-size` "
        "or set `--decode-context-parallel-size 1`."
    )


def dcp_too_large(dialect: Dialect, dcp: int, limit: int, tensor_parallel: int, kv_heads: int) -> str:
    """GQA: more context-parallel ranks than there are ranks for one KV head."""
    if dialect.dcp_texts == "short":
        return (
            f"decode context parallel size must less than or equal to (tensor parallel size {tensor_parallel} "
            f"// total num kv heads {kv_heads}) = {limit}, but got {dcp}"
        )
    return (
        f"`--decode-context-parallel-size` ({dcp}) exceeds the maximum supported value ({limit}) for "
        f"`--tensor-parallel-size` ({tensor_parallel}) and {kv_heads} model KV heads."
    )


def dcp_uneven_heads(dialect: Dialect, queries: int, dcp: int) -> str:
    """GQA: the query heads of one KV head cannot be dealt out."""
    if dialect.dcp_texts == "short":
        return (
            f"Total number of q per kv attn heads ({queries}) must be divisible by dcp world size when enable "
            f"decode context parallel for GQA ({dcp})."
        )
    return (
        f"The model's number of query heads per KV head ({queries}) must be divisible by "
        f"`--decode-context-parallel-size` ({dcp}) for GQA/MQA."
    )


def interleave_uneven(block_size: int, interleave: int) -> str:
    """A block that the DCP interleave does not divide."""
    return (
        f"Block_size({block_size}) should be greater than or equal to and divisible by "
        f"cp_kv_cache_interleave_size ({interleave})."
    )


def no_lse(dialect: Dialect, implementation: str) -> str:
    """An attention implementation that cannot take part in DCP."""
    if dialect.version < (0, 20):
        return (
            f"DCP requires attention impls to return the softmax lse for decode, but the impl {implementation} does "
            "not return the softmax lse for decode."
        )
    return (
        "Decode Context Parallelism (DCP) requires attention implementations to return the softmax LSE during decode, "
        f"but {implementation} does not. Try a different backend by setting --attention-backend or disable DCP."
    )


def drafts_not_interleaved(implementation: str) -> str:
    """Drafts together with an interleave above one need a kernel for it."""
    return f"MTP with cp_kv_cache_interleave_size > 1 is not supported in {implementation}."


def native_dcp_interleave(interleave: int) -> str:
    """FlashInfer's MLA kernel deals out single tokens only."""
    return f"FlashInfer MLA native DCP requires cp_kv_cache_interleave_size=1; got {interleave}."


def context_too_long(context: int, key: str, derived: str, model_max_length: object) -> str:
    """A context above what the config allows."""
    return (
        f"User-specified max_model_len ({context}) is greater than the derived max_model_len ({key}={derived} "
        f"or model_max_length={model_max_length} in model's config.json). To allow overriding this maximum, "
        "set the env var VLLM_ALLOW_LONG_MAX_MODEL_LEN=1. VLLM_ALLOW_LONG_MAX_MODEL_LEN must be used with "
        "extreme caution. If the model uses relative position encoding (RoPE), positions exceeding "
        "derived_max_model_len lead to nan. If the model uses absolute position encoding, positions "
        "exceeding derived_max_model_len will cause a CUDA array out-of-bounds error."
    )


def gpu_gate(dialect: Dialect, device: str, free_bytes: int, total_bytes: int, share: float, wanted_bytes: int) -> str:
    """The start-up gate on a GPU."""
    return (
        f"Free memory on device {device} ({format_gib(dialect, free_bytes)}/{format_gib(dialect, total_bytes)} GiB) on "
        f"startup is less than desired GPU memory utilization ({share}, {format_gib(dialect, wanted_bytes)} GiB). "
        "Decrease GPU memory utilization or reduce GPU memory used by other processes."
    )


def cpu_gate(dialect: Dialect, free_bytes: int, total_bytes: int, share: float, wanted_bytes: int) -> str:
    """The start-up gate of a CPU engine that sizes its own cache."""
    return (
        f"Available memory on node 0 ({format_gib(dialect, free_bytes)}/{format_gib(dialect, total_bytes)} GiB) on "
        f"startup is less than desired CPU memory utilization ({share}, {format_gib(dialect, wanted_bytes)} GiB). "
        "On the CPU backend, the `--gpu-memory-utilization` flag controls the fraction of CPU memory reserved (despite "
        "its name). To resolve: decrease `--gpu-memory-utilization` (e.g. `--gpu-memory-utilization 0.5`) or reduce "
        "CPU memory used by other processes."
    )


def cpu_cache_gate(dialect: Dialect, free_bytes: int, total_bytes: int, cache_bytes: int) -> str:
    """A CPU engine whose explicit cache does not fit in what is free."""
    return (
        f"Available memory on node 0 ({format_gib(dialect, free_bytes)}/{format_gib(dialect, total_bytes)} GiB) on kv "
        f"cache allocation is less than requested memory for kv ({format_gib(dialect, cache_bytes)} GiB). "
        "Decrease --kv-cache-memory-bytes, VLLM_CPU_KVCACHE_SPACE, or reduce CPU memory used by other processes."
    )


def ngram_overlap() -> str:
    """Asynchronous scheduling was demanded, and n-gram drafts need the tokens of the step before."""
    return (
        "Currently, async scheduling is only supported with EAGLE/MTP/Draft Model/NGram GPU/DSpark/DFlash kind of "
        "speculative decoding"
    )


def no_draft_layers() -> str:
    """Drafts of a model that has no draft layers: the engine divides by their number."""
    return "integer modulo by zero"


def uneven_drafts(tokens: int, layers: int) -> str:
    """More draft tokens than draft layers, and not a multiple of them."""
    return f"num_speculative_tokens:{tokens} must be divisible by n_predict={layers}"


def batch_too_small(batched_tokens: int, sequences: int) -> str:
    """A scheduling step that cannot hold one token of every sequence."""
    return f"max_num_batched_tokens ({batched_tokens}) must be greater than or equal to max_num_seqs ({sequences})."


def uneven_kv_heads(family: str, heads: int, tensor_parallel: int) -> str:
    """KV heads that can neither be dealt out nor repeated over the ranks; most model classes only assert it."""
    if family == "gpt_oss":
        large, small = max(heads, tensor_parallel), min(heads, tensor_parallel)
        return f"{large} is not divisible by {small}"
    if heads > tensor_parallel:
        return "assert self.total_num_kv_heads % tp_size == 0"
    return "assert tp_size % self.total_num_kv_heads == 0"


def too_many_sequences(sequences: int, blocks: int) -> str:
    """CUDA graphs over recurrent layers with fewer blocks than sequences."""
    return (
        f"max_num_seqs ({sequences}) exceeds available Mamba cache blocks ({blocks}). Each decode sequence requires "
        "one Mamba cache block, so CUDA graph capture cannot proceed. Please lower max_num_seqs to at most "
        f"{blocks} or increase gpu_memory_utilization."
    )


def layouts_differ(supported: Sequence[Sequence[str]]) -> str:
    """Ranks whose kernels do not read the same layouts of the cache; supported: by rank."""
    return f"Workers disagree on supported KV cache layouts: {supported}."


def no_page_size(layout: str) -> str:
    """A pipeline stage that keeps no cache in any of several groups."""
    return (
        f"KV cache layout {layout} cannot express this model's mixed page sizes ([]); a backend should declare "
        "block-outermost supported layouts (e.g. BLHNC), or set VLLM_KV_CACHE_LAYOUT=BLHNC."
    )


def no_common_block(dialect: Dialect, block_size: int, backend: str, sizes: str) -> str:
    """A block that no kernel of the backend can run."""
    if dialect.version >= (0, 32):
        return f"No common block size for {block_size} ({backend}: [{sizes}])."
    return f"No common block size for {block_size}.{'' if dialect.version >= (0, 30) else ' '}"


def sparse_dcp_comm(backend: str) -> str:
    """FlashMLA's sparse kernel with another DCP collective than the default."""
    return f"DCP for FlashMLA sparse is only validated with the default 'ag_rs' DCP comm backend; got '{backend}'"


def sparse_dcp_heads() -> str:
    """FlashMLA's sparse kernel with too many query heads on a rank for DCP."""
    return (
        "DCP for FlashMLA sparse is only supported on the mixed-batch fp8 path (num_heads < 32); the separate "
        "prefill/decode path returns the LSE for decode tokens only, while the DCP merge needs it for every token"
    )


def sparse_dcp_envelope(heads: int, gathered: int) -> str:
    """FlashMLA's sparse kernel with so many heads on all ranks of DCP that it takes a larger one for them."""
    return (
        "DCP for FlashMLA sparse requires the local and DCP-gathered head counts to pad to the same fp8 decode kernel "
        f"envelope; got {heads} local heads (pad to 64) vs {gathered} gathered heads (pad to 128)"
    )


def sparse_dcp_cache() -> str:
    """FlashMLA's sparse kernel with DCP over a cache that is not quantised."""
    return "DCP for FlashMLA sparse requires an fp8_ds_mla kv-cache; the bf16 sparse path is not supported under DCP."


# What the engine says of a layer when no kernel runs it, and from which version on.
_SELECTION = (
    ("head_size", (0, 13)),
    ("dtype", (0, 13)),
    ("kv_cache_dtype", (0, 13)),
    ("block_size", (0, 13)),
    ("use_mla", (0, 13)),
    ("has_sink", (0, 13)),
    ("use_sparse", (0, 13)),
    ("use_mm_prefix", (0, 13)),
    ("use_per_head_quant_scales", (0, 20)),
    ("attn_type", (0, 13)),
    ("has_sliding_window", (0, 26)),
    ("use_non_causal", (0, 20)),
    ("use_batch_invariant", (0, 20)),
    ("use_kv_connector", (0, 24)),
    ("use_adaptive_verification", (0, 28)),
    ("use_pcp", (0, 26)),
    ("use_dcp", (0, 30)),
    ("use_rswa", (0, 30)),
)


def no_backend(
    dialect: Dialect,
    head_size: int,
    computes_with: str,
    dtype: str,
    block_size: int | None,
    refused: Sequence[tuple[str, Sequence[str]]],
    cross: bool = False,
    **traits: bool,
) -> str:
    """No attention kernel runs this layer on this GPU; refused: every kernel that was tried and what it lacks; cross:
    it attends to an encoder; traits: what else is true of the layer, by the engine's names."""
    said: dict[str, object] = {
        "head_size": head_size,
        "dtype": "torch." + computes_with,
        "kv_cache_dtype": dtype,
        "block_size": block_size,
        "attn_type": f"AttentionType.{'ENCODER_' if cross else ''}DECODER" if dialect.version >= (0, 20) else "decoder",
        **traits,
    }
    layer = ", ".join(f"{name}={said.get(name, False)}" for name, since in _SELECTION if dialect.version >= since)
    reasons = ", ".join(f"{name}: [{', '.join(words)}]" for name, words in refused)
    return f"No valid attention backend found for cuda with AttentionSelectorConfig({layer}). Reasons: {{{reasons}}}."


def backend_not_valid(name: str, reasons: Sequence[str]) -> str:
    """The kernel that was asked for by name does not run this model on this GPU."""
    return f"Selected backend AttentionBackendEnum.{name} is not valid for this configuration. Reason: {list(reasons)}"


def indexer_interleave(interleave: int) -> str:
    """A DCP interleave above one, where the sparse indexer deals out single tokens."""
    return f"DCP sparse indexer currently supports only cp_kv_cache_interleave_size=1 (got {interleave})."


def flashinfer_block_bug() -> str:
    """Heads of 256 elements in blocks of 16 with FlashInfer on SM100."""
    return (
        "There is a bug in FlashInfer block_size 16 head size 256 support. Please avoid this combination by passing "
        "--block-size 32 or --block-size 64."
    )


def windows_differ() -> str:
    """Layers with and without a window in one group of FlashInfer's."""
    return "Window left is not the same for all layers. One potential fix is to set disable_sliding_window=True"


def triton_lacks_type(capability: tuple[int, int], packed: bool) -> str:
    """Triton's kernel on a GPU without fp8 (packed) or bfloat16; "this GPU" stands for its name."""
    cap = "{}.{}".format(*capability)
    suggested = "float16" if capability < (8, 0) else "bfloat16"
    if not packed:
        return (
            f"bfloat16 KV cache is not supported on this GPU (compute capability {cap}); bfloat16 requires SM80+. "
            "Re-run with --kv-cache-dtype float16."
        )
    return (
        f"FP8 KV cache is not supported by the Triton attention backend on this GPU (compute capability {cap}); native "
        f"FP8 (fp8e4nv) requires SM89+. Re-run with --kv-cache-dtype {suggested}."
    )


def no_backend_at_all() -> str:
    """The beginning of the same, where the GPU is not known: the engine goes on with every kernel's reasons."""
    return "No valid attention backend found for cuda"


def plain_nvfp4() -> str:
    """NVFP4 rows of K and V heads, which MLA does not have."""
    return (
        "nvfp4 KV cache is not supported with MLA (Multi-head Latent Attention) backends. Please use a different "
        "--kv-cache-dtype (e.g., 'fp8', 'auto', or 'nvfp4_ds_mla' with a sparse MLA backend) for MLA models such "
        "as DeepSeek."
    )

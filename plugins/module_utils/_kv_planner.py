# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""vLLM's KV cache planner without vLLM: from config.json and options to blocks, tokens and refusals.

`plan_cache` answers for the cache alone; `_kv_node.fit` adds the memory of the nodes. Sizes are bytes, lengths are
tokens. Private to this collection.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import gcd

from ansible_collections.sparkrig.serving.plugins.module_utils import _kv_texts as texts
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_backends import (
    BF16,
    Backend,
    block_size_of,
    layouts_of,
    plain_bytes,
    rank_heads,
    row_stride,
    strides,
    token_bytes,
    usual_backend,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_dialects import Dialect, find_dialect
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_groups import (
    PACKED_LAYOUT,
    Entry,
    Group,
    block_bytes,
    group_entries,
    project,
    split_drafts,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_kernels import (
    asked_dtype,
    check_dtype,
    check_made,
    choose_kernel,
    judged_backend,
    unreadable,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_models import (
    Cache,
    Layer,
    Model,
    StateShape,
    merge_overrides,
    read_model,
    refuses_float16,
    settled,
    with_every_indexer,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_options import Request
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_specs import (
    CHUNKED,
    CROSS,
    FULL,
    INDEXER,
    SLIDING,
    STATE,
    Demand,
    EngineRefusal,
    Spec,
    ceil_div,
    round_up,
)

_UNSCALED_FAMILIES = ("gemma3_text", "whisper")
# Above every layer number.
_NO_END = 1 << 30
# The block size that the engine begins with.
_FIRST_BLOCK = 16
_STATE_BYTES = {"float32": 4, "float16": 2, "bfloat16": 2}


@dataclass(frozen=True)
class Stage:
    """What one pipeline stage holds; all tensor-parallel ranks of a stage are alike.

    entries: its caches as the layers registered them, before they were grouped.
    """

    groups: tuple[Group, ...]
    block_bytes: int
    entries: tuple[Entry, ...]


@dataclass(frozen=True)
class Geometry:
    """All that does not depend on budget, context or sequences: the blocks of every stage."""

    request: Request
    dialect: Dialect
    model: Model
    backend: Backend
    dtype: str
    entries: tuple[Entry, ...]
    groups: tuple[Group, ...]
    stages: tuple[Stage, ...]
    stage_bounds: tuple[tuple[int, int], ...]
    block_size: int
    state_mode: str
    in_flight_tokens: int

    def demand(self, context: int) -> Demand:
        """What one request of `context` tokens asks for."""
        return Demand(
            context=context,
            in_flight_tokens=self.in_flight_tokens,
            dcp=self.request.decode_context_parallel_size,
            encoder_tokens=max(self.model.encoder_tokens, 0),
            state_mode=self.state_mode,
        )

    def needed_bytes(self, stage: Stage, context: int) -> int:
        """Bytes that the engine counts for one request on one rank of a stage."""
        demand = self.demand(context)
        if self.dialect.check == "layers":
            return sum(entry.spec.page * entry.spec.request_blocks(demand) for entry in stage.entries)
        if self.request.replicated_draft:
            return sum(group.page * group.request_blocks(demand) for group in stage.groups)
        return stage.block_bytes * sum(group.request_blocks(demand) for group in stage.groups)

    def request_blocks(self, context: int) -> int:
        """Pool blocks of one request, as the engine divides when it reports concurrency."""
        demand = self.demand(context)
        if self.dialect.concurrency == "groups":
            return sum(group.request_blocks(demand) for group in self.groups)
        # Bytes of a request over the bytes of a block of the first group, layers cancelling out.
        total = sum(group.page * group.request_blocks(demand) for group in self._report_groups())
        return ceil_div(total, self._report_groups()[0].page)

    def _report_groups(self) -> tuple[Group, ...]:
        if self.request.replicated_draft:
            return self.groups
        # Groups of one page size: the padding of a short group counts like its layers.
        longest = max(len(group.entries) for group in self.groups)
        return tuple(
            replace(group, page=group.page if group.mixed else group.kinds[0].page * longest) for group in self.groups
        )

    def held_back_bytes(self, stage: Stage) -> int:
        """The null block, where this version subtracts it before it checks."""
        return stage.block_bytes if self.dialect.null_block else 0

    def longest(self, stage: Stage, budget_bytes: int, limit: int) -> int:
        """The engine's own binary search for the longest context in 1..limit that a budget holds; 0 for none."""
        if self.needed_bytes(stage, 1) > budget_bytes:
            return 0
        low, high, found = 1, limit, 1
        while low <= high:
            middle = (low + high) // 2
            if self.needed_bytes(stage, middle) <= budget_bytes:
                found, low = middle, middle + 1
            else:
                high = middle - 1
        return found


def state_bytes(state: StateShape, request: Request, dialect: Dialect) -> int:
    """Bytes of one recurrent state on one rank: convolution state plus recurrent state.

    GDN: conv (2*K + V channels)/tp x (kernel - 1 + drafts), state heads/tp x V x K.
    Mamba2: conv (inner + 2*groups*width)/tp x (kernel - 1 + drafts), state heads/tp x head x width; groups are
    filled up to tp when tp does not divide them.
    """
    tp = request.tensor_parallel_size
    width = state.conv_width
    if state.kind == "mamba2":
        if state.groups % tp and state.groups != 1:
            raise EngineRefusal(
                "If tensor parallel world size does not divide num_groups, then num_groups must equal 1."
            )
        groups = state.groups if state.groups % tp == 0 else tp
        width += 2 * groups * state.group_width
    for count, _what in ((width, "channels of the convolution"), (state.heads, "heads of the recurrent state")):
        if count % tp:
            raise EngineRefusal(f"{count} is not divisible by {tp}")
    conv = width // tp * (state.kernel - 1 + request.speculative_tokens) * plain_bytes(request)
    recurrent = state.heads // tp * state.rows * state.columns
    stored = request.mamba_ssm_cache_dtype or state.dtype
    return conv + recurrent * (_STATE_BYTES[stored] if stored else plain_bytes(request))


def takes_checkpoints(request: Request, dialect: Dialect, state: StateShape, state_mode: str) -> bool:
    """Whether a recurrent layer keeps one more state for a checkpoint inside the prefill.

    Gated delta nets do so only with FlashInfer's prefill kernel: SM90, or SM10x and SM12x with keys of 128 elements.
    """
    if state_mode != "align" or state.kind not in dialect.checkpoint_kinds:
        return False
    if state.kind != "gdn":
        return True
    major = request.compute_capability[0] if request.compute_capability else 12
    return request.device == "cuda" and (major == 9 or (major in (10, 12) and state.columns == 128))


def check_parallel(request: Request, model: Model, dialect: Dialect) -> None:
    """What the engine refuses before it looks at memory: heads, TP and DCP that do not go together.

    In the engine's order: parallel, speculative and scheduler settings, then heads.
    """
    tp, dcp = request.tensor_parallel_size, request.decode_context_parallel_size
    if tp % dcp:
        raise EngineRefusal(dialect.tp_dcp_text.format(tp=tp, dcp=dcp))
    check_drafts(request, model)
    if request.max_num_batched_tokens < request.max_num_seqs:
        raise EngineRefusal(texts.batch_too_small(request.max_num_batched_tokens, request.max_num_seqs))
    if model.query_heads % tp:
        raise EngineRefusal(texts.heads_not_divisible(model.query_heads, tp))
    if dcp > 1 and not model.mla:
        _check_grouped_dcp(request, model, dialect)


def check_layers(request: Request, model: Model, dtype: str) -> None:
    """What the model's class refuses when its layers are made."""
    if model.refusal is not None:
        raise EngineRefusal(model.refusal)
    if dtype == "fp8_e5m2" and model.cache_scheme is not None:
        raise EngineRefusal("fp8_e5m2 kv-cache is not supported with fp8 checkpoints.")
    if model.mla:
        return
    tp = request.tensor_parallel_size
    queries = model.query_heads // tp
    for cache in [cache for layer in model.layers for cache in layer if cache.kind in (FULL, SLIDING, CHUNKED)]:
        if cache.heads % tp and tp % cache.heads:
            raise EngineRefusal(texts.uneven_kv_heads(model.family, cache.heads, tp))
        if model.family == "gpt_oss" and cache.heads < tp:
            # Its class does not repeat KV heads: a rank is left without any.
            raise EngineRefusal("integer modulo by zero")
        heads = rank_heads(cache, tp)
        if queries % heads:
            raise EngineRefusal(f"num_heads ({queries}) is not divisible by num_kv_heads ({heads})")
    if model.dealt_width % request.ranks:
        raise EngineRefusal("assert config.intermediate_size % self.world_size == 0")


def _check_grouped_dcp(request: Request, model: Model, dialect: Dialect) -> None:
    """DCP over KV heads: ranks that share a head, and no more than there are."""
    tp, dcp = request.tensor_parallel_size, request.decode_context_parallel_size
    if tp <= model.kv_heads:
        raise EngineRefusal(texts.dcp_needs_more_ranks(dialect, tp, model.kv_heads))
    limit = tp // model.kv_heads
    if dcp > limit:
        raise EngineRefusal(texts.dcp_too_large(dialect, dcp, limit, tp, model.kv_heads))
    queries = model.query_heads // model.kv_heads
    if queries % dcp:
        raise EngineRefusal(texts.dcp_uneven_heads(dialect, queries, dcp))


def check_interleave(request: Request, block_size: int) -> str | None:
    """What the engine refuses of a DCP interleave that does not divide its blocks, or None."""
    interleave = request.dcp_kv_cache_interleave_size
    if request.decode_context_parallel_size == 1 or block_size % interleave == 0:
        return None
    return texts.interleave_uneven(block_size, interleave)


def check_planned(geometry: Geometry) -> str | None:
    """What the engine refuses after it has printed its capacity, or None: blocks, then layers."""
    if geometry.dialect.late_interleave:
        smallest = min(spec.block_size for group in geometry.groups for spec in group.kinds)
        uneven = check_interleave(geometry.request, smallest)
        if uneven is not None:
            return uneven
    return _check_kernels(geometry)


def _check_kernels(geometry: Geometry) -> str | None:
    request, backend = geometry.request, geometry.backend
    if not judged_backend(request):
        return None
    attention = [spec for group in geometry.groups for spec in group.kinds if spec.kind not in (INDEXER, STATE)]
    for spec in attention:
        if not backend.runs(spec.block_size):
            return texts.no_common_block(geometry.dialect, spec.block_size, backend.name, backend.spoken_sizes)
    refusal = _check_dcp(geometry) if request.decode_context_parallel_size > 1 else None
    return refusal or _check_builders(geometry)


def _check_dcp(geometry: Geometry) -> str | None:
    """What kernels refuse of DCP."""
    request, backend = geometry.request, geometry.backend
    dialect, drafts = geometry.dialect, request.speculative_method is not None
    if drafts and request.dcp_kv_cache_interleave_size > 1 and not backend.has_interleaved_drafts(dialect):
        return texts.drafts_not_interleaved(backend.implementation)
    if not backend.has_dcp(dialect):
        return texts.no_lse(dialect, backend.implementation)
    if backend.name == "FLASHINFER_MLA" and dialect.version >= (0, 30) and request.dcp_kv_cache_interleave_size != 1:
        return texts.native_dcp_interleave(request.dcp_kv_cache_interleave_size)
    if backend.name == "FLASHMLA_SPARSE":
        return _check_sparse_dcp(geometry)
    if dialect.name == "dark-devotion":
        return None
    if geometry.model.mla and geometry.dtype not in BF16 and dialect.version < _DCP_READS_FP8:
        return "DCP not support fp8 kvcache now."
    if geometry.model.sparse and request.dcp_kv_cache_interleave_size > 1 and dialect.version < _DCP_DEALS_INDEXES:
        return texts.indexer_interleave(request.dcp_kv_cache_interleave_size)
    return None


# From here on MLA under DCP reads a quantised cache.
_DCP_READS_FP8 = (0, 26)
# From here on the indexer of sparse MLA takes a DCP interleave above one.
_DCP_DEALS_INDEXES = (0, 30)


def _check_builders(geometry: Geometry) -> str | None:
    """What a kernel refuses when the cache is there and its first batch is described."""
    request, version = geometry.request, geometry.dialect.version
    if request.device != "cuda" or request.compute_capability is None:
        return None
    major, name = request.compute_capability[0], geometry.backend.name
    if name == "FLASH_ATTN" and geometry.dtype == "fp8_e5m2" and version < (0, 24):
        return "Unrecognized FP8 dtype: fp8_e5m2"
    if name != "FLASHINFER":
        return None
    if geometry.dtype == "nvfp4" and major != 10:
        if version < (0, 26):
            return "--kv-cache-dtype nvfp4 requires sm100f, please try a different dtype or remove"
        if request.decode_context_parallel_size > 1:
            return "The DCP prefill wrapper cannot read NVFP4 block scales."
    specs = [spec for group in geometry.groups for spec in group.kinds if spec.kind in (FULL, SLIDING, CHUNKED)]
    if version < (0, 20) and major == 10 and any(spec.block_size == 16 and spec.identity[1] == 256 for spec in specs):
        return texts.flashinfer_block_bug()
    caches = [cache for layer in geometry.model.layers for cache in layer if cache.kind in (FULL, SLIDING)]
    windows = {cache.window if cache.kind == SLIDING else 0 for cache in caches}
    if major != 10 and len(windows) > 1 and _promotes_windows(request, geometry.model, geometry.dialect):
        return texts.windows_differ()
    return None


def _check_sparse_dcp(geometry: Geometry) -> str | None:
    """What FlashMLA's sparse kernel asks of DCP: few heads on a rank, also with those of the other ranks, and a
    collective that it knows."""
    request = geometry.request
    comm = request.dcp_comm_backend
    if comm is None:
        comm = "a2a" if geometry.model.family == "glm_moe_dsa" and geometry.dialect.version >= (0, 30) else "ag_rs"
    if geometry.dialect.version < (0, 33) and comm != "ag_rs":
        return texts.sparse_dcp_comm(comm)
    heads = geometry.model.query_heads // request.tensor_parallel_size
    if heads >= 32:
        return texts.sparse_dcp_heads()
    gathered = heads * request.decode_context_parallel_size
    return texts.sparse_dcp_envelope(heads, gathered) if gathered > 64 else None


def find_model(request: Request, dialect: Dialect) -> Model:
    """The model with the engine's reading of its config."""
    config, assumptions = settled(request.config)
    config = merge_overrides(config, request.hf_overrides)
    model = read_model(config, windowless=request.disable_sliding_window)
    model = replace(model, assumptions=tuple(sorted({*model.assumptions, *assumptions})))
    if dialect.rescales_yarn and model.old_context != model.context:
        found = model.old_context if model.default_context == model.context else model.default_context
        model = replace(model, context=model.old_context, default_context=found)
    every = not dialect.shares_indexers
    if dialect.name == "dark-devotion" and config.get("use_index_cache") is False:
        every = True
    return with_every_indexer(model) if every else model


def _state_mode(request: Request, model: Model, dialect: Dialect) -> str:
    """How recurrent states are kept; only Mamba2 can keep the state of every block."""
    if not model.hybrid:
        return "none"
    every = any(cache.state is not None and cache.state.kind == "mamba2" for layer in model.layers for cache in layer)
    every = every and dialect.keeps_every_state != "no"
    if request.speculative_tokens and dialect.keeps_every_state == "undrafted":
        every = False
    cached = dialect.caches_state_prefixes if request.enable_prefix_caching is None else request.enable_prefix_caching
    if dialect.state_blocks_by_length:
        # This version caches prefixes in this way only; other recurrent layers switch it off.
        return "all" if cached and every else "length"
    if not cached:
        return "none"
    return "all" if every else "align"


def _overlaps(request: Request) -> bool:
    """Whether the next step is scheduled before the last one is settled: where nothing speaks against it."""
    if request.device != "cuda" or request.async_scheduling is False:
        return False
    if request.speculative_method != "ngram":
        return True
    if request.async_scheduling:
        raise EngineRefusal(texts.ngram_overlap())
    return False


def _in_flight(request: Request, dialect: Dialect) -> int:
    """Tokens that are scheduled but not settled: one batch, or every batch that is in flight."""
    tokens, stages = request.max_num_batched_tokens, request.pipeline_parallel_size
    if dialect.in_flight == "batch":
        return tokens
    if _overlaps(request) and (stages == 1 or dialect.overlaps_stages):
        return tokens * (stages + 1)
    return tokens * stages


def check_drafts(request: Request, model: Model) -> None:
    """What the engine refuses of a built-in draft head."""
    if request.speculative_method != "mtp":
        return
    if not model.can_draft:
        raise EngineRefusal("Unsupported speculative method: 'mtp'")
    if not model.drafts and model.draft_key is not None:
        raise ValueError(
            f"config: {model.draft_key} is missing; speculative_config.method mtp needs it for model_type "
            f"{model.family}"
        )
    if not model.drafts:
        raise EngineRefusal(texts.no_draft_layers())
    layers = model.draft_count
    if request.speculative_tokens > layers and request.speculative_tokens % layers:
        raise EngineRefusal(texts.uneven_drafts(request.speculative_tokens, layers))


def _draft_layers(request: Request, model: Model) -> tuple[Layer, ...]:
    if request.speculative_method == "mtp":
        return model.drafts
    if request.speculative_method in ("eagle", "eagle3"):
        if request.draft_config is None:
            raise ValueError(
                f"draft_config: speculative_config.method {request.speculative_method} needs the config.json "
                "of the draft model"
            )
        return read_model(request.draft_config).layers
    return ()


@dataclass(frozen=True)
class _Builder:
    """Turns caches into specs for one request."""

    request: Request
    dialect: Dialect
    model: Model
    backend: Backend
    dtype: str
    block_size: int
    state_mode: str
    state_page: int
    state_block: int

    def spec(self, cache: Cache) -> Spec:
        """The spec of a cache on one rank."""
        if cache.kind == STATE:
            return self._state(cache)
        heads = rank_heads(cache, self.request.tensor_parallel_size)
        size = token_bytes(cache, heads, self.dtype, self.dialect, plain_bytes(self.request))
        stride, rows = 1, 0
        if self.dialect.alignment == "rows":
            stride = row_stride(cache, self.backend, size, self.dtype, self.request)
        elif self.dialect.alignment == "kernels":
            stride, rows = strides(cache, self.backend, size, self.dtype, self.request)
        spec = Spec(
            kind=cache.kind,
            block_size=self.block_size,
            token_bytes=size,
            identity=(heads, cache.key, cache.value),
            window=cache.window,
            sharded=cache.kind in (FULL, SLIDING, CHUNKED, CROSS) or self.model.mla,
            stride=stride,
            kernel_rows=rows,
        )
        if cache.kind == SLIDING and self.dialect.window_kernels != "no":
            fitting = self.dialect.window_kernels == "fitting"
            own = self.backend.window_block(self.block_size) if fitting else self.backend.smallest
            spec = spec.with_block_size(own)
        return spec

    def _state(self, cache: Cache) -> Spec:
        state = cache.state
        if state is None:
            raise ValueError("a recurrent layer without the shape of its state")
        raw = state_bytes(state, self.request, self.dialect)
        checkpoints = 1 if takes_checkpoints(self.request, self.dialect, state, self.state_mode) else 0
        length = self.request.max_model_len or self.model.context or 1
        if length < 0:
            length = self.model.context or 1
        return Spec(
            kind=STATE,
            block_size=self.state_block if self.state_mode in ("align", "all") else length,
            state_bytes=raw,
            identity=(state,),
            padded_page=None if self.state_page in (0, raw) else self.state_page,
            draft_states=self.request.speculative_tokens,
            checkpoint_states=checkpoints,
            sharded=False,
        )


def _enlarged(builder: _Builder) -> _Builder:
    """The builder of a hybrid: blocks grow until an attention page holds a recurrent state.

    align = max(kernel's smallest block, block size), at least 128 with MLA, a multiple of where checkpoints may lie,
    and with a state for every block also of the prefill kernel's chunk;
    block = align * cdiv(state, align * token bytes), up to a multiple of the kernel's block; the state page is padded
    to the attention page.
    """
    model, request, dialect = builder.model, builder.request, builder.dialect
    states = [cache.state for layer in model.layers for cache in layer if cache.state is not None]
    # Draft layers count too: they may be the only ones with attention.
    drafts = model.drafts if request.speculative_method == "mtp" else ()
    attention = [cache for layer in (*model.layers, *drafts) for cache in layer if cache.kind != STATE]
    if not states or not attention:
        return replace(builder, state_block=builder.block_size)
    state = max(state_bytes(shape, request, dialect) for shape in states)
    heads = rank_heads(attention[0], request.tensor_parallel_size)
    one = token_bytes(attention[0], heads, builder.dtype, dialect, plain_bytes(request))
    step = dialect.kernel_step or max(builder.backend.smallest, builder.block_size)
    if model.mla:
        step = max(step, 128)
    if any(shape.kind == "gdn" and takes_checkpoints(request, dialect, shape, builder.state_mode) for shape in states):
        step = step * dialect.gdn_checkpoint_tokens // gcd(step, dialect.gdn_checkpoint_tokens)
    if builder.state_mode == "all":
        chunk = max(shape.chunk for shape in states)
        step = step * chunk // gcd(step, chunk)
    wanted = round_up(step * ceil_div(state, step * one), step if dialect.kernel_step else builder.backend.smallest)
    block = max(builder.block_size, wanted)
    # With a state for every block, recurrent layers keep the size that was wanted for them.
    own = wanted if builder.state_mode == "all" else block
    return replace(builder, block_size=block, state_page=block * one, state_block=own)


def _stage_bounds(layers: int, stages: int) -> list[tuple[int, int]]:
    """First and end layer of each pipeline stage; layers left over go to the stages before the last one."""
    counts = [layers // stages] * stages
    for extra in range(2, layers % stages + 2):
        counts[-extra] += 1
    bounds, first = [], 0
    for count in counts:
        bounds.append((first, first + count))
        first += count
    # Draft layers live on the last stage.
    bounds[-1] = (bounds[-1][0], _NO_END)
    return bounds


def build_geometry(request: Request, model: Model | None = None) -> Geometry:
    """Specs, groups and blocks for a request; EngineRefusal where vLLM would die, ValueError for no question at all.

    model: what `find_model` made of the same config for the same engine, where that is known already.
    """
    dialect = find_dialect(request.engine)
    model = find_model(request, dialect) if model is None else model
    if request.dtype in ("half", "float16") and refuses_float16(request.config):
        raise EngineRefusal(texts.no_float16(str(request.config["model_type"])))
    try:
        return _build_geometry(request, dialect, model)
    except EngineRefusal:
        # The length is the first thing that the engine looks at.
        too_long = check_context(model, dialect, request.max_model_len or 0)
        if too_long is not None:
            raise EngineRefusal(too_long) from None
        raise


def _build_geometry(request: Request, dialect: Dialect, model: Model) -> Geometry:
    if request.kv_cache_layout != "LBNHC" and not dialect.layouts:
        raise ValueError(
            f"kv_cache_layout: {request.kv_cache_layout!r} is not known to engine {dialect.name}; it came with 0.30"
        )
    if request.replicated_draft and dialect.name != "dark-devotion":
        raise ValueError("speculative_config.replicated_draft: only the planner of dark-devotion knows it")
    check_parallel(request, model, dialect)
    check_dtype(request, dialect)
    if asked_dtype(request, model, dialect) == "nvfp4" and model.mla:
        raise EngineRefusal(texts.plain_nvfp4())
    dtype, backend = choose_kernel(request, model, dialect)
    if unreadable(dtype, model):
        raise EngineRefusal(texts.no_backend_at_all())
    mode = _state_mode(request, model, dialect)
    first = block_size_of(request, model, backend, dialect)
    builder = _Builder(request, dialect, model, backend, dtype, first, mode, 0, 0)
    if model.hybrid:
        builder = _enlarged(builder)
    if not dialect.late_interleave:
        uneven = check_interleave(request, builder.block_size)
        if uneven is not None:
            raise EngineRefusal(uneven)
    check_layers(request, model, dtype)
    check_made(request, model, dialect, dtype, backend)
    bounds = _stage_bounds(len(model.layers), request.pipeline_parallel_size)
    if model.expert_layers and not all(any(model.expert_layers[first:end]) for first, end in bounds):
        raise EngineRefusal(model.no_experts)
    entries = _entries(builder, model.layers, _draft_layers(request, model), bounds)
    if not entries:
        raise ValueError(f"config: none of the layers of model_type {model.family} keeps a cache")
    if dialect.layouts:
        _check_layouts(request, backend, entries, bounds)
    if request.replicated_draft:
        groups = split_drafts(entries)
    else:
        promotes = _promotes_windows(request, model, dialect)
        groups = group_entries(entries, dialect, promotes, request.kv_cache_layout)
    return Geometry(
        request=request,
        dialect=dialect,
        model=model,
        backend=backend,
        dtype=dtype,
        entries=tuple(entries),
        groups=tuple(groups),
        stages=_stages(entries, groups, bounds, request, dialect),
        stage_bounds=tuple(bounds),
        block_size=_smallest_block(groups),
        state_mode=mode,
        in_flight_tokens=_in_flight(request, dialect),
    )


def _check_layouts(
    request: Request, backend: Backend, entries: Sequence[Entry], bounds: Sequence[tuple[int, int]]
) -> None:
    """All ranks must be able to run the same layouts; a stage of recurrent layers alone can run every one, and one that
    keeps no cache at all answers for the usual attention of its device."""
    kinds = [{entry.spec.kind for entry in entries if first <= entry.layer < end} for first, end in bounds]
    usual = usual_backend(request, backend)
    supported = [layouts_of(backend if held else usual, held != {STATE}, request) for held in kinds]
    if len(set(supported)) > 1:
        tp = request.tensor_parallel_size
        raise EngineRefusal(texts.layouts_differ([list(names) for names in supported for _rank in range(tp)]))


def _smallest_block(groups: Sequence[Group]) -> int:
    specs = [spec for group in groups for spec in group.kinds]
    return min(spec.block_size for spec in [spec for spec in specs if spec.kind != STATE] or specs)


# Types of a cache that say more than how wide a number is.
_FORGOTTEN = ("per_token_head", "nvfp4")


def _promotes_windows(request: Request, model: Model, dialect: Dialect) -> bool:
    """Whether the hybrid manager is off: as asked, else for chunked attention in 0.13 or with EAGLE-like drafts."""
    kinds = {cache.kind for layer in model.layers for cache in layer}
    drafts = request.speculative_method in ("mtp", "eagle", "eagle3")
    promotes = CHUNKED in kinds and (drafts or dialect.version < (0, 20))
    if request.disable_hybrid_kv_cache_manager is not None:
        promotes = request.disable_hybrid_kv_cache_manager
    dtype = str(request.kv_cache_dtype)
    if promotes and kinds & {SLIDING, CHUNKED} and dialect.version < (0, 28) and dtype.endswith(_FORGOTTEN):
        raise ValueError(
            f"kv_cache_dtype is {dtype} and the hybrid KV cache manager is off: vLLM before 0.28 forgets the scales of "
            "windowed layers then, which is not planned here; leave disable_hybrid_kv_cache_manager alone, or choose "
            "another cache type."
        )
    return promotes


def _entries(
    builder: _Builder, layers: Sequence[Layer], drafts: Sequence[Layer], bounds: Sequence[tuple[int, int]]
) -> list[Entry]:
    every = [*layers, *drafts]
    entries: list[Entry] = []
    for first, end in bounds:
        own = [cache for layer in every[first:end] for cache in layer]
        here = builder
        if all(cache.kind == STATE for cache in own) and not builder.dialect.kernel_step:
            # Each stage fits its states to its own attention layers, and this one has none: what stays is the block
            # size from before any kernel was asked.
            here = replace(builder, state_page=0, state_block=builder.request.block_size or _FIRST_BLOCK)
        # Most layers share one object, which is quicker to tell than its fields.
        objects = {id(cache): cache for cache in own}
        known = {cache: here.spec(cache) for cache in dict.fromkeys(objects.values())}
        specs = {key: known[cache] for key, cache in objects.items()}
        for number, layer in enumerate(every[first:end], first):
            name = builder.model.layer_name.format(number)
            entries.extend(Entry(number, specs[id(cache)], number >= len(layers), name) for cache in layer)
    return entries


def _stages(
    entries: Sequence[Entry],
    groups: Sequence[Group],
    bounds: Sequence[tuple[int, int]],
    request: Request,
    dialect: Dialect,
) -> tuple[Stage, ...]:
    stages = []
    for first, end in bounds:
        own = project(groups, first, end, dialect) if len(bounds) > 1 else groups
        held = tuple(entry for entry in entries if first <= entry.layer < end)
        stages.append(Stage(tuple(own), block_bytes(own, request.kv_cache_layout, dialect), held))
    return tuple(stages)


@dataclass(frozen=True)
class Capacity:
    """What the engine makes of a budget.

    budgets: KV bytes by rank; context: tokens of a request that was planned for (after auto-fit);
    blocks: of the smallest rank; needed_bytes: for one request, on the rank that needs most;
    longest: the longest context that fits; log: the capacity as the engine logs it, None where it dies before;
    fit_log: what it logs when it looks for the context itself; error: the engine's refusal, or None.
    """

    budgets: tuple[int, ...]
    context: int
    blocks: int
    tokens: int
    concurrency: float
    needed_bytes: int
    longest: int
    log: str | None
    fit_log: str | None
    error: str | None


def stage_of(geometry: Geometry, rank: int) -> Stage:
    """The stage of a rank; ranks of one stage follow each other."""
    return geometry.stages[rank // geometry.request.tensor_parallel_size]


def derived_context(geometry: Geometry) -> int:
    """The context that the engine takes from the model's config."""
    context = geometry.model.default_context
    if context is None:
        raise ValueError(
            "config: max_position_embeddings is missing, so max_model_len must be a number of tokens for "
            f"model_type {geometry.model.family}"
        )
    return context


def check_context(model: Model, dialect: Dialect, context: int) -> str | None:
    """The engine's refusal of a context above what the config allows, or None."""
    if model.context is None or context <= model.context:
        return None
    if model.model_max_length is not None and context <= model.model_max_length:
        return None
    # Since 0.20 the engine keeps what the config says as a float; else only what may be scaled by a rope factor is one.
    scaled = dialect.version >= (0, 20) and model.context_key != "sliding_window"
    scaled = scaled or model.family not in _UNSCALED_FAMILIES
    derived = str(float(model.context)) if scaled else str(model.context)
    return texts.context_too_long(context, model.context_key, derived, model.model_max_length)


def _distinct_ranks(geometry: Geometry, budgets: Sequence[int]) -> list[tuple[Stage, int]]:
    """Stage and budget of each rank, in rank order, without repeating what is the same."""
    pairs = [(rank // geometry.request.tensor_parallel_size, budget) for rank, budget in enumerate(budgets)]
    return [(geometry.stages[stage], budget) for stage, budget in dict.fromkeys(pairs)]


def _auto_context(geometry: Geometry, usable: Sequence[tuple[Stage, int]]) -> tuple[int, str | None, str | None]:
    original = derived_context(geometry)
    fitted, limiting = original, usable[0][1]
    for stage, budget in usable:
        longest = geometry.longest(stage, budget, original)
        if longest < fitted:
            fitted, limiting = longest, budget
    if fitted <= 0:
        return original, texts.no_auto_fit(), None
    return fitted, None, texts.auto_fit_log(geometry.dialect, geometry.request.device, original, fitted, limiting)


def plan_cache(geometry: Geometry, budgets: Sequence[int], context: int | None) -> Capacity:
    """The engine's answer to a budget.

    budgets: KV bytes by rank; context: tokens of one request, -1 for the longest that fits, None for the model's own.
    """
    budgets = _counted_budgets(geometry, budgets)
    pairs = _distinct_ranks(geometry, budgets)
    usable = _usable(geometry, pairs)
    error: str | None = None
    fit_log: str | None = None
    if context == -1:
        if not geometry.dialect.auto_fit:
            raise ValueError(
                f"max_model_len: -1 is not known to engine {geometry.dialect.name}; give a number of tokens"
            )
        context, error, fit_log = _auto_context(geometry, usable)
    elif context is None:
        context = derived_context(geometry)
    else:
        error = check_context(geometry.model, geometry.dialect, context)
    limit = max(context, geometry.model.context or context)
    longest = [geometry.longest(stage, budget, limit) for stage, budget in usable]
    error = error or _check_memory(geometry, usable, longest, context) or _empty_stage(geometry)
    blocks = _blocks(geometry, pairs)
    concurrency = blocks / geometry.request_blocks(context)
    tokens = _tokens(geometry, blocks, context, concurrency)
    log = texts.capacity_log(
        geometry.dialect,
        geometry.request.device,
        tokens,
        context,
        concurrency,
        geometry.request.decode_context_parallel_size,
    )
    return Capacity(
        budgets=tuple(budgets),
        context=context,
        blocks=blocks,
        tokens=tokens,
        concurrency=concurrency,
        needed_bytes=max(geometry.needed_bytes(stage, context) for stage in geometry.stages),
        longest=min(longest),
        log=None if error else log,
        fit_log=fit_log,
        error=error or check_planned(geometry) or _check_states(geometry, blocks),
    )


def _counted_budgets(geometry: Geometry, budgets: Sequence[int]) -> Sequence[int]:
    """KV bytes by rank, or what a number of blocks that overrides them comes to."""
    override = geometry.request.num_gpu_blocks_override
    if override is None or not geometry.dialect.override_counts:
        return budgets
    return [override * stage_of(geometry, rank).block_bytes for rank in range(len(budgets))]


def _usable(geometry: Geometry, pairs: Sequence[tuple[Stage, int]]) -> list[tuple[Stage, int]]:
    return [(stage, budget - geometry.held_back_bytes(stage)) for stage, budget in pairs]


def holds_one(geometry: Geometry, budgets: Sequence[int], context: int) -> bool:
    """Whether the engine takes one request of `context` tokens: `plan_cache` without its figures and words."""
    budgets = _counted_budgets(geometry, budgets)
    pairs = _distinct_ranks(geometry, budgets)
    for stage, budget in _usable(geometry, pairs):
        if budget <= 0 or geometry.needed_bytes(stage, context) > budget:
            return False
    if check_context(geometry.model, geometry.dialect, context) or _empty_stage(geometry) or check_planned(geometry):
        return False
    return _check_states(geometry, _blocks(geometry, pairs)) is None


def _blocks(geometry: Geometry, pairs: Sequence[tuple[Stage, int]]) -> int:
    """Pool blocks of the smallest rank."""
    override = geometry.request.num_gpu_blocks_override
    return override or max(0, min(budget // stage.block_bytes for stage, budget in pairs if stage.block_bytes))


def _empty_stage(geometry: Geometry) -> str | None:
    """A stage whose layers keep no cache: in several groups the engine misses a page size that all have, else it
    divides by the bytes of its blocks."""
    if all(stage.block_bytes for stage in geometry.stages):
        return None
    request = geometry.request
    if geometry.dialect.layouts and len(geometry.groups) > 1 and request.kv_cache_layout != PACKED_LAYOUT:
        return texts.no_page_size("LBHNC" if request.device == "cpu" else request.kv_cache_layout)
    return "integer division or modulo by zero"


def _check_states(geometry: Geometry, blocks: int) -> str | None:
    """What the capture of CUDA graphs refuses: fewer blocks than sequences, each of which needs one for its state."""
    request = geometry.request
    if request.device == "cpu" or request.enforce_eager or not geometry.dialect.counts_states:
        return None
    if not any(entry.spec.kind == STATE for entry in geometry.entries):
        return None
    return texts.too_many_sequences(request.max_num_seqs, blocks) if request.max_num_seqs > blocks else None


def _check_memory(
    geometry: Geometry, usable: Sequence[tuple[Stage, int]], longest: Sequence[int], context: int
) -> str | None:
    """longest: the longest context that each of these holds, which is what the engine estimates."""
    for (stage, budget), estimate in zip(usable, longest):
        if budget <= 0:
            return texts.no_memory(geometry.dialect)
        needed = geometry.needed_bytes(stage, context)
        if needed > budget:
            return texts.too_long(geometry.dialect, context, needed, budget, estimate)
    return None


def _tokens(geometry: Geometry, blocks: int, context: int, concurrency: float) -> int:
    if geometry.dialect.tokens == "requests":
        return int(concurrency * context)
    smallest = min(spec.block_size for group in geometry.groups for spec in group.kinds)
    return blocks // len(geometry.groups) * smallest * geometry.request.decode_context_parallel_size


def smallest_budgets(geometry: Geometry, context: int, sequences: int) -> tuple[int, ...]:
    """The smallest KV bytes by rank that hold `sequences` requests of `context` tokens."""
    blocks = geometry.request_blocks(context) * sequences + (1 if geometry.dialect.null_block else 0)
    tp = geometry.request.tensor_parallel_size
    return tuple(
        max(blocks * stage.block_bytes, geometry.needed_bytes(stage, context) + geometry.held_back_bytes(stage))
        for stage in geometry.stages
        for _rank in range(tp)
    )

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Every legal combination of DCP, drafts, sequences, context and cache dtype that fits, best first.

Private to this collection.
"""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_dialects import find_dialect
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import longest_for_rooms
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_options import CACHE_DTYPES, Request, parse_request
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_planner import (
    Geometry,
    build_geometry,
    check_planned,
    find_model,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_specs import EngineRefusal

AIMS = ("context", "concurrency", "both")
_KEYS = (
    "options",
    "aim",
    "decode_context_parallel_sizes",
    "draft_tokens",
    "sequences",
    "contexts",
    "cache_dtypes",
    "minimum_context",
    "minimum_concurrency",
    "draft_weights_bytes",
)
# Rough order of precision, the better first, for rows that are otherwise equal.
_PRECISION = ("bfloat16", "float16", "auto", "fp8_e4m3", "fp8_ds_mla", "fp8", "fp8_e5m2")


@dataclass(frozen=True)
class Search:
    """What is looked for. rooms: bytes that each rank has for KV, with drafts and without.

    blocked: why the engine would not start whatever it is asked for; empty where it would.
    """

    request: Request
    aim: str
    dcps: tuple[int, ...]
    drafts: tuple[int, ...]
    sequences: tuple[int, ...]
    contexts: tuple[int, ...]
    dtypes: tuple[str, ...]
    minimum_context: int
    minimum_concurrency: int
    blocked: str
    rooms: tuple[int, ...]
    rooms_without_drafts: tuple[int, ...]


@dataclass(frozen=True)
class Found:
    """One combination that fits. Sizes are bytes by rank, the largest; concurrency is that of the smallest budget."""

    kv_cache_dtype: str
    decode_context_parallel_size: int
    num_speculative_tokens: int
    max_num_seqs: int
    max_model_len: int
    kv_bytes: int
    spare_bytes: int
    longest: bool

    def as_dict(self, best: bool) -> dict[str, Any]:
        """The combination as filter and playbook show it."""
        return {
            "kv_cache_dtype": self.kv_cache_dtype,
            "decode_context_parallel_size": self.decode_context_parallel_size,
            "num_speculative_tokens": self.num_speculative_tokens,
            "max_num_seqs": self.max_num_seqs,
            "max_model_len": self.max_model_len,
            "kv_cache_memory_bytes": self.kv_bytes,
            "spare_bytes": self.spare_bytes,
            "longest": self.longest,
            "pareto": best,
        }


def _integers(name: str, value: object, minimum: int) -> tuple[int, ...]:
    if not isinstance(value, (list, tuple)) or not value:
        raise ValueError(f"{name}: {value!r} is not allowed; it must be a list of integers")
    for entry in value:
        if isinstance(entry, bool) or not isinstance(entry, int) or entry < minimum:
            raise ValueError(f"{name}: {entry!r} is not allowed; it must be an integer of at least {minimum}")
    return tuple(sorted(set(value)))


def _default_contexts(limit: int) -> tuple[int, ...]:
    steps = [1 << power for power in range(12, 31) if 1 << power <= limit]
    return tuple(steps or [limit])


def _rooms(request: Request, saved: int) -> tuple[int, ...]:
    """Bytes for KV by rank: the budgets that were given, else available less weights, overhead and reserve."""
    if request.kv_cache_memory_bytes:
        return request.kv_cache_memory_bytes
    available = request.memory_available_bytes
    if request.kv_cache_limit_bytes and not available:
        return request.kv_cache_limit_bytes
    if not available or None in available:
        raise ValueError("memory_available_bytes: it is needed for every rank, or kv_cache_memory_bytes as bytes")
    zero = (0,) * request.ranks
    columns = zip(
        available, request.weights_bytes or zero, request.overhead_bytes or zero, request.reserve_bytes or zero
    )
    limits = request.kv_cache_limit_bytes
    rooms = tuple(
        max(0, (have or 0) - weights + saved - overhead - reserve) for have, weights, overhead, reserve in columns
    )
    return tuple(map(min, rooms, limits)) if limits else rooms


def _blocked(request: Request) -> str:
    """Why the engine's start-up gate stops a rank whatever is searched for; empty where it does not."""
    if request.device == "cpu" or not request.memory_total_bytes or not request.memory_available_bytes:
        return ""
    share = request.gpu_memory_utilization or find_dialect(request.engine).utilization
    for rank, (total, available) in enumerate(zip(request.memory_total_bytes, request.memory_available_bytes)):
        taken = request.startup_bytes[rank] if request.startup_bytes else 0
        wanted = math.ceil(total * share)
        if available is not None and available - taken < wanted:
            name = f"rank {rank} ({request.nodes[rank]})" if request.nodes else f"rank {rank}"
            return (
                f"Nothing fits: the engine will not start on {name}, where it wants {wanted} B free at start-up "
                f"(gpu_memory_utilization {share} of {total}) and {max(0, available - taken)} B are."
            )
    return ""


def parse_search(question: Mapping[str, Any]) -> Search:
    """The checked search; ValueError names the key, the value and the rule.

    question: `options` as for a fit (kv_cache_memory_bytes as bytes, or auto for the measured memory), and what is to
    be varied. Left out: every DCP that divides TP, 0 to 4 drafts where the model can draft, 1 to 16 sequences, powers
    of two as contexts, and the cache dtype of the options.
    """
    if not isinstance(question, Mapping):
        raise ValueError(f"search: a dictionary is needed, not {type(question).__name__}")
    unknown = sorted(str(key) for key in question if key not in _KEYS)
    if unknown:
        raise ValueError("{}: unknown key of a search; known are {}".format(unknown[0], ", ".join(_KEYS)))
    options = question.get("options")
    if not isinstance(options, Mapping):
        raise ValueError(f"options: the options of the fit as a dictionary are needed, not {options!r}")
    request = parse_request({"kv_cache_memory_bytes": "auto", **options})
    aim = question.get("aim", "context")
    if aim not in AIMS:
        raise ValueError("aim: {!r} is not allowed; it must be one of {}".format(aim, ", ".join(AIMS)))
    model = find_model(request, find_dialect(request.engine))
    tp = request.tensor_parallel_size
    defaults: dict[str, Any] = {
        "decode_context_parallel_sizes": [dcp for dcp in range(1, tp + 1) if tp % dcp == 0],
        "draft_tokens": [0, 1, 2, 3, 4] if model.drafts else [0],
        "sequences": [1, 2, 3, 4, 6, 8, 12, 16],
        "contexts": list(_default_contexts(model.context or 1 << 20)),
        "minimum_context": 1,
        "minimum_concurrency": 1,
        "draft_weights_bytes": 0,
    }
    given = {**defaults, **{key: value for key, value in question.items() if value is not None}}
    dtypes = given.get("cache_dtypes") or [request.kv_cache_dtype]
    if not isinstance(dtypes, (list, tuple)):
        raise ValueError(f"cache_dtypes: {dtypes!r} is not allowed; it must be a list of cache dtypes")
    for dtype in dtypes:
        if dtype not in CACHE_DTYPES:
            raise ValueError("cache_dtypes: {!r} is not allowed; known are {}".format(dtype, ", ".join(CACHE_DTYPES)))
    saved = _integers("draft_weights_bytes", [given["draft_weights_bytes"]], 0)[0]
    return Search(
        request=request,
        aim=str(aim),
        dcps=_integers("decode_context_parallel_sizes", given["decode_context_parallel_sizes"], 1),
        drafts=_integers("draft_tokens", given["draft_tokens"], 0),
        sequences=_integers("sequences", given["sequences"], 1),
        contexts=_integers("contexts", given["contexts"], 1),
        dtypes=tuple(dict.fromkeys(dtypes)),
        minimum_context=_integers("minimum_context", [given["minimum_context"]], 1)[0],
        minimum_concurrency=_integers("minimum_concurrency", [given["minimum_concurrency"]], 1)[0],
        blocked=_blocked(request),
        rooms=_rooms(request, 0),
        rooms_without_drafts=_rooms(request, saved),
    )


def _geometry(search: Search, dtype: str, dcp: int, drafts: int) -> Geometry | None:
    """The blocks of one combination, None where the engine refuses it."""
    changed = replace(
        search.request,
        kv_cache_dtype=dtype,
        decode_context_parallel_size=dcp,
        speculative_method="mtp" if drafts else None,
        speculative_tokens=drafts,
    )
    try:
        geometry = build_geometry(changed)
        geometry.request_blocks(1)
    except EngineRefusal:
        return None
    starts = check_planned(geometry) is None and all(stage.block_bytes for stage in geometry.stages)
    return geometry if starts else None


def _found(search: Search, geometry: Geometry) -> Iterator[Found]:
    """Every context and number of sequences of one geometry that fits, and the longest context for each number."""
    request = geometry.request
    rooms = search.rooms if request.speculative_tokens else search.rooms_without_drafts
    tp = request.tensor_parallel_size
    stages = [(stage, min(rooms[number * tp : (number + 1) * tp])) for number, stage in enumerate(geometry.stages)]
    held = 1 if geometry.dialect.null_block else 0
    limit = geometry.model.context or max(search.contexts)
    # The pool of blocks that the poorest rank can hold: what every combination is compared with.
    pool = min(room // stage.block_bytes for stage, room in stages)
    exact = geometry.dialect.check == "layers" or request.replicated_draft
    contexts = [context for context in search.contexts if search.minimum_context <= context <= limit]
    blocks_of = {context: geometry.request_blocks(context) for context in contexts}
    for sequences in search.sequences:
        # A step of the engine has to hold one token of every sequence.
        if sequences < search.minimum_concurrency or sequences > request.max_num_batched_tokens:
            continue
        longest = longest_for_rooms(geometry, rooms, sequences, limit)
        wanted = [context for context in contexts if context < longest]
        if exact:
            wanted = [
                context for context in wanted if longest_for_rooms(geometry, rooms, sequences, context) == context
            ]
        if longest >= search.minimum_context and longest > 0:
            wanted.append(longest)
            blocks_of[longest] = geometry.request_blocks(longest)
        for context in wanted:
            blocks = blocks_of[context] * sequences + held
            if blocks > pool:
                continue
            yield Found(
                kv_cache_dtype=request.kv_cache_dtype,
                decode_context_parallel_size=request.decode_context_parallel_size,
                num_speculative_tokens=request.speculative_tokens,
                max_num_seqs=sequences,
                max_model_len=context,
                kv_bytes=max(blocks * stage.block_bytes for stage, _room in stages),
                spare_bytes=min(room - blocks * stage.block_bytes for stage, room in stages),
                longest=context == longest,
            )


def _preference(found: Found) -> tuple[Any, ...]:
    """Among rows that reach the same: better precision, less DCP, more drafts, fewer bytes."""
    dtype = found.kv_cache_dtype
    precision = _PRECISION.index(dtype) if dtype in _PRECISION else len(_PRECISION)
    return (precision, found.decode_context_parallel_size, -found.num_speculative_tokens, found.kv_bytes)


def _order(aim: str, found: Found) -> tuple[Any, ...]:
    context, sequences = found.max_model_len, found.max_num_seqs
    if aim == "context":
        return (-context, -sequences, *_preference(found))
    if aim == "concurrency":
        return (-sequences, -context, *_preference(found))
    return (-context * sequences, -context, *_preference(found))


def _pareto(rows: Sequence[Found]) -> list[bool]:
    """Rows that no other row beats in context and sequences at once; of equal rows only the preferred one."""
    order = sorted(range(len(rows)), key=lambda index: _order("context", rows[index]))
    best = [False] * len(rows)
    most = 0
    for index in order:
        if rows[index].max_num_seqs > most:
            most = rows[index].max_num_seqs
            best[index] = True
    return best


def search(question: Mapping[str, Any]) -> dict[str, Any]:
    """All combinations that fit, sorted by the aim.

    `rows`; how many were `considered`, how many of them vLLM itself `refused`; `blocked`: why nothing can fit, if so.
    """
    wanted = parse_search(question)
    rows: list[Found] = []
    refused = 0
    for dtype in () if wanted.blocked else wanted.dtypes:
        for dcp in wanted.dcps:
            for drafts in wanted.drafts:
                geometry = _geometry(wanted, dtype, dcp, drafts)
                if geometry is None:
                    refused += 1
                    continue
                rows.extend(_found(wanted, geometry))
    rows.sort(key=lambda row: _order(wanted.aim, row))
    geometries = len(wanted.dtypes) * len(wanted.dcps) * len(wanted.drafts)
    return {
        "aim": wanted.aim,
        "considered": geometries * len(wanted.sequences) * (len(wanted.contexts) + 1),
        "blocked": wanted.blocked,
        "refused": refused * len(wanted.sequences) * (len(wanted.contexts) + 1),
        "rows": [row.as_dict(best) for row, best in zip(rows, _pareto(rows))],
    }

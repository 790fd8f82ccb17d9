# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""The whole fit: the KV cache by vLLM's rules, and every rank's bytes against the memory of its node.

`fit` is what the module and the filter call. Private to this collection.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from ansible_collections.sparkrig.serving.plugins.module_utils import _kv_texts as texts
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_dialects import find_dialect
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_groups import Group
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_models import Model
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_options import Request, parse_request
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_planner import (
    Capacity,
    Geometry,
    build_geometry,
    check_planned,
    derived_context,
    find_model,
    holds_one,
    plan_cache,
    smallest_budgets,
    stage_of,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_specs import STATE, EngineRefusal

GIB = 2**30
# Readings of the moment: they are reported, but a plan that is written to disk must not change with them.
_MOMENTARY = ("available_bytes", "headroom_bytes", "total_bytes", "gate_bytes")


@dataclass(frozen=True)
class Rank:
    """One rank's bytes. available_bytes is None where the node was not measured."""

    rank: int
    node: str
    weights_bytes: int
    kv_bytes: int
    overhead_bytes: int
    reserve_bytes: int
    available_bytes: int | None
    total_bytes: int | None
    gate_bytes: int | None

    @property
    def needed_bytes(self) -> int:
        """All that this rank will take, with what is to stay free on its node."""
        return self.weights_bytes + self.kv_bytes + self.overhead_bytes + self.reserve_bytes

    @property
    def headroom_bytes(self) -> int | None:
        """What is left on the node; negative when the rank does not fit."""
        return None if self.available_bytes is None else self.available_bytes - self.needed_bytes

    @property
    def name(self) -> str:
        """How sentences call this rank."""
        return f"rank {self.rank} ({self.node})" if self.node else f"rank {self.rank}"

    def as_dict(self) -> dict[str, Any]:
        """The rank as the module returns it."""
        return {
            "rank": self.rank,
            "node": self.node or None,
            "weights_bytes": self.weights_bytes,
            "kv_bytes": self.kv_bytes,
            "overhead_bytes": self.overhead_bytes,
            "reserve_bytes": self.reserve_bytes,
            "needed_bytes": self.needed_bytes,
            "total_bytes": self.total_bytes,
            "gate_bytes": self.gate_bytes,
            "available_bytes": self.available_bytes,
            "headroom_bytes": self.headroom_bytes,
        }


def amount(size_bytes: int) -> str:
    """Bytes for a sentence: exact, with GiB beside it."""
    return "{} B ({:.2f} GiB)".format(format(size_bytes, ","), size_bytes / GIB)


def _tokens(count: int) -> str:
    return format(count, ",")


def _at(values: Sequence[Any], rank: int) -> Any:
    return values[rank] if values else None


def _share(request: Request, geometry: Geometry) -> float:
    return geometry.dialect.utilization if request.gpu_memory_utilization is None else request.gpu_memory_utilization


def _gate_bytes(request: Request, geometry: Geometry, rank: int) -> int | None:
    """What the engine wants to see free at start-up, None where it does not look or the total is not known.

    ceil(total * gpu_memory_utilization) on a GPU, with explicit KV bytes too; on a CPU only without them.
    """
    total: int | None = _at(request.memory_total_bytes, rank)
    explicit = bool(request.kv_cache_memory_bytes) or request.kv_cache_auto
    if total is None or (request.device == "cpu" and explicit):
        return None
    return math.ceil(total * _share(request, geometry))


def _ranks(request: Request, geometry: Geometry, budgets: Sequence[int]) -> list[Rank]:
    return [
        Rank(
            rank=rank,
            node=_at(request.nodes, rank) or "",
            weights_bytes=_at(request.weights_bytes, rank) or 0,
            kv_bytes=budget,
            overhead_bytes=_at(request.overhead_bytes, rank) or 0,
            reserve_bytes=_at(request.reserve_bytes, rank) or 0,
            available_bytes=_at(request.memory_available_bytes, rank),
            total_bytes=_at(request.memory_total_bytes, rank),
            gate_bytes=_gate_bytes(request, geometry, rank),
        )
        for rank, budget in enumerate(budgets)
    ]


def _rooms(request: Request) -> tuple[int, ...]:
    """Bytes that each rank has left for KV: by measurement, and no more than the limit that was given."""
    limits = request.kv_cache_limit_bytes
    if limits and (not request.memory_available_bytes or None in request.memory_available_bytes):
        return limits
    if not request.memory_available_bytes or None in request.memory_available_bytes:
        raise ValueError(
            "memory_available_bytes: it is needed for every rank when kv_cache_memory_bytes is auto and max_model_len "
            "is -1"
        )
    empty = _ranks_without_cache(request)
    rooms = tuple((available or 0) - taken for available, taken in zip(request.memory_available_bytes, empty))
    return tuple(map(min, rooms, limits)) if limits else rooms


def _ranks_without_cache(request: Request) -> tuple[int, ...]:
    return tuple(
        (_at(request.weights_bytes, rank) or 0)
        + (_at(request.overhead_bytes, rank) or 0)
        + (_at(request.reserve_bytes, rank) or 0)
        for rank in range(request.ranks)
    )


def longest_for_rooms(geometry: Geometry, rooms: Sequence[int], sequences: int, limit: int) -> int:
    """The longest context of which every rank holds `sequences` requests; 0 when not even one token fits."""

    def holds(context: int) -> bool:
        return all(need <= room for need, room in zip(smallest_budgets(geometry, context, sequences), rooms))

    if not holds(1):
        return 0
    low, high, found = 1, limit, 1
    while low <= high:
        middle = (low + high) // 2
        if holds(middle):
            found, low = middle, middle + 1
        else:
            high = middle - 1
    return found


def _self_sized(request: Request, geometry: Geometry) -> tuple[int, ...]:
    """What an engine without explicit KV bytes takes: its share of the total less weights and overhead."""
    if not request.memory_total_bytes or not request.weights_bytes:
        raise ValueError(
            "kv_cache_memory_bytes: give bytes, a list by rank or auto; without it memory_total_bytes and "
            "weights_bytes are needed, from which the engine sizes its cache by gpu_memory_utilization"
        )
    share = _share(request, geometry)
    return tuple(
        max(0, math.ceil(total * share) - weights - (_at(request.overhead_bytes, rank) or 0))
        for rank, (total, weights) in enumerate(zip(request.memory_total_bytes, request.weights_bytes))
    )


def _budgets(request: Request, geometry: Geometry) -> tuple[tuple[int, ...], int | None]:
    """KV bytes by rank and the context to plan for."""
    if request.kv_cache_memory_bytes:
        return request.kv_cache_memory_bytes, request.max_model_len
    if not request.kv_cache_auto:
        return _self_sized(request, geometry), request.max_model_len
    if request.max_model_len != -1:
        context = request.max_model_len or derived_context(geometry)
        return smallest_budgets(geometry, context, request.max_num_seqs), context
    rooms = _rooms(request)
    context = longest_for_rooms(geometry, rooms, request.max_num_seqs, derived_context(geometry))
    if context == 0:
        return tuple(max(0, room) for room in rooms), 1
    return smallest_budgets(geometry, context, request.max_num_seqs), context


def _legal_dcps(request: Request) -> list[int]:
    tp = request.tensor_parallel_size
    return [dcp for dcp in range(request.decode_context_parallel_size + 1, tp + 1) if tp % dcp == 0]


def _fits_with(request: Request, model: Model, context: int) -> bool:
    """Whether the cache of a changed request holds one request of `context` tokens."""
    try:
        return holds_one(build_geometry(request, model), request.kv_cache_memory_bytes, context)
    except (EngineRefusal, ValueError):
        return False


def _variants(request: Request, model: Model) -> Iterator[tuple[str, dict[str, Any], Request]]:
    """The request with a larger DCP, then with a smaller draft, the smallest change of each first.

    Each is a name of what is changed, the change as options, and the changed request. Fewer drafted tokens save memory
    with recurrent layers only, which keep a state for each of them.
    """
    for dcp in _legal_dcps(request):
        yield "dcp", {"decode_context_parallel_size": dcp}, replace(request, decode_context_parallel_size=dcp)
    if request.speculative_method is None:
        return
    for tokens in range(request.speculative_tokens - 1, 0, -1) if model.hybrid else ():
        smaller = {"method": request.speculative_method, "num_speculative_tokens": tokens}
        if request.replicated_draft:
            smaller["replicated_draft"] = True
        yield "draft", {"speculative_config": smaller}, replace(request, speculative_tokens=tokens)
    plain = replace(request, speculative_method=None, speculative_tokens=0, replicated_draft=False)
    yield "draft", {"speculative_config": None}, plain


def _cache_changes(request: Request, geometry: Geometry, capacity: Capacity) -> list[dict[str, Any]]:
    """The smallest single changes with which the cache would hold a request, shortest first."""
    changes: list[dict[str, Any]] = []
    fixed = replace(request, kv_cache_memory_bytes=capacity.budgets, kv_cache_auto=False)
    if 0 < capacity.longest < capacity.context:
        changes.append({"max_model_len": capacity.longest})
    found: set[str] = set()
    for what, change, changed in _variants(fixed, geometry.model):
        if what not in found and _fits_with(changed, geometry.model, capacity.context):
            found.add(what)
            changes.append(change)
    changes.append({"kv_cache_memory_bytes": max(smallest_budgets(geometry, capacity.context, 1))})
    return changes


def _spoken(changes: Sequence[Mapping[str, Any]]) -> str:
    """Changes as words: alternatives joined by "or", what belongs together by "with"."""

    def words(name: str, value: Any) -> str:
        if name == "speculative_config" and value is not None:
            return "speculative_config.num_speculative_tokens {}".format(value["num_speculative_tokens"])
        return f"no {name}" if value is None else f"{name} {value}"

    return " or ".join(" with ".join(words(*pair) for pair in change.items()) for change in changes)


def _short_cache_reason(
    request: Request, geometry: Geometry, capacity: Capacity, changes: Sequence[Mapping[str, Any]]
) -> str:
    def shortage(rank: int) -> int:
        stage = stage_of(geometry, rank)
        return geometry.needed_bytes(stage, capacity.context) + geometry.held_back_bytes(stage) - capacity.budgets[rank]

    worst = max(range(len(capacity.budgets)), key=shortage)
    stage = stage_of(geometry, worst)
    needed = geometry.needed_bytes(stage, capacity.context) + geometry.held_back_bytes(stage)
    rank = Rank(worst, _at(request.nodes, worst) or "", 0, 0, 0, 0, None, None, None)
    longest = f"the longest context that fits is {_tokens(capacity.longest)} tokens"
    if capacity.longest == 0:
        longest = "not even one token fits"
    return (
        f"The KV cache of {rank.name} is too small for one request of {_tokens(capacity.context)} tokens: "
        f"{amount(needed)} are needed, {amount(capacity.budgets[worst])} are there; {longest}. Smallest change: "
        f"{_spoken(changes)}."
    )


def _node_changes(
    request: Request, geometry: Geometry, capacity: Capacity, ranks: Sequence[Rank]
) -> list[dict[str, Any]]:
    """The smallest changes with which every rank would fit its node: of budget, sequences, DCP, draft or context."""
    rooms = [
        max(0, rank.kv_bytes + min(0, rank.headroom_bytes or 0)) if rank.available_bytes is not None else rank.kv_bytes
        for rank in ranks
    ]
    auto = request.kv_cache_auto
    sequences = request.max_num_seqs if auto else 1

    def holds(changed: Geometry, count: int) -> bool:
        needs = smallest_budgets(changed, capacity.context, count)
        return all(need <= room for need, room in zip(needs, rooms))

    def with_budget(change: dict[str, Any], changed: Geometry, context: int) -> dict[str, Any]:
        if auto:
            return change
        return {**change, "kv_cache_memory_bytes": max(smallest_budgets(changed, context, 1))}

    if not auto and holds(geometry, 1):
        return [with_budget({}, geometry, capacity.context)]
    changes: list[dict[str, Any]] = []
    context = longest_for_rooms(geometry, rooms, sequences, capacity.context)
    if 0 < context < capacity.context:
        budget = max(smallest_budgets(geometry, context, sequences))
        changes.append({"max_model_len": context, "kv_cache_memory_bytes": budget})
    fewer, most = 0, sequences - 1
    while fewer < most:
        middle = (fewer + most + 1) // 2
        fewer, most = (middle, most) if holds(geometry, middle) else (fewer, middle - 1)
    if fewer > 0:
        changes.insert(0, {"max_num_seqs": fewer})
    found: set[str] = set()
    for what, change, changed in _variants(request, geometry.model):
        if what in found:
            continue
        try:
            other = build_geometry(changed, geometry.model)
            if holds(other, sequences) and check_planned(other) is None:
                found.add(what)
                changes.append(with_budget(change, other, capacity.context))
        except (EngineRefusal, ValueError):
            continue
    return changes


def _node_reason(rank: Rank, changes: Sequence[Mapping[str, Any]]) -> str:
    parts = (
        f"weights {amount(rank.weights_bytes)} + KV {amount(rank.kv_bytes)} + overhead "
        f"{amount(rank.overhead_bytes)} + reserve {amount(rank.reserve_bytes)}"
    )
    change = f"Smallest change: {_spoken(changes)}."
    if not changes:
        change = f"No context is short enough: free {amount(-(rank.headroom_bytes or 0))} on the node."
    return (
        f"{rank.name[0].upper() + rank.name[1:]} does not fit: {amount(rank.needed_bytes)} are needed ({parts}), "
        f"{amount(rank.available_bytes or 0)} are available, {amount(-(rank.headroom_bytes or 0))} too few. {change}"
    )


def _gate(request: Request, geometry: Geometry, rank: Rank) -> tuple[str, str] | None:
    """The engine's own start-up gate on one rank: its text and our sentence, or None when it passes.

    What the engine takes before it looks (startup_bytes: Ray, context, NCCL) is no longer free by then.
    """
    available, total = rank.available_bytes, rank.total_bytes
    if available is None:
        return None
    available = max(0, available - (_at(request.startup_bytes, rank.rank) or 0))
    explicit = bool(request.kv_cache_memory_bytes) or request.kv_cache_auto
    if request.device == "cpu" and explicit:
        if rank.kv_bytes <= available:
            return None
        text = texts.cpu_cache_gate(geometry.dialect, available, total or available, rank.kv_bytes)
        change = f"kv_cache_memory_bytes {available}"
        wanted = rank.kv_bytes
    else:
        if rank.gate_bytes is None or total is None or rank.gate_bytes <= available:
            return None
        share, wanted = _share(request, geometry), rank.gate_bytes
        change = f"gpu_memory_utilization {math.floor(available * 1000 / total) / 1000}"
        if request.device == "cpu":
            text = texts.cpu_gate(geometry.dialect, available, total, share, wanted)
        else:
            device = f"cuda:{0 if request.nodes else rank.rank % request.tensor_parallel_size}"
            text = texts.gpu_gate(geometry.dialect, device, available, total, share, wanted)
    sentence = (
        f"The engine will not start on {rank.name}: it wants {amount(wanted)} free at start-up and "
        f"{amount(available)} are available, {amount(wanted - available)} too few. Smallest change: {change}."
    )
    return text, sentence


def _group_dict(group: Group) -> dict[str, Any]:
    parts = []
    for spec in group.kinds:
        parts.append(
            {
                "spec": spec.kind,
                "layers": sum(1 for entry in group.entries if entry.spec == spec),
                "block_size": spec.block_size,
                "page_bytes": spec.page,
            }
        )
    return {
        "layers": len(group.entries),
        "spec": "+".join(dict.fromkeys(spec.kind for spec in group.kinds)),
        "block_size": group.kinds[0].block_size,
        "page_bytes": group.page,
        "parts": parts,
    }


def _bytes_per_token(geometry: Geometry) -> float:
    """Bytes that one more token costs on the rank with most layers, recurrent states left out."""
    best = 0.0
    for stage in geometry.stages:
        specs = [entry.spec for entry in stage.entries if entry.spec.kind != STATE]
        best = max(best, sum(spec.page / spec.block_size for spec in specs))
    return int(best) if best == int(best) else best


_EMPTY: dict[str, Any] = {
    "block_size": None,
    "bytes_per_block": None,
    "bytes_per_token": None,
    "num_blocks": None,
    "kv_cache_tokens": None,
    "max_concurrency": None,
    "required_bytes": None,
    "minimum_kv_bytes": None,
    "max_model_len": None,
    "planned_model_len": None,
    "kv_cache_memory_bytes": None,
    "kv_cache_dtype": None,
    "engine_log": None,
    "auto_fit_log": None,
    "assumptions": [],
    "groups": [],
    "ranks": [],
    "changes": [],
}


def _accepted(request: Request) -> bool:
    """Whether the engine takes these options as far as layers and blocks go."""
    try:
        geometry = build_geometry(request)
        geometry.request_blocks(1)
    except (EngineRefusal, ValueError):
        return False
    return check_planned(geometry) is None


def _lesser(request: Request) -> Iterator[tuple[dict[str, Any], Request]]:
    """The request with ever smaller DCP, then TP, then without drafts: the change as options, and what comes of it."""
    for dcp in range(request.decode_context_parallel_size - 1, 0, -1):
        yield {"decode_context_parallel_size": dcp}, replace(request, decode_context_parallel_size=dcp)
    for tp in range(request.tensor_parallel_size - 1, 0, -1):
        yield {"tensor_parallel_size": tp}, replace(request, tensor_parallel_size=tp)
    if request.speculative_method is not None:
        plain = replace(request, speculative_method=None, speculative_tokens=0, replicated_draft=False)
        yield {"speculative_config": None}, plain


def _shorter(request: Request) -> dict[str, Any]:
    """The context that a changed request would need beside the change, where its budget is given; empty if none."""
    if not request.kv_cache_memory_bytes or request.max_model_len == -1:
        return {}
    budgets = (min(request.kv_cache_memory_bytes),) * request.ranks
    capacity = plan_cache(build_geometry(request), budgets, request.max_model_len)
    return {"max_model_len": capacity.longest} if 0 < capacity.longest < capacity.context else {}


def _legal_change(request: Request) -> dict[str, Any] | None:
    """The smallest change that the engine would accept, with the context that it would then hold."""
    for change, changed in _lesser(request):
        if _accepted(changed):
            return {**change, **_shorter(changed)}
    return None


def _refused(request: Request, text: str) -> dict[str, Any]:
    reason = f"The engine refuses these options: {text}"
    if text.startswith("assert "):
        reason += (
            " (it dies without another word: the model's KV heads can neither be dealt out nor repeated over "
            f"tensor_parallel_size {request.tensor_parallel_size})."
        )
    if text == texts.no_draft_layers():
        reason += " (it divides by the number of built-in draft layers, and the model's config has none)."
    change = _legal_change(request)
    if change is None:
        return {**_EMPTY, "fits": False, "engine_error": text, "reasons": [reason]}
    reason += f" Smallest change: {_spoken([change])}."
    return {**_EMPTY, "fits": False, "engine_error": text, "reasons": [reason], "changes": [change]}


def fit(options: Mapping[str, Any]) -> dict[str, Any]:
    """The answer to a fit.

    options: as `parse_request` takes them. The result's keys are those of the module `kv_budget`; `fits` is False with
    sentences in `reasons`, and with vLLM's own text in `engine_error` where vLLM itself would refuse.
    Raises ValueError for what is no question: an unknown option or model, a wrong type, a missing figure.
    """
    request = parse_request(options)
    try:
        geometry = build_geometry(request)
        budgets, context = _budgets(request, geometry)
        capacity = plan_cache(geometry, budgets, context)
    except EngineRefusal as refusal:
        assumed = list(find_model(request, find_dialect(request.engine)).assumptions)
        return {**_refused(request, str(refusal)), "assumptions": assumed}
    return _answer(request, geometry, capacity)


def _answer(request: Request, geometry: Geometry, capacity: Capacity) -> dict[str, Any]:
    ranks = _ranks(request, geometry, capacity.budgets)
    reasons: list[str] = []
    changes: list[dict[str, Any]] = []
    error: str | None = None
    for rank in ranks:
        gate = _gate(request, geometry, rank)
        if gate is not None:
            error = error or gate[0]
            reasons.append(gate[1])
    if capacity.error is not None:
        error = error or capacity.error
        if capacity.longest < capacity.context:
            changes = _cache_changes(request, geometry, capacity)
            reasons.append(_short_cache_reason(request, geometry, capacity, changes))
        else:
            reason = f"The engine refuses these options: {capacity.error}"
            change = _legal_change(request) if check_planned(geometry) is not None else None
            if change is not None:
                changes = [change]
            elif 0 < capacity.blocks < request.max_num_seqs:
                changes = [{"max_num_seqs": capacity.blocks}]
            if changes:
                reason += f" Smallest change: {_spoken(changes)}."
            reasons.append(reason)
    short = [rank for rank in ranks if rank.headroom_bytes is not None and rank.headroom_bytes < 0]
    if short:
        node_changes = _node_changes(request, geometry, capacity, ranks)
        changes = changes or node_changes
        reasons.extend(_node_reason(rank, node_changes) for rank in short)
    same = len(set(capacity.budgets)) == 1
    smallest = smallest_budgets(geometry, capacity.context, 1)
    return {
        "fits": not reasons,
        "reasons": reasons,
        "changes": changes,
        "block_size": geometry.block_size,
        "bytes_per_block": max(stage.block_bytes for stage in geometry.stages),
        "bytes_per_token": _bytes_per_token(geometry),
        "num_blocks": capacity.blocks,
        "kv_cache_tokens": capacity.tokens,
        "max_concurrency": capacity.concurrency,
        "required_bytes": capacity.needed_bytes,
        "minimum_kv_bytes": max(smallest),
        "max_model_len": capacity.longest,
        "planned_model_len": capacity.context,
        "kv_cache_memory_bytes": capacity.budgets[0] if same else list(capacity.budgets),
        "kv_cache_dtype": geometry.dtype,
        "engine_log": capacity.log,
        "auto_fit_log": capacity.fit_log,
        "engine_error": error,
        "assumptions": _assumptions(request, geometry),
        "groups": [_group_dict(group) for group in geometry.groups],
        "ranks": [rank.as_dict() for rank in ranks],
    }


def _assumptions(request: Request, geometry: Geometry) -> list[str]:
    """What the answer takes for granted because nobody said otherwise."""
    sentences = list(geometry.model.assumptions)
    if request.memory_available_bytes and not request.weights_bytes:
        sentences.append("weights_bytes is not given; the weights are counted as 0 B")
    return sentences


def plan_document(result: Mapping[str, Any]) -> str:
    """A result as the text of plan.json: canonical, and without the readings of the moment."""
    # What was taken for granted depends on whether a reading was there, and changes nothing of the plan.
    stable = {key: value for key, value in result.items() if key != "assumptions"}
    stable["ranks"] = [
        {key: value for key, value in rank.items() if key not in _MOMENTARY} for rank in result.get("ranks", [])
    ]
    return json.dumps(stable, indent=2, sort_keys=True) + "\n"


def document_sha256(document: str) -> str:
    """The digest by which a plan is recognised."""
    return hashlib.sha256(document.encode("utf-8")).hexdigest()


def question_sha256(options: Mapping[str, Any]) -> str:
    """The digest of all that is asked, the readings of the moment left out."""
    asked = {key: value for key, value in options.items() if key != "memory_available_bytes"}
    return hashlib.sha256(json.dumps(asked, sort_keys=True, default=str).encode("utf-8")).hexdigest()


def _standing_plan(standing: str, serving_sha256: Sequence[str | None], question: str) -> dict[str, Any]:
    """What a plan that every rank serves settled for, if the same was asked then; empty where there is none."""
    if not standing or not serving_sha256 or set(serving_sha256) != {document_sha256(standing)}:
        return {}
    plan = json.loads(standing)
    if plan.get("question_sha256") != question:
        return {}
    return {"kv_cache_memory_bytes": plan["kv_cache_memory_bytes"], "max_model_len": plan["planned_model_len"]}


def fit_nodes(
    options: Mapping[str, Any], serving_sha256: Sequence[str | None] = (), standing: str = ""
) -> dict[str, Any]:
    """A fit and the plan to write: `result`, `document` (the text of plan.json), `sha256`, `served` (by rank).

    serving_sha256: by rank, the digest of the plan that is being served there, None where nothing is. A rank that
    already serves this very plan holds the memory that the plan needs, so what is free beside it is not compared.
    standing: the text of the plan that is being served. A context that was found by measured memory (budget `auto`,
    max_model_len -1) stays what it was while it is served, because the served model itself holds that memory now.
    """
    measured = options.get("memory_available_bytes")
    searches = options.get("kv_cache_memory_bytes") == "auto" and options.get("max_model_len") == -1
    question = question_sha256(options)
    settled = _standing_plan(standing, serving_sha256, question) if searches else {}
    options = {**options, **settled}
    timeless = {key: value for key, value in options.items() if key != "memory_available_bytes"}
    stable = fit(options if searches and not settled else timeless)
    document = plan_document({**stable, "question_sha256": question} if searches else stable)
    sha256 = document_sha256(document)
    served = [digest == sha256 for digest in serving_sha256]
    if any(served) and isinstance(measured, (list, tuple)):
        measured = [None if here else reading for here, reading in zip(served, measured)]
    if measured is None or (searches and not settled):
        result = stable
    else:
        result = fit({**timeless, "memory_available_bytes": measured})
    return {"result": result, "document": document, "sha256": sha256, "served": served}

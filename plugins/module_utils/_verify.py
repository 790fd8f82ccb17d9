# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The proof that what is served is what was planned: each check has the number predicted and the number seen.

Private to the collection.
"""

from __future__ import annotations

import re
import typing as t
from dataclasses import asdict, dataclass

from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import labels_of, total
from ansible_collections.sparkrig.serving.plugins.module_utils._node import gib

if t.TYPE_CHECKING:
    from collections.abc import Iterable, Mapping, Sequence

    from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import Sample
    from ansible_collections.sparkrig.serving.plugins.module_utils._ray import ClusterState
    from ansible_collections.sparkrig.serving.plugins.module_utils._rig_unit import UnitState

Value = t.Any

DRAFTS = "vllm:spec_decode_num_drafts_total"
ACCEPTED = "vllm:spec_decode_num_accepted_tokens_total"
DRAFT_TOKENS = "vllm:spec_decode_num_draft_tokens_total"
ACCEPTED_AT = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
CACHE_INFO = "vllm:cache_config_info"

# What the plan calls a number, and the engine's label for it.
_CACHE_NUMBERS = (
    ("num_blocks", "num_gpu_blocks", "KV blocks"),
    ("kv_cache_tokens", "kv_cache_size_tokens", "KV tokens"),
    ("max_concurrency", "kv_cache_max_concurrency", "requests of full length at once"),
)
_AROUND_SSH = re.compile(r"^.*\b(?:via|over) ssh: ")
# The engine prints the concurrency with two digits; the label has the float.
_CONCURRENCY_TOLERANCE = 0.005
# Logs in memory, allocators that keep what they had, and Ray, which vLLM's own executor does without.
_MEMORY_NOISE_BYTES = 384 * 2**20


@dataclass(frozen=True)
class Check:
    """One comparison of the plan with the world."""

    name: str
    ok: bool
    predicted: Value
    seen: Value
    sentence: str

    def as_dict(self) -> dict[str, Value]:
        """What the module returns."""
        return asdict(self)


def _number(text: str | None) -> float | None:
    try:
        return float(text) if text is not None else None
    except ValueError:
        return None


def _shown(number: float | None) -> Value:
    if number is None:
        return None
    return int(number) if number == int(number) else round(number, 4)


def check_cache(samples: Sequence[Sample], plan: Mapping[str, Value]) -> list[Check]:
    """The engine's KV cache against the plan: blocks, tokens, concurrency. What the plan leaves out is not checked."""
    labels = labels_of(samples, CACHE_INFO)
    checks = []
    for key, label, words in _CACHE_NUMBERS:
        predicted = plan.get(key)
        if predicted is None:
            continue
        seen = _number(labels.get(label)) if labels is not None else None
        tolerance = _CONCURRENCY_TOLERANCE if key == "max_concurrency" else 0.0
        ok = seen is not None and abs(seen - float(predicted)) <= tolerance
        if seen is None:
            sentence = (
                f"The engine does not tell its {words} (label {label} of {CACHE_INFO} in /metrics is missing or no"
                f" number); the plan says {_shown(float(predicted))}"
            )
        elif ok:
            sentence = f"The engine has {_shown(seen)} {words}, as planned"
        else:
            sentence = f"The engine has {_shown(seen)} {words}; the plan says {_shown(float(predicted))}"
        checks.append(Check(key, ok, _shown(float(predicted)), _shown(seen), sentence))
    return checks


def check_drafts(before: Sequence[Sample], after: Sequence[Sample]) -> Check:
    """The MTP layer must have drafted during the completion."""
    seen = (total(after, DRAFTS) or 0.0) - (total(before, DRAFTS) or 0.0)
    ok = seen > 0
    if not ok:
        sentence = "The engine made 0 drafts during the completion; the profile drafts, so it must be more than 0"
    else:
        drafted = (total(after, DRAFT_TOKENS) or 0.0) - (total(before, DRAFT_TOKENS) or 0.0)
        accepted = (total(after, ACCEPTED) or 0.0) - (total(before, ACCEPTED) or 0.0)
        by_position = " / ".join(f"{part:.2f}" for part in acceptance_by_position(before, after))
        sentence = (
            f"The engine made {seen:g} drafts during the completion; {accepted:g} of {drafted:g} were accepted"
            + (f", by position {by_position}" if by_position else "")
        )
    return Check("drafts", ok, "> 0", _shown(seen), sentence)


def acceptance_by_position(before: Sequence[Sample], after: Sequence[Sample]) -> list[float]:
    """How many of the drafts were accepted at each position, between two looks at /metrics."""
    drafts = (total(after, DRAFTS) or 0.0) - (total(before, DRAFTS) or 0.0)
    if drafts <= 0:
        return []

    def at(samples: Sequence[Sample]) -> dict[int, float]:
        found: dict[int, float] = {}
        for sample in samples:
            if sample.name == ACCEPTED_AT and sample.labels.get("position", "").isdigit():
                position = int(sample.labels["position"])
                found[position] = found.get(position, 0.0) + sample.number
        return found

    first, last = at(before), at(after)
    return [(last[position] - first.get(position, 0.0)) / drafts for position in sorted(last)]


def with_readings(plan: Mapping[str, Value], sha256: str, readings: Mapping[str, Value] | None) -> dict[str, Value]:
    """*plan* with the memory that every rank's node had before the launch, where it does not say that itself.

    A plan does not hold it, because it would be another plan at each reading. *readings* are those of the launch, and
    count for the plan with the digest in them only.
    """
    measured = (readings or {}).get("available_bytes") or []
    if not readings or readings.get("plan_sha256") != sha256 or len(measured) != len(plan.get("ranks") or []):
        return dict(plan)
    ranks = [
        {**rank, "available_bytes": before if rank.get("available_bytes") is None else rank["available_bytes"]}
        for rank, before in zip(plan["ranks"], measured)
    ]
    return {**plan, "ranks": ranks}


def check_memory(node: str, left: int, rank: Mapping[str, Value], percent: float) -> Check:
    """The memory that is left on a node against what the plan leaves there, in either direction.

    *percent* of what the plan leaves may differ, and 384 MiB in any case.
    """
    taken = sum(int(rank[part]) for part in ("weights_bytes", "kv_bytes", "overhead_bytes"))
    planned = int(rank["available_bytes"]) - taken
    slack = max(int(abs(planned) * percent / 100), _MEMORY_NOISE_BYTES)
    ok = abs(left - planned) <= slack
    sentence = f"{node} has {gib(left)} of memory left; the plan says {gib(max(0, planned))}, give or take {gib(slack)}"
    if not ok:
        overhead = int(rank["overhead_bytes"]) + planned - left
        sentence += (
            f": {gib(abs(left - planned))} {'more' if left < planned else 'less'} is taken there than was planned; if"
            f" that is what the engine needs, the overhead of this rank (fit.overhead_bytes, on the head with"
            f" fit.head_bytes) is {max(0, overhead)} bytes"
        )
    return Check(f"memory_{node}", ok, planned, left, sentence)


def check_node(
    node: str,
    seen: Mapping[str, Value],
    rank: Mapping[str, Value] | None,
    object_store_bytes: int | None,
    memory_percent: float = 10.0,
) -> list[Check]:
    """One node beside the plan: memory that is left, Ray's object store, processes that nobody planned.

    *seen* is what rig_status returned there, *rank* the plan for the rank on that node.
    """
    checks = []
    if rank and rank.get("available_bytes") is not None:
        checks.append(check_memory(node, int(seen["memory_available_bytes"]), rank, memory_percent))
    store = seen.get("object_store_bytes")
    if object_store_bytes is not None and store is not None:
        ok = int(store) == object_store_bytes
        sentence = f"Ray's object store on {node} has {store} bytes"
        checks.append(
            Check(
                f"object_store_{node}",
                ok,
                object_store_bytes,
                store,
                f"{sentence}, as planned" if ok else f"{sentence}; the profile says {object_store_bytes}",
            )
        )
    unknown = [str(item) for item in seen.get("unknown_processes") or []]
    sentence = (
        f"{node} runs what the plan does not know: {', '.join(unknown)}" if unknown else f"{node} runs nothing else"
    )
    checks.append(Check(f"processes_{node}", not unknown, [], unknown, sentence))
    return checks


def check_models(answer: Mapping[str, Value], model: str, max_model_len: int | None) -> list[Check]:
    """/v1/models must list the model with the planned context."""
    entries = [entry for entry in answer.get("data") or [] if isinstance(entry, dict)]
    names = [str(entry.get("id")) for entry in entries]
    served = model in names
    checks = [
        Check(
            "model",
            served,
            model,
            ", ".join(names),
            f"The API serves {', '.join(names) or 'nothing'}" + ("" if served else f"; wanted is {model}"),
        )
    ]
    if served and max_model_len is not None and max_model_len > 0:
        seen = entries[names.index(model)].get("max_model_len")
        ok = seen == max_model_len
        sentence = (
            f"Requests may be {seen} tokens long, as planned"
            if ok
            else f"Requests may be {seen} tokens long; the plan says {max_model_len}"
        )
        checks.append(Check("max_model_len", ok, max_model_len, seen, sentence))
    return checks


def check_ray(state: ClusterState | None, expected: Mapping[str, str], problem: str = "") -> Check:
    """Every rank on a living node of its own, with the address of its rail."""
    seen: Value = None if state is None else state.alive
    if state is None:
        sentence = problem
    elif state.ready:
        sentence = f"Ray has {len(state.alive)} nodes alive, each with 1 CPU and 1 GPU at its own rail address"
    else:
        sentence = "; ".join(state.problems)
    return Check("ray_nodes", state is not None and state.ready, sorted(expected.values()), seen, sentence)


def check_ranks(peers: Iterable[str], expected: Mapping[str, str], address: str) -> Check:
    """vLLM's own executor: every rank is connected to where the ranks meet, from the address of its node's rail."""
    seen = sorted(peers)
    missing = [f"{name} ({ip})" for name, ip in expected.items() if ip not in seen]
    strange = [ip for ip in seen if ip not in expected.values()]
    words = []
    if missing:
        there = len(expected) - len(missing)
        words.append(f"{there} of {len(expected)} ranks are connected to {address}; missing: {', '.join(missing)}")
    if strange:
        words.append(f"{', '.join(strange)} is connected to {address} and belongs to none of {', '.join(expected)}")
    sentence = "; ".join(words) or f"{len(expected)} ranks are connected to {address}, each from its own rail address"
    return Check("ranks", not words, sorted(expected.values()), seen, sentence)


def check_completion(text: str | None, tokens: int, seconds: float, problem: str) -> Check:
    """A real answer came back."""
    if problem:
        return Check("completion", False, "an answer", None, f"A completion failed after {seconds:.1f} s: {problem}")
    ok = tokens > 0
    what = f"A completion of {tokens} tokens took {seconds:.1f} s"
    sentence = what if ok else f"{what}; at least one token must come back"
    return Check("completion", ok, "an answer", text, sentence)


def engine_state(unit: str, state: UnitState, phase: str, error: str) -> str:
    """How the engine is that did not answer; its own error only when it died."""
    if state.load == "not-found":
        return f"{unit} does not exist there"
    words = f"{unit} is {state.active}"
    if state.restarts:
        words += f", restarted {state.restarts} times"
    if state.active == "active" and phase:
        words += f", last seen: {phase}"
    if error and (state.restarts or state.active == "failed"):
        words += f"; it died of: {error.rstrip('.')}"
    return words


def unreachable_reason(message: str) -> str:
    """The last thing that ssh said, without the words around it that Ansible adds."""
    lines = [line.strip() for line in message.splitlines() if line.strip()]
    text = lines[-1] if lines else "no reason was given"
    return _AROUND_SSH.sub("", text).rstrip(".")


def summary(
    checks: Sequence[Mapping[str, Value]],
    unreachable: Mapping[str, str],
    nodes: Sequence[str],
    model: str,
) -> str:
    """Everything that is wrong, as one text of sentences; empty when nothing is.

    *unreachable* maps a node, as a person calls it, to the reason why it did not answer.
    """
    failed = [str(check["sentence"]).rstrip(".") for check in checks if not check["ok"]]
    if not failed and not unreachable:
        return ""
    parts = []
    for node, reason in unreachable.items():
        parts.append(f"{node} does not answer over SSH: {unreachable_reason(reason)}")
    if unreachable:
        parts.append(
            f"{model} needs all {len(nodes)} ranks ({', '.join(nodes)}), so it is not served until they are all back"
        )
    parts += failed
    if unreachable:
        parts.append(
            "What to do: power up or reconnect what does not answer, see that `ssh` reaches it, and run"
            " sparkrig.serving.site"
        )
    else:
        parts.append(
            "What to do: `journalctl -u sparkrig-vllm -u sparkrig-ray` on the head has the engine's own words;"
            " sparkrig.serving.site brings it back to the plan"
        )
    return ". ".join(parts) + "."

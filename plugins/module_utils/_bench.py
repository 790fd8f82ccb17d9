# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What is measured of a served model: the points, the text that is asked about, and the figures of a point.

Private to the collection. Nothing here asks anything; ``_bench_client`` does. Names carry their unit.
"""

from __future__ import annotations

import math
import random
import typing as t
from dataclasses import dataclass

from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import total
from ansible_collections.sparkrig.serving.plugins.module_utils._verify import (
    ACCEPTED,
    DRAFT_TOKENS,
    DRAFTS,
    acceptance_by_position,
)

if t.TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import Sample

PROMPT_TOKENS = "vllm:prompt_tokens_total"
GENERATION_TOKENS = "vllm:generation_tokens_total"
REQUESTS = "vllm:request_success_total"
PREFIX_HITS = "vllm:prefix_cache_hits_total"
PREEMPTIONS = "vllm:num_preemptions_total"
PREFILL_SECONDS = "vllm:request_prefill_time_seconds_sum"

_ADJECTIVES = ("early", "late", "narrow", "steep", "quiet", "bright", "heavy", "distant", "hollow", "patient", "uneven")
_NOUNS = ("harbour", "orchard", "bridge", "ledger", "engine", "valley", "library", "market", "tower", "canal", "mill")
_VERBS = ("measured", "repaired", "described", "crossed", "painted", "counted", "flooded", "sold", "opened", "weighed")
_PEOPLE = ("surveyor", "baker", "captain", "teacher", "clerk", "printer", "miller", "pilot", "nurse", "mason", "tailor")
_LINKS = ("because", "although", "while", "before", "after", "unless", "since", "until", "whenever")


@dataclass(frozen=True)
class Point:
    """One measurement: so many requests of one length, so many of them at once."""

    prompt_tokens: int
    concurrency: int
    output_tokens: int
    requests: int
    warmup: int

    @property
    def words(self) -> str:
        """For a person."""
        return f"{self.prompt_tokens} tokens in, {self.output_tokens} out, {self.concurrency} at once"


def points(bench: Mapping[str, t.Any]) -> list[Point]:
    """The measurements that a profile's ``bench`` asks for, short prompts first.

    A length is warmed up once. As many requests are sent as have to be under way at the same time, at least.
    """
    found: list[Point] = []
    for length in sorted(set(bench["prompt_tokens"])):
        for number, concurrency in enumerate(sorted(set(bench["concurrency"]))):
            warmup = int(bench["warmup"]) if number == 0 else 0
            requests = max(int(bench["requests"]), int(concurrency))
            found.append(Point(int(length), int(concurrency), int(bench["output_tokens"]), requests, warmup))
    return found


def too_long(point: Point, max_model_len: int | None) -> str:
    """Why the point cannot be measured on what is served; empty when it can."""
    wanted = point.prompt_tokens + point.output_tokens
    if max_model_len is None or wanted <= max_model_len:
        return ""
    return (
        f"{point.prompt_tokens} tokens in and {point.output_tokens} out are {wanted}; the engine takes requests of"
        f" {max_model_len}"
    )


def passage(seed: int, words: int) -> str:
    """A text of at least *words* words that reads like language and begins like no other.

    Random tokens would do for the time to the first one, but no draft is ever right about them. The beginning is the
    seed itself, so that no prefix of it can be in the engine's cache.
    """
    source = random.Random(seed)
    parts = [f"{seed:032x} is the number of this report."]
    count = 7
    while count < words:
        sentence = (
            f"The {source.choice(_ADJECTIVES)} {source.choice(_NOUNS)} was {source.choice(_VERBS)} by the"
            f" {source.choice(_PEOPLE)} {source.choice(_LINKS)} the {source.choice(_NOUNS)} of the"
            f" {source.choice(_ADJECTIVES)} {source.choice(_PEOPLE)} had been {source.choice(_VERBS)} in"
            f" {source.randint(1500, 1999)}."
        )
        parts.append(sentence)
        count += sentence.count(" ") + 1
    return " ".join(parts)


@dataclass(frozen=True)
class Answered:
    """One streamed request. ``chunks_s`` are the times at which tokens came, all on one clock that only grows."""

    begin_s: float
    chunks_s: tuple[float, ...]
    prompt_tokens: int
    output_tokens: int

    @property
    def ttft_s(self) -> float:
        """From the request to the first token."""
        return self.chunks_s[0] - self.begin_s

    @property
    def tpot_s(self) -> float | None:
        """For each token after the first; None when there is only one."""
        return (self.chunks_s[-1] - self.chunks_s[0]) / (self.output_tokens - 1) if self.output_tokens > 1 else None


def answered(begin_s: float, events: Sequence[tuple[float, Mapping[str, t.Any]]]) -> Answered:
    """The request from its events; ValueError when something is missing in them."""
    chunks = tuple(when for when, content in events if content.get("choices"))
    usage = next((content["usage"] for _when, content in reversed(events) if content.get("usage")), None)
    if not chunks:
        raise ValueError("the answer has no token")
    if usage is None:
        raise ValueError("the answer does not tell its usage")
    return Answered(begin_s, chunks, int(usage["prompt_tokens"]), int(usage["completion_tokens"]))


def percentile(ordered: Sequence[float], share: float) -> float:
    """The number below which *share* of the ordered numbers lie, straight lines between neighbours."""
    place = (len(ordered) - 1) * share
    low = math.floor(place)
    high = min(low + 1, len(ordered) - 1)
    return ordered[low] + (ordered[high] - ordered[low]) * (place - low)


def spread(numbers: Sequence[float]) -> dict[str, float] | None:
    """How numbers are spread; None without any."""
    if not numbers:
        return None
    ordered = sorted(numbers)
    return {
        "mean": sum(ordered) / len(ordered),
        "min": ordered[0],
        "p50": percentile(ordered, 0.50),
        "p90": percentile(ordered, 0.90),
        "p99": percentile(ordered, 0.99),
        "max": ordered[-1],
    }


def _grown(before: Sequence[Sample], after: Sequence[Sample], name: str) -> float | None:
    last = total(after, name)
    return None if last is None else last - (total(before, name) or 0.0)


def _whole(number: float | None) -> int | None:
    return None if number is None else int(number)


def engine_figures(before: Sequence[Sample], after: Sequence[Sample], requests: int) -> dict[str, t.Any]:
    """What the engine counted between two looks at /metrics; null what it does not tell.

    ``foreign_requests`` are those of others meanwhile, such as the watchdog's completion of one token.
    """
    prompt, seconds = _grown(before, after, PROMPT_TOKENS), _grown(before, after, PREFILL_SECONDS)
    finished = _grown(before, after, REQUESTS)
    return {
        "prompt_tokens": _whole(prompt),
        "generation_tokens": _whole(_grown(before, after, GENERATION_TOKENS)),
        "requests": _whole(finished),
        "foreign_requests": None if finished is None else int(finished) - requests,
        "prefix_cache_hit_tokens": _whole(_grown(before, after, PREFIX_HITS)),
        "preemptions": _whole(_grown(before, after, PREEMPTIONS)),
        "prefill_tokens_per_s": prompt / seconds if prompt and seconds else None,
        "drafts": _whole(_grown(before, after, DRAFTS)),
        "draft_tokens": _whole(_grown(before, after, DRAFT_TOKENS)),
        "accepted_tokens": _whole(_grown(before, after, ACCEPTED)),
        "acceptance": [round(share, 4) for share in acceptance_by_position(before, after)],
    }


def figures(
    point: Point, answers: Sequence[Answered], seconds: float, before: Sequence[Sample], after: Sequence[Sample]
) -> dict[str, t.Any]:
    """All figures of a point: what the client saw, and what the engine counted meanwhile."""
    engine = engine_figures(before, after, len(answers))
    asked = sum(answer.prompt_tokens for answer in answers)
    came = sum(answer.output_tokens for answer in answers)
    tpot = [answer.tpot_s for answer in answers if answer.tpot_s is not None]
    gaps = [later - earlier for answer in answers for earlier, later in zip(answer.chunks_s, answer.chunks_s[1:])]
    return {
        "prompt_tokens": point.prompt_tokens,
        "concurrency": point.concurrency,
        "output_tokens": point.output_tokens,
        "requests": len(answers),
        "seconds": seconds,
        "total_prompt_tokens": asked,
        "total_output_tokens": came,
        "ttft_s": spread([answer.ttft_s for answer in answers]),
        "tpot_s": spread(tpot),
        "chunk_gap_s": spread(gaps),
        "request_s": spread([answer.chunks_s[-1] - answer.begin_s for answer in answers]),
        "prefill_tokens_per_s": spread([answer.prompt_tokens / answer.ttft_s for answer in answers]),
        "decode_tokens_per_s": spread([1 / each for each in tpot if each > 0]),
        "output_tokens_per_s": came / seconds,
        "engine": engine,
        "problems": _problems(engine, asked, came),
    }


def _problems(engine: Mapping[str, t.Any], asked: int, came: int) -> list[str]:
    """Why the figures are not of these requests alone, in sentences."""
    found = []
    if engine["foreign_requests"]:
        found.append(f"{engine['foreign_requests']} requests of others were answered meanwhile")
    else:
        for words, counted, ours in (
            ("in", engine["prompt_tokens"], asked),
            ("out", engine["generation_tokens"], came),
        ):
            if counted is not None and counted != ours:
                found.append(f"The engine counted {counted} tokens {words}, the client {ours}")
    if engine["prefix_cache_hit_tokens"]:
        found.append(f"{engine['prefix_cache_hit_tokens']} tokens came out of the prefix cache instead of a prefill")
    if engine["preemptions"]:
        found.append(f"{engine['preemptions']} times a request lost its place in the KV cache and began anew")
    return found


def measured_sentence(point: Mapping[str, t.Any]) -> str:
    """A point in one line."""
    decode = point["decode_tokens_per_s"]
    drafted = " / ".join(f"{share:.2f}" for share in point["engine"]["acceptance"])
    return (
        f"{point['prompt_tokens']} tokens in, {point['output_tokens']} out, {point['concurrency']} at once:"
        f" first token after {point['ttft_s']['p50']:.2f} s, {point['prefill_tokens_per_s']['p50']:.0f} tokens/s of"
        f" prefill, {decode['p50'] if decode else 0.0:.2f} tokens/s for each user,"
        f" {point['output_tokens_per_s']:.2f} together" + (f", drafts kept by position {drafted}" if drafted else "")
    )


@dataclass(frozen=True)
class GpuSample:
    """One look at the GPUs of a node: their power together, and the clock of the slowest."""

    epoch_s: float
    power_watts: float | None
    sm_clock_mhz: int | None


def energy_joules(samples: Sequence[GpuSample], begin_s: float, end_s: float) -> float | None:
    """Power over time between two moments, straight lines between the looks; None where nothing tells the power."""
    known = sorted((one.epoch_s, one.power_watts) for one in samples if one.power_watts is not None)
    if not known:
        return None

    def at(when: float) -> float:
        """The power at a moment; before the first and after the last look it is that of the look."""
        if when <= known[0][0]:
            return known[0][1]
        for (left_s, left), (right_s, right) in zip(known, known[1:]):
            if when <= right_s:
                return left + (right - left) * (when - left_s) / (right_s - left_s) if right_s > left_s else right
        return known[-1][1]

    moments = [begin_s, *(when for when, _watts in known if begin_s < when < end_s), end_s]
    return sum((at(left) + at(right)) / 2 * (right - left) for left, right in zip(moments, moments[1:]))


def gpu_figures(
    point: Mapping[str, t.Any], looks: Mapping[str, Sequence[Mapping[str, t.Any]]]
) -> dict[str, t.Any] | None:
    """Energy of all nodes and clocks of the slowest GPU during a point; None where no node has a GPU.

    *looks* has for each node what module gpu_watch returned. Energy is null when one of the nodes does not tell it.
    """
    begin_s = float(point["began_epoch_s"])
    end_s = begin_s + float(point["seconds"])
    nodes = {node: [GpuSample(**one) for one in samples] for node, samples in looks.items() if samples}
    if not nodes:
        return None
    energies = [energy_joules(samples, begin_s, end_s) for samples in nodes.values()]
    clocks = sorted(
        one.sm_clock_mhz
        for samples in nodes.values()
        for one in samples
        if one.sm_clock_mhz is not None and begin_s <= one.epoch_s <= end_s
    )
    energy = None if None in energies else sum(each for each in energies if each is not None)
    return {
        "nodes": sorted(nodes),
        "energy_joules": energy,
        "joules_per_output_token": None if energy is None else energy / point["total_output_tokens"],
        "power_watts": None if energy is None else energy / (end_s - begin_s),
        "sm_clock_mhz": {"min": clocks[0], "median": clocks[len(clocks) // 2], "max": clocks[-1]} if clocks else None,
    }

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import typing as t

import pytest
from hypothesis import given
from hypothesis import strategies as st

from ansible_collections.sparkrig.serving.plugins.module_utils._bench import (
    Answered,
    GpuSample,
    Point,
    answered,
    energy_joules,
    engine_figures,
    figures,
    gpu_figures,
    measured_sentence,
    passage,
    percentile,
    points,
    spread,
    too_long,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import parse_metrics

BENCH = {"prompt_tokens": [512, 64], "concurrency": [4, 1], "output_tokens": 16, "requests": 2, "warmup": 1}
POINT = Point(64, 2, 5, 2, 0)


def test_every_length_is_measured_with_every_number_at_once() -> None:
    found = points(BENCH)
    assert [(point.prompt_tokens, point.concurrency) for point in found] == [(64, 1), (64, 4), (512, 1), (512, 4)]
    # Four at once need four requests, and a length that is warm stays warm.
    assert [(point.requests, point.warmup) for point in found] == [(2, 1), (4, 0), (2, 1), (4, 0)]


def test_a_point_that_the_engine_would_refuse_is_known_before() -> None:
    assert too_long(POINT, 69) == "" == too_long(POINT, None)
    assert too_long(POINT, 68) == "64 tokens in and 5 out are 69; the engine takes requests of 68"


@given(seed=st.integers(0, 2**128 - 1), words=st.integers(1, 500))
def test_a_passage_is_long_enough_and_its_beginning_is_its_own(seed: int, words: int) -> None:
    text = passage(seed, words)
    assert len(text.split()) >= words
    assert text.startswith(f"{seed:032x} ")
    assert text == passage(seed, words)


def chunk(content: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
    return {"choices": [{"text": "a"}], **(content or {})}


def test_a_request_is_read_from_its_events() -> None:
    usage = {"prompt_tokens": 64, "completion_tokens": 5}
    events = [(11.0, chunk()), (11.5, chunk()), (12.0, chunk()), (12.1, {"choices": [], "usage": usage})]
    one = answered(10.0, events)
    assert (one.ttft_s, one.tpot_s) == (1.0, 0.25)
    with pytest.raises(ValueError, match="no token"):
        answered(10.0, events[-1:])
    with pytest.raises(ValueError, match="usage"):
        answered(10.0, events[:-1])


def test_one_token_has_no_time_between_tokens() -> None:
    assert Answered(0.0, (1.0,), 8, 1).tpot_s is None


@given(st.lists(st.floats(0, 1e6), min_size=1))
def test_percentiles_lie_between_the_ends_and_in_order(numbers: list[float]) -> None:
    found = spread(numbers)
    assert found is not None
    assert found["min"] <= found["p50"] <= found["p90"] <= found["p99"] <= found["max"]
    assert percentile(sorted(numbers), 0) == min(numbers)
    assert percentile(sorted(numbers), 1) == max(numbers)


def test_percentiles_by_hand() -> None:
    assert spread([4.0, 1.0, 2.0, 3.0]) == pytest.approx(
        {"mean": 2.5, "min": 1.0, "p50": 2.5, "p90": 3.7, "p99": 3.97, "max": 4.0}
    )
    assert spread([]) is None


def counters(scale: float, hits: float = 0.0) -> str:
    return f"""
vllm:prompt_tokens_total{{engine="0"}} {128 * scale}
vllm:generation_tokens_total{{engine="0"}} {10 * scale}
vllm:request_success_total{{engine="0",finished_reason="length"}} {2 * scale}
vllm:request_success_total{{engine="0",finished_reason="stop"}} 0.0
vllm:prefix_cache_hits_total{{engine="0"}} {hits}
vllm:num_preemptions_total{{engine="0"}} 0.0
vllm:request_prefill_time_seconds_sum{{engine="0"}} {0.5 * scale}
vllm:spec_decode_num_drafts_total{{engine="0"}} {4 * scale}
vllm:spec_decode_num_draft_tokens_total{{engine="0"}} {8 * scale}
vllm:spec_decode_num_accepted_tokens_total{{engine="0"}} {4 * scale}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="0"}} {3 * scale}
vllm:spec_decode_num_accepted_tokens_per_pos_total{{engine="0",position="1"}} {1 * scale}
"""


BEFORE, AFTER = parse_metrics(counters(10)), parse_metrics(counters(11))
ANSWERS = [Answered(0.0, (1.0, 2.0, 3.0), 64, 5), Answered(0.0, (2.0, 4.0), 64, 5)]


def test_the_figures_of_a_point() -> None:
    found = figures(POINT, ANSWERS, 4.0, BEFORE, AFTER)
    assert (found["total_prompt_tokens"], found["total_output_tokens"], found["output_tokens_per_s"]) == (128, 10, 2.5)
    assert found["ttft_s"]["p50"] == 1.5
    assert found["tpot_s"]["mean"] == 0.5
    assert found["decode_tokens_per_s"]["mean"] == 2.0
    assert found["prefill_tokens_per_s"]["max"] == 64.0
    assert found["chunk_gap_s"]["max"] == 2.0
    assert found["request_s"]["max"] == 4.0
    assert found["engine"] == {
        "prompt_tokens": 128,
        "generation_tokens": 10,
        "requests": 2,
        "foreign_requests": 0,
        "prefix_cache_hit_tokens": 0,
        "preemptions": 0,
        "prefill_tokens_per_s": 256.0,
        "drafts": 4,
        "draft_tokens": 8,
        "accepted_tokens": 4,
        "acceptance": [0.75, 0.25],
    }
    assert found["problems"] == []
    assert measured_sentence(found) == (
        "64 tokens in, 5 out, 2 at once: first token after 1.50 s, 48 tokens/s of prefill, 2.00 tokens/s for each user,"
        " 2.50 together, drafts kept by position 0.75 / 0.25"
    )


def test_what_is_not_of_these_requests_is_said() -> None:
    one = figures(POINT, ANSWERS[:1], 4.0, BEFORE, parse_metrics(counters(11, hits=16)))
    assert one["problems"] == [
        "1 requests of others were answered meanwhile",
        "16 tokens came out of the prefix cache instead of a prefill",
    ]
    # As many requests, but not as many tokens: the engine and the client disagree.
    short = [ANSWERS[0], Answered(0.0, (2.0, 4.0), 60, 4)]
    assert figures(POINT, short, 4.0, BEFORE, AFTER)["problems"] == [
        "The engine counted 128 tokens in, the client 124",
        "The engine counted 10 tokens out, the client 9",
    ]


def test_an_engine_that_tells_nothing_is_no_problem() -> None:
    assert {key: value for key, value in engine_figures([], [], 2).items() if value is not None} == {"acceptance": []}
    found = figures(POINT, ANSWERS, 4.0, [], [])
    assert found["problems"] == []
    assert found["engine"]["requests"] is None


def test_energy_is_power_over_time() -> None:
    steady = [GpuSample(float(when), 50.0, 2400) for when in range(0, 20, 2)]
    assert energy_joules(steady, 3.0, 7.0) == pytest.approx(200.0)
    rising = [GpuSample(0.0, 0.0, None), GpuSample(10.0, 100.0, None)]
    assert energy_joules(rising, 0.0, 10.0) == pytest.approx(500.0)
    assert energy_joules(rising, 4.0, 6.0) == pytest.approx(100.0)
    # Before the first look and after the last it is as it was then.
    assert energy_joules(rising, 10.0, 12.0) == pytest.approx(200.0)
    assert energy_joules([GpuSample(0.0, None, 2400)], 0.0, 1.0) is None


def test_the_gpus_of_a_point() -> None:
    point = {"began_epoch_s": 100.0, "seconds": 10.0, "total_output_tokens": 50}
    looks = [{"epoch_s": 99.0 + 2 * n, "power_watts": 40.0, "sm_clock_mhz": 2400 - n} for n in range(8)]
    found = gpu_figures(point, {"spark1": looks, "spark2": looks})
    assert found is not None
    assert found["nodes"] == ["spark1", "spark2"]
    assert found["energy_joules"] == pytest.approx(800.0)
    assert found["joules_per_output_token"] == pytest.approx(16.0)
    assert found["power_watts"] == pytest.approx(80.0)
    # The looks at 101, 103, ... 109 s.
    assert found["sm_clock_mhz"] == {"min": 2395, "median": 2397, "max": 2399}
    assert gpu_figures(point, {"spark1": [], "spark2": []}) is None
    untold = gpu_figures(point, {"spark1": looks, "spark2": [{**looks[0], "power_watts": None}]})
    assert untold is not None
    assert untold["energy_joules"] is None

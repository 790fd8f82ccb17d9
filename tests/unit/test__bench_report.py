# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
from __future__ import annotations

import json
import re
import typing as t
from html.parser import HTMLParser

import pytest

from ansible_collections.sparkrig.serving.plugins.filter.bench import bench_points, bench_report
from ansible_collections.sparkrig.serving.plugins.module_utils._bench import Answered, Point, figures
from ansible_collections.sparkrig.serving.plugins.module_utils._bench_report import _top, beside_expected, beside_last
from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import parse_metrics

EXPECT = {
    "tokens_per_s": [14.5, 15.2],
    "prefill_tokens_per_s": [450.0, 512.0],
    "acceptance": [0.9, 0.5],
    "source": "A log & a post.",
}


def counters(drafts: int) -> str:
    place = "vllm:spec_decode_num_accepted_tokens_per_pos_total"
    return (
        f"vllm:spec_decode_num_drafts_total {drafts}\n"
        f'{place}{{position="0"}} {drafts * 0.75}\n{place}{{position="1"}} {drafts * 0.5}\n'
    )


def point(length: int, at_once: int, ttft_s: float, tpot_s: float) -> dict[str, t.Any]:
    """A point whose requests are all alike."""
    answers = [Answered(0.0, (ttft_s, ttft_s + 10 * tpot_s), length, 11) for _number in range(at_once)]
    before, after = parse_metrics(counters(0)), parse_metrics(counters(8))
    shape = Point(length, at_once, 11, at_once, 0)
    return {**figures(shape, answers, ttft_s + 10 * tpot_s, before, after), "began_epoch_s": 1000.0}


POINTS = [point(1024, 1, 2.0, 0.0625), point(1024, 2, 4.0, 0.1), point(16384, 1, 32.0, 0.08)]


def test_next_to_what_is_expected() -> None:
    rows = beside_expected(POINTS, EXPECT)
    assert [(row["name"], row["seen"], row["ratio"]) for row in rows] == [
        # 16 tokens a second after the short prompt are more than 15.2, and prefill of the long one is inside.
        ("decode, one user", pytest.approx(16.0), 1.053),
        ("prefill, one user", pytest.approx(512.0), 1.0),
        ("drafts kept at position 1", 0.75, 0.833),
        ("drafts kept at position 2", 0.5, 1.0),
    ]
    assert beside_expected(POINTS[1:2], {"tokens_per_s": [1.0, 2.0]}) == []
    assert beside_expected([], {"acceptance": [0.9]})[0]["ratio"] is None


def test_next_to_the_last_run() -> None:
    last = {"date": "20261121T000000Z", "points": [point(1024, 1, 1.0, 0.0625), point(2048, 1, 1.0, 0.0625)]}
    rows = {row["name"]: row for row in beside_last(POINTS, last)}
    assert {(row["prompt_tokens"], row["concurrency"]) for row in rows.values()} == {(1024, 1)}
    assert (rows["time to first token"]["ratio"], rows["time to first token"]["verdict"]) == (2.0, "worse")
    assert (rows["prefill of a request"]["ratio"], rows["prefill of a request"]["verdict"]) == (0.5, "worse")
    assert rows["decode of a request"]["verdict"] == "same"
    assert beside_last(POINTS, None) == []
    better = {row["name"]: row["verdict"] for row in beside_last([point(1024, 1, 1.0, 0.0625)], {"points": POINTS})}
    assert better["time to first token"] == "better"


class Page(HTMLParser):
    """What a page holds, and whether every element that is opened is closed."""

    def __init__(self, text: str) -> None:
        super().__init__()
        self.open: list[str] = []
        self.seen: list[str] = []
        self.words: list[str] = []
        self.feed(text)
        self.close()

    def handle_starttag(self, tag: str, attrs: list[tuple[str, str | None]]) -> None:
        self.seen.append(tag)
        if tag not in ("meta", "path", "rect", "circle", "polyline", "br"):
            self.open.append(tag)

    def handle_endtag(self, tag: str) -> None:
        if tag not in ("path", "rect", "circle", "polyline"):
            assert self.open.pop() == tag

    def handle_data(self, data: str) -> None:
        self.words.append(data)


def about(**more: t.Any) -> dict[str, t.Any]:
    return {
        "profile": "glm52_128k_dcp4_mtp3",
        "date": "20261122T044400Z",
        "nodes": ["spark1", "spark2"],
        "plan_sha256": "ab" * 32,
        "runtime": "1234567890ab",
        "expect": EXPECT,
        **more,
    }


def results(points: list[dict[str, t.Any]]) -> list[dict[str, t.Any]]:
    left_out = {"point": None, "left_out": True, "sentence": "Left out: too long", "version": ""}
    return [*({"point": one, "left_out": False, "version": "0.32.0", "sentence": ""} for one in points), left_out]


def test_the_document_says_what_was_measured() -> None:
    report = bench_report(results(POINTS), about())
    document = json.loads(json.dumps(report["document"]))
    assert document["engine_version"] == "0.32.0"
    assert document["plan_sha256"] == "ab" * 32
    assert document["left_out"] == ["Left out: too long"]
    assert document["last"] is None
    assert document["expected_source"] == "A log & a post."
    assert "expect" not in document
    assert [one["gpu"] for one in document["points"]] == [None] * 3
    assert document["gpu_sentences"] == ["No GPU was watched: the profile's device is a CPU."]
    # Every name of a figure tells its unit.
    assert set(document["units"]) == {
        "*_s", "*_tokens_per_s", "*_tokens", "*_joules", "*_mhz", "*_watts", "acceptance"
    }  # fmt: skip


def test_the_lines() -> None:
    lines = bench_report(
        results(POINTS), about(), {"date": "20261121T000000Z", "points": [point(1024, 1, 1.0, 0.0625)]}
    )
    text = "\n".join(lines["lines"])
    assert "decode, one user: 16.0, expected 14.5 to 15.2 tokens/s (x1.05)" in text
    assert "Beside the run of 20261121T000000Z: 3 figures differ by more than 5 %" in text
    assert "1024 tokens x 1, time to first token: 2.00 after 1.00 s (x2.00, worse)" in text
    assert text.endswith("Left out: too long")


def test_the_page_stands_alone() -> None:
    watches = {
        "spark1": {
            "samples": [{"epoch_s": 1001.0, "power_watts": 60.0, "sm_clock_mhz": 2400}],
            "sentence": "NVIDIA GB10.",
        },
        "spark2": {
            "samples": [{"epoch_s": 1001.0, "power_watts": None, "sm_clock_mhz": None}],
            "sentence": "NVIDIA GB10.",
        },
        "spark3": {},
    }
    last = bench_report(results(POINTS), about(date="20261121T000000Z"))["document"]
    report = bench_report(results(POINTS), about(), last, watches)
    page = Page(report["html"])
    assert page.open == []
    assert page.seen.count("svg") == 5
    assert "script" not in page.seen and "link" not in page.seen and "img" not in page.seen
    assert not re.search(r"https?://", report["html"])
    words = " ".join(page.words)
    assert "A log & a post." in words
    assert "spark1: NVIDIA GB10." in words
    assert "stroke-dasharray" in report["html"]
    assert report["document"]["points"][0]["gpu"]["energy_joules"] is None


def test_a_point_of_one_request_and_no_draft_has_a_page() -> None:
    lonely = {**point(64, 1, 1.0, 0.0), "tpot_s": None, "decode_tokens_per_s": None}
    lonely["engine"] = {**lonely["engine"], "drafts": 0, "acceptance": []}
    report = bench_report([{"point": lonely}], about(expect={}))
    assert Page(report["html"]).seen.count("svg") == 3
    assert report["document"]["expected"] == []


def test_problems_are_shown() -> None:
    odd = {**POINTS[0], "problems": ["2 requests of others were answered meanwhile"]}
    report = bench_report(results([odd]), about())
    assert "1024 tokens x 1: 2 requests of others were answered meanwhile" in report["lines"]
    assert "2 requests of others were answered meanwhile." in report["html"]


@pytest.mark.parametrize(("highest", "top"), [(0.07, 0.08), (1.0, 1.0), (1.1, 1.5), (16, 20), (222.6, 300), (9.9, 10)])
def test_axes_end_at_round_numbers(highest: float, top: float) -> None:
    assert _top(highest) == pytest.approx(top)


def test_points_have_words() -> None:
    bench = {"prompt_tokens": [64], "concurrency": [2], "output_tokens": 16, "requests": 1, "warmup": 0}
    (one,) = bench_points(bench)
    assert one["words"] == "64 tokens in, 16 out, 2 at once"
    assert one["requests"] == 2

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What the watchdog decides."""

from __future__ import annotations

import typing as t
from pathlib import Path

import pytest

from ansible_collections.sparkrig.serving.plugins.module_utils import _watchdog_program as program
from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import parse_metrics
from ansible_collections.sparkrig.serving.plugins.module_utils._watchdog import (
    Cluster,
    LoadMark,
    Settings,
    cluster_wait,
    down_sentence,
    ending,
    fingerprint,
    hangs,
    load_verdict,
    recent,
)

Marks = t.Optional[tuple[t.Optional[float], ...]]


@pytest.mark.parametrize(
    ("seen", "verdict"),
    [
        ([], False),
        ([(0.0, (1.0,)), (119.0, (1.0,))], False),
        ([(0.0, (1.0,)), (120.0, (1.0,))], True),
        # A long prefill: no token is counted, but something moves.
        ([(0.0, (1.0,)), (100.0, (1.1,)), (219.0, (1.1,))], False),
        ([(0.0, (1.0,)), (100.0, (1.1,)), (220.0, (1.1,))], True),
        # An API that does not answer is no sign of life.
        ([(0.0, (1.0,)), (60.0, None), (121.0, None)], True),
        ([(0.0, None), (60.0, (1.0,)), (121.0, (1.0,))], False),
    ],
)
def test_a_hang_is_when_nothing_moves(seen: list[tuple[float, Marks]], verdict: bool) -> None:
    assert hangs(seen, 120.0) is verdict


def test_the_kv_cache_moves_during_a_prefill() -> None:
    def at(usage: float) -> Marks:
        text = f'vllm:kv_cache_usage_perc{{engine="0"}} {usage}\nvllm:prompt_tokens_total{{engine="0"}} 7\n'
        return fingerprint(parse_metrics(text))

    assert at(0.1) == at(0.1)
    assert at(0.1) != at(0.2)


def mark(**changes: t.Any) -> LoadMark:
    values: dict[str, t.Any] = {
        "invocation": "a",
        "when": 1000.0,
        "bytes_read": 5,
        "log_bytes": 7,
        "phase": "loading weights",
    }
    return LoadMark(**{**values, **changes})


@pytest.mark.parametrize(
    ("now", "age", "words"),
    [
        (mark(when=1599.0), 700.0, ""),
        (mark(when=1601.0), 700.0, "The engine stands still while loading: no byte read and no line logged for 601 s"),
        # Slow is not dead.
        (mark(when=1601.0, bytes_read=6), 700.0, ""),
        (mark(when=1601.0, log_bytes=8), 700.0, ""),
        (mark(when=1601.0, phase="weights loaded"), 700.0, ""),
        (mark(when=1601.0, invocation="b"), 700.0, ""),
        (mark(when=1601.0, bytes_read=6), 1801.0, "The engine did not come up within 1800 s"),
    ],
)
def test_a_load_that_stands_still_is_told_from_a_slow_one(now: LoadMark, age: float, words: str) -> None:
    verdict = load_verdict(now, mark(), age, 600.0, 1800.0)
    assert verdict.startswith(words)
    assert bool(verdict) == bool(words)


def test_only_the_last_hour_counts() -> None:
    assert recent([0.0, 100.0, 3000.0, 9000.0], 3650.0) == [100.0, 3000.0]


@pytest.mark.parametrize(
    ("asked", "reason", "error", "expected"),
    [
        (True, "", "RuntimeError: x", ""),
        (True, "The engine hangs", "", "The engine hangs"),
        (False, "", "RuntimeError: x.", "RuntimeError: x (it was killed by signal KILL, it had got as far as: API)"),
        (
            False,
            "",
            "",
            "The engine ended without an error of its own (it was killed by signal KILL, it had got as far",
        ),
    ],
)
def test_why_it_ended(asked: bool, reason: str, error: str, expected: str) -> None:
    sentence = ending("signal", "killed", "KILL", asked, reason, error, "API")
    assert sentence.startswith(expected)
    assert bool(sentence) == bool(expected)


def test_out_of_memory_is_named() -> None:
    assert "the kernel killed it because the node was out of memory" in ending(
        "oom-kill", "killed", "KILL", False, "", "", ""
    )


def test_down_says_why_and_what_to_do() -> None:
    assert down_sentence("RuntimeError: x.", 6) == (
        "Down, after 6 starts within an hour none is tried any more. The last one ended because: RuntimeError: x."
        " What to do: mend that, then run sparkrig.serving.restart."
    )


@pytest.mark.parametrize(
    ("free", "text", "only_gpus"),
    [
        (None, "nobody answers", False),
        ({"10.0.0.1": 1.0}, "waiting for b (10.0.0.2) to join Ray", False),
        ({"10.0.0.1": 1.0, "10.0.0.2": 0.0}, "Ray counts the GPU of b (10.0.0.2) as taken", True),
        ({"10.0.0.1": 1.0, "10.0.0.2": 1.0}, "", False),
    ],
)
def test_what_a_start_waits_for(free: dict[str, float] | None, text: str, only_gpus: bool) -> None:
    cluster = None if free is None else Cluster(free)
    assert cluster_wait(cluster, {"a": "10.0.0.1", "b": "10.0.0.2"}, "nobody answers") == (text, only_gpus)


def test_settings_are_checked() -> None:
    assert Settings.of({"url": "u", "model": "m", "log_globs": ["x"]}).log_globs == ("x",)
    with pytest.raises(ValueError, match="the key 'nodez', which is none of its own"):
        Settings.of({"url": "u", "model": "m", "nodez": {}})


@pytest.mark.parametrize(
    ("state", "jobs", "written"),
    [
        ("failed", "", True),
        ("failed", " 912 sparkrig-ray.service start running\n", True),
        # It did not stop in time, but is started anew as soon as Ray is there.
        ("failed", " 914 sparkrig-vllm.service start waiting\n", False),
        ("activating", "", False),
    ],
)
def test_it_is_down_only_when_systemd_gave_up(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, state: str, jobs: str, written: bool
) -> None:
    monkeypatch.setattr(program, "STATE", str(tmp_path))
    monkeypatch.setattr(
        program, "systemctl", lambda verb, *_words: jobs if verb == "list-jobs" else f"ActiveState={state}\n"
    )
    assert program.down() == 0
    assert (tmp_path / "last_failure.json").exists() is written

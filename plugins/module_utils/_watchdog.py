# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What a watchdog decides: is the engine well, busy, loading, or does it hang; and what is written down about it.

Private to the collection. Nothing here does anything; ``_watchdog_program`` on the head does.
"""

from __future__ import annotations

import typing as t
from dataclasses import dataclass, field

from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import total

if t.TYPE_CHECKING:
    from collections.abc import Mapping, Sequence

    from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import Sample

HOUR_S = 3600.0

# What moves while the engine works, even inside one long prefill: tokens are counted at its end only, but the KV
# cache fills with every chunk.
MOVING = (
    "vllm:prompt_tokens_total",
    "vllm:generation_tokens_total",
    "vllm:iteration_tokens_total_sum",
    "vllm:iteration_tokens_total_count",
    "vllm:kv_cache_usage_perc",
    "vllm:request_success_total",
    "vllm:num_preemptions_total",
    "vllm:spec_decode_num_drafts_total",
)


@dataclass(frozen=True)
class Settings:
    """What the program on the head is told, from /etc/sparkrig/watchdog.json."""

    url: str
    model: str
    nodes: Mapping[str, str] = field(default_factory=dict)
    ray_address: str = ""
    python: str = "/opt/sparkrig/current/bin/python"
    nodes_s: float = 600.0
    gpu_s: float = 20.0
    memory_s: float = 120.0
    memory_bytes: int = 0
    serve_s: float = 1800.0
    stall_s: float = 600.0
    completion_s: float = 120.0
    hang_s: float = 120.0
    log_globs: tuple[str, ...] = ()

    @classmethod
    def of(cls, content: Mapping[str, t.Any]) -> Settings:
        """From the parsed file; ValueError for a key that is none."""
        unknown = sorted(set(content) - set(cls.__dataclass_fields__))
        if unknown:
            raise ValueError(f"watchdog.json has the key '{unknown[0]}', which is none of its own")
        values = dict(content)
        values["log_globs"] = tuple(values.get("log_globs", ()))
        return cls(**values)


def fingerprint(samples: Sequence[Sample]) -> tuple[float | None, ...]:
    """The counters that move while the engine works."""
    return tuple(total(samples, name) for name in MOVING)


def hangs(seen: Sequence[tuple[float, tuple[float | None, ...] | None]], hang_s: float) -> bool:
    """Whether nothing moved for *hang_s* seconds.

    *seen* are (time, fingerprint) in the order of time, while a completion was waited for; the fingerprint is None when
    the API did not answer, which is no sign of life either.
    """
    if not seen:
        return False
    last_move = seen[0][0]
    last = seen[0][1]
    for when, marks in seen[1:]:
        if marks is not None and marks != last:
            last_move, last = when, marks
    return seen[-1][0] - last_move >= hang_s


@dataclass(frozen=True)
class LoadMark:
    """How far a loading engine has come, in numbers that only grow while it is alive."""

    invocation: str
    when: float
    bytes_read: int
    log_bytes: int
    phase: str

    def moved_on(self, before: LoadMark) -> bool:
        """Whether something happened since *before*."""
        return (
            self.invocation != before.invocation
            or self.phase != before.phase
            or self.bytes_read > before.bytes_read
            or self.log_bytes > before.log_bytes
        )


def load_verdict(now: LoadMark, before: LoadMark | None, age_s: float, stall_s: float, serve_s: float) -> str:
    """Why a loading engine has to be stopped, as one sentence; empty while it may go on.

    *before* is the mark of the last time that something moved.
    """
    where = now.phase or "no phase is known yet"
    if age_s > serve_s:
        return f"The engine did not come up within {serve_s:.0f} s; it got as far as: {where}"
    if before is not None and not now.moved_on(before) and now.when - before.when > stall_s:
        return (
            f"The engine stands still while loading: no byte read and no line logged for {now.when - before.when:.0f} s"
            f" (at most {stall_s:.0f} s); it got as far as: {where}"
        )
    return ""


def recent(times: Sequence[float], now: float, window_s: float = HOUR_S) -> list[float]:
    """Those of *times* that lie in the window before *now*."""
    return [when for when in times if 0 <= now - when <= window_s]


def ending(result: str, code: str, status: str, asked_for: bool, reason: str, error: str, phase: str) -> str:
    """Why the engine ended, in one sentence; empty when somebody stopped it and no watchdog had a reason.

    *result*, *code* and *status* are systemd's SERVICE_RESULT, EXIT_CODE and EXIT_STATUS; *reason* is what a watchdog
    wrote down before it restarted the engine, *error* the engine's own.
    """
    if reason:
        return reason
    if asked_for:
        return ""
    how = {
        "exited": f"it exited with {status}",
        "killed": f"it was killed by signal {status}",
        "dumped": f"it crashed with signal {status}",
    }.get(code, f"systemd says {result}")
    if result == "oom-kill":
        how = "the kernel killed it because the node was out of memory"
    words = error.rstrip(".") if error else "The engine ended without an error of its own"
    where = f", it had got as far as: {phase}" if phase else ""
    return f"{words} ({how}{where})"


def down_sentence(last: str, starts: int) -> str:
    """Why the rig stays down."""
    return (
        f"Down, after {starts} starts within an hour none is tried any more. The last one ended because:"
        f" {last.rstrip('.') or 'no reason was written down'}."
        " What to do: mend that, then run sparkrig.serving.restart."
    )


@dataclass(frozen=True)
class Cluster:
    """What Ray says: by address whether the node lives, and how many GPUs of it are free."""

    free_gpus: Mapping[str, float]


def cluster_wait(cluster: Cluster | None, expected: Mapping[str, str], problem: str) -> tuple[str, bool]:
    """(what is waited for, whether only GPUs are missing); an empty text when the engine can start.

    *expected* maps host names to the addresses of their Ray nodes.
    """
    if cluster is None:
        return problem, False
    missing = [f"{name} ({ip})" for name, ip in expected.items() if ip not in cluster.free_gpus]
    if missing:
        return f"waiting for {', '.join(missing)} to join Ray", False
    taken = [f"{name} ({ip})" for name, ip in expected.items() if cluster.free_gpus[ip] < 1.0]
    if taken:
        return f"Ray counts the GPU of {', '.join(taken)} as taken", True
    return "", False

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""What an engine's log says: how far it came, and of what it died.

Private to the collection.
"""

from __future__ import annotations

import re
import typing as t

if t.TYPE_CHECKING:
    from collections.abc import Iterable

# From the first line of a start to the last: pattern, and the phase in words. The last line that matches wins.
_PHASES: tuple[tuple[re.Pattern[str], str], ...] = tuple(
    (re.compile(pattern), phase)
    for pattern, phase in (
        (r"non-default args|Resolved architecture", "reading the model's configuration"),
        (r"Initializing a V1 LLM engine", "starting the engine"),
        (r"Connecting to existing Ray cluster|Connected to Ray cluster", "connecting to Ray"),
        (r"placement group", "starting a rank on every Ray node"),
        (r"world_size=\d+ rank=\d+|init_distributed|rank \d+ in world size", "connecting the ranks"),
        (r"Starting to load model", "loading weights"),
        (
            r"checkpoint shards:\s+\d+% Completed \| (?P<done>\d+)/(?P<all>\d+)",
            "loading weights, {done} of {all} shards",
        ),
        (r"Loading weights took", "weights loaded"),
        (r"KV cache size: (?P<tokens>[\d,]+) tokens", "KV cache made, {tokens} tokens"),
        (r"Capturing CUDA graph|Graph capturing", "capturing CUDA graphs"),
        (r"init engine \(", "engine warm, starting the API"),
        (r"Application startup complete", "API started"),
    )
)
_EXCEPTION = re.compile(r"^(?:[A-Za-z_][A-Za-z0-9_]*\.)*[A-Za-z_]*(?:Error|Exception|Exit|Interrupt): .+$")
_USAGE = re.compile(r"error: .+$")
# "(EngineCore pid=12) ERROR 11-21 22:15:07 [core.py:133] text": the text is what counts.
_PREFIX = re.compile(r"^(?:\([^()]* pid=\d+[^()]*\)\s*)*(?:(?P<level>[A-Z]+) \d\d-\d\d \d\d:\d\d:\d\d \[[^\]]+\] ?)?")
# Exceptions that only report that something else failed.
_DERIVED = (
    "Engine core initialization failed",
    "EngineCore encountered an issue",
    "See root cause above",
    "WorkerProc initialization failed",
    "Failed core proc",
    "Executor failed",
)
# A process that was ended from outside leaves no exception of its own; who noticed says so.
_DEATHS = (
    (re.compile(r"Worker\S* rank=\[?(\d+)\]? died unexpectedly"), "Rank {0} died without an error of its own"),
    (re.compile(r"Worker proc (\S+) died unexpectedly"), "Rank {0} died without an error of its own"),
    (re.compile(r"engine core exited unexpectedly"), "The engine core died without an error of its own"),
)


def _bare(line: str) -> tuple[str, str]:
    """(level, text) of a line, without the prefix that names the process and the time."""
    match = _PREFIX.match(line)
    level = (match.group("level") or "") if match else ""
    return level, line[match.end() :] if match else line


def phase(lines: Iterable[str]) -> str:
    """How far the engine came, in words; empty when no line tells."""
    found = ""
    for line in lines:
        for pattern, words in _PHASES:
            match = pattern.search(line)
            if match:
                found = words.format(**match.groupdict())
    return found


def root_error(lines: Iterable[str]) -> str:
    """The error that the others follow from: the first exception of the log that is not about another one.

    Python prints the cause before what it led to, and the engine's core dies before the server that waits for it,
    so the first is the root. Warnings quote exceptions that were survived: they do not count. A process that was killed
    has no exception; then it is said which one died.
    """
    derived = death = ""
    for line in lines:
        level, text = _bare(line.rstrip())
        for pattern, words in _DEATHS:
            match = pattern.search(text)
            if match and not death:
                death = words.format(*match.groups())
        if level in ("WARNING", "INFO", "DEBUG"):
            continue
        match = _EXCEPTION.match(text.strip())
        if match:
            if not any(words in text for words in _DERIVED):
                return death or text.strip()
            derived = derived or text.strip()
            continue
        usage = _USAGE.search(text)
        if usage and "api_server" in text:
            return text.strip()
    return death or derived

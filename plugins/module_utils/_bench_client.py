# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Ask a served model as so many users at once, and take the time.

Private to the collection.
"""

from __future__ import annotations

import json
import queue
import random
import threading
import time
import typing as t

from ansible_collections.sparkrig.serving.plugins.module_utils._bench import (
    REQUESTS,
    Answered,
    Point,
    answered,
    figures,
    passage,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import parse_metrics, total

if t.TYPE_CHECKING:
    from collections.abc import Sequence

    from ansible_collections.sparkrig.serving.plugins.module_utils._engine_api import Api
    from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import Sample

SHORT_S = 10
# The engine's counters are a little behind its answers.
SETTLE_S = 5.0


def metrics(api: Api) -> list[Sample]:
    """What the engine counts now; nothing when it does not tell."""
    try:
        return parse_metrics(api.get("/metrics", SHORT_S))
    except ValueError:
        return []


def served(api: Api, model: str) -> int | None:
    """The length of request that *model* takes; None when the API does not tell. ValueError when it is not served."""
    entries = json.loads(api.get("/v1/models", SHORT_S)).get("data") or []
    for entry in entries:
        if entry.get("id") == model:
            length = entry.get("max_model_len")
            return int(length) if length else None
    names = ", ".join(str(entry.get("id")) for entry in entries) or "nothing"
    raise ValueError(f"{names} is served, not {model}")


def prompt_of(api: Api, model: str, length: int, timeout_s: float) -> list[int]:
    """A prompt of exactly *length* tokens that begins like no other."""
    seed = random.SystemRandom().getrandbits(128)
    words = length
    while True:
        body = {"model": model, "prompt": passage(seed, words)}
        tokens = [int(token) for token in json.loads(api.get("/tokenize", timeout_s, body))["tokens"]]
        if len(tokens) >= length:
            return tokens[:length]
        words *= 2


def ask(api: Api, model: str, prompt: Sequence[int], output_tokens: int, timeout_s: float) -> Answered:
    """One streamed completion of exactly *output_tokens*, with the temperature that the engine has by itself."""
    body = {
        "model": model,
        "prompt": list(prompt),
        "max_tokens": output_tokens,
        "min_tokens": output_tokens,
        "ignore_eos": True,
        "stream": True,
        "stream_options": {"include_usage": True},
    }
    begin = time.monotonic()
    return answered(begin, list(api.events("/v1/completions", timeout_s, body)))


def ask_all(api: Api, model: str, prompts: Sequence[Sequence[int]], point: Point, timeout_s: float) -> list[Answered]:
    """All *prompts*, as many at once as the point says. ValueError with the first reason when one fails."""
    waiting: queue.SimpleQueue[Sequence[int]] = queue.SimpleQueue()
    for prompt in prompts:
        waiting.put(prompt)
    answers: list[Answered] = []
    problems: list[str] = []

    def user() -> None:
        while not problems:
            try:
                prompt = waiting.get_nowait()
            except queue.Empty:
                return
            try:
                answers.append(ask(api, model, prompt, point.output_tokens, timeout_s))
            except (KeyError, ValueError) as error:
                problems.append(str(error))

    users = [threading.Thread(target=user) for _number in range(point.concurrency)]
    for thread in users:
        thread.start()
    for thread in users:
        thread.join()
    if problems:
        raise ValueError(f"{len(problems)} of {len(prompts)} requests failed, the first one: {problems[0]}")
    return answers


def settled(api: Api, before: Sequence[Sample], requests: int) -> list[Sample]:
    """/metrics once it has counted so many requests more, or when it does not for a while."""
    deadline = time.monotonic() + SETTLE_S
    while True:
        after = metrics(api)
        seen = total(after, REQUESTS)
        if seen is None or seen - (total(before, REQUESTS) or 0.0) >= requests or time.monotonic() > deadline:
            return after
        time.sleep(0.2)


def measure(api: Api, model: str, point: Point, timeout_s: float) -> dict[str, t.Any]:
    """The figures of one point. ValueError with the reason when a request fails."""
    for _number in range(point.warmup):
        before = metrics(api)
        ask(api, model, prompt_of(api, model, point.prompt_tokens, timeout_s), point.output_tokens, timeout_s)
        settled(api, before, 1)
    # What takes time to make is made before the clock runs.
    prompts = [prompt_of(api, model, point.prompt_tokens, timeout_s) for _number in range(point.requests)]
    before = metrics(api)
    began_epoch_s, began = time.time(), time.monotonic()
    answers = ask_all(api, model, prompts, point, timeout_s)
    seconds = time.monotonic() - began
    after = settled(api, before, len(answers))
    return {**figures(point, answers, seconds, before, after), "began_epoch_s": began_epoch_s}

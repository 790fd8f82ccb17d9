# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Requests that are under way together answer what each of them answers alone."""

from __future__ import annotations

import json
import threading
import typing as t
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.hosts import NODES, Host, environment

ENDPOINT = f"http://{NODES[0].management_ip}:18089"
PROMPTS = [
    "The harbour was quiet, and the pilot",
    "Count the lights before you draft, because",
    "A ledger that nobody reads is",
    "When the mill stands still, the miller",
]
TOKENS = 24


@pytest.fixture(scope="module", name="ask")
def asking(head: Host) -> t.Callable[[str, dict[str, t.Any] | None], str]:
    """What the API answers on a path."""
    key = environment(head, "/etc/sparkrig/secrets.env")["VLLM_API_KEY"]

    def call(path: str, body: dict[str, t.Any] | None) -> str:
        data = None if body is None else json.dumps(body).encode()
        headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
        with urllib.request.urlopen(urllib.request.Request(ENDPOINT + path, data, headers), timeout=120) as answer:
            return t.cast("str", answer.read().decode())

    return call


def running(metrics: str) -> float:
    """How many requests the engine works on."""
    lines = [line for line in metrics.splitlines() if line.startswith("vllm:num_requests_running{")]
    return sum(float(line.split()[-1]) for line in lines)


def test_together_they_answer_as_each_alone(ask: t.Callable[[str, dict[str, t.Any] | None], str]) -> None:
    def greedy(prompt: str) -> str:
        body = {"model": "lab-moe", "prompt": prompt, "max_tokens": TOKENS, "temperature": 0, "ignore_eos": True}
        return t.cast("str", json.loads(ask("/v1/completions", body))["choices"][0]["text"])

    alone = [greedy(prompt) for prompt in PROMPTS]
    assert len(set(alone)) == len(PROMPTS)
    at_once: list[float] = []
    over = threading.Event()

    def look() -> None:
        while not over.wait(0.1):
            at_once.append(running(ask("/metrics", None)))

    looking = threading.Thread(target=look)
    looking.start()
    try:
        with ThreadPoolExecutor(len(PROMPTS)) as users:
            together = list(users.map(greedy, PROMPTS))
    finally:
        over.set()
        looking.join()
    assert together == alone
    # As many as the profile allows were really computed side by side.
    assert max(at_once) >= 2

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Who asks while the engine is drained: answered when it was before, refused when it was not."""

from __future__ import annotations

import json
import re
import time
import typing as t
import urllib.request
from concurrent.futures import ThreadPoolExecutor

import pytest

from lab.hosts import HOSTS, NODES, environment
from lab.play import play

HEAD = HOSTS[NODES[0].name]
ENDPOINT = f"http://{NODES[0].management_ip}:18089"
# An answer that takes longer than a playbook needs to close the API, and how long it may take on a busy machine.
TOKENS = 1900
PATIENCE_S = 900


def complete(tokens: int) -> dict[str, t.Any]:
    """What the engine answers to somebody on another machine."""
    key = environment(HEAD, "/etc/sparkrig/secrets.env")["VLLM_API_KEY"]
    body = {"model": "lab-moe", "prompt": "Hello", "max_tokens": tokens, "ignore_eos": True}
    headers = {"Authorization": f"Bearer {key}", "Content-Type": "application/json"}
    request = urllib.request.Request(f"{ENDPOINT}/v1/completions", json.dumps(body).encode(), headers)
    with urllib.request.urlopen(request, timeout=PATIENCE_S) as answer:
        return t.cast("dict[str, t.Any]", json.loads(answer.read()))


def under_way() -> float:
    """How many requests the engine works on, as it says itself."""
    with urllib.request.urlopen(f"{ENDPOINT}/metrics", timeout=30) as answer:
        return sum(map(float, re.findall(r"^vllm:num_requests_running\S* (\S+)$", answer.read().decode(), re.M)))


def engine() -> str:
    return str(HEAD.check_output("systemctl show -p MainPID --value sparkrig-vllm.service"))


def test_a_request_under_way_is_answered_and_no_other_is_let_in_until_serve() -> None:
    before = engine()
    with ThreadPoolExecutor(1) as pool:
        answer = pool.submit(complete, TOKENS)
        deadline = time.monotonic() + 60
        while not under_way():
            assert time.monotonic() < deadline and not answer.done()
            time.sleep(0.1)
        outcome = play("sparkrig.serving.drain", {"drain_stop": False, "drain_timeout_s": PATIENCE_S})
        assert outcome.code == 0, outcome.text
        assert "every request is answered" in outcome.text
        assert answer.result()["usage"]["completion_tokens"] == TOKENS
    with pytest.raises(OSError, match="refused|reset"):
        complete(1)
    outcome = play("sparkrig.serving.serve")
    assert outcome.code == 0, outcome.text
    assert complete(1)["usage"]["completion_tokens"] == 1
    assert engine() == before


def test_site_lets_in_again_as_well() -> None:
    before = engine()
    assert play("sparkrig.serving.drain", {"drain_stop": False}).code == 0
    with pytest.raises(OSError, match="refused|reset"):
        complete(1)
    outcome = play("sparkrig.serving.site")
    assert (outcome.code, outcome.changed) == (0, 1), outcome.text
    assert complete(1)["usage"]["completion_tokens"] == 1
    assert engine() == before


def test_drained_and_stopped_it_is_served_again() -> None:
    outcome = play("sparkrig.serving.drain")
    assert outcome.code == 0, outcome.text
    assert engine() == "0"
    outcome = play("sparkrig.serving.serve")
    assert outcome.code == 0, outcome.text
    assert complete(1)["usage"]["completion_tokens"] == 1

# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A changed profile is served by running again, although the old one holds the memory that the new one needs.

The change makes a batch profile of it: more sequences, and a context and a budget that are found anew.
"""

from __future__ import annotations

import json
import typing as t
import urllib.request
from concurrent.futures import ThreadPoolExecutor

from lab.hosts import HOSTS, NODES, environment
from lab.play import play

HEAD = HOSTS[NODES[0].name]
SEQUENCES = 4
# In bfloat16 two tokens are often equally likely but for rounding, which depends on how many rows are multiplied at
# once. In float32 the text is another one only when something is wrong.
BATCH = {
    "dtype": "float32",
    "max_num_seqs": SEQUENCES,
    "max_model_len": -1,
    "kv_cache_memory_bytes": "auto",
    "fit": {"kv_cache_limit_bytes": 100_000_000},
}
PROMPTS = ["Four small machines", "A draft", "The memory", "When the first light", "One command", "The key"]


def serve(overrides: dict[str, t.Any]) -> dict[str, t.Any]:
    """The plan that is served after a run with *overrides*; role verify has compared it with what the engine says."""
    outcome = play("site.yml", {"serving_overrides": overrides})
    assert outcome.code == 0, outcome.text
    assert all(counters["changed"] > 0 for counters in outcome.recap.values())
    return t.cast("dict[str, t.Any]", json.loads(HEAD.file("/var/lib/sparkrig/plan.json").content_string))


def completion(prompt: str) -> str:
    """The text that the model finds likeliest."""
    key = environment(HEAD, "/etc/sparkrig/secrets.env")["VLLM_API_KEY"]
    body = {"model": "lab-moe", "prompt": prompt, "max_tokens": 32, "temperature": 0}
    request = urllib.request.Request(
        f"http://{NODES[0].management_ip}:18089/v1/completions",
        data=json.dumps(body).encode(),
        headers={"Authorization": f"Bearer {key}", "Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=120) as answer:
        return t.cast("str", json.load(answer)["choices"][0]["text"])


def test_running_again_serves_a_batch_whose_context_is_found_anew() -> None:
    plan = serve(BATCH)
    assert plan["kv_cache_tokens"] >= SEQUENCES * plan["planned_model_len"] > SEQUENCES * 2048


def test_requests_side_by_side_get_the_text_that_they_get_alone() -> None:
    """As many at once as there are sequences, and two that wait for a place."""
    alone = [completion(prompt) for prompt in PROMPTS]
    assert len(set(alone)) > 1
    with ThreadPoolExecutor(len(PROMPTS)) as pool:
        assert list(pool.map(completion, PROMPTS)) == alone


def test_running_again_serves_the_profile_as_it_is() -> None:
    # 271 blocks of 16 tokens.
    assert serve({})["kv_cache_tokens"] == 271 * 16

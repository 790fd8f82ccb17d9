#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Compare what is served with what was planned."""

from __future__ import annotations

DOCUMENTATION = r"""
module: verify_serving
short_description: Prove that the model is served as planned
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Asks the API for a real completion, and compares its metrics, its context length and the Ray cluster with the plan.
  - Runs on the head. Every comparison is a check with the value predicted, the value seen and one sentence.
  - Never fails because of a check. RV(ok) and RV(checks) tell; role verify fails with them.
extends_documentation_fragment:
  - sparkrig.serving._attributes
  - sparkrig.serving._engine_api
  - sparkrig.serving._ray_cluster
attributes:
  check_mode:
    support: full
  diff_mode:
    support: N/A
  idempotent:
    support: full
options:
  prompt:
    description: What to ask.
    type: str
    default: Say hello.
  max_tokens:
    description: How many tokens to ask for.
    type: int
    default: 16
  timeout_s:
    description: How long the completion may take.
    type: int
    default: 120
  unit:
    description: The engine's unit. When no completion comes back, its state and its own error are told as well.
    type: str
    default: sparkrig-vllm.service
  plan:
    description:
      - The KV plan. C(num_blocks), C(kv_cache_tokens) and C(max_concurrency) are compared where they are set.
      - Left out, it is read from O(plan_file).
    type: dict
  plan_file:
    description: Where the plan was written on the head when the rig was set up. Without the file no plan is compared.
    type: path
    default: /var/lib/sparkrig/plan.json
  readings_file:
    description:
      - Where the memory that the nodes had before the launch was written on the head. It fills the C(ranks) of the plan
        that it was written for, where they do not say it.
    type: path
    default: /var/lib/sparkrig/readings.json
  max_model_len:
    description: The context that requests must be allowed.
    type: int
  drafts:
    description: Whether the profile drafts, so that a completion must make drafts.
    type: bool
    default: false
  ray:
    description: The Ray cluster that must be complete. Left out, it is read from O(ray_file).
  ray_file:
    description:
      - Where the cluster was written on the head when it was set up. Without the file its nodes are not looked at.
      - When the executor in it is C(mp), the connections of vLLM's own ranks are compared instead of Ray's nodes.
    type: path
    default: /var/lib/sparkrig/cluster.json
"""

EXAMPLES = r"""
---
- name: Is it served as planned
  sparkrig.serving.verify_serving:
    url: http://127.0.0.1:18089
    model: lab-moe
    plan: {num_blocks: 271, kv_cache_tokens: 4336, max_concurrency: 2.1171875}
    max_model_len: 2048
    drafts: true
"""

RETURN = r"""
ok:
  description: Whether every check holds.
  returned: always
  type: bool
checks:
  description: The comparisons.
  returned: always
  type: list
  elements: dict
  contains:
    name:
      description: Its name.
      type: str
      returned: always
    ok:
      description: Whether it holds.
      type: bool
      returned: always
    predicted:
      description: What the plan says.
      type: raw
      returned: always
    seen:
      description: What was seen.
      type: raw
      returned: always
    sentence:
      description: Both in one sentence.
      type: str
      returned: always
completion:
  description: The text that came back. Null when none did.
  returned: always
  type: str
completion_tokens:
  description: Its length.
  returned: always
  type: int
seconds:
  description: How long it took.
  returned: always
  type: float
plan:
  description: The plan that was compared, with the memory that the nodes had before the launch.
  returned: always
  type: dict
kv_cache_tokens:
  description: The tokens of KV cache that the engine reports. Null when it does not.
  returned: always
  type: int
"""

import hashlib
import json
import time
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._engine_api import ENGINE_OPTIONS, Api, key_of
from ansible_collections.sparkrig.serving.plugins.module_utils._engine_log import phase, root_error
from ansible_collections.sparkrig.serving.plugins.module_utils._metrics import Sample, labels_of, parse_metrics
from ansible_collections.sparkrig.serving.plugins.module_utils._ports import connected_peers
from ansible_collections.sparkrig.serving.plugins.module_utils._ray_probe import RAY_OPTION, probe_ray
from ansible_collections.sparkrig.serving.plugins.module_utils._rig_unit import SHOWN_PROPERTIES, parse_show
from ansible_collections.sparkrig.serving.plugins.module_utils._verify import (
    CACHE_INFO,
    Check,
    check_cache,
    check_completion,
    check_drafts,
    check_models,
    check_ranks,
    check_ray,
    engine_state,
    with_readings,
)

METRICS_TIMEOUT_S = 10
# An engine that died earlier than this has been restarted since, and its error is no news.
JOURNAL_SINCE = "-15min"


def recorded(path: str) -> dict[str, t.Any] | None:
    """What an earlier run wrote down on this node; None when it did not."""
    try:
        with open(path, encoding="utf-8") as handle:
            content: dict[str, t.Any] = json.load(handle)
            return content
    except FileNotFoundError:
        return None


def digest(path: str) -> str:
    """The SHA-256 of a file; empty when there is none."""
    try:
        with open(path, "rb") as handle:
            return hashlib.sha256(handle.read()).hexdigest()
    except FileNotFoundError:
        return ""


def metrics(api: Api) -> list[Sample]:
    """What the engine counts now; nothing when it does not tell."""
    try:
        return parse_metrics(api.get("/metrics", METRICS_TIMEOUT_S))
    except ValueError:
        return []


def complete(api: Api, params: dict[str, t.Any]) -> tuple[str | None, int, float, str]:
    """(text, tokens, seconds, problem) of one real completion."""
    body = {
        "model": params["model"],
        "messages": [{"role": "user", "content": params["prompt"]}],
        "temperature": 0,
        "max_tokens": params["max_tokens"],
    }
    begin = time.monotonic()
    try:
        answer = json.loads(api.get("/v1/chat/completions", params["timeout_s"], body))
        # A model that thinks first may spend all its tokens there.
        message = answer["choices"][0]["message"]
        text = message.get("content") or message.get("reasoning_content") or message.get("reasoning") or ""
        return text, int(answer["usage"]["completion_tokens"]), time.monotonic() - begin, ""
    except (KeyError, IndexError, TypeError) as error:
        return None, 0, time.monotonic() - begin, f"the answer has no {error}"
    except ValueError as error:
        return None, 0, time.monotonic() - begin, str(error)


def engine_words(module: AnsibleModule, unit: str) -> str:
    """What systemd and the journal say about an engine that does not answer."""
    command = ["systemctl", "show", f"--property={','.join(SHOWN_PROPERTIES)}", unit]
    state = parse_show(module.run_command(command)[1])
    journal = ["journalctl", "--unit", unit, "--output=cat", "--no-pager", f"--since={JOURNAL_SINCE}"]
    lines = module.run_command(journal, errors="surrogate_then_replace")[1].splitlines()
    return engine_state(unit, state, phase(lines), root_error(lines))


def models_checks(api: Api, params: dict[str, t.Any]) -> list[Check]:
    """What the API says that it serves."""
    try:
        answer = json.loads(api.get("/v1/models", METRICS_TIMEOUT_S))
    except ValueError as error:
        sentence = f"The API does not tell what it serves: {error}"
        return [Check("model", False, params["model"], None, sentence)]
    return check_models(answer, params["model"], params["max_model_len"])


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            **ENGINE_OPTIONS,
            "prompt": {"type": "str", "default": "Say hello."},
            "max_tokens": {"type": "int", "default": 16, "no_log": False},
            "timeout_s": {"type": "int", "default": 120},
            "unit": {"type": "str", "default": "sparkrig-vllm.service"},
            "plan": {"type": "dict"},
            "plan_file": {"type": "path", "default": "/var/lib/sparkrig/plan.json"},
            "readings_file": {"type": "path", "default": "/var/lib/sparkrig/readings.json"},
            "max_model_len": {"type": "int"},
            "drafts": {"type": "bool", "default": False},
            "ray": RAY_OPTION,
            "ray_file": {"type": "path", "default": "/var/lib/sparkrig/cluster.json"},
        },
        supports_check_mode=True,
    )
    params = module.params
    api = Api(params["url"], key_of(params))

    plan = params["plan"] or recorded(params["plan_file"]) or {}
    plan = with_readings(plan, digest(params["plan_file"]), recorded(params["readings_file"]))
    before = metrics(api)
    text, tokens, seconds, problem = complete(api, params)
    after = metrics(api)

    if problem:
        problem = f"{problem} ({engine_words(module, params['unit'])})"
    checks: list[Check] = [check_completion(text, tokens, seconds, problem)]
    # Of an engine that does not answer the sentence about the completion says enough.
    if not problem:
        checks += models_checks(api, params)
        checks += check_cache(after, plan)
        if params["drafts"]:
            checks.append(check_drafts(before, after))
    ray = params["ray"] or recorded(params["ray_file"])
    if ray and ray.get("executor") == "mp":
        peers = connected_peers(int(ray["address"].rpartition(":")[2]))
        checks.append(check_ranks(peers, ray["nodes"], ray["address"]))
    elif ray:
        python = ray.get("python") or "/opt/sparkrig/current/bin/python"
        state, ray_problem = probe_ray(module.run_command, python, ray["address"], ray["nodes"])
        checks.append(check_ray(state, ray["nodes"], ray_problem))

    tokens_seen = (labels_of(after, CACHE_INFO) or {}).get("kv_cache_size_tokens", "")
    module.exit_json(
        changed=False,
        ok=all(check.ok for check in checks),
        checks=[check.as_dict() for check in checks],
        completion=text,
        completion_tokens=tokens,
        seconds=round(seconds, 2),
        plan=plan,
        kv_cache_tokens=int(tokens_seen) if tokens_seen.isdigit() else None,
    )


if __name__ == "__main__":
    main()

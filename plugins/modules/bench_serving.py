#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Measure one point of a served model."""

from __future__ import annotations

DOCUMENTATION = r"""
module: bench_serving
short_description: Measure how fast a served model answers
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Sends streamed completions with prompts of an exact number of tokens, so many of them at once, and takes the time of
    every token. Each prompt reads like language and begins like no other, so that no prefix of it can be cached.
  - Compares with what the engine counted meanwhile, which also says how many drafts were kept at each position.
  - The key is read from a file on the node and sent in a header. Nothing of prompts and answers is kept.
  - Needs Python's standard library only. The temperature is the one that the engine has by itself.
extends_documentation_fragment:
  - sparkrig.serving._engine_api
attributes:
  check_mode:
    support: full
    description: Says what would be sent, and sends nothing.
  diff_mode:
    support: none
    description: Nothing is changed.
  idempotent:
    support: full
    description: It measures and changes nothing.
options:
  prompt_tokens:
    description: The length of every prompt.
    type: int
    required: true
  output_tokens:
    description: The length of every answer, whatever the model would say.
    type: int
    required: true
  concurrency:
    description: How many requests are under way at any time.
    type: int
    default: 1
  requests:
    description: How many requests are measured.
    type: int
    default: 4
  warmup:
    description: How many requests are sent before them, and not counted.
    type: int
    default: 0
  timeout_s:
    description: How long a request may bring nothing.
    type: int
    default: 300
"""

EXAMPLES = r"""
---
- name: Measure two users with long prompts
  sparkrig.serving.bench_serving:
    url: http://127.0.0.1:18089
    model: glm-5.2
    prompt_tokens: 16384
    output_tokens: 256
    concurrency: 2
"""

RETURN = r"""
sentence:
  description: What was measured, what would be, or why it was left out.
  returned: always
  type: str
left_out:
  description: Whether prompt and answer together are longer than what the engine takes.
  returned: always
  type: bool
version:
  description: The engine's version as it tells it. Empty when it does not, and in check mode.
  returned: always
  type: str
point:
  description:
    - All figures, and null when nothing was measured. Names carry their unit.
    - C(ttft_s) (to the first token), C(tpot_s) (for each token after it), C(chunk_gap_s), C(request_s),
      C(prefill_tokens_per_s) and C(decode_tokens_per_s) (of one request) have C(mean), C(min), C(p50), C(p90), C(p99)
      and C(max); C(output_tokens_per_s) is that of all requests together.
    - C(engine) is what the engine counted meanwhile, with C(acceptance) of the drafts by position.
    - C(problems) says in sentences why the figures are not of these requests alone.
  returned: always
  type: dict
"""

import json

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._bench import Point, measured_sentence, too_long
from ansible_collections.sparkrig.serving.plugins.module_utils._bench_client import SHORT_S, measure, served
from ansible_collections.sparkrig.serving.plugins.module_utils._engine_api import ENGINE_OPTIONS, Api, key_of


def version_of(api: Api) -> str:
    """The engine's version; empty when it does not tell."""
    try:
        return str(json.loads(api.get("/version", SHORT_S)).get("version", ""))
    except ValueError:
        return ""


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec={
            **ENGINE_OPTIONS,
            "prompt_tokens": {"type": "int", "required": True, "no_log": False},
            "output_tokens": {"type": "int", "required": True, "no_log": False},
            "concurrency": {"type": "int", "default": 1},
            "requests": {"type": "int", "default": 4},
            "warmup": {"type": "int", "default": 0},
            "timeout_s": {"type": "int", "default": 300},
        },
        supports_check_mode=True,
    )
    params = module.params
    for name, least in (("prompt_tokens", 1), ("output_tokens", 2), ("concurrency", 1), ("requests", 1), ("warmup", 0)):
        if params[name] < least:
            module.fail_json(msg=f"{name} is {params[name]}; it must be at least {least}.")
    point = Point(*(params[name] for name in ("prompt_tokens", "concurrency", "output_tokens", "requests", "warmup")))
    url, model = params["url"], params["model"]
    if module.check_mode:
        sentence = f"Would send {point.requests + point.warmup} requests to {model} at {url}: {point.words}"
        module.exit_json(changed=False, sentence=sentence, left_out=False, version="", point=None)
    api = Api(url, key_of(params))
    try:
        longest = served(api, model)
    except ValueError as error:
        module.fail_json(
            msg=f"There is nothing to measure: {str(error).rstrip('.')}. What to do: sparkrig.serving.verify says why"
            " it is not served, sparkrig.serving.serve or site bring it back."
        )
    reason = too_long(point, longest)
    if reason:
        module.exit_json(changed=False, sentence=f"Left out: {reason}", left_out=True, version="", point=None)
    try:
        found = measure(api, model, point, params["timeout_s"])
    except ValueError as error:
        module.fail_json(msg=f"{point.words}: {str(error).rstrip('.')}.")
    module.exit_json(
        changed=False, sentence=measured_sentence(found), left_out=False, version=version_of(api), point=found
    )


if __name__ == "__main__":
    main()

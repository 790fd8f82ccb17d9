# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fitter as a Jinja filter, on the controller."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit

DOCUMENTATION = r"""
name: kv_budget
short_description: Answer whether a model fits, by vLLM's own rules and without vLLM
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Computes from a model's C(config.json) and the engine's options the blocks, tokens, log line and refusals of vLLM's
    memory planner, and compares every rank's bytes with the memory of its node.
  - The options and the result are those of the module M(sparkrig.serving.kv_budget), without its C(model) and
    C(measure_memory), which need a node.
  - What vLLM would refuse is an answer with C(fits=false). An unknown option or model is an error.
options:
  _input:
    description: The options by name. C(config) is needed, all others have defaults.
    type: dict
    required: true
seealso:
  - plugin: sparkrig.serving.kv_budget
    plugin_type: module
"""

EXAMPLES = r"""
---
- name: Ask for the capacity of GLM-5.2 on four nodes
  ansible.builtin.debug:
    msg: "{{ question | sparkrig.serving.kv_budget }}"
  vars:
    question:
      config: "{{ lookup('ansible.builtin.file', 'config.json') | from_json }}"
      tensor_parallel_size: 4
      decode_context_parallel_size: 4
      kv_cache_dtype: fp8_ds_mla
      kv_cache_memory_bytes: 1810000000
      max_model_len: 131072
      speculative_config: {method: mtp, num_speculative_tokens: 1}
"""

RETURN = r"""
_value:
  description: The answer, with the keys that the module M(sparkrig.serving.kv_budget) returns.
  type: dict
"""


def kv_budget(options: t.Any) -> dict[str, t.Any]:
    """The answer to a fit."""
    try:
        return fit(options)
    except ValueError as error:
        raise AnsibleFilterError(f"kv_budget: {error}") from error


class FilterModule:
    """Registers the filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filter by its name."""
        return {"kv_budget": kv_budget}

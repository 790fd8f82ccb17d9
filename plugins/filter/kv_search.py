# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The search for combinations that fit, as a Jinja filter."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_search import search

DOCUMENTATION = r"""
name: kv_search
short_description: List every legal combination that fits, best first
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Tries every combination of context parallelism, drafts, sequences, context and cache dtype against the memory of the
    nodes, with the arithmetic of P(sparkrig.serving.kv_budget#filter), and lists those that fit.
  - Those that no other beats in context and sequences at once are marked C(pareto).
options:
  _input:
    description:
      - What is looked for. C(options) are those of P(sparkrig.serving.kv_budget#filter). Without
        C(kv_cache_memory_bytes) they need C(memory_available_bytes).
      - C(aim) is C(context), C(concurrency) or C(both).
      - C(decode_context_parallel_sizes), C(draft_tokens), C(sequences), C(contexts) and C(cache_dtypes) are lists of
        what to try. C(minimum_context) and C(minimum_concurrency) are bounds.
      - C(draft_weights_bytes) are the bytes of weights that a rank saves without drafts.
    type: dict
    required: true
"""

EXAMPLES = r"""
---
- name: Look for the longest context with two sequences
  ansible.builtin.debug:
    msg: "{{ {'options': question, 'aim': 'context', 'minimum_concurrency': 2} | sparkrig.serving.kv_search }}"
"""

RETURN = r"""
_value:
  description: The combinations (C(rows)), how many were C(considered), how many of them vLLM itself would refuse
    (C(refused)), and C(blocked), a sentence where the engine would not start whatever is asked of it.
  type: dict
"""


def kv_search(question: t.Any) -> dict[str, t.Any]:
    """All combinations that fit."""
    try:
        return search(question)
    except ValueError as error:
        raise AnsibleFilterError(f"kv_search: {error}") from error


class FilterModule:
    """Registers the filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filter by its name."""
        return {"kv_search": kv_search}

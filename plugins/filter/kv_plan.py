# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fitter together with the plan file that belongs to its answer."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit_nodes

DOCUMENTATION = r"""
name: kv_plan
short_description: Fit a model and give the plan that is written to the nodes
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - The answer of P(sparkrig.serving.kv_budget#filter), and the text of C(plan.json) with its digest.
  - The text leaves out what was measured at the moment, so that it changes only when the plan does.
  - A rank that already serves this very plan holds the memory that the plan needs. What is free beside it is not
    compared with the plan.
options:
  _input:
    description: The options of P(sparkrig.serving.kv_budget#filter).
    type: dict
    required: true
  serving:
    description: By rank, the digest of the plan that is being served there, V(none) where nothing is served.
    type: list
    elements: str
    default: []
  standing:
    description:
      - The text of the plan that is being served. With C(kv_cache_memory_bytes=auto) and C(max_model_len=-1) the
        context that it settled for stays, because the served model itself holds the memory that would be measured.
    type: str
    default: ""
"""

EXAMPLES = r"""
---
- name: See the plan that would be written
  ansible.builtin.debug:
    msg: "{{ (question | sparkrig.serving.kv_plan).document }}"
"""

RETURN = r"""
_value:
  description: The answer (C(result)), the text of the plan (C(document)), its digest (C(sha256)) and which ranks
    already serve it (C(served)).
  type: dict
"""


def kv_plan(options: t.Any, serving: t.Sequence[str | None] = (), standing: str = "") -> dict[str, t.Any]:
    """The answer and its plan file."""
    try:
        return fit_nodes(options, serving, standing)
    except ValueError as error:
        raise AnsibleFilterError(f"kv_budget: {error}") from error


class FilterModule:
    """Registers the filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filter by its name."""
        return {"kv_plan": kv_plan}

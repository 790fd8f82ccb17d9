# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""A search as a text table and as one HTML page."""

from __future__ import annotations

import typing as t

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_report import html_page, text_table

DOCUMENTATION = r"""
name: kv_report
short_description: Show a search as a text table and as one self-contained HTML page
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - The page has a memory waterfall for each rank and context against sequences for each DCP, as SVG. It needs no
    network.
options:
  _input:
    description: The result of P(sparkrig.serving.kv_search#filter).
    type: dict
    required: true
  fit:
    description: The result of P(sparkrig.serving.kv_budget#filter) that the page opens with.
    type: dict
    required: true
  title:
    description: The title of the page.
    type: str
    default: KV cache fit
  rows:
    description: How many rows the text table shows.
    type: int
    default: 25
"""

EXAMPLES = r"""
---
- name: Print the table
  ansible.builtin.debug:
    msg: "{{ (found | sparkrig.serving.kv_report(fit=answer)).table }}"
"""

RETURN = r"""
_value:
  description: The lines of the text table (C(table)) and the page (C(html)).
  type: dict
"""


def kv_report(
    found: t.Mapping[str, t.Any], fit: t.Mapping[str, t.Any], title: str = "KV cache fit", rows: int = 25
) -> dict[str, t.Any]:
    """Table and page."""
    table = [found["blocked"]] if found["blocked"] else text_table(found["rows"], rows)
    return {"table": table, "html": html_page(title, fit, found)}


class FilterModule:
    """Registers the filter."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """The filter by its name."""
        return {"kv_report": kv_report}

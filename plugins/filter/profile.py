# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Filters around serving profiles."""

from __future__ import annotations

import typing as t

from ansible.errors import AnsibleFilterError

from ansible_collections.sparkrig.serving.plugins.module_utils._profile import load_profile

DOCUMENTATION = r"""
name: profile
short_description: A serving profile with overrides, checked
version_added: 1.0.0
author: The sparkrig engineers (@sparkrig)
description:
  - Lays overrides over the content of a profile's file and checks every key and the rules between keys.
  - Anything wrong is an error of one sentence that names the key, the value and the rule.
options:
  _input:
    description: The content of the profile's file.
    type: dict
    required: true
  name:
    description: The profile's name.
    type: str
    required: true
  overrides:
    description: Keys to replace. Dicts are merged key by key.
    type: dict
    default: {}
"""

EXAMPLES = r"""
---
- name: Show the longest context of a profile with one key changed
  ansible.builtin.debug:
    msg: "{{ (content | sparkrig.serving.profile('lab_cpu', {'max_model_len': 1024})).max_model_len }}"
"""

RETURN = r"""
_value:
  description: The profile, with every key that a profile may have; null where it has no value.
  type: dict
"""


def profile(content: dict[str, t.Any], name: str, overrides: dict[str, t.Any] | None = None) -> dict[str, t.Any]:
    """The filter; see :func:`load_profile`."""
    problem = profile_problem(content, name, overrides)
    if problem:
        raise AnsibleFilterError(problem)
    return load_profile(name, content, overrides or {})


def profile_problem(content: dict[str, t.Any], name: str, overrides: dict[str, t.Any] | None = None) -> str:
    """What is wrong with the profile, in one sentence; empty when nothing is.

    A role asserts on it, because a filter's error would bury the sentence in the template's own words.
    """
    try:
        load_profile(name, content, overrides or {})
    except ValueError as error:
        return f"Profile {name}: {error}."
    return ""


class FilterModule:
    """The filters of this file."""

    def filters(self) -> dict[str, t.Callable[..., t.Any]]:
        """Name to function."""
        return {"profile": profile, "profile_problem": profile_problem}

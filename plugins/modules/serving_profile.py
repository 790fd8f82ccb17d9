#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The documentation of an action that runs on the controller; see plugins/action/serving_profile.py."""

from __future__ import annotations

DOCUMENTATION = r"""
module: serving_profile
short_description: Load a serving profile, lay overrides over it and check it
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Reads the file of a profile on the controller, and that of the profile it is based on, lays O(overrides) over it,
    and checks every key and the rules between keys. No node is asked.
  - Anything wrong is one sentence that names the key, the value and the rule.
options:
  name:
    description:
      - The profile, the name of a file in O(folder) without C(.yml).
      - A name that ends in C(.yml) or C(.yaml) is the path of a file of your own on the controller.
    type: str
    required: true
  folder:
    description: The folder on the controller that has the profiles.
    type: path
    required: true
  overrides:
    description: Keys to replace. Dicts are merged key by key.
    type: dict
    default: {}
attributes:
  check_mode:
    support: full
    description: It only reads.
  diff_mode:
    support: none
    description: Nothing is changed.
  idempotent:
    support: full
    description: Nothing is changed.
"""

EXAMPLES = r"""
---
- name: Load a profile with one key changed
  sparkrig.serving.serving_profile:
    name: lab_cpu
    folder: "{{ role_path }}/vars"
    overrides:
      max_model_len: 1024
  register: loaded
  run_once: true
"""

RETURN = r"""
profile:
  description: The profile, with every key that a profile may have; null where it has no value.
  returned: success
  type: dict
"""

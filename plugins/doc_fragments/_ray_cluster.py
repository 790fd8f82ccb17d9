# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options by which a module is told which Ray cluster to ask, and what it has to look like.

Private to the collection.
"""

from __future__ import annotations


class ModuleDocFragment:
    """Without a section it goes with C(RAY_OPTION) of C(module_utils/_ray_probe.py), and leaves what it is for."""

    # Ansible reads both from the source, so neither can be made of the other.
    DOCUMENTATION = r"""
options:
  ray:
    type: dict
    suboptions:
      address:
        description: Address and port of the head's GCS.
        type: str
        required: true
      nodes:
        description: Host names and the addresses that their Ray nodes must have.
        type: dict
        required: true
      python:
        description: An interpreter that can import ray.
        type: path
        default: /opt/sparkrig/current/bin/python
"""

    # For a module that is about a cluster and nothing else.
    OPTIONS = r"""
options:
  address:
    description: Address and port of the head's GCS.
    type: str
    required: true
  nodes:
    description: Host names and the addresses that their Ray nodes must have.
    type: dict
    required: true
  python:
    description: An interpreter that can import ray.
    type: path
    default: /opt/sparkrig/current/bin/python
"""

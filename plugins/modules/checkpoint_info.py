#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Read what a model folder holds, what is wrong with it and what each rank will load."""

from __future__ import annotations

DOCUMENTATION = r"""
module: checkpoint_info
short_description: What a model folder holds, what is wrong with it, and how many bytes each rank loads
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Reads C(config.json), the index and the headers of the safetensors files. No tensor is read, so a checkpoint of
    hundreds of gigabytes takes about a second.
  - What is wrong with the checkpoint is reported in RV(problems) and does not fail the task.
    Only a folder that is no checkpoint at all does.
extends_documentation_fragment:
  - sparkrig.serving._attributes
  - sparkrig.serving._checkpoint_layout
attributes:
  check_mode:
    support: full
  diff_mode:
    support: none
  idempotent:
    support: full
options:
  path:
    description: The model folder.
    type: path
    required: true
seealso:
  - module: sparkrig.serving.checkpoint_overlay
"""

EXAMPLES = r"""
---
- name: See what four ranks would load
  sparkrig.serving.checkpoint_info:
    path: /var/tmp/models/GLM-5.2-NVFP4
    tensor_parallel_size: 4
  register: checkpoint

- name: Say what is wrong with it
  ansible.builtin.debug:
    var: checkpoint.problems
"""

RETURN = r"""
bytes_by_dtype:
  description: The bytes of all tensors by their type.
  returned: always
  type: dict
  sample: {BF16: 3816000, F32: 48}
bytes_by_part:
  description:
    - The bytes of all tensors by what they are for. Parts are attention, indexer, routed_experts, shared_experts,
      router, dense_mlp, embeddings, head, norms, mtp and other; those that are empty are left out.
  returned: always
  type: dict
  sample: {attention: 1200000, mtp: 1381384}
config:
  description: The content of C(config.json).
  returned: always
  type: dict
  sample: {model_type: deepseek_v3}
damaged:
  description: What is wrong with a file, by its name, when its header cannot be taken or does not fit its size.
  returned: always
  type: dict
  sample: {}
digest:
  description: A SHA-256 of RV(digests) and the files' sizes. Equal on two nodes when both have the same checkpoint.
  returned: always
  type: str
  sample: 1b7d
digests:
  description: A SHA-256 by file, of C(config.json), of the index, and of the header of every safetensors file.
  returned: always
  type: dict
  sample: {config.json: 1b7d}
files:
  description: The size in bytes of every safetensors file that will be loaded.
  returned: always
  type: dict
  sample: {model-00001-of-00003.safetensors: 1086480}
indexer_layers:
  description: The layers that have a sparse attention indexer in the files.
  returned: always
  type: list
  elements: int
  sample: [0, 1, 2, 6]
missing:
  description: The files that the index names and the folder lacks.
  returned: always
  type: list
  elements: str
  sample: []
mtp:
  description: The layers for multi-token prediction, behind the last layer of the model.
  returned: always
  type: dict
  contains:
    bytes:
      description: The bytes of their tensors.
      type: int
    layers:
      description: The numbers of those that are there.
      type: list
      elements: int
    precision:
      description: In what most of their bytes are kept, such as V(bf16), V(fp8) or V(nvfp4); null when there are none.
      type: str
    present:
      description: Whether all that are promised are there.
      type: bool
    promised:
      description: Whether C(config.json) promises any (C(num_nextn_predict_layers)).
      type: bool
  sample: {bytes: 1381384, layers: [3], precision: bf16, present: true, promised: true}
path:
  description: The folder.
  returned: always
  type: str
  sample: /srv/models/lab-hybrid
problems:
  description: What is wrong, one sentence each. Empty when the folder can be served.
  returned: always
  type: list
  elements: str
  sample: []
quantization:
  description: The method that C(config.json) names, or null.
  returned: always
  type: str
  sample: modelopt
tensors:
  description: How many tensors there are.
  returned: always
  type: int
  sample: 93
total_bytes:
  description: The bytes of all tensors, as C(total_size) of an index counts them.
  returned: always
  type: int
  sample: 5197568
weights_bytes:
  description: The bytes of weights that each rank keeps, in the order of vLLM's ranks.
  returned: always
  type: list
  elements: int
  sample: [1700000, 1700000, 1700000, 1700000]
"""

import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._checkpoint import (
    CHECK_ARGUMENTS,
    LAYOUT_ARGUMENTS,
    layout_of,
    survey_folder,
)


def main() -> None:
    spec: dict[str, t.Any] = {"path": {"type": "path", "required": True}, **CHECK_ARGUMENTS, **LAYOUT_ARGUMENTS}
    module = AnsibleModule(argument_spec=spec, supports_check_mode=True)
    try:
        report = survey_folder(module.params["path"], layout_of(module.params), module.params["allow_files"])
    except (OSError, ValueError) as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, path=module.params["path"], **report.as_dict())


if __name__ == "__main__":
    main()

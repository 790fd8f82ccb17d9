#!/usr/bin/python
# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The fitter on a node, where the model and the memory are."""

from __future__ import annotations

DOCUMENTATION = r"""
module: kv_budget
short_description: Answer whether a model fits, by vLLM's own rules and without vLLM
version_added: 0.1.0
author: The sparkrig engineers (@sparkrig)
description:
  - Computes from a model's C(config.json) and the engine's options what vLLM's memory planner would do, exact to the
    block, for the vLLM version that will run. It needs neither vLLM nor a GPU.
  - Compares every rank's weights, KV cache, overhead and reserve with the memory of its node, and applies vLLM's own
    start-up gate.
  - What vLLM would refuse is an answer with RV(fits=false), with vLLM's text in RV(engine_error). An unknown model, an
    unknown engine or a wrong value is an error.
  - Changes nothing.
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
  config:
    description: The model's C(config.json) as a dictionary.
    type: dict
  model:
    description: The model's folder or its C(config.json) on this node. Read instead of O(config).
    type: path
  measure_memory:
    description: Take this node's own memory for O(memory_available_bytes) and O(memory_total_bytes) of every rank.
    type: bool
    default: false
  tensor_parallel_size:
    description: Ranks over which each layer is dealt out.
    type: int
    default: 1
  pipeline_parallel_size:
    description: Stages over which the layers are dealt out.
    type: int
    default: 1
  decode_context_parallel_size:
    description: Ranks over which the positions of the cache are dealt out.
    type: int
    default: 1
  dcp_kv_cache_interleave_size:
    description:
      - Neighbouring tokens that stay on one context-parallel rank; left out, 1.
      - Since 0.30 the engine itself heeds only the newer name, O(cp_kv_cache_interleave_size). Both are taken here,
        whatever the version, for one of them.
    type: int
  cp_kv_cache_interleave_size:
    description: The newer name of O(dcp_kv_cache_interleave_size).
    type: int
  dcp_comm_backend:
    description: The collective of DCP. Left out, the engine's default for the model. Some kernels know only one.
    type: str
    choices: [ag_rs, a2a]
  kv_cache_dtype:
    description: How the cache is stored. V(auto) follows the checkpoint.
    type: str
    default: auto
    choices:
      - auto
      - bfloat16
      - float16
      - fp8
      - fp8_e4m3
      - fp8_e5m2
      - fp8_ds_mla
      - nvfp4_ds_mla
      - nvfp4
      - int4_per_token_head
      - int8_per_token_head
      - fp8_per_token_head
  block_size:
    description: Tokens in a block. Left out, the attention backend's own.
    type: int
  max_model_len:
    description: Tokens of one request. V(-1) is the longest that fits. Left out, what the config allows.
    type: int
  max_num_seqs:
    description: Requests that must fit side by side when O(kv_cache_memory_bytes) is V(auto).
    type: int
    default: 1
  max_num_batched_tokens:
    description: Tokens of one scheduling step. Sliding windows keep them on top of the window.
    type: int
    default: 2048
  enable_prefix_caching:
    description: Whether prefixes are cached. It matters for recurrent layers. Left out, the engine's default.
    type: bool
  enforce_eager:
    description:
      - Whether the engine runs without CUDA graphs. With them a model with recurrent layers needs one block for each of
        O(max_num_seqs).
    type: bool
    default: false
  dtype:
    description:
      - What the engine computes with. O(kv_cache_dtype=auto) is stored as such.
      - V(auto) counts two bytes an element. V(float) and V(float32) are planned for O(device=cpu) only.
    type: str
    choices: [auto, half, float16, bfloat16, float, float32]
    default: auto
  mamba_ssm_cache_dtype:
    description: How recurrent states are stored. Left out, as the model asks for it.
    type: str
    choices: [float32, bfloat16, float16]
  speculative_config:
    description:
      - How drafts are made, with vLLM's keys. C(method) (mtp, eagle, eagle3 or ngram) and C(num_speculative_tokens)
        are looked at.
      - C(replicated_draft=true) is the fork's draft whose cache DCP does not deal out (C(VLLM_DCP_SHARD_DRAFT=0)).
    type: dict
  draft_config:
    description: The C(config.json) of the draft model, needed for eagle and eagle3.
    type: dict
  hf_overrides:
    description: Keys laid over O(config), as vLLM's C(--hf-overrides).
    type: dict
  kv_cache_memory_bytes:
    description:
      - Bytes for the cache on each rank, or a list by rank.
      - V(auto) is the smallest budget that holds O(max_num_seqs) requests of O(max_model_len), or with
        O(max_model_len=-1) the longest context that the measured memory allows.
      - Left out, the engine takes its share of O(memory_total_bytes) less O(weights_bytes) and O(overhead_bytes).
    type: raw
  kv_cache_limit_bytes:
    description:
      - Bytes that the budget may not exceed on each rank, or a list by rank, where O(kv_cache_memory_bytes=auto) and
        O(max_model_len=-1) look for it. With it no measured memory is needed.
    type: raw
  engine:
    description: The planner, a vLLM version such as V(0.32.0), or V(dark-devotion).
    type: str
    default: 0.32.0
  device:
    description: Where the engine runs.
    type: str
    default: cuda
    choices: [cuda, cpu]
  compute_capability:
    description:
      - The GPU's, such as V(9.0) or V(12.1). It decides the attention backend.
      - Left out, the block size of a GB10 (12.1) is taken and what its backends refuse is not judged.
    type: str
  attention_backend:
    description: vLLM's name of the attention backend. Left out, the one that this vLLM would choose.
    type: str
  kv_cache_layout:
    description: The layout of the cache in memory.
    type: str
    default: LBNHC
    choices: [LBNHC, BLHNC]
  num_gpu_blocks_override:
    description: Blocks that are allocated whatever the budget says.
    type: int
  disable_hybrid_kv_cache_manager:
    description: Whether windowed layers are allocated as full attention. Left out, the engine's default.
    type: bool
  disable_sliding_window:
    description: Whether the engine does without sliding windows. No request may be longer than the window then.
    type: bool
    default: false
  async_scheduling:
    description: Whether steps are scheduled ahead. Left out, wherever the engine can.
    type: bool
  weights_bytes:
    description: Bytes of weights on each rank, or a list by rank.
    type: raw
  memory_available_bytes:
    description: Bytes that are available on each rank's node, or a list by rank. V(null) in the list skips a node.
    type: raw
  memory_total_bytes:
    description: Bytes of memory of each rank's node, or a list by rank.
    type: raw
  gpu_memory_utilization:
    description: The share of the memory that vLLM wants to see free at start-up. Left out, the engine's default.
    type: float
  overhead_bytes:
    description: Bytes of everything else of the engine on each rank (activations, context, graphs), or a list by rank.
    type: raw
  reserve_bytes:
    description: Bytes that are to stay free on each rank's node, or a list by rank.
    type: raw
  startup_bytes:
    description:
      - Bytes that the engine takes on each rank's node before its start-up gate looks at free memory (Ray, CUDA
        context, NCCL), or a list by rank. They are part of O(overhead_bytes).
    type: raw
  nodes:
    description: The names of the ranks' nodes, for sentences.
    type: list
    elements: str
seealso:
  - plugin: sparkrig.serving.kv_budget
    plugin_type: filter
"""

EXAMPLES = r"""
---
- name: See whether the model fits on this node
  sparkrig.serving.kv_budget:
    model: /srv/models/glm-5.2
    measure_memory: true
    tensor_parallel_size: 4
    decode_context_parallel_size: 4
    kv_cache_dtype: fp8_ds_mla
    kv_cache_memory_bytes: 1810000000
    max_model_len: 131072
    speculative_config: {method: mtp, num_speculative_tokens: 1}
    weights_bytes: 114815000000
    overhead_bytes: 6400000000
  register: answer
"""

RETURN = r"""
fits:
  description: Whether the engine would start and every rank fits its node.
  returned: success
  type: bool
reasons:
  description: Why it does not fit, one sentence each.
  returned: success
  type: list
  elements: str
changes:
  description: The smallest changes with which it would fit, each a dictionary of options.
  returned: success
  type: list
  elements: dict
block_size:
  description: Tokens in a block, of the group with the smallest blocks.
  returned: success
  type: int
bytes_per_block:
  description: Bytes of one block on one rank, over all its layers.
  returned: success
  type: int
bytes_per_token:
  description: Bytes that one more token costs on one rank, recurrent states left out.
  returned: success
  type: float
num_blocks:
  description: Blocks on each rank. The smallest rank decides.
  returned: success
  type: int
kv_cache_tokens:
  description: The capacity as the engine logs it.
  returned: success
  type: int
max_concurrency:
  description: Requests of C(planned_model_len) tokens that fit side by side.
  returned: success
  type: float
required_bytes:
  description: Bytes of one request on one rank, as the engine counts them.
  returned: success
  type: int
minimum_kv_bytes:
  description: The smallest budget of one rank with which the engine would accept one request.
  returned: success
  type: int
max_model_len:
  description: The longest context that fits.
  returned: success
  type: int
planned_model_len:
  description: The context that was planned for.
  returned: success
  type: int
kv_cache_memory_bytes:
  description: The budget of each rank, a list where ranks differ.
  returned: success
  type: raw
kv_cache_dtype:
  description: The cache dtype in effect.
  returned: success
  type: str
engine_log:
  description: What the engine will log as its capacity. Null where it dies before.
  returned: success
  type: str
auto_fit_log:
  description: What the engine will log about the context that it settles for. Null without O(max_model_len=-1).
  returned: success
  type: str
engine_error:
  description: The text that the engine would die with, or null.
  returned: success
  type: str
assumptions:
  description:
    - A sentence for each key that C(config) leaves to the engine's default for the model, and one where memory is
      compared without O(weights_bytes).
  returned: success
  type: list
  elements: str
groups:
  description: The groups of layers that share a block table.
  returned: success
  type: list
  elements: dict
ranks:
  description: Every rank's bytes - weights, KV, overhead, reserve, needed, available and headroom.
  returned: success
  type: list
  elements: dict
"""

import json
import os
import typing as t

from ansible.module_utils.basic import AnsibleModule

from ansible_collections.sparkrig.serving.plugins.module_utils._kv_node import fit
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_options import CACHE_DTYPES, DTYPES, LAYOUTS
from ansible_collections.sparkrig.serving.plugins.module_utils._node import Memory, memory

_OWN_OPTIONS = ("model", "measure_memory")
# The control group of the whole node: limit, usage and statistics, v2 first, v1 second.
_GROUPS = (
    ("/sys/fs/cgroup/memory.max", "/sys/fs/cgroup/memory.current", "/sys/fs/cgroup/memory.stat"),
    (
        "/sys/fs/cgroup/memory/memory.limit_in_bytes",
        "/sys/fs/cgroup/memory/memory.usage_in_bytes",
        "/sys/fs/cgroup/memory/memory.stat",
    ),
)


def argument_spec() -> dict[str, dict[str, t.Any]]:
    """The options as AnsibleModule takes them."""
    return {
        "config": {"type": "dict"},
        "model": {"type": "path"},
        "measure_memory": {"type": "bool", "default": False},
        "tensor_parallel_size": {"type": "int", "default": 1},
        "pipeline_parallel_size": {"type": "int", "default": 1},
        "decode_context_parallel_size": {"type": "int", "default": 1},
        "dcp_kv_cache_interleave_size": {"type": "int"},
        "cp_kv_cache_interleave_size": {"type": "int"},
        "dcp_comm_backend": {"type": "str", "choices": ["ag_rs", "a2a"]},
        "kv_cache_dtype": {"type": "str", "default": "auto", "choices": list(CACHE_DTYPES)},
        "block_size": {"type": "int"},
        "max_model_len": {"type": "int"},
        "max_num_seqs": {"type": "int", "default": 1},
        "max_num_batched_tokens": {"type": "int", "default": 2048, "no_log": False},
        "enable_prefix_caching": {"type": "bool"},
        "enforce_eager": {"type": "bool", "default": False},
        "dtype": {"type": "str", "choices": list(DTYPES), "default": "auto"},
        "mamba_ssm_cache_dtype": {"type": "str", "choices": ["float32", "bfloat16", "float16"]},
        "speculative_config": {"type": "dict"},
        "draft_config": {"type": "dict"},
        "hf_overrides": {"type": "dict"},
        "kv_cache_memory_bytes": {"type": "raw"},
        "kv_cache_limit_bytes": {"type": "raw"},
        "engine": {"type": "str", "default": "0.32.0"},
        "device": {"type": "str", "default": "cuda", "choices": ["cuda", "cpu"]},
        "compute_capability": {"type": "str"},
        "attention_backend": {"type": "str"},
        "kv_cache_layout": {"type": "str", "default": "LBNHC", "choices": list(LAYOUTS)},
        "num_gpu_blocks_override": {"type": "int"},
        "disable_hybrid_kv_cache_manager": {"type": "bool"},
        "disable_sliding_window": {"type": "bool", "default": False},
        "async_scheduling": {"type": "bool"},
        "weights_bytes": {"type": "raw"},
        "memory_available_bytes": {"type": "raw"},
        "memory_total_bytes": {"type": "raw"},
        "gpu_memory_utilization": {"type": "float"},
        "overhead_bytes": {"type": "raw"},
        "reserve_bytes": {"type": "raw"},
        "startup_bytes": {"type": "raw"},
        "nodes": {"type": "list", "elements": "str"},
    }


def read_config(path: str) -> t.Any:
    """The config.json of a model folder, or the file itself."""
    name = os.path.join(path, "config.json") if os.path.isdir(path) else path
    try:
        with open(name, encoding="utf-8") as stream:
            return json.load(stream)
    except OSError as error:
        raise ValueError(f"model: {name} cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ValueError(f"model: {name} is not JSON: {error}") from error


def _text(path: str) -> str:
    with open(path, encoding="utf-8") as stream:
        return stream.read()


def measure() -> Memory:
    """The memory of this node, or what its control group leaves of it."""
    for group in _GROUPS:
        if all(os.path.isfile(path) for path in group):
            return memory(_text("/proc/meminfo"), *[_text(path) for path in group])
    return memory(_text("/proc/meminfo"), None, None, None)


def answer(params: dict[str, t.Any]) -> dict[str, t.Any]:
    """The answer to the module's options."""
    options = {name: value for name, value in params.items() if name not in _OWN_OPTIONS and value is not None}
    if params["model"] is not None:
        options["config"] = read_config(params["model"])
    if params["measure_memory"]:
        measured = measure()
        options["memory_total_bytes"] = measured.total_bytes
        options["memory_available_bytes"] = measured.available_bytes
    return fit(options)


def main() -> None:
    """Entry point."""
    module = AnsibleModule(
        argument_spec=argument_spec(),
        supports_check_mode=True,
        required_one_of=[("config", "model")],
        mutually_exclusive=[
            ("config", "model"),
            ("measure_memory", "memory_available_bytes"),
            ("measure_memory", "memory_total_bytes"),
        ],
    )
    try:
        result = answer(module.params)
    except ValueError as error:
        module.fail_json(msg=str(error))
    module.exit_json(changed=False, **result)


if __name__ == "__main__":
    main()

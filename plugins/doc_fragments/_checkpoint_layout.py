# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""The options by which the checkpoint modules are told how an engine spreads a model over its ranks.

Private to the collection.
"""

from __future__ import annotations


class ModuleDocFragment:
    """Goes with C(LAYOUT_ARGUMENTS) of C(module_utils/_checkpoint.py)."""

    DOCUMENTATION = r"""
options:
  tensor_parallel_size:
    description: Over how many ranks every layer is split.
    type: int
    default: 1
  pipeline_parallel_size:
    description: Over how many stages the layers are spread.
    type: int
    default: 1
  dtype:
    description: The type of unquantised weights in the engine. V(auto) counts two bytes each.
    type: str
    default: auto
  hf_overrides:
    description: What the engine lays over C(config.json).
    type: dict
    default: {}
  mtp:
    description:
      - Whether the engine will draft with the MTP layers that C(config.json) promises.
        When it does not, it does not load them, and they may be missing.
    type: bool
    default: true
  absorbed_copies:
    description:
      - Whether the engine keeps the key and value projections of latent attention (MLA) a second time, in the layout
        that decoding wants, although they are not quantised. The measured GLM-5.2 engine did; vLLM 0.32.0 keeps a view.
      - Quantised projections are unpacked for decoding by every engine, and always count twice.
    type: bool
    default: true
  enable_expert_parallel:
    description:
      - Whether each rank keeps some of the experts whole, not a part of every one. The first ranks keep one more each
        when the experts cannot be dealt out evenly.
    type: bool
    default: false
  allow_files:
    description:
      - Names or patterns of files in formats that can run code when they are loaded (C(*.bin), C(*.pt), C(*.pkl) and
        the like). Without a name here each of them is a problem; only safetensors have a header that can be checked.
    type: list
    elements: str
    default: []
"""

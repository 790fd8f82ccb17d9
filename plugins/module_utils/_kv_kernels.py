# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Which attention kernel the engine takes, by version, and what it has against the others, in its own words.

The lists, rules and words are those of the published sources, whose own classes were asked beside this. Private to
this collection.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Callable, TypeVar

from ansible_collections.sparkrig.serving.plugins.module_utils import _kv_texts as texts
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_backends import (
    BACKENDS,
    BF16,
    FP8,
    PLAIN_BYTES,
    ROW_BYTES,
    Backend,
    plain_bytes,
)
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_dialects import Dialect
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_models import Latent, Model
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_options import Request
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_specs import (
    CHUNKED,
    CROSS,
    FULL,
    MLA,
    SLIDING,
    EngineRefusal,
)

_Version = tuple[int, int]
_LATENT = (*BF16, "fp8", "fp8_e4m3")
_OLD_LATENT = ("auto", "fp8", "fp8_e4m3")
_FIRST = (0, 13)


@dataclass(frozen=True)
class _Rule:
    """What a kernel of MLA runs.

    majors: compute capabilities, by major number (none: every one);
    caches: cache dtypes that it reads, and widths: elements of the latent vector with its rotary part (none: every
    number), both with the version from which on, oldest first; sparse: it is a kernel for sparse MLA.
    """

    majors: tuple[int, ...] = ()
    caches: tuple[tuple[_Version, tuple[str, ...]], ...] = ()
    widths: tuple[tuple[_Version, tuple[int, ...]], ...] = ()
    sparse: bool = False

    def reads(self, dtype: str, dialect: Dialect) -> bool:
        """Whether it reads a cache of this dtype."""
        return dtype in [names for since, names in self.caches if dialect.version >= since][-1]

    def takes(self, width: int, dialect: Dialect) -> bool:
        """Whether it reads a latent vector of so many elements."""
        widths = [sizes for since, sizes in self.widths if dialect.version >= since]
        return not widths or not widths[-1] or width in widths[-1]


_DENSE_CACHES = ((_FIRST, _OLD_LATENT), ((0, 20), _LATENT))
_BF16_CACHES = ((_FIRST, ("auto",)), ((0, 20), BF16))
_DENSE_WIDTHS = ((_FIRST, (576,)), ((0, 20), (320, 576)), ((0, 30), (320, 512, 576)))
_SPARSE_WIDTHS = ((_FIRST, (576,)), ((0, 30), (512, 576)))
_FLASHMLA_WIDTHS = ((_FIRST, (576,)), ((0, 20), (512, 576)), ((0, 24), (576,)), ((0, 31), (512, 576)))
_FLASHMLA_CACHES = (
    (_FIRST, ("auto", "fp8_ds_mla")),
    ((0, 20), ("auto", "bfloat16", "fp8_ds_mla", "fp8")),
    ((0, 30), ("auto", "bfloat16", "fp8_ds_mla", "fp8", "nvfp4_ds_mla")),
)
_SM120_CACHES = ("auto", "fp8", "fp8_e4m3", "fp8_ds_mla")
_RULES: Mapping[str, _Rule] = {
    "TRITON_MLA": _Rule(
        caches=((_FIRST, ("auto",)), ((0, 20), _LATENT)),
        widths=((_FIRST, (576,)), ((0, 20), ())),
    ),
    "FLASH_ATTN_MLA": _Rule(majors=(9,), caches=_BF16_CACHES, widths=_DENSE_WIDTHS),
    "FLASHMLA": _Rule(majors=(9, 10), caches=_DENSE_CACHES, widths=_DENSE_WIDTHS),
    "CUTLASS_MLA": _Rule(majors=(10,), caches=_DENSE_CACHES, widths=_DENSE_WIDTHS),
    "FLASHINFER_MLA": _Rule(majors=(10,), caches=_DENSE_CACHES, widths=_DENSE_WIDTHS),
    "TOKENSPEED_MLA": _Rule((10,), ((_FIRST, ("fp8", "fp8_e4m3")),), _DENSE_WIDTHS),
    "FLASH_ATTN_MLA_SPARSE": _Rule((9,), ((_FIRST, BF16),), sparse=True),
    "FLASHMLA_SPARSE": _Rule(majors=(9, 10), caches=_FLASHMLA_CACHES, widths=_FLASHMLA_WIDTHS, sparse=True),
    "FLASHINFER_MLA_SPARSE": _Rule((10,), ((_FIRST, _LATENT),), _SPARSE_WIDTHS, sparse=True),
    "FLASHINFER_MLA_SPARSE_SM120": _Rule((12,), ((_FIRST, _SM120_CACHES),), _SPARSE_WIDTHS, sparse=True),
    "FLASHINFER_MLA_SPARSE_SM90": _Rule(
        (9,), ((_FIRST, ("auto", "bfloat16", "fp8", "fp8_e4m3")),), _SPARSE_WIDTHS, sparse=True
    ),
    "FLASH_ATTN_MLA_SPARSE_FA4": _Rule((10,), ((_FIRST, ("auto", "bfloat16")),), ((_FIRST, (576,)),), sparse=True),
}


@dataclass(frozen=True)
class _Asked:
    """What a kernel of MLA is asked for as a whole.

    major: of the compute capability, as the engine prints it in `capability`; width: of the latent vector with its
    rotary part; heads: query heads of a rank; dcp: ranks of DCP.
    """

    version: _Version
    capability: tuple[int, int]
    dtype: str
    sparse: bool
    width: int
    heads: int
    dcp: int
    latent: Latent
    computes_with: str
    mla: bool = True
    sink: bool = False
    window: bool = False

    @property
    def major(self) -> int:
        """Of the compute capability."""
        return self.capability[0]


def _flash_attn_mla(asked: _Asked) -> str | None:
    return None if asked.major == 9 else "FlashAttention MLA not supported on this device"


def _flashmla(asked: _Asked) -> str | None:
    if asked.sparse:
        apt = asked.major in (9, 10)
        centre = " DC" if asked.version >= (0, 24) else ""
        return None if apt else f"FlashMLA Sparse is only supported on Hopper and Blackwell{centre} devices."
    return None if asked.major == 9 else "FlashMLA Dense is only supported on Hopper devices."


def _flashinfer_mla(asked: _Asked) -> str | None:
    if asked.version < (0, 20) or asked.latent.nope in (None, 64, 128, 192):
        return None
    return f"FlashInfer MLA kernel requires qk_nope_head_dim in [64, 128, 192], but got {asked.latent.nope}"


def _tokenspeed_mla(asked: _Asked) -> str | None:
    shape = (asked.latent.nope, asked.latent.rope, asked.latent.value)
    if not asked.mla:
        # What it reads from a config without them.
        shape = (0, 0, 0)
    if None in shape or shape == (128, 64, 128):
        return None
    return (
        "tokenspeed_mla requires DeepSeek R1 MLA dimensions (qk_nope_head_dim=128, qk_rope_head_dim=64, "
        f"v_head_dim=128), got {shape}"
    )


def _trtllm_sparse(asked: _Asked, name: str) -> str | None:
    if asked.dtype == "fp8_ds_mla" and asked.version >= (0, 24):
        return f"{name} SM10 does not support fp8_ds_mla kv-cache dtype"
    if asked.latent.nope not in (None, 128, 192):
        return f"FlashInfer MLA Sparse kernel requires qk_nope_head_dim in [128, 192], but got {asked.latent.nope}"
    return None if asked.sparse else "FlashInfer MLA Sparse requires model with index_topk config"


def _flashinfer_mla_sparse(asked: _Asked) -> str | None:
    return _trtllm_sparse(asked, "FLASHINFER_MLA_SPARSE")


def _flash_attn_mla_sparse_fa4(asked: _Asked) -> str | None:
    if asked.major not in (9, 10, 11):
        return "FA4 unavailable: FA4 is only supported on devices with compute capability 9.x, 10.x, or 11.x"
    latent = asked.latent
    if latent.picked is None or latent.picked % 128:
        return f"FA4 sparse MLA requires index_topk % 128 == 0, got {latent.picked}"
    if (latent.rank, latent.rope) != (512, 64):
        return (
            f"FA4 sparse MLA requires (kv_lora_rank, qk_rope_head_dim) == (512, 64), got {(latent.rank, latent.rope)}"
        )
    gathered = (8, 16, 32, 64) if asked.dcp > 1 else (8, 16, 32, 64, 128)
    if asked.heads * asked.dcp not in gathered:
        return (
            f"FA4 sparse MLA requires {gathered} gathered query heads, got num_heads={asked.heads} * "
            f"dcp_size={asked.dcp}"
        )
    return _trtllm_sparse(asked, "FLASH_ATTN_MLA_SPARSE_FA4")


def _flashmla_sparse(asked: _Asked) -> str | None:
    if asked.width == 512 and asked.version >= (0, 31):
        packs = asked.version >= (0, 32)
        if asked.dtype not in (*BF16, *(("fp8_ds_mla",) if packs else ())) or asked.major != 9:
            caches = "bf16 or fp8_ds_mla" if packs else "bf16"
            return (
                f"FLASHMLA_SPARSE supports head_size 512 only with {caches} kv-cache on SM90 (NoPE), got "
                f"kv_cache_dtype={asked.dtype}, capability=DeviceCapability(major={asked.capability[0]}, "
                f"minor={asked.capability[1]})"
            )
        if asked.latent.rope != 0:
            return "FLASHMLA_SPARSE supports head_size 512 only for rope-free (NoPE) models"
    if asked.dtype == "nvfp4_ds_mla" and asked.major != 10 and asked.version >= (0, 30):
        return f"FLASHMLA_SPARSE only supports the {asked.dtype} kv-cache dtype on SM100 (Blackwell)"
    return None


def _flashinfer_mla_sparse_sm120(asked: _Asked) -> str | None:
    if asked.dtype not in _SM120_CACHES:
        return "kv_cache_dtype not supported"
    if not asked.sparse:
        return "FLASHINFER_MLA_SPARSE_SM120 requires a model with index_topk config"
    if asked.latent.picked != 2048:
        return f"FLASHINFER_MLA_SPARSE_SM120 requires index_topk=2048; got {asked.latent.picked}"
    return None


def _flash_attn_mla_sparse(asked: _Asked) -> str | None:
    if asked.dtype not in BF16:
        return "FlashAttention MLA Sparse currently supports only FP16/BF16 KV cache"
    if asked.major != 9:
        return "FlashAttention MLA not supported on this device"
    if asked.dcp > 1:
        return "FlashAttention MLA Sparse does not support DCP for now"
    return None if asked.sparse else "FlashAttention MLA Sparse requires model with index_topk"


def _flashinfer_mla_sparse_sm90(asked: _Asked) -> str | None:
    if not asked.sparse:
        return "FLASHINFER_MLA_SPARSE_SM90 requires sparse MLA"
    if asked.latent.rank != 512:
        return "FLASHINFER_MLA_SPARSE_SM90 requires kv_lora_rank=512"
    return None if asked.latent.rope in (0, 64) else "FLASHINFER_MLA_SPARSE_SM90 requires qk_rope_head_dim in (0, 64)"


# What a kernel says against a combination, after everything else.
_COMBINATIONS: Mapping[str, Callable[[_Asked], str | None]] = {
    "FLASH_ATTN_MLA": _flash_attn_mla,
    "FLASHMLA": _flashmla,
    "FLASHINFER_MLA": _flashinfer_mla,
    "TOKENSPEED_MLA": _tokenspeed_mla,
    "FLASHINFER_MLA_SPARSE": _flashinfer_mla_sparse,
    "FLASHMLA_SPARSE": _flashmla_sparse,
    "FLASHINFER_MLA_SPARSE_SM120": _flashinfer_mla_sparse_sm120,
    "FLASH_ATTN_MLA_SPARSE": _flash_attn_mla_sparse,
    "FLASHINFER_MLA_SPARSE_SM90": _flashinfer_mla_sparse_sm90,
    "FLASH_ATTN_MLA_SPARSE_FA4": _flash_attn_mla_sparse_fa4,
}
_HOPPER = ("FLASH_ATTN_MLA", "FLASHMLA", "FLASHINFER_MLA", "TRITON_MLA")


def _mla_order(asked: _Asked) -> list[str]:
    """In what order a version tries its kernels of MLA."""
    if asked.major == 10:
        first: tuple[str, ...] = ("FLASHINFER_MLA", "TOKENSPEED_MLA", "CUTLASS_MLA")
        sparse = ["FLASHINFER_MLA_SPARSE", "FLASHMLA_SPARSE"]
        few = asked.heads <= 16
        if asked.version < (0, 20):
            first = ("CUTLASS_MLA", "FLASHINFER_MLA")
        elif asked.dtype in BF16:
            sparse = ["FLASH_ATTN_MLA_SPARSE_FA4", *sparse] if few else sparse[::-1]
        order: tuple[str, ...] = (*first, "FLASH_ATTN_MLA", "FLASHMLA", "TRITON_MLA", *sparse)
    elif asked.major == 12 and asked.version >= (0, 24):
        order = ("TRITON_MLA", "FLASHINFER_MLA_SPARSE_SM120")
    elif asked.width == 512:
        order = (*_HOPPER, "FLASHINFER_MLA_SPARSE_SM90", "FLASH_ATTN_MLA_SPARSE", "FLASHMLA_SPARSE")
    else:
        order = (*_HOPPER, "FLASH_ATTN_MLA_SPARSE", "FLASHMLA_SPARSE", "FLASHINFER_MLA_SPARSE_SM90")
    return [name for name in order if asked.version >= BACKENDS[name].since]


def _no_sinks(version: _Version) -> str:
    return "attention sinks not supported" if version >= (0, 20) else "sink setting not supported"


def _objections(name: str, asked: _Asked, block_size: int | None, dialect: Dialect) -> list[str]:
    """Why a version does not take a kernel of MLA, in its words and order."""
    rule, backend = _RULES[name], BACKENDS[name]
    found = []
    if not rule.takes(asked.width, dialect):
        found.append("head_size not supported")
    if not rule.reads(asked.dtype, dialect):
        found.append("kv_cache_dtype not supported")
    if block_size is not None and not backend.runs(block_size):
        found.append("block_size not supported")
    if not asked.mla:
        found.append("non-MLA not supported")
    if asked.sink:
        found.append(_no_sinks(asked.version))
    if asked.sparse != rule.sparse:
        found.append("sparse not supported" if asked.sparse else "non-sparse not supported")
    if rule.majors and asked.major not in rule.majors:
        found.append("compute capability not supported")
    if asked.window and asked.version >= (0, 26):
        found.append("sliding window not supported")
    if asked.dcp > 1 and dialect.version >= (0, 30) and not backend.has_dcp(dialect):
        found.append("DCP not supported")
    combined = _COMBINATIONS.get(name)
    reason = None if combined is None else combined(asked)
    return found if reason is None else [*found, reason]


def computes_with(request: Request, model: Model) -> str:
    """The dtype that the model computes with on a GPU."""
    if request.dtype in ("half", "float16") or (request.dtype == "auto" and model.computes_with == "float16"):
        return "float16"
    return "bfloat16"


def _capability(request: Request) -> tuple[int, int]:
    """The GPU that kernels are chosen for; nothing is chosen by name without one."""
    if request.compute_capability is None:
        raise ValueError("compute_capability is not given: without it no kernel can be named")
    return request.compute_capability


def _asked_kernel(request: Request, model: Model, dialect: Dialect, dtype: str) -> _Asked:
    if model.latent is None:
        raise ValueError(f"{model.family} has no latent attention, whose kernels were asked for")
    return _Asked(
        version=dialect.version,
        capability=_capability(request),
        dtype=dtype,
        sparse=model.sparse,
        width=next(cache.key for layer in model.layers for cache in layer if cache.kind == MLA),
        heads=model.query_heads // request.tensor_parallel_size,
        dcp=request.decode_context_parallel_size,
        latent=model.latent,
        computes_with=computes_with(request, model),
    )


def _latent_shape(name: str, dialect: Dialect) -> Backend:
    """A kernel of MLA with the block sizes that a version has for it."""
    backend = BACKENDS[name]
    return replace(backend, multiple=1) if name == "TRITON_MLA" and dialect.version < (0, 20) else backend


def _asked_in_vain(layer: _Plain, request: Request, model: Model) -> _Asked:
    """What a kernel of MLA is asked for where a layer has K and V heads."""
    return _Asked(
        version=layer.version,
        capability=layer.capability,
        dtype=layer.dtype,
        sparse=False,
        width=layer.head,
        heads=model.query_heads // request.tensor_parallel_size,
        dcp=layer.dcp,
        # What the engine reads from a config that does not have it.
        latent=Latent(nope=1, rope=None, rank=None, value=None, picked=None),
        computes_with=computes_with(request, model),
        mla=False,
        sink=layer.sink,
        window=layer.window,
    )


def _mla_backend(request: Request, model: Model, dialect: Dialect, dtype: str) -> Backend:
    """The first kernel of MLA that the engine has no objection to; its refusal where there is none."""
    asked = _asked_kernel(request, model, dialect, dtype)
    refused: list[tuple[str, Sequence[str]]] = []
    # 0.13 chooses first, and fits the blocks to the kernel.
    block_size = request.block_size if dialect.version >= (0, 20) else None
    for name in _mla_order(asked):
        objections = _objections(name, asked, block_size, dialect)
        if not objections:
            return _latent_shape(name, dialect)
        refused.append((name, objections))
    raise EngineRefusal(
        texts.no_backend(
            dialect,
            asked.width,
            asked.computes_with,
            dtype,
            block_size,
            refused,
            use_mla=True,
            use_sparse=asked.sparse,
            use_dcp=asked.dcp > 1,
        )
    )


@dataclass(frozen=True)
class _Plain:
    """What a kernel for K and V heads is asked for.

    head: elements of a head; sink: the layer has attention sinks; shared: query heads share a K and V head;
    mla, sparse: the layer is one of MLA, or of sparse MLA, which no kernel for K and V heads runs; capped: its logits
    are capped; cross: it attends to the output of an encoder; value: elements of a V head that has a size of its own.
    """

    version: _Version
    capability: tuple[int, int]
    dtype: str
    head: int
    block_size: int | None
    window: bool
    sink: bool
    dcp: int
    shared: bool
    mla: bool = False
    sparse: bool = False
    capped: bool = False
    cross: bool = False
    value: int = 0

    @property
    def major(self) -> int:
        """Of the compute capability."""
        return self.capability[0]

    @property
    def quantised(self) -> bool:
        """Whether the cache does not hold what the model computes with."""
        return self.dtype not in BF16

    @property
    def flash_reads(self) -> bool:
        """Whether FlashAttention reads this quantised cache with such heads: its third version on SM90, its fourth on
        SM100, and on SM90 for the largest heads."""
        if self.dtype == "fp8_e5m2":
            return False
        if self.major == 9:
            return self.head <= 256 or (self.head == 512 and self.version >= _FLASH_512)
        return self.major == 10 and self.head <= 128


# From here on the fourth FlashAttention reads quantised caches on SM90, of heads of 512 elements.
_FLASH_512 = (0, 31)
# From here on it has a kernel of its own on SM100 for heads of 256 elements.
_FLASH_256 = (0, 30)
# From here on FlashInfer reads NVFP4 without the kernels of SM100, too.
_NVFP4_EVERYWHERE = (0, 32)
_OLD_CACHES = ("auto", "fp8", "fp8_e4m3", "fp8_e5m2")
_FLASHINFER_CACHES = (*_LATENT, "fp8_e5m2")
_TRITON_CACHES = (*_FLASHINFER_CACHES, "int8_per_token_head", "fp8_per_token_head")
# Cache dtypes that a kernel reads on every GPU, by version, oldest first.
_PLAIN_CACHES: Mapping[str, tuple[tuple[_Version, tuple[str, ...]], ...]] = {
    "FLASH_ATTN": _BF16_CACHES,
    "FLASHINFER": ((_FIRST, _OLD_CACHES), ((0, 20), _FLASHINFER_CACHES)),
    "TRITON_ATTN": (
        (_FIRST, _OLD_CACHES),
        ((0, 20), _TRITON_CACHES),
        ((0, 26), (*_TRITON_CACHES, "int4_per_token_head")),
    ),
    "FLEX_ATTENTION": _BF16_CACHES,
    "TURBOQUANT": ((_FIRST, ()),),
}
# Majors of the GPUs on which FlashInfer reads NVFP4.
_NVFP4_MAJORS = ((_FIRST, ()), ((0, 24), (8, 9, 10, 12)), ((0, 26), (10,)), (_NVFP4_EVERYWHERE, (8, 9, 10, 12)))
# Majors of the GPUs on which a kernel takes attention sinks (none: on every one).
_SINKS: Mapping[str, tuple[tuple[_Version, tuple[int, ...]], ...]] = {
    "FLASH_ATTN": ((_FIRST, (9,)), ((0, 20), (9, 10))),
    "FLASHINFER": ((_FIRST, (10,)), ((0, 28), (10, 12)), ((0, 30), (9, 10, 12))),
    "TRITON_ATTN": ((_FIRST, ()),),
}
_FLASHINFER_HEADS = ((_FIRST, (64, 128, 256)), ((0, 24), (64, 128, 256, 512)))
# The oldest GPU that a kernel runs on.
_OLDEST = {
    "FLASH_ATTN": ((_FIRST, (8, 0)),),
    "FLASHINFER": ((_FIRST, (7, 5)), ((0, 24), (8, 0))),
}
_PLAIN_ORDER = ("FLASH_ATTN", "FLASHINFER", "TRITON_ATTN", "FLEX_ATTENTION", "TURBOQUANT")
# No plan comes to it: it only reads cache dtypes of its own.
_TURBOQUANT = Backend("TURBOQUANT", "TurboQuantAttentionImpl", fixed=(16, 32, 64, 128))
# From here on a kernel is told that it is for cross attention.
_TELLS_CROSS = (0, 20)
_T = TypeVar("_T")


def _at(version: _Version, table: Sequence[tuple[_Version, _T]]) -> _T:
    """What holds for a version: the newest entry that is not newer."""
    return [entry for since, entry in table if version >= since][-1]


def _plain_order(asked: _Plain) -> list[str]:
    """In what order a version tries its kernels for K and V heads."""
    order = ("FLASHINFER", "FLASH_ATTN", *_PLAIN_ORDER[2:]) if asked.major == 10 else _PLAIN_ORDER
    return [name for name in order if name != "TURBOQUANT" or asked.version >= (0, 20)]


def _plain_reads(name: str, asked: _Plain) -> bool:
    if asked.dtype in _at(asked.version, _PLAIN_CACHES[name]):
        return True
    if name == "FLASHINFER":
        if asked.dtype == "nvfp4_ds_mla":
            # On SM100 it looks at no more than the beginning of the name.
            return asked.major == 10
        return asked.dtype == "nvfp4" and asked.major in _at(asked.version, _NVFP4_MAJORS)
    if name != "FLASH_ATTN":
        return False
    if asked.version < (0, 24):
        # It asks whether the cache is quantised, and not in which way.
        return asked.major == 9 and asked.quantised and (asked.version >= (0, 20) or asked.dtype.startswith("fp8"))
    majors = (9, 10) if asked.version >= (0, 28) else (9,)
    return asked.dtype in ("fp8", "fp8_e4m3") and asked.major in majors


def _plain_head(name: str, asked: _Plain) -> bool:
    if name == "FLASHINFER":
        return asked.head in _at(asked.version, _FLASHINFER_HEADS)
    if name == "FLASH_ATTN":
        fourth = asked.version >= (0, 20) and asked.major in (9, 10, 11)
        return asked.head % 8 == 0 and asked.head <= (512 if fourth else 256)
    return name != "TRITON_ATTN" or asked.head >= 32


def _plain_shape(name: str, asked: _Plain) -> Backend:
    """A kernel for K and V heads with the block sizes that it has for these heads on this GPU."""
    backend = _TURBOQUANT if name == "TURBOQUANT" else BACKENDS[name]
    if name == "FLEX_ATTENTION" and asked.version < (0, 24):
        return replace(backend, multiple=1)
    if name == "FLASHINFER" and asked.version >= (0, 24) and asked.major == 10 and asked.shared:
        # The kernels of SM100 run larger pages where query heads share a K and V head.
        return replace(backend, fixed=(*backend.fixed, 128, 256, 512, 1024))
    if name != "FLASH_ATTN":
        return backend
    if asked.version >= _FLASH_512 and asked.major == 9 and asked.head == 512 and asked.dtype in ("fp8", "fp8_e4m3"):
        return replace(backend, multiple=0, fixed=(64,))
    plain = asked.version >= _FLASH_256 and not asked.quantised and not asked.capped and asked.dcp == 1
    if plain and asked.major == 10 and asked.head == 256:
        return replace(backend, multiple=0, fixed=(128,))
    return backend


def _plain_sinks(name: str, asked: _Plain) -> bool:
    majors = _at(asked.version, _SINKS[name]) if name in _SINKS else None
    return majors is not None and (not majors or asked.major in majors)


def _plain_objections(name: str, asked: _Plain) -> list[str]:
    """Why a version does not take a kernel for K and V heads, in its words and order."""
    known = _OLDEST.get(name)
    since = asked.version
    checks = (
        (_plain_head(name, asked), "head_size not supported"),
        (_plain_reads(name, asked), "kv_cache_dtype not supported"),
        (asked.block_size is None or _plain_shape(name, asked).runs(asked.block_size), "block_size not supported"),
        (not asked.mla, "MLA not supported"),
        (not asked.sink or _plain_sinks(name, asked), _no_sinks(since)),
        (not asked.sparse, "sparse not supported"),
        (known is None or asked.capability >= _at(since, known), "compute capability not supported"),
        (
            not asked.cross or since < _TELLS_CROSS or name in ("FLASH_ATTN", "TRITON_ATTN"),
            "attention type AttentionType.ENCODER_DECODER not supported",
        ),
        (not asked.window or name != "TURBOQUANT" or since < (0, 26), "sliding window not supported"),
        (asked.dcp == 1 or since < (0, 30) or name in ("FLASH_ATTN", "FLASHINFER"), "DCP not supported"),
    )
    found = [words for fine, words in checks if not fine]
    combined = _PLAIN_COMBINATIONS.get(name)
    reason = None if combined is None else combined(asked)
    return found if reason is None else [*found, reason]


def _flash_attn(asked: _Plain) -> str | None:
    if asked.sink and asked.major < 9:
        return "sink not supported on compute capability < 9.0"
    if asked.version < (0, 28) or not asked.quantised or asked.flash_reads:
        return None
    if asked.version < _FLASH_512:
        return "FP8 KV cache requires FA3 on SM90 or FA4 on SM100"
    return "FP8 KV cache requires FA3 on SM90, FA4 with head_size=512 on SM90, or FA4 on SM100"


def _flashinfer(asked: _Plain) -> str | None:
    if asked.version < _NVFP4_EVERYWHERE or not asked.dtype.startswith("nvfp4") or asked.major not in (8, 9, 12):
        return None
    if asked.head == 64:
        return "fa2 prefill misreads an NVFP4 KV cache at head_size 64"
    return "the sink prefill wrapper cannot read an NVFP4 KV cache" if asked.sink else None


_PLAIN_COMBINATIONS: Mapping[str, Callable[[_Plain], str | None]] = {
    "FLASH_ATTN": _flash_attn,
    "FLASHINFER": _flashinfer,
}


def _asked_layers(request: Request, model: Model, dialect: Dialect, dtype: str) -> list[_Plain]:
    """What kernels for K and V heads are asked for, layer by layer, without repeating what is the same."""
    tp = request.tensor_parallel_size
    asked = _Plain(
        version=dialect.version,
        capability=_capability(request),
        dtype=dtype,
        head=0,
        # 0.13 chooses first, and fits the blocks to the kernel.
        block_size=request.block_size if dialect.version >= (0, 20) else None,
        window=False,
        sink=model.family == "gpt_oss",
        dcp=request.decode_context_parallel_size,
        shared=model.query_heads // tp // max(1, model.kv_heads // tp) > 1,
        mla=model.mla,
        sparse=model.sparse,
        capped=model.family == "gemma2",
    )
    kinds = (MLA,) if model.mla else _KINDS
    caches = [cache for layer in model.layers for cache in layer if cache.kind in kinds]
    shapes = dict.fromkeys((cache.key, cache.value, cache.kind) for cache in caches)
    return [
        replace(asked, head=head, value=value if value != head else 0, window=kind == SLIDING, cross=kind == CROSS)
        for head, value, kind in shapes
    ]


# What kernels for K and V heads run.
_KINDS = (FULL, SLIDING, CHUNKED, CROSS)


def _plain_backend(request: Request, model: Model, dialect: Dialect, dtype: str) -> Backend:
    """The first kernel that the engine has no objection to, for the model's first layer; its refusal for any layer."""
    taken: list[Backend] = []
    for asked in _asked_layers(request, model, dialect, dtype):
        refused = [(name, _plain_objections(name, asked)) for name in _plain_order(asked)]
        fitting = [name for name, objections in refused if not objections]
        if not fitting:
            raise EngineRefusal(
                texts.no_backend(
                    dialect,
                    asked.head,
                    computes_with(request, model),
                    dtype,
                    asked.block_size,
                    refused,
                    has_sink=asked.sink,
                    cross=asked.cross and asked.version >= _TELLS_CROSS,
                    has_sliding_window=asked.window,
                    use_dcp=asked.dcp > 1,
                )
            )
        taken.append(_plain_shape(fitting[0], asked))
    return taken[0]


def _unjudged(name: str, asked: _Plain) -> ValueError:
    """What a kernel makes of this is not known here, and not guessed."""
    heads = f"heads of {asked.head} elements" if not asked.value else f"K heads of {asked.head} and V of {asked.value}"
    engine, capability = (".".join(map(str, pair)) for pair in (asked.version, asked.capability))
    return ValueError(
        f"kv_cache_dtype: {asked.dtype!r} with kernel {name} of engine {engine}, {heads} and compute_capability "
        f"{capability} is not known to be served or refused"
    )


def _triton_made(asked: _Plain) -> str | None:
    """Triton's kernel is compiled for the types that the GPU has."""
    packed, bare = asked.dtype.startswith("fp8"), asked.dtype == "bfloat16"
    if asked.capability >= ((8, 9) if packed else (8, 0)) or not (packed or bare):
        return None
    if asked.version < _TRITON_LOOKS:
        raise _unjudged("TRITON_ATTN", asked)
    return texts.triton_lacks_type(asked.capability, packed)


def _split_made(asked: _Plain) -> str | None:
    """Triton's kernel for K and V heads of different sizes."""
    return _triton_made(asked) or split_cache(asked.version, asked.dtype)


def split_cache(version: _Version, dtype: str) -> str | None:
    """What Triton's kernel for K and V heads of different sizes has against a cache dtype on any device, or None."""
    if dtype in BF16 or (version >= _SPLIT_READS_FP8 and dtype in _E4M3):
        return None
    verb = "supports only fp8/fp8_e4m3" if version >= _SPLIT_READS_FP8 else "does not yet support"
    return f"TritonAttentionDiffKVBackend {verb} quantized KV cache (got kv_cache_dtype={dtype!r})."


def _flash_made(asked: _Plain) -> str | None:
    old = asked.quantised and asked.version < _FLASH_LOOKS
    if old and (asked.head > 256 or asked.dtype not in (*_E4M3, "fp8_e5m2")):
        raise _unjudged("FLASH_ATTN", asked)
    return None


def _flash_split_made(asked: _Plain) -> str | None:
    """FlashAttention's kernel for K and V heads of different sizes; its second version does not run them."""
    if asked.quantised and asked.version < (0, 24) and asked.major != 9:
        return "FlashAttention does not support fp8 kv-cache on this device."
    if asked.quantised and asked.version >= _FLASH_LOOKS and not asked.flash_reads:
        return f"FlashAttention does not support {asked.dtype} kv-cache on this device."
    if asked.sink and asked.major not in (9, 10):
        return "Sinks are only supported in FlashAttention 3"
    # With sinks the fourth version runs on SM90, and nothing says that it reads a quantised cache.
    reads = asked.dtype in _E4M3 and (asked.version >= _FLASH_LOOKS or asked.major == 9)
    if not _flash_splits(asked) or (asked.quantised and (not reads or (asked.sink and asked.major == 9))):
        raise _unjudged("FLASH_ATTN_DIFFKV", asked)
    return None


def _flash_splits(asked: _Plain) -> bool:
    """Whether a version of FlashAttention that takes K and V heads of different sizes runs these on this GPU."""
    head, value = asked.head, asked.value
    narrow = head <= 128 or (head == 192 and (value == 128 or asked.version < _FLASH_LOOKS))
    return asked.major == 9 or (asked.major == 10 and narrow)


def _flex_made(asked: _Plain) -> str | None:
    if asked.cross:
        return "FlexAttention does not support encoder_decoder attention"
    return "FlexAttention does not support logits soft cap yet." if asked.capped else None


def _flashinfer_made(asked: _Plain) -> str | None:
    if not asked.cross:
        return None
    return "Encoder self-attention and encoder/decoder cross-attention are not implemented for FlashInferImpl"


_E4M3 = ("fp8", "fp8_e4m3")
# From here on Triton's kernel asks which types the GPU has.
_TRITON_LOOKS = (0, 24)
# From here on FlashAttention asks what it can read when it is made.
_FLASH_LOOKS = (0, 28)
# From here on Triton's kernel for heads of different sizes reads fp8.
_SPLIT_READS_FP8 = (0, 32)
_MADE: Mapping[str, Callable[[_Plain], str | None]] = {
    "TRITON_ATTN": _triton_made,
    "TRITON_ATTN_DIFFKV": _split_made,
    "FLASH_ATTN": _flash_made,
    "FLASH_ATTN_DIFFKV": _flash_split_made,
    "FLASHINFER": _flashinfer_made,
    "FLEX_ATTENTION": _flex_made,
}


def check_made(request: Request, model: Model, dialect: Dialect, dtype: str, backend: Backend) -> None:
    """What kernels refuse when they are made for a layer, after they were chosen."""
    gathers = request.decode_context_parallel_size > 1 and backend.has_dcp(dialect)
    if gathers and backend.name == "FLASHMLA_SPARSE" and not dtype.endswith("_ds_mla"):
        raise EngineRefusal(texts.sparse_dcp_cache())
    if request.device == "cpu" or request.compute_capability is None:
        refusal = split_cache(dialect.version, dtype) if backend.name == "TRITON_ATTN_DIFFKV" else None
        if refusal is not None:
            raise EngineRefusal(refusal)
        return
    if model.mla or (dtype in BF16 and model.family not in _MADE_WITH_CARE and request.compute_capability >= (8, 0)):
        return
    for asked in _asked_layers(request, model, dialect, dtype):
        if asked.value:
            sinks = {**request.config, **(request.hf_overrides or {})}.get("add_swa_attention_sink_bias")
            name, layer = backend.name, replace(asked, sink=bool(sinks) and asked.window)
        else:
            fitting = (name for name in _plain_order(asked) if not _plain_objections(name, asked))
            name, layer = request.attention_backend or next(fitting, ""), asked
        refusal = _MADE[name](layer) if name in _MADE else None
        if refusal is not None:
            raise EngineRefusal(refusal)


# Families whose kernels may refuse even what is not quantised: capped logits, V heads of another size, two attentions.
_MADE_WITH_CARE = ("gemma2", "mimo_v2_flash", "whisper")


def _sparse_backend(request: Request, dialect: Dialect) -> str:
    if dialect.name == "dark-devotion":
        return "B12X_MLA_SPARSE"
    major = request.compute_capability[0] if request.compute_capability else 12
    if major == 12:
        return "FLASHINFER_MLA_SPARSE_SM120"
    return "FLASHINFER_MLA_SPARSE" if major == 10 else "FLASHMLA_SPARSE"


def _judges(request: Request, model: Model, dialect: Dialect) -> bool:
    """Whether it is known which kernels are tried: a GPU was named, and layers are of a usual kind.

    The fork has a kernel of sparse MLA of its own.
    """
    if request.device != "cuda" or request.compute_capability is None:
        return False
    if model.mla:
        return not (model.sparse and dialect.name == "dark-devotion")
    heads = [cache for layer in model.layers for cache in layer if cache.key]
    return bool(heads) and all(cache.kind in _KINDS for cache in heads)


def _named_backend(name: str, request: Request, model: Model, dialect: Dialect, dtype: str) -> Backend:
    """The kernel that was asked for by name, unless the engine refuses it."""
    asked_latent, asked_plain = name in _RULES, name in _PLAIN_CACHES
    if not (asked_latent or asked_plain) or not _judges(request, model, dialect):
        return BACKENDS[name]
    layers = _asked_layers(request, model, dialect, dtype)
    for layer in layers:
        if asked_plain:
            objections = _plain_objections(name, layer)
        elif model.mla:
            objections = _objections(name, _asked_kernel(request, model, dialect, dtype), layer.block_size, dialect)
        else:
            objections = _objections(name, _asked_in_vain(layer, request, model), layer.block_size, dialect)
        if objections:
            raise EngineRefusal(texts.backend_not_valid(name, objections))
    return _plain_shape(name, layers[0]) if asked_plain else _latent_shape(name, dialect)


def _check_name(name: str, request: Request, dialect: Dialect) -> None:
    """Refuses a kernel that is not known here, or not to this engine, or not to this device."""
    if name not in BACKENDS:
        raise ValueError(
            "attention_backend: {!r} is not known here; known are {}".format(name, ", ".join(sorted(BACKENDS)))
        )
    if dialect.version < BACKENDS[name].since or (name == _FORKED and dialect.name != "dark-devotion"):
        raise ValueError(f"attention_backend: {name!r} is not known to engine {dialect.name}")
    if request.device == "cuda" and name in _OF_CPUS:
        raise ValueError(f"attention_backend: {name!r} is a kernel of CPUs, and device is cuda")


# The kernel that only the fork has.
_FORKED = "B12X_MLA_SPARSE"
_OF_CPUS = ("CPU_ATTN", "CPU_MLA", "AMX_MLA")


def _cpu_backend(name: str | None, model: Model) -> Backend:
    """The kernel of a CPU, whatever else was asked for by name; which of the two of MLA it is, is up to the CPU."""
    if model.family == "mimo_v2_flash":
        # K and V heads of different sizes have a kernel of their own, on a CPU too.
        return BACKENDS["TRITON_ATTN_DIFFKV"]
    if not model.mla:
        return BACKENDS["CPU_ATTN"]
    return BACKENDS["AMX_MLA" if name == "AMX_MLA" else "CPU_MLA"]


def _split_backend(name: str | None, request: Request, model: Model, dialect: Dialect) -> Backend:
    """The kernel for K and V heads of different sizes: FlashAttention's where its third or fourth version runs."""
    if name is not None and name.endswith("_DIFFKV"):
        return BACKENDS[name]
    known = replace(request, compute_capability=request.compute_capability or (12, 1))
    split = next(asked for asked in _asked_layers(known, model, dialect, "auto") if asked.value)
    fits = _flash_splits(split) or dialect.version < (0, 24)
    return BACKENDS["FLASH_ATTN_DIFFKV" if fits else "TRITON_ATTN_DIFFKV"]


def choose_backend(request: Request, model: Model, dialect: Dialect, dtype: str) -> Backend:
    """The backend that the engine takes for the model's attention layers. dtype: of the cache, as it was asked for."""
    name = request.attention_backend
    if name is not None:
        _check_name(name, request, dialect)
    if request.device == "cpu":
        return _cpu_backend(name, model)
    if any(cache.key != cache.value for layer in model.layers for cache in layer if cache.kind in (FULL, SLIDING)):
        return _split_backend(name, request, model, dialect)
    if name is None and dialect.version < (0, 20) and model.mla and not model.sparse and request.blackwell:
        # 0.13 asks for it itself.
        name = "CUTLASS_MLA"
    if name is not None:
        return _named_backend(name, request, model, dialect, dtype)
    if _judges(request, model, dialect):
        chosen = _mla_backend if model.mla else _plain_backend
        return chosen(request, model, dialect, dtype)
    return BACKENDS[_likely_backend(request, model, dialect, dtype)]


def _likely_backend(request: Request, model: Model, dialect: Dialect, dtype: str) -> str:
    """The kernel where the GPU is not known, or not judged: that of the GPU that this is for."""
    if model.sparse:
        return _sparse_backend(request, dialect)
    if model.mla:
        return "TRITON_MLA"
    if "per_token_head" in dtype:
        return "TRITON_ATTN"
    return "FLASHINFER" if dtype == "nvfp4" or request.blackwell else "FLASH_ATTN"


# The version that first knew a cache dtype, where it was not there from the start.
_DTYPE_SINCE = {
    "float16": (0, 20),
    "int8_per_token_head": (0, 20),
    "fp8_per_token_head": (0, 20),
    "nvfp4": (0, 20),
    "int4_per_token_head": (0, 26),
    "nvfp4_ds_mla": (0, 30),
}


def check_dtype(request: Request, dialect: Dialect) -> None:
    """Refuses a cache dtype that the engine's command line does not offer, or that only GPUs have."""
    dtype = request.kv_cache_dtype
    if request.device == "cpu" and (dtype.startswith("nvfp4") or dtype.endswith(("_ds_mla", "per_token_head"))):
        raise ValueError(f"kv_cache_dtype: {dtype!r} needs a GPU, and device is cpu")
    fork = dialect.name == "dark-devotion" and dtype == "nvfp4_ds_mla"
    if dialect.version < _DTYPE_SINCE.get(dtype, (0, 0)) and not fork:
        raise ValueError(f"kv_cache_dtype: {dtype!r} is not known to engine {dialect.name}")
    if request.device == "cuda" and plain_bytes(request) != PLAIN_BYTES:
        raise ValueError(f"dtype: {request.dtype!r} is planned for device cpu only; GPUs serve bfloat16 or float16")


def asked_dtype(request: Request, model: Model, dialect: Dialect) -> str:
    """The cache dtype that a kernel is asked for: auto follows the checkpoint, and model classes have wishes."""
    dtype = request.kv_cache_dtype
    if dtype == "auto" and model.cache_scheme is not None:
        dtype = model.cache_scheme
    if dialect.name == "dark-devotion" or request.device == "cpu":
        return dtype
    if model.family == "deepseek_v32":
        if dtype.startswith("fp8") and dialect.version < (0, 20):
            return "fp8_ds_mla"
        return "auto" if dtype == "bfloat16" else dtype
    wants = request.blackwell and model.family == "glm_moe_dsa" and dialect.version >= _GLM_WANTS_FP8
    return "fp8_e4m3" if dtype == "auto" and wants else dtype


# From here on GLM-5 has an fp8 cache on Blackwell unless another is asked for.
_GLM_WANTS_FP8 = (0, 32)
# What kernels of sparse MLA are asked for, and pack in rows of their own.
_PACKS = {
    "FLASHMLA_SPARSE": FP8,
    "FLASHINFER_MLA_SPARSE_SM120": ("auto", "fp8", "fp8_e4m3"),
    "B12X_MLA_SPARSE": FP8,
}


def choose_kernel(request: Request, model: Model, dialect: Dialect) -> tuple[str, Backend]:
    """The cache dtype in effect and the backend of the attention layers.

    The kernel for sparse MLA is chosen by what was asked for, and then packs rows of its own.
    """
    asked = asked_dtype(request, model, dialect)
    backend = choose_backend(request, model, dialect, asked)
    if request.device == "cpu" or not model.sparse:
        return asked, backend
    return "fp8_ds_mla" if asked in _packed(request, backend) else asked, backend


def _packed(request: Request, backend: Backend) -> tuple[str, ...]:
    """What the kernel packs; where the GPU is not known, only what every one would pack."""
    known = request.attention_backend is not None or request.compute_capability is not None
    return _PACKS.get(backend.name, ()) if known else FP8


def judged_backend(request: Request) -> bool:
    """Whether the hardware was named, so that what its backends refuse can be judged."""
    return request.device == "cpu" or request.compute_capability is not None or request.attention_backend is not None


def unreadable(dtype: str, model: Model) -> bool:
    """Whether no kernel at all reads this cache dtype of this model.

    Where the hardware was named, `choose_backend` has refused it already and said more.
    """
    return (dtype in ROW_BYTES and not model.sparse) or ("per_token_head" in dtype and model.mla)

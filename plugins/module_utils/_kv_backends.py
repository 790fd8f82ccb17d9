# Copyright: (c) 2026, The sparkrig engineers
# GNU General Public License v3.0+ (see LICENSE or https://www.gnu.org/licenses/gpl-3.0.txt)
# SPDX-License-Identifier: GPL-3.0-or-later

"""Attention backends: which one vLLM takes, the block sizes its kernels run, and its bytes for one token.

Private to this collection.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Callable

from ansible_collections.sparkrig.serving.plugins.module_utils import _kv_texts as texts
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_dialects import Dialect
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_models import Cache, Latent, Model
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_options import Request
from ansible_collections.sparkrig.serving.plugins.module_utils._kv_specs import INDEXER, MLA, EngineRefusal

_PLAIN_BYTES = 2


@dataclass(frozen=True)
class Backend:
    """One attention backend of vLLM.

    fixed: block sizes its kernels run, and no others; multiple: it runs every multiple of this (0: none);
    implementation: the class that DCP errors name; dcp_since: the version in which it learnt to return the softmax LSE,
    which DCP needs (None: it never did); interleaves_since: the version in which it can draft with a DCP interleave
    above one;
    row_page: rows of one page of the kernel, where blocks must be whole pages apart (0: no such rule);
    packed_rows: the same for a packed cache dtype, in a kernel that reads other caches row by row;
    majors: compute capabilities that it runs on, by major number (none: every one); caches: cache dtypes that it reads
    (none: not judged); sparse: it is a kernel for sparse MLA; layouts: of the cache that it reads (none: every one);
    widths: elements of the latent vector with its rotary part that it reads (none: every number).
    """

    name: str
    implementation: str
    multiple: int = 0
    fixed: tuple[int, ...] = ()
    dcp_since: tuple[int, int] | None = None
    interleaves_since: tuple[int, int] | None = None
    row_page: int = 0
    packed_rows: int = 0
    majors: tuple[int, ...] = ()
    caches: tuple[str, ...] = ()
    sparse: bool = False
    layouts: tuple[str, ...] = ()
    widths: tuple[int, ...] = ()

    @property
    def smallest(self) -> int:
        """The smallest block that a kernel of this backend runs."""
        return min(self.fixed) if self.fixed else self.multiple

    def has_dcp(self, dialect: Dialect) -> bool:
        """Whether DCP works with this backend in a version."""
        return self.dcp_since is not None and dialect.version >= self.dcp_since

    def has_interleaved_drafts(self, dialect: Dialect) -> bool:
        """Whether drafts and a DCP interleave above one work together in a version."""
        return self.interleaves_since is not None and dialect.version >= self.interleaves_since

    @property
    def spoken_sizes(self) -> str:
        """The kernel's block sizes as the engine prints them."""
        return ", ".join(str(size) for size in self.fixed) or f"MultipleOf({self.multiple})"

    def runs(self, block_size: int) -> bool:
        """Whether a kernel can run blocks of this size, whole or cut into equal parts."""
        return any(block_size % size == 0 for size in self.fixed or (self.multiple,))

    def window_block(self, block_size: int) -> int:
        """The largest block a kernel runs that is not above block_size, or the smallest it runs at all."""
        sizes = self.fixed or (max(self.multiple, block_size // self.multiple * self.multiple),)
        return max([size for size in sizes if size <= block_size] or [min(sizes)])


_BF16 = ("auto", "float16", "bfloat16")
_LATENT = (*_BF16, "fp8", "fp8_e4m3")
_ROWS = (
    Backend("FLASH_ATTN", "FlashAttentionImpl", multiple=16, dcp_since=(0, 13)),
    Backend("FLASHINFER", "FlashInferImpl", fixed=(16, 32, 64), dcp_since=(0, 13)),
    Backend("TRITON_ATTN", "TritonAttentionImpl", multiple=16),
    Backend("TRITON_ATTN_DIFFKV", "TritonAttentionDiffKVImpl", multiple=16),
    Backend("FLEX_ATTENTION", "FlexAttentionImpl", multiple=16, layouts=("LBNHC",)),
    Backend("CPU_ATTN", "CPUAttentionBackendImpl", multiple=32, layouts=("LBHNC",)),
    Backend("CPU_MLA", "CPUMLAImpl", fixed=(16,)),
    Backend("AMX_MLA", "AMXMLAImpl", multiple=32),
    Backend("TRITON_MLA", "TritonMLAImpl", multiple=16, dcp_since=(0, 13), caches=_LATENT),
    Backend("FLASH_ATTN_MLA", "FlashAttnMLAImpl", multiple=16, dcp_since=(0, 13), majors=(9,), caches=_BF16),
    Backend("FLASHMLA", "FlashMLAImpl", fixed=(64,), dcp_since=(0, 13), majors=(9, 10), caches=_LATENT),
    Backend("CUTLASS_MLA", "CutlassMLAImpl", fixed=(128,), dcp_since=(0, 13), majors=(10,), caches=_LATENT),
    Backend("FLASHINFER_MLA", "FlashInferMLAImpl", fixed=(32, 64), dcp_since=(0, 26), majors=(10,), caches=_LATENT),
    Backend(
        "TOKENSPEED_MLA",
        "TokenspeedMLAImpl",
        fixed=(32, 64),
        dcp_since=(0, 26),
        interleaves_since=(0, 32),
        majors=(10,),
        caches=("fp8", "fp8_e4m3"),
    ),
    Backend(
        "FLASH_ATTN_MLA_SPARSE",
        "FlashAttnMLASparseImpl",
        multiple=64,
        row_page=1,
        majors=(9,),
        caches=_BF16,
        sparse=True,
    ),
    Backend(
        "FLASHMLA_SPARSE",
        "FlashMLASparseImpl",
        multiple=64,
        dcp_since=(0, 30),
        interleaves_since=(0, 30),
        row_page=1,
        packed_rows=64,
        majors=(9, 10),
        caches=("auto", "bfloat16", "fp8_ds_mla", "fp8", "nvfp4_ds_mla"),
        sparse=True,
        widths=(512, 576),
    ),
    Backend(
        "FLASHINFER_MLA_SPARSE",
        "FlashInferMLASparseImpl",
        multiple=32,
        dcp_since=(0, 26),
        row_page=32,
        majors=(10,),
        caches=_LATENT,
        sparse=True,
        widths=(512, 576),
    ),
    Backend(
        "FLASHINFER_MLA_SPARSE_SM120",
        "FlashInferMLASparseSM120Impl",
        multiple=64,
        row_page=64,
        majors=(12,),
        caches=("auto", "fp8", "fp8_e4m3", "fp8_ds_mla"),
        sparse=True,
        widths=(512, 576),
    ),
    Backend(
        "FLASHINFER_MLA_SPARSE_SM90",
        "FlashInferMLASparseSM90Impl",
        multiple=64,
        row_page=1,
        majors=(9,),
        caches=("auto", "bfloat16", "fp8", "fp8_e4m3"),
        sparse=True,
        widths=(512, 576),
    ),
    Backend("B12X_MLA_SPARSE", "B12xMLASparseImpl", multiple=64, dcp_since=(0, 24)),
)
BACKENDS: dict[str, Backend] = {row.name: row for row in _ROWS}
_INDEXER_BLOCK = 64

_FP8 = ("fp8", "fp8_e4m3", "fp8_e5m2")
# Opaque rows of sparse MLA: bytes of one token.
_ROW_BYTES = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 352}
_FORK_ROW_BYTES = {"fp8_ds_mla": 656, "nvfp4_ds_mla": 368}


# In what order the engine tries the kernels of MLA since 0.30, by the major number of the compute capability.
_MLA_ORDER = {
    10: ("FLASHINFER_MLA", "TOKENSPEED_MLA", "CUTLASS_MLA", "FLASH_ATTN_MLA", "FLASHMLA", "TRITON_MLA"),
    12: ("TRITON_MLA", "FLASHINFER_MLA_SPARSE_SM120"),
}
_MLA_ORDER_ELSE = (
    "FLASH_ATTN_MLA",
    "FLASHMLA",
    "FLASHINFER_MLA",
    "TRITON_MLA",
    "FLASH_ATTN_MLA_SPARSE",
    "FLASHMLA_SPARSE",
    "FLASHINFER_MLA_SPARSE_SM90",
)


@dataclass(frozen=True)
class _Asked:
    """What a kernel of MLA is asked for as a whole. major: of the compute capability; dcp: ranks of DCP."""

    major: int
    dtype: str
    sparse: bool
    dcp: int
    latent: Latent


def _flash_attn_mla(asked: _Asked) -> str | None:
    return None if asked.major == 9 else "FlashAttention MLA not supported on this device"


def _flashmla(asked: _Asked) -> str | None:
    if asked.sparse:
        apt = asked.major in (9, 10)
        return None if apt else "FlashMLA Sparse is only supported on Hopper and Blackwell DC devices."
    return None if asked.major == 9 else "FlashMLA Dense is only supported on Hopper devices."


def _flashinfer_mla(asked: _Asked) -> str | None:
    if asked.latent.nope in (None, 64, 128, 192):
        return None
    return f"FlashInfer MLA kernel requires qk_nope_head_dim in [64, 128, 192], but got {asked.latent.nope}"


def _tokenspeed_mla(asked: _Asked) -> str | None:
    shape = (asked.latent.nope, asked.latent.rope, asked.latent.value)
    if None in shape or shape == (128, 64, 128):
        return None
    return (
        "tokenspeed_mla requires DeepSeek R1 MLA dimensions (qk_nope_head_dim=128, qk_rope_head_dim=64, "
        f"v_head_dim=128), got {shape}"
    )


def _flashinfer_mla_sparse(asked: _Asked) -> str | None:
    if asked.dtype == "fp8_ds_mla":
        return "FLASHINFER_MLA_SPARSE SM10 does not support fp8_ds_mla kv-cache dtype"
    if asked.latent.nope not in (None, 128, 192):
        return f"FlashInfer MLA Sparse kernel requires qk_nope_head_dim in [128, 192], but got {asked.latent.nope}"
    return None if asked.sparse else "FlashInfer MLA Sparse requires model with index_topk config"


def _flashmla_sparse(asked: _Asked) -> str | None:
    if asked.dtype == "nvfp4_ds_mla" and asked.major != 10:
        return f"FLASHMLA_SPARSE only supports the {asked.dtype} kv-cache dtype on SM100 (Blackwell)"
    return None


def _flashinfer_mla_sparse_sm120(asked: _Asked) -> str | None:
    if asked.dtype not in BACKENDS["FLASHINFER_MLA_SPARSE_SM120"].caches:
        return "kv_cache_dtype not supported"
    if not asked.sparse:
        return "FLASHINFER_MLA_SPARSE_SM120 requires a model with index_topk config"
    if asked.latent.picked != 2048:
        return f"FLASHINFER_MLA_SPARSE_SM120 requires index_topk=2048; got {asked.latent.picked}"
    return None


def _flash_attn_mla_sparse(asked: _Asked) -> str | None:
    if asked.dtype not in _BF16:
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
}


def _mla_order(request: Request, model: Model, dtype: str, major: int) -> tuple[str, ...]:
    if major != 10:
        return _MLA_ORDER.get(major, _MLA_ORDER_ELSE)
    few = model.query_heads // request.tensor_parallel_size <= 16
    flashinfer_first = few or dtype not in _BF16
    sparse = ("FLASHINFER_MLA_SPARSE", "FLASHMLA_SPARSE")
    return (*_MLA_ORDER[10], *(sparse if flashinfer_first else sparse[::-1]))


def _latent_width(model: Model) -> int:
    return next(cache.key for layer in model.layers for cache in layer if cache.kind == MLA)


def _objections(backend: Backend, request: Request, model: Model, dialect: Dialect, dtype: str) -> list[str]:
    """Why the engine does not take a kernel of MLA, in its words and order."""
    found = []
    if backend.widths and _latent_width(model) not in backend.widths:
        found.append("head_size not supported")
    if dtype not in backend.caches:
        found.append("kv_cache_dtype not supported")
    if request.block_size is not None and not backend.runs(request.block_size):
        found.append("block_size not supported")
    if model.sparse != backend.sparse:
        found.append("sparse not supported" if model.sparse else "non-sparse not supported")
    major = request.compute_capability[0] if request.compute_capability else 12
    if backend.majors and major not in backend.majors:
        found.append("compute capability not supported")
    if request.decode_context_parallel_size > 1 and not backend.has_dcp(dialect):
        found.append("DCP not supported")
    combined = _COMBINATIONS.get(backend.name)
    if combined is not None and model.latent is not None:
        asked = _Asked(major, dtype, model.sparse, request.decode_context_parallel_size, model.latent)
        reason = combined(asked)
        found += [] if reason is None else [reason]
    return found


def _mla_backend(request: Request, model: Model, dialect: Dialect, dtype: str) -> Backend:
    """The first kernel of MLA that the engine has no objection to; its refusal where there is none."""
    major = request.compute_capability[0] if request.compute_capability else 12
    refused = []
    for name in _mla_order(request, model, dtype, major):
        objections = _objections(BACKENDS[name], request, model, dialect, dtype)
        if not objections:
            return BACKENDS[name]
        refused.append((name, objections))
    context_parallel = request.decode_context_parallel_size > 1
    raise EngineRefusal(
        texts.no_backend(_latent_width(model), dtype, request.block_size, model.sparse, context_parallel, refused)
    )


def _sparse_backend(request: Request, dialect: Dialect) -> str:
    if dialect.name == "dark-devotion":
        return "B12X_MLA_SPARSE"
    major = request.compute_capability[0] if request.compute_capability else 12
    if major == 12:
        return "FLASHINFER_MLA_SPARSE_SM120"
    return "FLASHINFER_MLA_SPARSE" if major == 10 else "FLASHMLA_SPARSE"


def _dense_mla_backend(request: Request, dtype: str) -> str:
    major = request.compute_capability[0] if request.compute_capability else 12
    if major == 10:
        return "FLASHINFER_MLA"
    if major == 9:
        return "FLASHMLA" if dtype in _FP8 else "FLASH_ATTN_MLA"
    return "TRITON_MLA"


def choose_backend(request: Request, model: Model, dialect: Dialect, dtype: str) -> Backend:
    """The backend that the engine takes for the model's attention layers."""
    name = request.attention_backend
    if name is not None:
        if name not in BACKENDS:
            raise ValueError(
                "attention_backend: {!r} is not known here; known are {}".format(name, ", ".join(sorted(BACKENDS)))
            )
        return BACKENDS[name]
    if request.device == "cpu":
        if model.family == "mimo_v2_flash":
            # K and V heads of different sizes have a kernel of their own, on a CPU too.
            return BACKENDS["TRITON_ATTN_DIFFKV"]
        return BACKENDS["CPU_MLA" if model.mla else "CPU_ATTN"]
    if model.mla and dialect.version >= (0, 30) and request.compute_capability is not None:
        return _mla_backend(request, model, dialect, dtype)
    if model.sparse:
        return BACKENDS[_sparse_backend(request, dialect)]
    if model.mla:
        return BACKENDS[_dense_mla_backend(request, dtype)]
    if "per_token_head" in dtype:
        return BACKENDS["TRITON_ATTN"]
    if dtype == "nvfp4" or request.compute_capability is not None and request.compute_capability[0] == 10:
        return BACKENDS["FLASHINFER"]
    return BACKENDS["FLASH_ATTN"]


def usual_backend(request: Request, backend: Backend) -> Backend:
    """What a rank without layers takes for its attention: the kernel that models of no special shape have."""
    return BACKENDS["CPU_ATTN"] if request.device == "cpu" and backend.name == "TRITON_ATTN_DIFFKV" else backend


def block_size_of(request: Request, model: Model, backend: Backend) -> int:
    """Tokens of one block: what was asked for, or what the backend of the model prefers to 16."""
    if request.device == "cpu":
        if backend.name == "CPU_MLA":
            return 16
        return request.block_size or 128
    if request.block_size is not None:
        return request.block_size
    if model.sparse:
        return _INDEXER_BLOCK
    if backend.multiple:
        return backend.multiple
    return 16 if 16 in backend.fixed else backend.smallest


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
    if request.device == "cuda" and plain_bytes(request) != _PLAIN_BYTES:
        raise ValueError(f"dtype: {request.dtype!r} is planned for device cpu only; GPUs serve bfloat16 or float16")


def _asked_dtype(request: Request, model: Model, dialect: Dialect) -> str:
    """The cache dtype that a kernel is asked for: auto follows the checkpoint, and GLM-5 wants fp8 on Blackwell."""
    dtype = request.kv_cache_dtype
    if dtype == "auto" and model.cache_scheme is not None:
        dtype = model.cache_scheme
    capability = request.compute_capability
    blackwell = capability is not None and capability[0] == 10
    wants = blackwell and model.family == "glm_moe_dsa" and dialect.version >= (0, 20)
    return "fp8_e4m3" if dtype == "auto" and wants and dialect.name != "dark-devotion" else dtype


def resolve_dtype(request: Request, model: Model, dialect: Dialect) -> str:
    """The cache dtype in effect where it does not depend on the kernel: sparse MLA packs its own rows."""
    dtype = _asked_dtype(request, model, dialect)
    if not model.sparse:
        return dtype
    capability = request.compute_capability
    if dtype == "auto" and capability is not None and capability[0] == 12 and dialect.name != "dark-devotion":
        return "fp8_ds_mla"
    if dtype in _FP8 and not (capability is not None and capability[0] == 10):
        return "fp8_ds_mla"
    return dtype


def choose_kernel(request: Request, model: Model, dialect: Dialect) -> tuple[str, Backend]:
    """The cache dtype in effect and the backend of the attention layers.

    Since 0.30 the kernel for sparse MLA is chosen by what was asked for, and then packs rows of its own.
    """
    named = request.attention_backend is not None or request.compute_capability is None
    if not model.sparse or named or request.device == "cpu" or dialect.version < (0, 30):
        dtype = resolve_dtype(request, model, dialect)
        return dtype, choose_backend(request, model, dialect, dtype)
    asked = _asked_dtype(request, model, dialect)
    backend = choose_backend(request, model, dialect, asked)
    packs = {"FLASHMLA_SPARSE": _FP8, "FLASHINFER_MLA_SPARSE_SM120": ("auto", "fp8", "fp8_e4m3")}
    return "fp8_ds_mla" if asked in packs.get(backend.name, ()) else asked, backend


def plain_bytes(request: Request) -> int:
    """Bytes of an element that is stored as the model computes with it."""
    return 4 if request.dtype in ("float", "float32") else _PLAIN_BYTES


def token_bytes(cache: Cache, heads: int, dtype: str, dialect: Dialect, auto_bytes: int) -> int:
    """Bytes of one token in one layer of one rank.

    heads: KV heads of this rank; auto_bytes: of an element where *dtype* is auto. Formulae: (K + V) * heads * D;
    MLA: its one vector; indexer: bytes as they are.
    """
    if cache.kind == INDEXER:
        return cache.key
    if cache.kind == MLA and dtype in _ROW_BYTES:
        return (_FORK_ROW_BYTES if dialect.name == "dark-devotion" else _ROW_BYTES)[dtype]
    elements = cache.key + cache.value
    if dtype in _FP8:
        return heads * elements
    if dtype == "nvfp4":
        return heads * (elements // 2 + elements // 16)
    if dtype == "int4_per_token_head":
        return heads * (cache.key // 2 + cache.value // 2 + 8)
    if dtype.endswith("per_token_head"):
        return heads * (elements + 8)
    return heads * elements * (auto_bytes if dtype == "auto" else _PLAIN_BYTES)


def strides(cache: Cache, backend: Backend, size: int, dtype: str, request: Request) -> tuple[int, int]:
    """What the distance of blocks must be a multiple of: bytes, and rows of a kernel's largest block (0: no such rule).

    size: bytes of one token.
    """
    if cache.kind == INDEXER:
        return 1, _INDEXER_BLOCK
    blackwell = request.compute_capability is not None and request.compute_capability[0] == 10
    if backend.packed_rows and dtype in _ROW_BYTES and not blackwell:
        return 1, backend.packed_rows
    if backend.row_page:
        return backend.row_page * size, 0
    return 1, max(backend.fixed or (0,))


def row_stride(cache: Cache, backend: Backend, size: int, dtype: str, request: Request) -> int:
    """What the distance of blocks must be a multiple of in 0.31: one token's row, where sparse kernels count in rows.

    size: bytes of one token.
    """
    if cache.kind != MLA:
        return 1
    blackwell = request.compute_capability is not None and request.compute_capability[0] == 10
    flat = backend.name == "FLASHMLA_SPARSE" and (dtype not in _ROW_BYTES or blackwell)
    return size if flat or backend.name == "FLASHINFER_MLA_SPARSE" else 1


# What is read by layers that do not care, most preferred first.
_EVERY_LAYOUT = ("LBNHC", "LBHNC", "BLNHC", "BLHNC", "BHLNC", "LHBNC")


def layouts_of(backend: Backend, attends: bool, request: Request) -> tuple[str, ...]:
    """The layouts that a rank says it can run. attends: it has layers of the backend."""
    if not attends:
        return _EVERY_LAYOUT
    blackwell = request.compute_capability is not None and request.compute_capability[0] == 10
    if backend.name == "FLASHINFER" and blackwell:
        return ("LBHNC", "BLHNC")
    return backend.layouts or _EVERY_LAYOUT


def rank_heads(cache: Cache, tensor_parallel_size: int) -> int:
    """KV heads of one rank: the heads dealt out, one at least; the vector of MLA is on every rank."""
    if cache.kind in (MLA, INDEXER):
        return 1
    return max(1, cache.heads // tensor_parallel_size)


def judged_backend(request: Request) -> bool:
    """Whether the hardware was named, so that what its backends refuse can be judged."""
    return request.device == "cpu" or request.compute_capability is not None or request.attention_backend is not None


def unreadable(dtype: str, model: Model) -> bool:
    """Whether no kernel at all reads this cache dtype of this model.

    Where the hardware was named, since 0.30, `choose_backend` has refused it already and said more.
    """
    return (dtype in _ROW_BYTES and not model.sparse) or ("per_token_head" in dtype and model.mla)
